//! Networks that addresses are given from.
//!
//! Owner: the control thread. Invariants: offsets 0 (the network) and 1 (the node's overlay address in a podCIDR) and the
//! IPv4 broadcast address are outside what a pool gives. A network that all nodes share is dealt out to them address by
//! address, by rendezvous hash: every node knows its own without asking anybody, and a node that comes or goes moves
//! its own share only.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice_tables::stable_hash::stable_hash;

use crate::model::{Cluster, Family};

/// Up to so many addresses a node's share is counted; beyond, it is estimated.
const COUNTED: u128 = 1 << 16;

/// How full a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The pool's name.
    pub pool: String,
    /// The pool's network.
    pub net: IpNet,
    /// How many addresses this node can give.
    pub size: u128,
    /// How many of them pods of this node have.
    pub in_use: usize,
}

/// A network addresses are given from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The name in messages and metrics: `node` for podCIDRs, an IPPool's name else.
    pub name: String,
    /// The network.
    pub net: IpNet,
    /// This node's part of it; none where all of it is the node's.
    pub share: Option<Share>,
}

/// One node's part of a network that all nodes give addresses from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Seed of this node.
    own: u64,
    /// Seeds of the other nodes.
    others: Arc<[u64]>,
}

impl Share {
    /// The part of node `name` among the cluster's nodes.
    pub fn of(cluster: &Cluster, name: &str) -> Share {
        let seed = |name: &str| stable_hash(name.as_bytes());
        Share { own: seed(name), others: cluster.nodes.keys().filter(|n| *n != name).map(|n| seed(n)).collect() }
    }

    fn nodes(&self) -> u128 {
        self.others.len() as u128 + 1
    }

    /// Whether an address is this node's to give.
    fn has(&self, address: IpAddr) -> bool {
        let address = match address {
            IpAddr::V4(a) => u64::from(u32::from(a)),
            IpAddr::V6(a) => {
                let bits = u128::from(a);
                (bits >> 64) as u64 ^ bits as u64
            }
        };
        let own = weight(self.own, address);
        self.others.iter().all(|other| (weight(*other, address), *other) < (own, self.own))
    }
}

/// A node's weight for an address (the finaliser of SplitMix64).
fn weight(seed: u64, address: u64) -> u64 {
    let mut z = seed ^ address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Pool {
    /// The last address that may be given, as an offset; the first is 2.
    pub(super) fn last_offset(&self) -> u128 {
        let host_bits = u32::from(self.net.max_prefix_len() - self.net.prefix_len());
        let all = 1u128.checked_shl(host_bits).map_or(u128::MAX, |n| n - 1);
        // IPv6 has no broadcast address.
        if Family::of_net(&self.net) == Family::V4 { all.saturating_sub(1) } else { all }
    }

    /// How many addresses lie between the first and the last one.
    pub(super) fn span(&self) -> u128 {
        self.last_offset().saturating_sub(1)
    }

    /// How many addresses this node may give; of a large shared network an estimate.
    pub fn size(&self) -> u128 {
        match &self.share {
            None => self.span(),
            Some(share) if self.span() > COUNTED => self.span() / share.nodes(),
            Some(share) => (2..=self.last_offset()).filter(|o| share.has(self.address(*o))).count() as u128,
        }
    }

    /// Offsets that must be looked at, at most, to find one of this node's that none of `taken` addresses has.
    pub(super) fn tries(&self, taken: usize) -> u128 {
        let among = taken as u128 + 1;
        match &self.share {
            // Among one more place than there are addresses taken, one is free.
            None => self.span().min(among),
            // A share is even to a few standard deviations.
            Some(share) => self.span().min(among.saturating_mul(share.nodes()).saturating_mul(16).saturating_add(4096)),
        }
    }

    /// Whether an offset is this node's to give.
    pub(super) fn gives(&self, offset: u128) -> bool {
        self.share.as_ref().is_none_or(|share| share.has(self.address(offset)))
    }

    /// Whether an address may be a pod's: in the network, and none of those that are never given.
    pub(super) fn may_be_a_pods(&self, address: &IpAddr) -> bool {
        self.offset(address).is_some_and(|offset| (2..=self.last_offset()).contains(&offset))
    }

    pub(super) fn address(&self, offset: u128) -> IpAddr {
        match self.net.network() {
            IpAddr::V4(a) => {
                IpAddr::from(u32::from(a).wrapping_add(u32::try_from(offset).unwrap_or_default()).to_be_bytes())
            }
            IpAddr::V6(a) => IpAddr::from(u128::from(a).wrapping_add(offset).to_be_bytes()),
        }
    }

    /// Where an address of the pool lies in it.
    pub(super) fn offset(&self, address: &IpAddr) -> Option<u128> {
        let number = |a: &IpAddr| match a {
            IpAddr::V4(a) => u128::from(u32::from(*a)),
            IpAddr::V6(a) => u128::from(*a),
        };
        self.net.contains(address).then(|| number(address) - number(&self.net.network()))
    }
}

/// The pools of a node's podCIDRs.
pub fn node_pools(pod_cidrs: &[IpNet]) -> Vec<Pool> {
    pod_cidrs.iter().map(|net| Pool { name: "node".to_owned(), net: net.trunc(), share: None }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_gives_all_but_the_nodes_addresses_and_the_broadcast() {
        let size = |net: &str| node_pools(&[net.parse().unwrap()])[0].size();
        assert_eq!(
            (size("10.0.0.0/24"), size("10.0.0.0/30"), size("10.0.0.0/31"), size("10.0.0.0/32")),
            (253, 1, 0, 0)
        );
        assert_eq!((size("fd00::/64"), size("fd00::/127"), size("fd00::/128")), ((1 << 64) - 2, 0, 0));
        assert_eq!(size("::/0"), u128::MAX - 1);
    }

    #[test]
    fn offsets_and_addresses_are_each_others_inverse() {
        let pool = &node_pools(&["fd00::/64".parse().unwrap()])[0];
        let address = pool.address(1 << 40);
        assert_eq!(address.to_string(), "fd00::100:0:0");
        assert_eq!(pool.offset(&address), Some(1 << 40));
        assert_eq!(pool.offset(&"fd01::".parse().unwrap()), None);
    }

    fn shares(names: &[&str], net: &str) -> Vec<Pool> {
        let seeds: Vec<u64> = names.iter().map(|n| stable_hash(n.as_bytes())).collect();
        let share = |own: &u64| Share { own: *own, others: seeds.iter().filter(|s| *s != own).copied().collect() };
        seeds.iter().map(|own| Pool { name: "p".into(), net: net.parse().unwrap(), share: Some(share(own)) }).collect()
    }

    #[test]
    fn every_address_of_a_shared_network_is_one_nodes_to_give() {
        for net in ["10.60.0.0/24", "fd60::/120"] {
            let pools = shares(&["a", "b", "c", "d"], net);
            for offset in 2..=pools[0].last_offset() {
                assert_eq!(pools.iter().filter(|p| p.gives(offset)).count(), 1, "{net} {offset}");
            }
            let sizes: Vec<u128> = pools.iter().map(Pool::size).collect();
            assert_eq!(sizes.iter().sum::<u128>(), pools[0].span());
            assert!(sizes.iter().all(|s| (40..90).contains(s)), "{sizes:?}");
        }
    }

    #[test]
    fn a_node_that_comes_takes_its_own_share_and_moves_no_other() {
        let (before, after) = (shares(&["a", "b"], "10.60.0.0/24"), shares(&["a", "b", "c"], "10.60.0.0/24"));
        for offset in 2..=254 {
            if !after[2].gives(offset) {
                assert_eq!(before[0].gives(offset), after[0].gives(offset));
            }
        }
    }
}
