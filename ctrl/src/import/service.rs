//! core/v1 `Service`: virtual addresses, ports, and how endpoints are chosen.
//!
//! A bad value never breaks the rest of the Service, and never opens it: source ranges that cannot be read still
//! restrict.

use std::net::IpAddr;

use super::{At, Effect, Report, labels, version};
use crate::model::service::{DEFAULT_AFFINITY_SECONDS, DIRECT_RETURN_ANNOTATION, SERVICE_PROXY_LABEL};
use crate::model::{
    Family, IpFamilyPolicy, LoadBalancerAddress, NamespacedName, Service, ServiceKind, ServicePort, TargetPort,
    TrafficDistribution, TrafficPolicy,
};
use crate::source::Kind;

/// Imports a Service; values that cannot be read are left out.
pub(super) fn import(name: NamespacedName, root: &At<'_>, report: &mut Report) -> Service {
    report.field(version(root, Kind::Service));
    let spec = root.get("spec");
    let kind = word(&spec.get("type"), report, ServiceKind::ClusterIp, |w| {
        Some(match w {
            "ClusterIP" => ServiceKind::ClusterIp,
            "NodePort" => ServiceKind::NodePort,
            "LoadBalancer" => ServiceKind::LoadBalancer,
            "ExternalName" => ServiceKind::ExternalName,
            _ => return None,
        })
    });
    let (headless, mut cluster_ips) = cluster_ips(&spec, report);
    if headless || kind == ServiceKind::ExternalName {
        cluster_ips.clear();
    }
    let balanced = kind == ServiceKind::LoadBalancer;
    let ranges_field = spec.get("loadBalancerSourceRanges");
    let ranges = report.field(ranges_field.list()).unwrap_or_default();
    let restricted = balanced && (!ranges.is_empty() || !(ranges_field.is_absent() || ranges_field.value().is_array()));
    Service {
        name,
        kind,
        headless,
        cluster_ips,
        ip_families: ip_families(&spec, report),
        ip_family_policy: word(&spec.get("ipFamilyPolicy"), report, None, |w| {
            Some(Some(match w {
                "SingleStack" => IpFamilyPolicy::SingleStack,
                "PreferDualStack" => IpFamilyPolicy::PreferDualStack,
                "RequireDualStack" => IpFamilyPolicy::RequireDualStack,
                _ => return None,
            }))
        }),
        ports: ports(&spec, report),
        selector: report.optional(spec.get("selector").labels()).filter(|s| !s.is_empty()),
        external_ips: addresses(&spec.get("externalIPs"), report),
        load_balancer: if balanced { load_balancer(root, report) } else { Vec::new() },
        load_balancer_class: report.optional(spec.get("loadBalancerClass").text()).map(str::to_owned),
        source_ranges: restricted.then(|| ranges.iter().filter_map(|r| report.field(r.network())).collect()),
        external_traffic: traffic_policy(&spec.get("externalTrafficPolicy"), report),
        internal_traffic: traffic_policy(&spec.get("internalTrafficPolicy"), report),
        affinity_seconds: affinity(&spec, report),
        publish_not_ready: report.optional(spec.get("publishNotReadyAddresses").boolean()).unwrap_or(false),
        allocate_node_ports: report.optional(spec.get("allocateLoadBalancerNodePorts").boolean()).unwrap_or(true),
        health_check_node_port: optional_port(&spec.get("healthCheckNodePort"), report),
        distribution: word(&spec.get("trafficDistribution"), report, None, |w| {
            Some(Some(match w {
                "PreferClose" | "PreferSameZone" => TrafficDistribution::SameZone,
                "PreferSameNode" => TrafficDistribution::SameNode,
                _ => return None,
            }))
        }),
        direct_return: direct_return(root, report),
        other_proxy: labels(root, report).contains_key(SERVICE_PROXY_LABEL),
    }
}

/// A field with a closed set of words; what is not among them is reported and read as the default.
fn word<T>(field: &At<'_>, report: &mut Report, default: T, read: impl Fn(&str) -> Option<T>) -> T {
    match report.optional(field.text()) {
        None | Some("") => default,
        Some(text) => read(text).unwrap_or_else(|| {
            report.add(Effect::FieldIgnored, field.problem(format!("unknown value {text:?}")));
            default
        }),
    }
}

fn traffic_policy(field: &At<'_>, report: &mut Report) -> TrafficPolicy {
    word(field, report, TrafficPolicy::Cluster, |w| match w {
        "Cluster" => Some(TrafficPolicy::Cluster),
        "Local" => Some(TrafficPolicy::Local),
        _ => None,
    })
}

fn optional_port(field: &At<'_>, report: &mut Report) -> Option<u16> {
    let port = report.optional(field.integer(0, 65_535))?;
    u16::try_from(port).ok().filter(|p| *p != 0)
}

fn cluster_ips(spec: &At<'_>, report: &mut Report) -> (bool, Vec<IpAddr>) {
    let (list_field, single) = (spec.get("clusterIPs"), spec.get("clusterIP"));
    let mut fields = report.field(list_field.list()).unwrap_or_default();
    if fields.is_empty() && !single.is_absent() {
        fields.push(single);
    }
    let mut headless = false;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for field in &fields {
        if field.value() == "None" {
            headless = true;
            continue;
        }
        let Some(address) = report.optional(field.address()) else { continue };
        if addresses.iter().any(|a| Family::of(a) == Family::of(&address)) {
            report.add(Effect::FieldIgnored, field.problem("a second address of the same family"));
        } else {
            addresses.push(address);
        }
    }
    (headless, addresses)
}

fn ip_families(spec: &At<'_>, report: &mut Report) -> Vec<Family> {
    let mut families = Vec::new();
    for entry in report.field(spec.get("ipFamilies").list()).unwrap_or_default() {
        let family = word(&entry, report, None, |w| match w {
            "IPv4" => Some(Some(Family::V4)),
            "IPv6" => Some(Some(Family::V6)),
            _ => None,
        });
        families.extend(family.filter(|f| !families.contains(f)));
    }
    families
}

fn ports(spec: &At<'_>, report: &mut Report) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for entry in report.field(spec.get("ports").list()).unwrap_or_default() {
        let port_field = entry.get("port");
        let Some(port) = report.optional(port_field.port()) else {
            if port_field.is_absent() {
                report.add(Effect::FieldIgnored, port_field.problem("must be given"));
            }
            continue;
        };
        let Some(protocol) = report.field(entry.get("protocol").protocol()) else { continue };
        let Some(target) = target_port(&entry.get("targetPort"), port, report) else { continue };
        if ports.iter().any(|p| (p.port, p.protocol) == (port, protocol)) {
            report.add(Effect::FieldIgnored, entry.problem(format!("a second port {port}/{protocol}")));
            continue;
        }
        ports.push(ServicePort {
            name: report.optional(entry.get("name").text()).unwrap_or_default().to_owned(),
            protocol,
            port,
            target,
            node_port: optional_port(&entry.get("nodePort"), report),
            app_protocol: report.optional(entry.get("appProtocol").text()).map(str::to_owned),
        });
    }
    ports
}

/// Missing, 0 and empty mean the Service's own port, as the API defaults it.
fn target_port(field: &At<'_>, port: u16, report: &mut Report) -> Option<TargetPort> {
    match field.value() {
        serde_json::Value::Null => Some(TargetPort::Number(port)),
        serde_json::Value::String(text) if text.is_empty() => Some(TargetPort::Number(port)),
        serde_json::Value::String(text) => Some(TargetPort::Name(text.clone())),
        _ => {
            let number = report.optional(field.integer(0, 65_535)).and_then(|n| u16::try_from(n).ok())?;
            Some(TargetPort::Number(if number == 0 { port } else { number }))
        }
    }
}

fn addresses(field: &At<'_>, report: &mut Report) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for entry in report.field(field.list()).unwrap_or_default() {
        addresses.extend(report.optional(entry.address()).filter(|a| !addresses.contains(a)));
    }
    addresses
}

fn load_balancer(root: &At<'_>, report: &mut Report) -> Vec<LoadBalancerAddress> {
    let status = root.get("status");
    let balancer = status.get("loadBalancer");
    let mut addresses = Vec::new();
    for entry in report.field(balancer.get("ingress").list()).unwrap_or_default() {
        let Some(ip) = report.optional(entry.get("ip").address()) else { continue };
        // An unknown mode is not programmed: the address may well lead elsewhere.
        let mode_field = entry.get("ipMode");
        let proxied = match report.optional(mode_field.text()) {
            None | Some("" | "VIP") => false,
            Some("Proxy") => true,
            Some(other) => {
                report.add(Effect::FieldIgnored, mode_field.problem(format!("unknown mode {other:?}")));
                true
            }
        };
        addresses.push(LoadBalancerAddress { ip, proxied });
    }
    addresses
}

fn direct_return(root: &At<'_>, report: &mut Report) -> bool {
    let metadata = root.get("metadata");
    let field = metadata.get("annotations");
    word(&field.get(DIRECT_RETURN_ANNOTATION), report, false, |w| match w {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    })
}

fn affinity(spec: &At<'_>, report: &mut Report) -> Option<u32> {
    let by_client = word(&spec.get("sessionAffinity"), report, false, |w| match w {
        "None" => Some(false),
        "ClientIP" => Some(true),
        _ => None,
    });
    let config = spec.get("sessionAffinityConfig");
    let client = config.get("clientIP");
    let seconds = report.optional(client.get("timeoutSeconds").integer(1, 86_400));
    by_client.then(|| seconds.and_then(|s| u32::try_from(s).ok()).unwrap_or(DEFAULT_AFFINITY_SECONDS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::tests::{cluster, cluster_and_problems};
    use crate::model::{Labels, Protocol};

    fn service(body: &str) -> Service {
        let cluster =
            cluster(&format!("{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop}}, {body}}}"));
        (*cluster.services[&NamespacedName::new("shop", "web")]).clone()
    }

    #[test]
    fn a_load_balancer_service_is_read_whole() {
        let service = service(
            r#"spec: {type: LoadBalancer, clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, "fd00:10:96::7"],
               ipFamilies: [IPv4, IPv6], ipFamilyPolicy: RequireDualStack, selector: {app: web},
               ports: [{name: http, port: 80, targetPort: http, nodePort: 30080, appProtocol: http},
                       {name: dns, port: 53, protocol: UDP, targetPort: 5353}, {name: s, port: 53, protocol: SCTP}],
               externalIPs: [198.51.100.9], loadBalancerSourceRanges: [" 203.0.113.0/24 "],
               externalTrafficPolicy: Local, internalTrafficPolicy: Local, healthCheckNodePort: 31000,
               sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}},
               publishNotReadyAddresses: true, allocateLoadBalancerNodePorts: false, trafficDistribution: PreferClose},
               status: {loadBalancer: {ingress: [{ip: 192.0.2.80}, {ip: 192.0.2.81, ipMode: Proxy}, {hostname: x}]}}"#,
        );
        assert_eq!(service.cluster_ips.len(), 2);
        assert_eq!(service.ports[0].target, TargetPort::Name("http".into()));
        assert_eq!(service.ports[0].node_port, Some(30_080));
        assert_eq!((service.ports[1].protocol, &service.ports[1].target), (Protocol::Udp, &TargetPort::Number(5353)));
        assert_eq!((service.ports[2].protocol, &service.ports[2].target), (Protocol::Sctp, &TargetPort::Number(53)));
        assert_eq!(service.load_balancer.iter().map(|l| l.proxied).collect::<Vec<_>>(), vec![false, true]);
        assert_eq!(service.source_ranges, Some(vec!["203.0.113.0/24".parse().unwrap()]));
        assert_eq!(service.affinity_seconds, Some(60));
        assert_eq!(service.distribution, Some(TrafficDistribution::SameZone));
        assert_eq!((service.external_traffic, service.internal_traffic), (TrafficPolicy::Local, TrafficPolicy::Local));
        assert!(service.publish_not_ready && !service.allocate_node_ports && service.is_served());
        assert_eq!(service.health_check_node_port, Some(31_000));
    }

    #[test]
    fn a_bare_service_has_the_defaults_of_the_api() {
        let service = service("spec: {clusterIP: 172.30.0.041, ports: [{port: 80}]}");
        assert_eq!(service.kind, ServiceKind::ClusterIp);
        assert_eq!(service.cluster_ips, vec!["172.30.0.41".parse::<IpAddr>().unwrap()]);
        assert_eq!(service.ports[0].target, TargetPort::Number(80));
        assert_eq!((service.selector, service.affinity_seconds, service.source_ranges), (None, None, None));
        assert!(service.allocate_node_ports);
    }

    #[test]
    fn headless_external_name_and_foreign_services_are_not_served() {
        let headless = service("spec: {clusterIP: None, ports: [{port: 80}]}");
        assert!(headless.headless && !headless.is_served());
        let alias = service("spec: {type: ExternalName, clusterIP: 10.96.0.9, ports: [{port: 80}]}");
        assert!(alias.cluster_ips.is_empty() && !alias.is_served());
        let (cluster, _) = cluster_and_problems(
            "{apiVersion: v1, kind: Service, metadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: ''}}, \
             spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}}",
        );
        assert!(!cluster.services[&NamespacedName::new("default", "a")].is_served());
    }

    #[test]
    fn an_empty_selector_is_no_selector() {
        assert_eq!(service("spec: {selector: {}}").selector, None);
        let expected = Labels::from([("app".to_owned(), "x".to_owned())]);
        assert_eq!(service("spec: {selector: {app: x}}").selector, Some(expected));
    }

    #[test]
    fn source_ranges_that_cannot_be_read_still_restrict() {
        let (cluster, problems) = cluster_and_problems(
            "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {type: LoadBalancer, loadBalancerSourceRanges: [nonsense]}}\n---\n\
             {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {type: LoadBalancer, loadBalancerSourceRanges: nonsense}}",
        );
        for name in ["a", "b"] {
            assert_eq!(cluster.services[&NamespacedName::new("default", name)].source_ranges, Some(vec![]), "{name}");
        }
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn a_bad_port_costs_only_itself() {
        let (cluster, problems) = cluster_and_problems(
            "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIPs: [bad, 10.96.0.1, 10.96.0.2], ports: [{port: 0}, \
             {name: x}, {port: 81, targetPort: 70000}, {port: 82, protocol: icmp}, {port: 83}, {port: 83}]}}",
        );
        let service = &cluster.services[&NamespacedName::new("default", "a")];
        assert_eq!(service.ports.iter().map(|p| p.port).collect::<Vec<_>>(), vec![83]);
        assert_eq!(service.cluster_ips, vec!["10.96.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(problems.len(), 7, "{problems:?}");
    }
}
