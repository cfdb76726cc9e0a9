//! Connections of the host to its own addresses that must come to us: NodePorts and host ports from the node itself.
//!
//! Owner: the control thread. A host never sends a packet for one of its own addresses out of an interface, so the kernel
//! has to be told to translate these: a NodePort to its Service's cluster address, a host port to its pod. What leaves then
//! goes through the host port like any other packet to a Service or a pod. Source: behaviour of kube-proxy's OUTPUT chains.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::host_ports::HostPort;
use crate::model::{Family, Node, Service, ServiceKind};

/// A port of the host's own addresses, and where the host must send connections to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Redirect {
    /// The host's address; none: any address of the host, loopback included.
    pub address: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
    /// Where to; says the family where `address` does not.
    pub to: SocketAddr,
}

/// `services` are those with node ports, by name.
pub(crate) fn of<'a>(
    services: impl Iterator<Item = &'a Service>,
    node: &Node,
    host_ports: &[HostPort],
) -> BTreeSet<Redirect> {
    let mut all = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for service in services {
        if !matches!(service.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer) {
            continue;
        }
        for address in &node.internal_ips {
            let Some(cluster_ip) = service.cluster_ip(Family::of(address)) else { continue };
            for port in &service.ports {
                let Some(number) = port.node_port else { continue };
                let to = SocketAddr::new(cluster_ip, port.port);
                if taken.insert((Some(*address), address.is_ipv4(), port.protocol.number(), number)) {
                    let protocol = port.protocol.number();
                    all.insert(Redirect { address: Some(*address), protocol, port: number, to });
                }
            }
        }
    }
    for wanted in host_ports {
        let to = SocketAddr::new(wanted.to, wanted.to_port);
        if taken.insert((wanted.address, to.is_ipv4(), wanted.protocol, wanted.port)) {
            all.insert(Redirect { address: wanted.address, protocol: wanted.protocol, port: wanted.port, to });
        }
    }
    all
}
