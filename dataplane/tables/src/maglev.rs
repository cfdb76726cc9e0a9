//! Maglev hashing (Eisenbud et al., NSDI 2016, §3.4): a lookup table in which each backend owns an almost equal share
//! and a backend's departure moves little else.
//!
//! Owner: the control thread builds, workers read. Invariants: the table depends on the set of (address, port) alone,
//! not on order, on which node builds it or on `Backend::local`, so all nodes agree; shares differ by at most one slot.
//! Cost: O(size · log size) on average to build, one load to use. Sizes come from a ladder of few steps: only a change
//! across a step moves every slot. Within a step, up to 127 backends, a departure moves at most two shares; with many more,
//! the largest table is too small for that.
//!
//! Where the paper walks by arithmetic progressions, a backend's order is drawn by hash here: progressions of nearly the same
//! step get into each other's way, and in one set of a hundred a departure moved up to three shares.

use crate::services::Backend;
use crate::stable_hash::{mix, stable_hash};

/// Primes a table's size is taken from, each about four times the one before.
const LADDER: [usize; 5] = [251, 1_021, 4_093, 16_381, LARGEST_TABLE];
/// Largest table: indices and slots stay below 2^16.
pub const LARGEST_TABLE: usize = 65_521;
/// Slots per backend that keep shares within one per cent of each other.
const SLOTS_PER_BACKEND: usize = 100;
/// Slots per square of backends that keep a departure below two shares: with fewer, the gaps that others fill collide
/// (the worst of 3,000 sets: 1.4 shares at 12 slots per square, 2.04 at 3.1).
const SLOTS_PER_SQUARE: usize = 4;

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
    let mut walks: Vec<Walk> = backends.iter().map(Walk::of).collect();
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

/// A backend's order of preference over all slots: drawn by hash, some more than once.
struct Walk {
    hash: u64,
}

impl Walk {
    fn of(backend: &Backend) -> Walk {
        Walk { hash: stable_hash(&(backend.address.0, backend.port)) }
    }

    fn next(&mut self, size: usize) -> usize {
        let draw = u128::from(mix(self.hash)) * size as u128;
        self.hash = self.hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (draw >> 64) as usize
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

    /// The paper's pseudocode, each order looked through from its beginning at every turn: slow, obvious.
    fn oracle(backends: &[Backend]) -> Vec<u16> {
        let size = table_size(backends.len());
        let mut table: Vec<Option<u16>> = vec![None; size];
        let mut turn = 0;
        while table.contains(&None) {
            let backend = &backends[turn % backends.len()];
            let hash = stable_hash(&(backend.address.0, backend.port));
            let slot_of = |draw: u64| {
                let number = mix(hash.wrapping_add(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                (u128::from(number) * size as u128 / (1 << 64)) as usize
            };
            let wanted = (0..).map(slot_of).find(|slot| table[*slot].is_none()).unwrap();
            table[wanted] = Some((turn % backends.len()) as u16);
            turn += 1;
        }
        table.into_iter().flatten().collect()
    }

    #[test]
    fn every_size_on_the_ladder_is_prime_and_follows_the_rule() {
        for size in LADDER {
            assert!((2..size).take_while(|d| d * d <= size).all(|d| !size.is_multiple_of(d)), "{size} is prime");
        }
        assert_eq!([0, 1, 2, 3, 10, 11, 31].map(table_size), [0, 251, 251, 1_021, 1_021, 4_093, 4_093]);
        assert_eq!([32, 63, 64, 127, 65_521].map(table_size), [16_381, 16_381, 65_521, 65_521, 65_521]);
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_table_is_the_papers(ids in prop::collection::btree_set(0u32..5_000, 2..12)) {
            let set = backends(ids);
            prop_assert_eq!(build(&set), oracle(&set));
        }

        #[test]
        fn one_departure_moves_at_most_two_shares(
            ids in prop::collection::btree_set(0u32..60_000, 2..128),
            which in any::<prop::sample::Index>(),
        ) {
            let before = backends(ids);
            let mut after = before.clone();
            after.remove(which.index(before.len()));
            prop_assume!(table_size(before.len()) == table_size(after.len()));
            let (a, b) = (build(&before), build(&after));
            let moved = a.iter().zip(&b).filter(|(x, y)| before[usize::from(**x)] != after[usize::from(**y)]).count();
            prop_assert!(moved * before.len() <= 2 * a.len(), "{} of {} slots for {}", moved, a.len(), before.len());
        }
    }
}
