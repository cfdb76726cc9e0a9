//! Where the headers of one frame are, what they say, and that they are sound.
//!
//! ```text
//! 0          l3               l4           payload             end            total length
//! │ Ethernet │ IP, extensions │ transport  │ …                 │ padding …    │
//! ```
//! Source: RFC 791, RFC 8200, RFC 1122 §3.2.1.3 (martians), RFC 5508 (the packet an ICMP error quotes). Owner thread: any.
//! Invariant: every offset of a `Layers` lies inside the slice it was parsed from, `l3 <= l4 <= payload <= end`, and
//! every length was checked against the length of the whole frame. Addresses are not copied: they are read from the frame, so
//! a rewrite leaves nothing stale here but ports. Cost: some 20 compares for a packet without options, fragments or
//! errors; the rest is out of line.

mod inner;
mod martian;
mod transport;

pub use inner::Inner;
pub use transport::Transport;

use crate::checksum::Sum;
use crate::ethernet::{EtherType, EthernetHeader};
use crate::header::Header;
use crate::icmp::{self, IcmpHeader};
use crate::ipv4::{self, Ipv4Header, Ipv4Option, Ipv4Options, MORE_FRAGMENTS, OFFSET_MASK};
use crate::ipv6::{self, FragmentHeader, Ipv6Header};
use crate::malformed::Malformed;
use crate::protocol::Protocol;
use crate::sctp::{self, SctpHeader};
use crate::tcp::TcpHeader;
use crate::udp::UdpHeader;
use core::net::IpAddr;
use transport::Found;

/// Offset of what follows the Ethernet header.
const L3: usize = EthernetHeader::LEN;

/// What the frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// ARP: nothing behind the Ethernet header was looked at.
    Arp,
    /// Anything else: nothing behind the Ethernet header was looked at.
    Other(EtherType),
}

/// What a packet's fragment fields say. An IPv6 packet may carry a fragment header and be whole (RFC 6946).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification; IPv4 uses the lower 16 bits.
    pub id: u32,
    /// Where this piece belongs in the whole, bytes.
    pub offset: u16,
    /// Whether pieces behind this one exist.
    pub more: bool,
    /// Offset in the frame of the header that says so: the IPv4 header or the IPv6 fragment header.
    pub header: u16,
    /// Offset in the frame of the piece.
    pub data: u16,
}

impl Fragment {
    /// Whether the packet is a piece of a larger one.
    #[inline]
    pub const fn is_piece(&self) -> bool {
        self.more || self.offset != 0
    }
}

/// The parsed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// What the frame carries; all fields but [`l3`](Self::l3) are 0 where that is not IP.
    pub network: Network,
    /// Protocol of the transport header, behind all extension headers. Of a later IPv6 fragment the kind of header
    /// that the first fragment goes on with, which may be an extension header.
    pub protocol: Protocol,
    /// DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Offset of the network header.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Bytes of the transport header with its options; 0 where we know of none.
    pub l4_header: u16,
    /// Bytes of the IP packet, headers included: up to 65575 in IPv6.
    pub l3_length: u32,
    /// What the transport header says.
    pub transport: Transport,
    /// The fragment fields, if the packet is one or has an IPv6 fragment header.
    pub fragment: Option<Fragment>,
    /// The quoted packet of an ICMP error.
    pub inner: Option<Inner>,
}

impl Layers {
    /// Parses one Ethernet frame of `total_len` bytes whose first bytes are `frame`: all of it, or the first chunk, which must
    /// hold all headers. Bytes behind the IP packet are padding.
    #[inline]
    pub fn parse(frame: &[u8], total_len: usize) -> Result<Self, Malformed> {
        let ethernet = EthernetHeader::at(frame, 0).ok_or(Malformed::EthernetTruncated)?;
        match ethernet.ether_type {
            EtherType::IPV4 => Self::ipv4_packet(frame, total_len.max(frame.len())),
            EtherType::IPV6 => Self::ipv6_packet(frame, total_len.max(frame.len())),
            EtherType::ARP => Ok(Self::not_ip(Network::Arp)),
            other => Ok(Self::not_ip(Network::Other(other))),
        }
    }

    #[inline]
    const fn not_ip(network: Network) -> Self {
        Self {
            network,
            protocol: Protocol(0),
            tos: 0,
            ttl: 0,
            l3: L3 as u16,
            l4: L3 as u16,
            l4_header: 0,
            l3_length: 0,
            transport: Transport::Opaque,
            fragment: None,
            inner: None,
        }
    }

    #[inline]
    fn ipv4_packet(frame: &[u8], total_len: usize) -> Result<Self, Malformed> {
        let ip = Ipv4Header::at(frame, L3).ok_or(Malformed::NetworkTruncated)?;
        if ip.version() != 4 {
            return Err(Malformed::Version);
        }
        let header_len = ip.header_len();
        if header_len < Ipv4Header::LEN {
            return Err(Malformed::HeaderLength);
        }
        let length = usize::from(ip.total_length.get());
        let (l4, end) = (L3 + header_len, L3 + length);
        if length < header_len || end > total_len {
            return Err(Malformed::TotalLength);
        }
        martian::check_ipv4(ip)?;
        let headers = frame.get(..end).unwrap_or(frame);
        if header_len != Ipv4Header::LEN {
            check_ipv4_options(headers.get(L3 + Ipv4Header::LEN..l4).ok_or(Malformed::NetworkTruncated)?)?;
        }
        let word = ip.flags_offset.get();
        let fragment = if word & (MORE_FRAGMENTS | OFFSET_MASK) == 0 {
            None
        } else {
            Some(check_fragment(
                Fragment {
                    id: u32::from(ip.identification.get()),
                    offset: ip.fragment_offset(),
                    more: ip.more_fragments(),
                    header: L3 as u16,
                    data: l4 as u16,
                },
                end,
            )?)
        };
        let found = Found::transport(headers, l4, end, ip.protocol, Protocol::ICMP, fragment)?;
        Ok(Self {
            network: Network::Ipv4,
            protocol: ip.protocol,
            tos: ip.tos,
            ttl: ip.ttl,
            l3: L3 as u16,
            l4: l4 as u16,
            l4_header: found.header,
            l3_length: length as u32,
            transport: found.transport,
            fragment,
            inner: found.inner,
        })
    }

    #[inline]
    fn ipv6_packet(frame: &[u8], total_len: usize) -> Result<Self, Malformed> {
        let ip = Ipv6Header::at(frame, L3).ok_or(Malformed::NetworkTruncated)?;
        if ip.version() != 6 {
            return Err(Malformed::Version);
        }
        let length = Ipv6Header::LEN + usize::from(ip.payload_length.get());
        let end = L3 + length;
        if end > total_len {
            return Err(Malformed::PayloadLength);
        }
        let headers = frame.get(..end).unwrap_or(frame);
        let extensions = ipv6::walk_extensions(headers, ip.next_header, L3 + Ipv6Header::LEN)?;
        martian::check_ipv6(ip, extensions.protocol)?;
        let fragment = match extensions.fragment {
            None => None,
            Some(at) => {
                let header = FragmentHeader::at(headers, at).ok_or(Malformed::ExtensionTruncated)?;
                Some(check_fragment(
                    Fragment {
                        id: header.identification.get(),
                        offset: header.offset(),
                        more: header.more(),
                        header: at as u16,
                        data: (at + FragmentHeader::LEN) as u16,
                    },
                    end,
                )?)
            }
        };
        let found = Found::transport(headers, extensions.end, end, extensions.protocol, Protocol::ICMPV6, fragment)?;
        Ok(Self {
            network: Network::Ipv6,
            protocol: extensions.protocol,
            tos: ip.traffic_class(),
            ttl: ip.hop_limit,
            l3: L3 as u16,
            l4: extensions.end as u16,
            l4_header: found.header,
            l3_length: length as u32,
            transport: found.transport,
            fragment,
            inner: found.inner,
        })
    }

    /// Whether the frame carries IPv4 or IPv6.
    #[inline]
    pub const fn is_ip(&self) -> bool {
        matches!(self.network, Network::Ipv4 | Network::Ipv6)
    }

    /// Offset behind the IP packet's last byte.
    #[inline]
    pub const fn end(&self) -> usize {
        self.l3 as usize + self.l3_length as usize
    }

    /// Offset of the transport payload.
    #[inline]
    pub const fn payload(&self) -> usize {
        self.l4 as usize + self.l4_header as usize
    }

    /// Bytes of the transport payload.
    #[inline]
    pub const fn payload_len(&self) -> usize {
        self.end().saturating_sub(self.payload())
    }

    /// Bytes of transport header and payload.
    #[inline]
    pub const fn l4_length(&self) -> usize {
        self.end().saturating_sub(self.l4 as usize)
    }

    /// Whether the packet is a piece of a larger one.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.is_piece())
    }

    /// Whether it is an ICMP error.
    #[inline]
    pub const fn is_icmp_error(&self) -> bool {
        matches!(self.transport, Transport::Icmp { kind, .. } if icmp::is_error(self.protocol, kind))
    }

    /// The IPv4 header; `None` if the frame carries none.
    #[inline]
    pub fn ipv4<'a>(&self, frame: &'a [u8]) -> Option<&'a Ipv4Header> {
        if self.network == Network::Ipv4 { Ipv4Header::at(frame, usize::from(self.l3)) } else { None }
    }

    /// The IPv6 header; `None` if the frame carries none.
    #[inline]
    pub fn ipv6<'a>(&self, frame: &'a [u8]) -> Option<&'a Ipv6Header> {
        if self.network == Network::Ipv6 { Ipv6Header::at(frame, usize::from(self.l3)) } else { None }
    }

    /// Source address; `None` if the frame carries no IP.
    #[inline]
    pub fn source(&self, frame: &[u8]) -> Option<IpAddr> {
        match self.network {
            Network::Ipv4 => self.ipv4(frame).map(|ip| ip.source_addr().into()),
            _ => self.ipv6(frame).map(|ip| ip.source_addr().into()),
        }
    }

    /// Destination address; `None` if the frame carries no IP.
    #[inline]
    pub fn destination(&self, frame: &[u8]) -> Option<IpAddr> {
        match self.network {
            Network::Ipv4 => self.ipv4(frame).map(|ip| ip.destination_addr().into()),
            _ => self.ipv6(frame).map(|ip| ip.destination_addr().into()),
        }
    }

    /// Whether the IPv4 header checksum is right; true for all that has none.
    #[inline]
    pub fn header_checksum_ok(&self, frame: &[u8]) -> bool {
        match self.network {
            Network::Ipv4 => {
                let header_len = self.ipv4(frame).map_or(0, |ip| ip.header_len());
                let l3 = usize::from(self.l3);
                frame.get(l3..l3 + header_len).is_some_and(ipv4::verify_checksum)
            }
            _ => true,
        }
    }

    /// Position of the transport checksum field, bytes from the transport header; `None` for a later fragment and for
    /// protocols we do not look into. SCTP's is a CRC of four bytes, all others are Internet checksums of two.
    #[inline]
    pub const fn checksum_offset(&self) -> Option<u16> {
        match self.transport {
            Transport::Tcp { .. } => Some(TcpHeader::CHECKSUM_OFFSET),
            Transport::Udp { .. } => Some(UdpHeader::CHECKSUM_OFFSET),
            Transport::Sctp { .. } => Some(SctpHeader::CHECKSUM_OFFSET),
            Transport::Icmp { .. } => Some(IcmpHeader::CHECKSUM_OFFSET),
            Transport::Fragment | Transport::Opaque => None,
        }
    }

    /// The pseudo-header sum of the transport checksum: zero where the transport has none (SCTP, ICMP for IPv4).
    /// `None` if the frame carries no IP.
    #[inline]
    pub fn pseudo_header(&self, frame: &[u8]) -> Option<Sum> {
        if matches!(self.protocol, Protocol::SCTP | Protocol::ICMP) {
            return self.is_ip().then_some(Sum::ZERO);
        }
        let length = match self.transport {
            Transport::Udp { .. } => u32::from(UdpHeader::at(frame, usize::from(self.l4))?.length.get()),
            _ => self.l4_length() as u32,
        };
        match self.network {
            Network::Ipv4 => Some(self.ipv4(frame)?.pseudo_header(length)),
            Network::Ipv6 => Some(self.ipv6(frame)?.pseudo_header(self.protocol, length)),
            _ => None,
        }
    }

    /// Whether the transport checksum is right. `None` where that cannot be said: a piece of a packet, a frame of which
    /// `frame` is not all, a protocol without a checksum we know, or UDP without one.
    pub fn transport_checksum_ok(&self, frame: &[u8]) -> Option<bool> {
        if self.is_fragment() {
            return None;
        }
        let mut segment = frame.get(usize::from(self.l4)..self.end())?;
        match self.transport {
            Transport::Sctp { .. } => return Some(sctp::verify(segment)),
            Transport::Udp { .. } => {
                let header = UdpHeader::at(segment, 0)?;
                if header.checksum.get() == 0 {
                    return None;
                }
                segment = segment.get(..usize::from(header.length.get()))?;
            }
            Transport::Fragment | Transport::Opaque => return None,
            Transport::Tcp { .. } | Transport::Icmp { .. } => {}
        }
        Some(self.pseudo_header(frame)?.combine(Sum::bytes(segment)).verifies())
    }
}

#[cold]
fn check_ipv4_options(options: &[u8]) -> Result<(), Malformed> {
    for option in Ipv4Options::new(options) {
        match option {
            Err(_) => return Err(Malformed::Options),
            Ok(option) if matches!(option.kind, Ipv4Option::LOOSE_SOURCE_ROUTE | Ipv4Option::STRICT_SOURCE_ROUTE) => {
                return Err(Malformed::SourceRoute);
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

#[cold]
fn check_fragment(fragment: Fragment, end: usize) -> Result<Fragment, Malformed> {
    let length = end.saturating_sub(usize::from(fragment.data));
    if fragment.is_piece() && length == 0 || fragment.more && !length.is_multiple_of(8) {
        return Err(Malformed::FragmentLength);
    }
    if usize::from(fragment.offset) + length > 65535 {
        return Err(Malformed::FragmentBeyondEnd);
    }
    Ok(fragment)
}

#[cfg(test)]
mod tests;
