//! Longest-prefix match over both families: one exact map per prefix length in use, asked from the longest down.
//!
//! Cost: one hash probe per distinct prefix length (a cluster has a handful); only the slow path asks.

use crate::address::{Address, Prefix, mask};
use hashbrown::HashMap;

/// Prefix to value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lpm<V> {
    /// Longest first.
    lengths: Vec<u8>,
    maps: Vec<HashMap<u128, V>>,
}

impl<V> Default for Lpm<V> {
    fn default() -> Self {
        Lpm { lengths: Vec::new(), maps: Vec::new() }
    }
}

impl<V> Lpm<V> {
    /// From prefixes; a later value for the same prefix replaces an earlier one.
    pub fn from_entries(entries: impl IntoIterator<Item = (Prefix, V)>) -> Self {
        let mut out = Lpm::default();
        for (prefix, value) in entries {
            out.insert(prefix, value);
        }
        out
    }

    /// Adds or replaces a prefix.
    pub fn insert(&mut self, prefix: Prefix, value: V) {
        let len = prefix.len128();
        let at = match self.lengths.binary_search_by(|l| len.cmp(l)) {
            Ok(at) => at,
            Err(at) => {
                self.lengths.insert(at, len);
                self.maps.insert(at, HashMap::new());
                at
            }
        };
        self.maps[at].insert(prefix.bits(), value);
    }

    /// The value of the longest prefix that contains `address`.
    #[inline]
    pub fn lookup(&self, address: Address) -> Option<&V> {
        let (bits, v4) = (address.bits(), address.is_v4());
        for (len, map) in self.lengths.iter().zip(&self.maps) {
            if v4 && *len < 96 {
                return None;
            }
            if let Some(value) = map.get(&(bits & mask(*len))) {
                return Some(value);
            }
        }
        None
    }

    /// Every prefix with its value, the shortest and lowest first.
    pub fn entries(&self) -> Vec<(Prefix, &V)> {
        let each = self.lengths.iter().zip(&self.maps);
        let mut all: Vec<_> =
            each.flat_map(|(len, map)| map.iter().map(|(bits, v)| (Prefix::from_bits(*bits, *len), v))).collect();
        all.sort_unstable_by_key(|(prefix, _)| (prefix.len128(), prefix.bits()));
        all
    }

    /// Number of prefixes.
    pub fn len(&self) -> usize {
        self.maps.iter().map(HashMap::len).sum()
    }

    /// Memory of the maps, in bytes.
    pub fn bytes(&self) -> usize {
        self.lengths.capacity() + self.maps.iter().map(|map| size_of_val(map) + map.allocation_size()).sum::<usize>()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Family;
    use proptest::prelude::*;

    /// Asks every prefix: slow, obvious.
    fn oracle(entries: &[(Prefix, u32)], address: Address) -> Option<u32> {
        let holders = entries.iter().enumerate().filter(|(_, (prefix, _))| prefix.contains(address));
        holders.max_by_key(|(at, (prefix, _))| (prefix.len128(), *at)).map(|(_, (_, value))| *value)
    }

    /// Few distinct bits, so that prefixes nest and addresses hit them.
    fn address() -> impl Strategy<Value = Address> {
        let byte = prop::sample::select(vec![0u8, 1, 0x80, 0xff]);
        prop_oneof![
            prop::array::uniform4(byte.clone()).prop_map(Address::v4),
            prop::array::uniform4(byte).prop_map(|b| {
                let mut bytes = [0; 16];
                (bytes[0], bytes[7], bytes[12], bytes[15]) = (b[0], b[1], b[2], b[3]);
                Address::v6(bytes)
            }),
        ]
    }

    fn prefix() -> impl Strategy<Value = Prefix> {
        (address(), 0..=128u8).prop_map(|(address, len)| {
            let longest = if address.family() == Family::V4 { 32 } else { 128 };
            Prefix::new(address, len % (longest + 1)).unwrap()
        })
    }

    #[test]
    fn an_empty_table_knows_nobody() {
        assert_eq!(Lpm::<u8>::default().lookup(Address::v4([10, 0, 0, 1])), None);
    }

    #[test]
    fn entries_come_shortest_first_whatever_the_order_of_insertion() {
        let nets = [([10, 1, 0, 0], 16), ([10, 0, 0, 0], 8), ([9, 0, 0, 0], 8)];
        let table = Lpm::from_entries(nets.map(|(a, len)| (Prefix::new(Address::v4(a), len).unwrap(), ())));
        let listed: Vec<_> = table.entries().into_iter().map(|(p, ())| p.to_string()).collect();
        assert_eq!(listed, ["9.0.0.0/8", "10.0.0.0/8", "10.1.0.0/16"]);
    }

    proptest! {
        #[test]
        fn it_agrees_with_asking_every_prefix(
            entries in prop::collection::vec((prefix(), any::<u32>()), 0..40),
            asked in prop::collection::vec(address(), 1..40),
        ) {
            let table = Lpm::from_entries(entries.iter().copied());
            for address in asked {
                prop_assert_eq!(table.lookup(address).copied(), oracle(&entries, address), "{}", address);
            }
        }
    }
}
