//! What a benchmark sends: for each scenario the first packet of flow number `n`, and which direction is measured.

use super::cluster::{self, CLIENTS, SERVERS};
use super::packets::Segment;
use clap::ValueEnum;
use serde::Serialize;
use std::net::{IpAddr, Ipv6Addr};

/// A way through the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// A pod of this node to one of another: policy, VXLAN encapsulation.
    PodToPod,
    /// A pod of this node to a ClusterIP: DNAT, policy, encapsulation.
    Clusterip,
    /// The answers of `clusterip`: decapsulation, reverse DNAT, delivery.
    Reply,
    /// A client outside to a NodePort whose backend is on another node: DNAT, SNAT, encapsulation.
    Nodeport,
    /// A pod of another node through this node's egress gateway: decapsulation, SNAT, out.
    Egress,
    /// Between two pods of this node: both halves.
    Local,
    /// A pod of another node that no policy admits: decapsulation, policy, drop. No flow is ever made.
    Deny,
    /// All of the above in turn, with the simple IMIX sizes (RFC 6985) 64, 594 and 1518 in the ratio 7:4:1.
    Mix,
}

/// Where a first packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The port of the pod with this address.
    Pod(IpAddr),
    /// The overlay.
    Tunnel,
    /// The uplink, bare.
    Outside,
}

const ONE_BY_ONE: [Scenario; 7] = [
    Scenario::PodToPod,
    Scenario::Clusterip,
    Scenario::Reply,
    Scenario::Nodeport,
    Scenario::Egress,
    Scenario::Local,
    Scenario::Deny,
];
/// Frame sizes with the frame check sequence, which no frame in memory carries.
const IMIX: [usize; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64];
/// First source port of the clients.
const FIRST_PORT: u32 = 1024;

impl Scenario {
    /// The scenario that flow `n` belongs to.
    pub fn of(self, n: u32) -> (Scenario, u32) {
        match self {
            Scenario::Mix => (ONE_BY_ONE[n as usize % ONE_BY_ONE.len()], n / ONE_BY_ONE.len() as u32),
            one => (one, n),
        }
    }

    /// Bytes of flow `n`'s frames, from the Ethernet header to the end of the payload.
    pub fn frame_size(self, n: u32, asked: usize) -> usize {
        if self == Scenario::Mix { IMIX[n as usize % IMIX.len()] - 4 } else { asked }
    }

    /// Whether the answers are measured.
    pub fn measures_replies(self) -> bool {
        self == Scenario::Reply
    }

    /// Whether flows come to be.
    pub fn makes_flows(self) -> bool {
        self != Scenario::Deny
    }

    /// Connections in the flow table for each flow: between two local pods both halves keep one.
    pub fn entries_per_flow(self) -> usize {
        if matches!(self, Scenario::Local | Scenario::Mix) { 2 } else { 1 }
    }

    /// Flow `n`'s first packet, as it arrives; flows to Services are spread over `services` of them.
    pub fn first(self, n: u32, v6: bool, services: u32) -> (From, Segment) {
        let (kind, of_kind) = self.of(n);
        let client = cluster::client(v6, of_kind % CLIENTS);
        let rest = of_kind / CLIENTS;
        let make = |source, destination, source_port: u32, destination_port| Segment {
            source,
            destination,
            source_port: (FIRST_PORT + source_port) as u16,
            destination_port,
            flow: n,
        };
        match kind {
            Scenario::PodToPod => {
                let destination = cluster::server(v6, rest % SERVERS);
                (From::Pod(client), make(client, destination, rest / SERVERS, 8080))
            }
            Scenario::Clusterip | Scenario::Reply | Scenario::Mix => {
                let destination = cluster::service(v6, rest % services);
                // Both may be in a mix: their flows must not be the same.
                let service_port = rest / services * 2 + u32::from(kind == Scenario::Reply);
                let port = if self == Scenario::Mix { service_port } else { rest / services };
                (From::Pod(client), make(client, destination, port, 80))
            }
            Scenario::Nodeport => {
                let (outside, rest) = (of_kind % 64, of_kind / 64);
                let exposed = services.min(cluster::WITH_NODE_PORT);
                let port = cluster::NODE_PORT + (rest % exposed) as u16;
                let segment = make(stranger(v6, outside), cluster::node(v6, false), rest / exposed, port);
                (From::Outside, segment)
            }
            Scenario::Egress => {
                let (source, rest) = (cluster::server(v6, of_kind % SERVERS), of_kind / SERVERS);
                (From::Tunnel, make(source, target(v6, rest % 256), rest / 256, 443))
            }
            Scenario::Local => {
                let step = 1 + rest % (CLIENTS - 1);
                let destination = cluster::client(v6, (of_kind % CLIENTS + step) % CLIENTS);
                (From::Pod(client), make(client, destination, rest / (CLIENTS - 1), 8080))
            }
            Scenario::Deny => (From::Tunnel, make(cluster::server(v6, SERVERS), client, rest % 60_000, 8080)),
        }
    }

    /// Most flows that differ from each other.
    pub fn most_flows(self, services: u32) -> u32 {
        let ports = 64_000;
        match self {
            Scenario::PodToPod => u32::MAX,
            Scenario::Clusterip | Scenario::Reply => ports * CLIENTS * services.min(1_000),
            // 17,344 SNAT ports of the overlay address, in blocks of 64, towards 256 backends.
            Scenario::Nodeport => 2_000_000,
            Scenario::Egress => 10_000_000,
            Scenario::Local => ports * CLIENTS * (CLIENTS - 1),
            Scenario::Deny => 60_000 * CLIENTS,
            Scenario::Mix => 6_000_000,
        }
    }
}

/// A client outside the cluster.
fn stranger(v6: bool, n: u32) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1 + n as u16).into()
    } else {
        [203, 0, 113, 1 + n as u8].into()
    }
}

/// A server outside the cluster, covered by the egress gateway.
fn target(v6: bool, n: u32) -> IpAddr {
    if v6 { Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, n as u16).into() } else { [198, 18, 0, n as u8].into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_flows_of_a_scenario_are_the_same() {
        for scenario in Scenario::value_variants() {
            for v6 in [false, true] {
                let flows = 50_000.min(scenario.most_flows(cluster::SERVICES));
                let distinct: HashSet<_> = (0..flows)
                    .map(|n| scenario.first(n, v6, cluster::SERVICES).1)
                    .map(|s| (s.source, s.destination, s.source_port, s.destination_port))
                    .collect();
                assert_eq!(distinct.len(), flows as usize, "{scenario:?}");
            }
        }
    }
}
