//! Knobs of the packet path, from the configuration file.

use crate::lpm::Lpm;

/// Idle times after which a flow is forgotten, in seconds (contract: `flows.timeouts`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connection.
    pub tcp_established: u32,
    /// TCP before the handshake is complete.
    pub tcp_handshake: u32,
    /// TCP after a FIN or RST.
    pub tcp_closing: u32,
    /// UDP seen in one direction, or not yet a stream.
    pub udp: u32,
    /// UDP stream: both directions, then again the first.
    pub udp_stream: u32,
    /// ICMP echo.
    pub icmp: u32,
    /// SCTP association.
    pub sctp_established: u32,
    /// Everything else.
    pub other: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            tcp_established: 86_400,
            tcp_handshake: 60,
            tcp_closing: 120,
            udp: 30,
            udp_stream: 180,
            icmp: 30,
            sctp_established: 86_400,
            other: 60,
        }
    }
}

/// Knobs of the packet path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port of the overlay.
    pub vxlan_port: u16,
    /// Denied TCP, UDP and SCTP packets are answered instead of dropped (`policy.default_action: reject`).
    pub reject: bool,
    /// Whether pod traffic that leaves the cluster gets the node's address.
    pub masquerade: bool,
    /// Destinations never masqueraded.
    pub masquerade_exclude: Lpm<()>,
    /// First and last port of this node's own SNAT range, inclusive.
    pub snat_ports: (u16, u16),
    /// Most blocks of 64 ports of one address that one source may have.
    pub snat_blocks_per_source: u16,
    /// First and last NodePort, inclusive.
    pub node_ports: (u16, u16),
    /// Flow time-outs.
    pub timeouts: Timeouts,
}
