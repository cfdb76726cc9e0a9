//! Policy at the size of a large node: 10,000 policies, 5,000 pods and 100,000 identities in one node's tables.
//!
//! Every pod of the cluster has its port on the measured node and every policy selects some of them, so that nothing is
//! left out of the tables. 100 namespaces hold 10 apps of 5 pods each; 100 policies of a namespace select one app each,
//! admit one app of another team's namespaces on a port of their own, and let out to ten networks that no other policy
//! names. Sizes are printed before the first figure; `docs/performance.md` says what they were.

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use sluice_ctrl::compile::{Compiled, Knobs, LocalView, Replay, compile};
use sluice_ctrl::config::Config;
use sluice_ctrl::import::live::{Delta, Live, Touched};
use sluice_ctrl::import::{Defaults, Importer};
use sluice_ctrl::model::Cluster;
use sluice_ctrl::source::{Identified, ObjectKey, ObjectSet, Origin, RawObject, identify};
use sluice_snapshot::{Reader, Writer};
use sluice_tables::{Address, PolicySetId, Tables};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

const NAMESPACES: u32 = 100;
const APPS: u32 = 10;
const REPLICAS: u32 = 5;
/// Policies of a namespace.
const POLICIES: u32 = 100;
/// Networks that one policy alone names.
const NETWORKS: u32 = 10;
/// Lookups prepared for one bench.
const ASKED: usize = 1 << 16;

/// How much of everything; 1 is the size the file's head speaks of.
#[derive(Clone, Copy)]
struct Scale {
    namespaces: u32,
}

fn pod_addresses(n: u32) -> [IpAddr; 2] {
    let v4 = Ipv4Addr::from(u32::from_be_bytes([10, 244, 0, 0]) + 10 + n);
    let v6 = Ipv6Addr::from(u128::from(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0)) + 10 + u128::from(n));
    [v4.into(), v6.into()]
}

/// Network number `n`: the even ones are IPv4 /28s, the odd ones IPv6 /64s.
fn network(n: u32) -> (IpAddr, u8) {
    if n.is_multiple_of(2) {
        (Ipv4Addr::from(u32::from_be_bytes([100, 64, 0, 0]) + (n / 2) * 16).into(), 28)
    } else {
        let bits = u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0)) + (u128::from(n / 2) << 64);
        (Ipv6Addr::from(bits).into(), 64)
    }
}

fn pod(namespace: u32, app: u32, replica: u32, app_label: u32) -> Value {
    let n = (namespace * APPS + app) * REPLICAS + replica;
    let [v4, v6] = pod_addresses(n);
    let name = format!("app{app}-{replica}");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": format!("ns{namespace:03}"), "uid": format!("uid-{n}"),
            "labels": {"app": format!("app{app_label}"), "pod": name},
        },
        "spec": {"nodeName": "node-a", "containers": [
            {"name": "main", "image": "main", "ports": [{"name": "web", "containerPort": 8080}]},
        ]},
        "status": {"phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}]},
    })
}

fn policy(namespace: u32, n: u32) -> Value {
    let number = namespace * POLICIES + n;
    let blocks = (0..NETWORKS).map(|at| {
        let (address, length) = network(number * NETWORKS + at);
        json!({"ipBlock": {"cidr": format!("{address}/{length}")}})
    });
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": format!("p{n:03}"), "namespace": format!("ns{namespace:03}")},
        "spec": {
            "podSelector": {"matchLabels": {"app": format!("app{}", n % APPS)}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [{
                    "namespaceSelector": {"matchLabels": {"team": format!("team{}", number % 20)}},
                    "podSelector": {"matchLabels": {"app": format!("app{}", n / APPS)}},
                }],
                "ports": [{"protocol": "TCP", "port": 8000 + n}, {"protocol": "TCP", "port": "web"}],
            }],
            "egress": [{
                "to": blocks.collect::<Vec<_>>(),
                "ports": [{"protocol": "TCP", "port": 443}, {"protocol": "UDP", "port": 9000, "endPort": 9000 + n}],
            }],
        },
    })
}

fn objects(scale: Scale) -> Vec<Value> {
    let mut all = vec![json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
        "spec": {"podCIDR": "10.244.0.0/16", "podCIDRs": ["10.244.0.0/16", "fd00:10:244::/64"]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.11"}, {"type": "InternalIP", "address": "2001:db8:ffff::11"},
        ]},
    })];
    for ns in 0..scale.namespaces {
        all.push(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": format!("ns{ns:03}"), "labels": {"team": format!("team{}", ns % 20)}},
        }));
        for app in 0..APPS {
            all.extend((0..REPLICAS).map(|replica| pod(ns, app, replica, app)));
        }
        all.extend((0..POLICIES).map(|n| policy(ns, n)));
    }
    all
}

fn raw(value: Value) -> (ObjectKey, Arc<RawObject>) {
    let Ok(Identified::Key(key)) = identify(&value) else { panic!("not an object we read: {value}") };
    let origin = Origin::File { path: std::path::Path::new("bench").into(), line: 1 };
    (key, Arc::new(RawObject { value, origin }))
}

/// Objects, and what remembers them between changes, as the agent's control thread does.
struct Bed {
    objects: ObjectSet,
    importer: Importer,
    view: LocalView,
    knobs: Knobs,
}

impl Bed {
    fn new(scale: Scale) -> Bed {
        let mut set = ObjectSet::default();
        set.objects.extend(objects(scale).into_iter().map(raw));
        let config = Config::builtin("node-a");
        let mut importer = Importer::default();
        let (cluster, invalid) = importer.build(&set, &Defaults::default());
        assert!(invalid.is_empty(), "{}", invalid[0]);
        let view = LocalView::derived(&cluster, "node-a", &Replay::default()).expect("the node is there");
        Bed { objects: set, importer, view, knobs: Knobs::from(&config) }
    }

    /// Objects to tables.
    fn compile(&mut self, previous: Option<&Compiled>) -> Compiled {
        let (cluster, _) = self.importer.build(&self.objects, &Defaults::default());
        compile(&cluster, &self.view, &self.knobs, previous).expect("it fits")
    }
}

/// What is looked up: a pod's rules, the peer's address, the destination port.
fn questions(tables: &Tables, scale: Scale) -> Vec<(Option<PolicySetId>, Address, u8, u16)> {
    let pods: Vec<_> = tables.pods.iter().collect();
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        (chance >> 16) as usize % below
    };
    let networks = (scale.namespaces * POLICIES * NETWORKS) as usize;
    let mut asked = Vec::with_capacity(ASKED);
    for at in 0..ASKED {
        let pod = pods[random(pods.len())];
        let (set, peer) = match at % 2 {
            0 => (pod.ingress, pods[random(pods.len())].addresses[random(2)]),
            _ => (pod.egress, Address::from(network(random(networks) as u32).0)),
        };
        asked.push((set, peer, if at % 8 == 7 { 17 } else { 6 }, 8000 + random(1200) as u16));
    }
    asked
}

fn large_node(c: &mut Criterion) {
    let scale = Scale { namespaces: NAMESPACES };
    let mut bed = Bed::new(scale);
    let compiled = bed.compile(None);
    let tables = &compiled.tables;
    let (identities, exact, prefixes) =
        (tables.identities.count(), tables.identities.exact.len(), tables.identities.prefixes.len());
    eprintln!(
        "policies {}, pods {}, identities {identities} ({exact} addresses, {prefixes} networks), sets {}, port maps {}",
        scale.namespaces * POLICIES,
        tables.pods.iter().count(),
        tables.policy.sets.len(),
        tables.policy.sets.iter().map(|set| set.maps.len()).sum::<usize>(),
    );
    eprintln!("bytes: identities {}, policy {}", tables.identities.bytes(), tables.policy.bytes());

    let mut group = c.benchmark_group("policy-large");
    let asked = questions(tables, scale);
    let mut at = 0;
    group.bench_function("lookup", |b| {
        b.iter(|| {
            at = (at + 1) % ASKED;
            let (set, peer, protocol, port) = asked[at];
            tables.policy.decide(set, tables.identities.of(black_box(peer)), protocol, port).allow
        });
    });
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    group.bench_function("compile", |b| b.iter(|| black_box(bed.compile(None)).tables.policy.sets.len()));

    // One pod of the fortieth namespace goes from one app to another and back, as `kubectl label` does; `alone` is an app of
    // which it is the only pod, so that sets come and go with it.
    let label = |app| raw(pod(40, 3, 1, app));
    for (name, to) in [("label-change", 4), ("label-change-alone", APPS + 1)] {
        let changed = [label(to), label(3)];
        let mut follower = Follower::new(&bed, &compiled);
        let mut turn = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                let (key, object) = changed[turn % 2].clone();
                turn += 1;
                follower.take(&bed, Delta { key, object: Some(object) });
            });
        });
    }
    // The same where the cluster is a folder: all objects are walked, none but the changed one is read.
    let changed = [label(4), label(3)];
    let mut shelf = Shelf::new(&compiled);
    let mut turn = 0;
    group.bench_function("label-change-folder", |b| {
        b.iter(|| {
            let (key, object) = changed[turn % 2].clone();
            turn += 1;
            bed.objects.objects.insert(key, object);
            let next = bed.compile(Some(&shelf.last));
            shelf.publish(next);
        });
    });
    group.finish();
}

/// The tables in force, and a worker that runs on them.
struct Shelf {
    last: Compiled,
    writer: Writer<Tables>,
    reader: Reader<Tables>,
}

impl Shelf {
    fn new(first: &Compiled) -> Shelf {
        let mut writer = Writer::new(Arc::new(first.tables.clone()));
        let reader = writer.reader();
        Shelf { last: first.clone(), writer, reader }
    }

    /// Publishes, has the worker take it up, and frees what it has left.
    fn publish(&mut self, next: Compiled) {
        self.writer.publish(Arc::new(next.tables.clone()));
        assert!(self.reader.refresh());
        self.last = next;
        self.writer.collect();
    }
}

/// A node that follows an API server.
struct Follower {
    live: Live,
    cluster: Cluster,
    shelf: Shelf,
}

impl Follower {
    fn new(bed: &Bed, compiled: &Compiled) -> Follower {
        let (mut live, mut cluster) = (Live::default(), Cluster::default());
        let object = |(key, raw): (&ObjectKey, &Arc<RawObject>)| Delta { key: key.clone(), object: Some(raw.clone()) };
        let all = bed.objects.objects.iter().map(object).collect();
        live.replace(&mut cluster, all, &mut Touched::default());
        let mut follower = Follower { live, cluster, shelf: Shelf::new(compiled) };
        // Values of its own cluster from here on.
        let first = compile(&follower.cluster, &bed.view, &bed.knobs, None).expect("it fits");
        follower.shelf.publish(first);
        follower
    }

    /// One event, from the object to a worker that runs on its tables.
    fn take(&mut self, bed: &Bed, delta: Delta) {
        let mut touched = Touched::default();
        self.live.apply(&mut self.cluster, delta, &mut touched);
        assert!(touched.others);
        let next = compile(&self.cluster, &bed.view, &bed.knobs, Some(&self.shelf.last)).expect("it fits");
        self.shelf.publish(next);
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500));
    targets = large_node
}
criterion_main!(benches);
