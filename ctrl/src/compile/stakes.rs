//! What Services have to do with addresses that move between nodes, kept to tell whether a change of one concerns them.
//!
//! Owner: the control thread. A Service has a stake if one of its addresses is an egress address too, or if a load-balancer
//! address of its lies in an IPPool with `use: services`; with `externalTrafficPolicy: Local` where its endpoints are is part of
//! it. Invariant: with equal nodes, pods, gateways, pools and stakes, everything but Services compiles to the same. Cost: one
//! walk over all Services where there is a gateway or such a pool; then, for a change, the Services that changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hashbrown::HashSet;
use ipnet::IpNet;

use crate::model::{Cluster, Endpoint, NamespacedName, PoolUse, Service, ServiceKind, TrafficPolicy};

/// Where an endpoint is, as its slice says it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Whereabouts {
    /// On a node.
    Node(String),
    /// Wherever this pod is.
    Pod(NamespacedName),
}

/// One Service's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stake {
    /// Its addresses that an EgressGateway would leave with.
    pub taken: BTreeSet<IpAddr>,
    /// Its load-balancer addresses out of our pools.
    pub balanced: BTreeSet<IpAddr>,
    /// `externalTrafficPolicy: Local`: where its endpoints are.
    pub local: Option<BTreeSet<Whereabouts>>,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stakes {
    egress: BTreeSet<IpAddr>,
    pools: Vec<IpNet>,
    nodes: BTreeSet<IpAddr>,
    all: BTreeMap<NamespacedName, Stake>,
}

impl Stakes {
    pub fn of(cluster: &Cluster) -> Stakes {
        let pools = cluster.ip_pools.values().filter(|pool| pool.usage == PoolUse::Services);
        let mut stakes = Stakes {
            egress: cluster.egress_gateways.values().flat_map(|g| g.egress_ips.iter().copied()).collect(),
            pools: pools.flat_map(|pool| pool.cidrs.iter().copied()).collect(),
            nodes: cluster.nodes.values().flat_map(|n| n.internal_ips.iter().copied()).collect(),
            all: BTreeMap::new(),
        };
        if !stakes.egress.is_empty() || !stakes.pools.is_empty() {
            let all = cluster.services.keys().filter_map(|name| Some((name.clone(), stakes.one(cluster, name)?)));
            stakes.all = all.collect();
        }
        stakes
    }

    /// By name of the Service; those without a stake are left out.
    pub fn iter(&self) -> impl Iterator<Item = (&NamespacedName, &Stake)> {
        self.all.iter()
    }

    /// Whether they are still the same after these Services, or slices of theirs, have changed.
    pub fn stand(&self, cluster: &Cluster, changed: &HashSet<NamespacedName>) -> bool {
        self.egress.is_empty() && self.pools.is_empty()
            || changed.iter().all(|name| self.one(cluster, name).as_ref() == self.all.get(name))
    }

    fn one(&self, cluster: &Cluster, name: &NamespacedName) -> Option<Stake> {
        let service = cluster.services.get(name).filter(|service| service.is_served())?;
        let addresses = service.cluster_ips.iter().copied();
        let addresses = addresses.chain(service.load_balancer.iter().map(|a| a.ip));
        let addresses = addresses.chain(service.external_ips.iter().copied());
        let taken: BTreeSet<IpAddr> = addresses.filter(|ip| self.egress.contains(ip)).collect();
        let mut balanced = BTreeSet::new();
        if service.kind == ServiceKind::LoadBalancer {
            let ours = service.load_balancer.iter().filter(|a| !a.proxied && !self.nodes.contains(&a.ip));
            balanced = ours.map(|a| a.ip).filter(|ip| self.pools.iter().any(|net| net.contains(ip))).collect();
        }
        if taken.is_empty() && balanced.is_empty() {
            return None;
        }
        let asks_where = !balanced.is_empty() && service.external_traffic == TrafficPolicy::Local;
        Some(Stake { taken, balanced, local: asks_where.then(|| endpoints(cluster, service)) })
    }
}

/// Where the endpoints of a Service are to which traffic may be sent.
fn endpoints(cluster: &Cluster, service: &Service) -> BTreeSet<Whereabouts> {
    let ready = |e: &&Endpoint| e.ready || service.publish_not_ready || e.serving && e.terminating;
    let slices = cluster.slices_of(&service.name).filter(|slice| slice.is_served());
    let all = slices.flat_map(|slice| &slice.endpoints).filter(ready);
    all.filter_map(|e| match (&e.node, &e.pod) {
        (Some(node), _) => Some(Whereabouts::Node(node.clone())),
        (None, pod) => pod.clone().map(Whereabouts::Pod),
    })
    .collect()
}
