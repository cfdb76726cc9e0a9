//! Policy proved: a million random (cluster, policies, packet) cases a run. What the objects' own text says
//! (`sluice_testkit::policy`), what the compiled tables say and what the whole pipeline does with a real packet must be one
//! and the same, for both tiers, both families, every protocol, through Services and tunnels, for flows' first packets and
//! for what follows after labels and policies have changed under them.
//!
//! `POLICY_PROOF_CASES` says how many cases, `POLICY_PROOF_SEED` which; each run takes another seed and prints it. A case
//! that fails is made as small as it gets and printed with its objects.

mod chance;
mod closed;
mod flow;
mod node;
mod story;
mod world;

use chance::Chance;
use std::io::Write;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Cases where nobody asks for another number.
const CASES: usize = 1_000_000;
/// Packets of one cluster before and after each change.
const PACKETS: usize = 600;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn objects_tables_and_pipeline_agree_on_a_million_packets() {
    let cases = number("POLICY_PROOF_CASES").map_or(CASES, |n| n as usize);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64 >> 10);
    let first = number("POLICY_PROOF_SEED").unwrap_or_else(now);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let start = Instant::now();
    let tallies: Vec<story::Tally> = std::thread::scope(|scope| {
        let run = |thread: usize| {
            let mut tally = story::Tally::default();
            let mut seed = first + thread as u64;
            while tally.cases < cases.div_ceil(threads) {
                let outcome = story::tell(seed, PACKETS, &mut tally);
                if let Err(difference) = outcome {
                    panic!("{}", story::smallest(seed, PACKETS, difference));
                }
                seed += threads as u64;
            }
            tally
        };
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut all = story::Tally::default();
    tallies.iter().for_each(|tally| all.add(tally));
    // Not through `println!`, which the test harness keeps to itself: every run shows what it has proved.
    let line = format!("policy proof: {all}, from seed {first}, in {:.1} s\n", start.elapsed().as_secs_f64());
    let _ = std::io::stderr().write_all(line.as_bytes());
    assert!(all.cases >= cases);
    // A generator that only makes one sort of verdict proves nothing.
    assert!(all.allowed * 10 > all.cases && all.denied * 10 > all.cases, "{all}");
    assert!(all.later * 4 > all.cases && all.turned * 100 > all.cases, "{all}");
}

#[test]
fn a_wrong_verdict_is_found_and_told_with_its_objects() {
    let mut chance = Chance::new(1);
    let told = (0..200).find_map(|_| {
        let seed = chance.below(1 << 30) as u64;
        story::tell_to_a_liar(seed, PACKETS)
            .err()
            .map(|difference| story::smallest_of_a_liar(seed, PACKETS, difference))
    });
    let told = told.expect("a program that lets the first denied packet pass is found out");
    assert!(told.contains("kind") && told.contains("POLICY_PROOF_SEED"), "{told}");
}
