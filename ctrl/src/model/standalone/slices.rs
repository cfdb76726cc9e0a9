//! Endpoint slices of Services that have a selector and no slice of their own.
//!
//! Owner: the control thread. Source: the behaviour of the endpoint slice controller: one family each, one slice for
//! each way in which named target ports resolve, readiness and termination as the pods say. Cost: linear in the pods,
//! plus, for each Service, the pods that carry the rarest label of its selector.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{
    Cluster, Endpoint, EndpointPort, EndpointSlice, Family, Labels, NamespacedName, Node, Pod, Service, TargetPort,
    TrafficDistribution,
};

/// The pods that carry a label, for each namespace and label.
struct PodIndex<'a> {
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Arc<Pod>>>,
}

impl<'a> PodIndex<'a> {
    fn new(pods: &'a BTreeMap<NamespacedName, Arc<Pod>>) -> PodIndex<'a> {
        let mut by_label: HashMap<_, Vec<&'a Arc<Pod>>> = HashMap::new();
        for pod in pods.values().filter(|p| !p.addresses.is_empty()) {
            for (key, value) in &pod.labels {
                let label = (pod.name.namespace.as_str(), key.as_str(), value.as_str());
                by_label.entry(label).or_default().push(pod);
            }
        }
        PodIndex { by_label }
    }

    fn with<'b>(&'b self, namespace: &'b str, key: &'b str, value: &'b str) -> &'b [&'a Arc<Pod>] {
        self.by_label.get(&(namespace, key, value)).map_or(&[], Vec::as_slice)
    }

    /// Pods with all these labels, in order of names.
    fn select(&self, namespace: &str, selector: &Labels) -> Vec<&'a Arc<Pod>> {
        let rarest = selector.iter().map(|(k, v)| self.with(namespace, k, v)).min_by_key(|pods| pods.len());
        let all = |pod: &&&Arc<Pod>| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
        rarest.unwrap_or_default().iter().filter(all).copied().collect()
    }
}

/// Adds the missing slices.
pub(super) fn endpoint_slices(cluster: &mut Cluster) {
    let given: BTreeSet<NamespacedName> = cluster
        .endpoint_slices
        .values()
        .filter_map(|s| s.service.as_ref().map(|service| NamespacedName::new(s.name.namespace.clone(), service)))
        .collect();
    let index = PodIndex::new(&cluster.pods);
    let mut derived = Vec::new();
    for (name, service) in &cluster.services {
        let Some(selector) = &service.selector else { continue };
        if !service.is_served() || given.contains(name) {
            continue;
        }
        let pods = index.select(&name.namespace, selector);
        for family in service.cluster_ips.iter().map(Family::of) {
            derived.extend(slices_of(service, family, &pods, &cluster.nodes));
        }
    }
    for mut slice in derived {
        // A given slice may have the derived one's name, and counts.
        while cluster.endpoint_slices.contains_key(&slice.name) {
            slice.name.name.push('x');
        }
        cluster.endpoint_slices.insert(slice.name.clone(), Arc::new(slice));
    }
}

/// One slice for each way in which the Service's target ports resolve on its pods.
fn slices_of(
    service: &Service,
    family: Family,
    pods: &[&Arc<Pod>],
    nodes: &BTreeMap<String, Arc<Node>>,
) -> Vec<EndpointSlice> {
    let mut by_ports: BTreeMap<Vec<EndpointPort>, Vec<Endpoint>> = BTreeMap::new();
    for pod in pods {
        let Some(address) = pod.address(family) else { continue };
        let ports: Vec<EndpointPort> = service
            .ports
            .iter()
            .filter_map(|p| {
                let port = match &p.target {
                    TargetPort::Number(port) => *port,
                    TargetPort::Name(name) => pod.named_port(name, p.protocol)?,
                };
                Some(EndpointPort { name: p.name.clone(), protocol: p.protocol, port })
            })
            .collect();
        if !ports.is_empty() {
            by_ports.entry(ports).or_default().push(endpoint(service, pod, address, nodes));
        }
    }
    let slice = |(number, (ports, endpoints)): (usize, (Vec<EndpointPort>, Vec<Endpoint>))| EndpointSlice {
        name: NamespacedName::new(service.name.namespace.clone(), format!("{}.{family}.{number}", service.name.name)),
        service: Some(service.name.name.clone()),
        family: Some(family),
        headless: false,
        endpoints,
        ports,
    };
    by_ports.into_iter().enumerate().map(slice).collect()
}

fn endpoint(service: &Service, pod: &Pod, address: IpAddr, nodes: &BTreeMap<String, Arc<Node>>) -> Endpoint {
    let serving = pod.is_ready();
    let zone = pod.node.as_ref().and_then(|n| nodes.get(n)).and_then(|n| n.zone()).map(str::to_owned);
    let near = service.distribution.is_some();
    let same_node = service.distribution == Some(TrafficDistribution::SameNode);
    Endpoint {
        addresses: vec![address],
        ready: service.publish_not_ready || (serving && !pod.terminating),
        serving,
        terminating: pod.terminating,
        zone_hints: zone.iter().filter(|_| near).cloned().collect(),
        node_hints: pod.node.iter().filter(|_| same_node).cloned().collect(),
        node: pod.node.clone(),
        zone,
        pod: Some(pod.name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::standalone::tests::filled;

    const PODS: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}, spec: {podCIDRs: [10.244.1.0/24, "fd00::/64"]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: web}}, spec: {containers: [{ports: [{name: http, containerPort: 8080}]}]}, status: {podIPs: [{ip: 10.244.1.5}, {ip: "fd00::5"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, labels: {app: web, x: y}}, spec: {containers: [{ports: [{name: http, containerPort: 9090}]}]}, status: {podIP: 10.244.1.6, conditions: [{type: Ready, status: "False"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: c, labels: {app: web}, deletionTimestamp: "2024-01-01T00:00:00Z"}, spec: {containers: [{ports: [{name: http, containerPort: 8080}]}]}, status: {podIP: 10.244.1.7}}
---
{apiVersion: v1, kind: Pod, metadata: {name: d, labels: {app: web}}, spec: {containers: [{ports: [{name: http, containerPort: 8080}]}]}, status: {podIP: 10.244.1.8, phase: Failed}}
---
{apiVersion: v1, kind: Pod, metadata: {name: e, labels: {app: web}, namespace: other}, status: {podIP: 10.244.1.9}}
---
"#;

    fn endpoints(cluster: &Cluster, service: &str) -> Vec<(String, u16, bool, bool, bool)> {
        let name = NamespacedName::new("default", service);
        let mut all: Vec<_> = cluster
            .slices_of(&name)
            .flat_map(|s| s.endpoints.iter().map(|e| (e, s.ports[0].port)))
            .map(|(e, port)| (e.addresses[0].to_string(), port, e.ready, e.serving, e.terminating))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn slices_come_from_selectors_and_pods_one_family_each() {
        let text = format!(
            "{PODS}{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{selector: {{app: web}}, ipFamilyPolicy: PreferDualStack, \
             trafficDistribution: PreferClose, ports: [{{port: 80, targetPort: http}}]}}}}"
        );
        let cluster = filled(&text);
        assert_eq!(
            endpoints(&cluster, "web"),
            [
                ("10.244.1.5".into(), 8080, true, true, false),
                ("10.244.1.6".into(), 9090, false, false, false),
                ("10.244.1.7".into(), 8080, false, true, true),
                ("fd00::5".into(), 8080, true, true, false),
            ]
        );
        let name = NamespacedName::new("default", "web");
        let slice = cluster.slices_of(&name).next().unwrap();
        let endpoint = &slice.endpoints[0];
        assert_eq!((endpoint.node.as_deref(), endpoint.zone.as_deref()), (Some("n1"), Some("z1")));
        assert_eq!(endpoint.zone_hints.len(), 1);
    }

    #[test]
    fn not_ready_pods_are_published_where_the_service_says_so() {
        let text = format!(
            "{PODS}{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{selector: {{app: web, x: y}}, publishNotReadyAddresses: true, ports: [{{port: 80}}]}}}}"
        );
        assert_eq!(endpoints(&filled(&text), "web"), [("10.244.1.6".into(), 80, true, false, false)]);
    }

    #[test]
    fn a_service_with_a_slice_of_its_own_or_without_a_selector_gets_none() {
        let text = format!(
            "{PODS}{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}}}\n---\n\
             {{apiVersion: v1, kind: Service, metadata: {{name: bare}}, spec: {{ports: [{{port: 80}}]}}}}\n---\n\
             {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: s, labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4}}"
        );
        assert_eq!(filled(&text).endpoint_slices.len(), 1);
    }
}
