//! Maglev hashing (Eisenbud et al., NSDI 2016, §3.4): a lookup table in which each backend owns an almost equal share
//! and a backend's departure moves little else.
//!
//! Owner: the control thread builds, workers read. Invariants: the table depends on the set of (address, port) alone,
//! not on order, on which node builds it or on `Backend::local`, so all nodes agree; its size is prime, so that every
//! step visits every slot; shares differ by at most one slot. Cost: O(size · log size) on average to build, one load
//! to use. Sizes come from a ladder of few steps: only a change across a step moves every slot. Within a step, up to
//! 147 backends, a departure moves about 1.2 shares, and seldom more than two (2.3 was the worst seen: walks of nearly the
//! same step get into each other's way); with many more, the largest table is too small for that.

use crate::services::Backend;
use crate::stable_hash::{mix, stable_hash};

/// Primes a table's size is taken from, each about four times the one before.
const LADDER: [usize; 5] = [251, 1_021, 4_093, 16_381, LARGEST_TABLE];
/// Largest table: indices and slots stay below 2^16.
pub const LARGEST_TABLE: usize = 65_521;
/// Slots per backend that keep shares within one per cent of each other.
const SLOTS_PER_BACKEND: usize = 100;
/// Slots per square of backends that keep a departure below two shares: with fewer, the gaps that others fill collide
/// (measured: 1.4 shares at 10 slots per square, 2.0 at 2.6, 6 at 0.16).
const SLOTS_PER_SQUARE: usize = 3;

/// Size of the table for a number of backends; 0 for none.
pub fn table_size(backends: usize) -> usize {
    if backends == 0 {
        return 0;
    }
    let wanted = (backends * SLOTS_PER_BACKEND).max(backends * backends * SLOTS_PER_SQUARE);
    LADDER.into_iter().find(|size| wanted <= *size).unwrap_or(LARGEST_TABLE)
}

/// One index into `backends` per slot. `backends` are sorted and distinct, at most [`LARGEST_TABLE`].
pub fn build(backends: &[Backend]) -> Vec<u16> {
    let size = table_size(backends.len());
    if backends.len() <= 1 {
        return vec![0; size];
    }
    const EMPTY: u16 = u16::MAX;
    let mut table = vec![EMPTY; size];
    let mut walks: Vec<Walk> = backends.iter().map(|b| Walk::of(b, size)).collect();
    let mut free = size;
    loop {
        for (index, walk) in walks.iter_mut().enumerate() {
            let slot = loop {
                let slot = walk.next(size);
                if table[slot] == EMPTY {
                    break slot;
                }
            };
            table[slot] = index as u16;
            free -= 1;
            if free == 0 {
                return table;
            }
        }
    }
}

/// A backend's order of preference over all slots: an arithmetic progression modulo the prime size.
struct Walk {
    at: usize,
    skip: usize,
}

impl Walk {
    fn of(backend: &Backend, size: usize) -> Walk {
        let hash = stable_hash(&(backend.address.0, backend.port));
        let at = (hash % size as u64) as usize;
        let skip = (mix(hash ^ 0x9e37_79b9_7f4a_7c15) % (size as u64 - 1)) as usize + 1;
        Walk { at, skip }
    }

    fn next(&mut self, size: usize) -> usize {
        let slot = self.at;
        self.at = (self.at + self.skip) % size;
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn backends(ids: impl IntoIterator<Item = u32>) -> Vec<Backend> {
        let set: BTreeSet<_> = ids
            .into_iter()
            .map(|n| Backend { address: Address::v4((0x0af4_0000 + n).to_be_bytes()), port: 8080, local: n % 3 == 0 })
            .collect();
        set.into_iter().collect()
    }

    /// The paper's pseudocode with explicit permutations: slow, obvious.
    fn oracle(backends: &[Backend]) -> Vec<u16> {
        let size = table_size(backends.len());
        let permutations: Vec<Vec<usize>> = backends
            .iter()
            .map(|b| {
                let hash = stable_hash(&(b.address.0, b.port));
                let offset = (hash % size as u64) as usize;
                let skip = (mix(hash ^ 0x9e37_79b9_7f4a_7c15) % (size as u64 - 1)) as usize + 1;
                (0..size).map(|j| (offset + j * skip) % size).collect()
            })
            .collect();
        let mut table: Vec<Option<u16>> = vec![None; size];
        let mut turn = 0;
        while table.contains(&None) {
            let wanted = permutations[turn % backends.len()].iter().find(|slot| table[**slot].is_none()).unwrap();
            table[*wanted] = Some((turn % backends.len()) as u16);
            turn += 1;
        }
        table.into_iter().flatten().collect()
    }

    #[test]
    fn every_size_on_the_ladder_is_prime_and_follows_the_rule() {
        for size in LADDER {
            assert!((2..size).take_while(|d| d * d <= size).all(|d| !size.is_multiple_of(d)), "{size} is prime");
        }
        assert_eq!([0, 1, 2, 3, 10, 11, 36].map(table_size), [0, 251, 251, 1_021, 1_021, 4_093, 4_093]);
        assert_eq!([37, 73, 74, 147, 65_521].map(table_size), [16_381, 16_381, 65_521, 65_521, 65_521]);
    }

    #[test]
    fn no_backends_give_an_empty_table_and_one_owns_all_of_it() {
        assert!(build(&[]).is_empty());
        assert!(build(&backends([7])).iter().all(|i| *i == 0));
    }

    #[test]
    fn shares_differ_by_at_most_one_slot() {
        for count in [2, 3, 10, 100, 655, 3_000] {
            let set = backends(0..count);
            let table = build(&set);
            let mut shares = vec![0usize; set.len()];
            table.iter().for_each(|i| shares[usize::from(*i)] += 1);
            let (min, max) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(max - min <= 1, "{count} backends: {min} to {max} slots");
            if count <= 655 {
                assert!(*min as f64 >= 0.98 * table.len() as f64 / f64::from(count), "{count} backends");
            }
        }
    }

    #[test]
    fn the_same_backends_on_another_node_give_the_same_table() {
        let here = backends(0..20);
        let there: Vec<_> = here.iter().map(|b| Backend { local: !b.local, ..*b }).collect();
        assert_eq!(build(&here), build(&there));
    }

    #[test]
    fn a_departure_moves_two_shares_only_in_rare_sets() {
        let mut moved_more = 0;
        for round in 0..200u32 {
            let before = backends((0..12).map(|n| round * 100 + n * 7));
            let mut after = before.clone();
            after.remove(round as usize % 12);
            let (a, b) = (build(&before), build(&after));
            assert_eq!(a.len(), 4_093);
            let b: Vec<u16> = if b.len() == a.len() { b } else { continue };
            let moved = a.iter().zip(&b).filter(|(x, y)| before[usize::from(**x)] != after[usize::from(**y)]).count();
            moved_more += usize::from(moved * 12 > 2 * a.len());
        }
        assert!(moved_more <= 4, "{moved_more} of 200");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_table_is_the_papers(ids in prop::collection::btree_set(0u32..5_000, 2..12)) {
            let set = backends(ids);
            prop_assert_eq!(build(&set), oracle(&set));
        }

        #[test]
        fn one_departure_moves_at_most_three_shares(
            ids in prop::collection::btree_set(0u32..60_000, 2..147),
            which in any::<prop::sample::Index>(),
        ) {
            let before = backends(ids);
            let mut after = before.clone();
            after.remove(which.index(before.len()));
            prop_assume!(table_size(before.len()) == table_size(after.len()));
            let (a, b) = (build(&before), build(&after));
            let moved = a.iter().zip(&b).filter(|(x, y)| before[usize::from(**x)] != after[usize::from(**y)]).count();
            prop_assert!(moved * before.len() <= 3 * a.len(), "{} of {} slots for {}", moved, a.len(), before.len());
        }
    }
}
