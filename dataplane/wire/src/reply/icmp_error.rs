//! ICMP errors about a packet that we do not deliver.

use super::{Envelope, Link, TTL};
use crate::ethernet::EthernetHeader;
use crate::header::Header;
use crate::icmp::{IcmpHeader, v4, v6};
use crate::ipv4::Ipv4Header;
use crate::ipv6::Ipv6Header;
use crate::layers::{Layers, Network, Transport};
use crate::protocol::Protocol;
use core::net::IpAddr;

/// What is wrong with a packet, in the words of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Nobody listens on that port.
    PortUnreachable,
    /// The host does not answer.
    HostUnreachable,
    /// There is no way to that network.
    NoRoute,
    /// A policy forbids it.
    Prohibited,
    /// Longer than the next hop takes and not to be fragmented.
    TooBig {
        /// What the next hop takes, bytes of IP packet.
        mtu: u16,
    },
    /// Its TTL or hop limit ran out.
    TimeExceeded,
}

impl IcmpError {
    /// Header of the error in IPv4 (RFC 792, 1191, 1812).
    fn ipv4(self) -> IcmpHeader {
        match self {
            Self::PortUnreachable => IcmpHeader::new(v4::UNREACHABLE, v4::PORT, 0),
            Self::HostUnreachable => IcmpHeader::new(v4::UNREACHABLE, v4::HOST, 0),
            Self::NoRoute => IcmpHeader::new(v4::UNREACHABLE, v4::NETWORK, 0),
            Self::Prohibited => IcmpHeader::new(v4::UNREACHABLE, v4::PROHIBITED, 0),
            Self::TooBig { mtu } => IcmpHeader::new(v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED, u32::from(mtu)),
            Self::TimeExceeded => IcmpHeader::new(v4::TIME_EXCEEDED, v4::IN_TRANSIT, 0),
        }
    }

    /// Header of the error in IPv6 (RFC 4443).
    fn ipv6(self) -> IcmpHeader {
        match self {
            Self::PortUnreachable => IcmpHeader::new(v6::UNREACHABLE, v6::PORT, 0),
            Self::HostUnreachable => IcmpHeader::new(v6::UNREACHABLE, v6::ADDRESS, 0),
            Self::NoRoute => IcmpHeader::new(v6::UNREACHABLE, v6::NO_ROUTE, 0),
            Self::Prohibited => IcmpHeader::new(v6::UNREACHABLE, v6::PROHIBITED, 0),
            Self::TooBig { mtu } => IcmpHeader::new(v6::PACKET_TOO_BIG, 0, u32::from(mtu)),
            Self::TimeExceeded => IcmpHeader::new(v6::TIME_EXCEEDED, v6::IN_TRANSIT, 0),
        }
    }
}

/// Longest error packet in IPv4 (RFC 1812 §4.3.2.3).
const MAX_IPV4: usize = 576;
/// Longest error packet in IPv6: what every link takes (RFC 4443 §2.4).
const MAX_IPV6: usize = 1280;

/// Whether an ICMP error may tell of this packet (RFC 1122 §3.2.2, RFC 4443 §2.4): not about an ICMP error or redirect, a
/// fragment but the first, anything sent to a group or to everyone, nor to a sender that is not one host.
pub fn may_send_error(frame: &[u8], layers: &Layers) -> bool {
    if layers.fragment.is_some_and(|fragment| fragment.offset != 0) || layers.is_icmp_error() {
        return false;
    }
    if EthernetHeader::at(frame, 0).is_none_or(|ethernet| ethernet.destination.is_multicast()) {
        return false;
    }
    match layers.network {
        Network::Ipv4 => layers.ipv4(frame).is_some_and(|ip| {
            let (source, destination) = (ip.source_addr(), ip.destination_addr());
            let one_host = !source.is_unspecified() && !source.is_multicast() && !source.is_broadcast();
            one_host && !destination.is_multicast() && !destination.is_broadcast()
        }),
        Network::Ipv6 => {
            let redirect = matches!(layers.transport, Transport::Icmp { kind: v6::REDIRECT, .. });
            layers.ipv6(frame).is_some_and(|ip| {
                let (source, destination) = (ip.source_addr(), ip.destination_addr());
                let one_host = !source.is_unspecified() && !source.is_multicast();
                one_host && !destination.is_multicast() && !redirect
            })
        }
        _ => false,
    }
}

/// An ICMP error from `source` to the sender of the packet in `frame`, which is quoted as far as the family allows and
/// `frame` holds it; returns the bytes written. `None` if no error may be sent ([`may_send_error`]), `source` is of the
/// other family, or `out` is too short (590 bytes are enough for IPv4, 1294 for IPv6).
pub fn icmp_error(
    frame: &[u8],
    layers: &Layers,
    link: Link,
    source: IpAddr,
    error: IcmpError,
    out: &mut [u8],
) -> Option<usize> {
    if !may_send_error(frame, layers) {
        return None;
    }
    let (header, protocol, room) = match source {
        IpAddr::V4(_) => (error.ipv4(), Protocol::ICMP, MAX_IPV4 - Ipv4Header::LEN - IcmpHeader::LEN),
        IpAddr::V6(_) => (error.ipv6(), Protocol::ICMPV6, MAX_IPV6 - Ipv6Header::LEN - IcmpHeader::LEN),
    };
    let packet = frame.get(usize::from(layers.l3)..layers.end().min(frame.len()))?;
    let quoted = packet.get(..room).unwrap_or(packet);
    let destination = layers.source(frame)?;
    let envelope = Envelope { link, source, destination, protocol, ttl: TTL, tos: 0 };
    let mut draft = envelope.open(IcmpHeader::LEN + quoted.len(), out)?;
    header.put(draft.out, draft.l4)?;
    draft.copy(IcmpHeader::LEN, quoted)?;
    draft.close(IcmpHeader::CHECKSUM_OFFSET)
}
