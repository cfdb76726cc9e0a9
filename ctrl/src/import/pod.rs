//! core/v1 `Pod`: identity, labels, node, addresses, named ports, phase and readiness.

use std::net::IpAddr;

use super::node::condition;
use super::{At, Effect, Report, annotations, labels, own_annotation, version};
use crate::model::{ContainerPort, NamespacedName, Phase, Pod};
use crate::source::Kind;

/// Imports a pod; values that cannot be read are left out. A pod that has finished owns no address.
pub(super) fn import(name: NamespacedName, root: &At<'_>, report: &mut Report) -> Pod {
    report.field(version(root, Kind::Pod));
    let (metadata, spec, status) = (root.get("metadata"), root.get("spec"), root.get("status"));
    let mut pod = Pod {
        name,
        uid: report.optional(metadata.get("uid").text()).unwrap_or_default().to_owned(),
        labels: labels(root, report),
        annotations: annotations(root, |key| own_annotation(key) || is_bandwidth(key), report),
        node: report.optional(spec.get("nodeName").text()).filter(|n| !n.is_empty()).map(str::to_owned),
        phase: phase(&status, report),
        host_network: report.optional(spec.get("hostNetwork").boolean()).unwrap_or(false),
        addresses: Vec::new(),
        ports: Vec::new(),
        ready: condition(&status, "Ready", report),
        terminating: !metadata.get("deletionTimestamp").is_absent(),
    };
    if !pod.is_finished() {
        pod.addresses = addresses(&status, report);
    }
    container_ports(&spec.get("containers"), |_| true, &mut pod.ports, report);
    let long_running = |container: &At<'_>| container.get("restartPolicy").value() == "Always";
    container_ports(&spec.get("initContainers"), long_running, &mut pod.ports, report);
    pod
}

fn is_bandwidth(key: &str) -> bool {
    matches!(key, "kubernetes.io/ingress-bandwidth" | "kubernetes.io/egress-bandwidth")
}

fn phase(status: &At<'_>, report: &mut Report) -> Phase {
    let field = status.get("phase");
    match report.optional(field.text()) {
        None | Some("") => Phase::Unset,
        Some("Pending") => Phase::Pending,
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some("Unknown") => Phase::Unknown,
        Some(other) => {
            report.add(Effect::FieldIgnored, field.problem(format!("unknown phase {other:?}")));
            Phase::Unknown
        }
    }
}

fn addresses(status: &At<'_>, report: &mut Report) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    let list_field = status.get("podIPs");
    let list = report.field(list_field.list()).unwrap_or_default();
    for entry in &list {
        addresses.extend(report.optional(entry.get("ip").address()));
    }
    if list.is_empty() {
        addresses.extend(report.optional(status.get("podIP").address()));
    }
    let mut unique = Vec::with_capacity(addresses.len());
    for address in addresses {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    unique
}

fn container_ports(
    containers: &At<'_>,
    wanted: impl Fn(&At<'_>) -> bool,
    ports: &mut Vec<ContainerPort>,
    report: &mut Report,
) {
    for container in report.field(containers.list()).unwrap_or_default() {
        if !wanted(&container) {
            continue;
        }
        for entry in report.field(container.get("ports").list()).unwrap_or_default() {
            let Some(port) = report.optional(entry.get("containerPort").port()) else { continue };
            let Some(protocol) = report.field(entry.get("protocol").protocol()) else { continue };
            let host_port = report.optional(entry.get("hostPort").integer(0, 65_535));
            ports.push(ContainerPort {
                name: report.optional(entry.get("name").text()).filter(|n| !n.is_empty()).map(str::to_owned),
                protocol,
                port,
                host_port: host_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0),
                host_ip: report.optional(entry.get("hostIP").address()).filter(|a| !a.is_unspecified()),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::tests::{cluster, cluster_and_problems};
    use crate::model::{Cluster, Protocol};

    fn pod<'a>(cluster: &'a Cluster, name: &str) -> &'a Pod {
        &cluster.pods[&NamespacedName::new("shop", name)]
    }

    #[test]
    fn a_running_pod_is_read_whole() {
        let cluster = cluster(
            r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  uid: 0f
  labels: { app: web }
  annotations: { kubernetes.io/ingress-bandwidth: 10M, sluicegate.dev/a: b, x: y }
spec:
  nodeName: node-a
  initContainers:
  - { name: setup, ports: [{ name: setup, containerPort: 1 }] }
  - { name: mesh, restartPolicy: Always, ports: [{ name: admin, containerPort: 15000 }] }
  containers:
  - name: c
    ports:
    - { name: http, containerPort: 8080 }
    - { name: dns, containerPort: 53, protocol: UDP, hostPort: 5353, hostIP: 127.0.0.1 }
    - { name: sig, containerPort: 36412, protocol: SCTP, hostPort: 0, hostIP: 0.0.0.0 }
status:
  phase: Running
  podIP: 10.244.1.5
  podIPs: [{ ip: 10.244.1.5 }, { ip: "fd00:10:244:1::5" }]
  conditions: [{ type: Initialized, status: "True" }, { type: Ready, status: "False" }]
"#,
        );
        let pod = pod(&cluster, "web");
        assert_eq!(pod.addresses.len(), 2);
        assert_eq!(pod.node.as_deref(), Some("node-a"));
        assert_eq!((pod.ready, pod.is_ready(), pod.terminating), (Some(false), false, false));
        assert_eq!(pod.named_port("http", Protocol::Tcp), Some(8080));
        assert_eq!(pod.named_port("http", Protocol::Udp), None);
        assert_eq!(pod.named_port("admin", Protocol::Tcp), Some(15_000));
        assert_eq!(pod.named_port("setup", Protocol::Tcp), None);
        assert_eq!(pod.ports[1].host_port, Some(5353));
        assert_eq!(pod.ports[1].host_ip, Some("127.0.0.1".parse().unwrap()));
        assert_eq!((pod.ports[2].host_port, pod.ports[2].host_ip), (None, None));
        assert_eq!(pod.annotations.len(), 2);
    }

    #[test]
    fn a_finished_pod_owns_no_address() {
        for phase in ["Succeeded", "Failed"] {
            let cluster = cluster(&format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: job, namespace: shop}}, status: {{phase: {phase}, podIP: 10.244.1.5}}}}"
            ));
            assert!(pod(&cluster, "job").addresses.is_empty());
            assert!(!pod(&cluster, "job").is_ready());
        }
    }

    #[test]
    fn a_pod_without_conditions_is_ready_once_it_has_an_address() {
        let cluster = cluster(
            "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop}, status: {podIP: 10.244.1.5}}\n---\n\
             {apiVersion: v1, kind: Pod, metadata: {name: b, namespace: shop, deletionTimestamp: \"2024-01-01T00:00:00Z\"}}",
        );
        assert!(pod(&cluster, "a").is_ready());
        assert!(!pod(&cluster, "b").is_ready());
        assert!(pod(&cluster, "b").terminating);
    }

    #[test]
    fn bad_values_cost_only_themselves() {
        let (cluster, problems) = cluster_and_problems(
            "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop}, spec: {hostNetwork: yes, containers: [{ports: \
             [{containerPort: 70000}, {containerPort: 80, protocol: ICMP}, {containerPort: 81}]}]}, \
             status: {podIPs: [{ip: bad}, {ip: 010.244.1.05}, {ip: 10.244.1.5}]}}",
        );
        let pod = pod(&cluster, "a");
        assert_eq!(pod.addresses, vec!["10.244.1.5".parse::<IpAddr>().unwrap()]);
        assert_eq!(pod.ports.len(), 1);
        assert!(!pod.host_network);
        assert_eq!(problems.len(), 4, "{problems:?}");
    }
}
