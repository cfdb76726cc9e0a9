//! Sends at a rate: a bucket of packets every so often, and no catching up beyond one bucket.

use anyhow::Result;
use std::time::{Duration, Instant};

/// Time between two buckets: short against the queues on the way (a ring of 256 holds 0.4 ms at 0.6 million a second).
const BUCKET: Duration = Duration::from_micros(200);
/// Most packets in one go, also without a rate.
const MOST: u32 = 65_536;

/// Calls `send(packets)` for a time; `rate` in packets a second, `None` without limit. Returns packets asked for and
/// seconds taken.
pub fn run(rate: Option<f64>, time: Duration, mut send: impl FnMut(u32) -> Result<()>) -> Result<(u64, f64)> {
    let start = Instant::now();
    let mut sent = 0;
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok((sent, elapsed.as_secs_f64()));
        }
        let Some(rate) = rate else {
            send(MOST)?;
            sent += u64::from(MOST);
            continue;
        };
        let due = (rate * elapsed.as_secs_f64()) as u64;
        let packets = due.saturating_sub(sent);
        if packets > 0 {
            let packets = packets.min(u64::from(MOST)) as u32;
            send(packets)?;
            sent += u64::from(packets);
        }
        let next = start + elapsed + BUCKET;
        while Instant::now() < next {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_over_the_whole_time() {
        let (sent, took) = run(Some(100_000.0), Duration::from_millis(60), |_| Ok(())).unwrap();
        let rate = sent as f64 / took;
        // Late buckets are made up for, so that only the last one can be missing.
        assert!((60_000.0..=100_100.0).contains(&rate), "{rate}");
    }

    #[test]
    fn without_a_rate_it_sends_in_the_largest_buckets() {
        let mut calls = 0;
        let (sent, _) = run(None, Duration::from_millis(1), |n| {
            calls += 1;
            assert_eq!(n, MOST);
            Ok(())
        })
        .unwrap();
        assert_eq!(sent, calls * u64::from(MOST));
    }
}
