//! A cluster told in YAML, compiled for one of its nodes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use sluice_ctrl::compile::{Compiled, Knobs, LocalView, Replay, compile};
use sluice_ctrl::config::Config;
use sluice_ctrl::import::Defaults;
use sluice_ctrl::model::Cluster;
use sluice_ctrl::model::standalone::Standalone;
use sluice_ctrl::source::{Identified, ObjectKey, ObjectSet, Origin, RawObject, identify};
use sluice_tables::{Address, Decision, Direction, Frontend, FrontendKey, Pod, Tables};

/// Objects as an API server or a folder would give them.
#[derive(Clone, Default)]
pub struct Story {
    objects: BTreeMap<ObjectKey, serde_json::Value>,
}

impl Story {
    pub fn new(yaml: &str) -> Story {
        Story::default().with(yaml)
    }

    /// Adds or replaces objects.
    pub fn with(mut self, yaml: &str) -> Story {
        for document in serde_yaml_ng::Deserializer::from_str(yaml) {
            let value = serde_json::Value::deserialize(document).expect("the story is YAML");
            if value.is_null() {
                continue;
            }
            match identify(&value) {
                Ok(Identified::Key(key)) => self.objects.insert(key, value),
                other => panic!("the story has an object of another kind: {other:?}"),
            };
        }
        self
    }

    /// Takes an object away, by `Kind/ns/name` or `Kind/name`.
    pub fn without(mut self, name: &str) -> Story {
        let before = self.objects.len();
        self.objects.retain(|key, _| key.to_string() != name);
        assert!(self.objects.len() < before, "the story has no {name}");
        self
    }

    pub fn keys(&self) -> Vec<ObjectKey> {
        self.objects.keys().cloned().collect()
    }

    /// The story with only these objects.
    pub fn only(&self, keys: &[ObjectKey]) -> Story {
        Story { objects: keys.iter().map(|key| (key.clone(), self.objects[key].clone())).collect() }
    }

    pub fn cluster(&self) -> Cluster {
        let raw = |value: &serde_json::Value| Arc::new(RawObject { value: value.clone(), origin: Origin::ApiServer });
        let objects =
            ObjectSet { objects: self.objects.iter().map(|(key, value)| (key.clone(), raw(value))).collect() };
        Cluster::build(&objects, &Defaults { standalone: Some(Standalone::default()) }).0
    }

    pub fn on(&self, node: &str) -> Compiled {
        self.after(node, None)
    }

    pub fn after(&self, node: &str, previous: Option<&Compiled>) -> Compiled {
        let cluster = self.cluster();
        let view = LocalView::derived(&cluster, node, &Replay::default()).expect("the node is in the story");
        // Off by default; these stories tell what they are where they are asked for.
        let knobs = Knobs { external_ips: true, ..Knobs::from(&Config::builtin(node)) };
        compile(&cluster, &view, &knobs, previous).expect("the story compiles")
    }
}

/// Questions that tests ask of tables.
pub trait Ask {
    fn tables(&self) -> &Tables;

    fn frontend(&self, address: &str, protocol: u8, port: u16) -> Option<&Frontend> {
        let key = FrontendKey { address: ip(address), protocol, port };
        self.tables().services.frontend(&key)
    }

    fn local_pod(&self, name: &str) -> &Pod {
        self.tables().pods.iter().find(|p| &*p.name == name).unwrap_or_else(|| panic!("no local pod {name}"))
    }

    fn version(&self, pod: &str) -> u32 {
        self.tables().pods.versions()[usize::from(self.local_pod(pod).port)]
    }

    fn slot_version(&self, address: &str, protocol: u8, port: u16) -> u32 {
        self.tables().services.version(self.frontend(address, protocol, port).expect("a frontend").slot)
    }

    fn decide(&self, direction: Direction, pod: &str, peer: &str, protocol: u8, port: u16) -> Decision {
        let tables = self.tables();
        let pod = self.local_pod(pod);
        let set = match direction {
            Direction::Ingress => pod.ingress,
            Direction::Egress => pod.egress,
        };
        tables.policy.decide(set, tables.identities.of(ip(peer)), protocol, port)
    }

    /// The verdict and the name of the rule that gave it.
    fn ingress(&self, pod: &str, peer: &str, protocol: u8, port: u16) -> (bool, Option<String>) {
        self.named(self.decide(Direction::Ingress, pod, peer, protocol, port))
    }

    fn egress(&self, pod: &str, peer: &str, protocol: u8, port: u16) -> (bool, Option<String>) {
        self.named(self.decide(Direction::Egress, pod, peer, protocol, port))
    }

    fn named(&self, decision: Decision) -> (bool, Option<String>) {
        (decision.allow, self.tables().policy.name(decision.rule).map(|n| n.to_string()))
    }
}

impl Ask for Compiled {
    fn tables(&self) -> &Tables {
        &self.tables
    }
}

pub fn ip(text: &str) -> Address {
    text.parse::<IpAddr>().expect("an address").into()
}

pub fn backends(set: &sluice_tables::BackendSet) -> Vec<String> {
    let text = |b: &sluice_tables::Backend| format!("{}:{}{}", b.address, b.port, if b.local { "*" } else { "" });
    set.backends.iter().map(text).collect()
}

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const ICMP: u8 = 1;

/// Two nodes, node-a and node-b, in zones east and west, both families.
pub const NODES: &str = "
apiVersion: v1
kind: Node
metadata: { name: node-a, labels: { topology.kubernetes.io/zone: east } }
spec: { podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64'] }
status: { addresses: [{ type: InternalIP, address: 192.0.2.11 }, { type: InternalIP, address: '2001:db8::11' }] }
---
apiVersion: v1
kind: Node
metadata: { name: node-b, labels: { topology.kubernetes.io/zone: west } }
spec: { podCIDRs: [10.244.2.0/24, 'fd00:10:244:2::/64'] }
status: { addresses: [{ type: InternalIP, address: 192.0.2.12 }, { type: InternalIP, address: '2001:db8::12' }] }
";

/// A running pod of namespace `ns` with one label `pod: NAME`, IPv4 and IPv6.
pub fn pod(ns: &str, name: &str, node: &str, last: u8) -> String {
    let net = if node == "node-a" { 1 } else { 2 };
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{ namespace: {ns}, name: {name}, labels: {{ pod: {name} }} }}
spec: {{ nodeName: {node}, containers: [{{ name: c, ports: [{{ name: http, containerPort: 80 }}] }}] }}
status: {{ phase: Running, podIPs: [{{ ip: 10.244.{net}.{last} }}, {{ ip: 'fd00:10:244:{net}::{last}' }}] }}
"
    )
}
