//! The transport header of a packet: what it says of the flow, and that it is all there.
//!
//! Source: RFC 9293 §3.1, RFC 768, RFC 9260 §3, RFC 792, RFC 4443 §2.1; a first fragment holds all of it (RFC 7112, RFC 1858).
//! Owner thread: any. Cost: one bounds check and a few compares.

use super::{Fragment, Inner};
use crate::header::Header;
use crate::icmp::{self, IcmpHeader};
use crate::malformed::Malformed;
use crate::protocol::Protocol;
use crate::sctp::{ChunkType, SctpHeader};
use crate::tcp::{TcpFlags, TcpHeader};
use crate::udp::UdpHeader;

/// What the transport header says of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP; a quoted segment may be too short to tell its flags, which are then empty.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Control bits.
        flags: TcpFlags,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// SCTP.
    Sctp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Type of the first chunk, if there is one.
        chunk: Option<ChunkType>,
    },
    /// ICMP of the packet's own family.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The identifier, which means something in an echo only.
        id: u16,
    },
    /// A fragment other than the first: it has no transport header.
    Fragment,
    /// Not IP, or a protocol we do not look into.
    Opaque,
}

impl Transport {
    /// Source and destination port, where there are ports.
    #[inline]
    pub const fn ports(&self) -> Option<(u16, u16)> {
        match *self {
            Self::Tcp { source, destination, .. }
            | Self::Udp { source, destination }
            | Self::Sctp { source, destination, .. } => Some((source, destination)),
            _ => None,
        }
    }

    /// Control bits; empty where there is no TCP.
    #[inline]
    pub const fn tcp_flags(&self) -> TcpFlags {
        if let Self::Tcp { flags, .. } = *self { flags } else { TcpFlags::EMPTY }
    }
}

/// What was found behind the network headers.
pub(super) struct Found {
    pub(super) header: u16,
    pub(super) transport: Transport,
    pub(super) inner: Option<Inner>,
}

impl Found {
    /// Reads the transport header at `l4` of `headers`, which is cut at the packet's end at the latest; the packet itself
    /// goes to `end`. `icmp` is the ICMP of the packet's family.
    #[inline]
    pub(super) fn transport(
        headers: &[u8],
        l4: usize,
        end: usize,
        protocol: Protocol,
        icmp: Protocol,
        fragment: Option<Fragment>,
    ) -> Result<Self, Malformed> {
        const SHORT: Malformed = Malformed::TransportTruncated;
        let without_inner = |transport, header: usize| Ok(Self { header: header as u16, transport, inner: None });
        if fragment.is_some_and(|fragment| fragment.offset != 0) {
            return without_inner(Transport::Fragment, 0);
        }
        match protocol {
            Protocol::TCP => {
                let tcp = TcpHeader::at(headers, l4).ok_or(SHORT)?;
                let header = tcp.header_len();
                if header < TcpHeader::LEN || l4 + header > headers.len() {
                    return Err(Malformed::TcpDataOffset);
                }
                let (source, destination) = (tcp.source.get(), tcp.destination.get());
                without_inner(Transport::Tcp { source, destination, flags: tcp.flags }, header)
            }
            Protocol::UDP => {
                let udp = UdpHeader::at(headers, l4).ok_or(SHORT)?;
                let length = usize::from(udp.length.get());
                // The length is the whole datagram's, of which a first fragment holds a part.
                let whole = !fragment.is_some_and(|fragment| fragment.more);
                if length < UdpHeader::LEN || whole && l4 + length > end {
                    return Err(Malformed::UdpLength);
                }
                let (source, destination) = (udp.source.get(), udp.destination.get());
                without_inner(Transport::Udp { source, destination }, UdpHeader::LEN)
            }
            Protocol::SCTP => {
                let sctp = SctpHeader::at(headers, l4).ok_or(SHORT)?;
                let (source, destination) = (sctp.source.get(), sctp.destination.get());
                let chunk = headers.get(l4 + SctpHeader::LEN).copied().map(ChunkType);
                without_inner(Transport::Sctp { source, destination, chunk }, SctpHeader::LEN)
            }
            _ if protocol == icmp => Self::icmp(headers, l4, protocol),
            _ => without_inner(Transport::Opaque, 0),
        }
    }

    fn icmp(headers: &[u8], l4: usize, protocol: Protocol) -> Result<Self, Malformed> {
        let (message, header) = icmp_message(headers, l4, protocol).ok_or(Malformed::TransportTruncated)?;
        let inner = if icmp::is_error(protocol, message.kind) {
            let at = l4 + IcmpHeader::LEN;
            Some(if protocol == Protocol::ICMP { Inner::ipv4(headers, at)? } else { Inner::ipv6(headers, at)? })
        } else {
            None
        };
        let transport = Transport::Icmp { kind: message.kind, code: message.code, id: message.identifier.get() };
        Ok(Self { header, transport, inner })
    }
}

/// The ICMP header at `l4` and its length. ICMPv6 guarantees four bytes only (RFC 4443 §2.1); of a message that is neither error nor
/// echo that is enough, and the rest reads as zero.
pub(super) fn icmp_message(headers: &[u8], l4: usize, protocol: Protocol) -> Option<(IcmpHeader, u16)> {
    if let Some(message) = IcmpHeader::at(headers, l4) {
        return Some((*message, IcmpHeader::LEN as u16));
    }
    let [kind, code, _, _] = *headers.get(l4..)?.first_chunk::<4>()?;
    let needs_all = protocol == Protocol::ICMP || icmp::is_error(protocol, kind) || icmp::is_echo(protocol, kind);
    (!needs_all).then(|| (IcmpHeader::new(kind, code, 0), 4))
}
