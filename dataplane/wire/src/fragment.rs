//! Splitting an IPv4 packet that may be fragmented and is too long for its next hop.
//!
//! Source: RFC 791 §2.3 and §3.2 (fragmentation procedure), RFC 815 for what the other end does. Owner thread: any. Invariant: the
//! fragments cover the payload once; all but the last carry a multiple of 8 bytes; an option without the copied flag is in the first only.
//! A fragment may be split again. The payload is the caller's to copy, and the transport checksum must be complete before. IPv6 has
//! no such thing in transit. Cost: per fragment one header and its sum.

use crate::ethernet::EthernetHeader;
use crate::header::Header;
use crate::ipv4::{self, Ipv4Header, Ipv4Option, Ipv4Options, MORE_FRAGMENTS, OFFSET_MASK};
use crate::layers::{Layers, Network};
use core::ops::Range;
use zerocopy::network_endian::U16;

/// Longest Ethernet and IPv4 header.
const MAX_HEADERS: usize = EthernetHeader::LEN + 60;

/// The split of one IPv4 packet.
#[derive(Clone, Copy, Debug)]
pub struct Fragments<'a> {
    /// Headers of the first fragment: Ethernet, IPv4, all options.
    first: &'a [u8],
    /// Headers of the others, in the first `later_len` bytes.
    later: [u8; MAX_HEADERS],
    later_len: usize,
    /// Where the packet's payload is in the frame.
    payload: Span,
    /// Payload bytes of the first fragment and of each later one but the last.
    first_size: usize,
    later_size: usize,
    /// Flags and offset of the packet that is split.
    word: u16,
}

/// A copyable range.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
}

impl<'a> Fragments<'a> {
    /// A split of the packet in `frame` (at least its headers) into packets of at most `mtu` bytes. `None` if it is not IPv4, must not be
    /// fragmented, or `mtu` leaves no room for 8 bytes of payload. A packet that fits is a split into one.
    pub fn new(frame: &'a [u8], layers: &Layers, mtu: u16) -> Option<Self> {
        if layers.network != Network::Ipv4 {
            return None;
        }
        let l3 = usize::from(layers.l3);
        let ip = Ipv4Header::at(frame, l3)?;
        if ip.dont_fragment() {
            return None;
        }
        let start = l3 + ip.header_len();
        let first = frame.get(..start)?;
        let payload = Span { start, end: layers.end().max(start) };
        let (later, later_len) = later_headers(first, l3)?;
        let mtu = usize::from(mtu);
        let whole = payload.end - l3 <= mtu;
        let room = |headers: usize| Some((mtu.checked_sub(headers - l3)?) & !7).filter(|room| *room > 0);
        let (first_size, later_size) = if whole { (payload.end - start, 8) } else { (room(start)?, room(later_len)?) };
        Some(Self { first, later, later_len, payload, first_size, later_size, word: ip.flags_offset.get() })
    }

    /// Number of fragments, at least 1.
    pub fn count(&self) -> usize {
        let behind_first = (self.payload.end - self.payload.start).saturating_sub(self.first_size);
        1 + behind_first.div_ceil(self.later_size)
    }

    /// Which bytes of the original frame are the payload of fragment `i`; empty behind the last.
    pub fn payload(&self, i: usize) -> Range<usize> {
        let Span { start, end } = self.payload;
        let at = |offset: usize| start.saturating_add(offset).min(end);
        match i.checked_sub(1) {
            None => start..at(self.first_size),
            Some(later) => {
                let offset = self.first_size.saturating_add(later.saturating_mul(self.later_size));
                at(offset)..at(offset.saturating_add(self.later_size))
            }
        }
    }

    /// Writes the headers of fragment `i` and returns their length, which differs between the first and the others where there
    /// are options. `None` if there is no such fragment or `out` is too short (74 bytes are enough).
    pub fn write(&self, i: usize, out: &mut [u8]) -> Option<usize> {
        if i >= self.count() {
            return None;
        }
        let headers = if i == 0 { self.first } else { self.later.get(..self.later_len)? };
        let out = out.get_mut(..headers.len())?;
        out.copy_from_slice(headers);
        let payload = self.payload(i);
        let packet = out.get_mut(EthernetHeader::LEN..)?;
        let header_len = packet.len();
        let ip = Ipv4Header::at_mut(packet, 0)?;
        let last = i + 1 == self.count();
        let more = if last { self.word & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
        let offset = (self.word & OFFSET_MASK) + ((payload.start - self.payload.start) / 8) as u16;
        ip.total_length = U16::new((header_len + payload.len()) as u16);
        ip.flags_offset = U16::new(more | offset);
        ipv4::fill_checksum(packet);
        Some(headers.len())
    }
}

/// The headers of every fragment but the first: fixed parts and the options that are copied, padded to a multiple of 4.
fn later_headers(first: &[u8], l3: usize) -> Option<([u8; MAX_HEADERS], usize)> {
    let fixed = l3 + Ipv4Header::LEN;
    let mut later = [0; MAX_HEADERS];
    later.get_mut(..fixed)?.copy_from_slice(first.get(..fixed)?);
    let mut len = fixed;
    for option in Ipv4Options::new(first.get(fixed..)?).filter_map(Result::ok).filter(Ipv4Option::is_copied) {
        later.get_mut(len..len + option.bytes.len())?.copy_from_slice(option.bytes);
        len += option.bytes.len();
    }
    // Zero is End of Options: the padding is there already.
    let len = fixed + (len - fixed).next_multiple_of(4);
    *later.get_mut(l3)? = 0x40 | ((len - l3) / 4) as u8;
    Some((later, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Protocol;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn packet(options: &[u8], word: u16, payload: &[u8]) -> Vec<u8> {
        let (from, to) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mut ip = Ipv4Header::new(from, to, Protocol(47), 64, options.len() + payload.len()).unwrap();
        ip.version_ihl += (options.len() / 4) as u8;
        ip.identification = U16::new(77);
        ip.flags_offset = U16::new(word);
        [&[2, 0, 10, 0, 0, 2, 2, 0, 10, 0, 0, 1, 8, 0], ip.as_bytes(), options, payload].concat()
    }

    fn split(frame: &[u8], mtu: u16) -> Option<Vec<Vec<u8>>> {
        let fragments = Fragments::new(frame, &Layers::parse(frame, frame.len()).unwrap(), mtu)?;
        let pieces = (0..fragments.count()).map(|i| {
            let mut out = [0; MAX_HEADERS];
            let len = fragments.write(i, &mut out).unwrap();
            [&out[..len], &frame[fragments.payload(i)]].concat()
        });
        Some(pieces.collect())
    }

    #[test]
    fn a_packet_is_split_on_units_of_eight_bytes() {
        let pieces = split(&packet(&[], 0, &[7; 50]), 45).unwrap();
        let seen: Vec<_> = pieces
            .iter()
            .map(|piece| {
                let ip = Ipv4Header::at(piece, 14).unwrap();
                (ip.total_length.get(), ip.fragment_offset(), ip.more_fragments(), ip.identification.get())
            })
            .collect();
        assert_eq!(seen, [(44, 0, true, 77), (44, 24, true, 77), (22, 48, false, 77)]);
    }

    #[test]
    fn only_copied_options_are_in_later_fragments() {
        let record_route = [7, 7, 4, 0, 0, 0, 0];
        let router_alert = [0x94, 4, 0, 0];
        let options = [&record_route[..], &router_alert, &[0]].concat();
        let pieces = split(&packet(&options, 0, &[7; 60]), 52).unwrap();
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[0][34..46], options);
        for piece in &pieces[1..] {
            assert_eq!(piece[14], 0x46);
            assert_eq!(piece[34..38], router_alert);
        }
    }

    #[test]
    fn a_packet_that_says_do_not_or_a_way_too_narrow_is_none() {
        assert_eq!(split(&packet(&[], 0x4000, &[7; 50]), 45), None);
        assert_eq!(split(&packet(&[], 0, &[7; 50]), 27), None);
        assert_eq!(split(&packet(&[], 0, &[7; 50]), 28).unwrap().len(), 7);
        assert_eq!(split(&packet(&[], 0, &[7; 50]), 70).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn fragments_cover_the_payload_and_fit(
            payload in prop::collection::vec(any::<u8>(), 1..3000), mtu in 68u16..1500, offset in 0u16..100, more: bool,
            options in prop::sample::select(vec![&[][..], &[1, 1, 1, 0], &[0x94, 4, 0, 0, 7, 4, 4, 0]]),
        ) {
            let payload = if more { &payload[..payload.len() / 8 * 8] } else { &payload[..] };
            prop_assume!(!payload.is_empty());
            let frame = packet(options, if more { MORE_FRAGMENTS | offset } else { offset }, payload);
            let mut joined: Vec<u8> = vec![];
            let pieces = split(&frame, mtu).unwrap();
            for (i, piece) in pieces.iter().enumerate() {
                prop_assert!(piece.len() <= 14 + usize::from(mtu));
                let layers = Layers::parse(piece, piece.len()).unwrap();
                prop_assert!(layers.header_checksum_ok(piece));
                prop_assert_eq!(layers.end(), piece.len());
                let ip = Ipv4Header::at(piece, 14).unwrap();
                prop_assert_eq!(usize::from(ip.fragment_offset()), usize::from(offset) * 8 + joined.len());
                prop_assert_eq!(ip.more_fragments(), more || i + 1 < pieces.len());
                joined.extend(&piece[14 + ip.header_len()..]);
            }
            prop_assert_eq!(&joined, payload);
        }
    }
}
