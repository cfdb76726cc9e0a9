//! core/v1 `Node`: addresses, podCIDRs, labels, readiness, and our tunnel annotation.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{At, Effect, Report, annotations, labels, own_annotation, version};
use crate::model::Node;
use crate::model::node::{LEAVING_TAINT, VTEP_MAC_ANNOTATION};
use crate::source::Kind;

/// Imports a node; values that cannot be read are left out.
pub(super) fn import(name: &str, root: &At<'_>, report: &mut Report) -> Node {
    report.field(version(root, Kind::Node));
    let (spec, status) = (root.get("spec"), root.get("status"));
    let annotations = annotations(root, own_annotation, report);
    let metadata = root.get("metadata");
    let annotation_field = metadata.get("annotations");
    let vtep_mac = annotations.get(VTEP_MAC_ANNOTATION).and_then(|text| {
        let mac = parse_mac(text);
        if mac.is_none() {
            let why = format!("expected a unicast MAC such as 02:00:0a:00:00:01, found {text:?}");
            report.add(Effect::FieldIgnored, annotation_field.get(VTEP_MAC_ANNOTATION).problem(why));
        }
        mac
    });
    let mut node = Node {
        name: name.to_owned(),
        labels: labels(root, report),
        annotations,
        internal_ips: Vec::new(),
        external_ips: Vec::new(),
        pod_cidrs: pod_cidrs(&spec, report),
        vtep_mac,
        ready: condition(&status, "Ready", report),
        leaving: !metadata.get("deletionTimestamp").is_absent() || is_to_be_deleted(&spec, report),
    };
    for entry in report.field(status.get("addresses").list()).unwrap_or_default() {
        match report.optional(entry.get("type").text()) {
            Some("InternalIP") => push_address(&mut node.internal_ips, &entry, report),
            Some("ExternalIP") => push_address(&mut node.external_ips, &entry, report),
            _ => {}
        }
    }
    node
}

fn push_address(addresses: &mut Vec<IpAddr>, entry: &At<'_>, report: &mut Report) {
    if let Some(address) = report.optional(entry.get("address").address())
        && !addresses.contains(&address)
    {
        addresses.push(address);
    }
}

fn pod_cidrs(spec: &At<'_>, report: &mut Report) -> Vec<IpNet> {
    let list_field = spec.get("podCIDRs");
    let list = report.field(list_field.list()).unwrap_or_default();
    let mut cidrs: Vec<IpNet> = Vec::new();
    for entry in &list {
        cidrs.extend(report.field(entry.network()));
    }
    let single = spec.get("podCIDR");
    if list.is_empty() && !single.is_absent() && single.value() != "" {
        cidrs.extend(report.field(single.network()));
    }
    cidrs.dedup();
    cidrs
}

/// The status of a condition of a node or pod; `Unknown` is not `True`.
pub(super) fn condition(status: &At<'_>, name: &str, report: &mut Report) -> Option<bool> {
    let conditions = status.get("conditions");
    let list = report.field(conditions.list()).unwrap_or_default();
    let condition = list.iter().find(|c| c.get("type").value() == name)?;
    Some(condition.get("status").value() == "True")
}

fn is_to_be_deleted(spec: &At<'_>, report: &mut Report) -> bool {
    let field = spec.get("taints");
    let taints = report.field(field.list()).unwrap_or_default();
    taints.iter().any(|taint| taint.get("key").value() == LEAVING_TAINT)
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0u8; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let unicast = mac[0] & 1 == 0 && mac != [0; 6];
    (unicast && parts.next().is_none()).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::tests::{cluster, cluster_and_problems};
    use crate::model::Family;

    #[test]
    fn a_dual_stack_node_is_read_whole() {
        let cluster = cluster(
            r#"
apiVersion: v1
kind: Node
metadata:
  name: node-a
  labels: { topology.kubernetes.io/zone: z1 }
  annotations: { sluicegate.dev/vtep-mac: "02:AB:00:00:00:01", other.dev/x: y }
spec: { podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"] }
status:
  addresses:
  - { type: InternalIP, address: 192.0.2.11 }
  - { type: InternalIP, address: "2001:db8::11" }
  - { type: ExternalIP, address: 198.51.100.1 }
  - { type: Hostname, address: node-a }
  conditions: [{ type: Ready, status: "True" }]
"#,
        );
        let node = &cluster.nodes["node-a"];
        assert_eq!(node.internal_ip(Family::V4), Some("192.0.2.11".parse().unwrap()));
        assert_eq!(node.internal_ip(Family::V6), Some("2001:db8::11".parse().unwrap()));
        assert_eq!(node.external_ips, vec!["198.51.100.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(node.overlay_address(Family::V4), Some("10.244.1.1".parse().unwrap()));
        assert_eq!(node.overlay_address(Family::V6), Some("fd00:10:244:1::1".parse().unwrap()));
        assert_eq!(node.zone(), Some("z1"));
        assert_eq!(node.vtep_mac, Some([2, 0xab, 0, 0, 0, 1]));
        assert_eq!(node.annotations.len(), 1);
        assert_eq!(node.ready, Some(true));
    }

    #[test]
    fn a_single_pod_cidr_stands_for_the_list_where_that_is_missing() {
        let cluster = cluster("{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {podCIDR: 10.244.1.7/24}}");
        let node = &cluster.nodes["n"];
        assert_eq!(node.pod_cidrs, vec!["10.244.1.0/24".parse::<IpNet>().unwrap()]);
        assert_eq!(node.ready, None);
        assert_eq!(node.zone(), None);
    }

    #[test]
    fn a_node_that_is_being_deleted_or_bears_the_autoscalers_taint_is_leaving() {
        let leaving = |more: &str, spec: &str| {
            cluster(&format!("{{apiVersion: v1, kind: Node, metadata: {{name: n{more}}}, spec: {{{spec}}}}}")).nodes["n"].leaving
        };
        assert!(!leaving("", "taints: [{key: other, effect: NoSchedule}]"));
        assert!(leaving(
            "",
            "taints: [{key: ToBeDeletedByClusterAutoscaler, value: '1790000000', effect: NoSchedule}]"
        ));
        assert!(leaving(", deletionTimestamp: '2026-01-01T00:00:00Z'", ""));
    }

    #[test]
    fn one_bad_address_does_not_cost_the_others() {
        let (cluster, problems) = cluster_and_problems(
            r#"{apiVersion: v1, kind: Node, metadata: {name: n, annotations: {sluicegate.dev/vtep-mac: "01:00:00:00:00:01"}},
                spec: {podCIDRs: [10.244.1.0/99, 10.244.2.0/24]},
                status: {addresses: [{type: InternalIP, address: nonsense}, {type: InternalIP, address: 192.0.2.1}]}}"#,
        );
        let node = &cluster.nodes["n"];
        assert_eq!(node.internal_ips, vec!["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(node.pod_cidrs, vec!["10.244.2.0/24".parse::<IpNet>().unwrap()]);
        assert_eq!(node.vtep_mac, None);
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
