//! Bytes: parse, checksum, incremental rewrite, segmentation, coalescing.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sluice_engine::gro;
use sluice_port::{Checksum, FramePool, PoolOptions, complete_checksum};
use sluice_testkit::Packet as Build;
use sluice_wire::Layers;
use sluice_wire::checksum::{Delta, Sum};
use sluice_wire::crc32c::Crc32c;
use sluice_wire::packet::Packet;
use sluice_wire::segment::Segments;
use std::hint::black_box;
use std::time::Duration;

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    for (name, from, to) in [("ipv4", "10.244.1.5", "10.244.2.6"), ("ipv6", "fd00:1::5", "fd00:2::6")] {
        let frame = Build::eth().ip(from, to).tcp(4000, 80).payload(&[7; 10]).build();
        group.bench_function(format!("{name}/packet"), |b| {
            b.iter(|| Packet::parse(black_box(&frame[14..]), frame.len() - 14));
        });
        group.bench_function(format!("{name}/layers"), |b| {
            b.iter(|| Layers::parse(black_box(&frame), frame.len()));
        });
        group.bench_function(format!("{name}/etherparse"), |b| {
            b.iter(|| etherparse::SlicedPacket::from_ethernet(black_box(&frame)).is_ok());
        });
    }
    group.finish();
}

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for size in [20usize, 64, 1460, 9000] {
        let bytes = vec![0x5a; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("sum/{size}"), |b| b.iter(|| Sum::bytes(black_box(&bytes)).fold()));
        group.bench_function(format!("crc32c/{size}"), |b| {
            b.iter(|| {
                let mut crc = Crc32c::NEW;
                crc.push(black_box(&bytes));
                crc.value()
            });
        });
    }
    group.finish();
}

/// The software completion of a 64,000-byte TCP segment in a chain of chunks, for a device that sends it without offload.
fn completion(c: &mut Criterion) {
    let bytes = Build::eth().ip("10.244.1.5", "10.244.2.6").tcp(4000, 80).payload(&vec![7; 64_000]).build();
    let pool = FramePool::new(PoolOptions { frames: 64, huge_pages: false }).expect("memory");
    let mut cache = pool.cache();
    let mut frame = cache.alloc_copy(&bytes).expect("free frames");
    let mut group = c.benchmark_group("completion");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("tcp4/64000", |b| {
        b.iter(|| {
            // Asked for again each time: the sum over the field's last content costs the same.
            frame.checksum = Checksum::Partial { start: 34, offset: 16 };
            complete_checksum(black_box(&mut frame))
        });
    });
    group.finish();
    cache.free(frame);
}

/// What DNAT does to an IPv4 and a TCP header: address, port, TTL and both checksums, by RFC 1624.
fn rewrite(c: &mut Criterion) {
    let mut frame = Build::eth().ip("10.244.1.5", "10.96.0.1").tcp(4000, 80).build();
    let l3 = Delta::ipv4([10, 96, 0, 1], [10, 244, 2, 1]);
    let l4 = l3.combine(Delta::u16(80, 8080));
    let mut field = 0x1234;
    c.bench_function("rewrite/apply", |b| {
        b.iter(|| {
            field = black_box(l4).apply(field);
            field
        });
    });
    c.bench_function("rewrite/ipv4-tcp", |b| {
        b.iter(|| {
            let head = black_box(&mut frame);
            let field = |h: &[u8], at: usize| u16::from_be_bytes([h[at], h[at + 1]]);
            head[30..34].copy_from_slice(&[10, 244, 2, 1]);
            head[36..38].copy_from_slice(&8080_u16.to_be_bytes());
            let ttl = Delta::u16(u16::from(head[22]) << 8, u16::from(head[22].wrapping_sub(1)) << 8);
            head[22] = head[22].wrapping_sub(1);
            let sum = l3.combine(ttl).apply(field(head, 24));
            head[24..26].copy_from_slice(&sum.to_be_bytes());
            let sum = l4.apply(field(head, 50));
            head[50..52].copy_from_slice(&sum.to_be_bytes());
        });
    });
}

/// A 64,000-byte segment into packets of 1,400 bytes of payload: headers, sums and the copy of the payload.
fn segmentation(c: &mut Criterion) {
    let frame = Build::eth().ip("10.244.1.5", "10.244.2.6").tcp(4000, 80).payload(&vec![7; 64_000]).build();
    let layers = Layers::parse(&frame, frame.len()).expect("a valid packet");
    let mut out = vec![0; 2048];
    let mut group = c.benchmark_group("segmentation");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("tcp4/64000", |b| {
        b.iter(|| {
            let split = Segments::new(&frame, &layers, 1400).expect("a TCP packet");
            for i in 0..split.count() {
                let payload = &frame[split.payload(i)];
                let n = split.header_len();
                out[n..n + payload.len()].copy_from_slice(payload);
                black_box(split.write(i, Sum::bytes(payload), &mut out));
            }
        });
    });
    group.finish();
}

/// Forty segments of one flow joined into one frame, checksums verified.
fn coalescing(c: &mut Criterion) {
    const SEGMENTS: u32 = 40;
    let segment = |n: u32| {
        let packet = Build::eth().ip("10.244.2.6", "10.244.1.5").tcp(80, 4000).seq(1 + n * 1400).ack(1);
        packet.payload(&[7; 1400]).build()
    };
    let segments: Vec<_> = (0..SEGMENTS).map(segment).collect();
    let pool = FramePool::new(PoolOptions { frames: 4096, huge_pages: false }).expect("memory");
    let mut cache = pool.cache();
    let mut again = pool.cache();
    let mut group = c.benchmark_group("coalescing");
    group.throughput(Throughput::Elements(u64::from(SEGMENTS)));
    group.bench_function("tcp4/40x1400", |b| {
        b.iter_batched(
            || segments.iter().map(|s| cache.alloc_copy(s).expect("a free frame")).collect::<Vec<_>>(),
            |frames| {
                let mut lane = Vec::with_capacity(64);
                for frame in frames {
                    if let Some(frame) = gro::coalesce(&mut lane, frame) {
                        lane.push(frame);
                    }
                }
                lane.into_iter().for_each(|frame| again.free(frame));
            },
            BatchSize::PerIteration,
        );
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
    targets = parse, checksum, completion, rewrite, segmentation, coalescing
}
criterion_main!(benches);
