//! What is told of SNAT: each block of ports leased and given back, so that an address and a port lead to a pod later.
//!
//! Workers write, control drains. Source: RFC 6888 REQ-13, RFC 7422 §1 (a line per block, not per flow). Bounded: what
//! finds no place is counted, never waited for.

use crossbeam::queue::ArrayQueue;
use sluice_tables::Address;
use std::sync::atomic::{AtomicU64, Ordering};

/// Lines that may wait for control.
const ROOM: usize = 8192;

/// What befell a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockEvent {
    /// Given to a source.
    Leased,
    /// The source's last flow on it has ended.
    Released,
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLine {
    /// Leased or released.
    pub event: BlockEvent,
    /// Whose flows: a pod, or a client in transit.
    pub source: Address,
    /// The address they bear outside.
    pub address: Address,
    /// First and last port.
    pub ports: (u16, u16),
    /// Nanoseconds of the workers' clock.
    pub at: u64,
}

/// Lines on their way to control.
#[derive(Debug)]
pub struct SnatLog {
    lines: ArrayQueue<BlockLine>,
    lost: AtomicU64,
}

impl Default for SnatLog {
    fn default() -> Self {
        SnatLog { lines: ArrayQueue::new(ROOM), lost: AtomicU64::new(0) }
    }
}

impl SnatLog {
    /// Notes a line.
    pub fn note(&self, line: BlockLine) {
        if self.lines.push(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes the oldest line; for control.
    pub fn take(&self) -> Option<BlockLine> {
        self.lines.pop()
    }

    /// Lines that found no place since this was last asked; for control.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_place_is_counted() {
        let log = SnatLog::default();
        let line = BlockLine {
            event: BlockEvent::Leased,
            source: Address::v4([10, 244, 1, 5]),
            address: Address::v4([192, 0, 2, 1]),
            ports: (40_000, 40_063),
            at: 7,
        };
        (0..ROOM + 3).for_each(|_| log.note(line));
        assert_eq!((log.take(), log.take_lost(), log.take_lost()), (Some(line), 3, 0));
    }
}
