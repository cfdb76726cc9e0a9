//! From entries that an earlier process left to a table: one pass over them builds buckets, free list and counts.
//!
//! Each pair is looked at before it is believed: a pair whose two entries do not prove each other (keys, rewrites,
//! checksum deltas) is dropped and counted. What its numbers refer to is the caller's question. Runs before the worker does.
//! Cost: memory bandwidth plus one bucket line for each entry, about 100 ns for a connection.

use super::entry::{Common, Entry};
use super::state::State;
use super::table::{FlowTable, Slot};

/// Pairs whose bucket lines are asked for together.
const BLOCK: usize = 32;

/// What is to become of a stored pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on here.
    Keep,
    /// It ends.
    End,
    /// It goes on in another worker's table.
    Move,
}

/// What was found among stored entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Connections that go on here.
    pub kept: u32,
    /// Those that the caller ended.
    pub ended: u32,
    /// Those that the caller moved.
    pub moved: u32,
    /// Pairs whose entries did not prove each other, or that found no place.
    pub torn: u32,
}

impl Stored {
    /// Both together.
    pub fn plus(self, other: Stored) -> Stored {
        Stored {
            kept: self.kept + other.kept,
            ended: self.ended + other.ended,
            moved: self.moved + other.moved,
            torn: self.torn + other.torn,
        }
    }
}

/// Whether two entries are one connection as [`FlowTable::insert`] was given it.
pub fn proves_itself<E: Entry>(original: &E, reply: &E) -> bool {
    let whole = |entry: &E| {
        let (from, zone, side) = entry.parts();
        let c = entry.common();
        let plain = Common { bits: c.bits & !Common::PLAIN, ..*c };
        *entry.key() == E::key_of(&from, zone, side)
            && State::from_byte(c.state) != State::Free
            && E::make(*entry.key(), &from, &entry.to(), plain).as_bytes() == entry.as_bytes()
    };
    if original.common().is_reply() || !whole(original) {
        return false;
    }
    reply.common().state == 0
        || reply.common().is_reply()
            && whole(reply)
            && reply.parts().0 == original.to().reverse()
            && reply.to() == original.parts().0.reverse()
}

impl<E: Entry> FlowTable<E> {
    /// Builds the table from what stands in its entries. `judge` may change a pair and says what becomes of it; it is given
    /// whole pairs only, and whether there is room: a pair beyond the table's capacity cannot be kept where it is. `lost`
    /// gets the first entries of kept pairs that found no place.
    pub fn recover(&mut self, lost: &mut Vec<E>, mut judge: impl FnMut(&mut E, &mut E, bool) -> Fate) -> Stored {
        let mut found = Stored::default();
        let stored = self.entries.len() / 2;
        let mut pending: Vec<u32> = Vec::with_capacity(BLOCK);
        for start in (0..stored).step_by(BLOCK) {
            for pair in start..stored.min(start + BLOCK) {
                let Some([a, b]) = self.entries.get_mut(pair * 2..pair * 2 + 2) else { break };
                if a.common().state == 0 {
                    continue;
                }
                let fate = match proves_itself(a, b) {
                    true => judge(a, b, pair < self.pairs),
                    false => {
                        found.torn += 1;
                        self.wipe(pair);
                        continue;
                    }
                };
                match fate {
                    Fate::Keep if pair < self.pairs => {
                        let hashes = [*a.key(), *b.key()].map(|key| self.hash(&key));
                        hashes.iter().for_each(|hash| self.prefetch_bucket(*hash));
                        pending.push(pair as u32);
                    }
                    Fate::Move => {
                        found.moved += 1;
                        self.wipe(pair);
                    }
                    Fate::Keep | Fate::End => {
                        found.ended += 1;
                        self.wipe(pair);
                    }
                }
            }
            for pair in pending.drain(..) {
                self.link_free_up_to(pair);
                let slot = Slot(pair * 2);
                let two = self.entries[slot.sibling().0 as usize].common().state != 0;
                self.fresh = pair + 1;
                if self.place(slot) && (!two || self.place(slot.sibling())) {
                    self.live += 1;
                    found.kept += 1;
                } else {
                    lost.push(self.entries[slot.0 as usize]);
                    self.unplace(slot);
                    self.release(pair);
                    found.torn += 1;
                }
            }
        }
        found
    }

    /// Empties a pair that is in no bucket.
    fn wipe(&mut self, pair: usize) {
        self.entries[pair * 2].common_mut().state = 0;
        self.entries[pair * 2] = E::default();
        self.entries[pair * 2 + 1] = E::default();
    }

    /// Enters the pairs from the first never used one to `pair` in the free list.
    fn link_free_up_to(&mut self, pair: u32) {
        for free in self.fresh..pair {
            self.release(free);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Entry4, Entry6, Side, Tuple};
    use super::*;
    use proptest::prelude::*;
    use sluice_port::Mapped;
    use sluice_tables::Address;
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use zerocopy::IntoBytes;

    /// A file that is gone when nobody has it open any more.
    fn scratch() -> File {
        tempfile::tempfile_in("/dev/shm").unwrap()
    }

    fn entries<E: Entry>(file: &File, pairs: usize) -> Mapped<E> {
        Mapped::in_file(OwnedFd::from(file.try_clone().unwrap()), 4096, pairs * 2).unwrap()
    }

    fn pair<E: Entry>(n: u16, v6: bool) -> (E, E) {
        let [a, b] = n.to_be_bytes();
        let mut six = [0xfd; 16];
        six[14..].copy_from_slice(&[a, b]);
        let t = Tuple {
            source: if v6 { Address::v6(six) } else { Address::v4([10, 1, a, b]) },
            destination: if v6 { Address::v6([0x20; 16]) } else { Address::v4([10, 96, 0, 1]) },
            source_port: n,
            destination_port: 80,
            protocol: 6,
        };
        let to = Tuple { destination_port: 8080, ..t };
        let common = Common { state: State::Established as u8, rule: u32::from(n), pod: 3, ..Common::default() };
        let back = Common { bits: Common::REPLY, ..common };
        (
            E::make(E::key_of(&t, 3, Side::From), &t, &to, common),
            E::make(E::key_of(&to.reverse(), 3, Side::To), &to.reverse(), &t.reverse(), back),
        )
    }

    /// What a table holds, by the number of the pair.
    fn held<E: Entry>(table: &FlowTable<E>) -> BTreeMap<u32, Vec<u8>> {
        let both = |a: &E, b: &E| [a.as_bytes(), b.as_bytes()].concat();
        table.iter().map(|(_, a, b)| (a.common().rule, both(a, b))).collect()
    }

    fn opened_again_it_is_the_same<E: Entry>(steps: &[(bool, u16)], v6: bool) -> Result<(), TestCaseError> {
        let file = scratch();
        let mut table = FlowTable::<E>::over(entries(&file, 64), 64, 1, false).unwrap();
        for (put, n) in steps {
            let (a, b) = pair::<E>(*n, v6);
            match (put, table.find(a.key())) {
                (true, None) => drop(table.insert(a, Some(b))),
                (false, Some(slot)) => table.remove(slot),
                _ => {}
            }
        }
        let before = held(&table);
        drop(table);
        let mut again = FlowTable::<E>::over(entries(&file, 64), 64, 99, false).unwrap();
        let found = again.recover(&mut Vec::new(), |_, _, _| Fate::Keep);
        prop_assert_eq!((found.kept as usize, found.torn), (before.len(), 0));
        prop_assert_eq!(again.len(), before.len());
        prop_assert!(held(&again) == before);
        for n in 0..80 {
            let (a, b) = pair::<E>(n, v6);
            let there = before.contains_key(&u32::from(n));
            prop_assert_eq!(again.find(a.key()).is_some(), there);
            prop_assert_eq!(again.find(b.key()).is_some(), there);
        }
        // And it works: all places can be used, none twice.
        for n in 1000..1064 {
            let (a, b) = pair::<E>(n, v6);
            if again.insert(a, Some(b)).is_err() {
                break;
            }
        }
        prop_assert_eq!(again.iter().count(), again.len());
        prop_assert!(again.len() == 64, "{} of 64", again.len());
        Ok(())
    }

    proptest! {
        #[test]
        fn a_table_that_is_opened_again_after_any_steps_is_the_same(
            steps in prop::collection::vec((any::<bool>(), 0u16..80), 0..200), v6 in any::<bool>()
        ) {
            if v6 {
                opened_again_it_is_the_same::<Entry6>(&steps, true)?;
            } else {
                opened_again_it_is_the_same::<Entry4>(&steps, false)?;
            }
        }

        #[test]
        fn a_pair_of_which_any_byte_of_key_or_rewrite_was_changed_is_dropped_and_no_other(
            victim in 0u16..20, second in any::<bool>(), at in 0usize..28, value in any::<u8>()
        ) {
            let file = scratch();
            let mut table = FlowTable::<Entry4>::over(entries(&file, 64), 64, 1, false).unwrap();
            for n in 0..20 {
                let (a, b) = pair::<Entry4>(n, false);
                table.insert(a, Some(b)).unwrap();
            }
            let before = held(&table);
            drop(table);
            let mut raw = entries::<Entry4>(&file, 64);
            // Bytes 0 to 29 of either entry: key, addresses, ports, a delta. The zone (12, 13) is the judge's question.
            let at = if at < 12 { at } else { at + 2 };
            // So is the side (15), where it is one at all.
            prop_assume!(at != 15 || ![Side::From as u8, Side::To as u8].contains(&value));
            let entry = &mut raw[usize::from(victim) * 2 + usize::from(second)];
            let byte = &mut entry.as_mut_bytes()[at];
            let same = *byte == value;
            *byte = value;
            drop(raw);
            let mut again = FlowTable::<Entry4>::over(entries(&file, 64), 64, 1, false).unwrap();
            let found = again.recover(&mut Vec::new(), |_, _, _| Fate::Keep);
            let mut wanted = before;
            if !same {
                wanted.remove(&u32::from(victim));
            }
            prop_assert_eq!(found.torn, u32::from(!same));
            prop_assert!(held(&again) == wanted);
        }

        /// Every prefix of the stores that make a pair, and every prefix of those that end one: the pair is whole or gone.
        #[test]
        fn a_kill_between_any_two_stores_leaves_whole_pairs_only(bytes in 0usize..=128) {
            let file = scratch();
            let mut raw = entries::<Entry4>(&file, 8);
            raw.reserve(16);
            let (a, b) = pair::<Entry4>(7, false);
            let mut first = a;
            first.common_mut().state = 0;
            let stores = [b.as_bytes(), first.as_bytes()].concat();
            let mut image = [0u8; 128];
            image[..bytes].copy_from_slice(&stores[..bytes]);
            raw[1].as_mut_bytes().copy_from_slice(&image[..64]);
            raw[0].as_mut_bytes().copy_from_slice(&image[64..]);
            drop(raw);
            let mut table = FlowTable::<Entry4>::over(entries(&file, 8), 8, 1, false).unwrap();
            prop_assert_eq!(table.recover(&mut Vec::new(), |_, _, _| Fate::Keep), Stored::default());
            prop_assert!(table.find(a.key()).is_none() && table.find(b.key()).is_none());
        }
    }

    #[test]
    fn what_the_caller_ends_or_moves_leaves_its_place_free() {
        let file = scratch();
        let mut table = FlowTable::<Entry4>::over(entries(&file, 8), 8, 1, false).unwrap();
        for n in 0..8 {
            let (a, b) = pair::<Entry4>(n, false);
            table.insert(a, Some(b)).unwrap();
        }
        drop(table);
        let mut table = FlowTable::<Entry4>::over(entries(&file, 8), 8, 1, false).unwrap();
        let found = table.recover(&mut Vec::new(), |a, _, _| match a.common().rule {
            0..3 => Fate::End,
            3..5 => Fate::Move,
            _ => Fate::Keep,
        });
        assert_eq!(found, Stored { kept: 3, ended: 3, moved: 2, torn: 0 });
        assert_eq!((table.len(), table.used()), (3, 8));
        for n in 20..25 {
            let (a, b) = pair::<Entry4>(n, false);
            table.insert(a, Some(b)).unwrap();
        }
        let (a, b) = pair::<Entry4>(30, false);
        assert!(table.insert(a, Some(b)).is_err());
    }

    #[test]
    fn a_table_that_has_become_smaller_ends_what_lies_beyond_it() {
        let file = scratch();
        let mut table = FlowTable::<Entry4>::over(entries(&file, 64), 64, 1, false).unwrap();
        for n in 0..64 {
            let (a, b) = pair::<Entry4>(n, false);
            table.insert(a, Some(b)).unwrap();
        }
        drop(table);
        let mut table = FlowTable::<Entry4>::over(entries(&file, 64), 16, 1, false).unwrap();
        let found = table.recover(&mut Vec::new(), |_, _, _| Fate::Keep);
        assert_eq!((found.kept, found.ended, table.len(), table.capacity()), (16, 48, 16, 16));
        let (a, b) = pair::<Entry4>(100, false);
        assert!(table.insert(a, Some(b)).is_err());
    }
}
