//! The SCTP common header.
//!
//! ```text
//! 0        2        4                  8          12
//! │ source │ dest   │ verification tag │ CRC32c   │ first chunk: type, flags, length …
//! ```
//! Source: RFC 9260 §3. Owner thread: any. Invariant: the checksum covers this header and the chunks and no
//! pseudo-header, so addresses change freely while a port changes it. Cost: a port change costs a few hundred cycles
//! whatever the packet's length ([`SctpHeader::set_ports`]).

use crate::crc32c;
use crate::header::Header;
use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian};

/// The 12 bytes in front of the chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SctpHeader {
    /// Source port.
    pub source: U16,
    /// Destination port.
    pub destination: U16,
    /// The receiver's tag; 0 only with INIT.
    pub verification_tag: U32,
    /// CRC32c of header and chunks, with this field as zero; least significant byte first (RFC 9260 appendix A).
    pub checksum: little_endian::U32,
}

impl Header for SctpHeader {}
const _: () = assert!(SctpHeader::LEN == 12);

impl SctpHeader {
    /// Where the checksum field is, bytes from the header's start.
    pub const CHECKSUM_OFFSET: u16 = 8;

    /// Sets both ports of a packet of `length` bytes (header and chunks) and moves the checksum along, without reading
    /// the chunks: a right one stays right, a wrong one stays wrong.
    #[inline]
    pub fn set_ports(&mut self, source: u16, destination: u16, length: usize) {
        let old = u32::from(self.source.get()) << 16 | u32::from(self.destination.get());
        let new = u32::from(source) << 16 | u32::from(destination);
        self.source.set(source);
        self.destination.set(destination);
        let change = crc32c::change((old ^ new).to_be_bytes(), length.saturating_sub(4));
        self.checksum.set(self.checksum.get() ^ change);
    }
}

/// The type of a chunk (RFC 9260 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkType(pub u8);

impl ChunkType {
    /// Payload.
    pub const DATA: Self = Self(0);
    /// Opens an association.
    pub const INIT: Self = Self(1);
    /// Answers INIT.
    pub const INIT_ACK: Self = Self(2);
    /// Selective acknowledgment.
    pub const SACK: Self = Self(3);
    /// Asks whether the peer is there.
    pub const HEARTBEAT: Self = Self(4);
    /// Answers a heartbeat.
    pub const HEARTBEAT_ACK: Self = Self(5);
    /// Ends the association at once.
    pub const ABORT: Self = Self(6);
    /// Starts an orderly end.
    pub const SHUTDOWN: Self = Self(7);
    /// Answers SHUTDOWN.
    pub const SHUTDOWN_ACK: Self = Self(8);
    /// Reports an error.
    pub const ERROR: Self = Self(9);
    /// Returns the state cookie.
    pub const COOKIE_ECHO: Self = Self(10);
    /// Completes the handshake.
    pub const COOKIE_ACK: Self = Self(11);
    /// Completes the orderly end.
    pub const SHUTDOWN_COMPLETE: Self = Self(14);
}

/// The checksum of a whole packet, header and chunks; the field itself counts as zero. `None` if `packet` is shorter
/// than a header.
#[inline]
pub fn checksum(packet: &[u8]) -> Option<u32> {
    let (header, chunks) = packet.split_first_chunk::<12>()?;
    let mut crc = crc32c::Crc32c::NEW;
    crc.push(&header[..8]);
    crc.push(&[0; 4]);
    crc.push(chunks);
    Some(crc.value())
}

/// Whether the checksum of a whole packet is right; `false` if it is shorter than a header.
#[inline]
pub fn verify(packet: &[u8]) -> bool {
    SctpHeader::at(packet, 0).is_some_and(|header| checksum(packet) == Some(header.checksum.get()))
}

/// Fills the checksum of a whole packet. Does nothing if it is shorter than a header.
#[inline]
pub fn fill(packet: &mut [u8]) {
    if let Some(value) = checksum(packet)
        && let Some(header) = SctpHeader::at_mut(packet, 0)
    {
        header.checksum.set(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A COOKIE ACK, checksum not filled.
    const PACKET: [u8; 16] = [0x80, 0x44, 0x00, 0x50, 0xd2, 0x6a, 0xc1, 0xe5, 0, 0, 0, 0, 11, 0, 0, 4];

    fn bitwise(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
        })
    }

    #[test]
    fn the_checksum_is_a_crc32c_sent_low_byte_first() {
        let mut packet = PACKET;
        fill(&mut packet);
        assert_eq!(packet[8..12], bitwise(&PACKET).to_le_bytes());
        assert!(verify(&packet));
        packet[15] ^= 1;
        assert!(!verify(&packet));
        assert!(!verify(&packet[..11]));
    }

    #[test]
    fn fields_are_read_where_rfc_9260_puts_them() {
        let header = SctpHeader::at(&PACKET, 0).unwrap();
        assert_eq!((header.source.get(), header.destination.get()), (32836, 80));
        assert_eq!(header.verification_tag.get(), 0xd26a_c1e5);
    }

    proptest! {
        #[test]
        fn new_ports_leave_a_right_checksum_right_and_a_wrong_one_wrong(
            chunks in prop::collection::vec(any::<u8>(), 0..2000), ports in any::<(u16, u16)>(), wrong in any::<u32>(),
        ) {
            let mut packet = [&PACKET[..12], &chunks].concat();
            fill(&mut packet);
            let length = packet.len();
            let header = SctpHeader::at_mut(&mut packet, 0).unwrap();
            header.checksum.set(header.checksum.get() ^ wrong);
            header.set_ports(ports.0, ports.1, length);
            prop_assert_eq!(header.checksum.get() ^ wrong, checksum(&packet).unwrap());
        }
    }
}
