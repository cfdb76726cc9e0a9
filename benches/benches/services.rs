//! Compiling Services: all of them, and one endpoint of one of them, with everything else left as it is.
//!
//! `cargo bench -p sluice-benches --bench services`. The cluster is made of model values, 25 endpoints a Service; the
//! largest has 10,000 Services and 250,000 endpoints.

mod many_services;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use many_services::World;
use sluice_ctrl::compile::compile;
use std::hint::black_box;
use std::time::Duration;

/// Endpoints of a Service.
const ENDPOINTS: usize = 25;

fn cold(c: &mut Criterion) {
    let mut group = c.benchmark_group("compile-cold");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for services in [10, 1_000, 10_000] {
        let world = World::new(services, ENDPOINTS);
        group.bench_function(BenchmarkId::from_parameter(services), |b| {
            b.iter(|| black_box(compile(&world.cluster, &world.view, &world.knobs, None).expect("it compiles")));
        });
    }
    group.finish();
}

fn one_endpoint(c: &mut Criterion) {
    one_endpoint_of(c, "compile-one-endpoint", World::new);
    one_endpoint_of(c, "compile-one-endpoint-beside-gateway-and-pool", World::with_addresses_that_move);
}

fn one_endpoint_of(c: &mut Criterion, name: &str, make: fn(usize, usize) -> World) {
    let mut group = c.benchmark_group(name);
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    for services in [10, 1_000, 10_000] {
        let mut world = make(services, ENDPOINTS);
        let mut last = compile(&world.cluster, &world.view, &world.knobs, None).expect("it compiles");
        let mut turn = 0;
        group.bench_function(BenchmarkId::from_parameter(services), |b| {
            b.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    turn += 1;
                    world.move_endpoint(turn % services, turn);
                    let begun = std::time::Instant::now();
                    let next = compile(&world.cluster, &world.view, &world.knobs, Some(&last)).expect("it compiles");
                    // What a publisher does with the last generation is part of the change.
                    last = next;
                    spent += begun.elapsed();
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group!(services, cold, one_endpoint);
criterion_main!(services);
