//! What everything but Services is compiled from, kept to tell whether it is still the same.
//!
//! Owner: the control thread. Invariant: whatever a [`Cluster`] holds is compared here, is compiled with the Services each time, or
//! counts as their stake ([`super::stakes`]). Cost: one comparison of pointers for each object.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Knobs, LocalView};
use crate::model::{Cluster, ClusterNetworkPolicy, EgressGateway, IpPool, Namespace, NetworkPolicy, Node, Pod};

/// The objects and settings of one compilation.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    pods: Vec<Arc<Pod>>,
    others: Arc<Others>,
}

/// All of them but pods.
#[derive(Debug)]
struct Others {
    nodes: Vec<Arc<Node>>,
    namespaces: Vec<Arc<Namespace>>,
    network_policies: Vec<Arc<NetworkPolicy>>,
    cluster_network_policies: Vec<Arc<ClusterNetworkPolicy>>,
    egress_gateways: Vec<Arc<EgressGateway>>,
    ip_pools: Vec<Arc<IpPool>>,
    local: LocalView,
    knobs: Knobs,
}

/// How a cluster differs from the one compiled last.
pub(crate) enum Difference {
    /// A compilation would give the same again.
    None,
    /// These pods have other labels, and nothing else is different that anything here depends on.
    Labels(Vec<Arc<Pod>>),
    /// Anything.
    More,
}

impl Inputs {
    pub fn of(cluster: &Cluster, local: &LocalView, knobs: &Knobs) -> Inputs {
        let others = Others {
            nodes: cluster.nodes.values().cloned().collect(),
            namespaces: cluster.namespaces.values().cloned().collect(),
            network_policies: cluster.network_policies.values().cloned().collect(),
            cluster_network_policies: cluster.cluster_network_policies.values().cloned().collect(),
            egress_gateways: cluster.egress_gateways.values().cloned().collect(),
            ip_pools: cluster.ip_pools.values().cloned().collect(),
            local: local.clone(),
            knobs: knobs.clone(),
        };
        Inputs { pods: cluster.pods.values().cloned().collect(), others: Arc::new(others) }
    }

    /// Those of a cluster that differs in nothing but pods.
    pub fn with_pods_of(&self, cluster: &Cluster) -> Inputs {
        Inputs { pods: cluster.pods.values().cloned().collect(), others: Arc::clone(&self.others) }
    }

    /// How these differ from a cluster and settings.
    pub fn difference(&self, cluster: &Cluster, local: &LocalView, knobs: &Knobs) -> Difference {
        if !self.others.are(cluster, local, knobs) || self.pods.len() != cluster.pods.len() {
            return Difference::More;
        }
        let mut labels = Vec::new();
        for (before, now) in self.pods.iter().zip(cluster.pods.values()) {
            if Arc::ptr_eq(before, now) {
                continue;
            }
            if !is_same_but_for_labels(before, now) {
                return Difference::More;
            }
            if before.labels != now.labels {
                labels.push(Arc::clone(now));
            }
        }
        if labels.is_empty() { Difference::None } else { Difference::Labels(labels) }
    }
}

/// Whether labels are all that differs between two forms of a pod and that anything here depends on. Every field is named,
/// so that a new one is not forgotten.
fn is_same_but_for_labels(a: &Pod, b: &Pod) -> bool {
    let Pod {
        name,
        uid,
        labels: _,
        annotations,
        node,
        // Only whether it has ended.
        phase: _,
        host_network,
        addresses,
        ports,
        // Of endpoints, which say so themselves.
        ready: _,
        terminating: _,
    } = a;
    *name == b.name
        && *uid == b.uid
        && *annotations == b.annotations
        && *node == b.node
        && a.is_finished() == b.is_finished()
        && *host_network == b.host_network
        && *addresses == b.addresses
        && *ports == b.ports
}

impl Others {
    /// Whether a compilation of these would give the same again, pods aside and as long as Services have the same stakes in
    /// it. Every field of a cluster is named, so that a new one is not forgotten.
    fn are(&self, cluster: &Cluster, local: &LocalView, knobs: &Knobs) -> bool {
        let Cluster {
            nodes,
            namespaces,
            pods: _,
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
    }
}

/// The keys need no look: an object's value bears its name.
fn same<K, T: Eq>(before: &[Arc<T>], now: &BTreeMap<K, Arc<T>>) -> bool {
    before.len() == now.len() && before.iter().zip(now.values()).all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
}
