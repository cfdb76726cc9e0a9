//! The UDP header.
//!
//! Source: RFC 768; zero checksums over IPv6 by RFC 6935. Owner thread: any. Cost: fields are read in place.

use crate::checksum::Delta;
use crate::header::Header;
use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The 8 bytes of a UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UdpHeader {
    /// Source port.
    pub source: U16,
    /// Destination port.
    pub destination: U16,
    /// Bytes of header and payload.
    pub length: U16,
    /// Checksum over pseudo-header, header and payload; 0 says "none".
    pub checksum: U16,
}

impl Header for UdpHeader {}
const _: () = assert!(UdpHeader::LEN == 8);

impl UdpHeader {
    /// Where the checksum field is, bytes from the header's start.
    pub const CHECKSUM_OFFSET: u16 = 6;

    /// A header without a checksum. `payload_len` in bytes; `None` if the datagram would be longer than 65535.
    #[inline]
    pub fn new(source: u16, destination: u16, payload_len: usize) -> Option<Self> {
        let length = u16::try_from(payload_len.checked_add(Self::LEN)?).ok()?;
        Some(Self {
            source: U16::new(source),
            destination: U16::new(destination),
            length: U16::new(length),
            checksum: U16::ZERO,
        })
    }

    /// Applies a change of covered bytes to a complete checksum.
    #[inline]
    pub fn update(&mut self, delta: Delta) {
        self.checksum.set(delta.apply_udp(self.checksum.get()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_four_words() {
        let header = UdpHeader::new(53, 0xc000, 4).unwrap();
        assert_eq!(header.as_bytes(), [0, 53, 0xc0, 0, 0, 12, 0, 0]);
        assert!(UdpHeader::new(1, 2, 65528).is_none());
    }

    #[test]
    fn an_update_leaves_no_checksum_alone() {
        let mut header = UdpHeader::new(53, 54, 0).unwrap();
        header.update(Delta::u16(53, 55));
        assert_eq!(header.checksum, U16::ZERO);
    }
}
