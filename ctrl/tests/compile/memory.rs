//! Memory of the policy tables grows with what is in the cluster and not with its square: bytes are counted, no clock.

use serde_json::{Value, json};
use sluice_ctrl::compile::{Knobs, LocalView, Replay, compile};
use sluice_ctrl::config::Config;
use sluice_ctrl::import::{Defaults, Importer};
use sluice_ctrl::source::{Identified, ObjectSet, Origin, RawObject, identify};
use sluice_tables::Tables;
use std::sync::Arc;

/// Pods and policies of a namespace.
const EACH: u32 = 16;

/// Tables of a node on which all pods of so many namespaces are. Each policy admits a peer of its own, a team of many
/// namespaces, everybody on one port, and lets out to networks of its own and to all addresses but some.
fn tables(namespaces: u32) -> Tables {
    let mut set = ObjectSet::default();
    let mut add = |value: Value| {
        let Ok(Identified::Key(key)) = identify(&value) else { panic!("{value}") };
        set.objects.insert(key, Arc::new(RawObject { value, origin: Origin::ApiServer }));
    };
    add(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "spec": {"podCIDRs": ["10.244.0.0/16", "fd00:10:244::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]}}));
    for namespace in 0..namespaces {
        let ns = format!("ns{namespace}");
        add(json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": ns, "labels": {"team": format!("t{}", namespace % 4)}}}));
        for n in 0..EACH {
            let number = namespace * EACH + n;
            let v4 = format!("10.244.{}.{}", 1 + number / 200, 10 + number % 200);
            let v6 = format!("fd00:10:244::{:x}", 0x100 + number);
            add(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("p{n}"), "namespace": ns, "labels": {"app": format!("a{n}")}},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
                "status": {"podIPs": [{"ip": v4}, {"ip": v6}]}}));
            let (own, hole) = (
                format!("100.{}.{}.0/28", 64 + number / 256, number % 256),
                format!("100.{}.{}.4/30", 64 + number / 256, number % 256),
            );
            add(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"name": format!("n{n}"), "namespace": ns},
                "spec": {"podSelector": {"matchLabels": {"app": format!("a{n}")}}, "policyTypes": ["Ingress", "Egress"],
                    "ingress": [
                        {"from": [{"podSelector": {"matchLabels": {"app": format!("a{}", (n + 1) % EACH)}}}], "ports": [{"port": "web"}]},
                        {"from": [{"namespaceSelector": {"matchLabels": {"team": format!("t{}", n % 4)}}}], "ports": [{"port": 8000 + n}]},
                        {"from": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}]}],
                    "egress": [
                        {"to": [{"ipBlock": {"cidr": own, "except": [hole]}}], "ports": [{"port": 443}]},
                        {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.0/16"]}}], "ports": [{"port": 9000, "endPort": 9000 + n}]}]}}));
        }
    }
    let (cluster, invalid) = Importer::default().build(&set, &Defaults::default());
    assert!(invalid.is_empty(), "{}", invalid[0]);
    let view = LocalView::derived(&cluster, "n", &Replay::default()).unwrap();
    compile(&cluster, &view, &Knobs::from(&Config::builtin("n")), None).unwrap().tables
}

#[test]
fn twice_the_cluster_takes_twice_the_memory() {
    let of = |namespaces: u32| {
        let tables = tables(namespaces);
        assert_eq!(tables.pods.iter().count() as u32, namespaces * EACH);
        [tables.identities.bytes(), tables.policy.bytes()]
    };
    // From the first size on, peers of a team are so many that sets share their table.
    let [one, two, four] = [24, 48, 96].map(of);
    for (column, what) in ["identities", "policy"].into_iter().enumerate() {
        for (small, large) in [(one[column], two[column]), (two[column], four[column])] {
            let ratio = large as f64 / small as f64;
            // Hash tables double by themselves, here at the same points for all three sizes.
            assert!((1.7..2.3).contains(&ratio), "{what}: {small} and {large} bytes, {ratio:.2} times");
        }
    }
}
