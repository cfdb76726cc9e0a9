//! Which addresses move between nodes, who may carry each, and who carries it now.
//!
//! Owner: the control thread. Egress addresses may be carried by the gateway's nodes. A load-balancer address may be carried
//! by every node that runs this agent, and by those alone that have a ready endpoint where a Service on it says
//! `externalTrafficPolicy: Local`; it is ours to announce if an IPPool with `use: services` holds it, else somebody else's
//! (MetalLB's, a cloud's). Who carries an address now is the election's to say ([`crate::carriers`]); without one (a replay)
//! it is the best node that is not known to be unready.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Context, Finding};
use crate::carriers::Placement;
use crate::model::{EgressGateway, Endpoint, Node, PoolUse, Service, ServiceKind, TrafficPolicy};

/// What this generation's objects say of addresses that move.
pub(crate) struct Moving {
    pub placement: Placement,
    /// Addresses of each gateway that it may use.
    pub egress: BTreeMap<String, Vec<IpAddr>>,
    carried: BTreeMap<IpAddr, String>,
}

impl Moving {
    /// The node that carries an address now.
    pub fn carrier(&self, address: IpAddr) -> Option<&str> {
        self.carried.get(&address).map(String::as_str)
    }

    /// All that a node carries now.
    pub fn carried_by<'a>(&'a self, node: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
        self.carried.iter().filter(move |(_, carrier)| *carrier == node).map(|(address, _)| *address)
    }
}

pub(crate) fn compile(context: &Context<'_>, invalid: &mut BTreeSet<Finding>) -> Moving {
    let mut placement = Placement::default();
    let egress = gateways(context, &mut placement, invalid);
    balancers(context, &mut placement);
    let carried = placement.iter().filter_map(|(address, nodes)| Some((address, now(context, address, nodes)?)));
    Moving { carried: carried.collect(), egress, placement }
}

/// Who carries an address, of the nodes that may.
fn now(context: &Context<'_>, address: IpAddr, nodes: &[String]) -> Option<String> {
    let unready = |name: &&String| context.cluster.nodes.get(*name).is_some_and(|n| n.ready == Some(false));
    let best = nodes.iter().find(|name| !unready(name)).or(nodes.first())?;
    let Some(outcome) = &context.local.carriers else { return Some(best.clone()) };
    match outcome.carried.get(&address) {
        Some(carried) => carried.node.clone().filter(|node| nodes.contains(node)),
        // The election has not heard of it yet: others may know better than we whether it is ours.
        None => Some(best.clone()).filter(|best| *best != context.node.name),
    }
}

/// Egress addresses, by gateway; an address belongs to the first gateway by name that lists it.
fn gateways(
    context: &Context<'_>,
    placement: &mut Placement,
    invalid: &mut BTreeSet<Finding>,
) -> BTreeMap<String, Vec<IpAddr>> {
    let owners = Owners::of(context);
    let mut deciders: BTreeMap<IpAddr, &EgressGateway> = BTreeMap::new();
    let mut usable = BTreeMap::new();
    for gateway in context.cluster.egress_gateways.values() {
        let mut report = |field, why| {
            invalid.insert(Finding { kind: "EgressGateway", name: gateway.name.clone(), field, why });
        };
        let selected = |n: &&Node| !gateway.fail_closed && gateway.gateway_nodes.matches(&n.labels);
        let nodes: Vec<&Node> = context.cluster.nodes.values().map(Arc::as_ref).filter(selected).collect();
        let names: Vec<&str> = nodes.iter().map(|n| n.name.as_str()).collect();
        if nodes.is_empty() && !gateway.fail_closed {
            report("spec.gatewayNodes", "selects no node; what this gateway selects is dropped".to_owned());
        }
        let mut good = Vec::new();
        for address in &gateway.egress_ips {
            match owners.of_address(*address) {
                Some(Owner::Node(node)) if names.contains(&node) => {
                    // A node's own address stays on that node.
                    placement.deal(&[*address], &[node]);
                }
                Some(owner) => {
                    report("spec.egressIPs", format!("{address} is {owner}; nothing leaves with it"));
                    continue;
                }
                None => {}
            }
            let first = *deciders.entry(*address).or_insert(gateway);
            if first.name != gateway.name
                && !placement.nodes(*address).iter().any(|node| names.contains(&node.as_str()))
                && !nodes.is_empty()
            {
                let why = format!(
                    "{address} is carried by a node of EgressGateway {} and of no node of this one",
                    first.name
                );
                report("spec.egressIPs", why);
            }
            good.push(*address);
        }
        let own: Vec<IpAddr> = good.iter().copied().filter(|a| deciders[a].name == gateway.name).collect();
        placement.deal(&own, &names);
        usable.insert(gateway.name.clone(), good);
    }
    usable
}

/// Who else has an address.
struct Owners<'a> {
    nodes: BTreeMap<IpAddr, &'a str>,
    pods: BTreeMap<IpAddr, String>,
    services: BTreeMap<IpAddr, String>,
    ranges: Vec<ipnet::IpNet>,
}

enum Owner<'a> {
    Node(&'a str),
    Pod(&'a str),
    Service(&'a str),
    Range(ipnet::IpNet),
}

impl std::fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Owner::Node(name) => write!(f, "the address of node {name}, which is no node of this gateway"),
            Owner::Pod(name) => write!(f, "the address of pod {name}"),
            Owner::Service(name) => write!(f, "an address of Service {name}"),
            Owner::Range(net) => write!(f, "in {net}, which is the cluster's own"),
        }
    }
}

impl<'a> Owners<'a> {
    fn of(context: &Context<'a>) -> Self {
        if context.cluster.egress_gateways.is_empty() {
            return Owners {
                nodes: BTreeMap::new(),
                pods: BTreeMap::new(),
                services: BTreeMap::new(),
                ranges: Vec::new(),
            };
        }
        let cluster = context.cluster;
        let nodes = cluster.nodes.values().flat_map(|n| n.internal_ips.iter().map(|ip| (*ip, n.name.as_str())));
        let pods = context.directory.pods.values();
        let pods = pods.flat_map(|known| known.addresses.iter().map(|ip| (*ip, known.name.to_string())));
        let served = cluster.services.values().filter(|service| service.is_served());
        let services = served.flat_map(|service| {
            let balanced = service.load_balancer.iter().map(|a| a.ip);
            let all = service.cluster_ips.iter().copied().chain(balanced).chain(service.external_ips.iter().copied());
            all.map(|ip| (ip, service.name.to_string())).collect::<Vec<_>>()
        });
        let ranges = context.knobs.pod_ranges.iter().chain(&context.knobs.service_ranges).copied();
        Owners { nodes: nodes.collect(), pods: pods.collect(), services: services.collect(), ranges: ranges.collect() }
    }

    fn of_address(&self, address: IpAddr) -> Option<Owner<'_>> {
        if let Some(node) = self.nodes.get(&address) {
            return Some(Owner::Node(node));
        }
        if let Some(pod) = self.pods.get(&address) {
            return Some(Owner::Pod(pod));
        }
        if let Some(service) = self.services.get(&address) {
            return Some(Owner::Service(service));
        }
        self.ranges.iter().find(|net| net.contains(&address)).map(|net| Owner::Range(*net))
    }
}

/// Load-balancer addresses out of our pools.
fn balancers(context: &Context<'_>, placement: &mut Placement) {
    let pools = context.cluster.ip_pools.values().filter(|pool| pool.usage == PoolUse::Services);
    let nets: Vec<ipnet::IpNet> = pools.flat_map(|pool| pool.cidrs.iter().copied()).collect();
    if nets.is_empty() {
        return;
    }
    let all: BTreeSet<&str> =
        context.cluster.nodes.values().filter(|n| n.vtep_mac.is_none()).map(|n| n.name.as_str()).collect();
    let nodes_of: BTreeSet<IpAddr> = context.cluster.nodes.values().flat_map(|n| n.internal_ips.clone()).collect();
    let mut local: BTreeMap<IpAddr, Vec<BTreeSet<&str>>> = BTreeMap::new();
    for service in context.cluster.services.values().filter(|s| s.is_served() && s.kind == ServiceKind::LoadBalancer) {
        for address in service.load_balancer.iter().filter(|a| !a.proxied && !nodes_of.contains(&a.ip)) {
            if !nets.iter().any(|net| net.contains(&address.ip)) {
                continue;
            }
            let asked = local.entry(address.ip).or_default();
            if service.external_traffic == TrafficPolicy::Local {
                asked.push(nodes_with_endpoints(context, service).intersection(&all).copied().collect());
            }
        }
    }
    let anywhere: Vec<IpAddr> = local.iter().filter(|(_, asked)| asked.is_empty()).map(|(ip, _)| *ip).collect();
    placement.deal(&anywhere, &all.iter().copied().collect::<Vec<_>>());
    for (address, asked) in local.iter().filter(|(_, asked)| !asked.is_empty()) {
        let common = asked.iter().skip(1).fold(asked[0].clone(), |all, one| all.intersection(one).copied().collect());
        let nodes = if common.is_empty() { asked.iter().flatten().copied().collect() } else { common };
        placement.deal(&[*address], &nodes.into_iter().collect::<Vec<_>>());
    }
}

/// Nodes that have an endpoint of a Service to which traffic may be sent.
fn nodes_with_endpoints<'a>(context: &'a Context<'_>, service: &Service) -> BTreeSet<&'a str> {
    let slices = context.cluster.endpoint_slices.values();
    let mut nodes = BTreeSet::new();
    for slice in slices.filter(|slice| slice.is_served() && slice.name.namespace == service.name.namespace) {
        if slice.service.as_deref() != Some(service.name.name.as_str()) {
            continue;
        }
        let ready = |e: &&Endpoint| e.ready || service.publish_not_ready || e.serving && e.terminating;
        for endpoint in slice.endpoints.iter().filter(ready) {
            let by_pod = || endpoint.pod.as_ref().and_then(|name| context.directory.pods.get(name)?.node);
            nodes.extend(endpoint.node.as_deref().or_else(by_pod));
        }
    }
    nodes
}
