//! What the compiler takes from the configuration.
//!
//! Owner: the control thread. Source: `docs/configuration.md`.

use ipnet::IpNet;
use sluice_tables::{Lpm, Settings, Timeouts};

use crate::config::{Config, DenyAction};

/// Knobs of the packet path and the ranges that make the cluster's inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// Handed to workers as they are.
    pub settings: Settings,
    /// `cidrs.pods`.
    pub pod_ranges: Vec<IpNet>,
    /// `cidrs.services`.
    pub service_ranges: Vec<IpNet>,
    /// Whether `spec.externalIPs` of Services are programmed.
    pub external_ips: bool,
    /// Peers that all rule sets of a node together may list.
    pub listed_peers: usize,
    /// Networks whose addresses of the node serve NodePorts; none: its first InternalIP of each family.
    pub node_port_networks: Vec<IpNet>,
}

impl From<&Config> for Knobs {
    fn from(config: &Config) -> Knobs {
        let times = &config.flows.timeouts;
        let exclude = config.masquerade.exclude.iter().map(|net| ((*net).into(), ()));
        Knobs {
            settings: Settings {
                vni: config.vxlan.vni,
                vxlan_port: config.vxlan.port,
                reject: config.policy.default_action == DenyAction::Reject,
                masquerade: config.masquerade.enabled,
                masquerade_exclude: Lpm::from_entries(exclude),
                snat_ports: (config.masquerade.ports.first(), config.masquerade.ports.last()),
                snat_blocks_per_source: config.masquerade.blocks_per_source,
                node_ports: (config.node_ports.first(), config.node_ports.last()),
                timeouts: Timeouts {
                    tcp_established: times.tcp_established.0,
                    tcp_handshake: times.tcp_handshake.0,
                    tcp_closing: times.tcp_closing.0,
                    udp: times.udp.0,
                    udp_stream: times.udp_stream.0,
                    icmp: times.icmp.0,
                    sctp_established: times.sctp_established.0,
                    other: times.other.0,
                },
            },
            pod_ranges: config.cidrs.pods.clone(),
            service_ranges: config.cidrs.services.clone(),
            external_ips: config.services.external_ips,
            listed_peers: config.policy.listed_peers as usize,
            node_port_networks: config.services.node_port_addresses.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_defaults_are_the_configurations() {
        let knobs = Knobs::from(&Config::builtin("node-a"));
        assert_eq!(knobs.settings.timeouts, Timeouts::default());
        assert_eq!((knobs.settings.vni, knobs.settings.vxlan_port), (4096, 4789));
        assert_eq!((knobs.settings.snat_ports, knobs.settings.node_ports), ((40_000, 57_343), (30_000, 32_767)));
    }
}
