//! Law 1 under anything a wire can carry: every frame that came in is sent, dropped with a reason, held or handed on, and none
//! leaks; with one worker and with three.

mod arrivals;
mod node;

use arrivals::arrival;
use node::{Node, POD_A, POD_C, SECOND, UPLINK, Wish};
use proptest::collection::vec;
use proptest::prelude::*;

fn check(workers: u16, arrivals: &[(u16, Vec<u8>)]) -> Result<(), TestCaseError> {
    let wish = Wish { workers, ..Wish::default() };
    let mut node = Node::new(&wish, 64);
    for (n, batch) in arrivals.chunks(24).enumerate() {
        node.at(SECOND + n as u64 * SECOND / 4);
        for port in node::PORTS {
            let frames: Vec<_> = batch.iter().filter(|(p, _)| *p == port).map(|(_, frame)| frame.clone()).collect();
            // A pod's queue belongs to its worker; the uplink's frames come to any.
            let worker = match port {
                UPLINK => n % usize::from(workers),
                POD_A..=POD_C => usize::from((port - POD_A).min(workers - 1)),
                _ => 0,
            };
            node.receive(worker, port, &frames);
        }
        node.workers.iter_mut().for_each(|w| w.upkeep());
        node.check_law().map_err(TestCaseError::fail)?;
    }
    node.finish();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn no_frame_is_lost_by_one_worker(arrivals in vec(arrival(), 1..160)) {
        check(1, &arrivals)?;
    }

    #[test]
    fn no_frame_is_lost_between_three_workers(arrivals in vec(arrival(), 1..160)) {
        check(3, &arrivals)?;
    }
}
