//! Fills in what a real cluster's controllers would have, where a cluster of manifests leaves it out.
//!
//! Owner: the control thread. Filled in: addresses and nodes of pods, cluster addresses and node ports of Services,
//! endpoint slices of Services that have a selector and no slice, load-balancer addresses from pools. Source: the behaviour of the API server's allocators
//! (which keep the low part of a range for addresses written by hand) and of the endpoint slice controller.
//! Invariants: pure; a value depends on the object's own name (a hash, then the next free place), so it stays when
//! unrelated objects come and go, except where two hashes meet; what is written always wins over what is filled in.
//! Cost: linear in the objects, plus the pods each selector selects.

mod balancers;
mod slices;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use self::balancers::Balance;
use self::balancers::balancers;
use self::slices::endpoint_slices;
use super::{
    Cluster, Family, IpFamilyPolicy, Labels, NamespacedName, Node, Phase, Pod, PortRange, Protocol, Service,
    ServiceKind, TrafficPolicy,
};

/// What a cluster without controllers gets its missing values from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standalone {
    /// This node's name: the pods in `leases` run here.
    pub node: String,
    /// Networks that cluster addresses are given from, in order of preference.
    pub service_cidrs: Vec<IpNet>,
    /// Ports that node ports are given from.
    pub node_ports: PortRange,
    /// Addresses that this node's IPAM gave to its pods, also to pods that no manifest names.
    pub leases: BTreeMap<NamespacedName, Vec<IpAddr>>,
}

impl Default for Standalone {
    /// The ranges of the configuration's defaults, and no leases.
    fn default() -> Self {
        let config = crate::config::Config::builtin("");
        Standalone {
            node: String::new(),
            service_cidrs: config.cidrs.services,
            node_ports: config.node_ports,
            leases: BTreeMap::new(),
        }
    }
}

/// A field that could not be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfilled {
    /// The Service.
    pub service: NamespacedName,
    /// Path of the field.
    pub field: &'static str,
    /// What ran out.
    pub why: String,
}

impl Standalone {
    /// Fills in what is missing; gives back what could not be, in order of names.
    pub fn fill(&self, cluster: &mut Cluster) -> Vec<Unfilled> {
        self.pods(cluster);
        let mut unfilled = self.cluster_ips(cluster);
        unfilled.extend(self.node_ports(cluster));
        unfilled.extend(balancers(cluster));
        endpoint_slices(cluster);
        unfilled
    }

    fn pods(&self, cluster: &mut Cluster) {
        for (name, addresses) in &self.leases {
            let pod = cluster.pods.entry(name.clone()).or_insert_with(|| Arc::new(unlisted_pod(name)));
            let pod = Arc::make_mut(pod);
            if pod.addresses.is_empty() && !pod.is_finished() {
                pod.addresses = addresses.clone();
            }
            pod.node.get_or_insert_with(|| self.node.clone());
        }
        let Cluster { pods, nodes, .. } = cluster;
        for pod in pods.values_mut() {
            if pod.node.is_none()
                && let Some(node) = pod.addresses.iter().find_map(|a| node_of(nodes, a))
            {
                Arc::make_mut(pod).node = Some(node.name.clone());
            }
            if pod.host_network
                && pod.addresses.is_empty()
                && !pod.is_finished()
                && let Some(node) = pod.node.as_ref().and_then(|n| nodes.get(n))
            {
                Arc::make_mut(pod).addresses =
                    [Family::V4, Family::V6].into_iter().filter_map(|f| node.internal_ip(f)).collect();
            }
        }
    }

    fn cluster_ips(&self, cluster: &mut Cluster) -> Vec<Unfilled> {
        let mut used: BTreeSet<IpAddr> =
            cluster.services.values().flat_map(|s| s.cluster_ips.iter().copied()).collect();
        let mut unfilled = Vec::new();
        for (name, service) in &mut cluster.services {
            if service.headless || service.kind == ServiceKind::ExternalName {
                continue;
            }
            let families = self.families(service);
            for family in families.iter().copied().filter(|f| service.cluster_ip(*f).is_none()).collect::<Vec<_>>() {
                match self.cluster_ip(name, family, &used) {
                    Some(address) => {
                        used.insert(address);
                        Arc::make_mut(service).cluster_ips.push(address);
                    }
                    None => unfilled.push(Unfilled {
                        service: name.clone(),
                        field: "spec.clusterIPs",
                        why: format!("no free {family} address in {}", self.cidrs_text(family)),
                    }),
                }
            }
            let rank = |a: &IpAddr| families.iter().position(|f| *f == Family::of(a));
            if !service.cluster_ips.is_sorted_by_key(rank) {
                Arc::make_mut(service).cluster_ips.sort_by_key(rank);
            }
        }
        unfilled
    }

    /// The families a Service has addresses of, in its order.
    fn families(&self, service: &Service) -> Vec<Family> {
        let mut families = service.ip_families.clone();
        let given = service.cluster_ips.iter().map(Family::of);
        let offered: Vec<Family> = self.service_cidrs.iter().map(Family::of_net).collect();
        let dual = matches!(
            service.ip_family_policy,
            Some(IpFamilyPolicy::PreferDualStack | IpFamilyPolicy::RequireDualStack)
        );
        let wanted = match families.is_empty() && service.cluster_ips.is_empty() {
            _ if dual => offered,
            true => offered.into_iter().take(1).collect(),
            false => Vec::new(),
        };
        for family in given.chain(wanted) {
            if !families.contains(&family) {
                families.push(family);
            }
        }
        families
    }

    fn cluster_ip(&self, name: &NamespacedName, family: Family, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let hash = hash(&format!("{name}/{family}"));
        self.service_cidrs.iter().filter(|n| Family::of_net(n) == family).find_map(|net| {
            // The network itself and the last address are never given; IPv6 ranges are used up to 2^32 addresses.
            let host_bits = net.max_prefix_len() - net.prefix_len();
            let last = (1u64 << host_bits.min(32)).saturating_sub(2);
            let kept = ((last + 2) / 16).clamp(16, 256);
            probe(hash, 1, last, kept, |offset| {
                let address = add(net.network(), offset);
                (!used.contains(&address)).then_some(address)
            })
        })
    }

    fn cidrs_text(&self, family: Family) -> String {
        let cidrs: Vec<String> =
            self.service_cidrs.iter().filter(|n| Family::of_net(n) == family).map(IpNet::to_string).collect();
        if cidrs.is_empty() { "the service networks (none of that family)".to_owned() } else { cidrs.join(", ") }
    }

    fn node_ports(&self, cluster: &mut Cluster) -> Vec<Unfilled> {
        let mut used: BTreeSet<(Protocol, u16)> = BTreeSet::new();
        for service in cluster.services.values() {
            used.extend(service.ports.iter().filter_map(|p| p.node_port.map(|n| (p.protocol, n))));
            used.extend(service.health_check_node_port.map(|p| (Protocol::Tcp, p)));
        }
        let mut unfilled = Vec::new();
        let mut give = |name: &NamespacedName, field, protocol: Protocol, key: String| {
            let range = self.node_ports;
            let kept = u64::from(range.count() / 32).clamp(16, 128);
            let port = probe(hash(&key), range.first().into(), range.last().into(), kept, |port| {
                let port = u16::try_from(port).ok()?;
                (!used.contains(&(protocol, port))).then_some(port)
            });
            match port {
                Some(port) => drop(used.insert((protocol, port))),
                None => unfilled.push(Unfilled {
                    service: name.clone(),
                    field,
                    why: format!("no free {protocol} port in {range}"),
                }),
            }
            port
        };
        for (name, service) in &mut cluster.services {
            let wants_ports = match service.kind {
                ServiceKind::NodePort => true,
                ServiceKind::LoadBalancer => service.allocate_node_ports,
                ServiceKind::ClusterIp | ServiceKind::ExternalName => false,
            };
            if wants_ports && service.ports.iter().any(|p| p.node_port.is_none()) {
                for port in Arc::make_mut(service).ports.iter_mut().filter(|p| p.node_port.is_none()) {
                    let key = format!("{name}/{}/{}/{}", port.name, port.protocol, port.port);
                    port.node_port = give(name, "spec.ports.nodePort", port.protocol, key);
                }
            }
            let checked = service.kind == ServiceKind::LoadBalancer && service.external_traffic == TrafficPolicy::Local;
            if checked && service.health_check_node_port.is_none() {
                let key = format!("{name}/healthCheck");
                Arc::make_mut(service).health_check_node_port =
                    give(name, "spec.healthCheckNodePort", Protocol::Tcp, key);
            }
        }
        unfilled
    }
}

/// A pod that was added by hand and that no manifest names.
fn unlisted_pod(name: &NamespacedName) -> Pod {
    Pod {
        name: name.clone(),
        uid: String::new(),
        labels: Labels::new(),
        annotations: Labels::new(),
        node: None,
        phase: Phase::Unset,
        host_network: false,
        addresses: Vec::new(),
        ports: Vec::new(),
        ready: None,
        terminating: false,
    }
}

fn node_of<'a>(nodes: &'a BTreeMap<String, Arc<Node>>, address: &IpAddr) -> Option<&'a Arc<Node>> {
    nodes.values().find(|n| n.pod_cidrs.iter().any(|c| c.contains(address)))
}

/// The first free place from `hash` on, above the `kept` places at the start of `first..=last`; those come last.
fn probe<T>(hash: u64, first: u64, last: u64, kept: u64, free: impl Fn(u64) -> Option<T>) -> Option<T> {
    if last < first {
        return None;
    }
    let count = last - first + 1;
    let kept = if kept < count { kept } else { 0 };
    let open = count - kept;
    let start = hash % open;
    let above = (0..open).map(|i| first + kept + (start + i) % open);
    above.chain(first..first + kept).find_map(free)
}

/// FNV-1a with a final mix: the same on every machine and in every version, unlike the standard library's hasher.
fn hash(text: &str) -> u64 {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

fn add(network: IpAddr, offset: u64) -> IpAddr {
    match network {
        IpAddr::V4(a) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            IpAddr::from(u32::from(a).wrapping_add(offset).to_be_bytes())
        }
        IpAddr::V6(a) => IpAddr::from(u128::from(a).wrapping_add(offset.into()).to_be_bytes()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::import::tests::yaml;
    use crate::import::{Defaults, Invalid};

    fn build(standalone: Standalone, text: &str) -> (Cluster, Vec<Invalid>) {
        Cluster::build(&yaml(text), &Defaults { standalone: Some(standalone) })
    }

    /// The filled-in cluster of a YAML text, which must be valid.
    pub(crate) fn filled(text: &str) -> Cluster {
        let (cluster, invalid) = build(Standalone::default(), text);
        assert_eq!(invalid, vec![]);
        cluster
    }

    fn service<'a>(cluster: &'a Cluster, name: &str) -> &'a Service {
        &cluster.services[&NamespacedName::new("default", name)]
    }

    fn web(name: &str, spec: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ports: [{{port: 80}}]{spec}}}}}\n---\n"
        )
    }

    #[test]
    fn cluster_addresses_follow_families_and_policy() {
        let text = [
            web("one", ""),
            web("six", ", ipFamilies: [IPv6]"),
            web("two", ", ipFamilyPolicy: PreferDualStack"),
            web("owt", ", ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6]"),
            web("both", ", ipFamilies: [IPv6, IPv4]"),
            web("half", ", clusterIP: 10.96.0.50, ipFamilyPolicy: PreferDualStack"),
            web("given", ", clusterIP: 10.96.0.51"),
            web("none", ", clusterIP: None"),
        ]
        .concat();
        let cluster = filled(&text);
        let families = |name| service(&cluster, name).cluster_ips.iter().map(Family::of).collect::<Vec<_>>();
        assert_eq!(families("one"), [Family::V4]);
        assert_eq!(families("six"), [Family::V6]);
        assert_eq!(families("two"), [Family::V4, Family::V6]);
        assert_eq!(families("owt"), [Family::V6, Family::V4]);
        assert_eq!(families("both"), [Family::V6, Family::V4]);
        assert_eq!(families("half"), [Family::V4, Family::V6]);
        assert_eq!(families("given"), [Family::V4]);
        assert_eq!(families("none"), []);
        assert_eq!(service(&cluster, "half").cluster_ips[0].to_string(), "10.96.0.50");
        for service in cluster.services.values() {
            for address in &service.cluster_ips {
                assert!(Standalone::default().service_cidrs.iter().any(|n| n.contains(address)), "{address}");
            }
        }
    }

    #[test]
    fn unrelated_objects_do_not_move_what_was_filled_in() {
        let few = filled(&[web("a", ", type: NodePort"), web("b", ", type: NodePort")].concat());
        let more = (0..40).map(|i| web(&format!("x{i}"), ", type: NodePort")).collect::<String>();
        let many = filled(&[more, web("b", ", type: NodePort"), web("a", ", type: NodePort")].concat());
        for name in ["a", "b"] {
            assert_eq!(service(&few, name), service(&many, name));
        }
        let addresses: BTreeSet<_> = many.services.values().flat_map(|s| s.cluster_ips.clone()).collect();
        assert_eq!(addresses.len(), 42, "no address twice");
    }

    #[test]
    fn what_is_written_wins_over_what_is_filled_in() {
        let alone = filled(&web("a", ", type: NodePort"));
        let address = service(&alone, "a").cluster_ips[0];
        let port = service(&alone, "a").ports[0].node_port.unwrap();
        let taken = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: z}}, spec: {{type: NodePort, clusterIP: {address}, ports: [{{port: 1, nodePort: {port}}}]}}}}"
        );
        let both = filled(&[web("a", ", type: NodePort"), taken].concat());
        assert_ne!(service(&both, "a").cluster_ips[0], address);
        assert_ne!(service(&both, "a").ports[0].node_port, Some(port));
    }

    #[test]
    fn a_full_range_is_used_to_the_last_and_then_reported() {
        let standalone = Standalone {
            service_cidrs: vec!["10.96.0.0/29".parse().unwrap()],
            node_ports: PortRange::new(30_000, 30_001).unwrap(),
            ..Standalone::default()
        };
        let text: String = (0..7).map(|i| web(&format!("s{i}"), "")).collect();
        let (cluster, invalid) = build(standalone.clone(), &text);
        let addresses: BTreeSet<String> =
            cluster.services.values().flat_map(|s| s.cluster_ips.iter().map(IpAddr::to_string)).collect();
        assert_eq!(addresses.len(), 6, "never the network, never the last address: {addresses:?}");
        assert_eq!(invalid.len(), 1);
        assert_eq!(invalid[0].field, "spec.clusterIPs");
        assert!(invalid[0].why.contains("10.96.0.0/29"));
        let text: String = (0..3).map(|i| web(&format!("s{i}"), ", type: NodePort, clusterIP: 10.96.0.1")).collect();
        let (_, invalid) = build(standalone, &text);
        assert_eq!(invalid[0].why, "no free TCP port in 30000-30001");
    }

    #[test]
    fn node_ports_are_given_where_the_type_has_them() {
        let cluster = filled(
            &[
                web("cluster", ""),
                web("node", ", type: NodePort"),
                web("balanced", ", type: LoadBalancer, externalTrafficPolicy: Local"),
                web("bare", ", type: LoadBalancer, allocateLoadBalancerNodePorts: false"),
            ]
            .concat(),
        );
        let port = |name| service(&cluster, name).ports[0].node_port;
        assert_eq!((port("cluster"), port("bare")), (None, None));
        assert!((30_086..=32_767).contains(&port("node").unwrap()));
        assert!(port("balanced").is_some());
        assert!(service(&cluster, "balanced").health_check_node_port.is_some());
        assert_eq!(service(&cluster, "bare").health_check_node_port, None);
    }

    #[test]
    fn leases_give_pods_their_addresses_and_make_pods_of_strangers() {
        let (listed, stranger) = (NamespacedName::new("default", "a"), NamespacedName::new("lab", "x"));
        let address: IpAddr = "10.244.1.20".parse().unwrap();
        let standalone = Standalone {
            node: "n1".into(),
            leases: [(listed.clone(), vec![address]), (stranger.clone(), vec!["10.244.1.21".parse().unwrap()])].into(),
            ..Standalone::default()
        };
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a, labels: {{app: web}}}}}}\n---\n{}",
            web("web", ", selector: {app: web}")
        );
        let (cluster, _) = build(standalone, &text);
        assert_eq!(cluster.pods[&listed].addresses, [address]);
        assert_eq!(cluster.pods[&listed].node.as_deref(), Some("n1"));
        assert!(cluster.pods[&stranger].labels.is_empty());
        assert!(cluster.namespaces.contains_key("lab"));
        let web = NamespacedName::new("default", "web");
        let endpoints: Vec<IpAddr> =
            cluster.slices_of(&web).flat_map(|s| s.endpoints.iter().map(|e| e.addresses[0])).collect();
        assert_eq!(endpoints, [address]);
    }

    #[test]
    fn host_network_pods_have_the_addresses_of_their_node() {
        let cluster = filled(
            "{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}\n---\n\
             {apiVersion: v1, kind: Pod, metadata: {name: h}, spec: {hostNetwork: true, nodeName: n1}}",
        );
        let pod = &cluster.pods[&NamespacedName::new("default", "h")];
        assert_eq!(pod.address(Family::V4), Some("192.0.2.1".parse().unwrap()));
    }
}
