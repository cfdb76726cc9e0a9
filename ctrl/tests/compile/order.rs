//! The same objects in any order of events give the same bytes.

use proptest::prelude::*;

use crate::story::{Ask, NODES, Story, TCP, pod};

/// A bit of everything, with objects that contend for names, addresses and ports.
fn everything() -> Story {
    let mut story = Story::new(NODES).with(
        "
apiVersion: v1
kind: Namespace
metadata: { name: shop, labels: { team: shop } }
---
apiVersion: v1
kind: Service
metadata: { namespace: shop, name: web }
spec: { clusterIP: 10.96.0.10, type: NodePort, selector: { pod: web }, ports: [{ port: 80, nodePort: 30080 }] }
---
apiVersion: v1
kind: Service
metadata: { namespace: shop, name: also-web }
spec: { clusterIP: 10.96.0.10, selector: { pod: db }, ports: [{ port: 80 }, { name: dns, port: 53, protocol: UDP }] }
---
apiVersion: v1
kind: Service
metadata: { namespace: shop, name: db }
spec: { selector: { pod: db }, ports: [{ port: 5432, targetPort: http }] }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { namespace: shop, name: db }
spec:
  podSelector: { matchLabels: { pod: db } }
  ingress: [{ from: [{ podSelector: { matchLabels: { pod: web } } }], ports: [{ port: http }] }]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { namespace: shop, name: out }
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{ to: [{ ipBlock: { cidr: 0.0.0.0/0, except: [10.0.0.0/8] } }] }, { ports: [{ port: 53, protocol: UDP }] }]
---
apiVersion: sluicegate.dev/v1alpha1
kind: EgressGateway
metadata: { name: partners }
spec:
  podSelector: {}
  namespaceSelector: { matchLabels: { team: shop } }
  egressIPs: [192.0.2.50, 192.0.2.51]
  gatewayNodes: {}
",
    );
    for (name, node, last) in [("web", "node-a", 5), ("db", "node-a", 6), ("web2", "node-b", 5), ("db2", "node-b", 6)] {
        story = story.with(&pod("shop", name, node, last));
    }
    story
}

#[test]
fn compiling_twice_gives_the_same_bytes() {
    assert_eq!(everything().on("node-a").tables.dump(), everything().on("node-a").tables.dump());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_order_of_events_ends_in_the_same_bytes(order in Just(everything().keys()).prop_shuffle()) {
        let all = everything();
        let fresh = all.on("node-a");
        let mut known = vec![];
        let mut compiled = None;
        for key in order {
            known.push(key);
            let story = all.only(&known);
            if story.cluster().nodes.contains_key("node-a") {
                compiled = Some(story.after("node-a", compiled.as_ref()));
            }
        }
        let last = compiled.unwrap();
        prop_assert_eq!(last.tables.dump(), fresh.tables.dump());
        prop_assert_eq!(last.invalid, fresh.invalid);
        prop_assert_eq!(last.steering, fresh.steering);
    }

    #[test]
    fn what_came_and_went_leaves_no_trace(gone in any::<prop::sample::Index>()) {
        let all = everything();
        let keys = all.keys();
        let mut fewer = keys.clone();
        fewer.remove(gone.index(keys.len()));
        prop_assume!(all.only(&fewer).cluster().nodes.contains_key("node-a"));
        let expected = all.only(&fewer).on("node-a");
        let before = all.on("node-a");
        let after = all.only(&fewer).after("node-a", Some(&before));
        prop_assert_eq!(after.tables.dump(), expected.tables.dump());
        let back = all.after("node-a", Some(&after));
        prop_assert_eq!(back.tables.dump(), before.tables.dump());
    }
}

#[test]
fn a_change_to_one_service_touches_its_shard_and_its_slot_alone() {
    let before = everything().on("node-a");
    let story = everything().with(
        "
apiVersion: v1
kind: Service
metadata: { namespace: shop, name: db }
spec: { selector: { pod: db }, sessionAffinity: ClientIP, ports: [{ port: 5432, targetPort: http }] }
",
    );
    let after = story.after("node-a", Some(&before));
    let (old, new) = (&before.tables.services, &after.tables.services);
    let touched = old.shards.iter().zip(&new.shards).filter(|(a, b)| !std::sync::Arc::ptr_eq(a, b)).count();
    assert_eq!(touched, 1, "one ClusterIP, one shard");
    let slots = old.versions.iter().zip(new.versions.iter()).filter(|(a, b)| a != b).count();
    assert_eq!(slots, 1);
    assert_eq!(before.slot_version("10.96.0.10", TCP, 80), after.slot_version("10.96.0.10", TCP, 80));
    let unchanged = story.after("node-a", Some(&after));
    let same = after.tables.services.shards.iter().zip(&unchanged.tables.services.shards);
    assert!(same.into_iter().all(|(a, b)| std::sync::Arc::ptr_eq(a, b)));
}

#[test]
fn unchanged_backends_keep_their_maglev_table() {
    let before = everything().on("node-a");
    let wider = "
apiVersion: v1
kind: Service
metadata: { namespace: shop, name: web }
spec: { clusterIP: 10.96.0.10, selector: { pod: web }, ports: [{ name: a, port: 80 }, { name: b, port: 81, targetPort: 80 }] }
";
    let after = everything().without("Service/shop/also-web").with(wider).after("node-a", Some(&before));
    let set = |c: &sluice_ctrl::compile::Compiled, port| c.frontend("10.96.0.10", TCP, port).unwrap().internal.clone();
    assert!(std::sync::Arc::ptr_eq(&set(&after, 80), &set(&after, 81)), "equal members, one set");
}
