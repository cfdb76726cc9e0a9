//! A hash that is the same on every node, in every build, for ever: content stamps and placement decisions rest on it.
//!
//! Owner: any thread. Source: FNV-1a 64 (IETF draft-eastlake-fnv) over the bytes, finished with the 64-bit mixer of
//! MurmurHash3 (fmix64) so that all output bits are usable. Invariants: no seed, no process state; integers are fed in
//! big-endian order, lengths as 64 bits. What several nodes must agree on is fed as bytes; derived `Hash` impls are for stamps.
//! Not for keys that an outsider chooses: it does not resist crafted collisions.
//! Cost: one multiplication per byte; control thread only.

use std::hash::{Hash, Hasher};

/// FNV-1a 64 with a final mix, usable with `#[derive(Hash)]`.
#[derive(Clone, Copy, Debug)]
pub struct StableHasher(u64);

impl Default for StableHasher {
    fn default() -> Self {
        StableHasher(0xcbf2_9ce4_8422_2325)
    }
}

macro_rules! big_endian {
    ($($name:ident: $type:ty),*) => {
        $(fn $name(&mut self, value: $type) {
            self.write(&value.to_be_bytes());
        })*
    };
}

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    big_endian!(write_u16: u16, write_u32: u32, write_u64: u64, write_u128: u128);
    big_endian!(write_i16: i16, write_i32: i32, write_i64: i64, write_i128: i128);

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_i64(value as i64);
    }

    fn finish(&self) -> u64 {
        mix(self.0)
    }
}

/// The hash of one value.
pub fn stable_hash<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = StableHasher::default();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A content stamp of 32 bits that is never 0, for versions.
pub fn stamp<T: Hash + ?Sized>(value: &T) -> u32 {
    let hash = stable_hash(value);
    ((hash >> 32) as u32 ^ hash as u32).max(1)
}

/// Spreads every input bit over every output bit (fmix64, a bijection).
pub fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_are_pinned_because_nodes_of_different_builds_must_agree() {
        assert_eq!(StableHasher::default().0, 0xcbf2_9ce4_8422_2325);
        let mut a = StableHasher::default();
        a.write(b"a");
        assert_eq!(a.0, 0xaf63_dc4c_8601_ec8c, "the published FNV-1a test vector of \"a\"");
        assert_eq!(mix(1), 0xb456_bcfc_34c2_cb2c, "fmix64 of 1");
    }

    #[test]
    fn a_stamp_is_never_zero_and_follows_the_content() {
        assert_ne!(stamp(&("a", 1u16)), stamp(&("a", 2u16)));
        assert!((0..10_000u32).all(|n| stamp(&n) != 0));
    }
}
