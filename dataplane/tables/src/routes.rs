//! Where a destination lies, and which tunnel peers may send to us.

use crate::address::{Address, Family, Prefix};
use crate::hops::HopId;
use crate::lpm::Lpm;
use hashbrown::HashMap;

/// Where a destination lies, seen from this node. Local pods and Service frontends are asked for before this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// This node itself.
    Node,
    /// An address that another node hosts (its pods, its overlay address), through the overlay.
    Tunnel(HopId),
    /// Another node's InternalIP: the overlay for packets that keep a pod's source address, the uplink for the rest.
    PeerNode {
        /// Through the overlay.
        tunnel: HopId,
        /// Directly on the uplink.
        direct: HopId,
    },
    /// An address that belongs to the cluster's pod or service ranges and that nobody has.
    Nowhere,
    /// Outside the cluster: this neighbour on the uplink.
    External(HopId),
    /// Outside the cluster, on the node's own subnet, and the neighbour is not known yet: control must be asked.
    Unresolved,
}

/// A node that may send us overlay packets.
#[derive(Clone, Debug)]
pub struct TunnelPeer {
    /// Node name.
    pub name: String,
    /// The way back to it.
    pub hop: HopId,
    /// Inner sources it may send: its podCIDRs, its own addresses, its pods' addresses elsewhere.
    pub sources: Vec<Prefix>,
    /// Its InternalIPs, IPv4 then IPv6: the addresses its NodePorts are asked at.
    pub internal: [Option<Address>; 2],
    /// Whether it may be an egress gateway of a local pod, so that outside addresses may come from it.
    pub gateway: bool,
}

/// Routes and tunnel peers.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// Cluster destinations: podCIDRs of other nodes, single addresses, the unassigned rest of the cluster's ranges.
    pub cluster: Lpm<Route>,
    /// The uplink's own subnets, by longest prefix.
    pub on_link: Lpm<()>,
    /// Known neighbours on the uplink.
    pub neighbours: HashMap<Address, HopId>,
    /// Gateway towards the outside, IPv4 then IPv6.
    pub gateways: [Option<HopId>; 2],
    /// Tunnel peers by outer source address.
    pub peers: HashMap<Address, TunnelPeer>,
}

impl Routes {
    /// The route to a destination that is no local pod's address; `None` if the family has no way out at all.
    pub fn lookup(&self, destination: Address) -> Option<Route> {
        if let Some(route) = self.cluster.lookup(destination) {
            return Some(*route);
        }
        self.external(destination)
    }

    /// The way out of the cluster for a destination, asked for directly (masqueraded packets).
    pub fn external(&self, destination: Address) -> Option<Route> {
        if let Some(hop) = self.neighbours.get(&destination) {
            return Some(Route::External(*hop));
        }
        if self.on_link.lookup(destination).is_some() {
            return Some(Route::Unresolved);
        }
        self.gateway(destination.family()).map(Route::External)
    }

    /// Gateway of a family.
    pub fn gateway(&self, family: Family) -> Option<HopId> {
        self.gateways[family as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Address {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    fn routes() -> Routes {
        let net = |a: &str, len| Prefix::new(ip(a), len).unwrap();
        Routes {
            cluster: Lpm::from_entries([
                (net("10.244.0.0", 16), Route::Nowhere),
                (net("10.244.2.0", 24), Route::Tunnel(HopId(3))),
            ]),
            on_link: Lpm::from_entries([(net("192.0.2.0", 24), ())]),
            neighbours: [(ip("192.0.2.9"), HopId(5))].into_iter().collect(),
            gateways: [Some(HopId(4)), None],
            peers: HashMap::new(),
        }
    }

    #[test]
    fn the_cluster_goes_before_neighbours_before_the_gateway() {
        let at = |to: &str| routes().lookup(ip(to));
        assert_eq!(at("10.244.2.1"), Some(Route::Tunnel(HopId(3))));
        assert_eq!(at("10.244.3.1"), Some(Route::Nowhere));
        assert_eq!(at("192.0.2.9"), Some(Route::External(HopId(5))));
        assert_eq!(at("192.0.2.10"), Some(Route::Unresolved));
        assert_eq!(at("198.51.100.1"), Some(Route::External(HopId(4))));
        assert_eq!(at("2001:db8::1"), None, "a family without a gateway");
    }

    #[test]
    fn asked_for_directly_the_cluster_does_not_count() {
        assert_eq!(routes().external(ip("10.244.2.1")), Some(Route::External(HopId(4))));
    }
}
