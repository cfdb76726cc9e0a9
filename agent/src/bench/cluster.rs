//! The cluster a benchmark runs on: two nodes as real objects, imported and compiled like any other.
//!
//! ```text
//! node-a (measured)                  node-b
//!   client-0 … client-15     VXLAN     server-0 … server-255: 16 Services of 16 backends each, with NodePorts
//!   egress gateway 192.0.2.50          stranger: no policy admits it
//! ```
//! Every pod of node-a is selected by one NetworkPolicy of as many rules as asked for; the last one admits servers and
//! clients, the others admit nobody that exists.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use sluice_ctrl::compile::{LocalView, Replay, compile};
use sluice_ctrl::config::Config;
use sluice_ctrl::import::Defaults;
use sluice_ctrl::model::Cluster;
use sluice_ctrl::model::standalone::Standalone;
use sluice_ctrl::source::{Identified, ObjectSet, Origin, RawObject, identify};
use sluice_tables::Tables;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Pods of the measured node.
pub const CLIENTS: u32 = 16;
/// Services unless more are asked for.
pub const SERVICES: u32 = 16;
/// Services that have a NodePort: as many as there are numbers for, and a few to spare.
pub const WITH_NODE_PORT: u32 = 2_000;
/// Backends of a Service.
pub const BACKENDS: u32 = 16;
/// Pods of the other node that back Services.
pub const SERVERS: u32 = SERVICES * BACKENDS;
/// Most Services.
pub const MOST_SERVICES: u32 = 20_000;
/// NodePort of Service 0.
pub const NODE_PORT: u16 = 30_000;
/// Layer-3 MTU of the uplink: pods keep 1500 bytes.
const UPLINK_MTU: u16 = 1570;

/// The measured node's tables and ports.
pub struct Bed {
    /// Compiled tables.
    pub tables: Arc<Tables>,
    /// Uplink, host and pods, as the compiler numbered them.
    pub view: LocalView,
    /// Services.
    pub services: u32,
}

/// Address of this node and of the other one.
pub fn node(v6: bool, other: bool) -> IpAddr {
    let last = 11 + u8::from(other);
    if v6 { Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)).into() } else { [192, 0, 2, last].into() }
}

/// Address of a pod of this node.
pub fn client(v6: bool, n: u32) -> IpAddr {
    pod(v6, 1, n)
}

/// Address of a pod of the other node; number [`SERVERS`] is the stranger.
pub fn server(v6: bool, n: u32) -> IpAddr {
    pod(v6, 2, n)
}

fn pod(v6: bool, node: u8, n: u32) -> IpAddr {
    let host = n + 10;
    if v6 {
        Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, host as u16).into()
    } else {
        Ipv4Addr::from(u32::from_be_bytes([10, 244, node * 2, 0]) + host).into()
    }
}

/// ClusterIP of a Service.
pub fn service(v6: bool, n: u32) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x100 + n as u16).into()
    } else {
        Ipv4Addr::from(0x0a60_0100 + n).into()
    }
}

/// The objects.
fn objects(rules: u32, services: u32) -> Vec<Value> {
    let mut all = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}})];
    for (other, name, cidrs) in [
        (false, "node-a", ["10.244.2.0/23", "fd00:10:244:1::/64"]),
        (true, "node-b", ["10.244.4.0/23", "fd00:10:244:2::/64"]),
    ] {
        all.push(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"egress": if other { "no" } else { "yes" }}},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
            "status": {"addresses": [
                {"type": "InternalIP", "address": node(false, other)}, {"type": "InternalIP", "address": node(true, other)},
            ]},
        }));
    }
    let pod = |name: String, host: &str, labels: Value, addresses: [IpAddr; 2]| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "bench", "uid": name, "labels": labels},
            "spec": {"nodeName": host, "containers": [{"name": "main", "image": "main"}]},
            "status": {
                "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                "podIP": addresses[0], "podIPs": [{"ip": addresses[0]}, {"ip": addresses[1]}],
            },
        })
    };
    for n in 0..CLIENTS {
        let labels = json!({"role": "client", "known": "yes"});
        all.push(pod(format!("client-{n:02}"), "node-a", labels, [client(false, n), client(true, n)]));
    }
    for n in 0..SERVERS {
        let labels = json!({"role": "server", "known": "yes", "service": format!("s{}", n / BACKENDS)});
        all.push(pod(format!("server-{n:03}"), "node-b", labels, [server(false, n), server(true, n)]));
    }
    let addresses = [server(false, SERVERS), server(true, SERVERS)];
    all.push(pod("stranger".into(), "node-b", json!({"role": "stranger"}), addresses));
    for n in 0..services {
        // More Services than groups of pods: each group stands behind several.
        let group = format!("s{}", n % SERVICES);
        let mut port = json!({"port": 80, "targetPort": 8080, "protocol": "TCP"});
        if n < WITH_NODE_PORT {
            port["nodePort"] = json!(u32::from(NODE_PORT) + n);
        }
        all.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{n}"), "namespace": "bench"},
            "spec": {
                "type": if n < WITH_NODE_PORT { "NodePort" } else { "ClusterIP" }, "selector": {"service": group},
                "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
                "clusterIP": service(false, n), "clusterIPs": [service(false, n), service(true, n)],
                "ports": [port],
            },
        }));
    }
    let peer = |key: &str, value: String| json!({"podSelector": {"matchLabels": {key: value}}});
    let rule = |side: &str, n: u32| match n {
        0 => json!({side: [peer("known", "yes".into())]}),
        n => json!({
            side: [peer("absent", format!("p{n}"))],
            "ports": [{"protocol": "TCP", "port": 10_000 + n % 20_000}],
        }),
    };
    let rules_of = |side: &str| (0..rules.max(1)).rev().map(|n| rule(side, n)).collect::<Vec<_>>();
    all.push(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "bench", "namespace": "bench"},
        "spec": {
            "podSelector": {"matchLabels": {"role": "client"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": rules_of("from"), "egress": rules_of("to"),
        },
    }));
    all.push(json!({
        "apiVersion": "sluicegate.dev/v1alpha1", "kind": "EgressGateway", "metadata": {"name": "out"},
        "spec": {
            "podSelector": {"matchLabels": {"role": "server"}}, "namespaceSelector": {},
            "destinationCIDRs": ["198.18.0.0/15", "2001:db8:7::/48"],
            "egressIPs": ["192.0.2.50", "2001:db8::50"], "gatewayNodes": {"matchLabels": {"egress": "yes"}},
        },
    }));
    all
}

/// Builds the cluster and compiles node-a's tables for so many workers.
pub fn build(rules: u32, services: u32, workers: u16) -> Result<Bed> {
    let mut set = ObjectSet::default();
    for (line, value) in (1..).zip(objects(rules, services)) {
        match identify(&value)? {
            Identified::Key(key) => {
                let origin = Origin::File { path: std::path::Path::new("bench").into(), line };
                set.objects.insert(key, Arc::new(RawObject { value, origin }));
            }
            Identified::Other(kind) => bail!("the benchmark's own cluster has an object of unknown kind {kind}"),
        }
    }
    let config = Config::builtin("node-a");
    let standalone = Standalone {
        node: config.node.clone(),
        service_cidrs: config.cidrs.services.clone(),
        node_ports: config.node_ports,
        leases: BTreeMap::new(),
    };
    let (cluster, invalid) = Cluster::build(&set, &Defaults { standalone: Some(standalone) });
    if let Some(finding) = invalid.first() {
        bail!("the benchmark's own cluster is refused: {finding}");
    }
    let replay = Replay { uplink_mtu: UPLINK_MTU, workers, ..Replay::default() };
    let view = LocalView::derived(&cluster, &config.node, &replay)?;
    let mut compiled = compile(&cluster, &view, &sluice_ctrl::compile::Knobs::from(&config), None)?;
    if let Some(finding) = compiled.invalid.first() {
        bail!("the benchmark's own cluster is refused: {finding}");
    }
    compiled.tables.generation = 1;
    Ok(Bed { tables: Arc::new(compiled.tables), view, services })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_tables::Address;

    #[test]
    fn the_cluster_compiles_and_every_client_has_a_policy() {
        let bed = build(10, SERVICES, 2).unwrap();
        assert_eq!(bed.tables.pods.iter().count(), CLIENTS as usize);
        for n in 0..CLIENTS {
            let pod = bed.tables.pods.by_address(Address::from(client(true, n))).unwrap();
            assert!(pod.ingress.is_some() && pod.egress.is_some());
        }
        assert_eq!(bed.tables.egress.addresses.len(), 2);
    }
}
