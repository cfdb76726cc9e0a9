//! Compiled policy against its slow twin: reads the objects as the API describes them, with no identities, no tables.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use sluice_ctrl::compile::{Knobs, LocalView, Replay, compile};
use sluice_ctrl::config::Config;
use sluice_ctrl::model::{
    Cluster, ClusterNetworkPolicy, ClusterPeer, ClusterRule, ContainerPort, FailClosed, IpBlock, Labels, Namespace,
    NamespaceScope, NamespacedName, NetworkPolicy, Node, Peer, Phase, Pod, PolicyRule, PortMatch, PortRange, Protocol,
    Requirement, RuleAction, Selector, Subject, Tier,
};
use sluice_tables::Direction;

use crate::story::Ask;

/// The verdict and the rule's name as the documents of the API give them.
fn oracle(
    cluster: &Cluster,
    pod: &Pod,
    direction: Direction,
    peer: IpAddr,
    packet: (Option<Protocol>, u16),
) -> (bool, Option<String>) {
    let q = Question { cluster, pod, direction, peer, packet };
    if let Some(decided) = q.tier(Tier::Admin) {
        return decided;
    }
    let selecting = cluster.network_policies.values().filter(|p| p.name.namespace == pod.name.namespace);
    let selecting: Vec<_> = selecting.filter(|p| p.pods.matches(&pod.labels) && q.rules(p).is_some()).collect();
    for policy in &selecting {
        if q.rules(policy).unwrap().iter().any(|rule| q.allows(policy, rule)) {
            return (true, Some(format!("NetworkPolicy/{}", policy.name)));
        }
    }
    if !selecting.is_empty() {
        return (false, Some("isolation".into()));
    }
    q.tier(Tier::Baseline).unwrap_or((true, None))
}

struct Question<'a> {
    cluster: &'a Cluster,
    pod: &'a Pod,
    direction: Direction,
    peer: IpAddr,
    packet: (Option<Protocol>, u16),
}

impl Question<'_> {
    fn tier(&self, tier: Tier) -> Option<(bool, Option<String>)> {
        let mut policies: Vec<_> = self.cluster.cluster_network_policies.values().filter(|p| p.tier == tier).collect();
        policies.sort_by_key(|p| (p.priority, p.name.clone()));
        for policy in policies {
            let namespace = self.cluster.namespace_labels(&self.pod.name.namespace).unwrap();
            if !policy.subject.namespaces.matches(namespace) || !policy.subject.pods.matches(&self.pod.labels) {
                continue;
            }
            let (rules, word) = match self.direction {
                Direction::Ingress => (&policy.ingress, "ingress"),
                Direction::Egress => (&policy.egress, "egress"),
            };
            for (at, rule) in rules.iter().enumerate() {
                let peers = rule.peers.as_ref().is_none_or(|list| list.iter().any(|p| self.is_cluster_peer(p)));
                if !peers || !self.ports(rule.ports.as_deref()) {
                    continue;
                }
                let name = rule.name.clone().unwrap_or(format!("{word}[{at}]"));
                let name = Some(format!("ClusterNetworkPolicy/{}#{name}", policy.name));
                match rule.action {
                    RuleAction::Accept => return Some((true, name)),
                    RuleAction::Deny => return Some((false, name)),
                    RuleAction::Pass => return None,
                }
            }
        }
        None
    }

    fn rules<'p>(&self, policy: &'p NetworkPolicy) -> Option<&'p Vec<PolicyRule>> {
        match self.direction {
            Direction::Ingress => policy.ingress.as_ref(),
            Direction::Egress => policy.egress.as_ref(),
        }
    }

    fn allows(&self, policy: &NetworkPolicy, rule: &PolicyRule) -> bool {
        let peers = rule.peers.as_ref().is_none_or(|list| list.iter().any(|p| self.is_peer(policy, p)));
        peers && self.ports(rule.ports.as_deref())
    }

    fn peer_pod(&self) -> Option<&Pod> {
        let pods = self.cluster.pods.values().map(Arc::as_ref);
        pods.filter(|p| !p.host_network && !p.is_finished()).find(|p| p.addresses.contains(&self.peer))
    }

    fn is_peer(&self, policy: &NetworkPolicy, peer: &Peer) -> bool {
        match peer {
            Peer::Block(b) => b.cidr.contains(&self.peer) && !b.except.iter().any(|e| e.contains(&self.peer)),
            Peer::Pods { namespaces, pods } => self.peer_pod().is_some_and(|p| {
                let namespace = match namespaces {
                    NamespaceScope::Own => p.name.namespace == policy.name.namespace,
                    NamespaceScope::Selected(s) => s.matches(self.cluster.namespace_labels(&p.name.namespace).unwrap()),
                };
                namespace && pods.matches(&p.labels)
            }),
        }
    }

    fn is_cluster_peer(&self, peer: &ClusterPeer) -> bool {
        match peer {
            ClusterPeer::Networks(nets) => nets.iter().any(|n| n.contains(&self.peer)),
            ClusterPeer::Domains(_) => false,
            ClusterPeer::Nodes(selector) => {
                let mut nodes = self.cluster.nodes.values().filter(|n| selector.matches(&n.labels));
                nodes.any(|n| n.internal_ips.contains(&self.peer))
            }
            ClusterPeer::Pods { namespaces, pods } => self.peer_pod().is_some_and(|p| {
                namespaces.matches(self.cluster.namespace_labels(&p.name.namespace).unwrap()) && pods.matches(&p.labels)
            }),
        }
    }

    fn ports(&self, ports: Option<&[PortMatch]>) -> bool {
        let Some(ports) = ports else { return true };
        let (Some(protocol), number) = self.packet else { return false };
        ports.iter().any(|port| match port {
            PortMatch::Protocol(p) => *p == protocol,
            PortMatch::Range(p, range) => *p == protocol && range.contains(number),
            PortMatch::Named(p, name) => {
                let target = match self.direction {
                    Direction::Ingress => Some(self.pod),
                    Direction::Egress => self.peer_pod(),
                };
                p.is_none_or(|p| p == protocol)
                    && target.is_some_and(|t| {
                        t.ports
                            .iter()
                            .any(|c| c.name.as_ref() == Some(name) && c.protocol == protocol && c.port == number)
                    })
            }
        })
    }
}

const KEYS: [&str; 2] = ["app", "tier"];
const VALUES: [&str; 3] = ["a", "b", "c"];

fn labels() -> impl Strategy<Value = Labels> {
    let pair = (prop::sample::select(KEYS.to_vec()), prop::sample::select(VALUES.to_vec()));
    prop::collection::btree_map(pair.clone().prop_map(|p| p.0.to_owned()), pair.prop_map(|p| p.1.to_owned()), 0..3)
}

fn selector() -> impl Strategy<Value = Selector> {
    let key = || prop::sample::select(KEYS.to_vec()).prop_map(str::to_owned);
    let values = || prop::collection::btree_set(prop::sample::select(VALUES.to_vec()).prop_map(str::to_owned), 1..3);
    let requirement = prop_oneof![
        3 => (key(), values()).prop_map(|(k, v)| Requirement::In(k, v)),
        1 => (key(), values()).prop_map(|(k, v)| Requirement::NotIn(k, v)),
        1 => key().prop_map(Requirement::Exists),
        1 => key().prop_map(Requirement::DoesNotExist),
    ];
    prop::collection::vec(requirement, 0..2).prop_map(Selector::new)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(Protocol::ALL.to_vec())
}

fn port_match() -> impl Strategy<Value = PortMatch> {
    prop_oneof![
        protocol().prop_map(PortMatch::Protocol),
        (protocol(), 1..6u16, 0..3u16)
            .prop_map(|(p, first, more)| PortMatch::Range(p, PortRange::new(first, first + more).unwrap())),
        (prop::option::of(protocol()), prop::sample::select(vec!["web", "db"]))
            .prop_map(|(p, name)| PortMatch::Named(p, name.to_owned())),
    ]
}

fn ports() -> impl Strategy<Value = Option<Vec<PortMatch>>> {
    prop::option::of(prop::collection::vec(port_match(), 1..3))
}

fn net() -> impl Strategy<Value = IpNet> {
    let nets = [
        "0.0.0.0/0",
        "10.244.0.0/16",
        "10.244.0.0/24",
        "10.244.1.0/24",
        "10.244.1.2/32",
        "10.244.2.0/31",
        "198.51.100.0/24",
        "198.51.100.128/25",
        "192.0.2.2/32",
        "::/0",
        "fd00::/16",
    ];
    prop::sample::select(nets.to_vec()).prop_map(|n| n.parse().unwrap())
}

fn peer() -> impl Strategy<Value = Peer> {
    let block = (net(), prop::collection::vec(net(), 0..2)).prop_map(|(cidr, except)| {
        let except = except.into_iter().filter(|e| cidr.contains(e)).collect();
        Peer::Block(IpBlock { cidr, except })
    });
    let scope = prop_oneof![Just(NamespaceScope::Own), selector().prop_map(NamespaceScope::Selected)];
    prop_oneof![block, (scope, selector()).prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods })]
}

fn rules() -> impl Strategy<Value = Option<Vec<PolicyRule>>> {
    let peers = prop::option::of(prop::collection::vec(peer(), 1..3));
    let rule = (peers, ports()).prop_map(|(peers, ports)| PolicyRule { peers, ports });
    prop::option::of(prop::collection::vec(rule, 0..3))
}

fn network_policy(index: usize) -> impl Strategy<Value = NetworkPolicy> {
    (0..3usize, selector(), rules(), rules()).prop_map(move |(ns, pods, ingress, egress)| NetworkPolicy {
        name: NamespacedName::new(format!("ns{ns}"), format!("p{index}")),
        pods,
        ingress,
        egress,
        fail_closed: FailClosed::default(),
        audit: false,
    })
}

fn cluster_rules(egress: bool) -> impl Strategy<Value = Vec<ClusterRule>> {
    let pods = (selector(), selector()).prop_map(|(namespaces, pods)| ClusterPeer::Pods { namespaces, pods });
    let nets = prop::collection::vec(net(), 1..3).prop_map(ClusterPeer::Networks);
    let peer = match egress {
        true => prop_oneof![2 => pods, 1 => selector().prop_map(ClusterPeer::Nodes), 1 => nets].boxed(),
        false => pods.boxed(),
    };
    let action = prop::sample::select(vec![RuleAction::Accept, RuleAction::Deny, RuleAction::Pass]);
    let name = prop::option::of(prop::sample::select(vec!["one", "two"]).prop_map(str::to_owned));
    let rule = (name, action, prop::option::of(prop::collection::vec(peer, 1..3)), ports());
    let rule = rule.prop_map(|(name, action, peers, ports)| ClusterRule { name, action, peers, ports });
    prop::collection::vec(rule, 0..3)
}

fn cluster_policy(index: usize) -> impl Strategy<Value = ClusterNetworkPolicy> {
    let tier = prop::sample::select(vec![Tier::Admin, Tier::Baseline]);
    (tier, 0..3u16, selector(), selector(), cluster_rules(false), cluster_rules(true)).prop_map(
        move |(tier, priority, namespaces, pods, ingress, egress)| ClusterNetworkPolicy {
            name: format!("c{index}"),
            tier,
            priority,
            subject: Subject { namespaces, pods },
            ingress,
            egress,
            fail_closed: FailClosed::default(),
            audit: false,
        },
    )
}

fn container_ports() -> impl Strategy<Value = Vec<ContainerPort>> {
    let name = prop::sample::select(vec!["web", "db"]);
    prop::collection::btree_map(name, (protocol(), 1..6u16), 0..3).prop_map(|ports| {
        let port = |(name, (protocol, port)): (&str, _)| ContainerPort {
            name: Some(name.to_owned()),
            protocol,
            port,
            host_port: None,
            host_ip: None,
        };
        ports.into_iter().map(port).collect()
    })
}

prop_compose! {
    fn cluster()(
        namespaces in prop::collection::vec(labels(), 3),
        nodes in prop::collection::vec(labels(), 3),
        pods in prop::collection::vec((0..3usize, labels(), container_ports(), 0..12u8), 1..9),
        policies in prop::collection::vec(any::<prop::sample::Index>(), 0..5).prop_flat_map(|list| {
            (0..list.len()).map(network_policy).collect::<Vec<_>>()
        }),
        cluster_policies in (0..3usize).prop_flat_map(|n| (0..n).map(cluster_policy).collect::<Vec<_>>()),
    ) -> Cluster {
        let mut cluster = Cluster::default();
        for (at, labels) in namespaces.into_iter().enumerate() {
            let name = format!("ns{at}");
            cluster.namespaces.insert(name.clone(), Arc::new(Namespace::new(name, labels)));
        }
        for (at, labels) in nodes.into_iter().enumerate() {
            let node = Node {
                name: format!("node{at}"),
                labels,
                annotations: Default::default(),
                internal_ips: vec![format!("192.0.2.{at}").parse().unwrap()],
                external_ips: Vec::new(),
                pod_cidrs: vec![format!("10.244.{at}.0/24").parse().unwrap()],
                vtep_mac: None,
                ready: None,
                leaving: false,
            };
            cluster.nodes.insert(node.name.clone(), Arc::new(node));
        }
        for (at, (ns, labels, ports, kind)) in pods.into_iter().enumerate() {
            // Half of the pods run on the node that is compiled.
            let node = if kind < 6 { 0 } else { 1 + at % 2 };
            let host_network = kind == 11;
            let addresses = match host_network {
                true => vec![format!("192.0.2.{node}").parse().unwrap()],
                false => vec![
                    format!("10.244.{node}.{}", at + 2).parse().unwrap(),
                    format!("fd00:10:244::{node}:{}", at + 2).parse().unwrap(),
                ],
            };
            let name = NamespacedName::new(format!("ns{ns}"), format!("pod{at}"));
            let pod = Pod {
                name: name.clone(),
                uid: String::new(),
                labels,
                annotations: Default::default(),
                node: Some(format!("node{node}")),
                phase: Phase::Running,
                host_network,
                addresses,
                ports,
                ready: Some(true),
                terminating: false,
            };
            cluster.pods.insert(name, Arc::new(pod));
        }
        cluster.network_policies = policies.into_iter().map(|p| (p.name.clone(), Arc::new(p))).collect();
        cluster.cluster_network_policies = cluster_policies.into_iter().map(|p| (p.name.clone(), Arc::new(p))).collect();
        cluster
    }
}

/// A change of one pod: its labels, its ports, its end, or a new one.
fn change() -> impl Strategy<Value = (prop::sample::Index, Labels, Vec<ContainerPort>, u8)> {
    (any::<prop::sample::Index>(), labels(), container_ports(), 0..4u8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn what_the_last_compilation_left_changes_nothing(
        cluster in cluster(),
        changes in prop::collection::vec(change(), 1..6),
    ) {
        let knobs = Knobs::from(&Config::builtin("node0"));
        let mut cluster = cluster;
        let mut last = None;
        for (at, labels, ports, kind) in changes {
            let name = cluster.pods.keys().nth(at.index(cluster.pods.len())).unwrap().clone();
            let mut pod = (*cluster.pods[&name]).clone();
            match kind {
                0 => pod.labels = labels,
                1 => pod.ports = ports,
                2 => (pod.phase, pod.addresses) = (Phase::Succeeded, Vec::new()),
                _ => {
                    pod.name.name.push('x');
                    pod.addresses.iter_mut().for_each(|address| match address {
                        IpAddr::V4(v4) => *v4 = (u32::from(*v4) | 0x80).into(),
                        IpAddr::V6(v6) => *v6 = (u128::from(*v6) | 0x80).into(),
                    });
                }
            }
            cluster.pods.insert(pod.name.clone(), Arc::new(pod));
            let view = LocalView::derived(&cluster, "node0", &Replay::default()).unwrap();
            let anew = compile(&cluster, &view, &knobs, None).unwrap();
            let next = compile(&cluster, &view, &knobs, last.as_ref()).unwrap();
            prop_assert_eq!(next.tables.dump(), anew.tables.dump());
            prop_assert_eq!(next.tables.pods.versions(), anew.tables.pods.versions());
            last = Some(next);
        }
    }

    #[test]
    fn compiled_verdicts_are_the_ones_the_objects_ask_for(cluster in cluster()) {
        let view = LocalView::derived(&cluster, "node0", &Replay::default()).unwrap();
        let compiled = compile(&cluster, &view, &Knobs::from(&Config::builtin("node0")), None).unwrap();
        let mut peers: Vec<IpAddr> = cluster.pods.values().flat_map(|p| p.addresses.clone()).collect();
        peers.extend(["198.51.100.1", "198.51.100.200", "203.0.113.1", "192.0.2.1", "192.0.2.2", "10.244.1.200",
            "10.244.2.1", "2001:db8::1", "fd00:10:244::9:9"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        for name in view.pods.keys() {
            let pod = &cluster.pods[name];
            for peer in &peers {
                for direction in [Direction::Ingress, Direction::Egress] {
                    let packets = [(None, 0), (Some(Protocol::Udp), 3)].into_iter()
                        .chain((0..8).map(|port| (Some(Protocol::Tcp), port)))
                        .chain([(Some(Protocol::Sctp), 2), (Some(Protocol::Tcp), 65_535)]);
                    for packet in packets {
                        // Overlay addresses are a node's too, which the objects do not say in so many words.
                        if peer.to_string() == "10.244.2.1" && !cluster.cluster_network_policies.is_empty() {
                            continue;
                        }
                        let expected = oracle(&cluster, pod, direction, *peer, packet);
                        let protocol = packet.0.map_or(1, Protocol::number);
                        let decided = compiled.decide(direction, &name.to_string(), &peer.to_string(), protocol, packet.1);
                        prop_assert_eq!(compiled.named(decided), expected, "{} {:?} {} {:?}", name, direction, peer, packet);
                    }
                }
            }
        }
    }
}
