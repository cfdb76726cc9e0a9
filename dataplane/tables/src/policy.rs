//! Compiled policy: one lookup on (policy set, identity, protocol, port) gives the verdict and the rule that gave it.
//!
//! All tiers are folded at compile time: the port map of an identity holds, for each protocol, disjoint port intervals
//! with their final decision, so the packet path never walks rules.

use crate::identity::IdentityId;
use hashbrown::HashMap;
use std::sync::Arc;

/// Which side of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// Index of a rule's name in [`Policy::names`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub u32);

impl RuleId {
    /// No policy selects the pod: allowed by absence.
    pub const NONE: RuleId = RuleId(0);
    /// Selected by a policy, allowed by none.
    pub const ISOLATION: RuleId = RuleId(1);
}

/// Index of a set in [`Policy::sets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicySetId(pub u32);

/// A verdict and who gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// Whether the packet may pass.
    pub allow: bool,
    /// An audited policy alone would have denied it: pass, but record.
    pub audit: bool,
    /// The deciding rule.
    pub rule: RuleId,
}

impl Decision {
    /// Allowed because nothing selects the pod.
    pub const UNSELECTED: Decision = Decision { allow: true, audit: false, rule: RuleId::NONE };
}

/// Disjoint, sorted, covering port intervals of one protocol: each entry holds from its port up to the next entry's.
pub type PortIntervals = Vec<(u16, Decision)>;

/// Decisions of one identity, by protocol. Interval lists cover 0..=65535 and start at port 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortMap {
    /// TCP.
    pub tcp: PortIntervals,
    /// UDP.
    pub udp: PortIntervals,
    /// SCTP.
    pub sctp: PortIntervals,
    /// ICMP and every protocol without ports: only rules without ports match.
    pub other: Decision,
}

/// The rules of one direction of one pod (shared by pods with equal rules).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySet {
    /// For identities without an entry.
    pub default: u32,
    /// Identity to index in [`Policy::maps`].
    pub by_identity: HashMap<IdentityId, u32>,
}

/// Everything policy.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Sets.
    pub sets: Vec<Arc<PolicySet>>,
    /// Port maps, shared between sets.
    pub maps: Vec<Arc<PortMap>>,
    /// Rule names: `NetworkPolicy/ns/name`, `ClusterNetworkPolicy/name#RULE`; 0 is "" and 1 is `isolation`.
    pub names: Vec<Arc<str>>,
}

impl Policy {
    /// The decision for a packet of a flow. `port` is the destination port (host order), after DNAT.
    #[inline]
    pub fn decide(&self, set: Option<PolicySetId>, peer: IdentityId, protocol: u8, port: u16) -> Decision {
        let Some(set) = set else { return Decision::UNSELECTED };
        let denied = Decision { allow: false, audit: false, rule: RuleId::ISOLATION };
        let Some(set) = self.sets.get(set.0 as usize) else { return denied };
        let map = set.by_identity.get(&peer).copied().unwrap_or(set.default);
        let Some(map) = self.maps.get(map as usize) else { return denied };
        let intervals = match protocol {
            6 => &map.tcp,
            17 => &map.udp,
            132 => &map.sctp,
            _ => return map.other,
        };
        let at = intervals.partition_point(|(from, _)| *from <= port);
        intervals.get(at.wrapping_sub(1)).map_or(denied, |(_, d)| *d)
    }

    /// Memory of sets, port maps and names, in bytes.
    pub fn bytes(&self) -> usize {
        let sets = self.sets.iter().map(|set| size_of::<PolicySet>() + set.by_identity.allocation_size());
        let lists = |map: &PortMap| map.tcp.capacity() + map.udp.capacity() + map.sctp.capacity();
        let maps = self.maps.iter().map(|map| size_of::<PortMap>() + lists(map) * size_of::<(u16, Decision)>());
        let names = self.names.iter().map(|name| size_of_val(&**name));
        let pointers = size_of::<Arc<()>>() * (self.sets.capacity() + self.maps.capacity() + 2 * self.names.capacity());
        sets.chain(maps).chain(names).sum::<usize>() + pointers
    }

    /// Name of a rule; `None` for [`RuleId::NONE`].
    pub fn name(&self, rule: RuleId) -> Option<&Arc<str>> {
        if rule == RuleId::NONE { None } else { self.names.get(rule.0 as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Decision = Decision { allow: true, audit: false, rule: RuleId(2) };
    const DENIED: Decision = Decision { allow: false, audit: false, rule: RuleId::ISOLATION };

    fn policy() -> Policy {
        let closed = PortMap { tcp: vec![(0, DENIED)], udp: vec![(0, DENIED)], sctp: vec![(0, DENIED)], other: DENIED };
        let http = PortMap { tcp: vec![(0, DENIED), (80, ALLOWED), (81, DENIED)], ..closed.clone() };
        let set = PolicySet { default: 0, by_identity: [(IdentityId(7), 1)].into_iter().collect() };
        Policy {
            sets: vec![Arc::new(set)],
            maps: vec![Arc::new(closed), Arc::new(http)],
            names: vec!["".into(), "isolation".into(), "NetworkPolicy/ns/web".into()],
        }
    }

    #[test]
    fn an_interval_holds_from_its_port_up_to_the_next() {
        let (policy, set) = (policy(), Some(PolicySetId(0)));
        let tcp = |port| policy.decide(set, IdentityId(7), 6, port).allow;
        assert_eq!([0, 79, 80, 81, 65_535].map(tcp), [false, false, true, false, false]);
        assert!(!policy.decide(set, IdentityId(7), 17, 80).allow && !policy.decide(set, IdentityId(7), 1, 80).allow);
        assert_eq!(policy.decide(set, IdentityId(8), 6, 80), DENIED, "an identity without an entry");
    }

    #[test]
    fn without_a_set_everything_passes_and_an_unknown_set_denies() {
        assert_eq!(policy().decide(None, IdentityId(7), 6, 1), Decision::UNSELECTED);
        assert_eq!(policy().decide(Some(PolicySetId(9)), IdentityId(7), 6, 80), DENIED);
    }

    #[test]
    fn no_rule_has_no_name() {
        assert_eq!(policy().name(RuleId::NONE), None);
        assert_eq!(policy().name(RuleId::ISOLATION).map(|n| &**n), Some("isolation"));
        assert_eq!(policy().name(RuleId(99)), None);
    }
}
