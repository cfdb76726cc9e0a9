//! A queue that misbehaves by seed: it drops, corrupts, delays and refuses frames of any other queue.
//!
//! For tests of whatever stands on a [`Queue`]: the same seed and the same calls give the same faults. Owner: the worker
//! of the wrapped queue. Invariants: no frame is duplicated, reordered or leaked, a delayed frame delays those behind
//! it; with all percentages zero the wrapper is transparent. Cost: one virtual call more when transparent, a queue
//! operation and a random number per frame else.

use crate::frame::Frame;
use crate::pool::PoolCache;
use crate::port::{Burst, Capabilities, PortMode, PortStats, Queue};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

/// Frames that a direction holds back at most; when there are as many, nothing more is taken.
const HELD_MAX: usize = 512;
/// Longest delay, in calls of the delayed direction.
const DELAY_MAX: u64 = 8;

/// Which faults, how often (percent of frames, or of `tx` calls for `refuse_percent`; 100 and more is always).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Seed of the random numbers; any value.
    pub seed: u64,
    /// Frames that vanish: on receive counted as missed, on transmit as sent.
    pub drop_percent: u8,
    /// Frames of whose first chunk one bit is flipped.
    pub corrupt_percent: u8,
    /// Frames that wait 1 to 8 calls, and those behind them too.
    pub delay_percent: u8,
    /// Transmit calls that find the ring full.
    pub refuse_percent: u8,
}

impl Faults {
    fn none(&self) -> bool {
        Faults { seed: 0, ..*self } == Faults::default()
    }
}

/// Marsaglia's xorshift with a multiplied output (xorshift64*): small, seedable, good enough to choose faults.
#[derive(Clone, Debug)]
pub struct Xorshift(u64);

impl Xorshift {
    /// A generator whose sequence the seed determines.
    pub fn new(seed: u64) -> Self {
        // The state must not be zero; the odd constant spreads small seeds over all bits.
        Xorshift(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next_u64() >> 16) % n
    }

    /// True in `percent` of 100 calls.
    pub fn percent(&mut self, percent: u8) -> bool {
        self.below(100) < u64::from(percent)
    }
}

/// What is on its way in one direction, with the call at which it may go on.
#[derive(Default)]
struct Lane {
    held: VecDeque<(u64, Frame)>,
    calls: u64,
    dropped: u64,
    dropped_bytes: u64,
}

impl Lane {
    fn take(&mut self, mut frame: Frame, faults: &Faults, rng: &mut Xorshift, cache: &mut PoolCache) {
        if rng.percent(faults.drop_percent) {
            self.dropped += 1;
            self.dropped_bytes += frame.len() as u64;
            return cache.free(frame);
        }
        if rng.percent(faults.corrupt_percent) && frame.head_len() > 0 {
            let at = rng.below(frame.head_len() as u64) as usize;
            frame.head_mut()[at] ^= 1 << rng.below(8);
        }
        let wait = if rng.percent(faults.delay_percent) { 1 + rng.below(DELAY_MAX) } else { 0 };
        self.held.push_back((self.calls + wait, frame));
    }

    /// The first frame, if its time has come.
    fn next_due(&mut self) -> Option<Frame> {
        let due = self.held.front()?.0 <= self.calls;
        if due { self.held.pop_front().map(|(_, frame)| frame) } else { None }
    }

    fn bytes(&self) -> u64 {
        self.held.iter().map(|(_, frame)| frame.len() as u64).sum()
    }
}

/// A queue with faults; see the module.
pub struct Faulty {
    inner: Box<dyn Queue>,
    faults: Faults,
    rng: Xorshift,
    rx: Lane,
    tx: Lane,
    burst: Burst,
    /// Frames we left with the caller.
    refused: u64,
    /// Frames of ours that the inner queue left with us; the caller has not seen them refused.
    retried: u64,
    /// Frames the inner queue could not have sent.
    unsendable: u64,
}

impl Faulty {
    /// Wraps `inner`.
    pub fn new(inner: Box<dyn Queue>, faults: Faults) -> Self {
        Faulty {
            inner,
            faults,
            rng: Xorshift::new(faults.seed),
            rx: Lane::default(),
            tx: Lane::default(),
            burst: Burst::with_capacity(HELD_MAX),
            refused: 0,
            retried: 0,
            unsendable: 0,
        }
    }

    /// Sends what has waited long enough.
    fn pump(&mut self, cache: &mut PoolCache) {
        self.tx.calls += 1;
        while let Some(frame) = self.tx.next_due() {
            self.burst.push(frame);
        }
        if self.burst.is_empty() {
            return;
        }
        let before = self.inner.stats().tx_full;
        self.inner.tx(cache, &mut self.burst);
        self.retried += self.inner.stats().tx_full - before;
        for frame in self.burst.drain(..).rev() {
            self.tx.held.push_front((0, frame));
        }
    }
}

impl Queue for Faulty {
    fn rx(&mut self, cache: &mut PoolCache, out: &mut Burst, max: usize) -> usize {
        if self.faults.none() {
            return self.inner.rx(cache, out, max);
        }
        self.rx.calls += 1;
        let room = max.min(HELD_MAX - self.rx.held.len().min(HELD_MAX));
        self.inner.rx(cache, &mut self.burst, room);
        for frame in self.burst.drain(..) {
            self.rx.take(frame, &self.faults, &mut self.rng, cache);
        }
        let mut n = 0;
        while n < max
            && let Some(frame) = self.rx.next_due()
        {
            out.push(frame);
            n += 1;
        }
        n
    }

    fn tx(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize {
        if self.faults.none() {
            return self.inner.tx(cache, frames);
        }
        self.pump(cache);
        if self.rng.percent(self.faults.refuse_percent) {
            self.refused += frames.len() as u64;
            return 0;
        }
        let capabilities = self.inner.capabilities();
        let taken = frames.len().min(HELD_MAX - self.tx.held.len());
        for frame in frames.drain(..taken) {
            if capabilities.accepts(&frame) {
                self.tx.take(frame, &self.faults, &mut self.rng, cache);
            } else {
                self.unsendable += 1;
                cache.free(frame);
            }
        }
        self.refused += frames.len() as u64;
        self.pump(cache);
        taken
    }

    fn flush(&mut self, cache: &mut PoolCache) {
        if !self.faults.none() {
            self.pump(cache);
        }
        self.inner.flush(cache);
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn stats(&self) -> PortStats {
        let inner = self.inner.stats();
        PortStats {
            rx_packets: inner.rx_packets - self.rx.dropped - self.rx.held.len() as u64,
            rx_bytes: inner.rx_bytes - self.rx.dropped_bytes - self.rx.bytes(),
            rx_missed: inner.rx_missed + self.rx.dropped,
            tx_packets: inner.tx_packets + self.tx.dropped + self.tx.held.len() as u64,
            tx_bytes: inner.tx_bytes + self.tx.dropped_bytes + self.tx.bytes(),
            tx_full: inner.tx_full - self.retried + self.refused,
            tx_errors: inner.tx_errors + self.unsendable,
            ..inner
        }
    }

    fn mode(&self) -> PortMode {
        let mode = self.inner.mode();
        if self.faults.none() {
            return mode;
        }
        PortMode { reason: format!("{} with {:?}", mode.reason, self.faults).trim_start().to_owned(), ..mode }
    }

    /// None while there are faults: a delayed frame waits here, where no descriptor shows it.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        if self.faults.none() { self.inner.wait_fd() } else { None }
    }

    fn close(self: Box<Self>, cache: &mut PoolCache) {
        for (_, frame) in self.rx.held.into_iter().chain(self.tx.held) {
            cache.free(frame);
        }
        self.inner.close(cache);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Laws, Pair, Rig};
    use crate::mem::{self, MemConfig};
    use crate::pool::{FramePool, PoolOptions};
    use proptest::prelude::*;
    use std::sync::{Arc, LazyLock};
    use std::time::Duration;

    static POOL: LazyLock<Arc<FramePool>> =
        LazyLock::new(|| FramePool::new(PoolOptions { frames: 1024, huge_pages: false }).unwrap());

    struct FaultyRig(Faults);

    impl Rig for FaultyRig {
        fn laws(&self) -> Laws {
            if self.0.none() {
                return Laws { fills_after: Some(512), ..Laws::default() };
            }
            let lossless = self.0.drop_percent == 0 && self.0.corrupt_percent == 0;
            Laws {
                lossless,
                intact: self.0.corrupt_percent == 0,
                patience: Duration::from_millis(if lossless { 2000 } else { 20 }),
                ..Laws::default()
            }
        }

        fn open(&mut self, _pool: &Arc<FramePool>, _recorded: &[Vec<u8>]) -> Result<Pair, String> {
            let (queue, handle) = mem::queue(MemConfig::default());
            Ok(Pair { queue: Box::new(Faulty::new(Box::new(queue), self.0)), peer: Box::new(handle) })
        }
    }

    #[test]
    fn without_faults_it_conforms_like_the_queue_inside() {
        conformance::assert_conforms(&mut FaultyRig(Faults { seed: 7, ..Faults::default() }));
    }

    #[test]
    fn delays_and_refusals_lose_and_reorder_nothing() {
        let faults = Faults { seed: 1, delay_percent: 20, refuse_percent: 30, ..Faults::default() };
        conformance::assert_conforms(&mut FaultyRig(faults));
    }

    #[test]
    fn with_every_fault_frames_still_keep_their_order_and_none_leaks() {
        for seed in 0..3 {
            let faults = Faults { seed, drop_percent: 10, corrupt_percent: 10, delay_percent: 10, refuse_percent: 10 };
            conformance::assert_conforms(&mut FaultyRig(faults));
        }
    }

    /// Sends and injects 200 numbered frames; what arrived at either end, and the counters.
    fn run(faults: Faults) -> (Vec<Vec<u8>>, Vec<Vec<u8>>, PortStats) {
        let mut cache = POOL.cache();
        let (queue, mut handle) = mem::queue(MemConfig::default());
        let mut queue = Faulty::new(Box::new(queue), faults);
        let (mut received, mut collected) = (Vec::new(), Vec::new());
        let (mut out, mut burst) = (Burst::new(), Burst::new());
        for n in 0..220u8 {
            if n < 200 {
                handle.inject_bytes(&mut cache, &[n; 60]).unwrap();
                out.push(cache.alloc_copy(&[n; 60]).unwrap());
            }
            queue.tx(&mut cache, &mut out);
            queue.flush(&mut cache);
            queue.rx(&mut cache, &mut burst, 16);
            for frame in burst.drain(..) {
                received.push(frame.to_vec());
                cache.free(frame);
            }
            collected.extend(std::iter::from_fn(|| handle.collect_bytes(&mut cache)));
        }
        let stats = queue.stats();
        out.into_iter().for_each(|f| cache.free(f));
        Box::new(queue).close(&mut cache);
        handle.close(&mut cache);
        (received, collected, stats)
    }

    #[test]
    fn a_hundred_percent_is_always() {
        let all = Faults { seed: 3, ..Faults::default() };
        let (received, collected, stats) = run(Faults { drop_percent: 100, ..all });
        assert_eq!((received.len(), collected.len()), (0, 0));
        assert_eq!((stats.rx_packets, stats.rx_missed, stats.tx_packets), (0, 200, 200));
        let (received, collected, stats) = run(Faults { refuse_percent: 100, ..all });
        assert_eq!((received.len(), collected.len(), stats.tx_packets), (200, 0, 0));
        assert!(stats.tx_full > 200);
        let (received, _, _) = run(Faults { corrupt_percent: 100, ..all });
        let flipped = |n: usize| received[n].iter().map(|b| (b ^ n as u8).count_ones()).sum::<u32>();
        assert!(received.len() == 200 && (0..200).all(|n| flipped(n) == 1));
    }

    proptest! {
        #[test]
        fn the_same_seed_gives_the_same_faults(
            seed in any::<u64>(),
            drop_percent in 0u8..40,
            corrupt_percent in 0u8..40,
            delay_percent in 0u8..40,
            refuse_percent in 0u8..40,
        ) {
            let faults = Faults { seed, drop_percent, corrupt_percent, delay_percent, refuse_percent };
            let first = run(faults);
            prop_assert_eq!(&first, &run(faults));
            let (received, collected, stats) = first;
            prop_assert_eq!(received.len() as u64, stats.rx_packets);
            prop_assert!(collected.len() as u64 <= stats.tx_packets);
            if corrupt_percent == 0 {
                prop_assert!(received.is_sorted() && collected.is_sorted());
            }
        }
    }
}
