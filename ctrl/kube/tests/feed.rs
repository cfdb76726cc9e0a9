//! The source against an API server over real HTTP: lists, watches, and everything that goes wrong with them.

use serde_json::{Value, json};
use sluice_ctrl::source::{Kind, ObjectKey};
use sluice_fake_apiserver::{Fake, Faults, Identity};
use sluice_kube::feed::{KubeSource, Options, SourceHealth, Update};
use sluice_kube::follow::{Health, Patience};
use sluice_kube::state;
use sluice_kube::writer::{Refusal, TAINT, Verdict};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the source has handed over.
#[derive(Default)]
struct Seen {
    objects: BTreeMap<ObjectKey, Value>,
    health: SourceHealth,
    /// How often it gave everything anew.
    wholes: usize,
}

struct Setup {
    fake: Fake,
    seen: Arc<Mutex<Seen>>,
    folder: tempfile::TempDir,
    options: Options,
    source: Option<KubeSource>,
}

fn impatient() -> Patience {
    Patience {
        page: 3,
        watch: Duration::from_secs(60),
        silence: Duration::from_millis(1500),
        first: Duration::from_millis(10),
        longest: Duration::from_millis(200),
        absent: Duration::from_millis(50),
    }
}

impl Setup {
    fn new(token: Option<&str>) -> Setup {
        Setup::with(Fake::start().unwrap(), token)
    }

    fn with(fake: Fake, token: Option<&str>) -> Setup {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = fake.kubeconfig(folder.path(), token).unwrap();
        let options = Options {
            patience: impatient(),
            state_dir: Some(folder.path().to_owned()),
            absent_grace: Duration::from_millis(800),
            lease: Duration::from_secs(1),
            ..Options::new("node-a", Some(kubeconfig))
        };
        Setup { fake, seen: Arc::default(), folder, options, source: None }
    }

    fn started(mut self) -> Setup {
        let seen = self.seen.clone();
        let take = move |update| {
            let mut seen = seen.lock().unwrap();
            match update {
                Update::Health(health) => seen.health = health,
                Update::Objects { deltas, all, .. } => {
                    if all {
                        seen.objects.clear();
                        seen.wholes += 1;
                    }
                    for delta in deltas {
                        match delta.object {
                            Some(raw) => drop(seen.objects.insert(delta.key, raw.value.clone())),
                            None => drop(seen.objects.remove(&delta.key)),
                        }
                    }
                }
            }
        };
        self.source = Some(KubeSource::start(self.options.clone(), take).unwrap());
        self
    }

    fn wait(&self, what: &str, done: impl Fn(&Seen) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !done(&self.seen.lock().unwrap()) {
            let seen = self.seen.lock().unwrap();
            assert!(Instant::now() < until, "{what}: {:?} {:?}", seen.objects.keys().collect::<Vec<_>>(), seen.health);
            drop(seen);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until what was handed over is what the server has.
    fn wait_equal(&self, what: &str) {
        let services = || {
            let list = self.fake.list("api/v1/services");
            list.iter().map(|s| (text(&s["metadata"]["name"]), s["spec"].clone())).collect::<BTreeMap<_, _>>()
        };
        self.wait(what, |seen| {
            let got = seen.objects.iter().filter(|(k, _)| k.kind == Kind::Service);
            let got: BTreeMap<_, _> = got.map(|(k, v)| (k.name.clone(), v["spec"].clone())).collect();
            seen.health.synced && got == services()
        });
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn service(name: &str, port: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop", "managedFields": [1]},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]}})
}

fn gateway(name: &str) -> Value {
    json!({"apiVersion": "sluicegate.dev/v1alpha1", "kind": "EgressGateway", "metadata": {"name": name},
        "spec": {"egressIPs": ["192.0.2.50"], "gatewayNodes": {}}})
}

const GATEWAYS: &str = "apis/sluicegate.dev/v1alpha1/egressgateways";
const POLICIES: &str = "apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";

#[test]
fn nothing_is_handed_over_before_every_kind_was_in_sync() {
    let setup = Setup::new(None);
    for n in 0..7 {
        setup.fake.apply(service(&format!("s{n}"), 80));
    }
    setup.fake.with(|w| w.faults.forbidden.insert("networkpolicies".to_owned()));
    let setup = setup.started();
    setup.wait("six kinds", |seen| seen.health.kinds.values().filter(|h| **h == Health::Well).count() == 8);
    assert_eq!(setup.seen.lock().unwrap().wholes, 0);
    let problems = setup.seen.lock().unwrap().health.problems();
    assert!(problems[0].starts_with("NetworkPolicy: forbidden"), "{problems:?}");
    setup.fake.with(|w| w.faults.forbidden.clear());
    setup.wait_equal("all in sync");
    assert_eq!(setup.seen.lock().unwrap().wholes, 1);
    let pages =
        setup.fake.with(|w| w.requests.iter().filter(|(_, p)| p.contains("services") && p.contains("limit=3")).count());
    assert!(pages >= 3, "seven objects in pages of three");
    // Everything is on disk, stripped, and comes back.
    let path = state::path(setup.folder.path());
    let until = Instant::now() + Duration::from_secs(10);
    while !path.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    let saved = state::load(&path, "node-a").unwrap().unwrap();
    assert_eq!(saved.deltas.len(), 7);
    assert!(!std::fs::read_to_string(&path).unwrap().contains("managedFields"));
}

#[test]
fn a_list_whose_pages_expire_is_read_whole() {
    let setup = Setup::new(None);
    for n in 0..7 {
        setup.fake.apply(service(&format!("s{n}"), 80));
    }
    setup.fake.with(|w| w.faults.expire_pages = true);
    setup.started().wait_equal("expired pages");
}

#[test]
fn a_kind_without_its_crd_is_no_obstacle_and_is_followed_when_the_crd_comes() {
    let setup = Setup::new(None);
    setup.fake.apply(service("a", 80));
    setup.fake.with(|w| w.faults.absent.insert("egressgateways".to_owned()));
    let setup = setup.started();
    setup.wait_equal("in sync without the CRD");
    assert_eq!(setup.seen.lock().unwrap().health.absent(), [Kind::EgressGateway]);
    setup.fake.apply(gateway("partners"));
    setup.fake.with(|w| w.faults.absent.clear());
    setup.wait("the gateway", |seen| seen.objects.keys().any(|k| k.kind == Kind::EgressGateway));
    // An API server that forgets its CRDs for a moment costs nothing.
    setup.fake.with(|w| {
        w.faults.absent.insert("egressgateways".to_owned());
        w.compact();
    });
    setup.fake.apply(gateway("other"));
    setup.wait("absent again", |seen| seen.health.absent() == [Kind::EgressGateway]);
    assert!(setup.seen.lock().unwrap().objects.keys().any(|k| k.name == "partners"), "kept for the grace time");
    setup.wait("gone for good", |seen| !seen.objects.keys().any(|k| k.name == "partners"));
}

#[test]
fn forgotten_versions_cut_streams_and_restarts_end_in_what_the_server_has() {
    let mut setup = Setup::new(None);
    for n in 0..5 {
        setup.fake.apply(service(&format!("s{n}"), 80));
    }
    setup = setup.started();
    setup.wait_equal("first");
    let key = |n: u32| ("shop".to_owned(), format!("s{n}"));
    // 410: what happened in between is not told, only listed.
    setup.fake.with(|w| {
        w.apply(service("s1", 81));
        w.delete("api/v1/services", &key(0));
        w.compact();
    });
    setup.wait_equal("after 410");
    // Cut in the middle of a line.
    setup.fake.with(|w| w.faults.cut_after = Some(1));
    for n in 0..6 {
        setup.fake.apply(service("s2", 90 + n));
        setup.fake.apply(service(&format!("t{n}"), 80));
    }
    setup.wait_equal("cut streams");
    setup.fake.with(|w| w.faults.cut_after = None);
    // Down, changed meanwhile, up again.
    setup.fake.stop();
    setup.wait("the status says it", |seen| !seen.health.problems().is_empty());
    setup.fake.with(|w| {
        w.delete("api/v1/services", &key(1));
        w.apply(service("new", 80));
    });
    assert!(setup.seen.lock().unwrap().objects.keys().any(|k| k.name == "s1"), "the last state stands");
    setup.fake.resume().unwrap();
    setup.wait_equal("after a restart");
    setup.wait("well again", |seen| seen.health.problems().is_empty());
    assert_eq!(setup.seen.lock().unwrap().wholes, 1, "never begun anew");
}

#[test]
fn late_double_and_reordered_events_end_in_what_the_server_has() {
    let setup = Setup::new(None).started();
    setup.wait_equal("empty");
    setup.fake.with(|w| w.faults = Faults { duplicate: true, reverse: true, slow_ms: 5, ..Faults::default() });
    for round in 0..4 {
        setup.fake.with(|w| {
            for n in 0..6 {
                w.apply(service(&format!("s{n}"), 80 + round));
            }
            w.delete("api/v1/services", &("shop".to_owned(), format!("s{round}")));
            if round % 2 == 0 {
                w.apply(service(&format!("s{round}"), 7));
            }
        });
        std::thread::sleep(Duration::from_millis(30));
    }
    setup.wait_equal("shuffled");
}

#[test]
fn a_watch_that_says_nothing_is_cut_and_asked_again() {
    let setup = Setup::new(None).started();
    setup.wait_equal("empty");
    setup.fake.with(|w| w.faults.silent = true);
    setup.fake.apply(service("a", 80));
    std::thread::sleep(Duration::from_millis(200));
    setup.fake.with(|w| w.faults.silent = false);
    setup.fake.apply(service("b", 80));
    setup.wait_equal("heard again");
}

#[test]
fn a_token_that_is_exchanged_is_read_anew_at_once() {
    let setup = Setup::new(Some("old"));
    setup.fake.with(|w| w.faults.tokens = vec!["old".to_owned()]);
    let setup = setup.started();
    setup.wait_equal("with the old token");
    setup.fake.with(|w| {
        w.faults.tokens = vec!["new".to_owned()];
        w.faults.cut_after = Some(0);
    });
    setup.fake.apply(service("a", 80));
    setup.wait("refused", |seen| seen.health.problems().iter().any(|p| p.contains("refuses our credentials")));
    setup.fake.with(|w| w.faults.cut_after = None);
    std::fs::write(setup.folder.path().join("token"), "new").unwrap();
    let began = Instant::now();
    setup.wait_equal("with the new token");
    assert!(began.elapsed() < Duration::from_secs(15), "not after kube's minute");
}

/// As in a pod: HTTPS, the CA and the token in files.
#[test]
fn token_and_authority_are_files_and_are_read_anew_when_they_are_exchanged() {
    let names = ["127.0.0.1"];
    let mut setup = Setup::with(Fake::start_tls(Identity::new(&names).unwrap()).unwrap(), Some("old"));
    setup.fake.with(|w| w.faults.tokens = vec!["old".to_owned()]);
    setup = setup.started();
    setup.fake.apply(service("a", 80));
    setup.wait_equal("over TLS");
    // The token.
    setup.fake.with(|w| {
        w.faults.tokens = vec!["new".to_owned()];
        w.faults.cut_after = Some(0);
    });
    setup.fake.apply(service("b", 80));
    setup.wait("refused", |seen| seen.health.problems().iter().any(|p| p.contains("refuses our credentials")));
    setup.fake.with(|w| w.faults.cut_after = None);
    std::fs::write(setup.folder.path().join("token"), "new").unwrap();
    setup.wait_equal("with the new token");
    // The server comes back with a certificate by another authority: refused, named, and the last state stands.
    let other = Identity::new(&names).unwrap();
    setup.fake.stop();
    setup.fake.identify(other.clone());
    setup.fake.resume().unwrap();
    setup.fake.apply(service("c", 80));
    // Both authorities bear one name, as those of clusters do: it is the signature that does not fit.
    let named = |p: &String| p.contains("certificate is not accepted") && p.contains("BadSignature");
    setup.wait("a wrong authority", |seen| seen.health.problems().iter().any(named));
    assert!(!setup.seen.lock().unwrap().objects.keys().any(|k| k.name == "c"));
    // The file follows.
    std::fs::write(setup.folder.path().join("ca.crt"), other.authority()).unwrap();
    setup.wait_equal("with the new authority");
    setup.wait("well again", |seen| seen.health.problems().is_empty());
}

#[test]
fn a_certificate_for_another_name_is_refused_and_says_so() {
    let setup = Setup::with(Fake::start_tls(Identity::new(&["192.0.2.1"]).unwrap()).unwrap(), None).started();
    let named = |p: &String| p.contains("certificate is not accepted") && p.contains("192.0.2.1");
    setup.wait("a wrong name", |seen| seen.health.problems().iter().any(named));
    assert_eq!(setup.seen.lock().unwrap().wholes, 0, "nothing of a stranger's is believed");
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn status_events_and_the_nodes_condition_are_written_once() {
    let setup = Setup::new(None);
    setup.fake.apply(gateway("good"));
    setup.fake.apply(gateway("bad"));
    setup.fake.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
        "spec": {"taints": [{"key": TAINT, "effect": "NoSchedule"}, {"key": "other", "effect": "NoSchedule"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "True"}]}}));
    let setup = setup.started();
    setup.wait_equal("in sync");
    let source = setup.source.as_ref().unwrap();
    let key = ObjectKey { kind: Kind::EgressGateway, namespace: String::new(), name: "bad".into() };
    let refusal = Refusal {
        key,
        field: "spec.x".into(),
        why: "unknown field".into(),
        effect: Some(sluice_ctrl::import::Effect::FailedClosed),
    };
    let verdict = Verdict { refusals: vec![refusal], programmed: true, ..Verdict::default() };
    source.judge(verdict.clone());
    let node = wait_for("the taint is removed", || {
        setup.fake.get("api/v1/nodes", "", "node-a").filter(|n| n["spec"]["taints"].as_array().unwrap().len() == 1)
    });
    assert_eq!(node["spec"]["taints"][0]["key"], "other");
    let network =
        node["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "NetworkUnavailable").unwrap();
    assert_eq!((network["status"].as_str(), network["reason"].as_str()), (Some("False"), Some("SluicegateIsUp")));
    assert!(node["status"]["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "Ready"));
    let conditions = |name: &str| {
        let gateway = setup.fake.get(GATEWAYS, "", name)?;
        let list = gateway["status"]["conditions"].as_array()?.clone();
        Some(
            list.iter()
                .map(|c| format!("{}={}", c["type"].as_str().unwrap(), c["status"].as_str().unwrap()))
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(wait_for("status", || conditions("good")), ["Accepted=True", "Programmed=True"]);
    assert_eq!(
        wait_for("status", || conditions("bad")),
        ["Accepted=False", "Programmed=False"],
        "judged before it is written"
    );
    let event = wait_for("an event", || setup.fake.list("api/v1/events").pop());
    assert_eq!(event["involvedObject"]["name"], "bad");
    assert_eq!((event["reason"].as_str(), event["type"].as_str()), (Some("FailedClosed"), Some("Warning")));
    // Nothing changes: nothing is written any more.
    std::thread::sleep(Duration::from_millis(700));
    let writes =
        || setup.fake.with(|w| w.requests.iter().filter(|(m, p)| m != "GET" && !p.contains("/leases")).count());
    let before = writes();
    source.judge(verdict);
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(
        writes(),
        before,
        "{:?}",
        setup.fake.with(|w| w.requests.iter().filter(|(m, _)| m != "GET").cloned().collect::<Vec<_>>())
    );
    assert_eq!(setup.fake.list("api/v1/events").len(), 1);
    // A new generation is judged anew.
    let mut changed = gateway("good");
    changed["spec"]["egressIPs"] = json!(["192.0.2.51"]);
    changed["status"] = setup.fake.get(GATEWAYS, "", "good").unwrap()["status"].clone();
    setup.fake.apply(changed);
    wait_for("observedGeneration follows", || {
        let gateway = setup.fake.get(GATEWAYS, "", "good")?;
        (gateway["status"]["conditions"][0]["observedGeneration"] == gateway["metadata"]["generation"]).then_some(())
    });
}

#[test]
fn load_balancer_addresses_are_written_where_they_are_ours_to_give_and_taken_back_where_they_are_no_more() {
    let balancer = |name: &str, ingress: &[&str]| {
        let ingress: Vec<Value> = ingress.iter().map(|ip| json!({"ip": ip})).collect();
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": ingress}}})
    };
    let setup = Setup::new(None);
    // Somebody else has given one; two wait.
    for object in [balancer("foreign", &["203.0.113.7"]), balancer("ours", &[]), balancer("both", &[])] {
        setup.fake.apply(object);
    }
    let setup = setup.started();
    setup.wait_equal("in sync");
    let source = setup.source.as_ref().unwrap();
    let judge = |given: &[(&str, &[&str])]| {
        let all = given.iter().map(|(name, ips)| {
            let name = sluice_ctrl::model::NamespacedName::new("shop", *name);
            (name, ips.iter().map(|ip| ip.parse().unwrap()).collect())
        });
        source.judge(Verdict { programmed: true, balanced: Arc::new(all.collect()), ..Verdict::default() });
    };
    let ingress = |name: &str| {
        let service = setup.fake.get("api/v1/services", "shop", name).unwrap();
        let list =
            service.pointer("/status/loadBalancer/ingress").and_then(Value::as_array).cloned().unwrap_or_default();
        list.iter().map(|entry| text(&entry["ip"])).collect::<Vec<_>>()
    };
    let becomes = |name: &str, wanted: &[&str]| {
        wait_for(&format!("{name}: {wanted:?}"), || (ingress(name) == wanted).then_some(()));
    };
    judge(&[("foreign", &["192.0.2.80"]), ("ours", &["192.0.2.81"]), ("both", &["192.0.2.82", "2001:db8::82"])]);
    becomes("ours", &["192.0.2.81"]);
    becomes("both", &["192.0.2.82", "2001:db8::82"]);
    assert_eq!(ingress("foreign"), ["203.0.113.7"], "somebody else's address stays");
    // The pool gave it another, and takes the other Service's back.
    judge(&[("foreign", &["192.0.2.80"]), ("ours", &["192.0.2.91"])]);
    becomes("ours", &["192.0.2.91"]);
    becomes("both", &[]);
    // MetalLB writes over one of ours: it is his from then on, also when it is no more ours to give.
    let mut taken = setup.fake.get("api/v1/services", "shop", "ours").unwrap();
    taken["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.1"}]);
    taken["metadata"].as_object_mut().unwrap().remove("managedFields");
    setup.fake.apply(taken);
    setup.wait("it was seen", |seen| {
        seen.objects.values().any(|o| o.pointer("/status/loadBalancer/ingress/0/ip") == Some(&json!("198.51.100.1")))
    });
    let writes =
        || setup.fake.with(|w| w.requests.iter().filter(|(m, p)| m == "PATCH" && p.contains("services")).count());
    let before = writes();
    judge(&[("foreign", &["192.0.2.80"]), ("ours", &["192.0.2.91"])]);
    judge(&[]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!((ingress("ours"), ingress("foreign")), (vec!["198.51.100.1".into()], vec!["203.0.113.7".into()]));
    assert_eq!(writes(), before, "and nothing is written about it");
}

#[test]
fn a_cluster_network_policys_status_says_what_was_understood_and_what_is_in_force() {
    let policy = |name: &str| {
        json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": name},
            "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}})
    };
    let setup = Setup::new(None);
    setup.fake.apply(policy("good"));
    setup.fake.apply(policy("odd"));
    let setup = setup.started();
    setup.wait_equal("in sync");
    let source = setup.source.as_ref().unwrap();
    let refusal = Refusal {
        key: ObjectKey { kind: Kind::ClusterNetworkPolicy, namespace: String::new(), name: "odd".into() },
        field: "spec.ingress[0].from[0]".into(),
        why: "unknown field shinyNewPeer".into(),
        effect: Some(sluice_ctrl::import::Effect::FailedClosed),
    };
    source.judge(Verdict { refusals: vec![refusal.clone()], programmed: true, ..Verdict::default() });
    let conditions = |name: &str| {
        let policy = setup.fake.get(POLICIES, "", name)?;
        let generation = policy["metadata"]["generation"].clone();
        let list = policy["status"]["conditions"].as_array()?.clone();
        assert!(list.iter().all(|c| c["observedGeneration"] == generation), "{list:?}");
        Some(list.iter().map(|c| [&c["type"], &c["status"], &c["message"]].map(text)).collect::<Vec<_>>())
    };
    let good = wait_for("the good one's status", || conditions("good"));
    assert_eq!([&good[0][..2], &good[1][..2]], [["Accepted", "True"], ["Programmed", "True"]]);
    let odd = wait_for("the odd one's status", || conditions("odd"));
    assert_eq!([&odd[0][..2], &odd[1][..2]], [["Accepted", "False"], ["Programmed", "False"]]);
    assert!(odd[0][2].contains("spec.ingress[0].from[0]") && odd[0][2].contains("shinyNewPeer"), "{odd:?}");
    // Tables that could not be made: nothing new is in force, and the status says why.
    let why =
        "the policies list 70000000 classes of peers, the limit is 67108864; most of them NetworkPolicy/shop/wide";
    source.judge(Verdict {
        refusals: vec![refusal],
        programmed: false,
        why_not: Some(why.to_owned()),
        ..Verdict::default()
    });
    wait_for("the reason", || {
        conditions("good").filter(|good| good[1][1] == "False" && good[1][2].contains("NetworkPolicy/shop/wide"))
    });
}
