//! What policies let through, rule names, and when a pod's version moves.

use sluice_tables::{Direction, DomainId};

use crate::story::{Ask, ICMP, NODES, SCTP, Story, TCP, UDP, pod};

/// Namespaces x (node-a, 10.244.1.1N) and y (node-b, 10.244.2.1N) with pods a, b, c.
fn world() -> Story {
    let mut story = Story::new(NODES);
    for (ns, node) in [("x", "node-a"), ("y", "node-b")] {
        for (name, last) in [("a", 11), ("b", 12), ("c", 13)] {
            story = story.with(&pod(ns, name, node, last));
        }
    }
    story
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{ namespace: x, name: {name} }}
spec: {spec}
"
    )
}

fn cluster_policy(name: &str, spec: &str) -> String {
    format!(
        "
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {{ name: {name} }}
spec: {spec}
"
    )
}

const XA: &str = "10.244.1.11";
const XB: &str = "10.244.1.12";
const XC: &str = "10.244.1.13";
const YA: &str = "10.244.2.11";
const YB: &str = "10.244.2.12";
const OUTSIDE: &str = "198.51.100.1";

const ON_A: &str = "podSelector: { matchLabels: { pod: a } }";

fn named(allow: bool, name: &str) -> (bool, Option<String>) {
    (allow, Some(name.to_owned()))
}

#[test]
fn where_no_policy_selects_everything_passes_and_nothing_is_named() {
    let compiled = world().on("node-a");
    assert_eq!(compiled.ingress("x/a", OUTSIDE, TCP, 80), (true, None));
    let pod = compiled.local_pod("x/a");
    assert!(pod.ingress.is_none() && pod.egress.is_none());
    assert!(compiled.tables.identities.exact.is_empty(), "no question, no identity");
}

#[test]
fn a_default_deny_isolates_its_namespace_in_its_direction() {
    let compiled = world().with(&policy("deny", "{ podSelector: {}, policyTypes: [Ingress] }")).on("node-a");
    for peer in [XB, YA, OUTSIDE] {
        assert_eq!(compiled.ingress("x/a", peer, TCP, 80), named(false, "isolation"), "1");
        assert_eq!(compiled.egress("x/a", peer, TCP, 80), (true, None), "34");
    }
    assert!(world().with(&policy("deny", "{ podSelector: {} }")).on("node-b").local_pod("y/a").ingress.is_none());
}

#[test]
fn a_bare_pod_selector_means_the_policys_own_namespace() {
    let compiled = world()
        .with(&policy(
            "from-b",
            &format!("{{ {ON_A}, ingress: [{{ from: [{{ podSelector: {{ matchLabels: {{ pod: b }} }} }}] }}] }}"),
        ))
        .on("node-a");
    assert_eq!(compiled.ingress("x/a", XB, TCP, 80), named(true, "NetworkPolicy/x/from-b"), "3");
    for peer in [XC, YB, OUTSIDE] {
        assert_eq!(compiled.ingress("x/a", peer, TCP, 80), named(false, "isolation"), "3: {peer}");
    }
    assert_eq!(compiled.ingress("x/a", XB, ICMP, 0), named(true, "NetworkPolicy/x/from-b"), "a rule without ports");
    assert_eq!(compiled.ingress("x/a", "fd00:10:244:1::12", UDP, 9), named(true, "NetworkPolicy/x/from-b"), "IPv6 too");
}

#[test]
fn two_entries_are_either_and_one_entry_with_two_selectors_is_both() {
    let either = "{ podSelector: {}, ingress: [{ from: [
        { namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: y } } },
        { podSelector: { matchLabels: { pod: b } } }] }] }";
    let compiled = world().with(&policy("p", either)).on("node-a");
    let allowed = |peer| compiled.ingress("x/a", peer, TCP, 80).0;
    assert!(allowed(YA) && allowed(YB) && allowed(XB) && !allowed(XC), "9");
    let both = "{ podSelector: {}, ingress: [{ from: [
        { namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: y } },
          podSelector: { matchLabels: { pod: b } } }] }] }";
    let compiled = world().with(&policy("p", both)).on("node-a");
    let allowed = |peer| compiled.ingress("x/a", peer, TCP, 80).0;
    assert!(allowed(YB) && !allowed(YA) && !allowed(XB), "10");
}

#[test]
fn policies_add_up_and_the_first_by_name_that_allows_is_named() {
    let compiled = world()
        .with(&policy("z-81", &format!("{{ {ON_A}, ingress: [{{ ports: [{{ port: 81 }}] }}] }}")))
        .with(&policy("a-all", &format!("{{ {ON_A}, ingress: [{{ ports: [{{ port: 80 }}, {{ port: 81 }}] }}] }}")))
        .on("node-a");
    assert_eq!(compiled.ingress("x/a", YA, TCP, 81), named(true, "NetworkPolicy/x/a-all"), "17");
    assert_eq!(compiled.ingress("x/a", YA, TCP, 82), named(false, "isolation"));
}

#[test]
fn protocols_are_never_read_as_one_another() {
    let rule = |ports: &str| format!("{{ {ON_A}, ingress: [{{ ports: [{ports}] }}] }}");
    let on = |ports: &str| world().with(&policy("p", &rule(ports))).on("node-a");
    let sctp = on("{ port: 81, protocol: SCTP }");
    let allowed = |c: &sluice_ctrl::compile::Compiled, protocol, port| c.ingress("x/a", XB, protocol, port).0;
    assert!(allowed(&sctp, SCTP, 81) && !allowed(&sctp, TCP, 81) && !allowed(&sctp, UDP, 81), "23, 24");
    let tcp = on("{ protocol: TCP }");
    assert!(allowed(&tcp, TCP, 1) && allowed(&tcp, TCP, 65_535) && !allowed(&tcp, UDP, 1), "22");
    assert!(!allowed(&tcp, ICMP, 0), "a rule with ports says nothing of ICMP");
    let range = on("{ port: 8000, endPort: 8010 }");
    for (port, expected) in [(7_999, false), (8_000, true), (8_010, true), (8_011, false)] {
        assert_eq!(allowed(&range, TCP, port), expected, "28: {port}");
    }
}

#[test]
fn names_of_ingress_ports_are_the_pods_own_and_of_egress_ports_the_peers() {
    let other = "
apiVersion: v1
kind: Pod
metadata: { namespace: y, name: c, labels: { pod: c } }
spec: { nodeName: node-b, containers: [{ name: c, ports: [{ name: http, containerPort: 8080 }] }] }
status: { phase: Running, podIPs: [{ ip: 10.244.2.13 }] }
";
    let story = world().with(other);
    let ingress =
        story.clone().with(&policy("p", "{ podSelector: {}, ingress: [{ ports: [{ port: http }] }] }")).on("node-a");
    assert!(ingress.ingress("x/a", OUTSIDE, TCP, 80).0 && !ingress.ingress("x/a", OUTSIDE, TCP, 8080).0, "19");
    let egress = "{ podSelector: {}, policyTypes: [Egress], egress: [{ ports: [{ port: http }] }] }";
    let egress = story.with(&policy("p", egress)).on("node-a");
    assert!(egress.egress("x/a", YA, TCP, 80).0 && !egress.egress("x/a", YA, TCP, 8080).0, "21");
    assert!(egress.egress("x/a", "10.244.2.13", TCP, 8080).0 && !egress.egress("x/a", "10.244.2.13", TCP, 80).0);
    assert!(!egress.egress("x/a", OUTSIDE, TCP, 80).0, "who is no pod names no port");
    assert!(!egress.egress("x/a", "192.0.2.12", TCP, 80).0);
}

#[test]
fn blocks_are_compared_with_pod_addresses_too_and_except_is_local_to_its_rule() {
    let block = |rest: &str| format!("{{ {ON_A}, policyTypes: [Egress], egress: [{rest}] }}");
    let wide = "{ to: [{ ipBlock: { cidr: 10.244.0.0/16, except: [10.244.2.12/32] } }] }";
    let compiled = world().with(&policy("p", &block(wide))).on("node-a");
    let allowed = |c: &sluice_ctrl::compile::Compiled, peer| c.egress("x/a", peer, TCP, 80).0;
    assert!(allowed(&compiled, YA) && !allowed(&compiled, YB) && !allowed(&compiled, OUTSIDE), "42");
    let two = format!("{wide}, {{ to: [{{ ipBlock: {{ cidr: 10.244.2.12/32 }} }}] }}");
    let compiled = world().with(&policy("p", &block(&two))).on("node-a");
    assert!(allowed(&compiled, YA) && allowed(&compiled, YB), "43");
}

#[test]
fn host_network_pods_are_no_pods_to_a_selector() {
    let agent = "
apiVersion: v1
kind: Pod
metadata: { namespace: x, name: agent, labels: { pod: b } }
spec: { nodeName: node-b, hostNetwork: true }
status: { phase: Running, podIPs: [{ ip: 192.0.2.12 }] }
";
    let from_b = format!("{{ {ON_A}, ingress: [{{ from: [{{ podSelector: {{ matchLabels: {{ pod: b }} }} }}] }}] }}");
    let compiled = world().with(agent).with(&policy("p", &from_b)).on("node-a");
    assert!(!compiled.ingress("x/a", "192.0.2.12", TCP, 80).0 && compiled.ingress("x/a", XB, TCP, 80).0);
    let block = format!("{{ {ON_A}, ingress: [{{ from: [{{ ipBlock: {{ cidr: 192.0.2.12/32 }} }}] }}] }}");
    let compiled = world().with(agent).with(&policy("p", &block)).on("node-a");
    assert!(compiled.ingress("x/a", "192.0.2.12", TCP, 80).0);
}

#[test]
fn an_audited_policy_denies_nothing_and_names_itself_where_it_would_have() {
    let audited = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { namespace: x, name: trial, annotations: { sluicegate.dev/enforcement: audit } }
spec: { podSelector: { matchLabels: { pod: a } }, ingress: [{ ports: [{ port: 80 }] }] }
";
    let compiled = world().with(audited).on("node-a");
    let decided = compiled.decide(Direction::Ingress, "x/a", XB, TCP, 81);
    assert!(decided.audit && decided.allow);
    assert_eq!(compiled.named(decided), named(true, "NetworkPolicy/x/trial"));
    assert!(!compiled.decide(Direction::Ingress, "x/a", XB, TCP, 80).audit);
    let enforced =
        world().with(audited).with(&policy("deny", "{ podSelector: {}, policyTypes: [Ingress] }")).on("node-a");
    assert_eq!(enforced.ingress("x/a", XB, TCP, 81), named(false, "isolation"), "another policy still isolates");
    assert_eq!(enforced.ingress("x/a", XB, TCP, 80), named(true, "NetworkPolicy/x/trial"), "and what it allows counts");

    let guard = "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: { name: guard, annotations: { sluicegate.dev/enforcement: audit } }
spec:
  { tier: Admin, priority: 1, subject: { namespaces: {} }, ingress: [{ action: Deny, from: [{ namespaces: {} }] }] }
";
    let compiled = world().with(guard).on("node-a");
    let decided = compiled.decide(Direction::Ingress, "x/a", XB, TCP, 81);
    assert_eq!((decided.audit, compiled.named(decided)), (true, named(true, "ClusterNetworkPolicy/guard#ingress[0]")));
}

#[test]
fn a_policy_that_is_not_understood_denies_what_it_selects() {
    let spec = format!("{{ {ON_A}, policyTypes: [Ingress], ingress: [{{ from: [{{ serviceAccount: x }}] }}] }}");
    let compiled = world().with(&policy("p", &spec)).on("node-a");
    assert_eq!(compiled.ingress("x/a", XB, TCP, 80), named(false, "isolation"));
    assert_eq!(compiled.egress("x/a", XB, TCP, 80), (true, None), "the direction it does not speak of");
    assert_eq!(compiled.ingress("x/b", XA, TCP, 80), (true, None), "whom it does not select");
}

#[test]
fn cluster_policies_stand_above_and_below_namespaced_ones() {
    let subject = "subject: { namespaces: { matchLabels: { kubernetes.io/metadata.name: x } } }";
    let from_y = "from: [{ namespaces: { matchLabels: { kubernetes.io/metadata.name: y } } }]";
    let admin = format!(
        "{{ tier: Admin, priority: 10, {subject}, ingress: [
           {{ name: monitoring, action: Accept, {from_y}, protocols: [{{ tcp: {{ destinationPort: {{ number: 9090 }} }} }}] }},
           {{ action: Pass, {from_y}, protocols: [{{ tcp: {{ destinationPort: {{ number: 80 }} }} }}] }},
           {{ action: Deny, {from_y} }}] }}"
    );
    let story = world().with(&cluster_policy("guard", &admin));
    let compiled = story.on("node-a");
    assert_eq!(compiled.ingress("x/a", YA, TCP, 9090), named(true, "ClusterNetworkPolicy/guard#monitoring"));
    assert_eq!(compiled.ingress("x/a", YA, TCP, 443), named(false, "ClusterNetworkPolicy/guard#ingress[2]"));
    assert_eq!(compiled.ingress("x/a", YA, TCP, 80), (true, None), "passed on, and nobody else speaks");
    let deny = story.clone().with(&policy("deny", "{ podSelector: {}, policyTypes: [Ingress] }")).on("node-a");
    assert_eq!(deny.ingress("x/a", YA, TCP, 80), named(false, "isolation"));
    assert_eq!(deny.ingress("x/a", YA, TCP, 9090), named(true, "ClusterNetworkPolicy/guard#monitoring"));
    let allow = story.clone().with(&policy("allow", "{ podSelector: {}, ingress: [{}] }")).on("node-a");
    assert_eq!(allow.ingress("x/a", YA, TCP, 443), named(false, "ClusterNetworkPolicy/guard#ingress[2]"));

    let baseline = format!(
        "{{ tier: Baseline, priority: 0, {subject}, ingress: [{{ name: floor, action: Deny, from: [{{ namespaces: {{}} }}] }}] }}"
    );
    let story = story.with(&cluster_policy("floor", &baseline));
    assert_eq!(story.on("node-a").ingress("x/a", XB, TCP, 80), named(false, "ClusterNetworkPolicy/floor#floor"));
    let allow = story.with(&policy("allow", "{ podSelector: {}, ingress: [{}] }")).on("node-a");
    assert_eq!(
        allow.ingress("x/a", XB, TCP, 80),
        named(true, "NetworkPolicy/x/allow"),
        "a namespace may open its floor"
    );
}

#[test]
fn lower_priority_numbers_go_first_whatever_the_names() {
    let spec = |priority, action: &str| {
        format!(
            "{{ tier: Admin, priority: {priority}, subject: {{ namespaces: {{}} }}, ingress: [{{ action: {action}, from: [{{ namespaces: {{}} }}] }}] }}"
        )
    };
    let compiled = world()
        .with(&cluster_policy("a", &spec(20, "Deny")))
        .with(&cluster_policy("z", &spec(10, "Accept")))
        .on("node-a");
    assert_eq!(compiled.ingress("x/a", XB, TCP, 80), named(true, "ClusterNetworkPolicy/z#ingress[0]"));
}

#[test]
fn egress_rules_may_name_nodes_and_networks() {
    let spec = "{ tier: Admin, priority: 1, subject: { namespaces: {} }, egress: [
        { name: nodes, action: Deny, to: [{ nodes: { matchLabels: { topology.kubernetes.io/zone: west } } }] },
        { name: nets, action: Deny, to: [{ networks: [198.51.100.0/24] }] }] }";
    let compiled = world().with(&cluster_policy("out", spec)).on("node-a");
    for address in ["192.0.2.12", "2001:db8::12", "10.244.2.1"] {
        assert_eq!(
            compiled.egress("x/a", address, TCP, 80),
            named(false, "ClusterNetworkPolicy/out#nodes"),
            "{address}"
        );
    }
    assert_eq!(compiled.egress("x/a", OUTSIDE, TCP, 80), named(false, "ClusterNetworkPolicy/out#nets"));
    assert_eq!(compiled.egress("x/a", YA, TCP, 80), (true, None));
}

#[test]
fn a_cluster_rule_that_is_not_understood_accepts_nothing_or_denies_all() {
    let spec = |action: &str| {
        format!(
            "{{ tier: Admin, priority: 1, subject: {{ namespaces: {{}} }}, egress: [
                {{ name: odd, action: {action}, to: [{{ namespaces: {{}} }}, {{ shinyNewPeer: {{}} }}] }},
                {{ name: web, action: Accept, to: [{{ networks: [0.0.0.0/0] }}] }}] }}"
        )
    };
    let accept = world().with(&cluster_policy("p", &spec("Accept"))).on("node-a");
    assert_eq!(accept.egress("x/a", YA, TCP, 443), named(true, "ClusterNetworkPolicy/p#web"));
    for action in ["Deny", "Pass"] {
        let compiled = world().with(&cluster_policy("p", &spec(action))).on("node-a");
        for peer in [YA, OUTSIDE] {
            assert_eq!(compiled.egress("x/a", peer, TCP, 443), named(false, "ClusterNetworkPolicy/p#odd"), "{action}");
        }
        assert!(compiled.ingress("x/a", OUTSIDE, TCP, 443).0);
    }
}

#[test]
fn a_domain_rule_accepts_what_was_learned_where_nothing_before_it_decides() {
    let spec = "{ tier: Admin, priority: 1, subject: { namespaces: {} }, egress: [
        { name: never, action: Deny, to: [{ networks: [198.51.100.0/28] }] },
        { name: web, action: Accept, to: [{ domainNames: ['*.example.org', 'example.org'] }],
          protocols: [{ tcp: { destinationPort: { number: 443 } } }] },
        { name: mail, action: Accept, to: [{ domainNames: ['mail.example.org'] }, { networks: [203.0.113.0/24] }] },
        { name: rest, action: Deny, to: [{ networks: [0.0.0.0/0, '::/0'] }] }] }";
    let compiled = world().with(&cluster_policy("dns", spec)).on("node-a");
    let tables = &compiled.tables;
    assert_eq!(tables.policy.domains.texts(), ["*.example.org", "example.org", "mail.example.org"]);
    let set = compiled.local_pod("x/a").egress;
    let ask = |peer: &str, port, known: &[&str]| {
        let known: Vec<DomainId> = known.iter().map(|name| DomainId::of(name)).collect();
        let peer = tables.identities.of(crate::story::ip(peer));
        let (decision, by_name) =
            tables.policy.decide_learned(set, peer, TCP, port, |names| names.iter().any(|n| known.contains(n)));
        let (allow, name) = compiled.named(decision);
        (allow, name.unwrap_or_default().replace("ClusterNetworkPolicy/dns#", ""), by_name)
    };
    let told = |allow, name: &str, by_name| (allow, name.to_owned(), by_name);
    assert_eq!(ask("198.51.100.77", 443, &["*.example.org"]), told(true, "web", true));
    assert_eq!(ask("198.51.100.77", 443, &[]), told(false, "rest", false));
    assert_eq!(ask("198.51.100.77", 80, &["*.example.org"]), told(false, "rest", false));
    assert_eq!(ask("198.51.100.77", 80, &["*.example.org", "mail.example.org"]), told(true, "mail", true));
    assert_eq!(ask("198.51.100.7", 443, &["example.org"]), told(false, "never", false));
    assert_eq!(ask("203.0.113.9", 25, &[]), told(true, "mail", false), "a rule's other peers need no names");
    assert_eq!(ask("2001:db8:9::1", 443, &["example.org"]), told(true, "web", true));
}

#[test]
fn an_audited_deny_before_a_domain_rule_is_recorded_and_the_rule_still_decides() {
    let deny = "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: { name: trial, annotations: { sluicegate.dev/enforcement: audit } }
spec: { tier: Admin, priority: 1, subject: { namespaces: {} },
        egress: [{ action: Deny, to: [{ networks: [0.0.0.0/0] }] }] }
";
    let names = "{ tier: Admin, priority: 2, subject: { namespaces: {} }, egress: [
        { name: web, action: Accept, to: [{ domainNames: [example.org] }] },
        { name: rest, action: Deny, to: [{ networks: [0.0.0.0/0] }] }] }";
    let compiled = world().with(deny).with(&cluster_policy("dns", names)).on("node-a");
    let (tables, set) = (&compiled.tables, compiled.local_pod("x/a").egress);
    let peer = tables.identities.of(crate::story::ip(OUTSIDE));
    let (known, by_name) = tables.policy.decide_learned(set, peer, TCP, 443, |_| true);
    assert!(known.allow && known.audit && by_name);
    assert!(!tables.policy.decide_learned(set, peer, TCP, 443, |_| false).0.allow);
}

/// Eighty pods that rules tell apart, so that peers which all of them answer to are asked by table.
#[test]
fn broad_peers_are_shared_between_sets_and_decide_as_listed_ones_do() {
    let mut story = world();
    for n in 0..80 {
        story = story.with(&pod("x", &format!("n{n}"), "node-b", 100 + n));
    }
    let one = |n: u32| {
        let on = ["a", "b"][n as usize % 2];
        policy(
            &format!("only-{n}"),
            &format!(
                "{{ podSelector: {{ matchLabels: {{ pod: {on} }} }}, ingress: [
                   {{ from: [{{ podSelector: {{ matchLabels: {{ pod: n{n} }} }} }}], ports: [{{ port: {} }}] }}] }}",
                1000 + n
            ),
        )
    };
    for n in 0..80 {
        story = story.with(&one(n));
    }
    let all = "{ podSelector: {}, ingress: [
        { from: [{ namespaceSelector: {} }], ports: [{ port: 80 }] },
        { from: [{ ipBlock: { cidr: 10.244.0.0/16, except: [10.244.2.105/32] } }], ports: [{ port: 81 }] }] }";
    let compiled = story.with(&policy("all", all)).on("node-a");
    let tables = &compiled.tables;
    assert!(tables.policy.sets.iter().all(|set| set.broad.len() == 2), "both rules have many peers");
    let shared =
        |n: usize| tables.policy.sets.iter().map(|set| std::sync::Arc::as_ptr(&set.broad[n])).collect::<Vec<_>>();
    assert!(shared(0).windows(2).all(|w| w[0] == w[1]), "one table for all sets");
    for n in 0..80u16 {
        let peer = format!("10.244.2.{}", 100 + n);
        let open = |name: &str, port| compiled.ingress(name, &peer, TCP, port).0;
        let (mine, other) = if n % 2 == 0 { ("x/a", "x/b") } else { ("x/b", "x/a") };
        assert!(open(mine, 1000 + n) && !open(other, 1000 + n) && !open(mine, 1000 + (n + 2) % 80), "{n}");
        assert!(open("x/a", 80) && open("x/c", 80) && open("x/a", 81) == (n != 5), "{n}");
    }
    assert!(!compiled.ingress("x/a", OUTSIDE, TCP, 80).0 && !compiled.ingress("x/a", OUTSIDE, TCP, 81).0);
    assert!(!compiled.ingress("x/a", "10.244.9.9", TCP, 80).0 && compiled.ingress("x/a", "10.244.9.9", TCP, 81).0);
}

#[test]
fn further_sources_are_taken_from_the_pod_and_never_somebody_elses() {
    let annotated = "
apiVersion: v1
kind: Pod
metadata:
  namespace: x
  name: a
  labels: { pod: a }
  annotations: { sluicegate.dev/allowed-source-prefixes: '203.0.113.0/28, 10.244.2.11/32,192.0.2.12/32,oops,0.0.0.0/0' }
spec: { nodeName: node-a }
status: { phase: Running, podIPs: [{ ip: 10.244.1.11 }] }
";
    let compiled = world().with(annotated).on("node-a");
    let sources: Vec<String> = compiled.local_pod("x/a").extra_sources.iter().map(ToString::to_string).collect();
    assert_eq!(sources, ["203.0.113.0/28"]);
    let told: Vec<_> = compiled.invalid.iter().filter(|f| f.kind == "Pod" && f.name == "x/a").collect();
    assert_eq!(told.len(), 4, "{told:?}");
}

#[test]
fn equal_rules_are_one_set_and_unrelated_pods_make_no_identity() {
    let compiled = world()
        .with(&policy("p", "{ podSelector: {}, ingress: [{ from: [{ podSelector: { matchLabels: { pod: b } } }] }] }"))
        .on("node-a");
    assert_eq!(compiled.tables.policy.sets.len(), 1);
    assert_eq!(compiled.local_pod("x/a").ingress, compiled.local_pod("x/c").ingress);
    assert_eq!(compiled.tables.identities.exact.len(), 2, "x/b in both families");
}

#[test]
fn a_pods_version_moves_when_a_peers_labels_change_what_the_peer_may_do() {
    let story = world().with(&policy(
        "p",
        &format!("{{ {ON_A}, ingress: [{{ from: [{{ podSelector: {{ matchLabels: {{ role: client }} }} }}] }}] }}"),
    ));
    let relabelled = |labels: &str| {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{ namespace: x, name: c, labels: {{ {labels} }} }}
spec: {{ nodeName: node-a, containers: [{{ name: c, ports: [{{ name: http, containerPort: 80 }}] }}] }}
status: {{ phase: Running, podIPs: [{{ ip: 10.244.1.13 }}, {{ ip: 'fd00:10:244:1::13' }}] }}
"
        )
    };
    let before = story.on("node-a");
    assert_ne!(before.version("x/a"), 0);
    let client = story.clone().with(&relabelled("pod: c, role: client")).after("node-a", Some(&before));
    assert!(client.ingress("x/a", XC, TCP, 80).0, "38");
    assert_ne!(client.version("x/a"), before.version("x/a"));
    assert_eq!(client.version("x/b"), before.version("x/b"), "nobody selects x/b");
    let unrelated = story.clone().with(&relabelled("pod: c, colour: blue")).after("node-a", Some(&before));
    assert_eq!(unrelated.version("x/a"), before.version("x/a"));
    let back = story.after("node-a", Some(&client));
    assert_eq!(back.version("x/a"), before.version("x/a"));
}

#[test]
fn a_pods_version_stays_when_other_pods_get_policies_and_identities_are_renumbered() {
    let p = policy(
        "p",
        &format!("{{ {ON_A}, ingress: [{{ from: [{{ podSelector: {{ matchLabels: {{ pod: b }} }} }}] }}] }}"),
    );
    let before = world().with(&p).on("node-a");
    let others = world()
        .with(&p)
        .with(&policy(
            "a-first",
            "{ podSelector: { matchLabels: { pod: c } }, policyTypes: [Ingress, Egress],
            ingress: [{ from: [{ ipBlock: { cidr: 10.244.1.0/24 } }, { podSelector: {} }] }] }",
        ))
        .with(&pod("x", "d", "node-a", 14))
        .after("node-a", Some(&before));
    assert_ne!(others.tables.identities.exact, before.tables.identities.exact);
    assert_eq!(others.version("x/a"), before.version("x/a"));
    assert_ne!(others.version("x/c"), before.version("x/c"));
}

#[test]
fn a_pods_version_moves_with_its_own_rules_address_and_uid() {
    let before = world().on("node-a");
    let with = |yaml: &str| world().with(yaml).after("node-a", Some(&before));
    let deny = with(&policy("deny", "{ podSelector: {}, policyTypes: [Egress] }"));
    assert_ne!(deny.version("x/a"), before.version("x/a"));
    let again = "
apiVersion: v1
kind: Pod
metadata: { namespace: x, name: a, uid: '2', labels: { pod: a } }
spec: { nodeName: node-a, containers: [{ name: c, ports: [{ name: http, containerPort: 80 }] }] }
status: { phase: Running, podIPs: [{ ip: 10.244.1.11 }, { ip: 'fd00:10:244:1::11' }] }
";
    assert_ne!(with(again).version("x/a"), before.version("x/a"));
    assert_eq!(with(again).version("x/b"), before.version("x/b"));
}
