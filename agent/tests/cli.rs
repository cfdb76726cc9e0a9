//! The built `sluice` against a fake agent: what it prints and how it ends.

mod fake;

use fake::start;
use serde_json::Value;
use sluice_agent::api::report::{ObserveEvent, State};
use sluice_cni::protocol::Verb;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn sluice(socket: &Path, arguments: &[&str]) -> Output {
    command(socket, arguments).output().unwrap()
}

fn command(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.args(arguments).arg("--socket").arg(socket);
    command
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn status_ends_with_0_as_soon_as_the_node_is_up() {
    let agent = start(State::Ready);
    let done = sluice(&agent.socket, &["status"]);
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    assert!(out(&done).contains("node-a") && out(&done).contains("Ready") && !out(&done).contains("Degraded"));
    *agent.fake.state.lock().unwrap() = State::Degraded;
    let done = sluice(&agent.socket, &["status"]);
    assert_eq!(done.status.code(), Some(0));
    assert!(out(&done).contains("Degraded    cluster/broken.yaml:3: did not find"), "{}", out(&done));
    *agent.fake.state.lock().unwrap() = State::Starting;
    assert_eq!(sluice(&agent.socket, &["status"]).status.code(), Some(1));
}

#[test]
fn without_an_agent_every_command_that_asks_one_ends_with_3_and_names_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nobody.sock");
    for arguments in
        [vec!["status"], vec!["flows"], vec!["observe"], vec!["counters", "-o", "json"], vec!["pod", "del", "a/b"]]
    {
        let done = sluice(&socket, &arguments);
        assert_eq!(done.status.code(), Some(3), "{arguments:?}");
        assert!(err(&done).contains("nobody.sock") && err(&done).contains("sluiced run"), "{}", err(&done));
    }
}

#[test]
fn listings_are_tables_json_or_yaml() {
    let agent = start(State::Ready);
    let table = out(&sluice(&agent.socket, &["services"]));
    let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[1][..4], ["shop/web", "ClusterIP", "10.96.0.10:80", "TCP"]);
    assert!(table.contains("10.244.1.10:8080* (10.244.2.10:8080)") && !table.contains('\u{1b}'), "{table}");
    let json: Value = serde_json::from_str(&out(&sluice(&agent.socket, &["pods", "-o", "json"]))).unwrap();
    assert_eq!(json[0]["name"], "shop/web-0");
    let yaml: Value = serde_yaml_ng::from_str(&out(&sluice(&agent.socket, &["policies", "-o", "yaml"]))).unwrap();
    assert_eq!(yaml[0]["name"], "shop/db");
    let vfs = out(&sluice(&agent.socket, &["vfs"]));
    assert!(vfs.contains("pod shop/web-0 (sandbox c1) (unenforced)") && vfs.contains("0000:3b:00.0 vf 0"), "{vfs}");
    let vfs: Value = serde_json::from_str(&out(&sluice(&agent.socket, &["vfs", "-o", "json"]))).unwrap();
    assert_eq!((&vfs[1]["state"], &vfs[0]["enforced"]), (&Value::from("free"), &Value::from(false)));
    let flows = sluice(&agent.socket, &["flows", "--pod", "shop/web-0", "--limit", "2"]);
    assert_eq!(out(&flows).lines().count(), 3);
    assert!(err(&flows).contains("--limit"));
    assert!(out(&sluice(&agent.socket, &["generation"])).contains("published"));
    let counters = out(&sluice(&agent.socket, &["counters"]));
    assert!(counters.contains("received") && !counters.contains("drops/"));
    assert!(out(&sluice(&agent.socket, &["counters", "--all"])).contains("drops/PolicyDeny/ingress"));
}

#[test]
fn a_trial_of_policies_ends_with_the_decisions_that_would_change() {
    let agent = start(State::Ready);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("deny.yaml");
    let candidate = file.to_str().unwrap();
    std::fs::write(
        &file,
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: shop}, spec: {podSelector: {}}}",
    )
    .unwrap();
    let done = sluice(&agent.socket, &["policy", "try", candidate, "--for", "2s"]);
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    let text = out(&done);
    assert!(text.contains("allow -> deny") && text.contains("no policy -> isolation"), "{text}");
    let folder_too = sluice(&agent.socket, &["policy", "try", folder.path().to_str().unwrap(), "-o", "json"]);
    let report: Value = serde_json::from_str(&out(&folder_too)).unwrap();
    assert_eq!((&report["done"], &report["changes"][0]["flows"]), (&true.into(), &3.into()));
    let expecting = ["policy", "try", candidate, "--expect", "none"];
    let done = sluice(&agent.socket, &expecting);
    assert_eq!(done.status.code(), Some(1));
    assert!(err(&done).contains("1 decisions would change"), "{}", err(&done));
    assert_eq!(sluice(&agent.socket, &[&expecting[..], &["--replace-all"]].concat()).status.code(), Some(0));
    std::fs::write(&file, "kind: [").unwrap();
    let done = sluice(&agent.socket, &["policy", "try", candidate]);
    assert_eq!(done.status.code(), Some(2));
    assert!(err(&done).contains("deny.yaml"), "{}", err(&done));
    std::fs::write(&file, "").unwrap();
    let refused = sluice(&agent.socket, &["policy", "try", candidate]);
    assert_eq!(refused.status.code(), Some(2), "what the agent refuses");
    assert_eq!(sluice(&agent.socket, &["policy", "try", "/no/such/file"]).status.code(), Some(2));
    assert_eq!(sluice(&agent.socket, &["policy", "try", candidate, "--for", "soon"]).status.code(), Some(2));
}

#[test]
fn pods_are_added_and_deleted_by_the_cni_protocol() {
    let agent = start(State::Ready);
    let done = sluice(&agent.socket, &["pod", "add", "--netns", "/proc/self/ns/net", "shop/web-0"]);
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    assert!(out(&done).contains("10.244.1.10/32"), "{}", out(&done));
    assert_eq!(sluice(&agent.socket, &["pod", "del", "shop/web-0"]).status.code(), Some(0));
    let calls = agent.fake.cni_calls.lock().unwrap();
    assert_eq!([calls[0].0, calls[1].0], [Verb::Add, Verb::Del]);
    assert_eq!(calls[0].1.attachment(), calls[1].1.attachment());
    drop(calls);
    let refused = sluice(&agent.socket, &["pod", "add", "--netns", "/proc/self/ns/net", "shop/stranger"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(err(&refused).contains("no such pod yet"));
    let missing = sluice(&agent.socket, &["pod", "add", "--netns", "/no/such/netns", "shop/web-0"]);
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn observe_prints_what_it_was_asked_for_and_ends_when_it_has_seen_enough() {
    let agent = start(State::Ready);
    let arguments = ["observe", "--verdict", "dropped", "--count", "1"];
    let mut watching = command(&agent.socket, &arguments).stdout(Stdio::piped()).spawn().unwrap();
    let event = ObserveEvent {
        verdict: "dropped".into(),
        port: "pod:shop/client".into(),
        reason: Some("PolicyDeny".into()),
        policy: Some("NetworkPolicy/shop/db".into()),
        ..Default::default()
    };
    while watching.try_wait().unwrap().is_none() {
        agent.fake.emit(&ObserveEvent { verdict: "forwarded".into(), ..Default::default() });
        agent.fake.emit(&event);
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut text = String::new();
    watching.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("dropped PolicyDeny from pod:shop/client policy NetworkPolicy/shop/db"), "{text}");
    assert_eq!((watching.wait().unwrap().code(), text.lines().count()), (Some(0), 1));
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let agent = start(State::Ready);
    let mut child =
        command(&agent.socket, &["counters", "--all"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    assert_eq!(err(&done), "");
}

#[test]
fn help_shows_examples_and_wrong_arguments_end_with_2() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["flows", "observe", "counters"] {
        let done = sluice(folder.path(), &[command, "--help"]);
        assert!(done.status.success() && out(&done).contains("Examples:"), "{command}");
    }
    assert_eq!(sluice(folder.path(), &["flows", "--pod", "web"]).status.code(), Some(2));
    assert_eq!(sluice(folder.path(), &["observe", "--reason", "Bored"]).status.code(), Some(2));
    assert_eq!(sluice(folder.path(), &["nonsense"]).status.code(), Some(2));
}
