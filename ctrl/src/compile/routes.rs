//! Where destinations lie, and which tunnel peers may send what.
//!
//! Owner: the control thread. Source: Node `spec.podCIDRs`, `status.addresses`; `docs/adr/0009`. Order of precedence for
//! one prefix: this node's addresses, other nodes' addresses, single pods, podCIDRs, the cluster's ranges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_tables::routes::TunnelPeer;
use sluice_tables::{Address, Lpm, Prefix, Route, Routes};

use super::hops::HopPlan;
use super::{Context, Finding};
use crate::model::{Family, Node, PoolUse};

pub(crate) fn compile(
    context: &Context<'_>,
    plan: &HopPlan,
    gateways_used: &BTreeSet<String>,
    invalid: &mut BTreeSet<Finding>,
) -> Routes {
    Routes {
        cluster: cluster(context, plan, invalid),
        on_link: Lpm::from_entries(context.local.uplink.subnets.iter().map(|net| (Prefix::from(*net), ()))),
        neighbours: plan.neighbours.iter().map(|(ip, hop)| (Address::from(*ip), *hop)).collect(),
        gateways: plan.gateways,
        peers: peers(context, plan, gateways_used, invalid),
    }
}

/// Later insertions replace earlier ones, so this goes from the lowest precedence to the highest.
fn cluster(context: &Context<'_>, plan: &HopPlan, invalid: &mut BTreeSet<Finding>) -> Lpm<Route> {
    let mut table = Lpm::default();
    let pools = context.cluster.ip_pools.values().filter(|pool| pool.usage != PoolUse::Egress);
    let ranges = context.knobs.pod_ranges.iter().chain(&context.knobs.service_ranges);
    for net in ranges.chain(pools.flat_map(|pool| &pool.cidrs)) {
        table.insert(Prefix::from(*net), Route::Nowhere);
    }

    // A podCIDR belongs to this node first, then to the first node by name.
    let mut owners: BTreeMap<Prefix, &str> = BTreeMap::new();
    for net in &context.node.pod_cidrs {
        owners.insert(Prefix::from(*net), &context.node.name);
        table.insert(Prefix::from(*net), Route::Nowhere);
    }
    for peer in context.peers() {
        let route = plan.tunnels.get(&peer.name).map_or(Route::Nowhere, |hop| Route::Tunnel(*hop));
        for net in &peer.pod_cidrs {
            match *owners.entry(Prefix::from(*net)).or_insert(&peer.name) {
                owner if owner == peer.name => table.insert(Prefix::from(*net), route),
                owner => {
                    let why = format!("{net} belongs to node {owner} already; not routed to this one");
                    invalid.insert(Finding { kind: "Node", name: peer.name.clone(), field: "spec.podCIDRs", why });
                }
            }
        }
    }

    for known in context.directory.pods.values() {
        let Some(node) = known.node.and_then(|name| context.cluster.nodes.get(name)) else { continue };
        for ip in known.addresses.iter().filter(|ip| !inside(node, **ip)) {
            let route = if node.name == context.node.name {
                // A local pod is found before any route is asked; without a port here nobody has the address.
                Route::Nowhere
            } else {
                plan.tunnels.get(&node.name).map_or(Route::Nowhere, |hop| Route::Tunnel(*hop))
            };
            table.insert(Prefix::single((*ip).into()), route);
        }
    }

    for peer in context.peers() {
        let tunnel = plan.tunnels.get(&peer.name).copied();
        for ip in &peer.internal_ips {
            let route = match (tunnel, plan.direct(*ip)) {
                (Some(tunnel), Some(direct)) => Route::PeerNode { tunnel, direct },
                (Some(tunnel), None) => Route::PeerNode { tunnel, direct: tunnel },
                (None, Some(direct)) => Route::External(direct),
                (None, None) => Route::Nowhere,
            };
            table.insert(Prefix::single((*ip).into()), route);
        }
        for ip in overlay_addresses(peer) {
            let route = tunnel.map_or(Route::Nowhere, Route::Tunnel);
            table.insert(Prefix::single(ip.into()), route);
        }
    }
    for ip in context.node.internal_ips.iter().copied().chain(overlay_addresses(context.node)) {
        table.insert(Prefix::single(ip.into()), Route::Node);
    }
    table
}

/// Peers by every InternalIP: both families are accepted as outer source.
fn peers(
    context: &Context<'_>,
    plan: &HopPlan,
    gateways_used: &BTreeSet<String>,
    invalid: &mut BTreeSet<Finding>,
) -> hashbrown::HashMap<Address, TunnelPeer> {
    let mut guests: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
    for known in context.directory.pods.values() {
        if let Some(node) = known.node.and_then(|name| context.cluster.nodes.get(name)) {
            guests.entry(&node.name).or_default().extend(known.addresses.iter().filter(|ip| !inside(node, **ip)));
        }
    }
    let mut peers: hashbrown::HashMap<Address, TunnelPeer> = hashbrown::HashMap::new();
    for peer in context.peers() {
        let Some(hop) = plan.tunnels.get(&peer.name) else { continue };
        let mut sources: Vec<Prefix> = peer.pod_cidrs.iter().map(|net| Prefix::from(*net)).collect();
        let own = peer.internal_ips.iter().copied().chain(overlay_addresses(peer));
        let guests = guests.get(peer.name.as_str()).into_iter().flatten().copied();
        sources.extend(own.chain(guests).map(|ip| Prefix::single(ip.into())));
        sources.sort_unstable();
        sources.dedup();
        let cidrs: Vec<Prefix> = sources.clone();
        sources.retain(|s| !cidrs.iter().any(|wider| wider != s && wider.covers(s)));
        for ip in &peer.internal_ips {
            let taken = peers.get(&Address::from(*ip)).map(|other| other.name.clone());
            if let Some(other) = taken.or(context.node.internal_ips.contains(ip).then(|| context.node.name.clone())) {
                let why = format!("{ip} belongs to node {other} already");
                invalid.insert(Finding { kind: "Node", name: peer.name.clone(), field: "status.addresses", why });
                continue;
            }
            let gateway = gateways_used.contains(&peer.name);
            let internal = [Family::V4, Family::V6].map(|f| peer.internal_ip(f).map(Into::into));
            let entry = TunnelPeer { name: peer.name.clone(), hop: *hop, sources: sources.clone(), internal, gateway };
            peers.insert((*ip).into(), entry);
        }
    }
    peers
}

/// The node's own addresses on the overlay.
pub(crate) fn overlay_addresses(node: &Node) -> impl Iterator<Item = IpAddr> + '_ {
    [Family::V4, Family::V6].into_iter().filter_map(|f| node.overlay_address(f))
}

fn inside(node: &Node, address: IpAddr) -> bool {
    node.pod_cidrs.iter().any(|net| net.contains(&address))
}
