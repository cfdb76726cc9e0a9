//! From objects alone: which nodes may carry an address, best first.
//!
//! Source: rendezvous hashing (Thaler, Ravishankar 1998). Weight of a node for an address: [`StableHasher`], FNV-1a 64 over
//! the 16 bytes of the address (IPv4 as ::ffff:a.b.c.d) and the node's name; the highest wins, the lower name where two are
//! equal. The first place is the address's home: addresses of one owner and family are dealt out, so that no node is home
//! to two while another is home to none; everything after it is by weight alone. So a node that dies moves what it carried
//! and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::IpAddr;

use sluice_tables::Address;
use sluice_tables::stable_hash::StableHasher;

use crate::model::Family;

/// Every address that moves, with the nodes that may carry it, best first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    ranks: BTreeMap<IpAddr, Vec<String>>,
    urgent: BTreeSet<IpAddr>,
}

impl Placement {
    /// Deals the addresses of one owner out to its nodes. An address that is placed already stays as it is.
    pub fn deal(&mut self, addresses: &[IpAddr], nodes: &[&str]) {
        let mut homes: BTreeMap<(Family, &str), usize> = BTreeMap::new();
        for address in addresses {
            if self.ranks.contains_key(address) {
                continue;
            }
            let family = Family::of(address);
            let mut ranked = rank(*address, nodes);
            let load = |name: &str| homes.get(&(family, name)).copied().unwrap_or(0);
            let home = (0..ranked.len()).min_by_key(|at| (load(ranked[*at]), *at));
            if let Some(at) = home {
                let home = ranked.remove(at);
                *homes.entry((family, home)).or_default() += 1;
                ranked.insert(0, home);
            }
            self.ranks.insert(*address, ranked.into_iter().map(str::to_owned).collect());
        }
    }

    /// These addresses cannot wait for the end of a dead node's Lease where a majority says that it is dead.
    pub fn hurry(&mut self, addresses: &[IpAddr]) {
        self.urgent.extend(addresses);
    }

    /// Whether an address was said to be in a hurry.
    pub fn is_urgent(&self, address: IpAddr) -> bool {
        self.urgent.contains(&address)
    }

    /// The nodes that may carry an address, best first; empty: nobody may.
    pub fn nodes(&self, address: IpAddr) -> &[String] {
        self.ranks.get(&address).map_or(&[], Vec::as_slice)
    }

    /// Every address with its nodes.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &[String])> {
        self.ranks.iter().map(|(address, nodes)| (*address, nodes.as_slice()))
    }

    /// Whether a node may carry anything.
    pub fn names(&self, node: &str) -> bool {
        self.ranks.values().any(|nodes| nodes.iter().any(|n| n == node))
    }
}

/// Nodes by their weight for an address, highest first.
pub fn rank<'a>(address: IpAddr, nodes: &[&'a str]) -> Vec<&'a str> {
    let mut weighted: Vec<_> =
        nodes.iter().map(|node| (std::cmp::Reverse(weight(address, node.as_bytes())), *node)).collect();
    weighted.sort_unstable();
    weighted.dedup();
    weighted.into_iter().map(|(_, node)| node).collect()
}

/// The weight of a candidate for what asks.
pub fn weight(asks: IpAddr, candidate: &[u8]) -> u64 {
    let mut hasher = StableHasher::default();
    hasher.write(&Address::from(asks).0);
    hasher.write(candidate);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses(n: u8) -> Vec<IpAddr> {
        (0..n).map(|i| IpAddr::from([192, 0, 2, 50 + i])).collect()
    }

    #[test]
    fn two_addresses_of_one_gateway_are_at_home_on_two_nodes() {
        for n in 2..6u8 {
            let mut placement = Placement::default();
            placement.deal(&addresses(n), &["gw-a", "gw-b"]);
            let homes: BTreeSet<_> = placement.iter().map(|(_, nodes)| nodes[0].clone()).collect();
            assert_eq!(homes.len(), 2, "{n} addresses");
        }
    }

    #[test]
    fn the_choice_is_pinned_because_nodes_of_different_builds_must_agree() {
        let picks: Vec<_> =
            (1..=6u8).map(|n| rank(IpAddr::from([10, 244, 1, n]), &["gw-a", "gw-b", "gw-c"])[0]).collect();
        assert_eq!(picks.join(" "), "gw-a gw-a gw-c gw-c gw-a gw-c");
    }

    #[test]
    fn nobody_is_chosen_of_nobody() {
        let mut placement = Placement::default();
        placement.deal(&addresses(1), &[]);
        assert!(placement.nodes(addresses(1)[0]).is_empty() && !placement.names("gw-a"));
    }

    proptest! {
        #[test]
        fn every_node_is_ranked_once_whatever_the_order(n in 1..8u8, nodes in prop::collection::btree_set("[a-f]{1,2}", 1..6)) {
            let list: Vec<&str> = nodes.iter().map(String::as_str).collect();
            let mut turned = list.clone();
            turned.reverse();
            let (mut one, mut other) = (Placement::default(), Placement::default());
            one.deal(&addresses(n), &list);
            other.deal(&addresses(n), &turned);
            prop_assert_eq!(&one, &other);
            for (_, ranked) in one.iter() {
                prop_assert_eq!(ranked.iter().map(String::as_str).collect::<BTreeSet<_>>().len(), list.len());
            }
        }
    }
}
