//! Direct return: a backend's node answers clients outside by itself, without the node that chose the backend.
//!
//! The choosing node sends the client's packet, destination translated and source kept, through the overlay; the inner
//! Ethernet source says which frontend the client spoke to, so that not a byte is added. `docs/adr/0018` says why.
//!
//! ```text
//! inner Ethernet source   06 │ tag of the frontend, 40 bits     (a node's own: 02 00 …)
//! ```
//! Invariants: all nodes compute the same tags from the same Services; of two frontends with one tag the first by key has
//! it and the other is answered the ordinary way.

use crate::hops::HopId;
use crate::services::FrontendKey;
use crate::stable_hash::stable_hash;
use hashbrown::HashMap;

/// First byte of an inner source MAC that bears a tag: locally administered, and no node's.
const MARK: u8 = 0x06;

/// What stands for a frontend between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(u64);

impl Tag {
    /// Of a frontend; a NodePort has the unspecified address, whichever node it was asked at.
    pub fn of(key: &FrontendKey) -> Tag {
        let mut bytes = [0u8; 19];
        bytes[..16].copy_from_slice(&key.address.0);
        bytes[16] = key.protocol;
        bytes[17..].copy_from_slice(&key.port.to_be_bytes());
        Tag(stable_hash(&Bytes(&bytes)) >> 24)
    }

    /// As an inner source MAC.
    pub fn mac(self) -> [u8; 6] {
        let [.., a, b, c, d, e] = self.0.to_be_bytes();
        [MARK, a, b, c, d, e]
    }

    /// From an inner source MAC; `None`: a node's own.
    pub fn from_mac(mac: [u8; 6]) -> Option<Tag> {
        let [mark, a, b, c, d, e] = mac;
        (mark == MARK).then(|| Tag(u64::from_be_bytes([0, 0, 0, a, b, c, d, e])))
    }
}

/// Fed as bytes alone, without a length: what several nodes, and their tests, must agree on.
struct Bytes<'a>(&'a [u8]);

impl std::hash::Hash for Bytes<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write(self.0);
    }
}

/// Frontends with direct return, and the ways towards the nodes of their backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Direct {
    frontends: HashMap<Tag, FrontendKey>,
    hops: HashMap<(Tag, HopId), HopId>,
}

impl Direct {
    /// From frontends and, for each of them and each plain way through the overlay, the way that bears its tag.
    pub fn new(
        frontends: impl IntoIterator<Item = FrontendKey>,
        hops: impl IntoIterator<Item = ((Tag, HopId), HopId)>,
    ) -> Direct {
        let mut known = HashMap::new();
        for key in frontends {
            known.entry(Tag::of(&key)).or_insert(key);
        }
        Direct { frontends: known, hops: hops.into_iter().collect() }
    }

    /// Whether no frontend asks for direct return.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }

    /// The way to a backend's node for a frontend, in place of the plain one.
    pub fn hop(&self, key: &FrontendKey, plain: HopId) -> Option<HopId> {
        let tag = Tag::of(key);
        self.frontends.get(&tag).filter(|known| *known == key)?;
        self.hops.get(&(tag, plain)).copied()
    }

    /// The frontend a tag stands for.
    pub fn frontend(&self, tag: Tag) -> Option<&FrontendKey> {
        self.frontends.get(&tag)
    }

    /// Every frontend, in order, for reports.
    pub fn frontends(&self) -> Vec<FrontendKey> {
        let mut all: Vec<_> = self.frontends.values().copied().collect();
        all.sort_unstable();
        all
    }

    /// Every way, in order: tag, the plain way and the one that bears the tag.
    pub fn ways(&self) -> Vec<(Tag, HopId, HopId)> {
        let mut all: Vec<_> = self.hops.iter().map(|((tag, plain), hop)| (*tag, *plain, *hop)).collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Address;

    fn key(last: u8, port: u16) -> FrontendKey {
        FrontendKey { address: Address::v4([203, 0, 113, last]), protocol: 6, port }
    }

    #[test]
    fn a_tag_survives_its_way_as_a_mac_and_no_nodes_own_mac_is_one() {
        for tag in [key(80, 80), key(80, 81), key(0, 0)].map(|k| Tag::of(&k)) {
            let mac = tag.mac();
            assert_eq!(Tag::from_mac(mac), Some(tag));
            assert_eq!(mac[0] & 0x03, 0x02, "locally administered, one station");
        }
        assert_eq!(Tag::from_mac([2, 0, 192, 0, 2, 1]), None);
        assert_ne!(Tag::of(&key(80, 80)), Tag::of(&FrontendKey { protocol: 17, ..key(80, 80) }));
    }

    #[test]
    fn a_tag_is_pinned_because_nodes_of_different_builds_must_agree() {
        assert_eq!(Tag::of(&key(80, 80)).mac(), [0x06, 0x06, 0x19, 0xb6, 0xb9, 0x27]);
    }

    #[test]
    fn a_way_is_found_for_its_own_frontend_alone() {
        let tag = Tag::of(&key(1, 80));
        let direct = Direct::new([key(1, 80)], [((tag, HopId(3)), HopId(9))]);
        assert_eq!(direct.hop(&key(1, 80), HopId(3)), Some(HopId(9)));
        assert_eq!((direct.hop(&key(2, 80), HopId(3)), direct.hop(&key(1, 80), HopId(4))), (None, None));
        assert_eq!(direct.frontend(tag), Some(&key(1, 80)));
    }
}
