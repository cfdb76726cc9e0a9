//! Longest-prefix match over both families: one exact map per prefix length in use, asked from the longest down.
//!
//! Cost: one hash probe per distinct prefix length (a cluster has a handful); only the slow path asks.

use crate::address::{Address, Prefix, mask};
use hashbrown::HashMap;

/// Prefix to value.
#[derive(Clone, Debug)]
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

    /// Number of prefixes.
    pub fn len(&self) -> usize {
        self.maps.iter().map(HashMap::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }
}
