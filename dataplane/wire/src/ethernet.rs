//! The Ethernet II header and hardware addresses.
//!
//! ```text
//! 0        6        12     14
//! │ dst    │ src    │ type │ payload …
//! ```
//! Source: IEEE 802.3 clause 3, IANA "IEEE 802 Numbers". Owner thread: any. Cost: 14 bytes read in place.

use crate::header::Header;
use core::fmt;
use core::net::Ipv4Addr;
use core::str::FromStr;
use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A 48-bit hardware address.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations of the link.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// No address; in ARP "not known yet".
    pub const ZERO: Self = Self([0; 6]);

    /// The locally administered address `02:00` followed by an IPv4 address: how nodes and neighbours are named where
    /// nothing tells their real address.
    #[inline]
    pub const fn from_ipv4(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x00, a, b, c, d])
    }

    /// The group address of an IPv6 multicast destination: `33:33` and its last four bytes (RFC 2464 §7).
    #[inline]
    pub const fn from_ipv6_multicast(group: &[u8; 16]) -> Self {
        Self([0x33, 0x33, group[12], group[13], group[14], group[15]])
    }

    /// Whether more than one station listens to it; true for broadcast.
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not six hexadecimal bytes with colons between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidMac;

impl fmt::Display for InvalidMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a hardware address is six two-digit hexadecimal bytes with ':' between them")
    }
}

impl core::error::Error for InvalidMac {}

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().ok_or(InvalidMac)?;
            // from_str_radix would take a sign as well.
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(InvalidMac);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| InvalidMac)?;
        }
        if parts.next().is_some() { Err(InvalidMac) } else { Ok(Self(mac)) }
    }
}

/// What an Ethernet frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct EtherType(pub U16);

impl EtherType {
    /// IPv4 (RFC 894).
    pub const IPV4: Self = Self(U16::from_bytes([0x08, 0x00]));
    /// ARP (RFC 826).
    pub const ARP: Self = Self(U16::from_bytes([0x08, 0x06]));
    /// IPv6 (RFC 2464).
    pub const IPV6: Self = Self(U16::from_bytes([0x86, 0xdd]));
}

impl fmt::Debug for EtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0.get())
    }
}

/// The 14 bytes in front of every frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EthernetHeader {
    /// Receiver.
    pub destination: Mac,
    /// Sender.
    pub source: Mac,
    /// Kind of payload.
    pub ether_type: EtherType,
}

impl Header for EthernetHeader {}
const _: () = assert!(EthernetHeader::LEN == 14);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_reads_its_fields_in_wire_order() {
        let bytes = [0x02, 0, 10, 0, 0, 2, 0x02, 0, 10, 0, 0, 1, 0x86, 0xdd];
        let header = EthernetHeader::at(&bytes, 0).unwrap();
        assert_eq!(header.destination, Mac::from_ipv4(Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(header.source, Mac::from_ipv4(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(header.ether_type, EtherType::IPV6);
        assert_eq!(header.as_bytes(), bytes);
    }

    #[test]
    fn a_mac_survives_printing_and_parsing() {
        let mac = Mac([0x02, 0, 0xa9, 0xfe, 1, 1]);
        assert_eq!(mac.to_string(), "02:00:a9:fe:01:01");
        assert_eq!("02:00:A9:fe:01:01".parse(), Ok(mac));
    }

    #[test]
    fn text_that_is_no_mac_is_refused() {
        for text in
            ["", "02:00:a9:fe:01", "02:00:a9:fe:01:01:01", "02:00:a9:fe:01:+1", "2:0:a9:fe:1:1", "0x:00:a9:fe:01:01"]
        {
            assert_eq!(text.parse::<Mac>(), Err(InvalidMac), "{text}");
        }
    }

    #[test]
    fn group_addresses_are_multicast_and_broadcast_is_one() {
        assert!(Mac::BROADCAST.is_multicast());
        let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(Mac::from_ipv6_multicast(&all_nodes), Mac([0x33, 0x33, 0, 0, 0, 1]));
        assert!(Mac::from_ipv6_multicast(&all_nodes).is_multicast());
        assert!(!Mac::from_ipv4(Ipv4Addr::new(10, 0, 0, 1)).is_multicast());
    }
}
