//! What the driver costs: receive and send on DPDK's virtual devices, and the turn over many idle ports.
//!
//! `cargo bench -p sluice-dpdk --features dpdk --bench forward`; `make bench-dpdk` runs `dpdk-testpmd` on the same devices
//! beside it. One thread, pinned by whoever starts it (`taskset`). Prints one JSON object.

use sluice_dpdk::{DpdkQueue, Eal, EalOptions, PortOptions, open};
use sluice_port::alloc::{Counting, allocations};
use sluice_port::{Burst, FramePool, PoolCache, PoolOptions, Queue};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(400);

fn one(eal: &'static Eal, device: &str, pool: &Arc<FramePool>) -> DpdkQueue {
    let (_, mut queues) = open(eal, &PortOptions::new(device), pool).unwrap_or_else(|error| panic!("{error}"));
    queues.remove(0)
}

/// Runs `turn`, which gives back how many packets it moved, for a round; nanoseconds per packet and allocations.
fn round(mut turn: impl FnMut() -> usize) -> (f64, u64) {
    let (before, start, mut packets) = (allocations(), Instant::now(), 0);
    while start.elapsed() < ROUND {
        for _ in 0..256 {
            packets += turn();
        }
    }
    let (ns, after) = (start.elapsed().as_nanos() as f64, allocations());
    (ns / packets.max(1) as f64, after - before)
}

/// Median and spread of the rounds; allocations of all of them after the first.
fn measure(mut turn: impl FnMut() -> usize) -> (f64, f64, f64, u64) {
    round(&mut turn);
    let all: Vec<(f64, u64)> = (0..ROUNDS).map(|_| round(&mut turn)).collect();
    let mut ns: Vec<f64> = all.iter().map(|(ns, _)| *ns).collect();
    ns.sort_by(f64::total_cmp);
    (ns[ROUNDS / 2], ns[0], ns[ROUNDS - 1], all.iter().map(|(_, n)| n).sum())
}

fn line(name: &str, (median, least, most, allocations): (f64, f64, f64, u64)) -> String {
    format!(
        "  {name:?}: {{\"ns\": {median:.2}, \"least\": {least:.2}, \"most\": {most:.2}, \"allocations\": {allocations}}}"
    )
}

/// What comes from one port goes to the other, in bursts of at most 32, as `dpdk-testpmd` does in io mode.
fn io<'a>(from: &'a mut DpdkQueue, to: &'a mut DpdkQueue, cache: &'a mut PoolCache) -> impl FnMut() -> usize + use<'a> {
    let mut burst = Burst::with_capacity(256);
    move || {
        let n = from.rx(cache, &mut burst, 32);
        to.tx(cache, &mut burst);
        n
    }
}

fn main() {
    let eal = Eal::start(&EalOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    let pool =
        FramePool::new(PoolOptions { frames: 16_384, huge_pages: true }).unwrap_or_else(|error| panic!("{error}"));
    let mut cache = pool.cache();
    let mut lines = Vec::new();

    let (mut a, mut b) = (one(eal, "net_null0", &pool), one(eal, "net_null1", &pool));
    lines.push(line("net_null_io", measure(io(&mut a, &mut b, &mut cache))));
    [a, b].into_iter().for_each(|queue| Box::new(queue).close(&mut cache));

    // A ring whose other end is itself: what is sent is received in the next turn.
    let mut ring = one(eal, "net_ring0", &pool);
    let mut burst: Burst = (0..32).map_while(|_| cache.alloc_copy(&[0x5a; 60])).collect();
    ring.tx(&mut cache, &mut burst);
    lines.push(line(
        "net_ring_io",
        measure(|| {
            let n = ring.rx(&mut cache, &mut burst, 32);
            ring.tx(&mut cache, &mut burst);
            n
        }),
    ));
    Box::new(ring).close(&mut cache);

    // The turn over many silent queues, each asked every time; a DPDK process has at most 32 devices.
    let several = |n| {
        let options = PortOptions { queues: 10, ..PortOptions::new(&format!("net_null{},no-rx=1", 10 + n)) };
        open(eal, &options, &pool).unwrap_or_else(|error| panic!("{error}")).1
    };
    let mut silent: Vec<DpdkQueue> = (0..25).flat_map(several).collect();
    assert_eq!(silent.len(), 250);
    lines.push(line(
        "idle_port",
        measure(|| {
            for queue in &mut silent {
                queue.rx(&mut cache, &mut burst, 32);
                queue.flush(&mut cache);
            }
            silent.len()
        }),
    ));
    silent.into_iter().for_each(|queue| Box::new(queue).close(&mut cache));
    cache.account();
    assert_eq!(pool.outstanding(), 0, "frames did not come back");
    println!(
        "{{\n  \"dpdk\": {:?},\n  \"huge_pages\": {},\n{}\n}}",
        Eal::version(),
        eal.huge_pages(),
        lines.join(",\n")
    );
}
