//! The packet that an ICMP error quotes.
//!
//! Source: RFC 792 (header and 8 bytes are quoted), RFC 1812 §4.3.2.3, RFC 4443 §2.4; why it matters: RFC 5508 §4. Owner thread: any.
//! Invariant: both offsets lie inside the frame; lengths that the quoted headers claim are not checked, since the quote is cut off.
//! Cost: out of line, errors are rare.

use super::Transport;
use super::transport::icmp_message;
use crate::header::Header;
use crate::ipv4::Ipv4Header;
use crate::ipv6::{self, FragmentHeader, Ipv6Header};
use crate::malformed::Malformed;
use crate::protocol::Protocol;
use crate::sctp::{ChunkType, SctpHeader};
use crate::tcp::{TcpFlags, TcpHeader};
use crate::udp::UdpHeader;

/// The packet that an ICMP error is about, as far as the error quotes it. It is cut off: only its first bytes are here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Offset in the frame of its IP header.
    pub l3: u16,
    /// Offset in the frame of its transport header.
    pub l4: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its transport header; of TCP, UDP, SCTP and ICMP errors and echoes at least 8 bytes are there.
    pub transport: Transport,
}

impl Inner {
    pub(super) fn ipv4(headers: &[u8], l3: usize) -> Result<Self, Malformed> {
        let ip = Ipv4Header::at(headers, l3).ok_or(Malformed::InnerTruncated)?;
        if ip.version() != 4 || ip.header_len() < Ipv4Header::LEN {
            return Err(Malformed::InnerHeader);
        }
        let (l4, later) = (l3 + ip.header_len(), ip.fragment_offset() != 0);
        Self::transport(headers, l3, l4, ip.protocol, Protocol::ICMP, later)
    }

    pub(super) fn ipv6(headers: &[u8], l3: usize) -> Result<Self, Malformed> {
        let ip = Ipv6Header::at(headers, l3).ok_or(Malformed::InnerTruncated)?;
        if ip.version() != 6 {
            return Err(Malformed::InnerHeader);
        }
        let extensions = ipv6::walk_extensions(headers, ip.next_header, l3 + Ipv6Header::LEN)
            .map_err(|cause| if cause == Malformed::ExtensionTruncated { Malformed::InnerTruncated } else { cause })?;
        let later = extensions
            .fragment
            .and_then(|at| FragmentHeader::at(headers, at))
            .is_some_and(|fragment| fragment.offset() != 0);
        Self::transport(headers, l3, extensions.end, extensions.protocol, Protocol::ICMPV6, later)
    }

    fn transport(
        headers: &[u8],
        l3: usize,
        l4: usize,
        protocol: Protocol,
        icmp: Protocol,
        later: bool,
    ) -> Result<Self, Malformed> {
        let transport = if later {
            Transport::Fragment
        } else if protocol.has_ports() {
            // All of them start with the two ports.
            let head = UdpHeader::at(headers, l4).ok_or(Malformed::InnerTruncated)?;
            let (source, destination) = (head.source.get(), head.destination.get());
            match protocol {
                Protocol::TCP => {
                    let flags = TcpHeader::at(headers, l4).map_or(TcpFlags::EMPTY, |tcp| tcp.flags);
                    Transport::Tcp { source, destination, flags }
                }
                Protocol::UDP => Transport::Udp { source, destination },
                _ => {
                    let chunk = headers.get(l4 + SctpHeader::LEN).copied().map(ChunkType);
                    Transport::Sctp { source, destination, chunk }
                }
            }
        } else if protocol == icmp {
            let (message, _) = icmp_message(headers, l4, protocol).ok_or(Malformed::InnerTruncated)?;
            Transport::Icmp { kind: message.kind, code: message.code, id: message.identifier.get() }
        } else if l4 > headers.len() {
            return Err(Malformed::InnerTruncated);
        } else {
            Transport::Opaque
        };
        Ok(Self { l3: l3 as u16, l4: l4 as u16, protocol, transport })
    }
}
