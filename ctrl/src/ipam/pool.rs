//! Networks that addresses are given from.
//!
//! Owner: the control thread. Invariant: offsets 0 (the network) and 1 (the node's overlay address) and the IPv4
//! broadcast address are outside what a pool gives.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::Family;

/// How full a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The pool's name.
    pub pool: String,
    /// The pool's network.
    pub net: IpNet,
    /// How many addresses it can give.
    pub size: u128,
    /// How many of them pods have.
    pub in_use: usize,
}

/// A network addresses are given from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The name in messages and metrics: `node` for podCIDRs, an IPPool's name else.
    pub name: String,
    /// The network.
    pub net: IpNet,
}

impl Pool {
    /// The last address that may be given, as an offset; the first is 2.
    pub(super) fn last_offset(&self) -> u128 {
        let host_bits = u32::from(self.net.max_prefix_len() - self.net.prefix_len());
        let all = 1u128.checked_shl(host_bits).map_or(u128::MAX, |n| n - 1);
        // IPv6 has no broadcast address.
        if Family::of_net(&self.net) == Family::V4 { all.saturating_sub(1) } else { all }
    }

    /// How many addresses may be given.
    pub fn size(&self) -> u128 {
        self.last_offset().saturating_sub(1)
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
    pod_cidrs.iter().map(|net| Pool { name: "node".to_owned(), net: net.trunc() }).collect()
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
}
