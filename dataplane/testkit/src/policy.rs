//! What policy objects say about a packet, read from their JSON as the API's text describes it: no identities, no tables,
//! nothing kept between two questions. A twin for everything that compiles policies.
//!
//! Source: networking.k8s.io/v1 `NetworkPolicy`, policy.networking.k8s.io/v1alpha2 `ClusterNetworkPolicy`. Objects are taken
//! to be well-formed: what a field that nobody knows does is not asked here.

use serde_json::Value;
use std::net::IpAddr;

/// Which way a pod's border is crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// What policy sees of a packet: after Service translation, before masquerade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Source address.
    pub from: IpAddr,
    /// Destination address.
    pub to: IpAddr,
    /// `TCP`, `UDP`, `SCTP`; anything else has no ports.
    pub protocol: &'static str,
    /// Destination port.
    pub port: u16,
}

/// What one side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Whether the packet may pass.
    pub allow: bool,
    /// The rule that decided; none where nothing selects the pod.
    pub by: Option<String>,
    /// A policy that is only audited has a part in it, which may be named instead.
    pub audited: bool,
}

/// The objects.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// All of them, of whatever kind.
    pub list: Vec<Value>,
}

impl Objects {
    fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.list.iter().filter(move |object| object["kind"] == kind)
    }

    /// The pod that has an address: running, and not on its node's network.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Value> {
        let own = |pod: &&Value| {
            let finished = ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
            let listed = list(&pod["status"]["podIPs"]).any(|ip| parse(&ip["ip"]) == Some(address));
            !finished && pod["spec"]["hostNetwork"] != true && listed
        };
        self.of("Pod").find(own)
    }

    /// Both ends of a packet: what the source's egress rules and the destination's ingress rules say, where they are pods.
    pub fn both(&self, seen: &Seen) -> [Option<Said>; 2] {
        let egress = self.pod_at(seen.from).map(|pod| self.side(pod, Way::Egress, seen));
        let ingress = self.pod_at(seen.to).map(|pod| self.side(pod, Way::Ingress, seen));
        [egress, ingress]
    }

    /// One side of one pod.
    pub fn side(&self, pod: &Value, way: Way, seen: &Seen) -> Said {
        let mut audited = false;
        if let Some(said) = self.tier("Admin", pod, way, seen, &mut audited) {
            return said;
        }
        let mut isolating = Vec::new();
        for policy in self.of("NetworkPolicy") {
            let selects = namespace_of(policy) == namespace_of(pod)
                && selects(&policy["spec"]["podSelector"], &pod["metadata"]["labels"]);
            if selects && speaks_of(policy, way) {
                isolating.push(policy);
            }
        }
        isolating.sort_by_key(|policy| text(&policy["metadata"]["name"]));
        for policy in &isolating {
            let rules = list(&policy["spec"][if way == Way::Ingress { "ingress" } else { "egress" }]);
            for rule in rules {
                if self.rule_matches(policy, rule, pod, way, seen) {
                    let by = format!("NetworkPolicy/{}/{}", namespace_of(policy), text(&policy["metadata"]["name"]));
                    return Said { allow: true, by: Some(by), audited };
                }
            }
        }
        if isolating.iter().any(|policy| !is_audited(policy)) {
            return Said { allow: false, by: Some("isolation".to_owned()), audited };
        }
        audited |= !isolating.is_empty();
        let open = Said { allow: true, by: None, audited };
        self.tier("Baseline", pod, way, seen, &mut audited).unwrap_or(Said { audited, ..open })
    }

    fn rule_matches(&self, policy: &Value, rule: &Value, pod: &Value, way: Way, seen: &Seen) -> bool {
        let peers = &rule[if way == Way::Ingress { "from" } else { "to" }];
        let peer = if way == Way::Ingress { seen.from } else { seen.to };
        let is_peer = list(peers).next().is_none()
            || list(peers).any(|entry| match entry.get("ipBlock") {
                Some(block) => inside(&block["cidr"], peer) && !list(&block["except"]).any(|hole| inside(hole, peer)),
                None => self.pod_at(peer).is_some_and(|other| {
                    let namespace = match entry.get("namespaceSelector") {
                        None => namespace_of(other) == namespace_of(policy),
                        Some(selector) => selects(selector, &self.labels_of_namespace(namespace_of(other))),
                    };
                    let everything = Value::Null;
                    let pods = entry.get("podSelector").unwrap_or(&everything);
                    namespace && selects(pods, &other["metadata"]["labels"])
                }),
            });
        let ports = &rule["ports"];
        let target = if way == Way::Ingress { Some(pod) } else { self.pod_at(peer) };
        let is_port = list(ports).next().is_none()
            || list(ports).any(|entry| {
                let protocol = entry["protocol"].as_str().unwrap_or("TCP");
                seen.protocol == protocol
                    && match &entry["port"] {
                        Value::Null => true,
                        Value::Number(first) => {
                            let first = first.as_u64().unwrap_or(0);
                            let last = entry["endPort"].as_u64().unwrap_or(first);
                            (first..=last).contains(&u64::from(seen.port))
                        }
                        name => target.is_some_and(|target| has_port(target, name, seen)),
                    }
            });
        is_peer && is_port
    }

    /// The cluster-wide policies of a tier: none where they leave the packet to what comes after.
    fn tier(&self, tier: &str, pod: &Value, way: Way, seen: &Seen, audited: &mut bool) -> Option<Said> {
        let namespace = self.labels_of_namespace(namespace_of(pod));
        let mut policies: Vec<&Value> = Vec::new();
        for policy in self.of("ClusterNetworkPolicy").filter(|policy| policy["spec"]["tier"] == tier) {
            let subject = &policy["spec"]["subject"];
            let is_subject = match subject.get("pods") {
                None => selects(&subject["namespaces"], &namespace),
                Some(pods) => {
                    selects(&pods["namespaceSelector"], &namespace)
                        && selects(&pods["podSelector"], &pod["metadata"]["labels"])
                }
            };
            if is_subject {
                policies.push(policy);
            }
        }
        policies.sort_by_key(|policy| (policy["spec"]["priority"].as_u64(), text(&policy["metadata"]["name"])));
        let word = if way == Way::Ingress { "ingress" } else { "egress" };
        for policy in policies {
            for (at, rule) in list(&policy["spec"][word]).enumerate() {
                if !self.cluster_rule_matches(rule, pod, way, seen) {
                    continue;
                }
                let name = rule["name"].as_str().map_or(format!("{word}[{at}]"), str::to_owned);
                let by = Some(format!("ClusterNetworkPolicy/{}#{name}", text(&policy["metadata"]["name"])));
                match rule["action"].as_str() {
                    Some("Accept") => return Some(Said { allow: true, by, audited: *audited }),
                    Some("Deny") if is_audited(policy) => *audited = true,
                    Some("Deny") => return Some(Said { allow: false, by, audited: *audited }),
                    _ => return None,
                }
            }
        }
        None
    }

    fn cluster_rule_matches(&self, rule: &Value, pod: &Value, way: Way, seen: &Seen) -> bool {
        let peers = &rule[if way == Way::Ingress { "from" } else { "to" }];
        let peer = if way == Way::Ingress { seen.from } else { seen.to };
        let other = self.pod_at(peer);
        let is_pod = |namespaces: &Value, pods: &Value| {
            other.is_some_and(|other| {
                selects(namespaces, &self.labels_of_namespace(namespace_of(other)))
                    && selects(pods, &other["metadata"]["labels"])
            })
        };
        let is_peer = list(peers).any(|entry| {
            if let Some(namespaces) = entry.get("namespaces") {
                is_pod(namespaces, &Value::Null)
            } else if let Some(pods) = entry.get("pods") {
                is_pod(&pods["namespaceSelector"], &pods["podSelector"])
            } else if let Some(nodes) = entry.get("nodes") {
                self.of("Node").any(|node| selects(nodes, &node["metadata"]["labels"]) && is_of_node(node, peer))
            } else {
                list(&entry["networks"]).any(|network| inside(network, peer))
            }
        });
        let protocols = &rule["protocols"];
        let target = if way == Way::Ingress { Some(pod) } else { other };
        let is_port = protocols.is_null()
            || list(protocols).any(|entry| match entry.get("destinationNamedPort") {
                Some(name) => target.is_some_and(|target| has_port(target, name, seen)),
                None => {
                    let port = &entry[&*seen.protocol.to_lowercase()]["destinationPort"];
                    match (port["number"].as_u64(), port["range"].as_object()) {
                        (Some(number), _) => number == u64::from(seen.port),
                        (None, Some(range)) => {
                            let end = |key: &str| range.get(key).and_then(Value::as_u64).unwrap_or(0);
                            (end("start")..=end("end")).contains(&u64::from(seen.port))
                        }
                        (None, None) => false,
                    }
                }
            });
        is_peer && is_port
    }

    /// A namespace's labels with the one that the API server adds.
    fn labels_of_namespace(&self, name: &str) -> Value {
        let known = self.of("Namespace").find(|namespace| namespace["metadata"]["name"] == name);
        let mut labels = known.map(|namespace| namespace["metadata"]["labels"].clone()).unwrap_or_default();
        if labels.is_null() {
            labels = serde_json::json!({});
        }
        labels["kubernetes.io/metadata.name"] = name.into();
        labels
    }
}

/// Whether a policy isolates its pods for a direction: what `policyTypes` says, or, without it, ingress always and egress
/// where there are egress rules.
fn speaks_of(policy: &Value, way: Way) -> bool {
    let spec = &policy["spec"];
    match (spec["policyTypes"].as_array(), way) {
        (Some(types), Way::Ingress) => types.iter().any(|kind| kind == "Ingress"),
        (Some(types), Way::Egress) => types.iter().any(|kind| kind == "Egress"),
        (None, Way::Ingress) => true,
        (None, Way::Egress) => list(&spec["egress"]).next().is_some(),
    }
}

fn is_audited(policy: &Value) -> bool {
    policy["metadata"]["annotations"]["sluicegate.dev/enforcement"] == "audit"
}

/// meta/v1 `LabelSelector`; one that is not there selects everything.
fn selects(selector: &Value, labels: &Value) -> bool {
    let by_label = selector["matchLabels"].as_object().into_iter().flatten().all(|(key, value)| labels[key] == *value);
    by_label
        && list(&selector["matchExpressions"]).all(|expression| {
            let value = labels.get(text(&expression["key"]));
            let listed = value.is_some_and(|value| list(&expression["values"]).any(|one| one == value));
            match expression["operator"].as_str() {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("Exists") => value.is_some(),
                _ => value.is_none(),
            }
        })
}

/// Whether a container of a pod calls this protocol and port so.
fn has_port(pod: &Value, name: &Value, seen: &Seen) -> bool {
    list(&pod["spec"]["containers"]).flat_map(|container| list(&container["ports"])).any(|port| {
        port["name"] == *name
            && port["protocol"].as_str().unwrap_or("TCP") == seen.protocol
            && port["containerPort"] == u64::from(seen.port)
    })
}

/// The node's own addresses, and the one it has on the overlay: the first after its podCIDR's network address.
fn is_of_node(node: &Value, address: IpAddr) -> bool {
    let own = list(&node["status"]["addresses"]).any(|own| parse(&own["address"]) == Some(address));
    let overlay = |cidr: &Value| {
        let network = text(cidr).split_once('/').and_then(|(network, _)| network.parse::<IpAddr>().ok());
        network
            .is_some_and(|network| number(network).0 + 1 == number(address).0 && number(network).1 == number(address).1)
    };
    own || list(&node["spec"]["podCIDRs"]).any(overlay)
}

/// Whether an address is in a network written as `address/length`.
fn inside(cidr: &Value, address: IpAddr) -> bool {
    let Some((network, length)) = text(cidr).split_once('/') else { return false };
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    let ((network, bits), (address, own)) = (number(network), number(address));
    bits == own && (length == 0 || network >> (bits - length) == address >> (bits - length))
}

/// An address as a number, and how many bits its family has.
fn number(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u32::from(v4).into(), 32),
        IpAddr::V6(v6) => (v6.into(), 128),
    }
}

fn namespace_of(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or("default")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn parse(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
