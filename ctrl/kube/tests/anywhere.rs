//! What holds against any API server: the tests' own always, and real ones where there are any (`servers`).
//!
//! Everything made bears a name of its own and is taken away again, CRDs too where they were not there.

mod servers;

use serde_json::{Value, json};
use servers::Server;
use sluice_ctrl::import::Effect;
use sluice_ctrl::source::{Kind, ObjectKey};
use sluice_kube::feed::{KubeSource, Options, Update};
use sluice_kube::follow::Patience;
use sluice_kube::writer::{Refusal, TAINT, Verdict};
use sluice_kube::{Connection, Elector, Leases};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

type Objects = Arc<Mutex<Option<BTreeMap<ObjectKey, Value>>>>;

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A name that no other run has.
fn unique(what: &str) -> String {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    format!("sluice-test-{what}-{}-{}", std::process::id(), nanos % 1_000_000_000)
}

fn follow(server: &Server, node: &str) -> (KubeSource, Objects) {
    let objects = Objects::default();
    let seen = objects.clone();
    let take = move |update| {
        if let Update::Objects { deltas, all, .. } = update {
            let mut seen = seen.lock().unwrap();
            if all {
                *seen = Some(BTreeMap::new());
            }
            for delta in deltas {
                match (seen.as_mut(), delta.object) {
                    (Some(map), Some(raw)) => drop(map.insert(delta.key, raw.value.clone())),
                    (Some(map), None) => drop(map.remove(&delta.key)),
                    (None, _) => panic!("changes before everything was in sync"),
                }
            }
        }
    };
    let patience = Patience { page: 3, ..Patience::default() };
    let options =
        Options { patience, lease: Duration::from_secs(2), ..Options::new(node, Some(server.kubeconfig.clone())) };
    (KubeSource::start(options, take).unwrap(), objects)
}

fn service(namespace: &str, name: &str, port: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": "None", "ports": [{"port": port}]}})
}

#[test]
fn objects_come_change_and_go_as_the_server_has_them() {
    for server in servers::all() {
        let namespace = unique("follow");
        server.create(
            "/api/v1/namespaces",
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        );
        let path = format!("/api/v1/namespaces/{namespace}/services");
        for n in 0..7 {
            server.create(&path, &service(&namespace, &format!("s{n}"), 80));
        }
        let (_source, objects) = follow(&server, "no-such-node");
        let ports = || {
            let seen = objects.lock().unwrap();
            let ours = seen.iter().flatten().filter(|(k, _)| k.kind == Kind::Service && k.namespace == namespace);
            ours.map(|(k, v)| (k.name.clone(), v["spec"]["ports"][0]["port"].as_u64().unwrap_or(0))).collect::<Vec<_>>()
        };
        let listed = || {
            let list = server.get(&path).unwrap();
            let all = list["items"].as_array().unwrap().iter();
            let mut all: Vec<_> = all
                .map(|s| {
                    let name = s["metadata"]["name"].as_str().unwrap().to_owned();
                    (name, s["spec"]["ports"][0]["port"].as_u64().unwrap())
                })
                .collect();
            all.sort();
            all
        };
        let same = |what: &str| wait_for(&format!("{}: {what}", server.name), || (ports() == listed()).then_some(()));
        same("the list, in pages of three");
        assert_eq!(ports().len(), 7, "{}", server.name);
        server.patch(&format!("{path}/s1"), &json!({"spec": {"ports": [{"port": 81}]}}));
        server.delete(&format!("{path}/s2")).unwrap();
        server.create(&path, &service(&namespace, "s7", 82));
        same("what changed since");
        assert!(ports().contains(&("s1".to_owned(), 81)) && ports().len() == 7, "{}: {:?}", server.name, ports());
        for n in 0..8 {
            let _ = server.delete(&format!("{path}/s{n}"));
        }
        same("nothing is left");
        let _ = server.delete(&format!("/api/v1/namespaces/{namespace}"));
    }
}

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const GATEWAYS: &str = "/apis/sluicegate.dev/v1alpha1/egressgateways";

/// The CRD of EgressGateway, where the server does not have it; true if it was made here.
fn define_gateways(server: &Server) -> bool {
    if server.name != "the tests' own" && server.get(GATEWAYS).is_none() {
        let text = include_str!("../../../deploy/crds/sluicegate.dev_egressgateways.yaml");
        let definition: Value = serde_yaml_ng::from_str(text).unwrap();
        server.create(DEFINITIONS, &definition);
        wait_for("the kind is served", || server.get(GATEWAYS));
        return true;
    }
    false
}

#[test]
fn status_events_and_the_nodes_condition_are_told() {
    for server in servers::all() {
        let (node, gateway) = (unique("node"), unique("gateway"));
        let made = define_gateways(&server);
        server.create(
            "/api/v1/nodes",
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
                "spec": {"taints": [{"key": TAINT, "effect": "NoSchedule"}, {"key": "other", "effect": "NoSchedule"}]}}),
        );
        server.create(
            GATEWAYS,
            &json!({"apiVersion": "sluicegate.dev/v1alpha1", "kind": "EgressGateway", "metadata": {"name": gateway},
                "spec": {"egressIPs": ["192.0.2.50"], "gatewayNodes": {"matchLabels": {"egress": "true"}}}}),
        );
        let (source, objects) = follow(&server, &node);
        let key = ObjectKey { kind: Kind::EgressGateway, namespace: String::new(), name: gateway.clone() };
        wait_for(server.name, || objects.lock().unwrap().as_ref()?.contains_key(&key).then_some(()));
        let refusal =
            Refusal { key, field: "spec.x".into(), why: "of a test".into(), effect: Some(Effect::FailedClosed) };
        source.judge(Verdict { refusals: vec![refusal], programmed: true, ..Verdict::default() });
        let path = format!("/api/v1/nodes/{node}");
        // A real server adds taints of its own to a node that is not ready.
        let seen = wait_for(&format!("{}: the taint goes", server.name), || {
            let seen = server.get(&path)?;
            let taints = seen["spec"]["taints"].as_array().cloned().unwrap_or_default();
            (!taints.iter().any(|t| t["key"] == TAINT)).then_some(seen)
        });
        assert!(seen["spec"]["taints"].as_array().unwrap().iter().any(|t| t["key"] == "other"), "{seen}");
        let conditions = seen["status"]["conditions"].as_array().unwrap();
        assert!(conditions.iter().any(|c| c["type"] == "NetworkUnavailable" && c["status"] == "False"), "{seen}");
        let status = wait_for(&format!("{}: the gateway's status", server.name), || {
            server.get(&format!("{GATEWAYS}/{gateway}"))?["status"]["conditions"].as_array().cloned()
        });
        let of = |name: &str| status.iter().find(|c| c["type"] == name).unwrap();
        assert_eq!((&of("Accepted")["status"], &of("Programmed")["status"]), (&json!("False"), &json!("False")));
        assert_eq!(of("Accepted")["observedGeneration"], 1);
        let event = wait_for(&format!("{}: an event", server.name), || {
            let list = server.get("/api/v1/namespaces/default/events")?;
            list["items"].as_array()?.iter().find(|e| e["involvedObject"]["name"] == gateway.as_str()).cloned()
        });
        assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("FailedClosed")));
        drop(source);
        let _ = server.delete(&path);
        let _ = server.delete(&format!("{GATEWAYS}/{gateway}"));
        if made {
            let _ = server.delete(&format!("{DEFINITIONS}/egressgateways.sluicegate.dev"));
        }
    }
}

#[test]
fn a_lease_has_one_holder() {
    for server in servers::all() {
        let name = unique("lease");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let leases = || Leases::new(Connection::new(Some(server.kubeconfig.clone())), "default");
            let elector = |who: &str| Elector::new(leases(), &name, who, Duration::from_secs(30));
            let (mut a, mut b) = (elector("a"), elector("b"));
            assert_eq!(a.attempt().await, Ok(true), "{}", server.name);
            assert_eq!(b.attempt().await, Ok(false), "{}", server.name);
            a.give_up().await.unwrap();
            assert_eq!(b.attempt().await, Ok(true), "{}", server.name);
            assert!(b.holds() && a.attempt().await == Ok(false), "{}", server.name);
            let record = leases().get(&name).await.unwrap().unwrap();
            assert_eq!(record.holder.as_deref(), Some("b"));
            leases().delete(&record).await.unwrap();
        });
    }
}
