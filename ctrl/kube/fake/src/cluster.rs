//! Clusters of any size, made up.

use serde_json::{Value, json};

/// How large.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes beside the one under test.
    pub nodes: usize,
    /// Services, one slice each.
    pub services: usize,
    /// Endpoints of each Service.
    pub endpoints: usize,
    /// Whether every endpoint has its Pod object.
    pub pods: bool,
}

/// Address of the endpoint with this number: `10.128.0.0/10`.
pub fn endpoint_address(number: usize) -> String {
    let value = 0x0a80_0000u32 + u32::try_from(number).unwrap_or(0) + 256;
    std::net::Ipv4Addr::from(value).to_string()
}

/// A Node object.
pub fn node(name: &str, internal: &str, pod_cidr: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": internal}], "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// The slice of a Service, with the endpoints of these numbers.
pub fn slice(service: usize, endpoints: impl Iterator<Item = usize>, nodes: usize) -> Value {
    let endpoints: Vec<Value> = endpoints
        .map(|n| {
            json!({
                "addresses": [endpoint_address(n)], "nodeName": format!("node-{:04}", n % nodes.max(1)),
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": "load", "name": format!("pod-{n:06}")},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("svc-{service:05}-x"), "namespace": "load", "labels": {"kubernetes.io/service-name": format!("svc-{service:05}")}},
        "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    })
}

/// Everything but the node under test.
pub fn objects(size: Size) -> impl Iterator<Item = Value> {
    let Size { nodes, services, endpoints, pods } = size;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "load"}});
    let all_nodes = (0..nodes).map(|n| {
        let (a, b) = (n / 256, n % 256);
        node(&format!("node-{n:04}"), &format!("172.31.{}.{}", 10 + a, b), &format!("10.{}.{b}.0/24", 64 + a))
    });
    let all_services = (0..services).map(|s| {
        let address = std::net::Ipv4Addr::from(0x0a60_0000u32 + u32::try_from(s).unwrap_or(0) + 16);
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("svc-{s:05}"), "namespace": "load"},
            "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
                "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}], "selector": {"app": format!("app-{s:05}")}},
        })
    });
    let slices = (0..services).map(move |s| slice(s, s * endpoints..(s + 1) * endpoints, nodes));
    let count = if pods { services * endpoints } else { 0 };
    let all_pods = (0..count).map(move |n| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("pod-{n:06}"), "namespace": "load", "labels": {"app": format!("app-{:05}", n / endpoints.max(1))}},
            "spec": {"nodeName": format!("node-{:04}", n % nodes.max(1)), "containers": [{"name": "c", "image": "example.org/app:1", "ports": [{"containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": endpoint_address(n)}], "conditions": [{"type": "Ready", "status": "True"}]},
        })
    });
    std::iter::once(namespace).chain(all_nodes).chain(all_services).chain(slices).chain(all_pods)
}
