//! The plugin as a runtime executes it, against agents of every temper on a real Unix socket.
//!
//! Each test starts the binary with an environment and standard input and looks at exit code, standard output and at
//! what the agent was asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_cni::pending::PendingDels;
use sluice_cni::protocol::{CniRequest, Verb};

const ADDED: &str = r#"{
    "interfaces": [{"name": "sg0a1b2c", "mtu": 1450}, {"name": "eth0", "mac": "02:00:0a:f4:01:02", "sandbox": "/run/netns/a"}],
    "ips": [{"interface": 1, "address": "10.244.1.2/32", "gateway": "169.254.1.1"},
            {"interface": 1, "address": "fd00:10:244:1::2/128", "gateway": "fe80::1"}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1450}]}"#;

struct Asked {
    path: String,
    request: CniRequest,
}

/// An agent that answers each connection with what `answer` writes.
struct Agent {
    folder: tempfile::TempDir,
    asked: Receiver<Asked>,
}

impl Agent {
    fn answering(answer: impl Fn(&mut UnixStream) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("sluiced.sock")).unwrap();
        let (tell, asked) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut reader = BufReader::new(stream.unwrap());
                let asked = read_request(&mut reader);
                let mut stream = reader.into_inner();
                answer(&mut stream);
                if tell.send(asked).is_err() {
                    return;
                }
            }
        });
        Self { folder, asked }
    }

    fn with(status: &str, body: &str) -> Self {
        let bytes = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        Self::raw(bytes)
    }

    fn raw(bytes: String) -> Self {
        Self::answering(move |stream| drop(stream.write_all(bytes.as_bytes())))
    }

    fn asked(&self) -> Asked {
        self.asked.recv_timeout(Duration::from_secs(5)).expect("the agent was asked")
    }
}

fn read_request(reader: &mut BufReader<UnixStream>) -> Asked {
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let path = first.split(' ').nth(1).unwrap().to_owned();
    Asked { path, request: serde_json::from_slice(&body).unwrap() }
}

struct Plugin {
    environment: BTreeMap<&'static str, String>,
    config: Value,
}

struct Ran {
    code: i32,
    stdout: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: `{}`", self.stdout))
    }

    fn error_code(&self) -> i64 {
        assert_eq!(self.code, 1, "{}", self.stdout);
        let json = self.json();
        assert!(!json["msg"].as_str().unwrap().is_empty() && json["cniVersion"].is_string(), "{json}");
        json["code"].as_i64().unwrap()
    }
}

impl Plugin {
    fn new(command: &str, folder: &Path) -> Self {
        let environment = BTreeMap::from([
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", "c0ffee".to_owned()),
            ("CNI_NETNS", "/run/netns/a".to_owned()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1".to_owned()),
        ]);
        let config = json!({
            "cniVersion": "1.1.0", "name": "sluicegate", "type": "sluice-cni",
            "socket": folder.join("sluiced.sock"), "timeoutSeconds": 1,
        });
        Self { environment, config }
    }

    fn set(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    fn without(mut self, variable: &str) -> Self {
        self.environment.remove(variable);
        self
    }

    fn run(self) -> Ran {
        let stdin = self.config.to_string();
        self.run_with(stdin.as_bytes())
    }

    fn run_with(self, stdin: &[u8]) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluice-cni"))
            .env_clear()
            .envs(self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // A plugin that refuses its environment may close standard input before it has read all of it.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        let output = child.wait_with_output().unwrap();
        Ran { code: output.status.code().unwrap(), stdout: String::from_utf8(output.stdout).unwrap() }
    }
}

fn nobody() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn add_prints_the_agents_result_in_the_version_asked_for() {
    for (version, family, mtu) in [("1.1.0", Value::Null, json!(1450)), ("1.0.0", Value::Null, Value::Null)]
        .into_iter()
        .chain([("0.4.0", json!("4"), Value::Null)])
    {
        let agent = Agent::with("200 OK", ADDED);
        let ran = Plugin::new("ADD", agent.folder.path()).set("cniVersion", json!(version)).run();
        assert_eq!(ran.code, 0, "{}", ran.stdout);
        let result = ran.json();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["version"], family);
        assert_eq!(result["interfaces"][0].get("mtu").cloned().unwrap_or_default(), mtu);
        assert_eq!(result["ips"][1]["address"], "fd00:10:244:1::2/128");
    }
}

#[test]
fn the_agent_gets_the_whole_invocation() {
    let agent = Agent::with("200 OK", ADDED);
    let plugin = Plugin::new("ADD", agent.folder.path())
        .set("runtimeConfig", json!({"mac": "02:00:00:00:00:09"}))
        .set("x-unknown", json!([1, 2]));
    assert_eq!(plugin.run().code, 0);
    let Asked { path, request } = agent.asked();
    assert_eq!(path, "/v1/cni/add");
    assert_eq!((&*request.container_id, &*request.netns, &*request.ifname), ("c0ffee", "/run/netns/a", "eth0"));
    let pod = request.pod().unwrap();
    assert_eq!((pod.namespace, pod.name, pod.uid), ("shop", "web-0", Some("u1")));
    assert_eq!(request.config["runtimeConfig"]["mac"], "02:00:00:00:00:09");
    assert_eq!(request.config["x-unknown"], json!([1, 2]));
}

#[test]
fn del_check_gc_and_status_succeed_silently_when_the_agent_agrees() {
    let bodies = [
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ];
    for body in bodies {
        for (command, path) in [("DEL", "del"), ("CHECK", "check"), ("GC", "gc"), ("STATUS", "status")] {
            let agent = Agent::raw(body.to_owned());
            let ran = Plugin::new(command, agent.folder.path())
                .set("prevResult", json!({"cniVersion": "1.1.0"}))
                .set("cni.dev/valid-attachments", json!([{"containerID": "c1", "ifname": "eth0"}]))
                .run();
            assert_eq!((ran.code, &*ran.stdout), (0, ""), "{command}");
            assert_eq!(agent.asked().path, format!("/v1/cni/{path}"));
        }
    }
}

#[test]
fn version_needs_no_agent_and_echoes_the_version_asked_in() {
    let folder = nobody();
    let ran = Plugin::new("VERSION", folder.path()).set("cniVersion", json!("1.0.0")).run();
    assert_eq!(ran.code, 0);
    assert_eq!(ran.json(), json!({"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}));
    assert_eq!(Plugin::new("VERSION", folder.path()).run_with(b"nonsense").error_code(), 6);
}

#[test]
fn gc_and_status_need_neither_container_nor_interface() {
    for command in ["GC", "STATUS"] {
        let agent = Agent::with("200 OK", "{}");
        let mut plugin = Plugin::new(command, agent.folder.path()).set("cni.dev/valid-attachments", json!([]));
        for variable in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
            plugin = plugin.without(variable);
        }
        assert_eq!(plugin.run().code, 0, "{command}");
    }
}

#[test]
fn a_wrong_environment_is_error_4_and_a_wrong_configuration_6_7_or_1() {
    let folder = nobody();
    for variable in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        assert_eq!(Plugin::new("ADD", folder.path()).without(variable).run().error_code(), 4, "{variable}");
    }
    assert_eq!(Plugin::new("FROB", folder.path()).run().error_code(), 4);
    assert_eq!(Plugin::new("ADD", folder.path()).run_with(b"{").error_code(), 6);
    assert_eq!(Plugin::new("ADD", folder.path()).run_with(b"").error_code(), 6);
    assert_eq!(Plugin::new("ADD", folder.path()).set("name", json!("")).run().error_code(), 7);
    assert_eq!(Plugin::new("CHECK", folder.path()).run().error_code(), 7);
    assert_eq!(Plugin::new("ADD", folder.path()).set("cniVersion", json!("0.2.0")).run().error_code(), 1);
    assert_eq!(Plugin::new("GC", folder.path()).set("cniVersion", json!("1.0.0")).run().error_code(), 1);
    let long = vec![b' '; 5 * 1024 * 1024];
    assert_eq!(Plugin::new("ADD", folder.path()).run_with(&long).error_code(), 7);
}

#[test]
fn a_refusal_of_the_agent_is_printed_with_its_code() {
    let body = r#"{"code": 11, "msg": "the API server has not shown shop/web-0 yet", "details": "waited 5 s"}"#;
    for status in ["404 Not Found", "503 Service Unavailable"] {
        let agent = Agent::with(status, body);
        let ran = Plugin::new("ADD", agent.folder.path()).set("cniVersion", json!("0.4.0")).run();
        assert_eq!(ran.error_code(), 11);
        assert_eq!(ran.json()["cniVersion"], "0.4.0");
        assert_eq!(ran.json()["details"], "waited 5 s");
    }
    let agent = Agent::with("500 Internal Server Error", "oops");
    assert_eq!(Plugin::new("DEL", agent.folder.path()).run().error_code(), 100);
}

#[test]
fn without_an_agent_add_and_check_are_to_be_tried_again_and_status_says_why() {
    let folder = nobody();
    for command in ["ADD", "CHECK"] {
        let plugin = Plugin::new(command, folder.path()).set("prevResult", json!({}));
        assert_eq!(plugin.run().error_code(), 11, "{command}");
    }
    assert_eq!(Plugin::new("STATUS", folder.path()).run().error_code(), 51);
    // A socket whose agent was killed is still a file.
    drop(UnixListener::bind(folder.path().join("sluiced.sock")).unwrap());
    assert_eq!(Plugin::new("ADD", folder.path()).run().error_code(), 11);
}

#[test]
fn a_del_without_an_agent_is_noted_for_its_next_start() {
    let folder = nobody();
    for _ in 0..2 {
        let ran = Plugin::new("DEL", folder.path()).without("CNI_NETNS").run();
        assert_eq!((ran.code, &*ran.stdout), (0, ""));
    }
    let notes = PendingDels::beside(&folder.path().join("sluiced.sock")).notes().unwrap();
    assert_eq!(notes.len(), 1);
    let noted = notes[0].request.as_ref().unwrap();
    assert_eq!((&*noted.container_id, &*noted.ifname), ("c0ffee", "eth0"));
    assert_eq!(noted.pod().unwrap().name, "web-0");
}

#[test]
fn a_gc_without_an_agent_is_noted_for_its_next_start() {
    let folder = nobody();
    let keep = json!([{"containerID": "kept", "ifname": "eth0"}]);
    for list in [json!([]), keep] {
        let ran = Plugin::new("GC", folder.path()).set("cni.dev/valid-attachments", list).run();
        assert_eq!((ran.code, &*ran.stdout), (0, ""));
    }
    let notes = PendingDels::beside(&folder.path().join("sluiced.sock")).notes().unwrap();
    assert_eq!((notes.len(), notes[0].verb), (1, Verb::Gc));
    assert_eq!(notes[0].request.as_ref().unwrap().valid_attachments().unwrap()[0].container_id, "kept");
}

#[test]
fn the_plugin_stays_under_three_megabytes_of_memory() {
    // It is looked at while it waits for an answer, with a result's worth of work behind it.
    let agent = Agent::answering(|_| thread::sleep(Duration::from_millis(700)));
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluice-cni"))
        .env_clear()
        .envs(Plugin::new("ADD", agent.folder.path()).environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let config = Plugin::new("ADD", agent.folder.path()).set("prevResult", json!("x".repeat(10_000))).config;
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    thread::sleep(Duration::from_millis(350));
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kilobytes: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    child.wait().unwrap();
    println!("peak resident set: {kilobytes} kB");
    assert!(kilobytes < 3072, "{kilobytes} kB");
}

#[test]
fn a_del_that_cannot_be_noted_is_to_be_tried_again() {
    let folder = nobody();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let socket: PathBuf = file.join("sluiced.sock");
    let ran = Plugin::new("DEL", folder.path()).set("socket", json!(socket)).run();
    assert_eq!(ran.error_code(), 11);
}

#[test]
fn garbage_half_answers_and_long_ones_are_told_apart() {
    let code = |bytes: String, command: &str| {
        let agent = Agent::raw(bytes);
        Plugin::new(command, agent.folder.path()).run().error_code()
    };
    assert_eq!(code("\u{1}\u{2}garbage\r\n\r\n".into(), "ADD"), 6);
    assert_eq!(code("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nnot json".into(), "ADD"), 6);
    assert_eq!(code("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"ips\":".into(), "ADD"), 11);
    assert_eq!(code(String::new(), "DEL"), 11);
    assert_eq!(code(String::new(), "STATUS"), 50);
    let long = " ".repeat(2 * 1024 * 1024);
    assert_eq!(code(format!("HTTP/1.1 200 OK\r\n\r\n{long}"), "ADD"), 6);
}

#[test]
fn a_slow_or_deaf_agent_does_not_hold_the_runtime() {
    let slow = Agent::answering(|_| thread::sleep(Duration::from_secs(3)));
    let start = Instant::now();
    assert_eq!(Plugin::new("ADD", slow.folder.path()).run().error_code(), 11);
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());

    // Nobody accepts: connections wait in the backlog and the answer never comes.
    let folder = nobody();
    let _deaf = UnixListener::bind(folder.path().join("sluiced.sock")).unwrap();
    assert_eq!(Plugin::new("DEL", folder.path()).run().error_code(), 11);
    assert!(!folder.path().join("pending-del").exists(), "an agent that is there does its own DELs");
}
