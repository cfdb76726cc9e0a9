//! Random clusters: three nodes, a handful of pods in three namespaces, a Service for each pod of the node under test,
//! policies of both kinds. Few labels, ports and networks, so that rules meet packets and each other.

use crate::chance::Chance;
use serde_json::{Value, json};
use std::net::IpAddr;

/// The node whose pipeline is tested.
pub const NODE: &str = "node0";
/// Transport protocols.
pub const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
/// Ports that Services have; rules and packets know a few more.
pub const SERVICE_PORTS: u16 = 4;

const NETWORKS: [&str; 18] = [
    "0.0.0.0/0",
    "10.244.0.0/16",
    "10.244.0.0/24",
    "10.244.1.0/24",
    "10.244.0.10/31",
    "10.244.1.12/32",
    "192.0.2.0/24",
    "192.0.2.12/32",
    "198.51.100.0/24",
    "198.51.100.128/25",
    "198.51.100.200/32",
    "::/0",
    "fd00:10:244::/46",
    "fd00:10:244:1::/64",
    "fd00:10:244::a/127",
    "2001:db8:9::/48",
    "2001:db8:9:1::/64",
    "2001:db8::12/128",
];

/// Addresses that nobody in the cluster has, IPv4 then IPv6.
pub const OUTSIDE: [[&str; 3]; 2] =
    [["198.51.100.7", "198.51.100.200", "203.0.113.9"], ["2001:db8:9::7", "2001:db8:9:1::7", "2001:db8:ffff::9"]];

/// A pod and where it is.
#[derive(Clone, Debug)]
pub struct PodAt {
    pub name: String,
    pub node: usize,
    /// IPv4, IPv6.
    pub addresses: [IpAddr; 2],
    pub host_network: bool,
    /// Number of its Service; only pods of the node under test have one.
    pub service: Option<usize>,
}

/// A cluster and what of it packets need.
#[derive(Clone, Debug)]
pub struct World {
    pub objects: Vec<Value>,
    pub pods: Vec<PodAt>,
}

/// InternalIPs of a node.
pub fn node_address(node: usize, v6: bool) -> IpAddr {
    let text = if v6 { format!("2001:db8::1{node}") } else { format!("192.0.2.1{node}") };
    text.parse().expect("an address")
}

/// The node's address on the overlay.
pub fn overlay_address(node: usize, v6: bool) -> IpAddr {
    let text = if v6 { format!("fd00:10:244:{node}::1") } else { format!("10.244.{node}.1") };
    text.parse().expect("an address")
}

fn pod_address(node: usize, n: usize, v6: bool) -> IpAddr {
    let text = if v6 { format!("fd00:10:244:{node}::{:x}", 10 + n) } else { format!("10.244.{node}.{}", 10 + n) };
    text.parse().expect("an address")
}

/// ClusterIP of a Service.
pub fn cluster_ip(service: usize, v6: bool) -> IpAddr {
    let text = if v6 { format!("fd00:10:96::1:{service:x}") } else { format!("10.96.1.{service}") };
    text.parse().expect("an address")
}

/// NodePort of a Service for a protocol and port.
pub fn node_port(service: usize, protocol: usize, port: u16) -> u16 {
    30_000 + (service * 3 + protocol) as u16 * SERVICE_PORTS + port - 1
}

fn labels(chance: &mut Chance) -> Value {
    let mut labels = json!({});
    for _ in 0..chance.below(3) {
        labels[*chance.pick(&["app", "tier"])] = (*chance.pick(&["a", "b"])).into();
    }
    labels
}

fn selector(chance: &mut Chance) -> Value {
    let mut selector = json!({});
    if chance.one_in(2) {
        selector["matchLabels"] = json!({*chance.pick(&["app", "tier"]): chance.pick(&["a", "b"])});
    }
    if chance.one_in(4) {
        let key = *chance.pick(&["app", "tier"]);
        selector["matchExpressions"] = match chance.below(4) {
            0 => json!([{"key": key, "operator": "Exists"}]),
            1 => json!([{"key": key, "operator": "DoesNotExist"}]),
            2 => json!([{"key": key, "operator": "In", "values": chance.some(1, 2, |c| *c.pick(&["a", "b", "c"]))}]),
            _ => json!([{"key": key, "operator": "NotIn", "values": chance.some(1, 2, |c| *c.pick(&["a", "b", "c"]))}]),
        };
    }
    selector
}

fn namespaces(chance: &mut Chance) -> Value {
    match chance.below(4) {
        0 => json!({}),
        1 => {
            let names = chance.some(1, 2, |c| format!("ns{}", c.below(3)));
            let operator = *chance.pick(&["In", "NotIn"]);
            json!({"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": operator, "values": names}]})
        }
        _ => selector(chance),
    }
}

fn container_ports(chance: &mut Chance) -> Value {
    let port = |c: &mut Chance| {
        let mut port = json!({"containerPort": 1 + c.below(6)});
        if !c.one_in(4) {
            port["name"] = (*c.pick(&["web", "db"])).into();
        }
        if !c.one_in(3) {
            port["protocol"] = (*c.pick(&PROTOCOLS)).into();
        }
        port
    };
    // The API refuses one port twice, and one name twice in one container.
    let mut seen = Vec::new();
    let mut all = chance.some(0, 3, port);
    all.retain(|port| {
        let key = (port["containerPort"].clone(), port["protocol"].as_str().unwrap_or("TCP").to_owned());
        let twice = seen.iter().any(|(k, name)| *k == key || (!port["name"].is_null() && *name == port["name"]));
        seen.push((key, port["name"].clone()));
        !twice
    });
    all.into()
}

fn policy_port(chance: &mut Chance) -> Value {
    let mut port = json!({});
    if !chance.one_in(4) {
        port["protocol"] = (*chance.pick(&PROTOCOLS)).into();
    }
    match chance.below(4) {
        0 => {}
        1 => port["port"] = (*chance.pick(&["web", "db"])).into(),
        2 => port["port"] = (1 + chance.below(6)).into(),
        _ => {
            let first = 1 + chance.below(5);
            (port["port"], port["endPort"]) = (first.into(), (first + chance.below(3)).into());
        }
    }
    port
}

fn peer(chance: &mut Chance) -> Value {
    match chance.below(4) {
        0 => json!({"podSelector": selector(chance)}),
        1 => json!({"namespaceSelector": namespaces(chance)}),
        2 => json!({"namespaceSelector": namespaces(chance), "podSelector": selector(chance)}),
        _ => {
            let cidr = *chance.pick(&NETWORKS);
            let around: ipnet::IpNet = cidr.parse().expect("a network");
            let holes = NETWORKS
                .into_iter()
                .filter(|net| net.parse::<ipnet::IpNet>().is_ok_and(|net| around.contains(&net) && net != around));
            let holes: Vec<&str> = holes.filter(|_| chance.one_in(3)).collect();
            if holes.is_empty() {
                json!({"ipBlock": {"cidr": cidr}})
            } else {
                json!({"ipBlock": {"cidr": cidr, "except": holes}})
            }
        }
    }
}

fn network_policy(chance: &mut Chance, n: usize) -> Value {
    let mut spec = json!({"podSelector": selector(chance)});
    match chance.below(4) {
        0 => {}
        1 => spec["policyTypes"] = json!(["Ingress"]),
        2 => spec["policyTypes"] = json!(["Egress"]),
        _ => spec["policyTypes"] = json!(["Ingress", "Egress"]),
    }
    let speaks = |word: &str| spec["policyTypes"].as_array().is_none_or(|types| types.iter().any(|kind| kind == word));
    let (ingress, egress) = (speaks("Ingress"), speaks("Egress"));
    for (wanted, word, side) in [(ingress, "ingress", "from"), (egress, "egress", "to")] {
        if wanted && !chance.one_in(4) {
            let rule = |c: &mut Chance| {
                let mut rule = json!({});
                if !c.one_in(4) {
                    rule[side] = c.some(0, 2, peer).into();
                }
                if c.one_in(2) {
                    rule["ports"] = c.some(0, 2, policy_port).into();
                }
                rule
            };
            spec[word] = chance.some(0, 2, rule).into();
        }
    }
    let mut metadata = json!({"name": format!("p{n}"), "namespace": format!("ns{}", chance.below(3))});
    if chance.one_in(8) {
        metadata["annotations"] = json!({"sluicegate.dev/enforcement": "audit"});
    }
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
}

fn cluster_rule(chance: &mut Chance, side: &str) -> Value {
    let mut outward = false;
    let one = |c: &mut Chance, outward: &mut bool| match c.below(if side == "to" { 5 } else { 3 }) {
        0 => json!({"namespaces": namespaces(c)}),
        1 | 2 => json!({"pods": {"namespaceSelector": namespaces(c), "podSelector": selector(c)}}),
        3 => {
            *outward = true;
            json!({"nodes": selector(c)})
        }
        _ => {
            *outward = true;
            json!({"networks": c.some(1, 2, |c| *c.pick(&NETWORKS))})
        }
    };
    let peers = chance.some(1, 2, |c| one(c, &mut outward));
    let mut rule = json!({"action": chance.pick(&["Accept", "Deny", "Deny", "Pass"]), side: peers});
    if chance.one_in(3) {
        rule["name"] = (*chance.pick(&["one", "two"])).into();
    }
    if chance.one_in(2) {
        let port = |c: &mut Chance| {
            let protocol = c.pick(&PROTOCOLS).to_lowercase();
            let first = 1 + c.below(5);
            match c.below(3) {
                // Nodes and networks have no named ports: the API refuses the rule.
                0 if !outward => json!({"destinationNamedPort": c.pick(&["web", "db"])}),
                1 => json!({protocol: {"destinationPort": {"range": {"start": first, "end": first + c.below(3)}}}}),
                _ => json!({protocol: {"destinationPort": {"number": first}}}),
            }
        };
        rule["protocols"] = chance.some(1, 2, port).into();
    }
    rule
}

fn cluster_policy(chance: &mut Chance, n: usize) -> Value {
    let subject = match chance.below(3) {
        0 => json!({"pods": {"namespaceSelector": namespaces(chance), "podSelector": selector(chance)}}),
        _ => json!({"namespaces": namespaces(chance)}),
    };
    let mut spec =
        json!({"tier": chance.pick(&["Admin", "Baseline"]), "priority": chance.below(3), "subject": subject});
    for (word, side) in [("ingress", "from"), ("egress", "to")] {
        if chance.one_in(2) {
            spec[word] = chance.some(1, 3, |c| cluster_rule(c, side)).into();
        }
    }
    let mut metadata = json!({"name": format!("c{n}")});
    if chance.one_in(8) {
        metadata["annotations"] = json!({"sluicegate.dev/enforcement": "audit"});
    }
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": metadata, "spec": spec})
}

fn service(chance: &PodAt, number: usize, namespace: &str) -> Value {
    let mut ports = Vec::new();
    for (at, protocol) in PROTOCOLS.iter().enumerate() {
        for port in 1..=SERVICE_PORTS {
            ports.push(json!({
                "name": format!("{}-{port}", protocol.to_lowercase()), "protocol": protocol, "port": port,
                "targetPort": port, "nodePort": node_port(number, at, port),
            }));
        }
    }
    let ips = [cluster_ip(number, false), cluster_ip(number, true)];
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{number}"), "namespace": namespace},
        "spec": {
            "type": "NodePort", "selector": {"id": chance.name}, "clusterIP": ips[0], "clusterIPs": ips,
            "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"], "ports": ports,
        },
    })
}

impl World {
    /// A cluster.
    pub fn new(chance: &mut Chance) -> World {
        let mut objects = Vec::new();
        for n in 0..3 {
            objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("ns{n}"), "labels": labels(chance)}}));
            let cidrs = [format!("10.244.{n}.0/24"), format!("fd00:10:244:{n}::/64")];
            objects.push(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node{n}"), "labels": labels(chance)},
                "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": node_address(n, false)}, {"type": "InternalIP", "address": node_address(n, true)},
                ]},
            }));
        }
        let mut pods: Vec<PodAt> = Vec::new();
        let (local, all) = (2 + chance.below(3), 4 + chance.below(6));
        for n in 0..all.max(local) {
            let node = if n < local { 0 } else { 1 + chance.below(2) };
            let host_network = n >= local && chance.one_in(5);
            let address = |v6| if host_network { node_address(node, v6) } else { pod_address(node, n, v6) };
            let addresses = [address(false), address(true)];
            let pod =
                PodAt { name: format!("pod{n}"), node, addresses, host_network, service: (n < local).then_some(n) };
            let namespace = format!("ns{}", chance.below(3));
            objects.extend(pod.service.map(|number| service(&pod, number, &namespace)));
            let mut object = pod_object(&pod, &namespace, labels(chance), container_ports(chance));
            if chance.one_in(4) && !host_network {
                // Who had the address before: finished, so that its labels mean nothing.
                let mut before = object.clone();
                before["metadata"]["name"] = format!("old{n}").into();
                before["metadata"]["labels"] = labels(chance);
                before["status"]["phase"] = (*chance.pick(&["Succeeded", "Failed"])).into();
                objects.push(before);
            }
            object["spec"]["hostNetwork"] = host_network.into();
            objects.push(object);
            pods.push(pod);
        }
        let (namespaced, wide) = (chance.below(9), chance.below(5));
        objects.extend((0..namespaced).map(|n| network_policy(chance, n)));
        objects.extend((0..wide).map(|n| cluster_policy(chance, n)));
        World { objects, pods }
    }

    /// Pods of the node under test.
    pub fn local(&self) -> impl Iterator<Item = &PodAt> {
        self.pods.iter().filter(|pod| pod.node == 0)
    }

    /// The cluster after somebody has changed something: labels of pods, of a namespace, of a node, or the policies.
    pub fn changed(&self, chance: &mut Chance) -> World {
        let mut next = self.clone();
        for _ in 0..1 + chance.below(2) {
            let of = |kind: &str| -> Vec<usize> {
                (0..next.objects.len()).filter(|at| next.objects[*at]["kind"] == kind).collect()
            };
            match chance.below(8) {
                0 => {
                    let at = *chance.pick(&of("Namespace"));
                    next.objects[at]["metadata"]["labels"] = labels(chance);
                }
                1 => {
                    let at = *chance.pick(&of("Node"));
                    next.objects[at]["metadata"]["labels"] = labels(chance);
                }
                2 => {
                    let kind = *chance.pick(&["NetworkPolicy", "ClusterNetworkPolicy"]);
                    let list = of(kind);
                    match list.is_empty() {
                        true => next.objects.push(network_policy(chance, 90)),
                        false => drop(next.objects.remove(*chance.pick(&list))),
                    }
                }
                3 => next.objects.push(network_policy(chance, 91)),
                _ => {
                    let list = of("Pod");
                    let at = *chance.pick(&list);
                    let mut labels = labels(chance);
                    labels["id"] = next.objects[at]["metadata"]["labels"]["id"].clone();
                    next.objects[at]["metadata"]["labels"] = labels;
                }
            }
        }
        // One name, one object.
        let twice = |list: &[Value], at: usize| {
            list[at + 1..]
                .iter()
                .any(|o| o["kind"] == list[at]["kind"] && o["metadata"]["name"] == list[at]["metadata"]["name"])
        };
        let mut at = 0;
        while at < next.objects.len() {
            if next.objects[at]["kind"] == "NetworkPolicy" && twice(&next.objects, at) {
                next.objects.remove(at);
            } else {
                at += 1;
            }
        }
        next
    }
}

fn pod_object(pod: &PodAt, namespace: &str, mut labels: Value, ports: Value) -> Value {
    labels["id"] = pod.name.clone().into();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": namespace, "uid": pod.name, "labels": labels},
        "spec": {"nodeName": format!("node{}", pod.node), "containers": [{"name": "main", "image": "main", "ports": ports}]},
        "status": {
            "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "podIP": pod.addresses[0], "podIPs": [{"ip": pod.addresses[0]}, {"ip": pod.addresses[1]}],
        },
    })
}
