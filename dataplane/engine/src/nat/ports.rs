//! SNAT ports: each address's range is cut into blocks of 64; a source leases blocks, a worker owns its leases.
//!
//! ```text
//! SnatSpace 192.0.2.10: 40000 ├─64─┼─64─┼─64─┼ … ┤ 57343     shared: owner worker of each block (0 = free)
//! Leases (one worker): source 10.244.1.5 → [block 17, block 90]   flows in each block
//! ```
//! Mapping is endpoint-dependent (RFC 4787 §4.1): one port serves many destinations, as long as the reply's key is unique.
//! Which block a source gets, and which port of it a flow, are drawn from a [`Secret`] of the process (RFC 6056 §3.3.3), so
//! that nobody outside guesses them; they depend on nothing else, so the outcome does not depend on the number of workers as
//! long as one worker has all of a source's flows. A reply's owner is read from the shared array by port. Claiming a block
//! is one compare-and-swap on the slow path; each lease and each return is a line of the [`SnatLog`].

use super::log::{BlockEvent, BlockLine, SnatLog};
use super::secret::Secret;
use hashbrown::HashMap;
use sluice_tables::Address;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

/// Ports in a block.
pub const BLOCK: u16 = 64;

/// The port range of one address, shared by all workers.
#[derive(Debug)]
pub struct SnatSpace {
    /// The address.
    pub address: Address,
    first: u16,
    last: u16,
    /// Worker + 1 by block; 0: free.
    owners: Box<[AtomicU16]>,
    log: Arc<SnatLog>,
}

impl SnatSpace {
    /// Ports `first..=last` of `address`.
    pub fn new(address: Address, first: u16, last: u16) -> Self {
        Self::logged(address, first, last, Arc::default())
    }

    fn logged(address: Address, first: u16, last: u16, log: Arc<SnatLog>) -> Self {
        let ports = u32::from(last.saturating_sub(first)) + 1;
        let blocks = ports.div_ceil(u32::from(BLOCK));
        SnatSpace { address, first, last, owners: (0..blocks).map(|_| AtomicU16::new(0)).collect(), log }
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
        let leased = |(_, owner): &(usize, &AtomicU16)| owner.load(Ordering::Relaxed) != 0;
        self.owners.iter().enumerate().filter(leased).map(|(block, _)| self.ports_of(block).count()).sum()
    }

    /// Ports in the range.
    pub fn ports(&self) -> usize {
        usize::from(self.last.saturating_sub(self.first)) + 1
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

    fn tell(&self, event: BlockEvent, block: usize, source: Address, at: u64) {
        let range = self.ports_of(block);
        let ports = (*range.start(), *range.end());
        self.log.note(BlockLine { event, source, address: self.address, ports, at });
    }

    fn ports_of(&self, block: usize) -> std::ops::RangeInclusive<u16> {
        let from = u32::from(self.first) + block as u32 * u32::from(BLOCK);
        let to = (from + u32::from(BLOCK) - 1).min(u32::from(self.last));
        from as u16..=to as u16
    }

    fn block_of(&self, port: u16) -> usize {
        usize::from(port.saturating_sub(self.first) / BLOCK)
    }
}

/// Every space of the node, made by control before the tables that need them are published; never removed, so an index
/// stays good.
#[derive(Debug, Default)]
pub struct SnatSpaces {
    list: Mutex<Vec<Arc<SnatSpace>>>,
    /// Blocks leased and given back.
    pub log: Arc<SnatLog>,
}

impl SnatSpaces {
    /// Adds the space of an address unless it is there.
    pub fn ensure(&self, address: Address, ports: (u16, u16)) {
        let mut list = self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !list.iter().any(|s| s.address == address) {
            list.push(Arc::new(SnatSpace::logged(address, ports.0, ports.1, self.log.clone())));
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
    secret: Secret,
}

/// What a flow asks of a space.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Number of the space.
    pub space: u16,
    /// Who sends.
    pub source: Address,
    /// The worker that asks.
    pub worker: u16,
    /// Spreads the ports within a block.
    pub flow_hash: u64,
    /// Most blocks of the space that the source may have.
    pub quota: u16,
    /// Nanoseconds of the worker's clock.
    pub at: u64,
}

impl Wish {
    fn draw(&self, secret: &Secret, salt: u64) -> u64 {
        let bits = self.source.bits();
        secret.hash(&[(bits >> 64) as u64, bits as u64, u64::from(self.space), salt])
    }
}

impl Leases {
    /// None yet; ports are drawn from this secret.
    pub fn new(secret: Secret) -> Self {
        Leases { by_source: HashMap::new(), secret }
    }

    /// A port of `space` for a flow, such that `is_free(port)`; the flow is counted on its block.
    pub fn take(&mut self, space: &SnatSpace, wish: &Wish, is_free: impl Fn(u16) -> bool) -> Option<u16> {
        let first = wish.draw(&self.secret, wish.flow_hash);
        let leases = self.by_source.entry((wish.space, wish.source)).or_default();
        for lease in leases.iter_mut() {
            if let Some(port) = free_port(space, lease.block, first, &is_free) {
                lease.flows += 1;
                return Some(port);
            }
        }
        let blocks = if leases.len() < usize::from(wish.quota) { space.owners.len() } else { 0 };
        let start = (wish.draw(&self.secret, !(leases.len() as u64)) % blocks.max(1) as u64) as usize;
        for step in 0..blocks {
            let block = (start + step) % blocks;
            if !space.claim(block, wish.worker) {
                continue;
            }
            match free_port(space, block, first, &is_free) {
                Some(port) => {
                    space.tell(BlockEvent::Leased, block, wish.source, wish.at);
                    leases.push(Lease { block, flows: 1 });
                    return Some(port);
                }
                None => space.release(block),
            }
        }
        if leases.is_empty() {
            self.by_source.remove(&(wish.space, wish.source));
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

    /// Counts a flow that has this port already, made on another node; its block becomes the source's. `false`: the block is
    /// somebody else's, or the source has all it may have.
    pub fn take_over(&mut self, space: &SnatSpace, wish: &Wish, port: u16) -> bool {
        if !space.contains(port) {
            return false;
        }
        let block = space.block_of(port);
        let leases = self.by_source.entry((wish.space, wish.source)).or_default();
        if let Some(lease) = leases.iter_mut().find(|l| l.block == block) {
            lease.flows += 1;
            return true;
        }
        let free = leases.len() < usize::from(wish.quota) && space.claim(block, wish.worker);
        if free {
            space.tell(BlockEvent::Leased, block, wish.source, wish.at);
            leases.push(Lease { block, flows: 1 });
        } else if leases.is_empty() {
            self.by_source.remove(&(wish.space, wish.source));
        }
        free
    }

    /// A flow with `port` has ended; its block is free again when no flow is left on it.
    pub fn give_back(&mut self, space: &SnatSpace, index: u16, source: Address, port: u16, at: u64) {
        let Some(leases) = self.by_source.get_mut(&(index, source)) else { return };
        let block = space.block_of(port);
        let Some(lease) = leases.iter().position(|l| l.block == block) else { return };
        leases[lease].flows = leases[lease].flows.saturating_sub(1);
        if leases[lease].flows == 0 {
            leases.remove(lease);
            space.release(block);
            space.tell(BlockEvent::Released, block, source, at);
        }
        if leases.is_empty() {
            self.by_source.remove(&(index, source));
        }
    }
}

/// The worker that has all of a source's flows through this node: one block and one quota for the source, on whichever
/// queue its packets come in.
#[inline]
pub fn owner_of(source: Address, workers: u16) -> u16 {
    let bits = source.bits();
    let folded = (bits >> 64) as u64 ^ bits as u64;
    let spread = (folded ^ (folded >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (spread % u64::from(workers.max(1))) as u16
}

fn free_port(space: &SnatSpace, block: usize, first: u64, is_free: &impl Fn(u16) -> bool) -> Option<u16> {
    let range = space.ports_of(block);
    let n = u32::from(*range.end() - *range.start()) + 1;
    let start = (first % u64::from(n)) as u32;
    (0..n).map(|i| *range.start() + ((start + i) % n) as u16).find(|port| is_free(*port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn address(n: u8) -> Address {
        Address::v4([10, 244, 1, n])
    }

    fn wish(source: Address, worker: u16, flow_hash: u64) -> Wish {
        Wish { space: 0, source, worker, flow_hash, quota: 64, at: 0 }
    }

    fn lines(space: &SnatSpace) -> Vec<(BlockEvent, (u16, u16))> {
        std::iter::from_fn(|| space.log.take()).map(|line| (line.event, line.ports)).collect()
    }

    #[test]
    fn a_source_keeps_to_its_blocks_and_every_port_is_in_the_range() {
        let space = SnatSpace::new(Address::v4([192, 0, 2, 1]), 40_000, 57_343);
        let mut leases = Leases::default();
        let mut used = HashSet::new();
        for flow in 0..200 {
            let port = leases.take(&space, &wish(address(5), 3, flow), |p| !used.contains(&p)).unwrap();
            assert!(space.contains(port) && used.insert(port));
            assert_eq!(space.owner(port), Some(3));
        }
        assert_eq!(space.leased_ports(), 256);
        for port in used {
            leases.give_back(&space, 0, address(5), port, 0);
        }
        assert_eq!(space.leased_ports(), 0);
    }

    #[test]
    fn there_is_one_line_for_a_block_and_none_for_a_flow() {
        let space = SnatSpace::new(Address::v4([192, 0, 2, 1]), 40_000, 57_343);
        let mut leases = Leases::default();
        let ports: Vec<u16> =
            (0..50).map(|flow| leases.take(&space, &wish(address(5), 0, flow), |_| true).unwrap()).collect();
        let leased = lines(&space);
        assert_eq!(leased.len(), 1, "{leased:?}");
        let (event, (first, last)) = leased[0];
        assert!(event == BlockEvent::Leased && last - first == 63);
        assert!(ports.iter().all(|port| (first..=last).contains(port)));
        ports.iter().for_each(|port| leases.give_back(&space, 0, address(5), *port, 0));
        assert_eq!(lines(&space), [(BlockEvent::Released, (first, last))]);
    }

    #[test]
    fn one_port_serves_many_destinations() {
        let space = SnatSpace::new(Address::v4([192, 0, 2, 1]), 40_000, 40_063);
        let mut leases = Leases::default();
        for flow in 0..10_000 {
            assert!(leases.take(&space, &wish(address(5), 0, flow), |_| true).is_some());
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
        leases.give_back(&space, 0, address(5), 40_070, 0);
        assert_eq!(space.leased_ports(), 64);
        leases.give_back(&space, 0, address(5), 40_071, 0);
        assert_eq!(space.leased_ports(), 0);
    }

    #[test]
    fn an_exhausted_range_gives_nothing_and_stays_consistent() {
        let space = SnatSpace::new(Address::v4([192, 0, 2, 1]), 40_000, 40_099);
        let mut leases = Leases::default();
        let mut used = HashSet::new();
        for flow in 0..100 {
            let port = leases.take(&space, &wish(address(1), 0, flow), |p| !used.contains(&p)).unwrap();
            used.insert(port);
        }
        assert_eq!((space.leased_ports(), space.ports()), (100, 100), "the last block is a short one");
        assert_eq!(leases.take(&space, &wish(address(1), 0, 7), |p| !used.contains(&p)), None);
        assert_eq!(leases.take(&space, &wish(address(2), 0, 7), |_| true), None);
    }

    #[test]
    fn a_source_gets_no_more_than_its_quota_and_others_still_get_theirs() {
        let space = SnatSpace::new(Address::v4([192, 0, 2, 1]), 40_000, 57_343);
        let mut leases = Leases::default();
        let mut used = HashSet::new();
        for flow in 0..128 {
            let two = Wish { quota: 2, ..wish(address(1), 0, flow) };
            assert!(used.insert(leases.take(&space, &two, |p| !used.contains(&p)).unwrap()));
        }
        assert_eq!(leases.take(&space, &Wish { quota: 2, ..wish(address(1), 0, 9) }, |p| !used.contains(&p)), None);
        assert!(leases.take(&space, &wish(address(2), 0, 9), |_| true).is_some());
    }

    #[test]
    fn the_choice_depends_on_source_and_secret_and_not_on_the_worker() {
        let run = |worker, seed| {
            let space = SnatSpace::new(Address::v4([192, 0, 2, 1]), 1024, 65_535);
            Leases::new(Secret::new(seed)).take(&space, &wish(address(9), worker, 42), |_| true)
        };
        assert_eq!(run(0, 1), run(5, 1));
        let guesses: HashSet<_> = (0..64).map(|seed| run(0, seed)).collect();
        assert!(guesses.len() > 60, "another process, another port: {}", guesses.len());
    }

    #[test]
    fn a_mapping_of_another_node_keeps_its_port_and_its_block_is_its_sources() {
        let space = SnatSpace::new(Address::v4([192, 0, 2, 50]), 1024, 65_535);
        let mut leases = Leases::default();
        assert!(leases.take_over(&space, &wish(address(1), 2, 0), 5000));
        assert!(leases.take_over(&space, &wish(address(1), 2, 0), 5001), "the same block");
        assert!(!leases.take_over(&space, &wish(address(2), 2, 0), 5002), "not another source's");
        assert!(!leases.take_over(&space, &wish(address(1), 2, 0), 80), "not a port of the range");
        assert_eq!((space.owner(5000), space.leased_ports()), (Some(2), 64));
        [5000, 5001].iter().for_each(|port| leases.give_back(&space, 0, address(1), *port, 0));
        assert_eq!(space.leased_ports(), 0);
    }

    proptest! {
        /// Against the obvious bookkeeping: a set of (port, destination) in use.
        #[test]
        fn no_two_flows_share_a_mapping_and_nothing_leaks(
            steps in prop::collection::vec((0..4u8, 0..6u8, any::<bool>(), any::<u64>()), 1..400),
        ) {
            let space = SnatSpace::new(Address::v4([192, 0, 2, 1]), 40_000, 40_255);
            let mut leases = Leases::new(Secret::new(7));
            let mut live: Vec<(u8, u8, u16)> = Vec::new();
            for (source, destination, begins, hash) in steps {
                if begins {
                    let taken = |port| live.iter().any(|(_, d, p)| *d == destination && *p == port);
                    let given = leases.take(&space, &wish(address(source), 0, hash), |p| !taken(p));
                    if let Some(port) = given {
                        prop_assert!(!taken(port) && space.contains(port));
                        let foreign = live.iter().any(|(s, _, p)| {
                            *s != source && space.block_of(*p) == space.block_of(port)
                        });
                        prop_assert!(!foreign, "a block has one source");
                        live.push((source, destination, port));
                    }
                } else if let Some(at) = live.iter().position(|(s, ..)| *s == source) {
                    let (s, _, port) = live.swap_remove(at);
                    leases.give_back(&space, 0, address(s), port, 0);
                }
                let blocks: HashSet<_> = live.iter().map(|(.., p)| space.block_of(*p)).collect();
                prop_assert_eq!(space.leased_ports(), blocks.len() * 64);
            }
        }
    }
}
