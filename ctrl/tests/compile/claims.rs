//! Contradictory claims of Services, health-check ports, hints and NodePort addresses: what is programmed, what is said.

use std::collections::BTreeSet;

use sluice_ctrl::compile::{Compiled, Knobs, LocalView, Replay, compile};
use sluice_ctrl::config::Config;

use crate::story::{Ask, NODES, Story, TCP, ip, pod};

/// A LoadBalancer Service with this name, cluster address, node port and VIP, and one ready endpoint on each node.
fn balanced(name: &str, last: u8, node_port: u16, vip: &str, more: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Service
metadata: {{ namespace: shop, name: {name} }}
spec: {{ type: LoadBalancer, clusterIP: 10.96.0.{last}, ports: [{{ port: 80, nodePort: {node_port} }}], {more} }}
status: {{ loadBalancer: {{ ingress: [{{ ip: {vip} }}] }} }}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ namespace: shop, name: {name}-1, labels: {{ kubernetes.io/service-name: {name} }} }}
addressType: IPv4
ports: [{{ port: 8080 }}]
endpoints:
- {{ addresses: [10.244.1.9], nodeName: node-a }}
- {{ addresses: [10.244.2.9], nodeName: node-b }}
"
    )
}

fn said(compiled: &Compiled, name: &str) -> Vec<String> {
    compiled.invalid.iter().filter(|f| f.name == name).map(|f| format!("{}: {}", f.field, f.why)).collect()
}

#[test]
fn a_service_address_that_a_pod_has_is_refused_and_the_rest_of_the_service_programmed() {
    let world =
        Story::new(NODES).with(&pod("shop", "x", "node-b", 77)).with(&balanced("web", 10, 30080, "10.244.2.77", ""));
    let compiled = world.on("node-a");
    assert!(compiled.frontend("10.244.2.77", TCP, 80).is_none());
    assert!(compiled.frontend("10.96.0.10", TCP, 80).is_some() && compiled.frontend("0.0.0.0", TCP, 30080).is_some());
    let why = said(&compiled, "shop/web");
    assert_eq!(why.len(), 1, "{why:?}");
    assert!(why[0].contains("status.loadBalancer.ingress") && why[0].contains("10.244.2.77"), "{why:?}");
    // The pod goes: the address is free, though neither Service nor slice has changed.
    let after = world.without("Pod/shop/x").after("node-a", Some(&compiled));
    assert!(after.frontend("10.244.2.77", TCP, 80).is_some());
    assert_eq!(said(&after, "shop/web"), Vec::<String>::new());
    let again =
        Story::new(NODES).with(&pod("shop", "x", "node-b", 77)).with(&balanced("web", 10, 30080, "10.244.2.77", ""));
    assert!(again.after("node-a", Some(&after)).frontend("10.244.2.77", TCP, 80).is_none());
}

#[test]
fn of_two_services_with_one_cluster_address_or_node_port_the_second_by_name_is_told_and_keeps_the_rest() {
    let world = Story::new(NODES)
        .with(&balanced("aaa", 10, 30080, "203.0.113.1", ""))
        .with(&balanced("bbb", 10, 30081, "203.0.113.2", ""))
        .with(&balanced("ccc", 12, 30080, "203.0.113.3", ""));
    let compiled = world.on("node-a");
    let name = |address, port| compiled.frontend(address, TCP, port).map(|f| f.name.to_string());
    assert_eq!(name("10.96.0.10", 80).as_deref(), Some("shop/aaa:80/TCP"));
    assert_eq!(name("0.0.0.0", 30080).as_deref(), Some("shop/aaa:80/TCP"));
    assert_eq!(name("203.0.113.2", 80).as_deref(), Some("shop/bbb:80/TCP"));
    assert_eq!(name("203.0.113.3", 80).as_deref(), Some("shop/ccc:80/TCP"));
    assert!(said(&compiled, "shop/aaa").is_empty());
    assert!(said(&compiled, "shop/bbb").concat().contains("10.96.0.10 port 80 belongs to Service shop/aaa"));
    assert!(said(&compiled, "shop/ccc").concat().contains("node port 30080 belongs to Service shop/aaa"));
}

#[test]
fn health_check_ports_count_ready_endpoints_of_this_node_and_one_service_has_a_port() {
    let local = "externalTrafficPolicy: Local, healthCheckNodePort: 31000";
    let world = Story::new(NODES).with(&balanced("web", 10, 30080, "203.0.113.1", local));
    let of = |compiled: &Compiled| -> Vec<(u16, String, usize)> {
        compiled.health_checks.iter().map(|c| (c.port, c.service.to_string(), c.local_endpoints)).collect()
    };
    assert_eq!(of(&world.on("node-a")), [(31_000, "shop/web".into(), 1)], "94");
    let elsewhere = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { namespace: shop, name: web-1, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
ports: [{ port: 8080 }, { name: other, port: 9090 }]
endpoints:
- { addresses: [10.244.1.9], nodeName: node-a, conditions: { ready: false, serving: true, terminating: true } }
- { addresses: [10.244.2.9], nodeName: node-b }
";
    assert_eq!(
        of(&world.clone().with(elsewhere).on("node-a")),
        [(31_000, "shop/web".into(), 0)],
        "94: terminating only"
    );
    let cluster = Story::new(NODES).with(&balanced("web", 10, 30080, "203.0.113.1", "healthCheckNodePort: 31000"));
    assert!(of(&cluster.after("node-a", Some(&world.on("node-a")))).is_empty(), "95: closed with policy Cluster");
    let two = world.with(&balanced("zzz", 11, 30081, "203.0.113.2", local)).on("node-a");
    assert_eq!(of(&two), [(31_000, "shop/web".into(), 1)]);
    assert!(said(&two, "shop/zzz").concat().contains("spec.healthCheckNodePort"), "{:?}", two.invalid);
}

#[test]
fn what_became_of_hints_is_said_for_each_service_port() {
    let hinted = |a: &str, b: &str| {
        format!(
            "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ namespace: shop, name: web-1, labels: {{ kubernetes.io/service-name: web }} }}
addressType: IPv4
ports: [{{ port: 8080 }}]
endpoints:
- {{ addresses: [10.244.1.9], nodeName: node-a, hints: {{ {a} }} }}
- {{ addresses: [10.244.2.9], nodeName: node-b, hints: {{ {b} }} }}
"
        )
    };
    let zone = |name: &str| format!("forZones: [{{ name: {name} }}]");
    let both = |node: &str, zone: &str| format!("forNodes: [{{ name: {node} }}], forZones: [{{ name: {zone} }}]");
    let how = |a: &str, b: &str, more: &str| {
        let world = Story::new(NODES).with(&balanced("web", 10, 30080, "203.0.113.1", more)).with(&hinted(a, b));
        let compiled = world.on("node-a");
        let all: Vec<_> = compiled.topology().map(|(_, port, how)| (port.to_owned(), how.to_string())).collect();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].0, "shop/web:80/TCP");
        all[0].1.clone()
    };
    let near = "trafficDistribution: PreferSameZone";
    assert_eq!(how("", "", ""), "no hints");
    assert_eq!(how("", "", near), "all endpoints: 10.244.1.9:8080 has no hint");
    assert_eq!(how(&zone("east"), "", near), "all endpoints: 10.244.2.9:8080 has no hint");
    assert_eq!(how(&zone("east"), &zone("west"), near), "only endpoints hinted for zone east");
    assert_eq!(how(&zone("north"), &zone("west"), near), "all endpoints: none is hinted for zone east");
    assert_eq!(how(&both("node-a", "east"), &both("node-b", "west"), near), "only endpoints hinted for this node");
    assert_eq!(how(&both("node-c", "east"), &both("node-b", "west"), near), "only endpoints hinted for zone east");
}

#[test]
fn node_ports_answer_at_the_first_internal_ip_of_each_family_or_at_the_addresses_asked_for() {
    let more = "
apiVersion: v1
kind: Node
metadata: { name: node-a }
spec: { podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64'] }
status:
  addresses:
  - { type: InternalIP, address: 192.0.2.11 }
  - { type: InternalIP, address: 192.0.2.99 }
  - { type: ExternalIP, address: 198.51.100.11 }
  - { type: InternalIP, address: '2001:db8::11' }
";
    let world = Story::new(NODES).with(more).with(&balanced("web", 10, 30080, "203.0.113.1", ""));
    let at = |networks: &[&str]| {
        let cluster = world.cluster();
        let view = LocalView::derived(&cluster, "node-a", &Replay::default()).unwrap();
        let node_port_networks = networks.iter().map(|net| net.parse().unwrap()).collect();
        let knobs = Knobs { node_port_networks, ..Knobs::from(&Config::builtin("node-a")) };
        let compiled = compile(&cluster, &view, &knobs, None).unwrap();
        let serves: BTreeSet<_> = compiled.tables.node.node_port_addresses.iter().copied().collect();
        (serves, compiled.steering.node_addresses)
    };
    let set = |list: &[&str]| list.iter().map(|a| ip(a)).collect::<BTreeSet<_>>();
    let (serves, steered) = at(&[]);
    assert_eq!(serves, set(&["192.0.2.11", "2001:db8::11"]), "88");
    assert!(!steered.contains(&"192.0.2.99".parse().unwrap()), "the kernel keeps the others");
    let (serves, steered) = at(&["192.0.2.96/28", "198.51.100.0/24", "2001:db8:1::/48"]);
    assert_eq!(serves, set(&["192.0.2.99", "198.51.100.11"]), "88");
    assert!(steered.contains(&"198.51.100.11".parse().unwrap()) && steered.contains(&"192.0.2.11".parse().unwrap()));
}

#[test]
fn every_node_sends_a_clients_flow_from_outside_to_the_same_backend() {
    let world = Story::new(NODES).with(&balanced("web", 10, 30080, "203.0.113.1", ""));
    let (here, there) = (world.on("node-a"), world.on("node-b"));
    let set = |compiled: &Compiled| compiled.frontend("203.0.113.1", TCP, 80).unwrap().external.clone();
    for hash in (0..10_000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
        let pair = [&here, &there].map(|compiled| set(compiled).choose(hash).map(|b| (b.address, b.port)));
        assert_eq!(pair[0], pair[1]);
    }
}

#[test]
fn a_change_of_one_service_leaves_every_other_services_shard_and_version_alone() {
    let mut world = Story::new(NODES);
    for n in 0..60 {
        world = world.with(&balanced(&format!("s{n}"), 10 + n, 30_000 + u16::from(n), &format!("203.0.113.{n}"), ""));
    }
    let before = world.on("node-a");
    let changed = world.with(&balanced("s7", 17, 30_007, "203.0.113.7", "").replace("10.244.1.9", "10.244.1.8"));
    let after = changed.after("node-a", Some(&before));
    assert_eq!(after.tables.dump(), changed.on("node-a").tables.dump(), "the same as made anew");
    let (a, b) = (&before.tables.services, &after.tables.services);
    let moved = a.shards.iter().zip(&b.shards).filter(|(a, b)| !std::sync::Arc::ptr_eq(a, b)).count();
    assert!((1..=3).contains(&moved), "its three frontends' shards and no other: {moved}");
    let versions = a.versions.iter().zip(b.versions.iter()).filter(|(a, b)| a != b).count();
    assert_eq!(versions, 1);
    let (a, b) = (&before.tables.hops, &after.tables.hops);
    assert!(std::sync::Arc::ptr_eq(a, b), "nothing but Services was compiled");
    assert!(std::sync::Arc::ptr_eq(&before.steering.owned_addresses, &after.steering.owned_addresses));
}
