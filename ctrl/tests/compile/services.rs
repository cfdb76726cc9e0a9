//! Which addresses answer, and which endpoints a client may be sent to from where.

use sluice_ctrl::compile::Compiled;
use sluice_tables::services::FrontendKind;

use crate::story::{Ask, NODES, SCTP, Story, TCP, UDP, backends, ip, pod};

/// One endpoint of a hand-written slice.
struct E {
    address: &'static str,
    node: &'static str,
    /// r ready, s serving, t terminating.
    state: &'static str,
    hints: &'static str,
}

fn e(address: &'static str, node: &'static str, state: &'static str) -> E {
    E { address, node, state, hints: "" }
}

fn hinted(address: &'static str, node: &'static str, hints: &'static str) -> E {
    E { address, node, state: "rs", hints }
}

/// Service `default/web` at 10.96.0.10 and its slice. `spec` goes into the Service's spec.
fn web(spec: &str, endpoints: &[E]) -> Compiled {
    story(spec, endpoints).on("node-a")
}

fn story(spec: &str, endpoints: &[E]) -> Story {
    let mut slice = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { namespace: default, name: web-1, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
ports: [{ port: 8080, protocol: TCP }]
endpoints:
"
    .to_owned();
    for E { address, node, state, hints } in endpoints {
        let has = |c| state.contains(c);
        slice += &format!(
            "- {{ addresses: [{address}], nodeName: {node}, hints: {{{hints}}},
  conditions: {{ ready: {}, serving: {}, terminating: {} }} }}\n",
            has('r'),
            has('s'),
            has('t')
        );
    }
    if endpoints.is_empty() {
        slice = slice.replace("endpoints:\n", "endpoints: []\n");
    }
    let service = format!(
        "
apiVersion: v1
kind: Service
metadata: {{ namespace: default, name: web }}
spec: {{ clusterIP: 10.96.0.10, ports: [{{ port: 80, targetPort: 8080, nodePort: 30080 }}], {spec} }}
status: {{ loadBalancer: {{ ingress: [{{ ip: 203.0.113.80 }}] }} }}
"
    );
    Story::new(NODES).with(&service).with(&slice)
}

/// Backends for (a pod at the ClusterIP, a client outside at the load balancer's address), with the drop flags.
fn both(compiled: &Compiled) -> [(Vec<String>, bool); 2] {
    let cluster = compiled.frontend("10.96.0.10", TCP, 80).unwrap();
    let outside = compiled.frontend("203.0.113.80", TCP, 80).unwrap();
    [
        (backends(&cluster.internal), cluster.internal_local_empty),
        (backends(&outside.external), outside.external_local_empty),
    ]
}

fn set(ips: &[&str]) -> Vec<String> {
    let local = |ip: &str| if ip.starts_with("10.244.1.") { "*" } else { "" };
    ips.iter().map(|ip| format!("{ip}:8080{}", local(ip))).collect()
}

const LB: &str = "type: LoadBalancer";
const L1: &str = "10.244.1.11";
const L2: &str = "10.244.1.12";
const L3: &str = "10.244.1.13";
const R: &str = "10.244.2.11";

#[test]
fn a_cluster_address_leads_to_all_ready_endpoints_and_bears_the_service_ports_name() {
    let compiled = web("type: ClusterIP", &[e(L1, "node-a", "rs"), e(R, "node-b", "rs"), e(L2, "node-a", "")]);
    let frontend = compiled.frontend("10.96.0.10", TCP, 80).unwrap();
    assert_eq!(backends(&frontend.internal), set(&[L1, R]));
    assert_eq!(backends(&frontend.external), set(&[L1, R]), "85: from outside too");
    assert_eq!(&*frontend.name, "default/web:80/TCP");
    assert!(compiled.frontend("0.0.0.0", TCP, 30080).is_none(), "a ClusterIP Service has no node port");
    assert!(compiled.frontend("203.0.113.80", TCP, 80).is_none());
}

#[test]
fn a_load_balancer_service_has_three_kinds_of_frontends_with_one_name() {
    let compiled = web(LB, &[e(R, "node-b", "rs")]);
    for (address, port, kind) in [
        ("10.96.0.10", 80, FrontendKind::ClusterIp),
        ("0.0.0.0", 30080, FrontendKind::NodePort),
        ("203.0.113.80", 80, FrontendKind::LoadBalancer),
    ] {
        let frontend = compiled.frontend(address, TCP, port).unwrap();
        assert_eq!((frontend.kind, &*frontend.name), (kind, "default/web:80/TCP"));
    }
    let address = |a: &str| compiled.tables.services.address(ip(a));
    assert_eq!(address("10.96.0.10"), Some(FrontendKind::ClusterIp), "48: other ports are refused");
    assert_eq!(address("203.0.113.80"), Some(FrontendKind::LoadBalancer));
    assert_eq!(address("0.0.0.0"), None, "88: a node's other ports are its own");
}

#[test]
fn no_endpoint_anywhere_is_refused_and_not_dropped() {
    for policy in ["", ", externalTrafficPolicy: Local, internalTrafficPolicy: Local"] {
        let compiled = web(&format!("{LB}{policy}"), &[]);
        assert_eq!(both(&compiled), [(vec![], false), (vec![], false)], "50");
    }
}

#[test]
fn external_local_keeps_outside_clients_on_this_node() {
    let spec = format!("{LB}, externalTrafficPolicy: Local");
    let ready = [e(L1, "node-a", "rs"), e(L2, "node-a", "rs"), e(R, "node-b", "rs"), e(L3, "node-a", "st")];
    assert_eq!(both(&web(&spec, &ready)), [(set(&[L1, L2, R]), false), (set(&[L1, L2]), false)], "74, first case");
    let terminating = [e(L2, "node-a", "st"), e(L3, "node-a", "st"), e(R, "node-b", "rs")];
    assert_eq!(both(&web(&spec, &terminating)), [(set(&[R]), false), (set(&[L2, L3]), false)], "74, second case");
    let remote = [e(R, "node-b", "st")];
    assert_eq!(both(&web(&spec, &remote)), [(set(&[R]), false), (vec![], true)], "74, third case: dropped");
    let nothing = [e(L1, "node-a", "t"), e(R, "node-b", "")];
    assert_eq!(both(&web(&spec, &nothing)), [(vec![], false), (vec![], false)], "74, fourth case: refused");
    let frontend = web(&spec, &ready).frontend("203.0.113.80", TCP, 80).unwrap().clone();
    assert!(frontend.external_local, "84: the client's address is kept");
    assert_eq!(backends(&frontend.internal), set(&[L1, L2, R]), "84: a pod may use all endpoints");
    assert!(!web(&spec, &ready).frontend("10.96.0.10", TCP, 80).unwrap().external_local);
}

#[test]
fn external_cluster_falls_back_to_terminating_endpoints_everywhere() {
    let ready = [e(L1, "node-a", "rs"), e(R, "node-b", "rs"), e(L3, "node-a", "st")];
    assert_eq!(both(&web(LB, &ready)), [(set(&[L1, R]), false), (set(&[L1, R]), false)], "75, 73");
    let terminating = [e(L3, "node-a", "st"), e(R, "node-b", "st"), e(L2, "node-a", "t")];
    assert_eq!(
        both(&web(LB, &terminating)),
        [(set(&[L3, R]), false), (set(&[L3, R]), false)],
        "75: not serving, never"
    );
}

#[test]
fn internal_local_holds_for_the_cluster_address_alone() {
    let spec = format!("{LB}, internalTrafficPolicy: Local");
    let endpoints = [e(L1, "node-a", "rs"), e(R, "node-b", "rs")];
    assert_eq!(both(&web(&spec, &endpoints)), [(set(&[L1]), false), (set(&[L1, R]), false)], "76");
    assert_eq!(both(&web(&spec, &[e(R, "node-b", "rs")])), [(vec![], true), (set(&[R]), false)], "76, 51: dropped");
    let last = web(&spec, &[e(L1, "node-a", "st"), e(R, "node-b", "rs")]);
    assert_eq!(both(&last)[0], (set(&[L1]), false), "76: a terminating local one still serves");
    let outside = last.frontend("10.96.0.10", TCP, 80).unwrap();
    assert_eq!(backends(&outside.external), set(&[L1]), "85");
}

#[test]
fn external_policy_without_an_external_address_means_nothing() {
    let compiled = web("type: ClusterIP, externalTrafficPolicy: Local", &[e(R, "node-b", "rs")]);
    let frontend = compiled.frontend("10.96.0.10", TCP, 80).unwrap();
    assert!(!frontend.external_local && !frontend.external_local_empty, "72");
    assert_eq!(backends(&frontend.external), set(&[R]));
}

#[test]
fn zone_hints_count_if_every_ready_endpoint_has_one_and_one_names_this_zone() {
    let (east, west) = ("forZones: [{ name: east }]", "forZones: [{ name: west }]");
    let of = |endpoints: &[E]| both(&web(LB, endpoints))[0].0.clone();
    assert_eq!(of(&[hinted(L1, "node-a", east), hinted(R, "node-b", west)]), set(&[L1]), "77");
    assert_eq!(of(&[hinted(L1, "node-a", east), e(R, "node-b", "rs")]), set(&[L1, R]), "77: one without a hint");
    assert_eq!(of(&[hinted(L1, "node-a", west), hinted(R, "node-b", west)]), set(&[L1, R]), "77: this zone not named");
    let both_zones = "forZones: [{ name: east }, { name: west }]";
    assert_eq!(of(&[hinted(L1, "node-a", west), hinted(R, "node-b", both_zones)]), set(&[R]), "77: several zones");
    let unready = E { address: L1, node: "node-a", state: "", hints: east };
    assert_eq!(of(&[unready, hinted(R, "node-b", west)]), set(&[R]), "79: an unready one does not keep the filter on");
    let dying = E { address: L1, node: "node-a", state: "st", hints: west };
    assert_eq!(of(&[dying]), set(&[L1]), "79: no hints in the fallback");
}

#[test]
fn node_hints_go_before_zone_hints() {
    let here = "forNodes: [{ name: node-a }], forZones: [{ name: east }]";
    let there = "forNodes: [{ name: node-b }], forZones: [{ name: east }]";
    let of = |endpoints: &[E]| both(&web(LB, endpoints))[0].0.clone();
    assert_eq!(of(&[hinted(L1, "node-a", here), hinted(R, "node-b", there)]), set(&[L1]), "78");
    let only_there = [hinted(L1, "node-b", there), hinted(R, "node-b", "forNodes: [{ name: node-b }]")];
    assert_eq!(of(&only_there).len(), 2, "78: falls to zones, where one has no hint, so all");
    let zones =
        [hinted(L1, "node-b", there), hinted(R, "node-b", "forNodes: [{ name: node-b }], forZones: [{ name: west }]")];
    assert_eq!(of(&zones).len(), 1, "78: falls to zones, where all have one");
}

#[test]
fn hints_never_filter_the_local_set() {
    let west = "forZones: [{ name: west }]";
    let spec = format!("{LB}, externalTrafficPolicy: Local");
    let endpoints = [hinted(L1, "node-a", west), hinted(R, "node-b", "forZones: [{ name: east }]")];
    assert_eq!(both(&web(&spec, &endpoints)), [(set(&[R]), false), (set(&[L1]), false)], "80");
}

#[test]
fn established_flows_may_use_every_endpoint_that_is_still_there() {
    let endpoints = [e(L1, "node-a", "rs"), e(L2, "node-a", "st"), e(L3, "node-a", ""), e(R, "node-b", "rs")];
    let compiled = web(&format!("{LB}, internalTrafficPolicy: Local"), &endpoints);
    let frontend = compiled.frontend("10.96.0.10", TCP, 80).unwrap();
    assert_eq!(backends(&frontend.internal), set(&[L1]));
    for address in [L1, L2, L3, R] {
        assert!(frontend.alive.contains(&(ip(address), 8080)), "{address}");
    }
    assert!(!frontend.alive.contains(&(ip(L1), 80)));
}

#[test]
fn not_ready_addresses_are_published_on_request() {
    let endpoints = [e(L1, "node-a", ""), e(R, "node-b", "rs")];
    assert_eq!(both(&web(&format!("{LB}, publishNotReadyAddresses: true"), &endpoints))[0].0, set(&[L1, R]), "57");
    assert_eq!(both(&web(LB, &endpoints))[0].0, set(&[R]));
}

#[test]
fn slices_add_up_and_the_better_state_of_one_endpoint_counts() {
    let more = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { namespace: default, name: web-0, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
ports: [{ port: 8080 }, { port: 9090, name: other }]
endpoints:
- { addresses: [10.244.1.11], nodeName: node-a, conditions: { ready: false } }
- { addresses: [10.244.2.20], nodeName: node-b }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { namespace: default, name: web-2, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
ports: [{ port: 8081 }]
endpoints: [{ addresses: [10.244.1.11], nodeName: node-a }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: default
  name: web-3
  labels: { kubernetes.io/service-name: web, service.kubernetes.io/headless: '' }
addressType: IPv4
ports: [{ port: 8080 }]
endpoints: [{ addresses: [10.244.1.99], nodeName: node-a }]
";
    let compiled = story(LB, &[e(L1, "node-a", "rs")]).with(more).on("node-a");
    let all = both(&compiled)[0].0.clone();
    assert_eq!(all, ["10.244.1.11:8080*", "10.244.1.11:8081*", "10.244.2.20:8080"], "56, 64, 65, 66, 67");
}

#[test]
fn what_is_not_for_us_is_not_programmed() {
    let endpoints = || [e(L1, "node-a", "rs")];
    let none = |compiled: Compiled| compiled.tables.services.shards.iter().all(|s| s.frontends.is_empty());
    assert!(
        none(
            story(LB, &endpoints())
                .with(
                    "
apiVersion: v1
kind: Service
metadata: { namespace: default, name: web }
spec: { clusterIP: None, ports: [{ port: 80 }] }"
                )
                .on("node-a")
        ),
        "54: headless"
    );
    assert!(
        none(
            story(LB, &endpoints())
                .with(
                    "
apiVersion: v1
kind: Service
metadata: { namespace: default, name: web }
spec: { type: ExternalName, externalName: example.org, clusterIP: 10.96.0.10, ports: [{ port: 80 }] }"
                )
                .on("node-a")
        ),
        "54"
    );
    assert!(
        none(
            story(LB, &endpoints())
                .with(
                    "
apiVersion: v1
kind: Service
metadata: { namespace: default, name: web, labels: { service.kubernetes.io/service-proxy-name: '' } }
spec: { clusterIP: 10.96.0.10, ports: [{ port: 80 }] }"
                )
                .on("node-a")
        ),
        "55"
    );
}

#[test]
fn a_proxied_load_balancer_address_is_left_to_the_load_balancer() {
    let story = story(LB, &[e(L1, "node-a", "rs")]).with(
        "
apiVersion: v1
kind: Service
metadata: { namespace: default, name: web }
spec: { type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{ port: 80, nodePort: 30080 }] }
status: { loadBalancer: { ingress: [{ ip: 203.0.113.80, ipMode: Proxy }, { ip: 203.0.113.81, ipMode: VIP }] } }",
    );
    let compiled = story.on("node-a");
    assert!(compiled.frontend("203.0.113.80", TCP, 80).is_none(), "92");
    assert!(compiled.frontend("203.0.113.81", TCP, 80).is_some());
}

#[test]
fn source_ranges_hold_for_load_balancer_addresses_alone() {
    let compiled = web(&format!("{LB}, loadBalancerSourceRanges: [198.51.100.0/24]"), &[e(L1, "node-a", "rs")]);
    let ranges = compiled.frontend("203.0.113.80", TCP, 80).unwrap().source_ranges.clone().unwrap();
    assert!(ranges.lookup(ip("198.51.100.7")).is_some() && ranges.lookup(ip("198.51.101.7")).is_none(), "93");
    for (address, port) in [("10.96.0.10", 80), ("0.0.0.0", 30080)] {
        assert!(compiled.frontend(address, TCP, port).unwrap().source_ranges.is_none(), "93: bypassed");
    }
}

#[test]
fn ports_of_three_protocols_are_three_mappings() {
    let mut story = Story::new(NODES).with(
        "
apiVersion: v1
kind: Service
metadata: { namespace: default, name: dns }
spec:
  clusterIP: 10.96.0.53
  ports:
  - { name: a, port: 53, protocol: TCP, targetPort: 1 }
  - { name: b, port: 53, protocol: UDP, targetPort: 2 }
  - { name: c, port: 53, protocol: SCTP, targetPort: 3 }
",
    );
    story = story.with(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { namespace: default, name: dns-1, labels: { kubernetes.io/service-name: dns } }
addressType: IPv4
ports: [{ name: a, port: 1 }, { name: b, port: 2, protocol: UDP }, { name: c, port: 3, protocol: SCTP }]
endpoints: [{ addresses: [10.244.2.9] }]
",
    );
    let compiled = story.on("node-a");
    for (protocol, target) in [(TCP, 1), (UDP, 2), (SCTP, 3)] {
        let frontend = compiled.frontend("10.96.0.53", protocol, 53).unwrap();
        assert_eq!(backends(&frontend.internal), [format!("10.244.2.9:{target}")], "47");
    }
}

#[test]
fn both_families_of_a_service_are_served_each_by_its_own() {
    let story = Story::new(NODES).with(&pod("default", "web", "node-a", 5)).with(
        "
apiVersion: v1
kind: Service
metadata: { namespace: default, name: web }
spec:
  type: NodePort
  clusterIPs: ['fd00:10:96::10', 10.96.0.10]
  ipFamilies: [IPv6, IPv4]
  ipFamilyPolicy: RequireDualStack
  selector: { pod: web }
  ports: [{ port: 80, targetPort: http, nodePort: 30080 }]
",
    );
    let compiled = story.on("node-a");
    let of = |address: &str, port| backends(&compiled.frontend(address, TCP, port).unwrap().internal);
    assert_eq!(of("10.96.0.10", 80), ["10.244.1.5:80*"], "63");
    assert_eq!(of("fd00:10:96::10", 80), ["fd00:10:244:1::5:80*"]);
    assert_eq!((of("0.0.0.0", 30080).len(), of("::", 30080).len()), (1, 1));
}

#[test]
fn of_two_services_with_one_frontend_the_first_by_name_has_it_until_it_goes() {
    let story = story(LB, &[e(L1, "node-a", "rs")]).with(
        "
apiVersion: v1
kind: Service
metadata: { namespace: default, name: aaa }
spec: { type: NodePort, clusterIP: 10.96.0.11, ports: [{ port: 80, nodePort: 30080 }] }
",
    );
    let compiled = story.on("node-a");
    assert_eq!(&*compiled.frontend("0.0.0.0", TCP, 30080).unwrap().name, "default/aaa:80/TCP");
    let finding = compiled.invalid.iter().find(|f| f.name == "default/web").unwrap();
    assert!(finding.why.contains("default/aaa"), "{finding}");
    let version = compiled.slot_version("10.96.0.10", TCP, 80);
    let after = story.without("Service/default/aaa").after("node-a", Some(&compiled));
    assert_eq!(&*after.frontend("0.0.0.0", TCP, 30080).unwrap().name, "default/web:80/TCP");
    assert!(after.invalid.is_empty(), "{:?}", after.invalid);
    assert_ne!(after.slot_version("10.96.0.10", TCP, 80), version, "what the Service answers has changed");
}

#[test]
fn external_addresses_answer_and_follow_the_external_policy() {
    let spec = "externalIPs: [203.0.113.99, '2001:db8:99::1'], externalTrafficPolicy: Local";
    let compiled = web(spec, &[e(L1, "node-a", "rs"), e(R, "node-b", "rs")]);
    let frontend = compiled.frontend("203.0.113.99", TCP, 80).unwrap();
    assert_eq!(frontend.kind, FrontendKind::ExternalIp);
    assert_eq!((backends(&frontend.internal), backends(&frontend.external)), (set(&[L1, R]), set(&[L1])), "84");
    assert!(compiled.frontend("2001:db8:99::1", TCP, 80).is_none(), "63: the Service has no IPv6");
    assert!(compiled.steering.owned_addresses.contains(&"203.0.113.99".parse().unwrap()), "91");
    assert!(compiled.invalid.is_empty(), "{:?}", compiled.invalid);
}

#[test]
fn an_external_address_never_takes_what_is_the_clusters() {
    for stolen in ["10.244.2.11", "10.96.0.1"] {
        let compiled = web(&format!("externalIPs: [{stolen}]"), &[e(L1, "node-a", "rs")]);
        assert!(compiled.frontend(stolen, TCP, 80).is_none(), "{stolen}");
        assert!(compiled.invalid.iter().any(|f| f.field == "spec.externalIPs"), "{stolen}");
    }
    let thief = "
apiVersion: v1
kind: Service
metadata: { namespace: aaa, name: thief }
spec: { type: LoadBalancer, clusterIP: 10.96.0.66, ports: [{ port: 80 }] }
status: { loadBalancer: { ingress: [{ ip: 10.96.0.10 }] } }
";
    let compiled = story(LB, &[e(L1, "node-a", "rs")]).with(thief).on("node-a");
    assert_eq!(
        &*compiled.frontend("10.96.0.10", TCP, 80).unwrap().name,
        "default/web:80/TCP",
        "a cluster address stays"
    );
    assert!(compiled.invalid.iter().any(|f| f.name == "aaa/thief"), "{:?}", compiled.invalid);
}

#[test]
fn a_load_balancer_at_a_nodes_own_address_takes_its_port_and_nothing_else() {
    let story = story(LB, &[e(L1, "node-a", "rs")]).with(
        "
apiVersion: v1
kind: Service
metadata: { namespace: default, name: web }
spec: { type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{ port: 80 }] }
status: { loadBalancer: { ingress: [{ ip: 192.0.2.11 }] } }",
    );
    let compiled = story.on("node-a");
    assert!(compiled.frontend("192.0.2.11", TCP, 80).is_some());
    assert_eq!(compiled.tables.services.address(ip("192.0.2.11")), None, "the node's other ports stay its own");
    let steering = &compiled.steering;
    let node: std::net::IpAddr = "192.0.2.11".parse().unwrap();
    assert!(!steering.owned_addresses.contains(&node) && steering.node_addresses.contains(&node));
    assert!(steering.node_ports.contains(&(sluice_ctrl::model::Family::V4, TCP, 80)));
}

#[test]
fn affinity_has_its_timeout() {
    let compiled = web("sessionAffinity: ClientIP", &[e(L1, "node-a", "rs")]);
    assert_eq!(compiled.frontend("10.96.0.10", TCP, 80).unwrap().affinity.map(|a| a.seconds), Some(10_800), "98");
    let spec = "sessionAffinity: ClientIP, sessionAffinityConfig: { clientIP: { timeoutSeconds: 60 } }";
    assert_eq!(web(spec, &[]).frontend("10.96.0.10", TCP, 80).unwrap().affinity.map(|a| a.seconds), Some(60));
}

#[test]
fn a_services_version_follows_its_endpoints_and_nothing_else() {
    let version = |c: &Compiled| c.slot_version("10.96.0.10", TCP, 80);
    let before = web(LB, &[e(L1, "node-a", "rs"), e(R, "node-b", "rs")]);
    assert_ne!(version(&before), 0);
    let same = story(LB, &[e(R, "node-b", "rs"), e(L1, "node-a", "rs")]).with(&pod("default", "x", "node-a", 77));
    assert_eq!(version(&same.after("node-a", Some(&before))), version(&before), "68: order is no change");
    let fewer = story(LB, &[e(L1, "node-a", "rs"), e(R, "node-b", "st")]);
    assert_ne!(version(&fewer.after("node-a", Some(&before))), version(&before));
}

#[test]
fn an_endpoint_without_a_node_is_local_where_its_address_is() {
    let slice = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { namespace: default, name: web-1, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
ports: [{ port: 8080 }]
endpoints: [{ addresses: [10.244.1.5] }, { addresses: [10.244.2.5] }]
";
    let story = story(LB, &[]).with(slice);
    let before = story.on("node-a");
    assert_eq!(both(&before)[0].0, ["10.244.1.5:8080", "10.244.2.5:8080"]);
    let after = story.with(&pod("default", "web", "node-a", 5)).after("node-a", Some(&before));
    assert_eq!(both(&after)[0].0, ["10.244.1.5:8080*", "10.244.2.5:8080"], "the pod came; nothing else changed");
}
