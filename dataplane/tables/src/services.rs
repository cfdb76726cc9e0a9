//! Service frontends and their backends, sharded so that one Service's change rebuilds one shard.

use crate::address::Address;
use crate::limits::{MAX_BACKENDS, TableError, at_most};
use crate::lpm::Lpm;
use crate::maglev;
use crate::stable_hash::mix;
use hashbrown::{HashMap, HashSet};
use std::sync::Arc;

/// What a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey {
    /// ClusterIP, load-balancer VIP or external address; for NodePorts the unspecified address of the family.
    pub address: Address,
    /// IP protocol number.
    pub protocol: u8,
    /// Port, host order.
    pub port: u16,
}

/// A pod address behind a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Address.
    pub address: Address,
    /// Port, host order.
    pub port: u16,
    /// Whether it runs on this node.
    pub local: bool,
}

/// Backends to choose from and their Maglev table. Empty sets have an empty table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendSet {
    /// Sorted, no duplicates.
    pub backends: Vec<Backend>,
    /// Indices into `backends`, by hash.
    pub maglev: Vec<u16>,
    /// Tag of each backend's address with its index, sorted: how a remembered backend is found again.
    tags: Vec<(u32, u16)>,
}

/// `sessionAffinity: ClientIP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAffinity {
    /// How long a client keeps its backend without asking again.
    pub seconds: u32,
    /// Hash of the Service's name: all its ports share a client's backend.
    pub service: u64,
}

/// How a frontend is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrontendKind {
    /// ClusterIP.
    ClusterIp,
    /// Port on the node's own addresses.
    NodePort,
    /// Port on the node's own addresses, or on one of them, that leads to one pod.
    HostPort,
    /// Load-balancer ingress address.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
}

/// One (address, protocol, port) of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// `namespace/name:port/PROTO` of the Service port, for reports.
    pub name: Arc<str>,
    /// Slot in [`Services::versions`].
    pub slot: u16,
    /// How it is reached.
    pub kind: FrontendKind,
    /// Backends for clients inside the cluster (already filtered by internalTrafficPolicy and topology).
    pub internal: Arc<BackendSet>,
    /// Backends for clients outside (already filtered by externalTrafficPolicy).
    pub external: Arc<BackendSet>,
    /// Every endpoint an established flow may still use: also terminating ones.
    pub alive: Arc<HashSet<(Address, u16)>>,
    /// Endpoints exist but the Local policy leaves none here: drop, do not refuse.
    pub internal_local_empty: bool,
    /// The same for clients outside.
    pub external_local_empty: bool,
    /// Clients outside keep their address (externalTrafficPolicy: Local).
    pub external_local: bool,
    /// `sessionAffinity: ClientIP`.
    pub affinity: Option<ClientAffinity>,
    /// Backends on other nodes answer clients outside by themselves, and any node takes up a connection that it does not
    /// know by the hash alone.
    pub direct: bool,
    /// loadBalancerSourceRanges; `None` means anybody.
    pub source_ranges: Option<Arc<Lpm<()>>>,
}

/// Number of shards of the frontend map.
pub const SHARDS: usize = 256;
/// Number of version slots; Services share one by hash, which at worst re-checks a flow once too often.
pub const VERSION_SLOTS: usize = 16_384;

/// One shard: the frontends whose address hashes here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    /// Frontends.
    pub frontends: HashMap<FrontendKey, Frontend>,
    /// Addresses that have at least one frontend: a wrong port on one is refused, an echo is answered.
    pub addresses: HashMap<Address, FrontendKind>,
}

/// All Services.
#[derive(Clone, Debug)]
pub struct Services {
    /// Shards by [`shard_of`] the frontend address; NodePorts by their unspecified address and port.
    pub shards: Vec<Arc<Shard>>,
    /// Version by slot; a flow remembers the one it was decided under. Slot 0 is "no Service" and always 0.
    pub versions: Arc<Vec<u32>>,
}

impl Default for Services {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Services { shards: vec![empty; SHARDS], versions: Arc::new(vec![0; VERSION_SLOTS]) }
    }
}

/// Shard of an address; a NodePort frontend (unspecified address) is spread by its port.
#[inline]
pub fn shard_of(key: &FrontendKey) -> usize {
    let bits = key.address.bits();
    let nodeport = bits == 0 || bits == 0xffff_0000_0000;
    let mixed = if nodeport { u64::from(key.port) } else { (bits ^ (bits >> 64)) as u64 };
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

impl Services {
    /// The frontend a packet goes to.
    #[inline]
    pub fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.shards.get(shard_of(key))?.frontends.get(key)
    }

    /// Whether an address belongs to any Service.
    #[inline]
    pub fn address(&self, address: Address) -> Option<FrontendKind> {
        let key = FrontendKey { address, protocol: 0, port: 0 };
        self.shards.get(shard_of(&key))?.addresses.get(&address).copied()
    }

    /// Versions by slot.
    #[inline]
    pub fn versions(&self) -> &[u32] {
        &self.versions
    }

    /// Version of a slot.
    #[inline]
    pub fn version(&self, slot: u16) -> u32 {
        self.versions.get(usize::from(slot)).copied().unwrap_or(0)
    }
}

impl BackendSet {
    /// Sorts, removes doubles and builds the Maglev table; an error for more than [`MAX_BACKENDS`].
    pub fn new(mut backends: Vec<Backend>) -> Result<Self, TableError> {
        backends.sort_unstable();
        backends.dedup_by_key(|b| (b.address, b.port));
        at_most("backends of one Service port", MAX_BACKENDS, backends.len())?;
        let maglev = maglev::build(&backends);
        let mut tags: Vec<(u32, u16)> = backends.iter().map(|b| tag_of(b.address)).zip(0..).collect();
        tags.sort_unstable();
        Ok(BackendSet { backends, maglev, tags })
    }

    /// The backend at the address with this tag; where it has several ports, the hash chooses. `None` if the address has
    /// left the set.
    pub fn tagged(&self, tag: u32, hash: u64) -> Option<&Backend> {
        let from = self.tags.partition_point(|(t, _)| *t < tag);
        let ports = self.tags.get(from..)?.iter().take_while(|(t, _)| *t == tag).count();
        let at = from + usize::try_from(hash.checked_rem(ports as u64)?).ok()?;
        self.backends.get(usize::from(self.tags.get(at)?.1))
    }

    /// The backend for a hash; `None` if there are none.
    #[inline]
    pub fn choose(&self, hash: u64) -> Option<&Backend> {
        if self.maglev.is_empty() {
            return None;
        }
        // Multiply-shift keeps the spread of the hash's high bits, whatever the table's size.
        let at = ((u128::from(hash) * self.maglev.len() as u128) >> 64) as usize;
        self.backends.get(usize::from(*self.maglev.get(at)?))
    }
}

/// What stands for a backend's address where a client's choice is remembered: all ports of one pod have one.
pub fn tag_of(address: Address) -> u32 {
    let bits = address.bits();
    (mix((bits >> 64) as u64 ^ mix(bits as u64)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(n: u8) -> Backend {
        Backend { address: Address::v4([10, 244, 1, n]), port: 80, local: false }
    }

    #[test]
    fn a_set_is_the_same_whatever_order_and_however_often_a_backend_is_named() {
        let a = BackendSet::new(vec![backend(3), backend(1), backend(2), backend(1)]).unwrap();
        let b = BackendSet::new(vec![backend(1), backend(2), backend(3)]).unwrap();
        assert_eq!(a, b);
        assert_eq!(a.backends.len(), 3);
    }

    #[test]
    fn an_empty_set_chooses_nobody() {
        assert_eq!(BackendSet::new(vec![]).unwrap().choose(u64::MAX), None);
    }

    #[test]
    fn a_tag_finds_its_address_whatever_the_set_and_chooses_among_its_ports_by_hash() {
        let two_ports = Backend { port: 81, ..backend(3) };
        let set = BackendSet::new((1..=7).map(backend).chain([two_ports]).collect()).unwrap();
        let small = BackendSet::new(vec![backend(2), backend(3)]).unwrap();
        for n in [2, 3] {
            let tag = tag_of(backend(n).address);
            assert_eq!(small.tagged(tag, 5), Some(&backend(n)));
            assert_eq!(set.tagged(tag, 4).map(|b| b.address), Some(backend(n).address));
        }
        let ports: Vec<_> = (0..2).map(|hash| set.tagged(tag_of(backend(3).address), hash).unwrap().port).collect();
        assert_eq!(ports, [80, 81]);
        assert_eq!(small.tagged(tag_of(backend(1).address), 0), None, "it is not in the set any more");
        assert_eq!(BackendSet::default().tagged(0, 0), None);
    }

    #[test]
    fn the_ends_of_the_hash_range_choose_the_ends_of_the_table() {
        let set = BackendSet::new((1..=7).map(backend).collect()).unwrap();
        let at = |slot: usize| &set.backends[usize::from(set.maglev[slot])];
        assert_eq!(set.choose(0), Some(at(0)));
        assert_eq!(set.choose(u64::MAX), Some(at(set.maglev.len() - 1)));
    }

    #[test]
    fn too_many_backends_are_an_error_and_no_wrapped_index() {
        let many = (0..=MAX_BACKENDS as u32).map(|n| Backend { address: Address::v4(n.to_be_bytes()), ..backend(0) });
        let error = BackendSet::new(many.collect()).unwrap_err();
        assert!(matches!(error, TableError::TooMany { got: 65_522, .. }));
    }

    #[test]
    fn node_ports_are_spread_over_shards_by_their_port() {
        let shard = |port| shard_of(&FrontendKey { address: Address::v4([0; 4]), protocol: 6, port });
        let used: std::collections::BTreeSet<_> = (30_000..30_256).map(shard).collect();
        assert!(used.len() > 100 && used.iter().all(|s| *s < SHARDS));
    }
}
