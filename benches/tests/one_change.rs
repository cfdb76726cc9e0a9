//! One endpoint that moves costs a small part of compiling all Services, however many there are.

#[path = "../benches/many_services/mod.rs"]
mod many_services;

use many_services::World;
use sluice_ctrl::compile::{Compiled, compile};
use std::time::{Duration, Instant};

/// Compiling all, and the median of compiling one moved endpoint.
fn all_and_one(mut world: World, services: usize) -> (Duration, Duration) {
    let begun = Instant::now();
    let mut last: Compiled = compile(&world.cluster, &world.view, &world.knobs, None).unwrap();
    let all = begun.elapsed();
    let mut times: Vec<Duration> = (0..31)
        .map(|turn| {
            world.move_endpoint(turn * 7 % services, turn + 1);
            let begun = Instant::now();
            last = compile(&world.cluster, &world.view, &world.knobs, Some(&last)).unwrap();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    (all, times[15])
}

#[test]
fn one_moved_endpoint_costs_a_small_part_of_all_services() {
    for services in [1_000, 4_000] {
        let plain = all_and_one(World::new(services, 25), services);
        let beside = all_and_one(World::with_addresses_that_move(services, 25), services);
        for (all, one) in [plain, beside] {
            assert!(one * 15 < all, "{one:?} of {all:?} with {services} Services");
        }
    }
}
