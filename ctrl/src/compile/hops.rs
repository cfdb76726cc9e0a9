//! The ways out of this node, numbered in the order of their content: host, local pods, tunnels, gateways, neighbours.
//!
//! Owner: the control thread. Source: RFC 7348, `docs/adr/0009`. Invariants: equal content gives equal numbers;
//! a way whose next hop's MAC is unknown is there, as unresolved, and its neighbour is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_tables::hops::TunnelSpec;
use sluice_tables::node::GATEWAY_MAC;
use sluice_tables::{Hop, HopId, HopKind, Hops, TableError};

use super::carriers::Moving;
use super::local::tunnel_mac;
use super::{Context, Finding};
use crate::model::{Family, NamespacedName, Node};

/// Bytes of encapsulation over IPv4: 20 + UDP 8 + VXLAN 8 + Ethernet 14.
const OVERHEAD_V4: u16 = 50;
/// Bytes of encapsulation over IPv6: 40 + UDP 8 + VXLAN 8 + Ethernet 14.
const OVERHEAD_V6: u16 = 70;

/// Hops and who they lead to.
pub(crate) struct HopPlan {
    pub hops: Hops,
    pub pods: BTreeMap<NamespacedName, HopId>,
    /// Other nodes, through the overlay; a node without a common address family has none.
    pub tunnels: BTreeMap<String, HopId>,
    /// Other nodes that carry an egress address now: the same ways, for what leaves the cluster there.
    pub gateway_tunnels: BTreeMap<String, HopId>,
    /// Neighbours on the uplink, resolved or wanted.
    pub neighbours: BTreeMap<IpAddr, HopId>,
    pub gateways: [Option<HopId>; 2],
    pub wanted: BTreeSet<IpAddr>,
    /// Layer-3 MTU of pods in bytes: fits every tunnel.
    pub pod_mtu: u16,
}

impl HopPlan {
    /// The way to an address on the uplink: itself where it is on-link, else the family's gateway.
    pub fn direct(&self, address: IpAddr) -> Option<HopId> {
        let gateway = self.gateways[usize::from(address.is_ipv6())];
        self.neighbours.get(&address).copied().or(gateway)
    }
}

pub(crate) fn plan(
    context: &Context<'_>,
    moving: &Moving,
    invalid: &mut BTreeSet<Finding>,
) -> Result<HopPlan, TableError> {
    let uplink = &context.local.uplink;
    let own_tunnel_mac = tunnel_mac(context.node).unwrap_or(uplink.mac);
    let mut list = Vec::new();
    let mut add = |hop: Hop| {
        // A number past the limit is never used: `Hops::try_new` refuses the list below.
        let id = HopId(list.len().min(usize::from(u16::MAX)) as u16);
        list.push(hop);
        id
    };
    let mut wanted = BTreeSet::new();

    let underlays: Vec<(&Node, Option<(IpAddr, IpAddr)>)> =
        context.peers().map(|peer| (peer, underlay(context.node, peer))).collect();
    let over_v6 = underlays.iter().flat_map(|(_, ends)| ends).any(|(peer, _)| peer.is_ipv6());
    let only_v6 = context.node.internal_ip(Family::V4).is_none() && context.node.internal_ip(Family::V6).is_some();
    let pod_mtu = uplink.mtu.saturating_sub(if over_v6 || only_v6 { OVERHEAD_V6 } else { OVERHEAD_V4 });

    let host = &context.local.host;
    // A pod may be sent what any way brings; its own MTU, which bounds what it sends, is that of the narrowest way.
    let delivery = uplink.mtu.saturating_sub(if only_v6 { OVERHEAD_V6 } else { OVERHEAD_V4 });
    add(Hop::ethernet(HopKind::Host, host.port, uplink.mtu, host.mac, GATEWAY_MAC));

    let mut pods = BTreeMap::new();
    for (known, pod) in context.directory.local() {
        pods.insert(known.name.clone(), add(Hop::ethernet(HopKind::Pod, pod.port, delivery, pod.mac, GATEWAY_MAC)));
    }

    // The MAC of the next hop towards an address on the uplink; unknown ones are wanted.
    let mut next_hop = |address: IpAddr| {
        let gateway = context.local.gateways[usize::from(address.is_ipv6())];
        let via = if uplink.on_link(address) { address } else { gateway? };
        let mac = context.local.neighbours.get(&via).copied();
        if mac.is_none() {
            wanted.insert(via);
        }
        mac
    };

    let leaves_with: BTreeSet<IpAddr> = moving.egress.values().flatten().copied().collect();
    let gateways: BTreeSet<&str> = leaves_with.iter().filter_map(|ip| moving.carrier(*ip)).collect();
    let (mut tunnels, mut gateway_tunnels) = (BTreeMap::new(), BTreeMap::new());
    for (peer, ends) in &underlays {
        let Some((theirs, ours)) = *ends else {
            let why = "no InternalIP of a family that this node has too; its pods cannot be reached".to_owned();
            invalid.insert(Finding { kind: "Node", name: peer.name.clone(), field: "status.addresses", why });
            continue;
        };
        let mtu = uplink.mtu.saturating_sub(if theirs.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 });
        let hop = match (next_hop(theirs), tunnel_mac(peer)) {
            (Some(outer), Some(inner)) => Hop::tunnel(&TunnelSpec {
                port: uplink.port,
                mtu,
                outer_macs: (outer, uplink.mac),
                outer_addresses: (theirs.into(), ours.into()),
                vxlan_port: context.knobs.settings.vxlan_port,
                vni: context.knobs.settings.vni,
                inner_macs: (inner, own_tunnel_mac),
            }),
            _ => Hop::unresolved(uplink.port, mtu),
        };
        if gateways.contains(peer.name.as_str()) {
            gateway_tunnels.insert(peer.name.clone(), add(hop.as_gateway()));
        }
        tunnels.insert(peer.name.clone(), add(hop));
    }

    let mut neighbour = |mac: Option<[u8; 6]>| {
        add(match mac {
            Some(mac) => Hop::ethernet(HopKind::Uplink, uplink.port, uplink.mtu, mac, uplink.mac),
            None => Hop::unresolved(uplink.port, uplink.mtu),
        })
    };
    let gateways = context.local.gateways.map(|gateway| {
        let address = gateway?;
        let mac = context.local.neighbours.get(&address).copied();
        if mac.is_none() {
            wanted.insert(address);
        }
        Some(neighbour(mac))
    });
    let on_link_peers = context.peers().flat_map(|p| p.internal_ips.iter().copied()).filter(|ip| uplink.on_link(*ip));
    let mut addresses: BTreeSet<IpAddr> = on_link_peers.collect();
    addresses.extend(context.local.neighbours.keys());
    let mut neighbours = BTreeMap::new();
    for address in addresses {
        if context.node.internal_ips.contains(&address) {
            continue;
        }
        let known = gateways.iter().zip(context.local.gateways).find(|(_, ip)| *ip == Some(address));
        let id = match known {
            Some((Some(gateway), _)) => *gateway,
            _ => {
                let mac = context.local.neighbours.get(&address).copied();
                if mac.is_none() {
                    wanted.insert(address);
                }
                neighbour(mac)
            }
        };
        neighbours.insert(address, id);
    }
    let hops = Hops::try_new(list)?;
    Ok(HopPlan { hops, pods, tunnels, gateway_tunnels, neighbours, gateways, wanted, pod_mtu })
}

/// Outer addresses, theirs and ours: IPv4 where both nodes have one, else IPv6.
fn underlay(own: &Node, peer: &Node) -> Option<(IpAddr, IpAddr)> {
    [Family::V4, Family::V6].into_iter().find_map(|f| Some((peer.internal_ip(f)?, own.internal_ip(f)?)))
}
