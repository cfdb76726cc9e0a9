//! The agent's API over a real Unix socket and a real TCP port.

mod fake;

use fake::start;
use serde_json::Value;
use sluice_agent::api::report::{CounterReport, FlowsReport, ObserveEvent, State, StatusReport};
use sluice_cni::client::{Answer, Client};
use sluice_cni::protocol::ErrorBody;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

fn client(socket: &Path) -> Client {
    Client::new(socket, Duration::from_secs(5))
}

fn get(socket: &Path, path: &str) -> Answer {
    client(socket).get(path).unwrap()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_route_of_the_contract_answers_with_json() {
    let agent = start(State::Ready);
    for path in ["status", "services", "pods", "policies", "flows", "counters", "generation"] {
        let answer = get(&agent.socket, &format!("/v1/{path}"));
        assert_eq!(answer.status, 200, "{path}");
        answer.json::<Value>().unwrap();
    }
    let status: StatusReport = get(&agent.socket, "/v1/status").json().unwrap();
    assert_eq!((status.node.as_str(), status.state, status.generation), ("node-a", State::Ready, 4));
    let counters: CounterReport = get(&agent.socket, "/v1/counters").json().unwrap();
    assert_eq!((counters.received, counters.drops["NoRoute"]["egress"]), (7, 0));
}

#[test]
fn flows_are_chosen_by_pod_and_limited() {
    let agent = start(State::Ready);
    let some: FlowsReport = get(&agent.socket, "/v1/flows?pod=shop/web-0&limit=2").json().unwrap();
    assert_eq!((some.flows.len(), some.truncated), (2, true));
    let answer = get(&agent.socket, "/v1/flows?limit=many");
    assert_eq!(answer.status, 400);
    assert_eq!(get(&agent.socket, "/v1/flows?pood=x").status, 400);
}

#[test]
fn what_is_not_there_is_refused_with_a_sentence() {
    let agent = start(State::Ready);
    let answer = get(&agent.socket, "/v2/status");
    assert_eq!(answer.status, 404);
    assert!(answer.json::<Value>().unwrap()["error"].as_str().unwrap().contains("/v2/status"));
    assert_eq!(client(&agent.socket).post("/v1/status", &Value::Null).unwrap().status, 405);
}

#[test]
fn cni_calls_reach_the_agent_and_its_errors_come_back() {
    let agent = start(State::Ready);
    let request = |name: &str| {
        serde_json::json!({"cni_version": "1.1.0", "container_id": "c", "netns": "/n", "ifname": "eth0",
            "args": {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": name}, "config": {}})
    };
    let post = |verb: &str, name: &str| client(&agent.socket).post(&format!("/v1/cni/{verb}"), &request(name)).unwrap();
    assert_eq!(post("add", "web-0").status, 200);
    for verb in ["del", "check", "gc", "status"] {
        assert_eq!(post(verb, "web-0").status, 200, "{verb}");
    }
    assert_eq!(agent.fake.cni_calls.lock().unwrap().len(), 5);
    let refused = post("add", "stranger");
    assert_eq!((refused.status, refused.json::<ErrorBody>().unwrap().code.0), (503, 11));
    let failed = post("add", "panic");
    assert_eq!((failed.status, failed.json::<ErrorBody>().unwrap().code.0), (500, 100));
    let nonsense = client(&agent.socket).post("/v1/cni/add", &"what").unwrap();
    assert_eq!((nonsense.status, nonsense.json::<ErrorBody>().unwrap().code.0), (400, 6));
    let long = client(&agent.socket).post("/v1/cni/add", &"x".repeat(2 << 20)).unwrap();
    assert_eq!(long.status, 413);
    assert_eq!(get(&agent.socket, "/v1/status").status, 200, "a panic ends nothing but its request");
}

#[test]
fn events_are_streamed_to_those_who_want_them() {
    let agent = start(State::Ready);
    let mut lines = client(&agent.socket).lines("/v1/observe?verdict=dropped&pod=shop/web-0").unwrap().unwrap();
    wait_until("nobody observes", || !agent.fake.observers.lock().unwrap().is_empty());
    let event = |verdict: &str, pod: &str| ObserveEvent {
        verdict: verdict.into(),
        pod: Some(pod.into()),
        reason: Some("PolicyDeny".into()),
        ..Default::default()
    };
    agent.fake.emit(&event("forwarded", "shop/web-0"));
    agent.fake.emit(&event("dropped", "shop/db-0"));
    agent.fake.emit(&event("dropped", "shop/web-0"));
    let got: ObserveEvent = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(got, event("dropped", "shop/web-0"));
    drop(lines);
    wait_until("the agent still sends", || {
        agent.fake.emit(&event("dropped", "shop/web-0"));
        agent.fake.observers.lock().unwrap().is_empty()
    });
}

#[test]
fn clients_that_say_nothing_half_or_nonsense_are_cut_and_block_nobody() {
    let agent = start(State::Ready);
    let says = ["", "GET /v1/sta", "POST /v1/cni/add HTTP/1.1\r\nContent-Le", "\0\0\0garbage\r\n\r\n"];
    let mut held: Vec<UnixStream> = says
        .iter()
        .cycle()
        .take(40)
        .map(|text| {
            let mut stream = UnixStream::connect(&agent.socket).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            stream
        })
        .collect();
    assert_eq!(get(&agent.socket, "/v1/status").status, 200);
    for stream in &mut held {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(!matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "not cut: {ended:?}");
    }
}

#[test]
fn more_clients_than_there_are_places_wait_only_until_silent_ones_are_cut() {
    let agent = start(State::Ready);
    let _silent: Vec<UnixStream> = (0..80).map(|_| UnixStream::connect(&agent.socket).unwrap()).collect();
    assert_eq!(get(&agent.socket, "/v1/status").status, 200);
}

#[test]
fn a_stopped_server_ends_its_streams_and_removes_its_socket() {
    let mut agent = start(State::Ready);
    let mut lines = client(&agent.socket).lines("/v1/observe").unwrap().unwrap();
    let begin = Instant::now();
    agent.running.stop();
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(lines.next().is_none());
    assert!(!agent.socket.exists() && !agent.running.is_alive());
}

/// `GET path` over TCP: the status code and the body.
fn fetch(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn the_metrics_address_gives_metrics_and_health_and_nothing_else() {
    let agent = start(State::Starting);
    let (status, text) = fetch(agent.metrics, "/metrics");
    assert_eq!(status, 200);
    assert!(text.contains("sluicegate_tables_generation 4") && text.contains("kubeproxy_sync_proxy_rules"));
    assert_eq!(fetch(agent.metrics, "/healthz").0, 200);
    assert_eq!(fetch(agent.metrics, "/readyz").0, 503);
    *agent.fake.state.lock().unwrap() = State::Degraded;
    assert_eq!(fetch(agent.metrics, "/readyz").0, 200);
    assert_eq!(fetch(agent.metrics, "/v1/flows").0, 404);
}
