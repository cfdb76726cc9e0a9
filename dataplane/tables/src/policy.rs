//! Compiled policy: one lookup on (policy set, identity, protocol, port) gives the verdict and the rule that gave it.
//!
//! All tiers are folded at compile time: the port map of an identity holds, for each protocol, disjoint port intervals
//! with their final decision, so the packet path never walks rules. Peers that few identities answer to are listed in a
//! set one by one; peers that many answer to (all namespaces, 0.0.0.0/0) are asked for by membership in a table that all
//! sets share, so that memory grows with rules plus members and not with their product. Rules whose peers are domain
//! names have a set of their own, asked first where the pod has learned such an address ([`Policy::decide_learned`]).

use crate::domains::{DomainId, Domains};
use crate::identity::IdentityId;
use crate::port_maps::PortMaps;
use hashbrown::{HashMap, HashSet};
use std::sync::Arc;

/// Which side of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// A rule: a number made of its name ([`RuleNames`]), so that it means the same rule in every generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub u32);

impl RuleId {
    /// No policy selects the pod: allowed by absence.
    pub const NONE: RuleId = RuleId(0);
    /// Selected by a policy, allowed by none.
    pub const ISOLATION: RuleId = RuleId(1);
    /// Stands in a domain rule's port maps where another rule decides.
    pub const OTHER: RuleId = RuleId(2);
    /// The lowest number of a named rule.
    pub const FIRST: RuleId = RuleId(3);
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
    /// Denied because a policy selects the pod and none allows.
    pub const ISOLATED: Decision = Decision { allow: false, audit: false, rule: RuleId::ISOLATION };
    /// The domain rule that was asked does not decide.
    pub const OTHER: Decision = Decision { allow: false, audit: false, rule: RuleId::OTHER };
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

impl PortMap {
    /// The decision for a protocol and a destination port.
    #[inline]
    pub fn decide(&self, protocol: u8, port: u16) -> Decision {
        let intervals = match protocol {
            6 => &self.tcp,
            17 => &self.udp,
            132 => &self.sctp,
            _ => return self.other,
        };
        let at = intervals.partition_point(|(from, _)| *from <= port);
        intervals.get(at.wrapping_sub(1)).map_or(Decision::ISOLATED, |(_, d)| *d)
    }
}

/// Identities that many addresses or rules share, as a table to ask.
pub type Members = HashSet<IdentityId>;

/// Most [`PolicySet::broad`] peers of a set.
pub const MAX_BROAD: usize = 6;

/// The rules of one direction of one pod (shared by pods with equal rules).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    /// Port maps that this set's other fields point into.
    pub maps: PortMaps,
    /// Identity to index in `maps`, for the members of peers that few answer to.
    pub by_identity: HashMap<IdentityId, u32>,
    /// Peers that many answer to; at most [`MAX_BROAD`].
    pub broad: Vec<Arc<Members>>,
    /// For identities that are not in `by_identity`: index in `maps` by which of `broad` they are in (bit n for the nth).
    pub by_breadth: Vec<u32>,
    /// Rules for addresses behind domain names, in the order of evaluation.
    pub domains: Vec<DomainRule>,
}

/// A rule that accepts what was learned of domain names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainRule {
    /// The names, sorted.
    pub names: Vec<DomainId>,
    /// What is decided if an address belongs to them: [`Decision::OTHER`] where another rule decides.
    pub set: Arc<PolicySet>,
}

impl PolicySet {
    /// The decision for an identity; denied for what the compiler did not foresee.
    #[inline]
    fn decide(&self, peer: IdentityId, protocol: u8, port: u16) -> Decision {
        let at = match self.by_identity.get(&peer) {
            Some(at) => *at,
            None => {
                let bits =
                    self.broad.iter().enumerate().fold(0, |bits, (n, m)| bits | usize::from(m.contains(&peer)) << n);
                let Some(at) = self.by_breadth.get(bits) else { return Decision::ISOLATED };
                *at
            }
        };
        self.maps.decide(at, protocol, port)
    }

    /// Memory of the set without what it shares, in bytes.
    pub fn bytes(&self) -> usize {
        size_of::<PolicySet>()
            + self.maps.bytes()
            + self.by_identity.allocation_size()
            + (self.by_breadth.capacity() * size_of::<u32>())
            + self.domains.iter().map(|rule| rule.names.len() * size_of::<DomainId>() + rule.set.bytes()).sum::<usize>()
    }
}

/// Names of rules by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleNames {
    names: HashMap<RuleId, Arc<str>>,
    numbers: HashMap<Arc<str>, RuleId>,
}

impl Default for RuleNames {
    fn default() -> Self {
        RuleNames { names: [(RuleId::ISOLATION, "isolation".into())].into_iter().collect(), numbers: HashMap::new() }
    }
}

impl RuleNames {
    /// Numbers names by their content; two that meet in one number are told apart in the order of names.
    pub fn new(names: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut sorted: Vec<Arc<str>> = names.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        let mut out = RuleNames::default();
        for name in sorted {
            let mut number = RuleId(crate::stable_hash::stamp(&*name).max(RuleId::FIRST.0));
            while out.names.contains_key(&number) {
                number = RuleId(number.0.wrapping_add(1).max(RuleId::FIRST.0));
            }
            out.names.insert(number, name.clone());
            out.numbers.insert(name, number);
        }
        out
    }

    /// The number of a name; `isolation` for one that is not here.
    pub fn number(&self, name: &str) -> RuleId {
        self.numbers.get(name).copied().unwrap_or(RuleId::ISOLATION)
    }

    /// Every number with its name, sorted by name; not that of isolation.
    pub fn all(&self) -> Vec<(RuleId, &Arc<str>)> {
        let mut all: Vec<_> = self.numbers.iter().map(|(name, id)| (*id, name)).collect();
        all.sort_unstable_by_key(|(_, name)| *name);
        all
    }
}

/// Everything policy.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Sets.
    pub sets: Vec<Arc<PolicySet>>,
    /// Rule names: `NetworkPolicy/ns/name`, `ClusterNetworkPolicy/name#RULE`.
    pub names: Arc<RuleNames>,
    /// Domain names that rules speak of.
    pub domains: Arc<Domains>,
}

impl Policy {
    /// The decision for a packet of a flow. `port` is the destination port (host order), after DNAT.
    #[inline]
    pub fn decide(&self, set: Option<PolicySetId>, peer: IdentityId, protocol: u8, port: u16) -> Decision {
        let Some(set) = set else { return Decision::UNSELECTED };
        self.sets.get(set.0 as usize).map_or(Decision::ISOLATED, |set| set.decide(peer, protocol, port))
    }

    /// The same for a pod that may have learned addresses of domain names: `knows` says whether the packet's destination
    /// is one of these names. The flag says whether such a rule has decided.
    pub fn decide_learned(
        &self,
        set: Option<PolicySetId>,
        peer: IdentityId,
        protocol: u8,
        port: u16,
        mut knows: impl FnMut(&[DomainId]) -> bool,
    ) -> (Decision, bool) {
        // A set whose first matching domain rule decides is decided: were a later one asked, the first would still win.
        for rule in self.domain_rules(set) {
            if knows(&rule.names) {
                let decision = rule.set.decide(peer, protocol, port);
                if decision.rule != RuleId::OTHER {
                    return (decision, true);
                }
            }
        }
        (self.decide(set, peer, protocol, port), false)
    }

    /// The rules of a set that speak of domain names.
    #[inline]
    pub fn domain_rules(&self, set: Option<PolicySetId>) -> &[DomainRule] {
        set.and_then(|set| self.sets.get(set.0 as usize)).map_or(&[], |set| &set.domains)
    }

    /// Name of a rule; `None` for [`RuleId::NONE`] and for rules that are gone.
    pub fn name(&self, rule: RuleId) -> Option<&Arc<str>> {
        self.names.names.get(&rule)
    }

    /// Memory of sets with their port maps, shared members and names, in bytes.
    pub fn bytes(&self) -> usize {
        let sets: usize = self.sets.iter().map(|set| set.bytes() + size_of::<Arc<PolicySet>>()).sum();
        let mut members: Vec<_> = self.sets.iter().flat_map(|set| &set.broad).collect();
        members.sort_unstable_by_key(|m| Arc::as_ptr(m));
        members.dedup_by_key(|m| Arc::as_ptr(m));
        let members: usize = members.into_iter().map(|m| m.allocation_size()).sum();
        let text: usize = self.names.names.values().map(|name| name.len()).sum();
        sets + members + text + self.names.names.allocation_size() + self.names.numbers.allocation_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Decision = Decision { allow: true, audit: false, rule: RuleId(7) };
    const DENIED: Decision = Decision::ISOLATED;

    fn closed() -> PortMap {
        PortMap { tcp: vec![(0, DENIED)], udp: vec![(0, DENIED)], sctp: vec![(0, DENIED)], other: DENIED }
    }

    fn open(from: u16) -> PortMap {
        PortMap { tcp: vec![(0, DENIED), (from, ALLOWED), (from + 1, DENIED)], ..closed() }
    }

    fn set() -> PolicySet {
        PolicySet {
            maps: [closed(), open(80)].iter().collect(),
            by_identity: [(IdentityId(7), 1)].into_iter().collect(),
            broad: vec![],
            by_breadth: vec![0],
            domains: vec![],
        }
    }

    fn policy(set: PolicySet) -> Policy {
        let names = RuleNames::new(["NetworkPolicy/ns/web".into()]);
        Policy { sets: vec![Arc::new(set)], names: Arc::new(names), domains: Arc::default() }
    }

    const FIRST: Option<PolicySetId> = Some(PolicySetId(0));

    #[test]
    fn an_interval_holds_from_its_port_up_to_the_next() {
        let policy = policy(set());
        let tcp = |port| policy.decide(FIRST, IdentityId(7), 6, port).allow;
        assert_eq!([0, 79, 80, 81, 65_535].map(tcp), [false, false, true, false, false]);
        assert!(
            !policy.decide(FIRST, IdentityId(7), 17, 80).allow && !policy.decide(FIRST, IdentityId(7), 1, 80).allow
        );
        assert_eq!(policy.decide(FIRST, IdentityId(8), 6, 80), DENIED, "an identity without an entry");
    }

    #[test]
    fn without_a_set_everything_passes_and_an_unknown_set_denies() {
        let policy = policy(set());
        assert_eq!(policy.decide(None, IdentityId(7), 6, 1), Decision::UNSELECTED);
        assert_eq!(policy.decide(Some(PolicySetId(9)), IdentityId(7), 6, 80), DENIED);
        let hollow = Policy { sets: vec![Arc::default()], ..Policy::default() };
        assert_eq!(hollow.decide(FIRST, IdentityId(7), 6, 80), DENIED, "a set that knows nothing");
    }

    #[test]
    fn broad_peers_are_asked_where_no_identity_is_listed() {
        let members = |ids: &[u32]| Arc::new(ids.iter().map(|id| IdentityId(*id)).collect::<Members>());
        let policy = policy(PolicySet {
            maps: [closed(), open(80), open(81), open(82)].iter().collect(),
            by_identity: [(IdentityId(7), 1)].into_iter().collect(),
            broad: vec![members(&[1, 2]), members(&[2, 3])],
            by_breadth: vec![0, 1, 2, 3],
            domains: vec![],
        });
        let opened = |id| (79..84).find(|port| policy.decide(FIRST, IdentityId(id), 6, *port).allow);
        assert_eq!([1, 2, 3, 4, 7].map(opened), [Some(80), Some(82), Some(81), None, Some(80)]);
    }

    #[test]
    fn a_domain_rule_decides_where_its_names_are_known_and_its_ports_match() {
        let named = PortMap {
            tcp: vec![(0, Decision::OTHER), (443, ALLOWED), (444, Decision::OTHER)],
            udp: vec![(0, Decision::OTHER)],
            sctp: vec![(0, Decision::OTHER)],
            other: Decision::OTHER,
        };
        let own = PolicySet { maps: [named].iter().collect(), by_breadth: vec![0], ..PolicySet::default() };
        let rule = DomainRule { names: vec![DomainId(5)], set: Arc::new(own) };
        let policy = policy(PolicySet { domains: vec![rule], ..set() });
        let ask =
            |port, known| policy.decide_learned(FIRST, IdentityId(8), 6, port, |names| known && names == [DomainId(5)]);
        assert_eq!(ask(443, true), (ALLOWED, true));
        assert_eq!(ask(443, false), (DENIED, false));
        assert_eq!(ask(444, true), (DENIED, false));
    }

    #[test]
    fn a_rules_number_does_not_depend_on_other_rules() {
        let (few, many) = (RuleNames::new(["b".into()]), RuleNames::new(["a".into(), "b".into(), "c".into()]));
        assert_eq!(few.number("b"), many.number("b"));
        assert_eq!(few.number("z"), RuleId::ISOLATION);
        assert_eq!(many.all().len(), 3);
    }

    #[test]
    fn no_rule_has_no_name() {
        let policy = policy(set());
        assert_eq!(policy.name(RuleId::NONE), None);
        assert_eq!(policy.name(RuleId::ISOLATION).map(|n| &**n), Some("isolation"));
        let number = policy.names.number("NetworkPolicy/ns/web");
        assert_eq!(policy.name(number).map(|n| &**n), Some("NetworkPolicy/ns/web"));
        assert_eq!(policy.name(RuleId(99)), None);
    }
}
