//! The steady way and the general way come to the same end: a node with a listener sends every packet the general way, one
//! without sends what it can through the columns, and both must put the same bytes into the same lanes in the same order and
//! count the same.

mod arrivals;
mod node;

use arrivals::{arrival, known_packet};
use node::{Node, POD_A, POD_C, PORTS, SECOND, UPLINK, Wish, tunnelled};
use proptest::collection::vec;
use proptest::prelude::*;
use sluice_engine::trace::{Event, Note, Trace};
use sluice_port::{Checksum, Gso, GsoKind};

/// A listener that does not care.
struct Deaf;

impl Trace for Deaf {
    fn event(&mut self, _: u16, _: Event, _: Option<&Note>, _: Option<&[u8]>) {}
}

/// What a batch brings, besides bytes: what the device knew of the checksum.
#[derive(Clone, Copy, Debug)]
enum Known {
    Complete,
    Unknown,
    Partial,
}

fn counts(node: &Node) -> Vec<u64> {
    let c = node.counters(0);
    let mut all: Vec<u64> = [
        &c.received,
        &c.originated,
        &c.sent,
        &c.punted,
        &c.dropped,
        &c.consumed,
        &c.handed_out,
        &c.handed_in,
        &c.held,
        &c.replies,
        &c.flows_created,
        &c.flows,
    ]
    .map(|c| c.get())
    .to_vec();
    all.extend(c.drops.iter().flatten().map(|c| c.get()));
    all
}

fn feed(node: &mut Node, batch: &[(u16, Vec<u8>, Known)]) {
    let mut burst = Vec::new();
    for (port, bytes, known) in batch {
        let mut frame = node.frame_on(0, bytes, *port);
        frame.checksum = match known {
            Known::Complete => Checksum::None,
            Known::Unknown => Checksum::Unknown,
            // As a TAP has it: only what a pod's own stack left to us.
            Known::Partial if *port != UPLINK && bytes.len() > 54 && bytes[12..14] == [8, 0] && bytes[23] == 6 => {
                Checksum::Partial { start: 34, offset: 16 }
            }
            Known::Partial => Checksum::None,
        };
        frame.gso = Gso { kind: GsoKind::None, size: 0 };
        burst.push(frame);
    }
    node.workers[0].receive(&mut burst);
    assert!(burst.is_empty());
}

fn known() -> impl Strategy<Value = Known> {
    prop_oneof![4 => Just(Known::Complete), 1 => Just(Known::Unknown), 1 => Just(Known::Partial)]
}

/// Mostly packets of a few flows, so that flows become steady and several packets of one are in a batch.
fn stream() -> impl Strategy<Value = Vec<(u16, Vec<u8>, Known)>> {
    let one = prop_oneof![
        3 => ((POD_A..=POD_C), known_packet()),
        3 => known_packet().prop_map(|inner| (UPLINK, tunnelled(&inner))),
        1 => arrival(),
    ];
    vec((one, known()).prop_map(|((port, bytes), known)| (port, bytes, known)), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn both_ways_send_the_same_bytes_in_the_same_order_and_count_the_same(
        stream in stream(), size in 1usize..64, republish in any::<bool>()
    ) {
        let wish = Wish::default();
        let (mut general, mut steady) = (Node::new(&wish, 4096), Node::new(&wish, 4096));
        general.workers[0].listen(Some(Box::new(Deaf)));
        // The same packets again and again: first packets, answers' flows, then steady ones; time passes, tables change.
        for round in 0..4u64 {
            let now = SECOND + round * SECOND / 3;
            general.at(now);
            steady.at(now);
            if republish && round == 2 {
                let wish = Wish { policy: (2, false), ..Wish::default() };
                general.publish(&wish);
                steady.publish(&wish);
            }
            for batch in stream.chunks(size) {
                feed(&mut general, batch);
                feed(&mut steady, batch);
                for port in PORTS {
                    prop_assert_eq!(general.sent(port), steady.sent(port), "port {}, round {}", port, round);
                }
                prop_assert_eq!(counts(&general), counts(&steady), "round {}", round);
            }
        }
        general.finish();
        steady.finish();
    }
}
