//! What first packets ask, and what control builds: Maglev, policy, longest prefix, publication.

use criterion::{Criterion, criterion_group, criterion_main};
use sluice_snapshot::Writer;
use sluice_tables::policy::{PolicySet, PortMap};
use sluice_tables::{
    Address, Backend, BackendSet, Decision, IdentityId, Lpm, Policy, PolicySetId, Prefix, RuleId, maglev,
};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

fn backends(n: u32) -> Vec<Backend> {
    (0..n)
        .map(|i| Backend { address: Address::v4((0x0af4_0000 + i).to_be_bytes()), port: 8080, local: false })
        .collect()
}

fn services(c: &mut Criterion) {
    let mut group = c.benchmark_group("maglev");
    for n in [1, 10, 100, 1000] {
        let list = backends(n);
        group.bench_function(format!("build/{n}"), |b| b.iter(|| maglev::build(black_box(&list))));
        let set = BackendSet::new(list).expect("few backends");
        let mut hash = 1_u64;
        group.bench_function(format!("choose/{n}"), |b| {
            b.iter(|| {
                hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
                set.choose(black_box(hash)).map(|b| b.port)
            });
        });
    }
    group.finish();
}

fn policy(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy");
    for rules in [10u32, 1_000, 10_000] {
        let decision = |allow, rule| Decision { allow, audit: false, rule: RuleId(rule) };
        let intervals: Vec<_> = (0..rules).map(|n| ((n * 6) as u16, decision(n % 2 == 0, n + 2))).collect();
        let map =
            PortMap { tcp: intervals.clone(), udp: intervals.clone(), sctp: intervals, other: decision(false, 1) };
        let policy = Policy {
            sets: vec![Arc::new(PolicySet {
                maps: [map].iter().collect(),
                by_identity: (0..rules).map(|n| (IdentityId(n), 0)).collect(),
                ..PolicySet::default()
            })],
            ..Policy::default()
        };
        let mut port = 0_u16;
        group.bench_function(format!("decide/{rules}"), |b| {
            b.iter(|| {
                port = port.wrapping_add(7919);
                policy.decide(Some(PolicySetId(0)), IdentityId(u32::from(port) % rules), 6, black_box(port)).allow
            });
        });
    }
    group.finish();
}

fn longest_prefix(c: &mut Criterion) {
    let mut group = c.benchmark_group("lpm");
    for n in [100u32, 10_000, 100_000] {
        let entry = |i: u32| {
            let len = 12 + (i % 13) as u8;
            let address = i.wrapping_mul(0x9e37_79b1) & (u32::MAX << (32 - len));
            (Prefix::new(Address::v4(address.to_be_bytes()), len).expect("a prefix"), i)
        };
        let map = Lpm::from_entries((0..n).map(entry));
        let mut address = 0_u32;
        group.bench_function(format!("lookup/{n}"), |b| {
            b.iter(|| {
                address = address.wrapping_add(0x6789_abcd);
                map.lookup(Address::v4(black_box(address).to_be_bytes())).copied()
            });
        });
    }
    group.finish();
}

/// What a new generation costs a worker, and what looking for one costs when there is none.
fn publication(c: &mut Criterion) {
    let mut group = c.benchmark_group("snapshot");
    let mut writer = Writer::new(Arc::new([0u64; 64]));
    let mut reader = writer.reader();
    group.bench_function("refresh-nothing-new", |b| b.iter(|| reader.refresh()));
    let values: Vec<_> = (0..64).map(|n| Arc::new([n; 64])).collect();
    for workers in [1, 4] {
        let mut writer = Writer::new(Arc::new([0u64; 64]));
        let mut readers: Vec<_> = (0..workers).map(|_| writer.reader()).collect();
        let mut next = values.iter().cycle();
        group.bench_function(format!("publish-and-refresh/{workers}"), |b| {
            b.iter(|| {
                if let Some(value) = next.next() {
                    writer.publish(Arc::clone(value));
                }
                readers.iter_mut().filter_map(|r| r.refresh().then_some(())).count()
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    // Short, so that all files together take minutes; the command line overrides it.
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = services, policy, longest_prefix, publication
}
criterion_main!(benches);
