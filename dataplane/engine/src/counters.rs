//! What a worker counts. One writer (the worker), any reader; plain stores, no locked instruction.

use crate::reason::{Reason, Stage};
use std::sync::atomic::{AtomicU64, Ordering};

/// A monotonic counter or a gauge that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; only the owning worker may call it.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Replaces the value (gauges).
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the batch-size histogram's buckets.
pub const BATCH_BUCKETS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Counters of one worker. Law: `received + originated = sent + punted + dropped + handed_out - handed_in + held + consumed`.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames taken from ports.
    pub received: Counter,
    /// Frames made here: replies we answer with, fragments and segments beyond the first.
    pub originated: Counter,
    /// Frames queued to pod and uplink ports.
    pub sent: Counter,
    /// Frames queued to the host port.
    pub punted: Counter,
    /// Frames ended with a reason.
    pub dropped: Counter,
    /// Frames ended because a reply, fragments, segments or a coalesced frame took their place.
    pub consumed: Counter,
    /// Frames put into another worker's ring.
    pub handed_out: Counter,
    /// Frames taken from other workers' rings.
    pub handed_in: Counter,
    /// Frames waiting for fragments or a neighbour (gauge).
    pub held: Counter,
    /// Drops by `[reason][stage]`.
    pub drops: [[Counter; Stage::ALL.len()]; Reason::ALL.len()],
    /// Refusals answered, by reason (also in `drops`' labels, never in `dropped`).
    pub replies: Counter,
    /// Flows made.
    pub flows_created: Counter,
    /// Flows now in the table (gauge).
    pub flows: Counter,
    /// Policy verdicts `[allow, deny, audit-deny][ingress, egress]`.
    pub verdicts: [[Counter; 2]; 3],
    /// Answers of DNS: addresses learned, addresses without room, answers that nobody asked for.
    pub domains: [Counter; 3],
    /// Addresses of domain names that are known (gauge).
    pub domain_addresses: Counter,
    /// Service connections `[forwarded, refused, dropped]`.
    pub services: [Counter; 3],
    /// Batches by size, bounds [`BATCH_BUCKETS`].
    pub batches: [Counter; BATCH_BUCKETS.len()],
    /// Sum of batch sizes.
    pub batch_frames: Counter,
    /// Turns that found work and turns in all, for `worker_busy_ratio`.
    pub busy_turns: Counter,
    /// Turns.
    pub turns: Counter,
}

impl Counters {
    /// Counts a drop.
    #[inline]
    pub fn lost(&self, reason: Reason, stage: Stage) {
        self.drops[reason as usize][stage as usize].add(1);
        self.dropped.add(1);
    }

    /// Drops of one reason over all stages.
    pub fn drops_of(&self, reason: Reason) -> u64 {
        self.drops[reason as usize].iter().map(Counter::get).sum()
    }

    /// Counts a batch.
    #[inline]
    pub fn batch(&self, frames: usize) {
        let at = (usize::BITS - frames.max(1).saturating_sub(1).leading_zeros()) as usize;
        self.batches[at.min(BATCH_BUCKETS.len() - 1)].add(1);
        self.batch_frames.add(frames as u64);
    }
}
