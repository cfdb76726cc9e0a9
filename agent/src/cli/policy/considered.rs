//! The rules that a verdict weighed, read from the objects: which ones, in what order, and what in them matched.
//!
//! This walks the policies as their API describes it, rule after rule; the compiled tables fold them beforehand. The two
//! agree (a property test holds them to it), so that what is listed here explains what the tables decide.
//! Source: networking.k8s.io/v1 `NetworkPolicy`, policy.networking.k8s.io/v1alpha2 `ClusterNetworkPolicy`.

use super::Proto;
use super::names::is_of_node;
use serde::Serialize;
use sluice_ctrl::model::{
    Cluster, ClusterNetworkPolicy, ClusterPeer, Family, IpBlock, Labels, NamespaceScope, NetworkPolicy, Peer, Pod,
    PolicyRule, PortMatch, RuleAction, Tier,
};
use sluice_tables::Direction;
use std::net::IpAddr;

/// One rule that was weighed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Considered {
    /// `NetworkPolicy/ns/name` or `ClusterNetworkPolicy/name#RULE`, as verdicts name it.
    pub rule: String,
    /// Its place in the object, as `spec.ingress[0]`; none for a policy without rules, which only isolates.
    pub at: Option<String>,
    /// `Admin`, `Namespaced` or `Baseline`.
    pub tier: &'static str,
    /// `Accept`, `Deny`, `Pass` or `Isolate`.
    pub action: &'static str,
    /// Whether the peer is one it speaks of.
    pub peer: bool,
    /// Whether the protocol and port are.
    pub port: bool,
    /// Whether both are, and no rule before it has decided.
    pub decides: bool,
}

/// The rules of one side, and what they come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Rules in the order of evaluation.
    pub rules: Vec<Considered>,
    /// The verdict.
    pub allow: bool,
    /// What decided; none where no policy selects the pod.
    pub decided_by: Option<String>,
}

/// What a rule is asked about: the pod it is for, and the other end.
pub struct Question<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// The pod whose rules are read.
    pub pod: &'a Pod,
    /// The other end's address.
    pub peer: IpAddr,
    /// The pod that has this address, if one has.
    pub peer_pod: Option<&'a Pod>,
    /// Protocol.
    pub proto: Proto,
    /// Destination port, after Service translation; 0 for ICMP.
    pub port: u16,
}

impl Question<'_> {
    /// Walks the rules of a direction.
    pub fn walk(&self, direction: Direction) -> Walk {
        let mut walk = Walk { rules: Vec::new(), allow: true, decided_by: None };
        let mut decided = self.tier(Tier::Admin, direction, &mut walk);
        let selecting: Vec<_> =
            self.cluster.network_policies.values().filter(|policy| self.selected_by(policy)).collect();
        let mut isolated = false;
        for policy in selecting {
            let Some(rules) = rules_of(policy, direction) else { continue };
            isolated = true;
            decided |= self.namespaced(policy, rules, direction, decided, &mut walk);
        }
        if isolated && !decided {
            (walk.allow, walk.decided_by) = (false, Some("isolation".to_owned()));
            decided = true;
        }
        if !decided {
            self.tier(Tier::Baseline, direction, &mut walk);
        } else {
            self.tier_unheard(Tier::Baseline, direction, &mut walk);
        }
        walk
    }

    fn selected_by(&self, policy: &NetworkPolicy) -> bool {
        policy.name.namespace == self.pod.name.namespace && policy.pods.matches(&self.pod.labels)
    }

    /// One NetworkPolicy; true where it allows.
    fn namespaced(
        &self,
        policy: &NetworkPolicy,
        rules: &[PolicyRule],
        direction: Direction,
        decided: bool,
        walk: &mut Walk,
    ) -> bool {
        let name = format!("NetworkPolicy/{}", policy.name);
        let mut allowed = false;
        let entry = |at, action, peer, port, decides| Considered {
            rule: name.clone(),
            at,
            tier: "Namespaced",
            action,
            peer,
            port,
            decides,
        };
        if rules.is_empty() {
            walk.rules.push(entry(None, "Isolate", false, false, false));
        }
        for (index, rule) in rules.iter().enumerate() {
            let peer = rule.peers.as_ref().is_none_or(|peers| peers.iter().any(|peer| self.is_peer(peer)));
            let port = self.is_port(rule.ports.as_deref(), direction);
            let decides = peer && port && !decided && !allowed;
            if decides {
                (walk.allow, walk.decided_by) = (true, Some(name.clone()));
                allowed = true;
            }
            let at = Some(format!("spec.{}[{index}]", word(direction)));
            walk.rules.push(entry(at, "Accept", peer, port, decides));
        }
        allowed
    }

    /// The cluster-wide policies of a tier; true where one decides.
    fn tier(&self, tier: Tier, direction: Direction, walk: &mut Walk) -> bool {
        self.cluster_wide(tier, direction, false, walk)
    }

    /// Lists a tier that is not asked any more.
    fn tier_unheard(&self, tier: Tier, direction: Direction, walk: &mut Walk) {
        self.cluster_wide(tier, direction, true, walk);
    }

    fn cluster_wide(&self, tier: Tier, direction: Direction, mut closed: bool, walk: &mut Walk) -> bool {
        let mut policies: Vec<&ClusterNetworkPolicy> =
            self.cluster.cluster_network_policies.values().map(AsRef::as_ref).collect();
        policies.retain(|policy| policy.tier == tier && self.is_subject(policy));
        policies.sort_by_key(|policy| (policy.priority, &policy.name));
        let mut decided = false;
        for policy in policies {
            let rules = if direction == Direction::Ingress { &policy.ingress } else { &policy.egress };
            for (index, rule) in rules.iter().enumerate() {
                let place = format!("{}[{index}]", word(direction));
                let name = format!("ClusterNetworkPolicy/{}#{}", policy.name, rule.name.as_ref().unwrap_or(&place));
                let peer = rule.peers.as_ref().is_none_or(|peers| peers.iter().any(|peer| self.is_cluster_peer(peer)));
                let port = self.is_port(rule.ports.as_deref(), direction);
                let decides = peer && port && !closed;
                let (action, verdict) = match rule.action {
                    RuleAction::Accept => ("Accept", Some(true)),
                    RuleAction::Deny => ("Deny", Some(false)),
                    RuleAction::Pass => ("Pass", None),
                };
                if decides {
                    closed = true;
                    if let Some(allow) = verdict {
                        (walk.allow, walk.decided_by) = (allow, Some(name.clone()));
                        decided = true;
                    }
                }
                let tier = if tier == Tier::Admin { "Admin" } else { "Baseline" };
                walk.rules.push(Considered {
                    rule: name,
                    at: Some(format!("spec.{place}")),
                    tier,
                    action,
                    peer,
                    port,
                    decides,
                });
            }
        }
        decided
    }

    fn is_subject(&self, policy: &ClusterNetworkPolicy) -> bool {
        policy.subject.namespaces.matches(self.labels_of(&self.pod.name.namespace))
            && policy.subject.pods.matches(&self.pod.labels)
    }

    fn labels_of(&self, namespace: &str) -> &Labels {
        const NONE: &Labels = &Labels::new();
        self.cluster.namespace_labels(namespace).unwrap_or(NONE)
    }

    fn is_peer(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Block(block) => in_block(block, self.peer),
            Peer::Pods { namespaces, pods } => self.peer_pod.is_some_and(|pod| {
                let namespace = match namespaces {
                    NamespaceScope::Own => pod.name.namespace == self.pod.name.namespace,
                    NamespaceScope::Selected(selector) => selector.matches(self.labels_of(&pod.name.namespace)),
                };
                namespace && pods.matches(&pod.labels)
            }),
        }
    }

    fn is_cluster_peer(&self, peer: &ClusterPeer) -> bool {
        match peer {
            ClusterPeer::Pods { namespaces, pods } => self.peer_pod.is_some_and(|pod| {
                namespaces.matches(self.labels_of(&pod.name.namespace)) && pods.matches(&pod.labels)
            }),
            ClusterPeer::Networks(nets) => nets.iter().any(|net| net.contains(&self.peer)),
            ClusterPeer::Nodes(selector) => self.cluster.nodes.values().any(|node| {
                let own = is_of_node(node, self.peer) || node.external_ips.contains(&self.peer);
                own && selector.matches(&node.labels)
            }),
        }
    }

    fn is_port(&self, ports: Option<&[PortMatch]>, direction: Direction) -> bool {
        let Some(ports) = ports else { return true };
        let Some(protocol) = self.proto.transport() else { return false };
        // A name is looked up on the destination: the pod itself for ingress, the peer for egress.
        let named = if direction == Direction::Ingress { Some(self.pod) } else { self.peer_pod };
        ports.iter().any(|port| match port {
            PortMatch::Protocol(p) => *p == protocol,
            PortMatch::Range(p, range) => *p == protocol && range.contains(self.port),
            PortMatch::Named(p, name) => {
                p.is_none_or(|p| p == protocol)
                    && named.is_some_and(|pod| {
                        let mut all = pod.ports.iter();
                        all.any(|c| c.protocol == protocol && c.port == self.port && c.name.as_ref() == Some(name))
                    })
            }
        })
    }
}

fn in_block(block: &IpBlock, address: IpAddr) -> bool {
    block.cidr.contains(&address)
        && Family::of_net(&block.cidr) == Family::of(&address)
        && !block.except.iter().any(|hole| hole.contains(&address))
}

fn rules_of(policy: &NetworkPolicy, direction: Direction) -> Option<&[PolicyRule]> {
    let (rules, closed) = match direction {
        Direction::Ingress => (&policy.ingress, policy.fail_closed.ingress),
        Direction::Egress => (&policy.egress, policy.fail_closed.egress),
    };
    // What was not understood isolates and allows nothing.
    if closed { Some(&[]) } else { rules.as_deref() }
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}
