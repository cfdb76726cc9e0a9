//! The TCP header, its flags, and the one option a router changes: the maximum segment size.
//!
//! ```text
//! 0        2        4          8          12    13     14       16       18       20
//! │ source │ dest   │ sequence │ ack      │ off │ flags│ window │ cksum  │ urgent │ options …
//! ```
//! Source: RFC 9293 §3.1, §3.2. Owner thread: any. Invariant: an option walk never leaves the header, whatever lengths
//! the options claim. Cost: fields are read in place; the walk is bounded by 40 bytes.

use crate::checksum::Delta;
use crate::header::Header;
use core::fmt;
use core::ops::BitOr;
use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The control bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No flag.
    pub const EMPTY: Self = Self(0);
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);

    /// Whether all of `flags` are set.
    #[inline]
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether any of `flags` is set.
    #[inline]
    pub const fn intersects(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// These flags without `flags`.
    #[inline]
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }
}

impl BitOr for TcpFlags {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let mut set = (0..8).filter(|bit| self.0 >> bit & 1 != 0).map(|bit| NAMES[bit]);
        f.write_str(set.next().unwrap_or("none"))?;
        set.try_for_each(|name| write!(f, "|{name}"))
    }
}

/// The 20 bytes that every TCP header has; options follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TcpHeader {
    /// Source port.
    pub source: U16,
    /// Destination port.
    pub destination: U16,
    /// Sequence number of the first payload byte, or of the SYN.
    pub sequence: U32,
    /// Next sequence number expected, if ACK is set.
    pub acknowledgment: U32,
    /// Header length in 32-bit words in the upper four bits, reserved below.
    pub data_offset: u8,
    /// Control bits.
    pub flags: TcpFlags,
    /// Receive window, not scaled.
    pub window: U16,
    /// Checksum over pseudo-header, header and payload.
    pub checksum: U16,
    /// Urgent pointer.
    pub urgent: U16,
}

impl Header for TcpHeader {}
const _: () = assert!(TcpHeader::LEN == 20);

impl TcpHeader {
    /// Where the checksum field is, bytes from the header's start.
    pub const CHECKSUM_OFFSET: u16 = 16;

    /// Header length with options, bytes: 0 to 60, as the segment claims.
    #[inline]
    pub const fn header_len(&self) -> usize {
        (self.data_offset >> 4) as usize * 4
    }

    /// Applies a change of covered bytes to a complete checksum.
    #[inline]
    pub fn update(&mut self, delta: Delta) {
        self.checksum.set(delta.apply(self.checksum.get()));
    }
}

/// What lowering a segment's MSS option changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MssChange {
    /// Bytes the option offered.
    pub old: u16,
    /// Bytes it offers now.
    pub new: u16,
    /// What the change does to a complete checksum.
    pub delta: Delta,
}

/// Lowers the MSS option of a SYN to `max` bytes and keeps a **complete** checksum right. `header` starts at the TCP
/// header; of what is behind its options nothing is read. Returns old and new value, or `None` if nothing changed: no
/// SYN, no such option, a small enough one, or options that do not parse up to it.
#[inline]
pub fn clamp_mss(header: &mut [u8], max: u16) -> Option<(u16, u16)> {
    let change = lower_mss(header, max)?;
    TcpHeader::at_mut(header, 0)?.update(change.delta);
    Some((change.old, change.new))
}

/// [`clamp_mss`] without the checksum: for a segment whose field is partial, where the pseudo-header sum must stay.
#[inline]
pub fn lower_mss(header: &mut [u8], max: u16) -> Option<MssChange> {
    let fixed = TcpHeader::at(header, 0)?;
    if !fixed.flags.contains(TcpFlags::SYN) {
        return None;
    }
    let len = fixed.header_len();
    let options = header.get_mut(TcpHeader::LEN..len)?;
    let at = find_mss(options)?;
    let value = options.get_mut(at..)?.first_chunk_mut::<2>()?;
    let old = u16::from_be_bytes(*value);
    if old <= max {
        return None;
    }
    *value = max.to_be_bytes();
    // At an odd offset the value's bytes belong to two words, each in the other half.
    let delta =
        if at.is_multiple_of(2) { Delta::u16(old, max) } else { Delta::u16(old.swap_bytes(), max.swap_bytes()) };
    Some(MssChange { old, new: max, delta })
}

/// Offset of the value of the MSS option in `options`.
#[inline]
fn find_mss(options: &[u8]) -> Option<usize> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const MSS: u8 = 2;
    let mut at = 0;
    loop {
        match *options.get(at)? {
            END => return None,
            NO_OPERATION => at += 1,
            kind => {
                let len = usize::from(*options.get(at + 1)?);
                if kind == MSS {
                    return (len == 4 && at + 4 <= options.len()).then_some(at + 2);
                }
                if len < 2 {
                    return None;
                }
                at += len;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::Sum;
    use crate::protocol::Protocol;
    use proptest::prelude::*;

    fn syn(options: &[u8]) -> Vec<u8> {
        assert_eq!(options.len() % 4, 0);
        let header = TcpHeader {
            source: U16::new(40000),
            destination: U16::new(80),
            sequence: U32::new(7),
            data_offset: (((20 + options.len()) / 4) << 4) as u8,
            flags: TcpFlags::SYN,
            window: U16::new(64240),
            ..TcpHeader::default()
        };
        let mut bytes = [header.as_bytes(), options].concat();
        let checksum = pseudo(&bytes).combine(Sum::bytes(&bytes)).finish();
        TcpHeader::at_mut(&mut bytes, 0).unwrap().checksum.set(checksum);
        bytes
    }

    fn pseudo(segment: &[u8]) -> Sum {
        Sum::pseudo_ipv4([10, 0, 0, 1], [10, 0, 0, 2], Protocol::TCP, segment.len() as u32)
    }

    #[test]
    fn fields_are_read_where_rfc_9293_puts_them() {
        let bytes = [
            0x9c, 0x40, 0, 80, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x12, 0xfa, 0xf0, 0xbe, 0xef, 0, 0, //
        ];
        let header = TcpHeader::at(&bytes, 0).unwrap();
        assert_eq!((header.source.get(), header.destination.get()), (40000, 80));
        assert_eq!((header.sequence.get(), header.acknowledgment.get()), (7, 9));
        assert_eq!((header.header_len(), header.flags), (20, TcpFlags::SYN | TcpFlags::ACK));
        assert_eq!((header.window.get(), header.checksum.get()), (64240, 0xbeef));
        assert_eq!(format!("{:?} {:?}", header.flags, TcpFlags::EMPTY), "SYN|ACK none");
    }

    #[test]
    fn an_mss_above_the_limit_is_lowered_and_the_checksum_holds() {
        for options in [&[2, 4, 0x05, 0xb4][..], &[1, 2, 4, 0x05, 0xb4, 0, 0, 0], &[4, 2, 1, 2, 4, 0x23, 0x28, 1]] {
            let mut segment = syn(options);
            let (old, new) = clamp_mss(&mut segment, 1410).unwrap();
            assert!(old > 1410 && new == 1410);
            assert!(pseudo(&segment).combine(Sum::bytes(&segment)).verifies(), "{options:?}");
            assert_eq!(clamp_mss(&mut segment, 1410), None);
        }
    }

    #[test]
    fn a_small_mss_or_none_or_a_segment_without_syn_is_left_alone() {
        for options in [&[2, 4, 0x02, 0x18][..], &[1, 1, 1, 1], &[0, 2, 4, 0xff, 0xff, 0, 0, 0], &[]] {
            let mut segment = syn(options);
            let before = segment.clone();
            assert_eq!(clamp_mss(&mut segment, 1410), None);
            assert_eq!(segment, before);
        }
        let mut segment = syn(&[2, 4, 0x05, 0xb4]);
        segment[13] = 0x10;
        assert_eq!(clamp_mss(&mut segment, 1410), None);
    }

    #[test]
    fn options_that_do_not_parse_are_left_alone() {
        for options in [[2, 3, 5, 0xb4], [8, 0, 2, 4], [8, 1, 2, 4], [3, 200, 2, 4], [1, 2, 4, 9], [1, 1, 1, 2]] {
            let mut segment = syn(&options);
            assert_eq!(clamp_mss(&mut segment, 1), None, "{options:?}");
        }
        assert_eq!(clamp_mss(&mut [], 1), None);
        let mut lying = syn(&[2, 4, 5, 0xb4]);
        lying[12] = 0xf0;
        assert_eq!(clamp_mss(&mut lying, 1), None, "the header claims more than is there");
        lying[12] = 0x10;
        assert_eq!(clamp_mss(&mut lying, 1), None, "the header claims less than its fixed part");
    }

    #[test]
    fn a_partial_checksum_is_not_touched_by_the_lowering() {
        let mut segment = syn(&[2, 4, 0x05, 0xb4]);
        let field = TcpHeader::at(&segment, 0).unwrap().checksum;
        let change = lower_mss(&mut segment, 1000).unwrap();
        assert_eq!((change.old, change.new), (1460, 1000));
        assert_eq!(TcpHeader::at(&segment, 0).unwrap().checksum, field);
    }

    proptest! {
        #[test]
        fn any_options_leave_the_checksum_right(words in prop::collection::vec(any::<[u8; 4]>(), 0..10), max in any::<u16>()) {
            let mut segment = syn(words.as_flattened());
            clamp_mss(&mut segment, max);
            prop_assert!(pseudo(&segment).combine(Sum::bytes(&segment)).verifies());
        }

        #[test]
        fn any_bytes_do_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80), max in any::<u16>()) {
            clamp_mss(&mut bytes, max);
        }
    }
}
