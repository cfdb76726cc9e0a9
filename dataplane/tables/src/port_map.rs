//! Folds the rules of all policy tiers that match one identity into one [`PortMap`].
//!
//! Owner: the control thread. Source: networking.k8s.io/v1 `NetworkPolicy`, policy.networking.k8s.io
//! `ClusterNetworkPolicy`. Order of evaluation: Admin rules, first match decides (`Pass` skips the rest of the tier);
//! then, where a namespaced policy isolates the pod, any namespaced rule that matches allows, else the packet is denied;
//! where none does, Baseline rules, first match decides; what nothing decides is allowed.
//! Audited rules never deny: what they alone would have denied passes and is marked.
//! Cost: (ports named in rules) × (rules).

use crate::policy::{Decision, PortIntervals, PortMap, RuleId};

/// A protocol whose destination port rules can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Transport {
    /// All three.
    pub const ALL: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::Sctp];
}

/// What of a packet's protocol and destination port a rule asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatcher {
    /// Every protocol and port; the only one that matches ICMP and other protocols without ports.
    Any,
    /// Ports of a protocol, both ends included.
    Range(Transport, u16, u16),
}

impl PortMatcher {
    /// Whether a packet matches; `None` stands for a protocol without ports.
    pub fn matches(&self, packet: Option<(Transport, u16)>) -> bool {
        match (self, packet) {
            (PortMatcher::Any, _) => true,
            (PortMatcher::Range(transport, first, last), Some((t, port))) => {
                *transport == t && (*first..=*last).contains(&port)
            }
            (PortMatcher::Range(..), None) => false,
        }
    }
}

/// Where a rule stands in the order of evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Cluster-wide, before namespaced policies.
    Admin,
    /// NetworkPolicy: rules add up.
    Namespaced,
    /// Cluster-wide, for pods that no namespaced policy isolates.
    Baseline,
}

/// What a matching rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The packet passes, nothing else is asked.
    Accept,
    /// The packet is denied, nothing else is asked.
    Deny,
    /// The rest of the tier is skipped.
    Pass,
}

/// One rule that matches the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TierRule {
    /// Its tier.
    pub tier: Tier,
    /// Protocol and ports.
    pub ports: PortMatcher,
    /// What it does.
    pub action: Action,
    /// What verdicts name.
    pub rule: RuleId,
    /// Recorded, not enforced: see the module.
    pub audit: bool,
}

/// Whether namespaced policies select the pod in this direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// None does.
    #[default]
    Open,
    /// At least one enforced policy does.
    Enforced,
    /// Only audited ones do; the rule stands for the first of them.
    Audited(RuleId),
}

/// Collects rules, in the order of evaluation within each tier, and folds them.
#[derive(Clone, Debug, Default)]
pub struct PortMapBuilder {
    isolation: Isolation,
    rules: Vec<TierRule>,
}

impl PortMapBuilder {
    /// No rules yet.
    pub fn new(isolation: Isolation) -> Self {
        PortMapBuilder { isolation, rules: Vec::new() }
    }

    /// Adds the next rule of its tier: for cluster-wide tiers in the order of priority, for namespaced ones in the
    /// order of names (the first that allows is the one that is named).
    pub fn push(&mut self, rule: TierRule) {
        self.rules.push(rule);
    }

    /// The decision for one packet; `None` stands for a protocol without ports.
    pub fn decide(&self, packet: Option<(Transport, u16)>) -> Decision {
        self.decide_by(packet).0
    }

    /// The decision and the position of the rule that gave it; none where isolation or nothing did.
    fn decide_by(&self, packet: Option<(Transport, u16)>) -> (Decision, Option<usize>) {
        let mut audited: Option<RuleId> = None;
        let allow = |rule: RuleId, audited: Option<RuleId>| match audited {
            Some(rule) => Decision { allow: true, audit: true, rule },
            None => Decision { allow: true, audit: false, rule },
        };
        let matching =
            |tier: Tier| self.rules.iter().enumerate().filter(move |(_, r)| r.tier == tier && r.ports.matches(packet));
        for (at, rule) in matching(Tier::Admin) {
            match rule.action {
                Action::Accept => return (allow(rule.rule, audited), Some(at)),
                Action::Pass => break,
                Action::Deny if rule.audit => audited = audited.or(Some(rule.rule)),
                Action::Deny => return (Decision { allow: false, audit: false, rule: rule.rule }, Some(at)),
            }
        }
        if self.isolation != Isolation::Open {
            if let Some((at, rule)) = matching(Tier::Namespaced).find(|(_, r)| r.action == Action::Accept) {
                return (allow(rule.rule, audited), Some(at));
            }
            match self.isolation {
                Isolation::Audited(rule) => audited = audited.or(Some(rule)),
                _ => return (Decision::ISOLATED, None),
            }
        }
        for (at, rule) in matching(Tier::Baseline) {
            match rule.action {
                Action::Accept => return (allow(rule.rule, audited), Some(at)),
                Action::Pass => break,
                Action::Deny if rule.audit => audited = audited.or(Some(rule.rule)),
                Action::Deny => return (Decision { allow: false, audit: false, rule: rule.rule }, Some(at)),
            }
        }
        (allow(RuleId::NONE, audited), None)
    }

    /// Folds the rules as [`build`](Self::build) does, and keeps what some of them decide (by position, in the order of
    /// [`push`](Self::push)): all else is [`Decision::OTHER`].
    pub fn build_of(&self, kept: impl Fn(usize) -> bool) -> PortMap {
        self.fold(|packet| match self.decide_by(packet) {
            (decision, Some(at)) if kept(at) => decision,
            _ => Decision::OTHER,
        })
    }

    /// Folds the rules into disjoint intervals that cover every port of every protocol.
    pub fn build(&self) -> PortMap {
        self.fold(|packet| self.decide(packet))
    }

    fn fold(&self, decide: impl Fn(Option<(Transport, u16)>) -> Decision) -> PortMap {
        let intervals = |transport| -> PortIntervals {
            // A decision can only change where some rule's range begins or has just ended.
            let mut edges = vec![0u16];
            for rule in &self.rules {
                if let PortMatcher::Range(t, first, last) = rule.ports
                    && t == transport
                {
                    edges.push(first);
                    edges.extend(last.checked_add(1));
                }
            }
            edges.sort_unstable();
            edges.dedup();
            let mut out = PortIntervals::new();
            for port in edges {
                let decision = decide(Some((transport, port)));
                if out.last().is_none_or(|(_, before)| *before != decision) {
                    out.push((port, decision));
                }
            }
            out
        };
        PortMap {
            tcp: intervals(Transport::Tcp),
            udp: intervals(Transport::Udp),
            sctp: intervals(Transport::Sctp),
            other: decide(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(tier: Tier, ports: PortMatcher, action: Action, rule: u32) -> TierRule {
        TierRule { tier, ports, action, rule: RuleId(rule), audit: false }
    }

    fn map(isolation: Isolation, rules: &[TierRule]) -> PortMap {
        let mut builder = PortMapBuilder::new(isolation);
        rules.iter().for_each(|r| builder.push(*r));
        builder.build()
    }

    const DENIED: Decision = Decision { allow: false, audit: false, rule: RuleId::ISOLATION };

    #[test]
    fn both_ends_of_a_range_are_allowed_and_one_past_each_is_not() {
        let range = PortMatcher::Range(Transport::Tcp, 8000, 8010);
        let map = map(Isolation::Enforced, &[rule(Tier::Namespaced, range, Action::Accept, 2)]);
        let allowed = Decision { allow: true, audit: false, rule: RuleId(2) };
        assert_eq!(map.tcp, vec![(0, DENIED), (8000, allowed), (8011, DENIED)]);
        assert_eq!((map.udp, map.other), (vec![(0, DENIED)], DENIED), "never read as another protocol");
    }

    #[test]
    fn a_range_up_to_the_last_port_does_not_wrap() {
        let range = PortMatcher::Range(Transport::Udp, 65_535, 65_535);
        let map = map(Isolation::Enforced, &[rule(Tier::Namespaced, range, Action::Accept, 2)]);
        assert_eq!(map.udp.len(), 2);
        assert_eq!(map.udp[1].0, 65_535);
    }

    #[test]
    fn an_admin_deny_wins_over_a_namespaced_allow_and_pass_hands_down() {
        let http = PortMatcher::Range(Transport::Tcp, 80, 80);
        let rules = [
            rule(Tier::Admin, http, Action::Pass, 2),
            rule(Tier::Admin, PortMatcher::Any, Action::Deny, 3),
            rule(Tier::Namespaced, PortMatcher::Any, Action::Accept, 4),
        ];
        let map = map(Isolation::Enforced, &rules);
        let named: Vec<_> = map.tcp.iter().map(|(from, d)| (*from, d.allow, d.rule.0)).collect();
        assert_eq!(named, [(0, false, 3), (80, true, 4), (81, false, 3)]);
    }

    #[test]
    fn baseline_speaks_only_where_no_namespaced_policy_isolates() {
        let rules = [rule(Tier::Baseline, PortMatcher::Any, Action::Deny, 9)];
        assert_eq!(map(Isolation::Open, &rules).other.rule, RuleId(9));
        assert_eq!(map(Isolation::Enforced, &rules).other, DENIED);
        let passed = [rule(Tier::Baseline, PortMatcher::Any, Action::Pass, 8), rules[0]];
        assert_eq!(map(Isolation::Open, &passed).other, Decision::UNSELECTED);
    }

    #[test]
    fn what_an_audited_policy_alone_denies_passes_and_is_marked() {
        let audited = Decision { allow: true, audit: true, rule: RuleId(5) };
        assert_eq!(map(Isolation::Audited(RuleId(5)), &[]).other, audited);
        let deny = TierRule { audit: true, ..rule(Tier::Admin, PortMatcher::Any, Action::Deny, 5) };
        assert_eq!(map(Isolation::Open, &[deny]).other, audited);
        assert_eq!(map(Isolation::Enforced, &[deny]).other, DENIED, "an enforced policy still denies");
        let accept = rule(Tier::Namespaced, PortMatcher::Any, Action::Accept, 6);
        assert!(
            !map(Isolation::Audited(RuleId(5)), &[accept]).other.audit,
            "an audited policy's own allow is no audit"
        );
    }

    #[test]
    fn what_one_rule_decides_is_kept_apart_from_what_others_do() {
        let web = PortMatcher::Range(Transport::Tcp, 80, 81);
        let rules = [
            rule(Tier::Admin, PortMatcher::Range(Transport::Tcp, 81, 81), Action::Deny, 5),
            rule(Tier::Admin, web, Action::Accept, 6),
            rule(Tier::Admin, PortMatcher::Any, Action::Deny, 7),
        ];
        let mut builder = PortMapBuilder::new(Isolation::Open);
        rules.iter().for_each(|r| builder.push(*r));
        let map = builder.build_of(|at| at == 1);
        let kept: Vec<_> = map.tcp.iter().map(|(from, d)| (*from, d.allow, d.rule)).collect();
        assert_eq!(kept, [(0, false, RuleId::OTHER), (80, true, RuleId(6)), (81, false, RuleId::OTHER)]);
        assert_eq!(map.other, Decision::OTHER);
    }

    fn any_rule() -> impl Strategy<Value = TierRule> {
        let port = prop_oneof![0..6u16, 65_530..=65_535u16];
        let transport = prop::sample::select(Transport::ALL.to_vec());
        let range = (transport, port.clone(), port).prop_map(|(t, a, b)| PortMatcher::Range(t, a.min(b), a.max(b)));
        let matcher = prop_oneof![1 => Just(PortMatcher::Any), 4 => range];
        let tier = prop::sample::select(vec![Tier::Admin, Tier::Namespaced, Tier::Baseline]);
        let action = prop::sample::select(vec![Action::Accept, Action::Deny, Action::Pass]);
        (tier, matcher, action, 2..20u32, any::<bool>()).prop_map(|(tier, ports, action, rule, audit)| TierRule {
            tier,
            ports,
            action,
            rule: RuleId(rule),
            audit,
        })
    }

    proptest! {
        #[test]
        fn the_intervals_agree_with_asking_every_rule(
            rules in prop::collection::vec(any_rule(), 0..12),
            isolation in prop::sample::select(vec![
                Isolation::Open, Isolation::Enforced, Isolation::Audited(RuleId(2)),
            ]),
        ) {
            let mut builder = PortMapBuilder::new(isolation);
            rules.iter().for_each(|r| builder.push(*r));
            let map = builder.build();
            for (transport, intervals) in Transport::ALL.into_iter().zip([&map.tcp, &map.udp, &map.sctp]) {
                prop_assert_eq!(intervals[0].0, 0);
                prop_assert!(intervals.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 != w[1].1));
                for port in (0..8u16).chain(65_528..=65_535) {
                    let at = intervals.iter().rev().find(|(from, _)| *from <= port).unwrap();
                    prop_assert_eq!(at.1, builder.decide(Some((transport, port))), "{:?} {}", transport, port);
                }
            }
            prop_assert_eq!(map.other, builder.decide(None));
        }
    }
}
