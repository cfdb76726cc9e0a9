//! Plain typed values of a cluster: what the compiler reads, with no Kubernetes JSON past this line.
//!
//! Owner: the control thread. Built by `crate::import` from an object set, completed by [`standalone`] where no
//! cluster controllers run. Invariants: every map is ordered by name, so equal objects in any order of events give
//! equal values; every value stands for something the packet path can hold (ports in range, networks without host bits).
//! Values sit behind `Arc`, so that a cluster can be kept and compared with its successor cheaply.

pub mod cluster_network_policy;
pub mod egress_gateway;
pub mod endpoint_slice;
pub mod ip_pool;
pub mod namespace;
pub mod network_policy;
pub mod node;
pub mod pod;
pub mod port;
pub mod quantity;
pub mod selector;
pub mod service;
pub mod standalone;

pub use cluster_network_policy::{ClusterNetworkPolicy, ClusterPeer, ClusterRule, RuleAction, Subject, Tier};
pub use egress_gateway::EgressGateway;
pub use endpoint_slice::{Endpoint, EndpointPort, EndpointSlice};
pub use ip_pool::{IpPool, PoolUse};
pub use namespace::Namespace;
pub use network_policy::{IpBlock, NamespaceScope, NetworkPolicy, Peer, PolicyRule};
pub use node::Node;
pub use pod::{ContainerPort, Phase, Pod};
pub use port::{Family, PortMatch, PortRange, Protocol};
pub use selector::{Labels, Requirement, Selector};
pub use service::{
    IpFamilyPolicy, LoadBalancerAddress, Service, ServiceKind, ServicePort, TargetPort, TrafficDistribution,
    TrafficPolicy,
};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The name of an object that lives in a namespace; orders by namespace first and prints as `ns/name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl NamespacedName {
    /// Joins a namespace and a name.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        NamespacedName { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which directions of a policy were not understood and therefore allow nothing (law 6: fail closed).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FailClosed {
    /// Traffic towards the selected pods is denied.
    pub ingress: bool,
    /// Traffic from the selected pods is denied.
    pub egress: bool,
}

impl FailClosed {
    /// True when at least one direction failed closed.
    pub fn any(self) -> bool {
        self.ingress || self.egress
    }
}

/// Everything the compiler knows about the cluster, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cluster {
    /// Nodes, by name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// Namespaces, also those that only their objects speak of.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// Pods, finished ones included (they own no address).
    pub pods: BTreeMap<NamespacedName, Arc<Pod>>,
    /// Services of every type, also those that are not programmed ([`Service::is_served`]).
    pub services: BTreeMap<NamespacedName, Arc<Service>>,
    /// Endpoint slices, given and derived.
    pub endpoint_slices: BTreeMap<NamespacedName, Arc<EndpointSlice>>,
    /// NetworkPolicies, those that failed closed included.
    pub network_policies: BTreeMap<NamespacedName, Arc<NetworkPolicy>>,
    /// ClusterNetworkPolicies, those that failed closed included.
    pub cluster_network_policies: BTreeMap<String, Arc<ClusterNetworkPolicy>>,
    /// Egress gateways, those that failed closed included.
    pub egress_gateways: BTreeMap<String, Arc<EgressGateway>>,
    /// Address pools.
    pub ip_pools: BTreeMap<String, Arc<IpPool>>,
}

impl Cluster {
    /// The labels of a namespace; every namespace an object of the cluster lives in is known.
    pub fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.namespaces.get(namespace).map(|n| &n.labels)
    }

    /// The endpoint slices that belong to a Service: same namespace, and labelled with its name.
    pub fn slices_of<'a>(&'a self, service: &'a NamespacedName) -> impl Iterator<Item = &'a Arc<EndpointSlice>> + 'a {
        let from = NamespacedName::new(service.namespace.clone(), "");
        self.endpoint_slices
            .range(from..)
            .map(|(_, slice)| slice)
            .take_while(|slice| slice.name.namespace == service.namespace)
            .filter(|slice| slice.service.as_deref() == Some(service.name.as_str()))
    }
}
