//! What the uplink's XDP program must take for us; all else stays the kernel's.
//!
//! Owner: the control thread. Invariant: an address of the node itself is never taken whole, only ports on it (law 7).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_tables::services::{FrontendKind, Shard};

use super::host_ports::HostPort;
use super::routes::overlay_addresses;
use super::{Knobs, Rest};
use crate::model::{Family, Node};

/// Addresses and ports at which Services are reached, in the order of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    addresses: BTreeSet<IpAddr>,
    /// Every frontend: its address, unspecified for a NodePort; protocol; port.
    frontends: BTreeSet<(IpAddr, u8, u16)>,
}

impl Reach {
    pub fn of(shards: &[Arc<Shard>]) -> Reach {
        let keys = shards.iter().flat_map(|shard| shard.frontends.iter());
        Reach {
            addresses: shards.iter().flat_map(|shard| shard.addresses.keys()).map(|a| IpAddr::from(*a)).collect(),
            frontends: keys.map(|(key, _)| (key.address.into(), key.protocol, key.port)).collect(),
        }
    }

    /// Whether two forms of a shard are reached in the same way.
    pub fn is_same(a: &Shard, b: &Shard) -> bool {
        let kind = |kind: &FrontendKind| *kind == FrontendKind::NodePort;
        a.addresses.len() == b.addresses.len()
            && a.frontends.len() == b.frontends.len()
            && a.addresses.keys().all(|address| b.addresses.contains_key(address))
            && a.frontends.iter().all(|(key, f)| b.frontends.get(key).is_some_and(|g| kind(&f.kind) == kind(&g.kind)))
    }
}

/// Packets that are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// Addresses of the node on the uplink: only the ports below are taken on them.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Addresses of which every packet is ours: Service addresses and egress addresses this node carries.
    pub owned_addresses: Arc<BTreeSet<IpAddr>>,
    /// Ports on the node's addresses by family, IP protocol number and port: NodePorts, and Services whose external
    /// address is the node's own.
    pub node_ports: Arc<BTreeSet<(Family, u8, u16)>>,
    /// First and last SNAT port on the node's addresses, inclusive.
    pub snat_ports: (u16, u16),
    /// UDP port of the overlay on the node's addresses.
    pub vxlan_port: u16,
    made_of: Arc<Reach>,
    egress: BTreeSet<IpAddr>,
    overlay: BTreeSet<IpAddr>,
    host_ports: BTreeSet<(Family, u8, u16)>,
}

impl Steering {
    pub(crate) fn of(
        this: &Node,
        knobs: &Knobs,
        rest: &Rest,
        host_ports: &[HostPort],
        reach: &Arc<Reach>,
        previous: Option<&Steering>,
    ) -> Steering {
        let node = &rest.node;
        let own = node.internal.iter().flatten().chain(&node.node_port_addresses);
        let mut node_addresses: BTreeSet<IpAddr> = own.map(|a| IpAddr::from(*a)).collect();
        node_addresses.extend(host_ports.iter().filter(|p| p.on(this).is_some()).filter_map(|p| p.address));
        let egress: BTreeSet<IpAddr> = rest.egress.addresses.iter().map(|a| (*a).into()).collect();
        let overlay: BTreeSet<IpAddr> = overlay_addresses(this).collect();
        let host_ports: BTreeSet<_> = host_ports.iter().filter_map(|port| port.on(this)).collect();
        let settings = &knobs.settings;
        let (snat_ports, vxlan_port) = (settings.snat_ports, settings.vxlan_port);
        if let Some(before) = previous
            && Arc::ptr_eq(&before.made_of, reach)
            && before.egress == egress
            && before.node_addresses == node_addresses
            && before.overlay == overlay
            && before.host_ports == host_ports
        {
            return Steering { snat_ports, vxlan_port, ..before.clone() };
        }
        let owned = egress.iter().chain(&reach.addresses).filter(|ip| !node_addresses.contains(ip));
        let ports = reach.frontends.iter().filter(|(ip, ..)| ip.is_unspecified() || node_addresses.contains(ip));
        Steering {
            owned_addresses: Arc::new(owned.filter(|ip| !overlay.contains(ip)).copied().collect()),
            node_ports: Arc::new(
                ports
                    .map(|(ip, protocol, port)| (Family::of(ip), *protocol, *port))
                    .chain(host_ports.iter().copied())
                    .collect(),
            ),
            node_addresses,
            snat_ports,
            vxlan_port,
            made_of: reach.clone(),
            egress,
            overlay,
            host_ports,
        }
    }
}
