//! What the compiler knows of this machine: ports, MACs, subnets, neighbours, gateways.
//!
//! Owner: the control thread. Live it is filled from the kernel and from CNI calls; in a replay, where no machine is
//! touched, [`LocalView::derived`] makes it from the cluster by the contract's rule: the MAC of a neighbour or local
//! interface is 02:00 and its IPv4 address, or the last four bytes of its IPv6 address where it has no IPv4.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::CompileError;
use crate::carriers::Outcome;
use crate::model::{Cluster, Family, NamespacedName, Node, Protocol};

/// The uplink of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Port number.
    pub port: u16,
    /// MAC of the device.
    pub mac: [u8; 6],
    /// Layer-3 MTU in bytes.
    pub mtu: u16,
    /// Subnets of its addresses: destinations inside are reached without a gateway.
    pub subnets: Vec<IpNet>,
}

/// The port to the host's own network stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Port number.
    pub port: u16,
    /// MAC of the host's end.
    pub mac: [u8; 6],
}

/// A pod that has a port on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Port number; also the zone of its flows, so never 0.
    pub port: u16,
    /// Worker that polls its port and owns its flows.
    pub worker: u16,
    /// MAC of the pod's interface.
    pub mac: [u8; 6],
    /// Addresses it was given.
    pub addresses: Vec<IpAddr>,
    /// Further source networks it may use.
    pub extra_sources: Vec<IpNet>,
    /// Ports of the node that the runtime asked for; those of the Pod object count as well.
    pub mappings: Vec<PortMapping>,
}

/// A port of the node that leads to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The node's address; none: all of them.
    pub host_ip: Option<IpAddr>,
    /// The port there.
    pub host_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The port of the pod.
    pub port: u16,
}

/// This machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalView {
    /// Name of this node's Node object.
    pub node: String,
    /// The uplink.
    pub uplink: Uplink,
    /// The host port.
    pub host: HostPort,
    /// Pods with a port here.
    pub pods: BTreeMap<NamespacedName, LocalPod>,
    /// MACs of neighbours on the uplink, as far as they are known.
    pub neighbours: BTreeMap<IpAddr, [u8; 6]>,
    /// Next hop towards everything off-link, IPv4 then IPv6.
    pub gateways: [Option<IpAddr>; 2],
    /// Which node carries which address now; none where nobody elects (a replay): then the objects decide.
    pub carriers: Option<Outcome>,
}

/// What a replay chooses besides the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// `--gateway`, IPv4 then IPv6; default: the first address of the node's /24 or /64.
    pub gateways: [Option<IpAddr>; 2],
    /// Layer-3 MTU of the uplink in bytes.
    pub uplink_mtu: u16,
    /// Number of workers that pods are dealt out to.
    pub workers: u16,
}

impl Default for Replay {
    fn default() -> Self {
        Replay { gateways: [None, None], uplink_mtu: 1500, workers: 1 }
    }
}

/// Port number of the uplink in a derived view.
pub const UPLINK_PORT: u16 = 0;
/// Port number of the host port in a derived view.
pub const HOST_PORT: u16 = 1;
/// Port number of the first pod, by name, in a derived view.
pub const FIRST_POD_PORT: u16 = 2;

/// 02:00 and the first IPv4 address, else the last four bytes of the first IPv6 address; none without addresses.
pub fn derived_mac(addresses: &[IpAddr]) -> Option<[u8; 6]> {
    let first = addresses.iter().find(|a| a.is_ipv4()).or(addresses.first())?;
    let [a, b, c, d] = match first {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let bytes = v6.octets();
            [bytes[12], bytes[13], bytes[14], bytes[15]]
        }
    };
    Some([0x02, 0x00, a, b, c, d])
}

/// The inner MAC of a node's tunnel end: its annotation, else derived from its InternalIPs.
pub fn tunnel_mac(node: &Node) -> Option<[u8; 6]> {
    node.vtep_mac.or_else(|| derived_mac(&node.internal_ips))
}

impl LocalView {
    /// The view of a node that nobody has to look at: everything by rule.
    pub fn derived(cluster: &Cluster, name: &str, replay: &Replay) -> Result<LocalView, CompileError> {
        let node = cluster.nodes.get(name).ok_or_else(|| CompileError::UnknownNode(name.to_owned()))?;
        let subnets: Vec<IpNet> = node.internal_ips.iter().filter_map(|ip| subnet(*ip)).collect();
        let gateways = [Family::V4, Family::V6].map(|family| {
            let first = || node.internal_ip(family).and_then(subnet).and_then(|net| first_address(&net));
            replay.gateways[family as usize].or_else(first)
        });
        let overlays: Vec<IpAddr> = [Family::V4, Family::V6].iter().filter_map(|f| node.overlay_address(*f)).collect();
        let mut view = LocalView {
            node: name.to_owned(),
            uplink: Uplink {
                port: UPLINK_PORT,
                mac: derived_mac(&node.internal_ips).unwrap_or_default(),
                mtu: replay.uplink_mtu,
                subnets,
            },
            host: HostPort {
                port: HOST_PORT,
                mac: derived_mac(&overlays).or(derived_mac(&node.internal_ips)).unwrap_or_default(),
            },
            pods: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            gateways,
            carriers: None,
        };
        let here = cluster.pods.values().filter(|p| p.node.as_deref() == Some(name));
        for (pod, index) in here.filter(|p| !p.host_network && !p.is_finished()).zip(0u16..) {
            let local = LocalPod {
                port: FIRST_POD_PORT.saturating_add(index),
                worker: index % replay.workers.max(1),
                mac: derived_mac(&pod.addresses).unwrap_or([2, 0, 0, 0, 0, 0]),
                addresses: pod.addresses.clone(),
                extra_sources: Vec::new(),
                mappings: Vec::new(),
            };
            view.pods.insert(pod.name.clone(), local);
        }
        for peer in cluster.nodes.values().filter(|n| n.name != name) {
            let mac = derived_mac(&peer.internal_ips);
            view.neighbours.extend(peer.internal_ips.iter().filter_map(|ip| Some((*ip, mac?))));
        }
        for gateway in view.gateways.into_iter().flatten() {
            let mac = derived_mac(&[gateway]).unwrap_or_default();
            view.neighbours.entry(gateway).or_insert(mac);
        }
        view.neighbours.retain(|ip, _| view.uplink.on_link(*ip) || view.gateways.contains(&Some(*ip)));
        Ok(view)
    }

    /// Adds a neighbour by rule, if it is on the uplink's own subnets and not known: a replay calls this for every
    /// address that its packets name, since nobody answers ARP or ND there.
    pub fn learn_derived(&mut self, address: IpAddr) {
        if self.uplink.on_link(address)
            && let Some(mac) = derived_mac(&[address])
        {
            self.neighbours.entry(address).or_insert(mac);
        }
    }
}

impl Uplink {
    /// Whether an address is reached without a gateway.
    pub fn on_link(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|net| net.contains(&address))
    }
}

/// The /24 or /64 around an address.
fn subnet(address: IpAddr) -> Option<IpNet> {
    let len = if address.is_ipv4() { 24 } else { 64 };
    IpNet::new(address, len).ok().map(|net| net.trunc())
}

fn first_address(net: &IpNet) -> Option<IpAddr> {
    crate::model::node::overlay_address(net)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|s| s.parse().unwrap()).collect()
    }

    pub(crate) fn node(name: &str, internal: &[&str], cidrs: &[&str]) -> Arc<Node> {
        Arc::new(Node {
            name: name.into(),
            labels: Default::default(),
            annotations: Default::default(),
            internal_ips: ips(internal),
            external_ips: Vec::new(),
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            vtep_mac: None,
            ready: None,
            leaving: false,
        })
    }

    #[test]
    fn a_mac_comes_from_the_ipv4_address_wherever_it_stands() {
        assert_eq!(derived_mac(&ips(&["fd00::1:2", "192.0.2.7"])), Some([2, 0, 192, 0, 2, 7]));
        assert_eq!(derived_mac(&ips(&["2001:db8::a1b2:c3d4"])), Some([2, 0, 0xa1, 0xb2, 0xc3, 0xd4]));
        assert_eq!(derived_mac(&[]), None);
    }

    #[test]
    fn a_dual_stack_peer_answers_for_its_ipv6_address_with_its_ipv4_mac() {
        let mut cluster = Cluster::default();
        for (name, v4, v6) in [("a", "192.0.2.1", "2001:db8::1"), ("b", "192.0.2.2", "2001:db8::2")] {
            cluster.nodes.insert(name.into(), node(name, &[v4, v6], &[]));
        }
        let view = LocalView::derived(&cluster, "a", &Replay::default()).unwrap();
        assert_eq!(view.neighbours[&ips(&["2001:db8::2"])[0]], [2, 0, 192, 0, 2, 2]);
        assert_eq!(view.gateways.map(|g| g.unwrap().to_string()), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(view.uplink.mac, [2, 0, 192, 0, 2, 1]);
    }

    #[test]
    fn only_addresses_of_the_own_subnets_are_learned() {
        let mut cluster = Cluster::default();
        cluster.nodes.insert("a".into(), node("a", &["192.0.2.1"], &[]));
        let mut view = LocalView::derived(&cluster, "a", &Replay::default()).unwrap();
        let known = view.neighbours.len();
        view.learn_derived("198.51.100.1".parse().unwrap());
        assert_eq!(view.neighbours.len(), known);
        view.learn_derived("192.0.2.99".parse().unwrap());
        assert_eq!(view.neighbours.len(), known + 1);
    }

    #[test]
    fn an_unknown_node_is_an_error() {
        let error = LocalView::derived(&Cluster::default(), "x", &Replay::default()).unwrap_err();
        assert_eq!(error, CompileError::UnknownNode("x".into()));
    }
}
