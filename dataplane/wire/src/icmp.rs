//! ICMP for IPv4 and IPv6: one header layout, two spaces of types and codes.
//!
//! ```text
//! 0      1      2        4                 8
//! │ type │ code │ cksum  │ by type         │ payload …
//! ```
//! Source: RFC 792, RFC 4443, RFC 4861; IANA "ICMP Parameters". Owner thread: any. Invariant: the number of a type means
//! nothing without its protocol, so every question takes both. Cost: fields are read in place.

use crate::checksum::Delta;
use crate::header::Header;
use crate::protocol::Protocol;
use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Types and codes of ICMP for IPv4.
pub mod v4 {
    /// Echo Reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination Unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Source Quench (deprecated by RFC 6633).
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time Exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter Problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Code of [`UNREACHABLE`]: network.
    pub const NETWORK: u8 = 0;
    /// Code of [`UNREACHABLE`]: host.
    pub const HOST: u8 = 1;
    /// Code of [`UNREACHABLE`]: port.
    pub const PORT: u8 = 3;
    /// Code of [`UNREACHABLE`]: fragmentation needed and DF set; carries the next hop's MTU (RFC 1191).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Code of [`UNREACHABLE`]: communication administratively prohibited (RFC 1812).
    pub const PROHIBITED: u8 = 13;
    /// Code of [`TIME_EXCEEDED`]: in transit.
    pub const IN_TRANSIT: u8 = 0;
}

/// Types and codes of ICMP for IPv6.
pub mod v6 {
    /// Destination Unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet Too Big; carries the next hop's MTU.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time Exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter Problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo Request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo Reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Router Solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router Advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbor Solicitation.
    pub const NEIGHBOR_SOLICITATION: u8 = 135;
    /// Neighbor Advertisement.
    pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
    /// Redirect: informational by number, an order by nature.
    pub const REDIRECT: u8 = 137;
    /// Code of [`UNREACHABLE`]: no route.
    pub const NO_ROUTE: u8 = 0;
    /// Code of [`UNREACHABLE`]: administratively prohibited.
    pub const PROHIBITED: u8 = 1;
    /// Code of [`UNREACHABLE`]: address.
    pub const ADDRESS: u8 = 3;
    /// Code of [`UNREACHABLE`]: port.
    pub const PORT: u8 = 4;
    /// Code of [`TIME_EXCEEDED`]: in transit.
    pub const IN_TRANSIT: u8 = 0;
}

/// The 8 bytes that all messages we handle start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcmpHeader {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum over the message, and over a pseudo-header in IPv6.
    pub checksum: U16,
    /// Upper half of the field by type; of an echo its identifier.
    pub identifier: U16,
    /// Lower half of the field by type; of an echo its sequence number, of "fragmentation needed" the MTU.
    pub sequence: U16,
}

impl Header for IcmpHeader {}
const _: () = assert!(IcmpHeader::LEN == 8);

impl IcmpHeader {
    /// Where the checksum field is, bytes from the header's start.
    pub const CHECKSUM_OFFSET: u16 = 2;

    /// The four bytes by type as one number: of "packet too big" the MTU in bytes.
    #[inline]
    pub fn rest(&self) -> u32 {
        u32::from(self.identifier.get()) << 16 | u32::from(self.sequence.get())
    }

    /// A header whose four bytes by type are `rest`, without a checksum.
    #[inline]
    pub fn new(kind: u8, code: u8, rest: u32) -> Self {
        Self {
            kind,
            code,
            checksum: U16::ZERO,
            identifier: U16::new((rest >> 16) as u16),
            sequence: U16::new(rest as u16),
        }
    }

    /// Applies a change of covered bytes to a complete checksum. ICMP for IPv4 has no pseudo-header: there a change of
    /// addresses is none of its business.
    #[inline]
    pub fn update(&mut self, delta: Delta) {
        self.checksum.set(delta.apply(self.checksum.get()));
    }
}

/// Whether a message tells of an error and quotes the packet it is about, so that no error may answer it and the flow
/// it belongs to is the quoted packet's. An IPv4 Redirect and Source Quench quote a packet too.
#[inline]
pub const fn is_error(protocol: Protocol, kind: u8) -> bool {
    match protocol {
        Protocol::ICMP => matches!(
            kind,
            v4::UNREACHABLE | v4::SOURCE_QUENCH | v4::REDIRECT | v4::TIME_EXCEEDED | v4::PARAMETER_PROBLEM
        ),
        // RFC 4443 §2.1: the upper bit is clear in errors, known or not.
        Protocol::ICMPV6 => kind < 128,
        _ => false,
    }
}

/// Whether a message is an echo request.
#[inline]
pub const fn is_echo_request(protocol: Protocol, kind: u8) -> bool {
    matches!((protocol, kind), (Protocol::ICMP, v4::ECHO_REQUEST) | (Protocol::ICMPV6, v6::ECHO_REQUEST))
}

/// Whether a message is an echo reply.
#[inline]
pub const fn is_echo_reply(protocol: Protocol, kind: u8) -> bool {
    matches!((protocol, kind), (Protocol::ICMP, v4::ECHO_REPLY) | (Protocol::ICMPV6, v6::ECHO_REPLY))
}

/// Whether a message is an echo, one way or the other: its identifier then names the flow (RFC 5508 §3).
#[inline]
pub const fn is_echo(protocol: Protocol, kind: u8) -> bool {
    is_echo_request(protocol, kind) || is_echo_reply(protocol, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_carries_identifier_and_sequence() {
        let bytes = [8, 0, 0xf7, 0xd2, 0x00, 0x2a, 0x00, 0x03];
        let header = IcmpHeader::at(&bytes, 0).unwrap();
        assert_eq!((header.kind, header.identifier.get(), header.sequence.get()), (v4::ECHO_REQUEST, 42, 3));
        assert_eq!(header.rest(), 0x2a_0003);
        assert_eq!(IcmpHeader::new(2, 0, 1280).as_bytes(), [2, 0, 0, 0, 0, 0, 5, 0]);
    }

    #[test]
    fn the_same_number_is_an_error_in_one_family_only() {
        assert!(is_error(Protocol::ICMP, 3) && is_error(Protocol::ICMPV6, 3));
        assert!(is_error(Protocol::ICMPV6, 127), "unknown errors are errors");
        assert!(!is_error(Protocol::ICMP, 8) && is_error(Protocol::ICMPV6, 8));
        assert!(!is_error(Protocol::ICMPV6, 128) && !is_error(Protocol::TCP, 3));
        assert!(is_echo(Protocol::ICMP, 0) && !is_echo(Protocol::ICMPV6, 0));
        assert!(is_echo_request(Protocol::ICMPV6, 128) && is_echo_reply(Protocol::ICMPV6, 129));
    }
}
