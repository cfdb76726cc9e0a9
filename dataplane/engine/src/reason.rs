//! Why a packet went no further: the closed list of the contract, with the stage that said so.

/// One reason per way to lose or refuse a packet. The doc line is what operators read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// Header lengths, versions or fragments contradict each other.
    Malformed,
    /// The IPv4 header checksum is wrong.
    BadChecksum,
    /// The source address does not belong to the pod or node that sent the packet.
    SourceSpoofed,
    /// A policy denies the flow.
    PolicyDeny,
    /// The Service has no backend, or no such port.
    NoBackend,
    /// The Service has backends, but its Local policy leaves none on this node.
    NoLocalBackend,
    /// The client is outside the Service's loadBalancerSourceRanges.
    SourceRangeDeny,
    /// Nothing knows a way to the destination.
    NoRoute,
    /// The next hop's MAC address is not known.
    NoNeighbour,
    /// TTL or hop limit ran out here.
    TtlExpired,
    /// The packet does not fit the way out and may not be fragmented.
    TooBig,
    /// Every flow entry is in use by an established flow.
    FlowTableFull,
    /// Every SNAT port of the address is in use towards this destination.
    SnatPortsExhausted,
    /// The packet does not belong to any state its protocol can be in.
    InvalidState,
    /// The overlay packet bears another network identifier.
    UnknownVni,
    /// The overlay packet comes from an address that is no node of the cluster.
    UnknownTunnelPeer,
    /// A protocol that cannot be handled here.
    UnsupportedProtocol,
    /// The other fragments did not come in time.
    FragmentTimeout,
    /// Too many fragments are waiting.
    FragmentLimit,
    /// The device's transmit ring was full.
    TxFull,
    /// The other worker's ring was full.
    HandoffFull,
    /// The frame or packet is meant for somebody else.
    NotForUs,
}

impl Reason {
    /// Every reason, in the contract's order.
    pub const ALL: [Reason; 22] = [
        Reason::Malformed,
        Reason::BadChecksum,
        Reason::SourceSpoofed,
        Reason::PolicyDeny,
        Reason::NoBackend,
        Reason::NoLocalBackend,
        Reason::SourceRangeDeny,
        Reason::NoRoute,
        Reason::NoNeighbour,
        Reason::TtlExpired,
        Reason::TooBig,
        Reason::FlowTableFull,
        Reason::SnatPortsExhausted,
        Reason::InvalidState,
        Reason::UnknownVni,
        Reason::UnknownTunnelPeer,
        Reason::UnsupportedProtocol,
        Reason::FragmentTimeout,
        Reason::FragmentLimit,
        Reason::TxFull,
        Reason::HandoffFull,
        Reason::NotForUs,
    ];

    /// The name in metrics and verdict lines.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Malformed => "Malformed",
            Reason::BadChecksum => "BadChecksum",
            Reason::SourceSpoofed => "SourceSpoofed",
            Reason::PolicyDeny => "PolicyDeny",
            Reason::NoBackend => "NoBackend",
            Reason::NoLocalBackend => "NoLocalBackend",
            Reason::SourceRangeDeny => "SourceRangeDeny",
            Reason::NoRoute => "NoRoute",
            Reason::NoNeighbour => "NoNeighbour",
            Reason::TtlExpired => "TtlExpired",
            Reason::TooBig => "TooBig",
            Reason::FlowTableFull => "FlowTableFull",
            Reason::SnatPortsExhausted => "SnatPortsExhausted",
            Reason::InvalidState => "InvalidState",
            Reason::UnknownVni => "UnknownVni",
            Reason::UnknownTunnelPeer => "UnknownTunnelPeer",
            Reason::UnsupportedProtocol => "UnsupportedProtocol",
            Reason::FragmentTimeout => "FragmentTimeout",
            Reason::FragmentLimit => "FragmentLimit",
            Reason::TxFull => "TxFull",
            Reason::HandoffFull => "HandoffFull",
            Reason::NotForUs => "NotForUs",
        }
    }
}

/// Where in the corridor the packet ended (label `stage` of `drops_total`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Parsing and validation, decapsulation.
    Parse,
    /// A packet on its way out of a pod.
    Egress,
    /// A packet on its way into a pod.
    Ingress,
    /// A packet to the node's addresses, or in transit.
    Transit,
    /// Sending: size, neighbour, ring.
    Send,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Stage; 5] = [Stage::Parse, Stage::Egress, Stage::Ingress, Stage::Transit, Stage::Send];

    /// The label.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Parse => "parse",
            Stage::Egress => "egress",
            Stage::Ingress => "ingress",
            Stage::Transit => "transit",
            Stage::Send => "send",
        }
    }
}
