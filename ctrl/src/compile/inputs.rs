//! What everything but Services is compiled from, kept to tell whether it is still the same.
//!
//! Owner: the control thread. Invariant: whatever a [`Cluster`] holds is compared here, is compiled with the Services each time, or
//! counts as their stake ([`super::stakes`]). Cost: one comparison of pointers for each object.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Knobs, LocalView};
use crate::model::{Cluster, ClusterNetworkPolicy, EgressGateway, IpPool, Namespace, NetworkPolicy, Node, Pod};

/// The objects and settings of one compilation.
#[derive(Debug)]
pub(crate) struct Inputs {
    nodes: Vec<Arc<Node>>,
    namespaces: Vec<Arc<Namespace>>,
    pods: Vec<Arc<Pod>>,
    network_policies: Vec<Arc<NetworkPolicy>>,
    cluster_network_policies: Vec<Arc<ClusterNetworkPolicy>>,
    egress_gateways: Vec<Arc<EgressGateway>>,
    ip_pools: Vec<Arc<IpPool>>,
    local: LocalView,
    knobs: Knobs,
}

impl Inputs {
    pub fn of(cluster: &Cluster, local: &LocalView, knobs: &Knobs) -> Inputs {
        Inputs {
            nodes: cluster.nodes.values().cloned().collect(),
            namespaces: cluster.namespaces.values().cloned().collect(),
            pods: cluster.pods.values().cloned().collect(),
            network_policies: cluster.network_policies.values().cloned().collect(),
            cluster_network_policies: cluster.cluster_network_policies.values().cloned().collect(),
            egress_gateways: cluster.egress_gateways.values().cloned().collect(),
            ip_pools: cluster.ip_pools.values().cloned().collect(),
            local: local.clone(),
            knobs: knobs.clone(),
        }
    }

    /// Whether a compilation of these would give the same again, as long as Services have the same stakes in it. Every field of a cluster is named, so that a new one is
    /// not forgotten.
    pub fn are(&self, cluster: &Cluster, local: &LocalView, knobs: &Knobs) -> bool {
        let Cluster {
            nodes,
            namespaces,
            pods,
            services: _,
            endpoint_slices: _,
            network_policies,
            cluster_network_policies,
            egress_gateways,
            ip_pools,
        } = cluster;
        same(&self.nodes, nodes)
            && same(&self.namespaces, namespaces)
            && same(&self.network_policies, network_policies)
            && same(&self.cluster_network_policies, cluster_network_policies)
            && same(&self.egress_gateways, egress_gateways)
            && same(&self.ip_pools, ip_pools)
            && self.local == *local
            && self.knobs == *knobs
            && same(&self.pods, pods)
    }
}

/// The keys need no look: an object's value bears its name.
fn same<K, T: Eq>(before: &[Arc<T>], now: &BTreeMap<K, Arc<T>>) -> bool {
    before.len() == now.len() && before.iter().zip(now.values()).all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
}
