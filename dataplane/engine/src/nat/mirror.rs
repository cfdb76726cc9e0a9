//! Mappings of egress addresses on their way to the node that would take the address over: each flow's beginning and end,
//! nothing in between.
//!
//! Workers write, the agent drains and sends. Bounded: what finds no place is counted and told again by the agent's refresh
//! or not at all; no packet waits for it. Off while nobody would take over.

use crossbeam::queue::ArrayQueue;
use sluice_tables::Address;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Lines that may wait.
const ROOM: usize = 16_384;

/// What a pod's flow through this gateway became: enough to make the flow again elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mapping {
    /// The egress address the flow leaves with.
    pub address: Address,
    /// Its port of that address; an echo's identifier.
    pub port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// The pod.
    pub source: Address,
    /// The pod's port.
    pub source_port: u16,
    /// Whom it talks to.
    pub destination: Address,
    /// That port.
    pub destination_port: u16,
}

/// Lines on their way to the agent.
#[derive(Debug)]
pub struct Mirror {
    wanted: AtomicBool,
    lines: ArrayQueue<(Mapping, bool)>,
    lost: AtomicU64,
}

impl Default for Mirror {
    fn default() -> Self {
        Mirror { wanted: AtomicBool::new(false), lines: ArrayQueue::new(ROOM), lost: AtomicU64::new(0) }
    }
}

impl Mirror {
    /// Whether anybody wants to know; for the agent.
    pub fn want(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Notes that a flow has begun (`lives`) or ended.
    pub fn note(&self, mapping: Mapping, lives: bool) {
        if self.wanted.load(Ordering::Relaxed) && self.lines.push((mapping, lives)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes the oldest line; for the agent.
    pub fn take(&self) -> Option<(Mapping, bool)> {
        self.lines.pop()
    }

    /// Lines that found no place since this was last asked; for the agent.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}
