//! What the uplink's XDP program must take for us; all else stays the kernel's.
//!
//! Owner: the control thread. Invariant: an address of the node itself is never taken whole, only ports on it (law 7).

use std::collections::BTreeSet;
use std::net::IpAddr;

use sluice_tables::services::FrontendKind;
use sluice_tables::{Egress, Services};

use super::Context;
use super::routes::overlay_addresses;
use crate::model::Family;

/// Packets that are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// Addresses of the node on the uplink: only the ports below are taken on them.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Addresses of which every packet is ours: Service addresses and egress addresses this node carries.
    pub owned_addresses: BTreeSet<IpAddr>,
    /// Ports on the node's addresses by family, IP protocol number and port: NodePorts, and Services whose external
    /// address is the node's own.
    pub node_ports: BTreeSet<(Family, u8, u16)>,
    /// First and last SNAT port on the node's addresses, inclusive.
    pub snat_ports: (u16, u16),
    /// UDP port of the overlay on the node's addresses.
    pub vxlan_port: u16,
}

impl Steering {
    pub(crate) fn of(context: &Context<'_>, services: &Services, egress: &Egress) -> Steering {
        let node_addresses: BTreeSet<IpAddr> = context.node.internal_ips.iter().copied().collect();
        let mut owned: BTreeSet<IpAddr> = egress.addresses.iter().map(|a| (*a).into()).collect();
        let mut node_ports = BTreeSet::new();
        for shard in &services.shards {
            owned.extend(shard.addresses.keys().map(|a| IpAddr::from(*a)));
            for (key, frontend) in &shard.frontends {
                let address = key.address.into();
                let on_node = matches!(frontend.kind, FrontendKind::NodePort | FrontendKind::HostPort);
                if on_node || node_addresses.contains(&address) {
                    node_ports.insert((Family::of(&address), key.protocol, key.port));
                }
            }
        }
        let overlay: BTreeSet<IpAddr> = overlay_addresses(context.node).collect();
        owned.retain(|ip| !node_addresses.contains(ip) && !overlay.contains(ip));
        Steering {
            node_addresses,
            owned_addresses: owned,
            node_ports,
            snat_ports: context.knobs.settings.snat_ports,
            vxlan_port: context.knobs.settings.vxlan_port,
        }
    }
}
