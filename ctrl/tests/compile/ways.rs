//! Hops, routes, peers, MTUs and neighbours.

use sluice_ctrl::compile::{LocalView, Replay};
use sluice_tables::{HopKind, Route};

use crate::story::{Ask, NODES, Story, ip, pod};

fn two_nodes() -> Story {
    Story::new(NODES).with(&pod("default", "a", "node-a", 5)).with(&pod("default", "b", "node-b", 6))
}

#[test]
fn hops_are_numbered_host_pods_tunnels_gateways_neighbours() {
    let compiled = two_nodes().on("node-a");
    let kinds: Vec<_> = compiled.tables.hops.iter().map(|h| h.kind).collect();
    use HopKind::{Host, Pod, Tunnel, Uplink};
    assert_eq!(kinds, [Host, Pod, Tunnel, Uplink, Uplink, Uplink, Uplink]);
}

#[test]
fn a_tunnel_is_ipv4_and_bears_the_macs_of_the_rule() {
    let compiled = two_nodes().on("node-a");
    let Some(Route::Tunnel(id)) = compiled.tables.routes.lookup(ip("10.244.2.6")) else { panic!("no tunnel") };
    let hop = compiled.tables.hops.get(id).unwrap();
    assert_eq!((hop.kind, hop.header_len, hop.mtu), (HopKind::Tunnel, 64, 1450));
    assert_eq!(hop.header[..12], [2, 0, 192, 0, 2, 12, 2, 0, 192, 0, 2, 11], "outer: the neighbour and us");
    assert_eq!(hop.header[50..62], [2, 0, 192, 0, 2, 12, 2, 0, 192, 0, 2, 11], "inner: the two nodes");
    assert_eq!(
        compiled.tables.routes.lookup(ip("fd00:10:244:2::6")),
        Some(Route::Tunnel(id)),
        "one way for both families"
    );
    assert_eq!(compiled.tables.node.pod_mtu, 1450);
}

#[test]
fn a_foreign_peer_names_its_own_tunnel_mac() {
    let foreign = "
apiVersion: v1
kind: Node
metadata: { name: node-b, annotations: { sluicegate.dev/vtep-mac: '0a:0b:0c:0d:0e:0f' } }
spec: { podCIDRs: [10.244.2.0/24] }
status: { addresses: [{ type: InternalIP, address: 192.0.2.12 }] }
";
    let compiled = two_nodes().with(foreign).on("node-a");
    let Some(Route::Tunnel(id)) = compiled.tables.routes.lookup(ip("10.244.2.6")) else { panic!("no tunnel") };
    let hop = compiled.tables.hops.get(id).unwrap();
    assert_eq!(hop.header[50..56], [0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f]);
    assert_eq!(hop.header[..6], [2, 0, 192, 0, 2, 12], "the outer frame goes to the neighbour all the same");
}

#[test]
fn one_peer_without_ipv4_lowers_the_pods_mtu_and_not_the_other_tunnels() {
    let six = "
apiVersion: v1
kind: Node
metadata: { name: node-c }
spec: { podCIDRs: ['fd00:10:244:3::/64'] }
status: { addresses: [{ type: InternalIP, address: '2001:db8::13' }] }
";
    let compiled = two_nodes().with(six).on("node-a");
    assert_eq!(compiled.tables.node.pod_mtu, 1430);
    let mtu = |to: &str| match compiled.tables.routes.lookup(ip(to)) {
        Some(Route::Tunnel(id)) => compiled.tables.hops.get(id).unwrap().mtu,
        other => panic!("{other:?}"),
    };
    assert_eq!((mtu("10.244.2.6"), mtu("fd00:10:244:3::1")), (1450, 1430));
    assert!(compiled.tables.routes.peers.contains_key(&ip("2001:db8::13")));
}

#[test]
fn destinations_lie_where_the_cluster_says() {
    let routes = two_nodes().on("node-a").tables.routes;
    let at = |to: &str| routes.lookup(ip(to));
    for own in ["192.0.2.11", "2001:db8::11", "10.244.1.1", "fd00:10:244:1::1"] {
        assert_eq!(at(own), Some(Route::Node), "{own}");
    }
    for nobody in ["10.244.1.99", "10.244.77.1", "10.96.3.4", "fd00:10:96::7", "fd00:10:244:1::9999"] {
        assert_eq!(at(nobody), Some(Route::Nowhere), "{nobody}");
    }
    assert!(matches!(at("10.244.2.1"), Some(Route::Tunnel(_))), "another node's overlay address");
    for node in ["192.0.2.12", "2001:db8::12"] {
        assert!(matches!(at(node), Some(Route::PeerNode { tunnel, direct }) if tunnel != direct), "{node}");
    }
    assert!(matches!(at("198.51.100.1"), Some(Route::External(_))));
    assert_eq!(at("192.0.2.99"), Some(Route::Unresolved), "on the node's own subnet, nobody known there");
}

#[test]
fn a_pod_outside_its_nodes_network_has_its_own_way_and_may_send_from_there() {
    let guest = "
apiVersion: v1
kind: Pod
metadata: { namespace: default, name: guest }
spec: { nodeName: node-b }
status: { phase: Running, podIPs: [{ ip: 10.244.1.77 }, { ip: 10.244.77.9 }] }
";
    let compiled = two_nodes().with(guest).on("node-a");
    let routes = &compiled.tables.routes;
    assert!(matches!(routes.lookup(ip("10.244.1.77")), Some(Route::Tunnel(_))));
    assert!(matches!(routes.lookup(ip("10.244.77.9")), Some(Route::Tunnel(_))));
    for outer in ["192.0.2.12", "2001:db8::12"] {
        let peer = &routes.peers[&ip(outer)];
        let may = |from: &str| peer.sources.iter().any(|p| p.contains(ip(from)));
        assert!(may("10.244.2.200") && may("192.0.2.12") && may("10.244.1.77") && may("10.244.77.9"));
        assert!(!may("10.244.1.5") && !may("10.244.3.1") && !may("198.51.100.1"));
    }
}

#[test]
fn finished_pods_and_pods_on_the_hosts_network_have_no_port_and_no_address() {
    let others = "
apiVersion: v1
kind: Pod
metadata: { namespace: default, name: done }
spec: { nodeName: node-a }
status: { phase: Succeeded, podIPs: [{ ip: 10.244.1.50 }] }
---
apiVersion: v1
kind: Pod
metadata: { namespace: default, name: agent }
spec: { nodeName: node-a, hostNetwork: true }
status: { phase: Running, podIPs: [{ ip: 192.0.2.11 }] }
";
    let compiled = two_nodes().with(others).on("node-a");
    let names: Vec<_> = compiled.tables.pods.iter().map(|p| p.name.to_string()).collect();
    assert_eq!(names, ["default/a"]);
    assert_eq!(compiled.tables.routes.lookup(ip("10.244.1.50")), Some(Route::Nowhere));
    assert_eq!(compiled.tables.routes.lookup(ip("192.0.2.11")), Some(Route::Node));
}

#[test]
fn unknown_neighbours_are_wanted_and_their_ways_unresolved() {
    let story = two_nodes();
    let cluster = story.cluster();
    let mut view = LocalView::derived(&cluster, "node-a", &Replay::default()).unwrap();
    view.neighbours.clear();
    let knobs = sluice_ctrl::compile::Knobs::from(&sluice_ctrl::config::Config::builtin("node-a"));
    let compiled = sluice_ctrl::compile::compile(&cluster, &view, &knobs, None).unwrap();
    let wanted: Vec<_> = compiled.wanted_neighbours.iter().map(|ip| ip.to_string()).collect();
    assert_eq!(wanted, ["192.0.2.1", "192.0.2.12", "2001:db8::1", "2001:db8::12"]);
    let Some(Route::Tunnel(id)) = compiled.tables.routes.lookup(ip("10.244.2.6")) else { panic!("no tunnel") };
    assert_eq!(compiled.tables.hops.get(id).unwrap().kind, HopKind::Unresolved);
}

#[test]
fn a_peer_on_another_subnet_is_reached_through_the_gateway() {
    let far = "
apiVersion: v1
kind: Node
metadata: { name: node-b }
spec: { podCIDRs: [10.244.2.0/24] }
status: { addresses: [{ type: InternalIP, address: 198.51.100.12 }] }
";
    let compiled = two_nodes().with(far).on("node-a");
    let Some(Route::Tunnel(id)) = compiled.tables.routes.lookup(ip("10.244.2.6")) else { panic!("no tunnel") };
    let hop = compiled.tables.hops.get(id).unwrap();
    assert_eq!(hop.header[..6], [2, 0, 192, 0, 2, 1], "outer Ethernet: the gateway");
    assert_eq!(hop.header[30..34], [198, 51, 100, 12], "outer IP: the peer");
    assert_eq!(hop.header[50..56], [2, 0, 198, 51, 100, 12], "inner Ethernet: the peer");
}

#[test]
fn two_nodes_with_one_network_are_reported_and_the_first_by_name_keeps_it() {
    let twin = "
apiVersion: v1
kind: Node
metadata: { name: node-z }
spec: { podCIDRs: [10.244.2.0/24] }
status: { addresses: [{ type: InternalIP, address: 192.0.2.99 }] }
";
    let before = two_nodes().on("node-a");
    let compiled = two_nodes().with(twin).on("node-a");
    assert_eq!(compiled.tables.routes.lookup(ip("10.244.2.6")), before.tables.routes.lookup(ip("10.244.2.6")));
    assert!(
        compiled.invalid.iter().any(|f| f.name == "node-z" && f.field == "spec.podCIDRs"),
        "{:?}",
        compiled.invalid
    );
}

#[test]
fn two_pods_with_one_address_are_reported_and_the_local_one_keeps_it() {
    let thief = "
apiVersion: v1
kind: Pod
metadata: { namespace: aaa, name: thief }
spec: { nodeName: node-b }
status: { phase: Running, podIPs: [{ ip: 10.244.1.5 }] }
";
    let compiled = two_nodes().with(thief).on("node-a");
    assert_eq!(&*compiled.tables.pods.by_address(ip("10.244.1.5")).unwrap().name, "default/a");
    assert!(compiled.invalid.iter().any(|f| f.name == "aaa/thief"), "{:?}", compiled.invalid);
    assert!(compiled.local_pod("default/a").addresses.contains(&ip("10.244.1.5")));
}

#[test]
fn a_pod_with_an_address_outside_every_pod_network_is_not_reached_by_it_and_reported() {
    let stray = "
apiVersion: v1
kind: Pod
metadata: { namespace: shop, name: stray }
spec: { nodeName: node-b }
status: { podIPs: [{ ip: 203.0.113.77 }, { ip: 'fd00:10:244:2::99' }] }
";
    let compiled = two_nodes().with(stray).on("node-a");
    let found: Vec<String> = compiled.invalid.iter().map(ToString::to_string).collect();
    let line = "Pod/shop/stray: status.podIPs: 203.0.113.77 lies in no pod network; this pod is not reached by it";
    assert_eq!(found, [line]);
    let there = |address| compiled.tables.routes.lookup(ip(address));
    assert!(!matches!(there("203.0.113.77"), Some(Route::Tunnel(_))), "the world's traffic stays where it went");
    assert!(matches!(there("fd00:10:244:2::99"), Some(Route::Tunnel(_))), "its other address is as good as any");
    let pool = "
apiVersion: sluicegate.dev/v1alpha1
kind: IPPool
metadata: { name: edge }
spec: { use: pods, cidrs: [203.0.113.0/24] }
";
    assert!(two_nodes().with(stray).with(pool).on("node-a").invalid.is_empty(), "a pool is a pod network");
}
