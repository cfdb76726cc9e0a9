//! Policies as rules in the order of evaluation, first with their peers spelled out, then numbered.
//!
//! Owner: the control thread. Source: networking.k8s.io/v1 `NetworkPolicy`, policy.networking.k8s.io/v1alpha2
//! `ClusterNetworkPolicy`. Named ports: those of ingress rules are looked up on the pod the rules are for, those of
//! egress rules on the peer, so that they match nothing where the peer is no pod.

use std::collections::BTreeSet;
use std::sync::Arc;

use sluice_tables::{Action, DomainId, PortMatcher, Tier, Transport};

use super::matchers::{Matcher, MatcherId, Matchers, PortName};
use crate::model::{
    self, ClusterNetworkPolicy, ClusterPeer, ClusterRule, ContainerPort, NetworkPolicy, PolicyRule, PortMatch,
    Protocol, RuleAction,
};

/// Direction of a rule, as an index into pairs.
pub(crate) use sluice_tables::Direction;

/// One rule as the policy says it.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub action: Action,
    pub name: Arc<str>,
    pub peers: Option<Vec<Matcher>>,
    /// Peers by domain name, besides `peers`.
    pub domains: Vec<String>,
    pub ports: Option<Vec<PortMatch>>,
}

/// One policy, ready to be applied to pods it selects.
#[derive(Clone, Debug)]
pub(crate) struct Drafted {
    pub tier: Tier,
    pub audit: bool,
    /// What verdicts and audit records name.
    pub name: Arc<str>,
    /// None where the policy does not speak of the direction.
    pub ingress: Option<Vec<Draft>>,
    pub egress: Option<Vec<Draft>>,
}

impl Drafted {
    pub fn rules(&self, direction: Direction) -> Option<&Vec<Draft>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }

    pub fn of(policy: &NetworkPolicy) -> Drafted {
        let name: Arc<str> = format!("NetworkPolicy/{}", policy.name).into();
        let own = &policy.name.namespace;
        let draft = |rule: &PolicyRule| Draft {
            action: Action::Accept,
            name: name.clone(),
            peers: rule.peers.as_ref().map(|peers| peers.iter().map(|p| Matcher::of_peer(p, own)).collect()),
            domains: Vec::new(),
            ports: rule.ports.clone(),
        };
        // What was not understood isolates and allows nothing, whatever is left of the rules.
        let direction = |rules: &Option<Vec<PolicyRule>>, closed: bool| match rules {
            _ if closed => Some(Vec::new()),
            rules => rules.as_ref().map(|rules| rules.iter().map(draft).collect()),
        };
        let ingress = direction(&policy.ingress, policy.fail_closed.ingress);
        let egress = direction(&policy.egress, policy.fail_closed.egress);
        Drafted { tier: Tier::Namespaced, audit: policy.audit, ingress, egress, name }
    }

    pub fn of_cluster(policy: &ClusterNetworkPolicy) -> Drafted {
        let tier = match policy.tier {
            model::Tier::Admin => Tier::Admin,
            model::Tier::Baseline => Tier::Baseline,
        };
        let draft = |at: usize, rule: &ClusterRule, direction: &str| Draft {
            action: match rule.action {
                RuleAction::Accept => Action::Accept,
                RuleAction::Deny => Action::Deny,
                RuleAction::Pass => Action::Pass,
            },
            name: match &rule.name {
                Some(name) => format!("ClusterNetworkPolicy/{}#{name}", policy.name).into(),
                None => format!("ClusterNetworkPolicy/{}#{direction}[{at}]", policy.name).into(),
            },
            peers: rule.peers.as_ref().map(|peers| peers.iter().flat_map(Matcher::of_cluster_peer).collect()),
            domains: rule.peers.iter().flatten().filter_map(domains).flatten().cloned().collect(),
            ports: rule.ports.clone(),
        };
        let direction = |rules: &[ClusterRule], word: &str| {
            let drafts: Vec<Draft> = rules.iter().enumerate().map(|(at, rule)| draft(at, rule, word)).collect();
            (!drafts.is_empty()).then_some(drafts)
        };
        let name = format!("ClusterNetworkPolicy/{}", policy.name).into();
        let ingress = direction(&policy.ingress, "ingress");
        let egress = direction(&policy.egress, "egress");
        Drafted { tier, audit: policy.audit, ingress, egress, name }
    }
}

fn domains(peer: &ClusterPeer) -> Option<&Vec<String>> {
    match peer {
        ClusterPeer::Domains(names) => Some(names),
        _ => None,
    }
}

/// Collects the distinct questions of all policies in use.
pub(crate) fn matchers<'a>(policies: impl IntoIterator<Item = &'a Drafted>) -> Matchers {
    let (mut matchers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for policy in policies {
        for draft in policy.ingress.iter().chain(&policy.egress).flatten() {
            matchers.extend(draft.peers.iter().flatten().cloned());
        }
        for draft in policy.egress.iter().flatten() {
            names.extend(draft.ports.iter().flatten().filter_map(port_name));
        }
    }
    Matchers::new(matchers, names)
}

fn port_name(port: &PortMatch) -> Option<PortName> {
    match port {
        PortMatch::Named(protocol, name) => Some((*protocol, name.clone())),
        _ => None,
    }
}

/// What a rule asks of protocol and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Ports {
    /// The same for every peer and pod.
    Fixed(PortMatcher),
    /// The numbers behind a name on the pod that the rule is for.
    OfPod(PortName),
    /// The numbers behind a name, an index into [`Matchers::names`], on the peer.
    OfPeer(usize),
}

/// One rule with its peers as numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub tier: Tier,
    pub action: Action,
    pub audit: bool,
    pub name: Arc<str>,
    /// None matches everybody.
    pub peers: Option<Vec<MatcherId>>,
    pub domains: Vec<DomainId>,
    /// Any of these; empty matches nothing.
    pub ports: Vec<Ports>,
}

impl Rule {
    /// Numbers a rule.
    pub fn number(policy: &Drafted, draft: &Draft, direction: Direction, all: &Matchers) -> Rule {
        let peers = draft.peers.as_ref().map(|peers| {
            let mut ids: Vec<MatcherId> = peers.iter().filter_map(|m| all.number(m)).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        });
        let mut domains: Vec<DomainId> = draft.domains.iter().map(|name| DomainId::of(name)).collect();
        domains.sort_unstable();
        domains.dedup();
        let mut ports = Vec::new();
        match &draft.ports {
            None => ports.push(Ports::Fixed(PortMatcher::Any)),
            Some(list) => list.iter().for_each(|port| match (port, direction) {
                (PortMatch::Protocol(p), _) => ports.push(fixed(*p, 0, u16::MAX)),
                (PortMatch::Range(p, range), _) => ports.push(fixed(*p, range.first(), range.last())),
                (PortMatch::Named(protocol, name), Direction::Ingress) => {
                    ports.push(Ports::OfPod((*protocol, name.clone())));
                }
                (PortMatch::Named(protocol, name), Direction::Egress) => {
                    let asked = (*protocol, name.clone());
                    ports.extend(all.names.binary_search(&asked).ok().map(Ports::OfPeer));
                }
            }),
        }
        let Drafted { tier, audit, .. } = *policy;
        Rule { tier, action: draft.action, audit, name: draft.name.clone(), peers, domains, ports }
    }
}

/// The numbers a pod gives to a port name.
pub(crate) fn named<'a>(
    (protocol, name): &'a PortName,
    ports: &'a [ContainerPort],
) -> impl Iterator<Item = (Transport, u16)> + 'a {
    let same = ports.iter().filter(move |p| p.name.as_ref() == Some(name));
    same.filter(move |p| protocol.is_none_or(|wanted| wanted == p.protocol)).map(|p| (transport(p.protocol), p.port))
}

fn fixed(protocol: Protocol, first: u16, last: u16) -> Ports {
    Ports::Fixed(PortMatcher::Range(transport(protocol), first, last))
}

/// The tables' name of a protocol.
pub(crate) fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    }
}
