//! A token bucket: how many bytes one direction of a port may pass.
//!
//! Owner: the worker of the port. Time is the turn's, so nothing here reads a clock. A frame may pass while there is any
//! credit, and may leave the bucket in debt: a 64 KB segment goes whole and is paid for afterwards. Invariant: over any span
//! of time no more passes than rate times span, plus the burst, plus one frame.

/// What a direction is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes a second, at least 1.
    pub bytes_per_second: u64,
    /// Most credit, in bytes.
    pub burst: u64,
}

const SECOND: u128 = 1_000_000_000;

/// A bucket.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    rate: Rate,
    /// Credit, in billionths of a byte: what a nanosecond gives at one byte a second.
    credit: i128,
    /// The turn in which credit was last given.
    at: u64,
}

impl Meter {
    /// A full bucket.
    pub fn new(rate: Rate, now: u64) -> Meter {
        Meter { rate, credit: i128::from(rate.burst) * SECOND as i128, at: now }
    }

    /// What it is held to.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Gives the credit of the time that has passed; whether anything may pass now.
    #[inline]
    pub fn open(&mut self, now: u64) -> bool {
        let passed = now.saturating_sub(self.at);
        self.at = now;
        let most = i128::from(self.rate.burst) * SECOND as i128;
        self.credit = (self.credit + i128::from(passed) * i128::from(self.rate.bytes_per_second)).min(most);
        self.credit > 0
    }

    /// Takes the credit of a frame that passes.
    #[inline]
    pub fn charge(&mut self, bytes: usize) {
        self.credit -= bytes as i128 * SECOND as i128;
    }

    /// Bytes that may pass before it closes.
    #[inline]
    pub fn credit(&self) -> u64 {
        u64::try_from(self.credit / SECOND as i128).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_longer_than_the_burst_passes_and_is_paid_for() {
        let mut meter = Meter::new(Rate { bytes_per_second: 1000, burst: 100 }, 0);
        assert!(meter.open(0));
        meter.charge(1100);
        assert!(!meter.open(999_999_999) && !meter.open(1_000_000_000));
        assert!(meter.open(1_000_000_001));
    }

    #[test]
    fn credit_of_a_long_pause_is_the_burst_and_no_more() {
        let mut meter = Meter::new(Rate { bytes_per_second: 1 << 40, burst: 5000 }, 0);
        assert!(meter.open(u64::MAX));
        assert_eq!(meter.credit(), 5000);
    }

    proptest! {
        #[test]
        fn no_more_passes_than_the_rate_the_burst_and_one_frame(
            rate in 1u64..1_000_000_000, burst in 1u64..1_000_000,
            steps in prop::collection::vec((0u64..10_000_000, 1usize..65_536), 1..200)
        ) {
            let mut meter = Meter::new(Rate { bytes_per_second: rate, burst }, 0);
            let (mut now, mut passed, mut longest) = (0u64, 0u128, 0u128);
            for (wait, bytes) in steps {
                now += wait;
                if meter.open(now) {
                    meter.charge(bytes);
                    passed += bytes as u128;
                    longest = longest.max(bytes as u128);
                }
                let allowed = u128::from(rate) * u128::from(now) / SECOND + u128::from(burst) + longest;
                prop_assert!(passed <= allowed, "{passed} > {allowed}");
            }
        }
    }
}
