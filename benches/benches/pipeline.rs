//! Parts of the pipeline that only show in a batch: encapsulation, rewrite, delivery, handoff. 64 packets of one established
//! flow at a time, headers fresh.

#[path = "../../dataplane/engine/tests/node/mod.rs"]
mod node;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use node::{Node, POD_A, POD_B, UPLINK, Wish, from_pod, tunnelled};
use sluice_engine::handoff::Handoff;
use sluice_engine::item::{BATCH, Item};
use sluice_port::{FramePool, PoolOptions};
use sluice_testkit::Packet;
use std::cell::RefCell;
use std::time::Duration;

/// Runs batches of `frame`, an established stream, and takes what leaves on `out`.
fn stream(c: &mut Criterion, name: &str, frame: &[u8], port: u16, back: Option<(u16, Vec<u8>)>, out: u16) {
    let mut node = Node::new(&Wish::default(), 1024);
    // First side, other side, first side again: the flow is a stream.
    node.receive(0, port, &[frame.to_vec()]);
    if let Some((port, answer)) = back {
        node.receive(0, port, &[answer]);
    }
    node.receive(0, port, &[frame.to_vec()]);
    node::PORTS.into_iter().for_each(|port| drop(node.sent(port)));
    let node = RefCell::new(node);
    let mut group = c.benchmark_group("batch");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function(name, |b| {
        b.iter_batched_ref(
            || {
                let mut node = node.borrow_mut();
                let left = node.sent(out).len();
                assert!(left == 0 || left == BATCH, "{left} left");
                let all = sluice_port::Capabilities { chained: true, max_frame: 65_535, ..Default::default() };
                node.workers[0].open_lane(out, all);
                (0..BATCH).map(|_| node.frame_on(0, frame, port)).collect::<Vec<_>>()
            },
            |burst| node.borrow_mut().workers[0].receive(burst),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn ways(c: &mut Criterion) {
    let udp = |packet: Packet, ports: (u16, u16)| packet.udp(ports.0, ports.1).payload(&[7; 22]).build();
    let remote = |to: &str| Packet::eth().ip("10.244.2.1", to);
    let out = udp(from_pod(POD_A, "10.244.2.1"), (4000, 53));
    let back = tunnelled(&udp(remote("10.244.1.5"), (53, 4000)));
    stream(c, "encapsulate", &out, POD_A, Some((UPLINK, back.clone())), UPLINK);
    let first = tunnelled(&udp(remote("10.244.1.5"), (4000, 53)));
    let answer = udp(from_pod(POD_A, "10.244.2.1"), (53, 4000));
    stream(c, "decapsulate", &first, UPLINK, Some((POD_A, answer)), POD_A);
    let local = udp(from_pod(POD_A, "10.244.1.6"), (4000, 53));
    let reply = udp(from_pod(POD_B, "10.244.1.5"), (53, 4000));
    stream(c, "pod-to-pod-both-halves", &local, POD_A, Some((POD_B, reply)), POD_B);
    let segment = from_pod(POD_A, "10.96.0.1").tcp(4000, 80).payload(&[7; 10]).build();
    stream(c, "service-and-encapsulate", &segment, POD_A, None, UPLINK);
}

/// A batch through a ring and out of it, on one thread: the instructions and the moves, not the other core's cache misses.
fn handoff(c: &mut Criterion) {
    let pool = FramePool::new(PoolOptions { frames: 256, huge_pages: false }).expect("memory");
    let mut cache = pool.cache();
    let mut ends = Handoff::mesh(2);
    let mut items: Vec<Item> = (0..BATCH).filter_map(|_| cache.alloc()).map(Item::received).collect();
    let mut group = c.benchmark_group("handoff");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("push-and-pop", |b| {
        b.iter(|| {
            for item in items.drain(..) {
                assert!(ends[0].push(1, item).is_ok());
            }
            ends[1].pop(BATCH, &mut items)
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    // Short, so that all files together take minutes; the command line overrides it.
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = ways, handoff
}
criterion_main!(benches);
