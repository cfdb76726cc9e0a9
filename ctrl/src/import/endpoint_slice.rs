//! discovery.k8s.io/v1 `EndpointSlice`: endpoints with their state, and ports.

use std::collections::BTreeSet;

use super::{At, Effect, Report, labels, version};
use crate::model::endpoint_slice::{HEADLESS_LABEL, SERVICE_NAME_LABEL};
use crate::model::{Endpoint, EndpointPort, EndpointSlice, Family, NamespacedName};
use crate::source::Kind;

/// Imports a slice; endpoints and ports that cannot be read are left out.
pub(super) fn import(name: NamespacedName, root: &At<'_>, report: &mut Report) -> EndpointSlice {
    report.field(version(root, Kind::EndpointSlice));
    let labels = labels(root, report);
    let family = match report.optional(root.get("addressType").text()) {
        Some("IPv4") => Some(Family::V4),
        Some("IPv6") => Some(Family::V6),
        Some("FQDN") => None,
        _ => {
            report.add(Effect::ObjectIgnored, root.get("addressType").problem("expected IPv4, IPv6 or FQDN"));
            None
        }
    };
    let mut slice = EndpointSlice {
        service: labels.get(SERVICE_NAME_LABEL).filter(|s| !s.is_empty()).cloned(),
        headless: labels.contains_key(HEADLESS_LABEL),
        family,
        endpoints: Vec::new(),
        ports: ports(root, report),
        name,
    };
    if let Some(family) = family {
        for entry in report.field(root.get("endpoints").list()).unwrap_or_default() {
            slice.endpoints.extend(endpoint(&entry, family, &slice.name.namespace, report));
        }
    }
    slice
}

fn endpoint(entry: &At<'_>, family: Family, namespace: &str, report: &mut Report) -> Option<Endpoint> {
    let mut addresses = Vec::new();
    for field in report.field(entry.get("addresses").list())? {
        let Some(address) = report.optional(field.address()) else { continue };
        if Family::of(&address) == family {
            addresses.push(address);
        } else {
            report.add(Effect::FieldIgnored, field.problem(format!("not an address of the slice's type {family}")));
        }
    }
    if addresses.is_empty() {
        return None;
    }
    let conditions = entry.get("conditions");
    let mut condition = |name| report.optional(conditions.get(name).boolean());
    let ready = condition("ready").unwrap_or(true);
    let serving = condition("serving").unwrap_or(ready);
    let terminating = condition("terminating").unwrap_or(false);
    let mut text = |name| report.optional(entry.get(name).text()).filter(|t| !t.is_empty()).map(str::to_owned);
    let (node, zone) = (text("nodeName"), text("zone"));
    let hints = entry.get("hints");
    Some(Endpoint {
        addresses,
        ready,
        serving,
        terminating,
        node,
        zone,
        zone_hints: names(&hints.get("forZones"), report),
        node_hints: names(&hints.get("forNodes"), report),
        pod: pod(entry, namespace),
    })
}

fn names(field: &At<'_>, report: &mut Report) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in report.field(field.list()).unwrap_or_default() {
        names.extend(report.optional(entry.get("name").text()).filter(|n| !n.is_empty()).map(str::to_owned));
    }
    names
}

fn pod(entry: &At<'_>, namespace: &str) -> Option<NamespacedName> {
    let target = entry.value().get("targetRef")?;
    let text = |key: &str| target.get(key).and_then(|v| v.as_str()).filter(|t| !t.is_empty());
    let name = text("name").filter(|_| text("kind") == Some("Pod"))?;
    Some(NamespacedName::new(text("namespace").unwrap_or(namespace), name))
}

fn ports(root: &At<'_>, report: &mut Report) -> Vec<EndpointPort> {
    let mut ports = Vec::new();
    for entry in report.field(root.get("ports").list()).unwrap_or_default() {
        let Some(port) = report.optional(entry.get("port").port()) else { continue };
        let Some(protocol) = report.field(entry.get("protocol").protocol()) else { continue };
        let name = report.optional(entry.get("name").text()).unwrap_or_default().to_owned();
        ports.push(EndpointPort { name, protocol, port });
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::tests::{cluster, cluster_and_problems};
    use crate::model::Protocol;

    const HEAD: &str = "apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, labels: {kubernetes.io/service-name: web}}";

    fn slice(body: &str) -> EndpointSlice {
        let cluster = cluster(&format!("{{{HEAD}, {body}}}"));
        (*cluster.endpoint_slices[&NamespacedName::new("default", "s")]).clone()
    }

    #[test]
    fn missing_conditions_follow_the_api() {
        let slice = slice(
            "addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: false}}, \
             {addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}, \
             {addresses: [10.0.0.4], conditions: {ready: null, serving: null}}]",
        );
        let states: Vec<_> = slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
        assert_eq!(states, [(true, true, false), (false, false, false), (false, true, true), (true, true, false)]);
        assert!(slice.is_served());
    }

    #[test]
    fn a_port_without_a_number_is_skipped() {
        let slice = slice(
            "addressType: IPv6, ports: [{name: a, port: null}, {name: b}, {name: http, port: 80}, {port: 53, protocol: UDP}], endpoints: []",
        );
        assert_eq!(
            slice.ports,
            vec![
                EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 },
                EndpointPort { name: String::new(), protocol: Protocol::Udp, port: 53 },
            ]
        );
    }

    #[test]
    fn place_hints_and_target_are_kept() {
        let slice = slice(
            "addressType: IPv4, endpoints: [{addresses: [010.0.0.01], nodeName: n1, zone: z1, hints: {forZones: [{name: z1}, {name: z2}], \
             forNodes: [{name: n1}]}, targetRef: {kind: Pod, name: p, namespace: default}}]",
        );
        let endpoint = &slice.endpoints[0];
        assert_eq!(endpoint.addresses[0].to_string(), "10.0.0.1");
        assert_eq!((endpoint.node.as_deref(), endpoint.zone.as_deref()), (Some("n1"), Some("z1")));
        assert_eq!((endpoint.zone_hints.len(), endpoint.node_hints.len()), (2, 1));
        assert_eq!(endpoint.pod, Some(NamespacedName::new("default", "p")));
    }

    #[test]
    fn foreign_addresses_and_types_serve_nothing() {
        let (cluster, problems) =
            cluster_and_problems(&format!("{{{HEAD}, addressType: IPv4, endpoints: [{{addresses: [\"fd00::1\"]}}]}}"));
        assert!(cluster.endpoint_slices[&NamespacedName::new("default", "s")].endpoints.is_empty());
        assert_eq!(problems.len(), 1);
        assert!(!slice("addressType: FQDN, endpoints: [{addresses: [example.com]}]").is_served());
    }

    #[test]
    fn a_headless_slice_is_not_served() {
        let cluster = cluster(
            "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, labels: \
             {kubernetes.io/service-name: web, service.kubernetes.io/headless: ''}}, addressType: IPv4}",
        );
        assert!(!cluster.endpoint_slices[&NamespacedName::new("default", "s")].is_served());
    }
}
