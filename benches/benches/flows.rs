//! The flow table: batches of 64 lookups in shuffled order, staged as the pipeline stages them and one by one; `hashbrown`
//! with the same keys and 64-byte values beside it.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluice_engine::flow::{Common, Entry, Entry4, FlowTable, Key4, Side, Slot, State, Tuple};
use sluice_engine::item::BATCH;
use sluice_tables::Address;
use std::hint::black_box;
use std::time::Duration;

const SIZES: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];

fn tuple(n: u32) -> Tuple {
    let [a, b, c, d] = n.to_be_bytes();
    Tuple {
        source: Address::v4([10, 244 ^ a, b, c]),
        destination: Address::v4([10, 96, 0, d]),
        source_port: 1024 + (n % 50_000) as u16,
        destination_port: 80,
        protocol: 6,
    }
}

fn key(n: u32) -> Key4 {
    tuple(n).key4(1, Side::From)
}

fn pair(n: u32) -> (Entry4, Entry4) {
    let t = tuple(n);
    let common = Common { state: State::Established as u8, ..Common::default() };
    let back = t.reverse();
    (Entry4::make(t.key4(1, Side::From), &t, &t, common), Entry4::make(back.key4(1, Side::To), &back, &back, common))
}

/// Every number once, in an order that no prefetcher guesses.
fn shuffled(n: u32) -> Vec<u32> {
    let mut list: Vec<u32> = (0..n).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..list.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        list.swap(at, (state % (at as u64 + 1)) as usize);
    }
    list
}

/// The same connection as a map's key.
fn plain(n: u32) -> (Address, Address, u16, u16, u8) {
    let t = tuple(n);
    (t.source, t.destination, t.source_port, t.destination_port, t.protocol)
}

/// Its answers' key.
fn plain_reverse(n: u32) -> (Address, Address, u16, u16, u8) {
    let (source, destination, source_port, destination_port, protocol) = plain(n);
    (destination, source, destination_port, source_port, protocol)
}

fn look_up(table: &FlowTable<Entry4>, keys: &[Key4]) -> u32 {
    let mut hashes = [0; BATCH];
    let mut slots = [Slot::NONE; BATCH];
    for (hash, key) in hashes.iter_mut().zip(keys) {
        *hash = table.hash(key);
        table.prefetch_bucket(*hash);
    }
    for (slot, hash) in slots.iter_mut().zip(hashes) {
        *slot = table.candidate(hash);
    }
    for (slot, hash) in slots.iter_mut().zip(hashes) {
        if *slot == Slot::NONE {
            *slot = table.second_candidate(hash);
        }
    }
    let mut found = 0;
    for (slot, key) in slots.iter().zip(keys) {
        let entry = table.get(*slot).filter(|e| e.key() == key);
        // A tag that two flows share.
        let shared = || if *slot == Slot::NONE { None } else { table.find(key) };
        let entry = entry.or_else(|| shared().and_then(|s| table.get(s)));
        found += entry.map_or(0, |e| u32::from(e.common().state != 0));
    }
    found
}

fn flows(c: &mut Criterion) {
    let mut group = c.benchmark_group("flow");
    group.throughput(Throughput::Elements(BATCH as u64));
    for n in SIZES {
        let mut table = FlowTable::<Entry4>::new(n as usize, 7, true).expect("memory");
        let mut map = hashbrown::HashMap::new();
        for k in 0..n {
            let (a, b) = pair(k);
            assert!(table.insert(a, Some(b)).is_ok());
            map.insert(plain(k), [0u64; 8]);
        }
        let order = shuffled(n);
        let hits: Vec<Key4> = order.iter().map(|k| key(*k)).collect();
        let misses: Vec<Key4> = order.iter().map(|k| key(*k + 0x4000_0000)).collect();
        let plain_hits: Vec<_> = order.iter().map(|k| plain(*k)).collect();
        let plain_misses: Vec<_> = order.iter().map(|k| plain(*k + 0x4000_0000)).collect();
        for (name, keys) in [("hit", &hits), ("miss", &misses)] {
            let mut batches = keys.chunks_exact(BATCH).cycle();
            group.bench_function(format!("{name}/{n}"), |b| {
                b.iter(|| look_up(&table, black_box(batches.next().unwrap_or(&[]))));
            });
            let mut batches = keys.chunks_exact(BATCH).cycle();
            group.bench_function(format!("find-{name}/{n}"), |b| {
                b.iter(|| {
                    let keys = black_box(batches.next().unwrap_or(&[]));
                    let entries = keys.iter().filter_map(|k| table.find(k)).filter_map(|s| table.get(s));
                    entries.map(|e| u32::from(e.common().state)).sum::<u32>()
                });
            });
        }
        for (name, keys) in [("hit", &plain_hits), ("miss", &plain_misses)] {
            let mut batches = keys.chunks_exact(BATCH).cycle();
            group.bench_function(format!("hashbrown-{name}/{n}"), |b| {
                b.iter(|| {
                    let keys = black_box(batches.next().unwrap_or(&[]));
                    keys.iter().filter_map(|k| map.get(k)).map(|v| v[0]).sum::<u64>()
                });
            });
        }
    }
    group.finish();
}

fn changes(c: &mut Criterion) {
    let mut table = FlowTable::<Entry4>::new(100_000, 7, true).expect("memory");
    for k in 0..90_000 {
        let (a, b) = pair(k);
        assert!(table.insert(a, Some(b)).is_ok());
    }
    let mut k = 90_000;
    c.bench_function("flow/insert-and-remove", |b| {
        b.iter(|| {
            k = 90_000 + (k + 1) % 900_000;
            let (a, b) = pair(k);
            if let Ok(slot) = table.insert(a, Some(b)) {
                table.remove(slot);
            }
        });
    });
    let mut map = hashbrown::HashMap::with_capacity(200_000);
    for k in 0..90_000 {
        map.insert(plain(k), [0u64; 8]);
        map.insert(plain_reverse(k), [0u64; 8]);
    }
    c.bench_function("flow/hashbrown-insert-and-remove", |b| {
        b.iter(|| {
            k = 90_000 + (k + 1) % 900_000;
            map.insert(plain(k), [0u64; 8]);
            map.insert(plain_reverse(k), [0u64; 8]);
            map.remove(&plain(k)).is_some() & map.remove(&plain_reverse(k)).is_some()
        });
    });
}

criterion_group! {
    name = benches;
    // Short, so that all files together take minutes; the command line overrides it.
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = flows, changes
}
criterion_main!(benches);
