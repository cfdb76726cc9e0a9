//! The flow table of one worker and family: tag buckets that point at hot entries.
//!
//! ```text
//! hash ─▶ bucket (one line): 8 × 16-bit tag │ 8 × 32-bit index ─▶ entry (one line; IPv6 two)
//!              └ full? the second bucket (other hash bits); full too? one resident moves to its own second bucket
//! ```
//! A lookup touches two lines that a batch prefetches ahead of use; measured, linear probing over entries costs twice as
//! much at a million flows. Owner: one worker; no locks. Both directions of a connection are entries 2n and 2n+1.
//!
//! The entries may lie in a file that outlives the process (`flow/layout.rs`); buckets never do, they are built anew from
//! the entries (`flow/recover.rs`). So a pair is alive if, and only if, its first entry has a state, and that byte is
//! written last when a pair is made and first when it ends: a process may be killed between any two instructions.

use super::entry::Entry;
use super::state::State;
use sluice_port::lanes::equal_lanes;
use sluice_port::prefetch::prefetch;
use sluice_port::{Mapped, PoolError};
use sluice_tables::Timeouts;
use std::sync::atomic::{Ordering, compiler_fence};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const WAYS: usize = 8;
/// Slots are filled to this share at most, in percent, when the table holds its capacity.
const LOAD_PERCENT: usize = 72;
/// End of the list of free pairs.
const END: u32 = 0;

#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u16; WAYS],
    slots: [u32; WAYS],
    spare: [u64; 2],
}
const _: () = assert!(size_of::<Bucket>() == 64);

/// Index of an entry: 2n or 2n+1 of pair n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub u32);

impl Slot {
    /// No entry: an index that no table has.
    pub const NONE: Slot = Slot(u32::MAX);

    /// The other direction.
    #[inline(always)]
    pub fn sibling(self) -> Slot {
        Slot(self.0 ^ 1)
    }

    /// The first packet's direction.
    #[inline(always)]
    pub fn original(self) -> Slot {
        Slot(self.0 & !1)
    }
}

/// The table has no room for another pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Pairs that memory is asked for at once.
const STEP: usize = 8192;
/// Pairs that [`FlowTable::grow_ahead`] keeps ready.
const AHEAD: usize = 2048;

/// Flows of one family.
pub struct FlowTable<E> {
    buckets: Mapped<Bucket>,
    pub(super) entries: Mapped<E>,
    pub(super) pairs: usize,
    seed: u64,
    /// First free pair + 1, linked through `common.rule`.
    pub(super) free: u32,
    /// Pairs never used start here.
    pub(super) fresh: u32,
    pub(super) live: u32,
    sweep_at: u32,
    evict_at: u32,
}

#[inline(always)]
fn tag_of(hash: u64) -> u16 {
    ((hash >> 48) as u16).max(1)
}

impl<E: Entry> FlowTable<E> {
    /// Room for `pairs` connections.
    pub fn new(pairs: usize, seed: u64, huge: bool) -> Result<Self, PoolError> {
        let pairs = pairs.clamp(1, (u32::MAX / 2 - 1) as usize);
        Self::over(Mapped::zeroed(pairs * 2, huge)?, pairs, seed, huge)
    }

    /// Room for `pairs` connections in these entries. What stands in them is not looked at until
    /// [`recover`](Self::recover) is called, which must be before the first use if they are not all zero.
    pub fn over(entries: Mapped<E>, pairs: usize, seed: u64, huge: bool) -> Result<Self, PoolError> {
        let pairs = pairs.min(entries.room() / 2);
        let buckets = (pairs * 2 * 100).div_ceil(WAYS * LOAD_PERCENT).max(2);
        Ok(FlowTable {
            buckets: Mapped::zeroed(buckets, huge)?,
            entries,
            pairs,
            seed,
            free: END,
            fresh: 0,
            live: 0,
            sweep_at: 0,
            evict_at: 0,
        })
    }

    /// Connections it holds.
    pub fn len(&self) -> usize {
        self.live as usize
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Pairs of entries ever used: what a sweep goes over.
    pub fn used(&self) -> u32 {
        self.fresh
    }

    /// Connections it can hold.
    pub fn capacity(&self) -> usize {
        self.pairs
    }

    /// Takes memory for flows to come, unless there is enough: between batches, so that a first packet need not.
    #[inline]
    pub fn grow_ahead(&mut self) {
        if self.entries.len() / 2 < self.pairs.min(self.fresh as usize + AHEAD) {
            self.grow();
        }
    }

    /// Takes memory for at least one more pair; `false` if there is none.
    #[cold]
    fn grow(&mut self) -> bool {
        let held = self.entries.len() / 2;
        self.entries.reserve(self.pairs.min(held + STEP) * 2) || self.entries.reserve(self.pairs.min(held + 1) * 2)
    }

    /// Bytes of both arrays, and whether they lie on 2 MB pages.
    pub fn memory(&self) -> (usize, bool) {
        (size_of_val(&*self.buckets) + size_of_val(&*self.entries), self.entries.huge_pages())
    }

    /// Touches every page now.
    pub fn prefault(&mut self) {
        self.buckets.prefault();
        self.entries.prefault();
    }

    /// Hash of a key under this table's seed.
    #[inline(always)]
    pub fn hash(&self, key: &E::Key) -> u64 {
        E::hash(key, self.seed)
    }

    #[inline(always)]
    fn first(&self, hash: u64) -> usize {
        ((u64::from(hash as u32) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn second(&self, hash: u64) -> usize {
        let other = (hash >> 16) as u32 ^ 0x5bd1_e995_u32.wrapping_mul(u32::from(tag_of(hash)));
        ((u64::from(other) * self.buckets.len() as u64) >> 32) as usize
    }

    /// Stage one: asks for the bucket's line.
    #[inline(always)]
    pub fn prefetch_bucket(&self, hash: u64) {
        prefetch(&raw const self.buckets[self.first(hash)]);
    }

    /// Stage two: the first entry whose tag matches; its line is asked for. Not yet proven equal. [`Slot::NONE`]: none in the
    /// first bucket, and the second's line is asked for.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> Slot {
        match Self::matching(&self.buckets[self.first(hash)], tag_of(hash)) {
            0 => {
                prefetch(&raw const self.buckets[self.second(hash)]);
                Slot::NONE
            }
            mask => self.ask(self.first(hash), mask),
        }
    }

    /// Stage two for those that the first bucket did not have.
    #[inline(always)]
    pub fn second_candidate(&self, hash: u64) -> Slot {
        match Self::matching(&self.buckets[self.second(hash)], tag_of(hash)) {
            0 => Slot::NONE,
            mask => self.ask(self.second(hash), mask),
        }
    }

    #[inline(always)]
    fn ask(&self, bucket: usize, mask: u32) -> Slot {
        let slot = self.buckets[bucket].slots[mask.trailing_zeros() as usize & (WAYS - 1)];
        if let Some(entry) = self.entries.get(slot as usize) {
            prefetch(entry);
            if size_of::<E>() > 64 {
                prefetch((entry as *const E).cast::<u8>().wrapping_add(64));
            }
        }
        Slot(slot)
    }

    /// One bit for each way whose tag matches.
    #[inline(always)]
    fn matching(bucket: &Bucket, tag: u16) -> u32 {
        equal_lanes(&bucket.tags, tag)
    }

    /// The entry with this key.
    pub fn find(&self, key: &E::Key) -> Option<Slot> {
        self.find_hashed(key, self.hash(key))
    }

    /// The entry with this key and hash.
    #[inline]
    pub fn find_hashed(&self, key: &E::Key, hash: u64) -> Option<Slot> {
        let tag = tag_of(hash);
        for at in [self.first(hash), self.second(hash)] {
            let bucket = &self.buckets[at];
            let mut mask = Self::matching(bucket, tag);
            while mask != 0 {
                let slot = bucket.slots[mask.trailing_zeros() as usize];
                if self.entries[slot as usize].key() == key && self.entries[slot as usize].common().state != 0 {
                    return Some(Slot(slot));
                }
                mask &= mask - 1;
            }
        }
        None
    }

    /// An entry by index.
    #[inline(always)]
    pub fn get(&self, slot: Slot) -> Option<&E> {
        self.entries.get(slot.0 as usize)
    }

    /// An entry by index, writable.
    #[inline(always)]
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut E> {
        self.entries.get_mut(slot.0 as usize)
    }

    /// Adds a connection. `reply` may be absent for flows that are only seen one way. The caller has made sure that neither
    /// key is present.
    pub fn insert(&mut self, original: E, reply: Option<E>) -> Result<Slot, Full> {
        let pair = if self.free != END {
            let pair = self.free - 1;
            self.free = self.entries[pair as usize * 2].common().rule;
            pair
        } else if (self.fresh as usize) < self.pairs && ((self.fresh as usize) < self.entries.len() / 2 || self.grow())
        {
            self.fresh += 1;
            self.fresh - 1
        } else {
            return Err(Full);
        };
        let slot = Slot(pair * 2);
        let state = original.common().state;
        self.entries[slot.sibling().0 as usize] = reply.unwrap_or_default();
        let first = &mut self.entries[slot.0 as usize];
        *first = original;
        first.common_mut().state = 0;
        compiler_fence(Ordering::SeqCst);
        self.entries[slot.0 as usize].common_mut().state = state;
        let placed = self.place(slot) && (reply.is_none() || self.place(slot.sibling()));
        if !placed {
            self.unplace(slot);
            self.release(pair);
            return Err(Full);
        }
        self.live += 1;
        Ok(slot)
    }

    /// Removes both directions.
    pub fn remove(&mut self, slot: Slot) {
        let slot = slot.original();
        self.unplace(slot);
        if self.entries[slot.sibling().0 as usize].common().state != 0 {
            self.unplace(slot.sibling());
        }
        self.release(slot.0 / 2);
        self.live -= 1;
    }

    pub(super) fn release(&mut self, pair: u32) {
        self.entries[pair as usize * 2].common_mut().state = 0;
        compiler_fence(Ordering::SeqCst);
        self.entries[pair as usize * 2 + 1] = E::default();
        let mut empty = E::default();
        empty.common_mut().rule = self.free;
        self.entries[pair as usize * 2] = empty;
        self.free = pair + 1;
    }

    pub(super) fn place(&mut self, slot: Slot) -> bool {
        let hash = self.hash(self.entries[slot.0 as usize].key());
        let (first, second) = (self.first(hash), self.second(hash));
        if self.put(first, hash, slot.0) || self.put(second, hash, slot.0) {
            return true;
        }
        // Both full: one resident moves to its other bucket.
        for at in [first, second] {
            for way in 0..WAYS {
                let resident = self.buckets[at].slots[way];
                let its = self.hash(self.entries[resident as usize].key());
                let other = if self.first(its) == at { self.second(its) } else { self.first(its) };
                if other != at && self.put(other, its, resident) {
                    self.buckets[at].tags[way] = tag_of(hash);
                    self.buckets[at].slots[way] = slot.0;
                    return true;
                }
            }
        }
        false
    }

    fn put(&mut self, bucket: usize, hash: u64, slot: u32) -> bool {
        let bucket = &mut self.buckets[bucket];
        let Some(way) = bucket.tags.iter().position(|t| *t == 0) else { return false };
        bucket.tags[way] = tag_of(hash);
        bucket.slots[way] = slot;
        true
    }

    pub(super) fn unplace(&mut self, slot: Slot) {
        let hash = self.hash(self.entries[slot.0 as usize].key());
        for at in [self.first(hash), self.second(hash)] {
            let bucket = &mut self.buckets[at];
            for way in 0..WAYS {
                if bucket.tags[way] != 0 && bucket.slots[way] == slot.0 {
                    bucket.tags[way] = 0;
                    bucket.slots[way] = 0;
                    return;
                }
            }
        }
    }

    /// Whether a connection has been idle longer than its state allows.
    pub fn is_expired(&self, slot: Slot, tick: u32, ticks_per_second: u32, timeouts: &Timeouts) -> bool {
        let slot = slot.original();
        let (Some(a), Some(b)) = (self.get(slot), self.get(slot.sibling())) else { return false };
        let state = State::from_byte(a.common().state);
        let (tuple, ..) = a.parts();
        let allowed = u64::from(state.timeout(tuple.protocol, timeouts)) * u64::from(ticks_per_second);
        let mut idle = tick.wrapping_sub(a.common().last_seen);
        if b.common().state != 0 {
            idle = idle.min(tick.wrapping_sub(b.common().last_seen));
        }
        // A packet stamped by a later tick than ours cannot be old.
        idle < u32::MAX / 2 && u64::from(idle) > allowed
    }

    /// Looks at the next `pairs` connections and hands those for which `dead` holds to `gone` before removing them.
    pub fn sweep(&mut self, pairs: u32, mut dead: impl FnMut(&Self, Slot) -> bool, mut gone: impl FnMut(&E, &E)) {
        for _ in 0..pairs.min(self.fresh) {
            if self.sweep_at >= self.fresh {
                self.sweep_at = 0;
            }
            let slot = Slot(self.sweep_at * 2);
            self.sweep_at += 1;
            if self.entries[slot.0 as usize].common().state != 0 && dead(self, slot) {
                gone(&self.entries[slot.0 as usize], &self.entries[slot.sibling().0 as usize]);
                self.remove(slot);
            }
        }
    }

    /// A connection that a full table may give up, searched in the next `pairs`.
    pub fn evictable(&mut self, pairs: u32) -> Option<Slot> {
        for _ in 0..pairs.min(self.fresh) {
            if self.evict_at >= self.fresh {
                self.evict_at = 0;
            }
            let slot = Slot(self.evict_at * 2);
            self.evict_at += 1;
            let entry = &self.entries[slot.0 as usize];
            let state = State::from_byte(entry.common().state);
            if state != State::Free && state.may_be_evicted(entry.parts().0.protocol) {
                return Some(slot);
            }
        }
        None
    }

    /// Every connection, in table order.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &E, &E)> {
        self.pairs(0, self.fresh)
    }

    /// The connections among `count` places from `first` on; places end at [`Self::used`].
    pub fn pairs(&self, first: u32, count: u32) -> impl Iterator<Item = (Slot, &E, &E)> {
        (first..first.saturating_add(count).min(self.fresh)).filter_map(|pair| {
            let slot = Slot(pair * 2);
            let (a, b) = (self.get(slot)?, self.get(slot.sibling())?);
            (a.common().state != 0).then_some((slot, a, b))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_way_is_marked_exactly_if_it_has_the_tag(tags in prop::array::uniform8(0u16..4), tag in 1u16..4) {
            let mask = FlowTable::<Entry4>::matching(&Bucket { tags, ..Bucket::default() }, tag);
            let first = tags.iter().position(|t| *t == tag);
            prop_assert_eq!((mask != 0).then(|| mask.trailing_zeros() as usize), first);
            for (way, t) in tags.iter().enumerate() {
                prop_assert_eq!(*t == tag, mask >> way & 1 == 1);
            }
        }
    }
    use super::super::{Common, Entry4, Entry6, Side, Tuple};
    use super::*;
    use sluice_tables::Address;
    use std::collections::HashMap;

    fn tuple(n: u32, v6: bool) -> Tuple {
        let [a, b, c, d] = n.to_be_bytes();
        let mut six = [0xfd; 16];
        six[12..].copy_from_slice(&[a, b, c, d]);
        Tuple {
            source: if v6 { Address::v6(six) } else { Address::v4([10, b, c, d]) },
            destination: if v6 { Address::v6([0x20; 16]) } else { Address::v4([10, 96, 0, 1]) },
            source_port: (n % 60_000) as u16,
            destination_port: 80,
            protocol: 6,
        }
    }

    fn pair<E: Entry>(n: u32, v6: bool) -> (E, E) {
        let t = tuple(n, v6);
        let common = Common { state: State::Established as u8, rule: n, ..Common::default() };
        let original = E::make(E::key_of(&t, 1, Side::From), &t, &t, common);
        let back = t.reverse();
        let reply = Common { bits: Common::REPLY, ..common };
        (original, E::make(E::key_of(&back, 1, Side::To), &back, &back, reply))
    }

    /// Random inserts and removes against a map that cannot be wrong.
    fn agrees_with_a_map<E: Entry>(v6: bool) {
        let mut table = FlowTable::<E>::new(3000, 7, false).unwrap();
        let mut map: HashMap<u32, Slot> = HashMap::new();
        let mut random = 0x1234_5678_9abc_def1_u64;
        for _ in 0..60_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let n = (random >> 20) as u32 % 5000;
            let (original, reply) = pair::<E>(n, v6);
            assert_eq!(table.find(original.key()), map.get(&n).copied());
            match map.remove(&n) {
                Some(slot) => table.remove(slot),
                None => {
                    if let Ok(slot) = table.insert(original, Some(reply)) {
                        map.insert(n, slot);
                        assert_eq!(table.find(reply.key()), Some(slot.sibling()));
                    } else {
                        assert!(map.len() >= 2990, "full at {}", map.len());
                    }
                }
            }
            assert_eq!(table.len(), map.len());
        }
        assert_eq!(table.iter().count(), map.len());
    }

    #[test]
    fn the_ipv4_table_agrees_with_a_map() {
        agrees_with_a_map::<Entry4>(false);
    }

    #[test]
    fn the_ipv6_table_agrees_with_a_map() {
        agrees_with_a_map::<Entry6>(true);
    }

    #[test]
    fn a_table_holds_all_that_it_promises() {
        let mut table = FlowTable::<Entry4>::new(50_000, 3, false).unwrap();
        for n in 0..50_000 {
            let (a, b) = pair::<Entry4>(n, false);
            table.insert(a, Some(b)).unwrap_or_else(|_| panic!("full at {n}"));
        }
        let (a, b) = pair::<Entry4>(70_000, false);
        assert_eq!(table.insert(a, Some(b)), Err(Full));
        let per_flow = table.memory().0 as f64 / 50_000.0;
        assert!(per_flow <= 160.0, "{per_flow} bytes");
    }
}
