//! Egress gateways: which pods' traffic to which destinations leaves where, under which address.

use crate::address::Address;
use crate::hops::HopId;
use crate::lpm::Lpm;
use hashbrown::{HashMap, HashSet};
use std::sync::Arc;

/// Where a selected flow leaves the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressPath {
    /// On this node.
    Here,
    /// On another node, through the overlay.
    Gateway(HopId),
    /// No node is a gateway now: the packet is dropped, never sent another way.
    Nowhere,
}

/// One EgressGateway as it applies to one pod and family.
#[derive(Clone, Debug)]
pub struct EgressRule {
    /// Object name.
    pub name: Arc<str>,
    /// Destinations it covers: `true`, with exceptions as `false`, by longest prefix. `None`: everything outside the cluster.
    pub destinations: Option<Arc<Lpm<bool>>>,
    /// Destinations excepted from it when `destinations` is `None`.
    pub excluded: Arc<Lpm<()>>,
    /// Where a new flow leaves.
    pub path: EgressPath,
    /// Where flows may leave that have begun to: tunnels to every node that carries an address of this gateway now.
    pub keep: Arc<[HopId]>,
    /// The source address it gets there.
    pub address: Address,
}

impl EgressRule {
    /// Whether a destination outside the cluster falls under this rule.
    pub fn covers(&self, destination: Address) -> bool {
        let wanted = match &self.destinations {
            None => true,
            Some(map) => map.lookup(destination).copied().unwrap_or(false),
        };
        wanted && self.excluded.lookup(destination).is_none()
    }
}

/// All egress rules that concern this node, and the egress addresses it answers for.
#[derive(Clone, Debug, Default)]
pub struct Egress {
    /// Rules by pod address, in object order; pods of this node, and pods elsewhere that leave through this node.
    pub rules: HashMap<Address, Vec<EgressRule>>,
    /// Egress addresses this node holds: its SNAT addresses besides its own.
    pub addresses: Vec<Address>,
    /// Addresses that are announced from here, egress addresses and load-balancer addresses: ARP and ND are answered for them.
    pub announced: HashSet<Address>,
}

impl Egress {
    /// The first rule of a pod that covers a destination.
    pub fn rule(&self, pod: Address, destination: Address) -> Option<&EgressRule> {
        self.rules.get(&pod)?.iter().find(|rule| rule.covers(destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Prefix;

    fn net(a: [u8; 4], len: u8) -> Prefix {
        Prefix::new(Address::v4(a), len).unwrap()
    }

    fn rule(name: &str, to: Option<&[Prefix]>, not: &[Prefix]) -> EgressRule {
        EgressRule {
            name: name.into(),
            destinations: to.map(|nets| Arc::new(Lpm::from_entries(nets.iter().map(|n| (*n, true))))),
            excluded: Arc::new(Lpm::from_entries(not.iter().map(|n| (*n, ())))),
            path: EgressPath::Here,
            keep: Arc::default(),
            address: Address::v4([192, 0, 2, 50]),
        }
    }

    #[test]
    fn an_exception_counts_with_and_without_destinations() {
        let hole = net([198, 51, 100, 7], 32);
        for to in [None, Some([net([198, 51, 100, 0], 24)].as_slice())] {
            let rule = rule("r", to, &[hole]);
            assert!(rule.covers(Address::v4([198, 51, 100, 8])));
            assert!(!rule.covers(Address::v4([198, 51, 100, 7])));
        }
    }

    #[test]
    fn the_first_rule_that_covers_is_used() {
        let pod = Address::v4([10, 244, 1, 5]);
        let rules = vec![rule("narrow", Some(&[net([198, 51, 100, 0], 24)]), &[]), rule("wide", None, &[])];
        let egress = Egress { rules: [(pod, rules)].into_iter().collect(), ..Egress::default() };
        let name = |to| egress.rule(pod, Address::v4(to)).map(|r| r.name.to_string());
        assert_eq!(name([198, 51, 100, 1]).as_deref(), Some("narrow"));
        assert_eq!(name([203, 0, 113, 1]).as_deref(), Some("wide"));
        assert!(egress.rule(Address::v4([10, 244, 1, 6]), Address::v4([203, 0, 113, 1])).is_none());
    }
}
