//! The IPv4 header.
//!
//! ```text
//! 0     1     2        4      6           8     9      10       12       16       20
//! │v/ihl│ tos │ length │ id   │flags/frag │ ttl │ proto│ cksum  │ source │ dest   │ options …
//! ```
//! Source: RFC 791; tos as DSCP and ECN by RFC 2474 and RFC 3168. Owner thread: any. Invariant: every setter that
//! changes a covered field keeps the header checksum as right, or as wrong, as it was. Cost: fields are read in place.

use crate::checksum::{Delta, Sum};
use crate::header::Header;
use crate::protocol::Protocol;
use core::net::Ipv4Addr;
use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Don't Fragment, in the word of flags and fragment offset.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// More Fragments, in the word of flags and fragment offset.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset in its word, counted in units of 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// The 20 bytes that every IPv4 header has; options follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ipv4Header {
    /// Version in the upper, header length in 32-bit words in the lower four bits.
    pub version_ihl: u8,
    /// DSCP in the upper six, ECN in the lower two bits.
    pub tos: u8,
    /// Bytes of header and payload.
    pub total_length: U16,
    /// Which fragments belong together.
    pub identification: U16,
    /// DF, MF and fragment offset.
    pub flags_offset: U16,
    /// Hops left.
    pub ttl: u8,
    /// What the payload is.
    pub protocol: Protocol,
    /// Header checksum.
    pub checksum: U16,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

impl Header for Ipv4Header {}
const _: () = assert!(Ipv4Header::LEN == 20);

impl Ipv4Header {
    /// A header without options, identification 0, DF set, checksum still to be filled. `payload_len` in bytes;
    /// `None` if the packet would be longer than 65535.
    #[inline]
    pub fn new(
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: Protocol,
        ttl: u8,
        payload_len: usize,
    ) -> Option<Self> {
        let total = u16::try_from(payload_len.checked_add(Self::LEN)?).ok()?;
        Some(Self {
            version_ihl: 0x45,
            tos: 0,
            total_length: U16::new(total),
            identification: U16::ZERO,
            flags_offset: U16::new(DONT_FRAGMENT),
            ttl,
            protocol,
            checksum: U16::ZERO,
            source: source.octets(),
            destination: destination.octets(),
        })
    }

    /// Version field; 4 in a sound header.
    #[inline]
    pub const fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Header length with options, bytes: 0 to 60, as the packet claims.
    #[inline]
    pub const fn header_len(&self) -> usize {
        (self.version_ihl & 0x0f) as usize * 4
    }

    /// Differentiated services code point, 0 to 63.
    #[inline]
    pub const fn dscp(&self) -> u8 {
        self.tos >> 2
    }

    /// ECN field, 0 to 3.
    #[inline]
    pub const fn ecn(&self) -> u8 {
        self.tos & 3
    }

    /// Whether routers must not fragment the packet.
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.flags_offset.get() & DONT_FRAGMENT != 0
    }

    /// Whether fragments behind this one exist.
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.flags_offset.get() & MORE_FRAGMENTS != 0
    }

    /// Where this fragment's payload belongs in the whole, bytes.
    #[inline]
    pub fn fragment_offset(&self) -> u16 {
        (self.flags_offset.get() & OFFSET_MASK) * 8
    }

    /// Whether the packet is a piece of a larger one.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.flags_offset.get() & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    /// Source address.
    #[inline]
    pub const fn source_addr(&self) -> Ipv4Addr {
        Ipv4Addr::from_octets(self.source)
    }

    /// Destination address.
    #[inline]
    pub const fn destination_addr(&self) -> Ipv4Addr {
        Ipv4Addr::from_octets(self.destination)
    }

    /// Pseudo-header sum for `length` bytes of transport header and payload.
    #[inline]
    pub fn pseudo_header(&self, length: u32) -> Sum {
        Sum::pseudo_ipv4(self.source, self.destination, self.protocol, length)
    }

    /// Sets the source address and returns the delta for a transport checksum.
    #[inline]
    pub fn set_source(&mut self, source: [u8; 4]) -> Delta {
        let delta = Delta::ipv4(self.source, source);
        self.source = source;
        self.update(delta);
        delta
    }

    /// Sets the destination address and returns the delta for a transport checksum.
    #[inline]
    pub fn set_destination(&mut self, destination: [u8; 4]) -> Delta {
        let delta = Delta::ipv4(self.destination, destination);
        self.destination = destination;
        self.update(delta);
        delta
    }

    /// Sets DSCP and ECN.
    #[inline]
    pub fn set_tos(&mut self, tos: u8) {
        let word = u16::from_be_bytes([self.version_ihl, self.tos]);
        self.tos = tos;
        self.update(Delta::u16(word, u16::from_be_bytes([self.version_ihl, tos])));
    }

    /// Takes one off the TTL; `false`, and nothing changed, if none would be left to travel on with.
    #[inline]
    pub fn decrement_ttl(&mut self) -> bool {
        if self.ttl <= 1 {
            return false;
        }
        self.ttl -= 1;
        // The TTL is the upper byte of its word: one off it is 0xfeff added, whatever it was.
        self.update(Delta::u16(0x0100, 0));
        true
    }

    /// Applies a change of covered fields to the header checksum.
    #[inline]
    pub fn update(&mut self, delta: Delta) {
        self.checksum.set(delta.apply(self.checksum.get()));
    }

    /// Fills the checksum of a header without options.
    #[inline]
    pub fn fill_checksum(&mut self) {
        self.checksum = U16::ZERO;
        self.checksum = U16::new(Sum::bytes(self.as_bytes()).finish());
    }
}

/// Whether the checksum of a header is right; `header` is all of it, with its options.
#[inline]
pub fn verify_checksum(header: &[u8]) -> bool {
    Sum::bytes(header).verifies()
}

/// Fills the checksum of a header with its options. Does nothing if `header` is shorter than 20 bytes.
#[inline]
pub fn fill_checksum(header: &mut [u8]) {
    if let Some(fixed) = Ipv4Header::at_mut(header, 0) {
        fixed.checksum = U16::ZERO;
        let checksum = Sum::bytes(header).finish();
        if let Some(fixed) = Ipv4Header::at_mut(header, 0) {
            fixed.checksum.set(checksum);
        }
    }
}

/// An option of the IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Option<'a> {
    /// Copied flag, class and number.
    pub kind: u8,
    /// The whole option: kind, length and data, or the one byte of a no-operation.
    pub bytes: &'a [u8],
}

impl Ipv4Option<'_> {
    /// Loose source route.
    pub const LOOSE_SOURCE_ROUTE: u8 = 131;
    /// Strict source route.
    pub const STRICT_SOURCE_ROUTE: u8 = 137;

    /// Whether every fragment carries it, or only the first.
    #[inline]
    pub const fn is_copied(&self) -> bool {
        self.kind & 0x80 != 0
    }
}

/// Walks options up to End of Options or the end. An option whose length cannot be is the last item, as `Err`.
#[derive(Clone, Debug)]
pub struct Ipv4Options<'a>(&'a [u8]);

/// An option that claims a length of less than 2 or more than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadOption;

impl<'a> Ipv4Options<'a> {
    /// Of the bytes between the fixed header and the payload.
    #[inline]
    pub const fn new(options: &'a [u8]) -> Self {
        Self(options)
    }
}

impl<'a> Iterator for Ipv4Options<'a> {
    type Item = Result<Ipv4Option<'a>, BadOption>;

    fn next(&mut self) -> Option<Self::Item> {
        let kind = *self.0.first()?;
        let len = match kind {
            0 => return None,
            1 => 1,
            _ => self.0.get(1).map_or(0, |len| usize::from(*len)),
        };
        let split = if kind != 1 && len < 2 { None } else { self.0.split_at_checked(len) };
        let Some((bytes, rest)) = split else {
            self.0 = &[];
            return Some(Err(BadOption));
        };
        self.0 = rest;
        Some(Ok(Ipv4Option { kind, bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 192.168.0.1 → 192.168.0.199, UDP, DF, TTL 64, 115 bytes: the header textbooks work through, checksum 0xb861.
    const HEADER: [u8; 20] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8,
        0x00, 0xc7,
    ];

    #[test]
    fn fields_are_read_where_rfc_791_puts_them() {
        let header = Ipv4Header::at(&HEADER, 0).unwrap();
        assert_eq!((header.version(), header.header_len(), header.total_length.get()), (4, 20, 115));
        assert!(header.dont_fragment() && !header.more_fragments() && !header.is_fragment());
        assert_eq!((header.ttl, header.protocol), (64, Protocol::UDP));
        assert_eq!(header.source_addr(), Ipv4Addr::new(192, 168, 0, 1));
        assert_eq!(header.destination_addr(), Ipv4Addr::new(192, 168, 0, 199));
        assert!(verify_checksum(&HEADER));
    }

    #[test]
    fn a_new_header_with_its_checksum_filled_is_the_known_one() {
        let (from, to) = (Ipv4Addr::new(192, 168, 0, 1), Ipv4Addr::new(192, 168, 0, 199));
        let mut header = Ipv4Header::new(from, to, Protocol::UDP, 64, 95).unwrap();
        header.fill_checksum();
        assert_eq!(header.as_bytes(), HEADER);
        assert!(Ipv4Header::new(from, to, Protocol::UDP, 64, 65516).is_none());
    }

    #[test]
    fn fragment_fields_come_in_bytes() {
        let mut header = *Ipv4Header::at(&HEADER, 0).unwrap();
        header.flags_offset.set(MORE_FRAGMENTS | 185);
        assert_eq!(header.fragment_offset(), 1480);
        assert!(header.more_fragments() && header.is_fragment() && !header.dont_fragment());
    }

    #[test]
    fn the_last_hop_is_not_taken() {
        let mut header = *Ipv4Header::at(&HEADER, 0).unwrap();
        header.ttl = 1;
        header.fill_checksum();
        let before = header;
        assert!(!header.decrement_ttl());
        assert_eq!(header, before);
    }

    #[test]
    fn options_are_walked_to_their_end_mark() {
        let options = [1, 0x94, 4, 0, 0, 7, 3, 4, 99, 9];
        let found: Vec<_> =
            Ipv4Options::new(&options).map(|o| o.map(|o| (o.kind, o.bytes.len(), o.is_copied()))).collect();
        assert_eq!(found, [Ok((1, 1, false)), Ok((0x94, 4, true)), Ok((7, 3, false)), Err(BadOption)]);
        assert_eq!(Ipv4Options::new(&[7, 1]).collect::<Vec<_>>(), [Err(BadOption)]);
        assert_eq!(Ipv4Options::new(&[7]).collect::<Vec<_>>(), [Err(BadOption)]);
        assert_eq!(Ipv4Options::new(&[0, 7]).count(), 0);
    }

    proptest! {
        #[test]
        fn setters_keep_the_checksum_right(
            source in any::<[u8; 4]>(), to in any::<[u8; 4]>(), tos in any::<u8>(), ttl in 2u8..,
        ) {
            let mut header = *Ipv4Header::at(&HEADER, 0).unwrap();
            header.ttl = ttl;
            header.fill_checksum();
            header.set_source(source);
            header.set_destination(to);
            header.set_tos(tos);
            prop_assert!(header.decrement_ttl());
            let incremental = header.checksum;
            header.fill_checksum();
            prop_assert_eq!(incremental, header.checksum);
            prop_assert_eq!((header.dscp(), header.ecn()), (tos >> 2, tos & 3));
        }
    }
}
