//! SNAT ports: each address's range is cut into blocks of 64; a source leases blocks, a worker owns its leases.
//!
//! ```text
//! SnatSpace 192.0.2.10: 40000 ├─64─┼─64─┼─64─┼ … ┤ 57343     shared: owner worker of each block (0 = free)
//! Leases (one worker): source 10.244.1.5 → [block 17, block 90]   flows in each block
//! ```
//! Mapping is endpoint-dependent (RFC 4787 §4.1): one port serves many destinations, as long as the reply's key is unique.
//! The block a source gets depends on the source alone, so the outcome does not depend on the number of workers. A reply's
//! owner is read from the shared array by port. Claiming a block is one compare-and-swap on the slow path.

use hashbrown::HashMap;
use sluice_tables::Address;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

/// Ports in a block.
pub const BLOCK: u16 = 64;
/// Blocks one source may lease: 4,096 ports towards one destination.
const MAX_BLOCKS: usize = 64;

/// The port range of one address, shared by all workers.
#[derive(Debug)]
pub struct SnatSpace {
    /// The address.
    pub address: Address,
    first: u16,
    last: u16,
    /// Worker + 1 by block; 0: free.
    owners: Box<[AtomicU16]>,
}

impl SnatSpace {
    /// Ports `first..=last` of `address`.
    pub fn new(address: Address, first: u16, last: u16) -> Self {
        let ports = u32::from(last.saturating_sub(first)) + 1;
        let blocks = ports.div_ceil(u32::from(BLOCK));
        SnatSpace { address, first, last, owners: (0..blocks).map(|_| AtomicU16::new(0)).collect() }
    }

    /// Whether a port lies in the range.
    #[inline]
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// The worker that leased the block of a port.
    #[inline]
    pub fn owner(&self, port: u16) -> Option<u16> {
        let block = usize::from(port.checked_sub(self.first)? / BLOCK);
        self.owners.get(block)?.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Ports in leased blocks.
    pub fn leased_ports(&self) -> usize {
        self.owners.iter().filter(|o| o.load(Ordering::Relaxed) != 0).count() * usize::from(BLOCK)
    }

    fn claim(&self, block: usize, worker: u16) -> bool {
        let Some(owner) = self.owners.get(block) else { return false };
        owner.compare_exchange(0, worker + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn release(&self, block: usize) {
        if let Some(owner) = self.owners.get(block) {
            owner.store(0, Ordering::Relaxed);
        }
    }

    fn ports_of(&self, block: usize) -> std::ops::RangeInclusive<u16> {
        let from = u32::from(self.first) + block as u32 * u32::from(BLOCK);
        let to = (from + u32::from(BLOCK) - 1).min(u32::from(self.last));
        from as u16..=to as u16
    }
}

/// Every space of the node, made by control before the tables that need them are published; never removed, so an index
/// stays good.
#[derive(Debug, Default)]
pub struct SnatSpaces {
    list: Mutex<Vec<Arc<SnatSpace>>>,
}

impl SnatSpaces {
    /// Adds the space of an address unless it is there.
    pub fn ensure(&self, address: Address, ports: (u16, u16)) {
        let mut list = self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !list.iter().any(|s| s.address == address) {
            list.push(Arc::new(SnatSpace::new(address, ports.0, ports.1)));
        }
    }

    /// Copies what is new into a worker's list; `false` if control is just adding (try again next turn).
    pub fn catch_up(&self, mine: &mut Vec<Arc<SnatSpace>>) -> bool {
        let Ok(list) = self.list.try_lock() else { return false };
        mine.extend(list.iter().skip(mine.len()).cloned());
        true
    }

    /// All spaces, for metrics.
    pub fn all(&self) -> Vec<Arc<SnatSpace>> {
        self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

#[derive(Debug)]
struct Lease {
    block: usize,
    flows: u32,
}

/// One worker's leases.
#[derive(Debug, Default)]
pub struct Leases {
    by_source: HashMap<(u16, Address), Vec<Lease>>,
}

fn mix(mut h: u64) -> u64 {
    h ^= h >> 32;
    h = h.wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^= h >> 32;
    h = h.wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^ (h >> 32)
}

fn hash_address(address: Address) -> u64 {
    let bits = address.bits();
    mix((bits >> 64) as u64 ^ mix(bits as u64))
}

impl Leases {
    /// A port of `space` (number `index`) for a flow of `source`, such that `is_free(port)`; the flow is counted on its
    /// block. `flow_hash` spreads the ports within a block.
    pub fn take(
        &mut self,
        space: &SnatSpace,
        index: u16,
        source: Address,
        worker: u16,
        flow_hash: u64,
        is_free: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let leases = self.by_source.entry((index, source)).or_default();
        for lease in leases.iter_mut() {
            if let Some(port) = free_port(space, lease.block, flow_hash, &is_free) {
                lease.flows += 1;
                return Some(port);
            }
        }
        let blocks = space.owners.len();
        let start = (hash_address(source) % blocks.max(1) as u64) as usize;
        if leases.len() < MAX_BLOCKS {
            for step in 0..blocks {
                let block = (start + step) % blocks;
                if !space.claim(block, worker) {
                    continue;
                }
                match free_port(space, block, flow_hash, &is_free) {
                    Some(port) => {
                        leases.push(Lease { block, flows: 1 });
                        return Some(port);
                    }
                    None => space.release(block),
                }
            }
        }
        if leases.is_empty() {
            self.by_source.remove(&(index, source));
        }
        None
    }

    /// Counts a flow of an earlier process on the block of its port; `false`: the port is out of range, or another worker
    /// has the block.
    pub fn resume(&mut self, space: &SnatSpace, index: u16, source: Address, worker: u16, port: u16) -> bool {
        if !space.contains(port) {
            return false;
        }
        let block = usize::from((port - space.first) / BLOCK);
        if space.owner(port) != Some(worker) && !space.claim(block, worker) {
            return false;
        }
        let leases = self.by_source.entry((index, source)).or_default();
        match leases.iter_mut().find(|lease| lease.block == block) {
            Some(lease) => lease.flows += 1,
            None => leases.push(Lease { block, flows: 1 }),
        }
        true
    }

    /// A flow with `port` has ended; its block is free again when no flow is left on it.
    pub fn give_back(&mut self, space: &SnatSpace, index: u16, source: Address, port: u16) {
        let Some(leases) = self.by_source.get_mut(&(index, source)) else { return };
        let block = usize::from(port.saturating_sub(space.first) / BLOCK);
        let Some(at) = leases.iter().position(|l| l.block == block) else { return };
        leases[at].flows = leases[at].flows.saturating_sub(1);
        if leases[at].flows == 0 {
            leases.swap_remove(at);
            space.release(block);
        }
        if leases.is_empty() {
            self.by_source.remove(&(index, source));
        }
    }
}

fn free_port(space: &SnatSpace, block: usize, flow_hash: u64, is_free: &impl Fn(u16) -> bool) -> Option<u16> {
    let range = space.ports_of(block);
    let n = u32::from(*range.end() - *range.start()) + 1;
    let start = (mix(flow_hash) % u64::from(n)) as u32;
    (0..n).map(|i| *range.start() + ((start + i) % n) as u16).find(|port| is_free(*port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn address(n: u8) -> Address {
        Address::v4([10, 244, 1, n])
    }

    #[test]
    fn a_source_keeps_to_its_blocks_and_every_port_is_in_the_range() {
        let space = SnatSpace::new(Address::v4([192, 0, 2, 1]), 40_000, 57_343);
        let mut leases = Leases::default();
        let mut used = HashSet::new();
        for flow in 0..200 {
            let port = leases.take(&space, 0, address(5), 3, flow, |p| !used.contains(&p)).unwrap();
            assert!(space.contains(port) && used.insert(port));
            assert_eq!(space.owner(port), Some(3));
        }
        assert_eq!(space.leased_ports(), 256);
        for port in used {
            leases.give_back(&space, 0, address(5), port);
        }
        assert_eq!(space.leased_ports(), 0);
    }

    #[test]
    fn one_port_serves_many_destinations() {
        let space = SnatSpace::new(Address::v4([192, 0, 2, 1]), 40_000, 40_063);
        let mut leases = Leases::default();
        for flow in 0..10_000 {
            assert!(leases.take(&space, 0, address(5), 0, flow, |_| true).is_some());
        }
    }

    #[test]
    fn what_is_resumed_is_in_use_again_and_comes_back_when_its_flows_end() {
        let space = SnatSpace::new(Address::v4([192, 0, 2, 1]), 40_000, 40_255);
        let mut leases = Leases::default();
        assert!(leases.resume(&space, 0, address(5), 1, 40_070) && leases.resume(&space, 0, address(5), 1, 40_071));
        assert!(!leases.resume(&space, 0, address(5), 1, 39_999) && !leases.resume(&space, 0, address(5), 1, 40_256));
        assert!(!Leases::default().resume(&space, 0, address(6), 2, 40_072), "the block is another worker's");
        assert_eq!((space.owner(40_064), space.leased_ports()), (Some(1), 64));
        leases.give_back(&space, 0, address(5), 40_070);
        assert_eq!(space.leased_ports(), 64);
        leases.give_back(&space, 0, address(5), 40_071);
        assert_eq!(space.leased_ports(), 0);
    }

    #[test]
    fn an_exhausted_range_gives_nothing_and_stays_consistent() {
        let space = SnatSpace::new(Address::v4([192, 0, 2, 1]), 40_000, 40_099);
        let mut leases = Leases::default();
        let mut used = HashSet::new();
        for flow in 0..100 {
            let port = leases.take(&space, 0, address(1), 0, flow, |p| !used.contains(&p)).unwrap();
            used.insert(port);
        }
        assert_eq!(leases.take(&space, 0, address(1), 0, 7, |p| !used.contains(&p)), None);
        assert_eq!(leases.take(&space, 0, address(2), 0, 7, |_| true), None);
    }

    #[test]
    fn the_first_block_depends_on_the_source_alone() {
        let run = |worker| {
            let space = SnatSpace::new(Address::v4([192, 0, 2, 1]), 1024, 65_535);
            Leases::default().take(&space, 0, address(9), worker, 42, |_| true)
        };
        assert_eq!(run(0), run(5));
    }
}
