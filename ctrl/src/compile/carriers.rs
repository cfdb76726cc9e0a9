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

use super::stakes::{Stakes, Whereabouts};
use super::{Context, Finding};
use crate::carriers::Placement;
use crate::model::{EgressGateway, Node};

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

pub(crate) fn compile(context: &Context<'_>, stakes: &Stakes, invalid: &mut BTreeSet<Finding>) -> Moving {
    let mut placement = Placement::default();
    let egress = gateways(context, stakes, &mut placement, invalid);
    balancers(context, stakes, &mut placement);
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
    stakes: &Stakes,
    placement: &mut Placement,
    invalid: &mut BTreeSet<Finding>,
) -> BTreeMap<String, Vec<IpAddr>> {
    let owners = Owners::of(context, stakes);
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
        // A gateway that dies is replaced in under a second.
        placement.hurry(&good);
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
    fn of(context: &Context<'a>, stakes: &Stakes) -> Self {
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
        let services = stakes.iter().flat_map(|(name, stake)| stake.taken.iter().map(|ip| (*ip, name.to_string())));
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
fn balancers(context: &Context<'_>, stakes: &Stakes, placement: &mut Placement) {
    let all: BTreeSet<&str> =
        context.cluster.nodes.values().filter(|n| n.vtep_mac.is_none()).map(|n| n.name.as_str()).collect();
    let mut asked: BTreeMap<IpAddr, Vec<BTreeSet<&str>>> = BTreeMap::new();
    for (_, stake) in stakes.iter() {
        let nodes = stake.local.as_ref().map(|places| places.iter().filter_map(|place| node_of(context, place)));
        let nodes: Option<BTreeSet<&str>> = nodes.map(|nodes| nodes.filter(|node| all.contains(node)).collect());
        for address in &stake.balanced {
            asked.entry(*address).or_default().extend(nodes.clone());
        }
    }
    let anywhere: Vec<IpAddr> = asked.iter().filter(|(_, asked)| asked.is_empty()).map(|(ip, _)| *ip).collect();
    placement.deal(&anywhere, &all.iter().copied().collect::<Vec<_>>());
    for (address, asked) in asked.iter().filter(|(_, asked)| !asked.is_empty()) {
        let common = asked.iter().skip(1).fold(asked[0].clone(), |all, one| all.intersection(one).copied().collect());
        let nodes = if common.is_empty() { asked.iter().flatten().copied().collect() } else { common };
        placement.deal(&[*address], &nodes.into_iter().collect::<Vec<_>>());
    }
}

fn node_of<'a>(context: &'a Context<'_>, place: &'a Whereabouts) -> Option<&'a str> {
    match place {
        Whereabouts::Node(node) => Some(node),
        Whereabouts::Pod(pod) => context.directory.pods.get(pod)?.node,
    }
}
