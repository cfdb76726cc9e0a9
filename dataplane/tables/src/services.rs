//! Service frontends and their backends, sharded so that one Service's change rebuilds one shard.

use crate::address::Address;
use crate::lpm::Lpm;
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
}

/// How a frontend is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrontendKind {
    /// ClusterIP.
    ClusterIp,
    /// Port on the node's own addresses.
    NodePort,
    /// Load-balancer ingress address.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
}

/// One (address, protocol, port) of a Service.
#[derive(Clone, Debug)]
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
    /// sessionAffinity: ClientIP with its timeout in seconds.
    pub affinity: Option<u32>,
    /// loadBalancerSourceRanges; `None` means anybody.
    pub source_ranges: Option<Arc<Lpm<()>>>,
}

/// Number of shards of the frontend map.
pub const SHARDS: usize = 256;
/// Number of version slots; Services share one by hash, which at worst re-checks a flow once too often.
pub const VERSION_SLOTS: usize = 16_384;

/// One shard: the frontends whose address hashes here.
#[derive(Clone, Debug, Default)]
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

    /// Version of a slot.
    #[inline]
    pub fn version(&self, slot: u16) -> u32 {
        self.versions.get(usize::from(slot)).copied().unwrap_or(0)
    }
}

impl BackendSet {
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
