//! Following single changes ends in the same bytes as compiling everything anew, whatever the changes and their order.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use sluice_ctrl::compile::{Compiled, Knobs, LocalView, Replay, compile};
use sluice_ctrl::config::Config;
use sluice_ctrl::import::Defaults;
use sluice_ctrl::import::live::{Delta, Live, Touched};
use sluice_ctrl::model::Cluster;
use sluice_ctrl::source::{Identified, ObjectSet, Origin, RawObject, identify};

/// How many objects there are.
const OBJECTS: usize = 23;

/// Objects that contend for addresses and ports, and pods that differ in nothing but labels and readiness; three versions
/// each.
fn objects(version: u64) -> Vec<Value> {
    let v = version;
    let service = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec});
    let slice = |name: &str, service: &str, last: &[u64], port: u64| {
        let endpoints: Vec<Value> =
            last.iter().map(|n| json!({"addresses": [format!("10.244.2.{n}")], "nodeName": "node-b"})).collect();
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}}, "ports": [{"port": port}]})
    };
    let labelled = |mut service: Value, on: bool| {
        if on {
            service["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
        }
        service
    };
    let balancer = |name: &str, addresses: &[&str], policy: &str| {
        let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let mut balancer = service(
            name,
            json!({"type": "LoadBalancer", "clusterIP": format!("10.96.0.{}", name.as_bytes()[0]),
            "ports": [{"port": 80}], "externalTrafficPolicy": policy}),
        );
        balancer["status"] = json!({"loadBalancer": {"ingress": ingress}});
        balancer
    };
    vec![
        service("a", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80 + v}]})),
        // The same cluster address as another's, sometimes.
        service("b", json!({"clusterIP": format!("10.96.0.1{v}"), "ports": [{"port": 80}, {"name": "x", "port": 81}]})),
        service(
            "c",
            json!({"type": "NodePort", "clusterIP": "10.96.0.30", "ports": [{"port": 80, "nodePort": 30_000 + v}]}),
        ),
        service(
            "d",
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.31", "ports": [{"port": 80, "nodePort": 30_001}], "externalIPs": ["203.0.113.9"]}),
        ),
        labelled(service("e", json!({"clusterIP": "10.96.0.33", "ports": [{"port": 80}]})), v == 1),
        slice("a-1", if v == 2 { "b" } else { "a" }, &[2, 3 + v], 8080),
        slice("a-2", "a", &[9], 8080 + v),
        slice("b-1", "b", &[5], 8080),
        slice("c-1", "c", &[], 80),
        slice("e-1", "e", &[6], 80),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop", "labels": {"v": v.to_string()}},
            "spec": {"nodeName": "node-a"}, "status": {"podIP": format!("10.244.1.{}", 5 + v)}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "n", "namespace": "shop"},
            "spec": {"podSelector": {"matchLabels": {"v": "1"}}, "policyTypes": ["Ingress"]}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-b"}, "spec": {"podCIDR": "10.244.2.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{}", 12 + v)}]}}),
        // Addresses that move between nodes, and Services that have to do with them.
        json!({"apiVersion": "sluicegate.dev/v1alpha1", "kind": "IPPool", "metadata": {"name": "edge"},
            "spec": {"use": "services", "cidrs": [format!("198.51.100.{}/28", 16 * v)]}}),
        json!({"apiVersion": "sluicegate.dev/v1alpha1", "kind": "EgressGateway", "metadata": {"name": "out"},
            "spec": {"podSelector": {}, "namespaceSelector": {}, "egressIPs": ["203.0.113.9", "203.0.113.10", format!("198.51.100.{}", 3 + v)],
                "gatewayNodes": {}}}),
        balancer("f", &["198.51.100.3", "198.51.100.20"], if v == 1 { "Cluster" } else { "Local" }),
        balancer("g", &[["198.51.100.3", "198.51.100.4", "203.0.113.10"][v as usize]], "Local"),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "f-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": if v == 2 { "g" } else { "f" }}},
            "ports": [{"port": 8080}], "endpoints": [
                {"addresses": ["10.244.2.7"], "nodeName": if v == 0 { "node-a" } else { "node-b" }},
                {"addresses": [format!("10.244.1.{}", 5 + v)], "targetRef": {"kind": "Pod", "name": "p", "namespace": "shop"},
                    "conditions": {"ready": v != 1}}]}),
        labelled_pod("q", "node-a", "10.244.1.50", v),
        labelled_pod("r", "node-a", "10.244.1.51", v),
        labelled_pod("s", "node-b", "10.244.2.50", v),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "m", "namespace": "shop"},
            "spec": {"podSelector": {"matchExpressions": [{"key": "v", "operator": "In", "values": ["0", "2"]}]},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"v": "1"}}}], "ports": [{"port": "web"}, {"port": 80}]}],
                "egress": [{"to": [{"podSelector": {"matchLabels": {"v": "2"}}}], "ports": [{"port": "web"}]},
                    {"to": [{"ipBlock": {"cidr": "10.244.0.0/16", "except": [format!("10.244.{}.50/32", 1 + v % 2)]}}]}]}}),
        json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "c"},
            "spec": {"tier": if v == 0 { "Admin" } else { "Baseline" }, "priority": v,
                "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"v": "2"}}}},
                "ingress": [{"action": "Deny", "from": [{"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"v": "0"}}}}]}]}}),
    ]
}

fn labelled_pod(name: &str, node: &str, ip: &str, v: u64) -> Value {
    let ready = if v == 1 { "True" } else { "False" };
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"v": v.to_string()}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"podIP": ip, "phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})
}

fn delta(value: &Value, there: bool) -> Delta {
    let Ok(Identified::Key(key)) = identify(value) else { panic!("{value}") };
    let raw = RawObject { value: value.clone(), origin: Origin::ApiServer };
    Delta { key, object: there.then(|| Arc::new(raw)) }
}

fn own_node() -> Delta {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}, "spec": {"podCIDR": "10.244.1.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]}});
    delta(&node, true)
}

/// A node that follows.
struct Follower {
    live: Live,
    cluster: Cluster,
    view: LocalView,
    knobs: Knobs,
    last: Option<Compiled>,
    touched: Touched,
}

impl Follower {
    fn new() -> Follower {
        let (mut live, mut cluster) = (Live::default(), Cluster::default());
        // Pods have their ports here whether or not the API shows them.
        let mut set = ObjectSet::default();
        let all = objects(0).iter().map(|object| delta(object, true)).chain([own_node()]).collect::<Vec<_>>();
        set.objects.extend(all.into_iter().filter_map(|delta| Some((delta.key, delta.object?))));
        let view =
            LocalView::derived(&Cluster::build(&set, &Defaults::default()).0, "node-a", &Replay::default()).unwrap();
        assert_eq!(view.pods.len(), 3);
        live.apply(&mut cluster, own_node(), &mut Touched::default());
        let knobs = Knobs::from(&Config::builtin("node-a"));
        Follower { live, cluster, view, knobs, last: None, touched: Touched::default() }
    }

    /// As the agent does it.
    fn take(&mut self, deltas: impl IntoIterator<Item = Delta>) {
        let mut touched = Touched::default();
        for delta in deltas {
            self.live.apply(&mut self.cluster, delta, &mut touched);
        }
        self.touched = touched;
        self.last = Some(compile(&self.cluster, &self.view, &self.knobs, self.last.as_ref()).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn any_changes_in_any_order_end_in_the_bytes_of_what_is_left(
        events in prop::collection::vec((0..OBJECTS, 0..4u64), 1..40),
        burst in 1..4usize,
    ) {
        let mut follower = Follower::new();
        let mut set = ObjectSet::default();
        let own = own_node();
        set.objects.insert(own.key, own.object.unwrap());
        for events in events.chunks(burst) {
            let changes: Vec<Delta> = events.iter().map(|(which, v)| delta(&objects(v % 3)[*which], *v < 3)).collect();
            for change in &changes {
                match &change.object {
                    Some(raw) => drop(set.objects.insert(change.key.clone(), raw.clone())),
                    None => drop(set.objects.remove(&change.key)),
                }
            }
            follower.take(changes);
        }
        let (cluster, _) = Cluster::build(&set, &Defaults::default());
        let fresh = compile(&cluster, &follower.view, &follower.knobs, None).unwrap();
        let last = follower.last.unwrap();
        prop_assert_eq!(last.tables.dump(), fresh.tables.dump());
        prop_assert_eq!(last.invalid, fresh.invalid);
        prop_assert_eq!(last.steering, fresh.steering);
        prop_assert_eq!(last.placement, fresh.placement);
    }
}

/// All objects but EgressGateways, which pick pods by label.
fn without_gateways(version: u64) -> Vec<Delta> {
    let all = objects(version);
    all.iter().filter(|object| object["kind"] != "EgressGateway").map(|object| delta(object, true)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn changes_of_labels_alone_end_in_the_bytes_of_compiling_anew_after_each_of_them(
        events in prop::collection::vec((18..21usize, 0..3u64), 1..12),
    ) {
        let mut follower = Follower::new();
        follower.take(without_gateways(1));
        let started = follower.last.as_ref().unwrap().tables.clone();
        for (which, v) in events {
            follower.take([delta(&objects(v)[which], true)]);
            let last = follower.last.as_ref().unwrap();
            let fresh = compile(&follower.cluster, &follower.view, &follower.knobs, None).unwrap();
            prop_assert_eq!(last.tables.dump(), fresh.tables.dump());
            prop_assert_eq!(last.tables.pods.versions(), fresh.tables.pods.versions());
            // Nothing but what labels decide was made again.
            prop_assert!(Arc::ptr_eq(&started.routes, &last.tables.routes));
        }
    }
}

#[test]
fn a_label_change_leaves_all_but_policy_as_it_is_and_readiness_leaves_everything() {
    let mut follower = Follower::new();
    follower.take(without_gateways(1));
    let before = follower.last.as_ref().unwrap().tables.clone();
    let mut ready = objects(1)[18].clone();
    ready["status"]["conditions"][0]["status"] = "False".into();
    follower.take([delta(&ready, true)]);
    let after = follower.last.as_ref().unwrap().tables.clone();
    assert!(Arc::ptr_eq(&before.pods, &after.pods) && Arc::ptr_eq(&before.policy, &after.policy));
    follower.take([delta(&objects(2)[18], true)]);
    let after = &follower.last.as_ref().unwrap().tables;
    assert!(!Arc::ptr_eq(&before.pods, &after.pods) && !Arc::ptr_eq(&before.policy, &after.policy));
    assert!(Arc::ptr_eq(&before.routes, &after.routes) && Arc::ptr_eq(&before.node, &after.node));
    let q = |tables: &sluice_tables::Tables| tables.pods.iter().position(|pod| &*pod.name == "shop/q");
    assert_eq!(q(&before), q(after));
}

#[test]
fn an_endpoint_change_builds_its_service_and_its_shard_alone() {
    let mut follower = Follower::new();
    follower.take(objects(0).iter().map(|object| delta(object, true)));
    let before = follower.last.as_ref().unwrap().tables.clone();
    follower.take([delta(&objects(1)[6], true)]);
    assert!(!follower.touched.others);
    let after = &follower.last.as_ref().unwrap().tables;
    let changed = before.services.shards.iter().zip(&after.services.shards).filter(|(a, b)| !Arc::ptr_eq(a, b));
    assert_eq!(changed.count(), 1);
    assert!(Arc::ptr_eq(&before.policy, &after.policy) && Arc::ptr_eq(&before.pods, &after.pods));
}

/// Whether nothing but Services was compiled anew by the last step.
fn same_rest(before: &Compiled, after: &Compiled) -> bool {
    let (before, after) = (&before.tables, &after.tables);
    Arc::ptr_eq(&before.egress, &after.egress) && Arc::ptr_eq(&before.pods, &after.pods)
}

#[test]
fn beside_gateways_and_pools_too_a_service_without_a_moving_address_is_compiled_alone() {
    let mut follower = Follower::new();
    follower.take(objects(0).iter().map(|object| delta(object, true)));
    for which in [0, 1, 5, 6] {
        let before = follower.last.clone().unwrap();
        follower.take([delta(&objects(1)[which], true)]);
        let after = follower.last.as_ref().unwrap();
        assert!(same_rest(&before, after), "{}", objects(1)[which]);
        assert_ne!(before.tables.dump(), after.tables.dump());
    }
    // An endpoint of a Service with the policy Local moves, and with it the nodes that may carry its address.
    let before = follower.last.clone().unwrap();
    follower.take([delta(&objects(1)[17], true)]);
    let after = follower.last.as_ref().unwrap();
    assert!(!same_rest(&before, after) && before.placement != after.placement);
}

#[test]
fn a_service_that_another_proxy_takes_is_gone_and_comes_back() {
    let mut follower = Follower::new();
    follower.take(objects(0).iter().map(|object| delta(object, true)));
    let count = |f: &Follower| {
        let shards = &f.last.as_ref().unwrap().tables.services.shards;
        shards.iter().flat_map(|s| s.frontends.values()).filter(|f| f.name.starts_with("shop/e:")).count()
    };
    assert_eq!(count(&follower), 1);
    follower.take([delta(&objects(1)[4], true)]);
    assert_eq!(count(&follower), 0);
    follower.take([delta(&objects(2)[4], true)]);
    assert_eq!(count(&follower), 1);
}
