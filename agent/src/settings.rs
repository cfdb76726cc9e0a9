//! From the configuration file to what the compiler and the workers take.

use sluice_ctrl::compile::Knobs;
use sluice_ctrl::config::{Config, DenyAction};
use sluice_engine::Shared;
use sluice_tables::{Lpm, Settings, Tables, Timeouts};

/// Ports an egress address gives away: all but the well-known ones (contract §6).
const EGRESS_PORTS: (u16, u16) = (1024, 65_535);

/// The compiler's view of a configuration.
pub fn knobs(config: &Config) -> Knobs {
    let t = &config.flows.timeouts;
    let mut exclude = Lpm::default();
    for net in &config.masquerade.exclude {
        exclude.insert((*net).into(), ());
    }
    Knobs {
        settings: Settings {
            vni: config.vxlan.vni,
            vxlan_port: config.vxlan.port,
            reject: config.policy.default_action == DenyAction::Reject,
            masquerade: config.masquerade.enabled,
            masquerade_exclude: exclude,
            snat_ports: (config.masquerade.ports.first(), config.masquerade.ports.last()),
            node_ports: (config.node_ports.first(), config.node_ports.last()),
            timeouts: Timeouts {
                tcp_established: t.tcp_established.0,
                tcp_handshake: t.tcp_handshake.0,
                tcp_closing: t.tcp_closing.0,
                udp: t.udp.0,
                udp_stream: t.udp_stream.0,
                icmp: t.icmp.0,
                sctp_established: t.sctp_established.0,
                other: t.other.0,
            },
        },
        pod_ranges: config.cidrs.pods.clone(),
        service_ranges: config.cidrs.services.clone(),
    }
}

/// Makes the SNAT port ranges that these tables need; called before they are published.
pub fn ensure_spaces(shared: &Shared, tables: &Tables) {
    let node = &tables.node;
    for address in node.internal.iter().chain(&node.overlay).flatten() {
        shared.spaces.ensure(*address, tables.settings.snat_ports);
    }
    for address in &tables.egress.addresses {
        shared.spaces.ensure(*address, EGRESS_PORTS);
    }
}
