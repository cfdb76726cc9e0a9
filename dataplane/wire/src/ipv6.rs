//! The IPv6 header, the fragment header, and the walk over extension headers.
//!
//! ```text
//! 0                 4              6      7     8        24       40
//! │ v/class/label   │ payload len  │ next │ hops│ source │ dest   │ extension headers …
//! ```
//! Source: RFC 8200; Authentication Header length by RFC 4302; routing type 0 refused by RFC 5095. Owner thread: any.
//! Invariant: the walk ends after [`MAX_EXTENSIONS`] headers, whatever the packet says. Cost: one branch when there is no
//! extension header, else one read per header.

use crate::checksum::{Delta, Sum};
use crate::header::Header;
use crate::malformed::Malformed;
use crate::protocol::Protocol;
use core::net::Ipv6Addr;
use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Extension headers looked at before a packet is refused.
pub const MAX_EXTENSIONS: usize = 8;

/// The 40 bytes of every IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ipv6Header {
    /// Version in the upper 4, traffic class in the next 8, flow label in the lower 20 bits.
    pub version_class_label: U32,
    /// Bytes behind this header, extension headers included.
    pub payload_length: U16,
    /// What follows this header.
    pub next_header: Protocol,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

impl Header for Ipv6Header {}
const _: () = assert!(Ipv6Header::LEN == 40);

impl Ipv6Header {
    /// A header with traffic class and flow label 0. `payload_len` in bytes; `None` if it is more than 65535.
    #[inline]
    pub fn new(
        source: Ipv6Addr,
        destination: Ipv6Addr,
        next_header: Protocol,
        hop_limit: u8,
        payload_len: usize,
    ) -> Option<Self> {
        Some(Self {
            version_class_label: U32::new(6 << 28),
            payload_length: U16::new(u16::try_from(payload_len).ok()?),
            next_header,
            hop_limit,
            source: source.octets(),
            destination: destination.octets(),
        })
    }

    /// Version field; 6 in a sound header.
    #[inline]
    pub fn version(&self) -> u8 {
        (self.version_class_label.get() >> 28) as u8
    }

    /// DSCP in the upper six, ECN in the lower two bits, as in IPv4's tos.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        (self.version_class_label.get() >> 20) as u8
    }

    /// Flow label, 20 bits.
    #[inline]
    pub fn flow_label(&self) -> u32 {
        self.version_class_label.get() & 0x000f_ffff
    }

    /// Sets DSCP and ECN. No checksum covers them.
    #[inline]
    pub fn set_traffic_class(&mut self, class: u8) {
        let rest = self.version_class_label.get() & 0xf00f_ffff;
        self.version_class_label.set(rest | u32::from(class) << 20);
    }

    /// Sets the flow label, of which the lower 20 bits count. No checksum covers it.
    #[inline]
    pub fn set_flow_label(&mut self, label: u32) {
        let rest = self.version_class_label.get() & 0xfff0_0000;
        self.version_class_label.set(rest | label & 0x000f_ffff);
    }

    /// Source address.
    #[inline]
    pub const fn source_addr(&self) -> Ipv6Addr {
        Ipv6Addr::from_octets(self.source)
    }

    /// Destination address.
    #[inline]
    pub const fn destination_addr(&self) -> Ipv6Addr {
        Ipv6Addr::from_octets(self.destination)
    }

    /// Pseudo-header sum for `length` bytes of transport header and payload of `protocol`, which is that of the
    /// transport header, not this header's next-header field (RFC 8200 §8.1).
    #[inline]
    pub fn pseudo_header(&self, protocol: Protocol, length: u32) -> Sum {
        Sum::pseudo_ipv6(&self.source, &self.destination, protocol, length)
    }

    /// Sets the source address and returns the delta for a transport checksum.
    #[inline]
    pub fn set_source(&mut self, source: [u8; 16]) -> Delta {
        let delta = Delta::ipv6(&self.source, &source);
        self.source = source;
        delta
    }

    /// Sets the destination address and returns the delta for a transport checksum.
    #[inline]
    pub fn set_destination(&mut self, destination: [u8; 16]) -> Delta {
        let delta = Delta::ipv6(&self.destination, &destination);
        self.destination = destination;
        delta
    }

    /// Takes one off the hop limit; `false`, and nothing changed, if none would be left to travel on with.
    #[inline]
    pub fn decrement_hop_limit(&mut self) -> bool {
        if self.hop_limit <= 1 {
            return false;
        }
        self.hop_limit -= 1;
        true
    }
}

/// The fragment extension header (RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FragmentHeader {
    /// What follows this header in the whole packet.
    pub next_header: Protocol,
    /// Zero when sent, ignored when received.
    pub reserved: u8,
    /// Offset in the upper 13, reserved in two, more-fragments in the lowest bit.
    pub offset_more: U16,
    /// Which fragments belong together.
    pub identification: U32,
}

impl Header for FragmentHeader {}
const _: () = assert!(FragmentHeader::LEN == 8);

impl FragmentHeader {
    /// Where this fragment's payload belongs in the whole, bytes: the field counts units of 8 from bit 3 on.
    #[inline]
    pub fn offset(&self) -> u16 {
        self.offset_more.get() & 0xfff8
    }

    /// Whether fragments behind this one exist.
    #[inline]
    pub fn more(&self) -> bool {
        self.offset_more.get() & 1 != 0
    }
}

/// Where an IPv6 packet's extension headers end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extensions {
    /// What follows the last extension header.
    pub protocol: Protocol,
    /// Offset of what follows, in the slice the walk was given.
    pub end: usize,
    /// Offset of the fragment header, if there is one.
    pub fragment: Option<usize>,
}

/// Walks the extension headers that start at `offset` of `bytes` with one of kind `next`. Stops at the first header that
/// is none, and behind the fragment header of a fragment other than the first, where no header follows but payload.
#[inline]
pub fn walk_extensions(bytes: &[u8], next: Protocol, offset: usize) -> Result<Extensions, Malformed> {
    if !next.is_ipv6_extension() {
        return Ok(Extensions { protocol: next, end: offset, fragment: None });
    }
    walk(bytes, next, offset)
}

#[cold]
fn walk(bytes: &[u8], mut next: Protocol, mut offset: usize) -> Result<Extensions, Malformed> {
    let mut fragment = None;
    for position in 0..MAX_EXTENSIONS {
        if !next.is_ipv6_extension() {
            return Ok(Extensions { protocol: next, end: offset, fragment });
        }
        let fixed =
            bytes.get(offset..).and_then(|rest| rest.first_chunk::<8>()).ok_or(Malformed::ExtensionTruncated)?;
        let length = match next {
            Protocol::HOP_BY_HOP if position > 0 => return Err(Malformed::ExtensionOrder),
            Protocol::ROUTING if fixed[2] == 0 => return Err(Malformed::SourceRoute),
            Protocol::FRAGMENT => {
                if fragment.replace(offset).is_some() {
                    return Err(Malformed::ExtensionOrder);
                }
                let later = u16::from_be_bytes([fixed[2], fixed[3]]) & 0xfff8 != 0;
                if later {
                    return Ok(Extensions {
                        protocol: Protocol(fixed[0]),
                        end: offset + FragmentHeader::LEN,
                        fragment,
                    });
                }
                FragmentHeader::LEN
            }
            Protocol::AUTHENTICATION => (usize::from(fixed[1]) + 2) * 4,
            _ => (usize::from(fixed[1]) + 1) * 8,
        };
        next = Protocol(fixed[0]);
        offset += length;
        if offset > bytes.len() {
            return Err(Malformed::ExtensionTruncated);
        }
    }
    if next.is_ipv6_extension() {
        return Err(Malformed::TooManyExtensions);
    }
    Ok(Extensions { protocol: next, end: offset, fragment })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_read_where_rfc_8200_puts_them() {
        let mut bytes = [0u8; 40];
        bytes[..8].copy_from_slice(&[0x6b, 0x81, 0x23, 0x45, 0x00, 0x28, 6, 63]);
        bytes[8] = 0xfd;
        bytes[39] = 1;
        let header = Ipv6Header::at_mut(&mut bytes, 0).unwrap();
        assert_eq!((header.version(), header.traffic_class(), header.flow_label()), (6, 0xb8, 0x12345));
        assert_eq!((header.payload_length.get(), header.next_header, header.hop_limit), (40, Protocol::TCP, 63));
        assert_eq!(header.source_addr(), "fd00::".parse::<Ipv6Addr>().unwrap());
        assert_eq!(header.destination_addr(), Ipv6Addr::LOCALHOST);
        header.set_traffic_class(0x03);
        assert_eq!((header.version(), header.traffic_class(), header.flow_label()), (6, 0x03, 0x12345));
        header.set_flow_label(0xfff_ffff);
        assert_eq!((header.version(), header.traffic_class(), header.flow_label()), (6, 0x03, 0xfffff));
    }

    #[test]
    fn a_packet_without_extensions_is_not_walked() {
        let found = walk_extensions(&[], Protocol::TCP, 40).unwrap();
        assert_eq!(found, Extensions { protocol: Protocol::TCP, end: 40, fragment: None });
    }

    #[test]
    fn hop_by_hop_then_first_fragment_then_tcp() {
        let bytes = [44, 0, 5, 2, 0, 0, 1, 0, 6, 0, 0, 1, 0xde, 0xad, 0xbe, 0xef];
        let found = walk_extensions(&bytes, Protocol::HOP_BY_HOP, 0).unwrap();
        assert_eq!(found, Extensions { protocol: Protocol::TCP, end: 16, fragment: Some(8) });
        let header = FragmentHeader::at(&bytes, 8).unwrap();
        assert_eq!((header.offset(), header.more(), header.identification.get()), (0, true, 0xdead_beef));
    }

    #[test]
    fn behind_a_later_fragment_header_nothing_is_a_header() {
        // Next header says destination options, but these bytes are from the middle of somebody's payload.
        let bytes = [60, 0, 0x05, 0xa8, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        let found = walk_extensions(&bytes, Protocol::FRAGMENT, 0).unwrap();
        assert_eq!(found, Extensions { protocol: Protocol::DESTINATION_OPTIONS, end: 8, fragment: Some(0) });
        assert_eq!(FragmentHeader::at(&bytes, 0).unwrap().offset(), 1448);
    }

    #[test]
    fn an_authentication_header_counts_in_words_of_four() {
        let mut bytes = [0u8; 24];
        bytes[..2].copy_from_slice(&[17, 4]);
        assert_eq!(walk_extensions(&bytes, Protocol::AUTHENTICATION, 0).unwrap().end, 24);
    }

    #[test]
    fn chains_that_break_a_rule_are_refused_each_with_its_cause() {
        let walk = |bytes: &[u8], next| walk_extensions(bytes, next, 0).unwrap_err();
        assert_eq!(walk(&[6, 0, 0], Protocol::DESTINATION_OPTIONS), Malformed::ExtensionTruncated);
        assert_eq!(walk(&[6, 1, 0, 0, 0, 0, 0, 0], Protocol::DESTINATION_OPTIONS), Malformed::ExtensionTruncated);
        let twice = [0, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0];
        assert_eq!(walk(&twice, Protocol::HOP_BY_HOP), Malformed::ExtensionOrder);
        let two_fragments = [44, 0, 0, 1, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(walk(&two_fragments, Protocol::FRAGMENT), Malformed::ExtensionOrder);
        assert_eq!(walk(&[6, 0, 0, 1, 0, 0, 0, 0], Protocol::ROUTING), Malformed::SourceRoute);
    }

    #[test]
    fn eight_extension_headers_pass_and_nine_do_not() {
        let mut bytes = [0u8; 72];
        for header in bytes.chunks_mut(8) {
            header[0] = 60;
        }
        assert_eq!(walk_extensions(&bytes, Protocol::DESTINATION_OPTIONS, 0), Err(Malformed::TooManyExtensions));
        bytes[56] = 17;
        let found = walk_extensions(&bytes, Protocol::DESTINATION_OPTIONS, 0).unwrap();
        assert_eq!((found.protocol, found.end), (Protocol::UDP, 64));
    }

    proptest! {
        #[test]
        fn the_walk_ends_inside_the_packet(bytes in prop::collection::vec(any::<u8>(), 0..300), next in any::<u8>()) {
            if let Ok(found) = walk_extensions(&bytes, Protocol(next), 0) {
                prop_assert!(found.end <= bytes.len());
                prop_assert!(found.fragment.is_none_or(|at| at + 8 <= found.end));
            }
        }
    }
}
