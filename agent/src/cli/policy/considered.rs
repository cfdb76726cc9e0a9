//! The rules that a verdict weighed, read from the objects: which ones, in what order, and what in them matched.
//!
//! This walks the policies as their API describes it, rule after rule; the compiled tables fold them beforehand. The two
//! agree (a property test holds them to it), so that what is listed here explains what the tables decide.
//! Source: networking.k8s.io/v1 `NetworkPolicy`, policy.networking.k8s.io/v1alpha2 `ClusterNetworkPolicy`.

use super::Proto;
use super::names::is_of_node;
use crate::domain_names::Known;
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
    /// Its policy is only audited: it never denies.
    pub audit: bool,
}

/// The rules of one side, and what they come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Rules in the order of evaluation.
    pub rules: Vec<Considered>,
    /// The verdict.
    pub allow: bool,
    /// What decided, or what would have denied were it not only audited; none where no policy selects the pod.
    pub decided_by: Option<String>,
    /// A policy that is only audited would have denied.
    pub audit: bool,
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
    /// The address it was sent to, before Service translation.
    pub asked: IpAddr,
    /// Addresses of domain names.
    pub domains: &'a Known,
    /// Protocol.
    pub proto: Proto,
    /// Destination port, after Service translation; 0 for ICMP.
    pub port: u16,
}

impl Question<'_> {
    /// Walks the rules of a direction.
    pub fn walk(&self, direction: Direction) -> Walk {
        let mut walk = Walk { rules: Vec::new(), allow: true, decided_by: None, audit: false };
        let mut audited = None;
        let mut decided = self.tier(Tier::Admin, direction, &mut walk, &mut audited);
        let selecting: Vec<_> =
            self.cluster.network_policies.values().filter(|policy| self.selected_by(policy)).collect();
        let (mut isolating, mut enforced) = (None, false);
        for policy in selecting {
            let Some(rules) = rules_of(policy, direction) else { continue };
            isolating.get_or_insert_with(|| format!("NetworkPolicy/{}", policy.name));
            enforced |= !policy.audit;
            decided |= self.namespaced(policy, rules, direction, decided, &mut walk);
        }
        if let Some(first) = isolating
            && !decided
        {
            if enforced {
                (walk.allow, walk.decided_by) = (false, Some("isolation".to_owned()));
                decided = true;
            } else {
                audited.get_or_insert(first);
            }
        }
        if !decided {
            self.tier(Tier::Baseline, direction, &mut walk, &mut audited);
        } else {
            self.tier_unheard(Tier::Baseline, direction, &mut walk);
        }
        if let Some(name) = audited
            && walk.allow
        {
            (walk.decided_by, walk.audit) = (Some(name), true);
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
            audit: policy.audit,
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
    fn tier(&self, tier: Tier, direction: Direction, walk: &mut Walk, audited: &mut Option<String>) -> bool {
        self.cluster_wide(tier, direction, false, walk, audited)
    }

    /// Lists a tier that is not asked any more.
    fn tier_unheard(&self, tier: Tier, direction: Direction, walk: &mut Walk) {
        self.cluster_wide(tier, direction, true, walk, &mut None);
    }

    fn cluster_wide(
        &self,
        tier: Tier,
        direction: Direction,
        mut closed: bool,
        walk: &mut Walk,
        audited: &mut Option<String>,
    ) -> bool {
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
                let only_noted = policy.audit && rule.action == RuleAction::Deny;
                if only_noted && peer && port && !closed {
                    audited.get_or_insert(name.clone());
                }
                let decides = peer && port && !closed && !only_noted;
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
                    audit: policy.audit,
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
            ClusterPeer::Domains(names) => {
                names.iter().any(|name| [self.peer, self.asked].iter().any(|ip| self.domains.belongs(*ip, name)))
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::policy::domains::DomainArgs;
    use crate::cli::policy::rehearsal::Rehearsal;
    use crate::cli::policy::verdict::decide;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Two namespaces with two pods each, a node, and whatever policies.
    fn rehearse(policies: Vec<Value>) -> Rehearsal {
        let mut items = vec![json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n", "labels": {"zone": "x"}}, "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})];
        for (at, (namespace, app)) in [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")].into_iter().enumerate() {
            items.push(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": namespace, "name": app, "labels": {"app": app}},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80 + at}]}]},
                "status": {"podIPs": [{"ip": format!("10.244.1.{}", 10 + at)}]}}));
        }
        items.extend(policies);
        let folder = tempfile::tempdir().unwrap();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        std::fs::write(folder.path().join("all.json"), list.to_string()).unwrap();
        let known = DomainArgs::said(&[("www.example.org", "198.51.100.7"), ("db.example.org", "10.244.1.11")]);
        Rehearsal::read(folder.path(), &known).map_err(|failure| failure.message).unwrap()
    }

    fn selector() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(json!({})),
            Just(json!({"matchLabels": {"app": "x"}})),
            Just(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]})),
        ]
    }

    fn namespaces() -> impl Strategy<Value = Value> {
        prop_oneof![Just(json!({})), Just(json!({"matchLabels": {"kubernetes.io/metadata.name": "b"}}))]
    }

    fn peer() -> impl Strategy<Value = Value> {
        prop_oneof![
            selector().prop_map(|pods| json!({"podSelector": pods})),
            (namespaces(), selector()).prop_map(|(n, pods)| json!({"namespaceSelector": n, "podSelector": pods})),
            Just(json!({"ipBlock": {"cidr": "10.244.1.0/24", "except": ["10.244.1.10/31"]}})),
            Just(json!({"ipBlock": {"cidr": "0.0.0.0/0"}})),
        ]
    }

    fn port() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(json!({"protocol": "TCP", "port": 80})),
            Just(json!({"protocol": "TCP", "port": 81, "endPort": 90})),
            Just(json!({"protocol": "UDP"})),
            Just(json!({"protocol": "TCP", "port": "web"})),
        ]
    }

    fn rules(key: &'static str) -> impl Strategy<Value = Vec<Value>> {
        let rule = (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3));
        prop::collection::vec(rule.prop_map(move |(peers, ports)| json!({key: peers, "ports": ports})), 0..3)
    }

    fn network_policy() -> impl Strategy<Value = Value> {
        let types = prop_oneof![Just(json!(["Ingress"])), Just(json!(["Egress"])), Just(json!(["Ingress", "Egress"]))];
        let audit = prop::bool::weighted(0.3);
        (prop_oneof![Just("a"), Just("b")], selector(), types, rules("from"), rules("to"), audit).prop_map(
            |(namespace, pods, types, ingress, egress, audit)| {
                let has = |word: &str| types.as_array().is_some_and(|types| types.iter().any(|t| t == word));
                let mut spec = json!({"podSelector": pods, "policyTypes": types});
                if has("Ingress") {
                    spec["ingress"] = json!(ingress);
                }
                if has("Egress") {
                    spec["egress"] = json!(egress);
                }
                let enforcement = if audit { "audit" } else { "enforce" };
                json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                    "metadata": {"namespace": namespace, "annotations": {"sluicegate.dev/enforcement": enforcement}},
                    "spec": spec})
            },
        )
    }

    fn cluster_rule(key: &'static str) -> impl Strategy<Value = Value> {
        let action = prop_oneof![Just("Accept"), Just("Deny"), Just("Pass")];
        let pods = (namespaces(), selector())
            .prop_map(|(n, pods)| json!({"pods": {"namespaceSelector": n, "podSelector": pods}}));
        let outward = prop_oneof![
            Just(json!({"networks": ["10.244.1.12/31", "198.51.100.0/24"]})),
            Just(json!({"nodes": {"matchLabels": {"zone": "x"}}})),
        ];
        let outward = if key == "to" { outward.boxed() } else { Just(json!({"namespaces": {}})).boxed() };
        let peer = prop_oneof![namespaces().prop_map(|n| json!({"namespaces": n})), pods, outward];
        let plain = (action, prop::collection::vec(peer, 1..3))
            .prop_map(move |(action, peers)| json!({"action": action, key: peers}));
        if key != "to" {
            return plain.boxed();
        }
        let names = prop_oneof![Just("*.example.org"), Just("db.example.org"), Just("nowhere.example.net")];
        let by_name = names.prop_map(|name| json!({"action": "Accept", "to": [{"domainNames": [name]}]}));
        prop_oneof![3 => plain, 1 => by_name].boxed()
    }

    fn cluster_policy() -> impl Strategy<Value = Value> {
        let tier = prop_oneof![Just("Admin"), Just("Baseline")];
        let ingress = prop::collection::vec(cluster_rule("from"), 0..3);
        let egress = prop::collection::vec(cluster_rule("to"), 0..3);
        let audit = prop::bool::weighted(0.3);
        (tier, 0..3u16, namespaces(), ingress, egress, audit).prop_map(|(tier, priority, subject, ingress, egress, audit)| {
            let enforcement = if audit { "audit" } else { "enforce" };
            let metadata = json!({"annotations": {"sluicegate.dev/enforcement": enforcement}});
            json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": metadata,
                "spec": {"tier": tier, "priority": priority, "subject": {"namespaces": subject},
                    "ingress": ingress, "egress": egress}})
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn the_rules_listed_explain_what_the_tables_decide(
            namespaced in prop::collection::vec(network_policy(), 0..4),
            wide in prop::collection::vec(cluster_policy(), 0..4),
        ) {
            let named = namespaced.into_iter().chain(wide).enumerate().map(|(at, mut policy)| {
                policy["metadata"]["name"] = json!(format!("p{at}"));
                policy
            });
            let rehearsal = rehearse(named.collect());
            let tables = rehearsal.tables("n").map_err(|failure| failure.message).unwrap();
            let cluster = &rehearsal.cluster;
            let outside = ["192.0.2.1", "198.51.100.7"].map(|text| (text.parse().unwrap(), None));
            let pods = cluster.pods.values().map(|pod| (pod.addresses[0], Some(pod.as_ref())));
            let peers: Vec<(IpAddr, Option<&Pod>)> = pods.chain(outside).collect();
            for pod in cluster.pods.values() {
                for (peer, peer_pod) in &peers {
                    for (proto, port) in [(Proto::Tcp, 80), (Proto::Tcp, 82), (Proto::Tcp, 9), (Proto::Udp, 80), (Proto::Icmp, 0)] {
                        for direction in [Direction::Ingress, Direction::Egress] {
                            let (domains, asked) = (&rehearsal.domains, *peer);
                            let question =
                                Question { cluster, pod, peer: *peer, peer_pod: *peer_pod, asked, domains, proto, port };
                            let walk = question.walk(direction);
                            let packet = (proto.number(Family::of(peer)), port);
                            let decided = decide(&tables, domains, pod, direction, (*peer, asked), packet);
                            prop_assert_eq!(
                                (walk.allow, walk.decided_by.as_deref(), walk.audit),
                                (decided.allow, decided.by.as_deref(), decided.audit),
                                "{} {:?} {} {:?}/{}: {:#?}", pod.name, direction, peer, proto, port, walk.rules
                            );
                        }
                    }
                }
            }
        }
    }
}
