//! Host ports: who has which, who is refused, and what the host itself redirects.

use sluice_tables::services::FrontendKind;
use sluice_tables::{Address, FrontendKey};

use crate::story::{NODES, Story};

fn pod(name: &str, last: u8, ports: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: default, labels: {{ app: {name} }} }}
spec: {{ nodeName: node-a, containers: [{{ name: c, ports: [{ports}] }}] }}
status: {{ phase: Running, podIPs: [{{ ip: 10.244.1.{last} }}] }}
"
    )
}

fn story(pods: &[(&str, u8, &str)]) -> Story {
    pods.iter().fold(Story::new(NODES), |story, (name, last, ports)| story.with(&pod(name, *last, ports)))
}

fn key(address: &str, port: u16) -> FrontendKey {
    let address: std::net::IpAddr = address.parse().unwrap();
    FrontendKey { address: Address::from(address), protocol: 6, port }
}

#[test]
fn a_host_port_is_a_frontend_with_the_pod_behind_it_and_a_redirect_of_the_host() {
    let compiled = story(&[("a", 5, "{ containerPort: 80, hostPort: 8080 }")]).on("node-a");
    let frontend = compiled.tables.services.frontend(&key("0.0.0.0", 8080)).expect("a frontend");
    assert_eq!((frontend.kind, frontend.external.backends.len()), (FrontendKind::HostPort, 1));
    assert_ne!(compiled.tables.services.version(frontend.slot), 0);
    let redirect = compiled.redirects.first().expect("a redirect");
    assert_eq!((redirect.address, redirect.port, redirect.to.to_string()), (None, 8080, "10.244.1.5:80".to_owned()));
    assert!(compiled.steering.node_ports.iter().any(|(_, protocol, port)| (*protocol, *port) == (6, 8080)));
    assert!(story(&[]).on("node-a").redirects.is_empty());
}

#[test]
fn an_address_of_somebody_else_is_neither_programmed_nor_redirected() {
    let compiled = story(&[("a", 5, "{ containerPort: 53, hostPort: 53, hostIP: 198.51.100.53 }")]).on("node-a");
    assert!(compiled.tables.services.frontend(&key("198.51.100.53", 53)).is_none());
    assert!(compiled.redirects.is_empty(), "the host's own connections to that address would go to the pod");
    assert!(compiled.invalid[0].to_string().contains("198.51.100.53 is no address of this node"));
}

#[test]
fn the_loopback_is_redirected_by_the_host_alone() {
    let compiled = story(&[("a", 5, "{ containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1 }")]).on("node-a");
    assert!(compiled.tables.services.frontend(&key("127.0.0.1", 8080)).is_none());
    assert_eq!(compiled.redirects.first().unwrap().address, Some("127.0.0.1".parse().unwrap()));
    assert!(compiled.steering.node_ports.is_empty());
}

#[test]
fn ports_that_are_for_something_else_and_second_claims_are_refused_by_name() {
    let compiled = story(&[
        ("a", 5, "{ containerPort: 80, hostPort: 8080 }"),
        ("b", 6, "{ containerPort: 80, hostPort: 8080 }"),
        ("c", 7, "{ containerPort: 80, hostPort: 40001 }"),
        ("d", 8, "{ containerPort: 80, hostPort: 4789, protocol: UDP }"),
    ])
    .on("node-a");
    let said: Vec<String> = compiled.invalid.iter().map(ToString::to_string).collect();
    for (pod, why) in [("b", "belongs to pod/default/a"), ("c", "masquerade.ports"), ("d", "vxlan.port")] {
        assert!(said.iter().any(|s| s.starts_with(&format!("Pod/default/{pod}:")) && s.contains(why)), "{said:?}");
    }
    assert_eq!(compiled.redirects.len(), 1, "{:?}", compiled.redirects);
}
