//! A Service: its addresses and ports, and the rules by which an endpoint is chosen.
//!
//! Owner: the control thread. Source: core/v1 `Service`. Endpoints come from `EndpointSlice`s.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Family, Labels, NamespacedName, Protocol};

/// The annotation by which backends on other nodes answer clients outside by themselves, `"true"` or `"false"`.
pub const DIRECT_RETURN_ANNOTATION: &str = "sluicegate.dev/direct-return";
/// The label that hands a Service to another proxy: present with any value, we leave the Service alone.
pub const SERVICE_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Session affinity lasts this long where the Service gives no timeout, in seconds.
pub const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServiceKind {
    /// Reached by its cluster addresses only.
    ClusterIp,
    /// Also on a port of the nodes.
    NodePort,
    /// Also on addresses of a load balancer.
    LoadBalancer,
    /// A DNS alias; nothing to program.
    ExternalName,
}

/// `spec.ipFamilyPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpFamilyPolicy {
    /// One family.
    SingleStack,
    /// Two where the cluster has two.
    PreferDualStack,
    /// Two.
    RequireDualStack,
}

/// `spec.externalTrafficPolicy` and `spec.internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Endpoints of this node only.
    Local,
}

/// `spec.trafficDistribution`; the hints in the slices are what a node acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrafficDistribution {
    /// `PreferClose` or `PreferSameZone`.
    SameZone,
    /// `PreferSameNode`.
    SameNode,
}

/// Which port of an endpoint a Service port leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetPort {
    /// The same number on every endpoint.
    Number(u16),
    /// The container port of this name, resolved per pod.
    Name(String),
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Empty where the Service has a single, unnamed port; slices refer to it by this name.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port on the Service's addresses.
    pub port: u16,
    /// The port on the endpoints.
    pub target: TargetPort,
    /// The port on the nodes.
    pub node_port: Option<u16>,
    /// `appProtocol`, kept for display.
    pub app_protocol: Option<String>,
}

/// One entry of `status.loadBalancer.ingress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoadBalancerAddress {
    /// The load balancer's address.
    pub ip: IpAddr,
    /// `ipMode: Proxy`: packets must travel to the real load balancer, so the address is not programmed.
    pub proxied: bool,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// `clusterIP: None`: no virtual address at all.
    pub headless: bool,
    /// `spec.clusterIPs`, else `spec.clusterIP`; at most one of each family. Empty for headless and ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.ipFamilies` as written.
    pub ip_families: Vec<Family>,
    /// `spec.ipFamilyPolicy` as written.
    pub ip_family_policy: Option<IpFamilyPolicy>,
    /// The ports, in their order.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`; none where it is missing or empty, then endpoints come from elsewhere.
    pub selector: Option<Labels>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of the load balancer.
    pub load_balancer: Vec<LoadBalancerAddress>,
    /// `spec.loadBalancerClass`: whose business the load balancer is.
    pub load_balancer_class: Option<String>,
    /// `spec.loadBalancerSourceRanges`: none means every source; some means only these, also when the list is empty
    /// because no entry could be understood.
    pub source_ranges: Option<Vec<IpNet>>,
    /// `spec.externalTrafficPolicy`.
    pub external_traffic: TrafficPolicy,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic: TrafficPolicy,
    /// `sessionAffinity: ClientIP` with its timeout in seconds.
    pub affinity_seconds: Option<u32>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.allocateLoadBalancerNodePorts`, true unless the Service says no.
    pub allocate_node_ports: bool,
    /// `spec.healthCheckNodePort`, where there is one.
    pub health_check_node_port: Option<u16>,
    /// `spec.trafficDistribution`.
    pub distribution: Option<TrafficDistribution>,
    /// [`DIRECT_RETURN_ANNOTATION`]: backends answer clients outside by themselves.
    pub direct_return: bool,
    /// [`SERVICE_PROXY_LABEL`] is present: another proxy's business.
    pub other_proxy: bool,
}

impl Service {
    /// True when this Service is programmed: it has a virtual address, and no other proxy claims it.
    pub fn is_served(&self) -> bool {
        !self.headless
            && self.kind != ServiceKind::ExternalName
            && !self.other_proxy
            && !self.cluster_ips.is_empty()
            && !self.ports.is_empty()
    }

    /// True where a load balancer's address is ours to give: no class, or one of ours.
    pub fn is_balanced_here(&self) -> bool {
        self.kind == ServiceKind::LoadBalancer
            && self.is_served()
            && self.load_balancer_class.as_ref().is_none_or(|class| class.starts_with("sluicegate.dev/"))
    }

    /// The cluster address of a family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|a| Family::of(a) == family)
    }

    /// True where the Service can be reached from outside the cluster, so that `externalTrafficPolicy` counts.
    pub fn is_external(&self) -> bool {
        matches!(self.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer) || !self.external_ips.is_empty()
    }
}
