//! An agent without a node, behind a real socket: what the API and the command line are tested against.

use serde_json::{Value, json};
use sluice_agent::api::Agent;
use sluice_agent::api::problem::Problem;
use sluice_agent::api::report::*;
use sluice_agent::api::server::{Limits, Running, Server};
use sluice_cni::protocol::{CniRequest, ErrorBody, ErrorCode, Verb};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

/// Remembers what it was asked.
#[derive(Default)]
pub struct Fake {
    pub state: Mutex<State>,
    pub cni_calls: Mutex<Vec<(Verb, CniRequest)>>,
    /// The senders of those who observe now.
    pub observers: Mutex<Vec<(ObserveFilter, mpsc::Sender<ObserveEvent>)>>,
}

impl Fake {
    /// Sends an event to whoever wants it.
    #[allow(dead_code, reason = "not every test program observes")]
    pub fn emit(&self, event: &ObserveEvent) {
        let mut observers = self.observers.lock().unwrap();
        observers.retain(|(_, to)| !to.is_closed());
        for (filter, to) in observers.iter() {
            if filter.wants(event) {
                let _ = to.try_send(event.clone());
            }
        }
    }
}

impl Agent for Fake {
    fn status(&self) -> StatusReport {
        let state = *self.state.lock().unwrap();
        let broken = Problem {
            file: Some("cluster/broken.yaml".into()),
            line: Some(3),
            ..Problem::plain("did not find expected ',' or '}'")
        };
        StatusReport {
            node: "node-a".into(),
            version: "0.1.0".into(),
            state,
            problems: if state == State::Degraded { vec![broken] } else { Vec::new() },
            generation: 4,
            applied_generation: 4,
            workers: vec![WorkerReport { id: 0, cpu: Some(1), alive: true, busy_ratio: 0.5, ..Default::default() }],
            ports: vec![PortReport {
                name: "uplink0".into(),
                driver: "af_xdp".into(),
                mode: "copy".into(),
                ..Default::default()
            }],
            flows_capacity: 1024,
            ..Default::default()
        }
    }

    fn services(&self) -> Vec<ServiceReport> {
        let backend = |address: &str, local, ready| BackendReport { address: address.into(), local, ready };
        let frontend = FrontendReport {
            kind: "ClusterIP".into(),
            address: "10.96.0.10:80".into(),
            protocol: "TCP".into(),
            backends: vec![backend("10.244.1.10:8080", true, true), backend("10.244.2.10:8080", false, false)],
            ..Default::default()
        };
        let (name, kind) = ("shop/web".into(), "ClusterIP".into());
        vec![ServiceReport { name, kind, frontends: vec![frontend], ..ServiceReport::default() }]
    }

    fn pods(&self) -> Vec<PodReport> {
        vec![PodReport {
            name: "shop/web-0".into(),
            addresses: vec!["10.244.1.10".parse().unwrap()],
            port: 2,
            ingress_isolated: true,
            ..Default::default()
        }]
    }

    fn policies(&self) -> Vec<PolicyReport> {
        vec![PolicyReport {
            kind: "NetworkPolicy".into(),
            name: "shop/db".into(),
            accepted: true,
            ..Default::default()
        }]
    }

    fn vfs(&self) -> Vec<VfReport> {
        let vf = |address: &str, state: &str, owner: &str| VfReport {
            address: address.into(),
            pf: Some("0000:3b:00.0".into()),
            index: Some(0),
            state: state.into(),
            owner: owner.into(),
            enforced: state != "pod",
            ..Default::default()
        };
        vec![vf("0000:3b:00.2", "pod", "pod shop/web-0 (sandbox c1)"), vf("0000:3b:00.3", "free", "")]
    }

    fn flows(&self, filter: &FlowFilter, limit: usize) -> FlowsReport {
        let all = (0..5).map(|n| FlowReport {
            protocol: 6,
            source: format!("10.244.1.10:{}", 40_000 + n),
            state: "established".into(),
            pod: Some(if n == 0 { "shop/db-0" } else { "shop/web-0" }.into()),
            ..Default::default()
        });
        let wanted: Vec<FlowReport> = all.filter(|f| filter.pod.is_none() || f.pod == filter.pod).collect();
        FlowsReport { truncated: wanted.len() > limit, flows: wanted.into_iter().take(limit).collect() }
    }

    fn counters(&self) -> CounterReport {
        CounterReport { received: 7, ..Default::default() }
    }

    fn generation(&self) -> GenerationReport {
        GenerationReport { published: 4, applied: 4, workers: vec![4, 4] }
    }

    fn observe(&self, filter: ObserveFilter) -> mpsc::Receiver<ObserveEvent> {
        let (to, events) = mpsc::channel(16);
        self.observers.lock().unwrap().push((filter, to));
        events
    }

    fn policy_try(&self, request: TryRequest) -> Result<mpsc::Receiver<TryReport>, String> {
        if request.objects.is_empty() {
            return Err("nothing to try".to_owned());
        }
        let (sender, receiver) = mpsc::channel(4);
        let change = TryChange {
            from: "shop/web-0".into(),
            to: "shop/db-0".into(),
            proto: "tcp".into(),
            port: Some(5432),
            direction: "ingress".into(),
            now: "allow".into(),
            then: "deny".into(),
            then_decided_by: Some("isolation".into()),
            flows: 3,
            ..TryChange::default()
        };
        let found = if request.replace_all { Vec::new() } else { vec![change] };
        for (elapsed_seconds, changes) in [(1, Vec::new()), (2, found)] {
            let done = elapsed_seconds == 2;
            let report = TryReport { elapsed_seconds, seconds: request.seconds, done, changes, ..TryReport::default() };
            let _ = sender.try_send(report);
        }
        Ok(receiver)
    }

    fn cni(&self, verb: Verb, request: CniRequest) -> Result<Value, ErrorBody> {
        let pod = request.pod().map(|pod| pod.name.to_owned());
        self.cni_calls.lock().unwrap().push((verb, request));
        match (verb, pod.as_deref()) {
            (_, Some("stranger")) => Err(ErrorBody::new(ErrorCode::TRY_AGAIN_LATER, "no such pod yet", "")),
            (_, Some("panic")) => panic!("the fake was asked to"),
            (Verb::Add, _) => Ok(json!({
                "interfaces": [{ "name": "eth0", "mac": "02:00:0a:f4:01:0a", "sandbox": "/proc/self/ns/net" }],
                "ips": [{ "address": "10.244.1.10/32", "interface": 0 }],
            })),
            _ => Ok(json!({})),
        }
    }
}

/// A fake agent that answers.
pub struct Answering {
    pub fake: Arc<Fake>,
    pub socket: PathBuf,
    #[allow(dead_code, reason = "only the API tests scrape")]
    pub metrics: std::net::SocketAddr,
    #[allow(dead_code, reason = "only the API tests stop it")]
    pub running: Running,
    _folder: tempfile::TempDir,
}

/// Starts a fake agent that cuts silent clients after a short while.
pub fn start(state: State) -> Answering {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sluiced.sock");
    let limits = Limits { head: Duration::from_millis(300), connection: Duration::from_secs(30) };
    let server = Server::bind(&socket, "127.0.0.1:0".parse().unwrap()).unwrap().with_limits(limits);
    let metrics = server.metrics_address().unwrap();
    let fake = Arc::new(Fake { state: Mutex::new(state), ..Default::default() });
    let running = server.start(fake.clone()).unwrap();
    Answering { fake, socket, metrics, running, _folder: folder }
}
