//! What cannot be done as it is written never opens anything.

use crate::story::{Ask, Story};
use sluice_ctrl::compile::{CompileError, Compiled, Knobs, LocalView, Replay, compile};
use sluice_ctrl::config::Config;
use sluice_ctrl::publish::Publisher;
use sluice_tables::Direction;

const TCP: u8 = 6;

/// Three pods on this node and one elsewhere; `a` is closed but to `b`.
fn world() -> Story {
    Story::new(
        "
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}, status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: a}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.5}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: shop, labels: {app: b}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.6}}
---
{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: shop, labels: {app: c}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.7}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: narrow, namespace: shop}, spec: {podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}}
",
    )
}

/// A policy that lists networks one by one.
fn wide(name: &str, networks: usize) -> String {
    let second = 64 + name.len();
    let blocks: Vec<String> = (0..networks).map(|n| format!("{{ipBlock: {{cidr: 100.{second}.{n}.0/24}}}}")).collect();
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{podSelector: {{matchLabels: {{app: c}}}}, policyTypes: [Egress], egress: [{{to: [{}]}}]}}}}",
        blocks.join(", ")
    )
}

fn compiled(story: &Story, listed_peers: usize, previous: Option<&Compiled>) -> Result<Compiled, CompileError> {
    let cluster = story.cluster();
    let view = LocalView::derived(&cluster, "n1", &Replay::default()).unwrap();
    let knobs = Knobs { listed_peers, ..Knobs::from(&Config::builtin("n1")) };
    compile(&cluster, &view, &knobs, previous)
}

#[test]
fn policies_over_the_limit_give_no_tables_and_the_one_with_the_most_is_named() {
    let story = world().with(&wide("a-few", 20)).with(&wide("most", 40));
    assert!(compiled(&story, 61, None).is_ok(), "as many as are allowed");
    let error = compiled(&story, 60, None).unwrap_err();
    let CompileError::PolicyTooWide { listed, limit, culprit } = &error else { panic!("{error}") };
    assert_eq!((*listed, *limit, culprit.as_str()), (61, 60, "NetworkPolicy/shop/most"));
    let text = error.to_string();
    assert!(text.contains("NetworkPolicy/shop/most") && text.contains("policy.listed_peers is 60"), "{text}");
}

#[test]
fn a_label_change_that_leads_over_the_limit_gives_no_tables_either() {
    // Nobody is selected by the wide policy until a pod gets its label.
    let unlabelled = world().with(&wide("most", 40)).with(
        "{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: shop, labels: {app: d}}, spec: {nodeName: n1}, status: {podIP: 10.244.1.7}}",
    );
    let before = compiled(&unlabelled, 30, None).unwrap();
    let error = compiled(&world().with(&wide("most", 40)), 30, Some(&before)).unwrap_err();
    assert!(matches!(error, CompileError::PolicyTooWide { .. }), "{error}");
}

#[test]
fn where_tables_cannot_be_made_the_last_good_ones_go_on_deciding() {
    let mut publisher = Publisher::new(compiled(&world(), 30, None).unwrap());
    let mut worker = publisher.reader();
    // The edit that cannot be compiled would also have opened `a` to everybody.
    let open = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: narrow, namespace: shop}, spec: {podSelector: {matchLabels: {app: a}}, ingress: [{}]}}";
    let story = world().with(open).with(&wide("most", 40));
    let cluster = story.cluster();
    let view = LocalView::derived(&cluster, "n1", &Replay::default()).unwrap();
    let knobs = |listed_peers| Knobs { listed_peers, ..Knobs::from(&Config::builtin("n1")) };
    assert!(publisher.compile(&cluster, &view, &knobs(30)).is_err());
    assert!(!worker.refresh(), "nothing was published");
    let allows = |publisher: &Publisher, peer| {
        let current = &publisher.current().tables;
        let pod = current.pods.iter().find(|pod| &*pod.name == "shop/a").unwrap();
        let peer: std::net::IpAddr = std::net::IpAddr::from([10, 244, 1, peer]);
        current.policy.decide(pod.ingress, current.identities.of(peer.into()), TCP, 80).allow
    };
    assert_eq!([6, 7].map(|peer| allows(&publisher, peer)), [true, false], "as before the edit");
    let next = publisher.compile(&cluster, &view, &knobs(100)).unwrap();
    publisher.publish(next);
    assert_eq!([6, 7].map(|peer| allows(&publisher, peer)), [true, true], "with room for it");
}

#[test]
fn a_policy_of_a_version_that_is_not_known_closes_what_it_selects() {
    let strange = "{apiVersion: networking.k8s.io/v2, kind: NetworkPolicy, metadata: {name: strange, namespace: shop}, spec: {podSelector: {matchLabels: {app: b}}, ingress: [{}]}}";
    let compiled = world().with(strange).on("n1");
    for direction in [Direction::Ingress, Direction::Egress] {
        assert!(!compiled.decide(direction, "shop/b", "10.244.1.7", TCP, 80).allow, "{direction:?}");
    }
    assert!(compiled.decide(Direction::Ingress, "shop/c", "10.244.1.6", TCP, 80).allow, "and nobody else");
}
