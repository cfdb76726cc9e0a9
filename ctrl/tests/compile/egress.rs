//! Egress gateways: who leaves where and as whom, seen from each node.

use std::collections::BTreeSet;

use sluice_ctrl::compile::Compiled;
use sluice_tables::{EgressPath, EgressRule};

use crate::story::{Ask, NODES, Story, ip, pod};

fn gateway(spec: &str) -> String {
    format!(
        "
apiVersion: sluicegate.dev/v1alpha1
kind: EgressGateway
metadata: {{ name: partners }}
spec: {{ {spec} }}
"
    )
}

/// Pods shop/a on node-a and shop/b on node-b; node-g carries the label egress=true.
fn story(spec: &str) -> Story {
    let node = "
apiVersion: v1
kind: Node
metadata: { name: node-g, labels: { egress: 'true' } }
spec: { podCIDRs: [10.244.9.0/24] }
status: { addresses: [{ type: InternalIP, address: 192.0.2.19 }, { type: InternalIP, address: '2001:db8::19' }] }
";
    Story::new(NODES)
        .with(node)
        .with(&pod("shop", "a", "node-a", 5))
        .with(&pod("shop", "b", "node-b", 6))
        .with(&gateway(spec))
}

const ALL: &str = "podSelector: {}, namespaceSelector: {}, gatewayNodes: { matchLabels: { egress: 'true' } }";

fn rule<'a>(compiled: &'a Compiled, pod: &str, to: &str) -> Option<&'a EgressRule> {
    compiled.tables.egress.rule(ip(pod), ip(to))
}

#[test]
fn a_selected_pod_leaves_through_the_gateway_as_its_address() {
    let story = story(&format!("{ALL}, egressIPs: [192.0.2.50]"));
    let here = story.on("node-a");
    let found = rule(&here, "10.244.1.5", "198.51.100.1").unwrap();
    assert_eq!((&*found.name, found.address), ("partners", ip("192.0.2.50")));
    assert!(matches!(found.path, EgressPath::Gateway(_)));
    assert!(rule(&here, "10.244.2.6", "198.51.100.1").is_none(), "another node's pod is none of our business");
    assert!(here.tables.egress.addresses.is_empty());
    let peer = |c: &Compiled, outer: &str| c.tables.routes.peers[&ip(outer)].gateway;
    assert!(
        peer(&here, "192.0.2.19") && !peer(&here, "192.0.2.12"),
        "replies from outside come from the gateway alone"
    );

    let there = story.on("node-g");
    for pod in ["10.244.1.5", "10.244.2.6"] {
        assert_eq!(rule(&there, pod, "198.51.100.1").unwrap().path, EgressPath::Here);
    }
    assert!(rule(&there, "10.244.1.99", "198.51.100.1").is_none(), "the gateway knows whom it serves");
    assert_eq!(there.tables.egress.addresses, [ip("192.0.2.50")]);
    assert!(there.steering.owned_addresses.contains(&"192.0.2.50".parse().unwrap()));
}

#[test]
fn destinations_and_exceptions_hold() {
    let spec = format!(
        "{ALL}, egressIPs: [192.0.2.50], destinationCIDRs: [198.51.100.0/24], excludedCIDRs: [198.51.100.7/32]"
    );
    let compiled = story(&spec).on("node-a");
    let covered = |to: &str| rule(&compiled, "10.244.1.5", to).is_some();
    assert!(covered("198.51.100.1") && !covered("198.51.100.7") && !covered("203.0.113.1"));
}

#[test]
fn a_family_without_an_address_does_not_leave_under_another() {
    let compiled = story(&format!("{ALL}, egressIPs: [192.0.2.50]")).on("node-a");
    let found = rule(&compiled, "fd00:10:244:1::5", "2001:db8:7::1").unwrap();
    assert_eq!(found.path, EgressPath::Nowhere);
}

#[test]
fn without_a_gateway_node_nothing_leaves() {
    let spec = "podSelector: {}, namespaceSelector: {}, gatewayNodes: { matchLabels: { egress: never } }, egressIPs: [192.0.2.50]";
    let compiled = story(spec).on("node-a");
    assert_eq!(rule(&compiled, "10.244.1.5", "198.51.100.1").unwrap().path, EgressPath::Nowhere);
}

#[test]
fn a_gateway_that_is_not_understood_closes_what_it_selects() {
    let compiled = story(&format!("{ALL}, egressIPs: [192.0.2.50], surprise: 1")).on("node-a");
    assert_eq!(rule(&compiled, "10.244.1.5", "198.51.100.1").unwrap().path, EgressPath::Nowhere);
}

#[test]
fn both_selectors_must_match() {
    let only = |selectors: &str| {
        let spec = format!("{selectors}, gatewayNodes: {{}}, egressIPs: [192.0.2.50]");
        let compiled = story(&spec).on("node-a");
        rule(&compiled, "10.244.1.5", "198.51.100.1").is_some()
    };
    let (shop, other) = ("{ matchLabels: { kubernetes.io/metadata.name: shop } }", "{ matchLabels: { x: y } }");
    assert!(only(&format!("podSelector: {{ matchLabels: {{ pod: a }} }}, namespaceSelector: {shop}")));
    assert!(!only(&format!("podSelector: {{ matchLabels: {{ pod: b }} }}, namespaceSelector: {shop}")));
    assert!(!only(&format!("podSelector: {{ matchLabels: {{ pod: a }} }}, namespaceSelector: {other}")));
}

#[test]
fn all_nodes_agree_and_no_address_is_on_two_of_them() {
    let spec =
        "podSelector: {}, namespaceSelector: {}, gatewayNodes: {}, egressIPs: [192.0.2.50, 192.0.2.51, 192.0.2.52]";
    let mut story = story(spec);
    for n in 10..40 {
        story = story.with(&pod("shop", &format!("p{n}"), "node-a", n));
    }
    let (a, b, g) = (story.on("node-a"), story.on("node-b"), story.on("node-g"));
    let held: Vec<_> = [&a, &b, &g].iter().flat_map(|c| c.tables.egress.addresses.clone()).collect();
    assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), 3, "every address is somewhere");
    assert_eq!(held.len(), 3, "and nowhere twice");
    let mut used = BTreeSet::new();
    for n in 10..40 {
        let pod = format!("10.244.1.{n}");
        let mine = rule(&a, &pod, "198.51.100.1").unwrap();
        used.insert(mine.address);
        let carrier = [&a, &b, &g].into_iter().find(|c| c.tables.egress.addresses.contains(&mine.address)).unwrap();
        let theirs = rule(carrier, &pod, "198.51.100.1").unwrap();
        assert_eq!((theirs.path, theirs.address), (EgressPath::Here, mine.address));
    }
    assert_eq!(used.len(), 3, "spread over several");
}

#[test]
fn an_unready_gateway_is_passed_over_while_there_is_a_ready_one() {
    let node = |name: &str, last: u8, ready: &str| {
        format!(
            "
---
apiVersion: v1
kind: Node
metadata: {{ name: {name}, labels: {{ egress: 'true' }} }}
spec: {{ podCIDRs: [10.244.{last}.0/24] }}
status:
  addresses: [{{ type: InternalIP, address: 192.0.2.{last} }}]
  conditions: [{{ type: Ready, status: '{ready}' }}]
"
        )
    };
    let spec = format!("{ALL}, egressIPs: [192.0.2.50]");
    for (g, h) in [("True", "False"), ("False", "True")] {
        let story = story(&spec).with(&node("node-g", 19, g)).with(&node("node-h", 20, h));
        let holds = |name: &str| !story.on(name).tables.egress.addresses.is_empty();
        assert_eq!((holds("node-g"), holds("node-h")), (g == "True", h == "True"));
    }
    let story = story(&spec).with(&node("node-g", 19, "False"));
    assert!(!story.on("node-g").tables.egress.addresses.is_empty(), "the last one is used all the same");
    assert_eq!(story.on("node-a").local_pod("shop/a").name.as_ref(), "shop/a");
}

/// What is reported of the gateway of a story.
fn complaints(story: &Story, node: &str) -> Vec<String> {
    let about = |f: &&sluice_ctrl::compile::Finding| f.kind == "EgressGateway";
    story.on(node).invalid.iter().filter(about).map(|f| format!("{}: {}", f.field, f.why)).collect()
}

#[test]
fn an_address_that_is_somebody_elses_is_refused_and_the_others_work() {
    for (taken, whose) in [
        ("10.244.2.6", "the address of pod shop/b"),
        ("192.0.2.12", "the address of node node-b"),
        ("10.96.7.7", "in 10.96.0.0/12"),
    ] {
        let story = story(&format!("{ALL}, egressIPs: ['{taken}', 192.0.2.50]"));
        let said = complaints(&story, "node-a");
        assert!(said.len() == 1 && said[0].starts_with("spec.egressIPs: ") && said[0].contains(whose), "{said:?}");
        let compiled = story.on("node-a");
        let found = rule(&compiled, "10.244.1.5", "198.51.100.1").unwrap();
        assert_eq!(found.address, ip("192.0.2.50"));
        assert!(matches!(found.path, EgressPath::Gateway(_)));
        assert_eq!(story.on("node-g").tables.egress.addresses, [ip("192.0.2.50")]);
    }
}

#[test]
fn a_gateways_own_address_stays_on_that_node_and_the_host_answers_for_it() {
    let compiled = story(&format!("{ALL}, egressIPs: [192.0.2.19]")).on("node-g");
    assert_eq!(compiled.tables.egress.addresses, [ip("192.0.2.19")]);
    assert!(compiled.tables.egress.announced.is_empty());
    assert!(compiled.invalid.iter().all(|f| f.kind != "EgressGateway"), "{:?}", compiled.invalid);
}

#[test]
fn a_selector_that_selects_no_node_and_a_gateway_in_anothers_shadow_are_reported() {
    let nobody = "podSelector: {}, namespaceSelector: {}, gatewayNodes: { matchLabels: { egress: never } }";
    let said = complaints(&story(&format!("{nobody}, egressIPs: [192.0.2.50]")), "node-a");
    assert!(said.len() == 1 && said[0].starts_with("spec.gatewayNodes: "), "{said:?}");
    let narrow = |name: &str| {
        let spec = format!("{ALL}, egressIPs: [192.0.2.51], destinationCIDRs: [198.51.100.0/24]");
        gateway(&spec).replace("partners", name)
    };
    let wide = story(&format!("{ALL}, egressIPs: [192.0.2.50]"));
    let said = complaints(&wide.clone().with(&narrow("zz-narrow")), "node-a");
    assert!(said.len() == 1 && said[0].contains("EgressGateway partners"), "{said:?}");
    assert_eq!(
        complaints(&wide.with(&narrow("a-narrow")), "node-a"),
        Vec::<String>::new(),
        "the narrow one counts first"
    );
}

#[test]
fn the_election_says_where_an_address_is_and_flows_may_stay_with_every_gateway_that_carries_one() {
    use sluice_ctrl::carriers::{Carried, Outcome};
    use sluice_ctrl::compile::{Knobs, LocalView, Replay, compile};
    use sluice_ctrl::config::Config;
    let nodes = |name: &str, last: u8| {
        format!(
            "
---
apiVersion: v1
kind: Node
metadata: {{ name: {name}, labels: {{ egress: 'true' }} }}
spec: {{ podCIDRs: [10.244.{last}.0/24] }}
status: {{ addresses: [{{ type: InternalIP, address: 192.0.2.{last} }}] }}
"
        )
    };
    let story = story(&format!("{ALL}, egressIPs: [192.0.2.50, 192.0.2.51]")).with(&nodes("node-h", 20));
    let cluster = story.cluster();
    let compiled = |on: [Option<&str>; 2]| {
        let mut view = LocalView::derived(&cluster, "node-a", &Replay::default()).unwrap();
        let carried = ["192.0.2.50", "192.0.2.51"].iter().zip(on);
        let carried = carried
            .map(|(address, node)| (address.parse().unwrap(), Carried { node: node.map(str::to_owned), next: None }));
        view.carriers = Some(Outcome { carried: carried.collect(), ..Outcome::default() });
        compile(&cluster, &view, &Knobs::from(&Config::builtin("node-a")), None).unwrap()
    };
    let found = |c: &Compiled| rule(c, "10.244.1.5", "198.51.100.1").unwrap().clone();
    let both = compiled([Some("node-g"), Some("node-h")]);
    assert_eq!(found(&both).keep.len(), 2);
    let moved = compiled([Some("node-h"), Some("node-h")]);
    let EgressPath::Gateway(hop) = found(&moved).path else { panic!("{:?}", found(&moved)) };
    assert_eq!(&*found(&moved).keep, [hop]);
    assert_eq!(found(&moved).address, found(&both).address, "a pod keeps its address");
    let version = moved.tables.hops.get(hop).unwrap().version;
    assert!(both.tables.hops.gateway_of_version(version).is_some(), "node-h's tunnel is the same in both");
    assert_eq!(found(&compiled([None, None])).path, EgressPath::Nowhere, "nobody carries it: nothing leaves");
    let stranger = compiled([Some("node-b"), Some("node-b")]);
    assert_eq!(found(&stranger).path, EgressPath::Nowhere, "a node that may not carry it does not");
}
