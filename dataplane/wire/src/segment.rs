//! Splitting a packet that is longer than its way allows into the packets its sender would have sent: TCP segmentation and UDP
//! datagrams of equal size, as a network card does with a GSO request.
//!
//! ```text
//! │ headers │ payload ………………………………………………………… │        one frame, chunked as it likes
//! │ headers │ size │   │ headers │ size │   │ headers │ rest │
//! ```
//! Source: RFC 9293 §3.1, RFC 3168 §6.1.2 (CWR on the first only), RFC 768; Linux `Documentation/networking/segmentation-offloads.rst`.
//! Owner thread: any. Invariant: the payloads of all segments are the payload, each segment's checksums are complete whatever state the
//! original's was in. The payload is the caller's to copy, since it may lie in many chunks; only its sum is asked for. Cost: per
//! segment one copy of the headers and their sum.

use crate::checksum::Sum;
use crate::header::Header;
use crate::ipv4::{self, Ipv4Header};
use crate::ipv6::Ipv6Header;
use crate::layers::{Layers, Network, Transport};
use crate::tcp::{TcpFlags, TcpHeader};
use crate::udp::UdpHeader;
use core::ops::Range;
use zerocopy::network_endian::{U16, U32};

/// The split of one TCP or UDP packet.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    headers: &'a [u8],
    layers: Layers,
    size: usize,
}

impl<'a> Segments<'a> {
    /// A split of the packet in `frame` (at least its headers) into payloads of `size` bytes. `None` if it is neither TCP nor UDP, or is a
    /// fragment, or `size` is 0.
    #[inline]
    pub fn new(frame: &'a [u8], layers: &Layers, size: u16) -> Option<Self> {
        if size == 0 || layers.is_fragment() || !layers.is_ip() {
            return None;
        }
        if !matches!(layers.transport, Transport::Tcp { .. } | Transport::Udp { .. }) {
            return None;
        }
        Some(Self { headers: frame.get(..layers.payload())?, layers: *layers, size: usize::from(size) })
    }

    /// Number of segments, at least 1.
    #[inline]
    pub fn count(&self) -> usize {
        self.layers.payload_len().div_ceil(self.size).max(1)
    }

    /// Bytes that [`write`](Self::write) puts in front of each payload.
    #[inline]
    pub const fn header_len(&self) -> usize {
        self.headers.len()
    }

    /// Which bytes of the original frame are the payload of segment `i`; empty behind the last.
    #[inline]
    pub fn payload(&self, i: usize) -> Range<usize> {
        let start = self.layers.payload().saturating_add(i.saturating_mul(self.size)).min(self.layers.end());
        start..start.saturating_add(self.size).min(self.layers.end())
    }

    /// Writes the headers of segment `i`, whose payload bytes sum to `sum`; returns [`header_len`](Self::header_len). `None` if there is no
    /// such segment or `out` is shorter than the headers.
    #[inline]
    pub fn write(&self, i: usize, sum: Sum, out: &mut [u8]) -> Option<usize> {
        let count = self.count();
        if i >= count {
            return None;
        }
        let out = out.get_mut(..self.headers.len())?;
        out.copy_from_slice(self.headers);
        let payload_len = self.payload(i).len();
        let (l3, l4) = (usize::from(self.layers.l3), usize::from(self.layers.l4));
        let l4_length = out.len() - l4 + payload_len;
        let pseudo = match self.layers.network {
            Network::Ipv4 => {
                let ip = Ipv4Header::at_mut(out, l3)?;
                ip.total_length = U16::new((l4 - l3 + l4_length) as u16);
                ip.identification = U16::new(ip.identification.get().wrapping_add(i as u16));
                let pseudo = ip.pseudo_header(l4_length as u32);
                ipv4::fill_checksum(out.get_mut(l3..l4)?);
                pseudo
            }
            _ => {
                let ip = Ipv6Header::at_mut(out, l3)?;
                ip.payload_length = U16::new((l4 - l3 - Ipv6Header::LEN + l4_length) as u16);
                ip.pseudo_header(self.layers.protocol, l4_length as u32)
            }
        };
        let transport = out.get_mut(l4..)?;
        if let Transport::Tcp { .. } = self.layers.transport {
            let tcp = TcpHeader::at_mut(transport, 0)?;
            tcp.sequence = U32::new(tcp.sequence.get().wrapping_add((i * self.size) as u32));
            if i > 0 {
                tcp.flags = tcp.flags.without(TcpFlags::CWR);
            }
            if i + 1 < count {
                tcp.flags = tcp.flags.without(TcpFlags::FIN | TcpFlags::PSH);
            }
            tcp.checksum = U16::ZERO;
            let field = pseudo.combine(Sum::bytes(transport)).combine(sum).finish();
            TcpHeader::at_mut(transport, 0)?.checksum = U16::new(field);
        } else {
            let udp = UdpHeader::at_mut(transport, 0)?;
            udp.length = U16::new(l4_length as u16);
            udp.checksum = U16::ZERO;
            let field = pseudo.combine(Sum::bytes(transport)).combine(sum).finish_udp();
            UdpHeader::at_mut(transport, 0)?.checksum = U16::new(field);
        }
        Some(self.headers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Protocol;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    /// A packet of `transport` (header and payload), checksum as the kernel leaves it for a device: anything.
    fn packet(v6: bool, protocol: Protocol, transport: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 10, 0, 0, 2, 2, 0, 10, 0, 0, 1];
        if v6 {
            frame.extend([0x86, 0xdd]);
            let (from, to) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
            frame.extend(Ipv6Header::new(from, to, protocol, 64, transport.len()).unwrap().as_bytes());
        } else {
            frame.extend([8, 0]);
            let (from, to) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
            let mut ip = Ipv4Header::new(from, to, protocol, 64, transport.len()).unwrap();
            ip.identification = U16::new(0xffff);
            frame.extend(ip.as_bytes());
        }
        frame.extend(transport);
        frame
    }

    fn tcp(flags: TcpFlags, payload: &[u8]) -> Vec<u8> {
        let header = TcpHeader {
            source: U16::new(40000),
            destination: U16::new(80),
            sequence: U32::new(u32::MAX - 10),
            data_offset: 0x80,
            flags,
            checksum: U16::new(0xdead),
            ..TcpHeader::default()
        };
        [header.as_bytes(), &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], payload].concat()
    }

    /// Every segment as a frame of its own.
    fn split(frame: &[u8], size: u16) -> Vec<Vec<u8>> {
        let layers = Layers::parse(frame, frame.len()).unwrap();
        let segments = Segments::new(frame, &layers, size).unwrap();
        (0..segments.count())
            .map(|i| {
                let payload = &frame[segments.payload(i)];
                let mut out = vec![0; segments.header_len()];
                assert_eq!(segments.write(i, Sum::bytes(payload), &mut out), Some(segments.header_len()));
                out.extend(payload);
                out
            })
            .collect()
    }

    #[test]
    fn flags_and_numbers_are_where_the_sender_would_have_put_them() {
        let flags = TcpFlags::ACK | TcpFlags::PSH | TcpFlags::FIN | TcpFlags::CWR;
        let segments = split(&packet(false, Protocol::TCP, &tcp(flags, &[7; 25])), 10);
        let seen: Vec<_> = segments
            .iter()
            .map(|segment| {
                let (ip, tcp) = (Ipv4Header::at(segment, 14).unwrap(), TcpHeader::at(segment, 34).unwrap());
                (ip.identification.get(), ip.total_length.get(), tcp.sequence.get(), tcp.flags)
            })
            .collect();
        let ack = TcpFlags::ACK;
        assert_eq!(
            seen,
            [
                (0xffff, 62, u32::MAX - 10, ack | TcpFlags::CWR),
                (0x0000, 62, u32::MAX, ack),
                (0x0001, 57, 9, ack | TcpFlags::PSH | TcpFlags::FIN),
            ]
        );
    }

    #[test]
    fn datagrams_get_their_own_length() {
        let udp = [UdpHeader::new(40000, 443, 25).unwrap().as_bytes(), &[7; 25]].concat();
        for v6 in [false, true] {
            let datagrams = split(&packet(v6, Protocol::UDP, &udp), 20);
            let lengths: Vec<_> = datagrams
                .iter()
                .map(|frame| UdpHeader::at(frame, if v6 { 54 } else { 34 }).unwrap().length.get())
                .collect();
            assert_eq!(lengths, [28, 13]);
        }
    }

    #[test]
    fn what_cannot_be_split_is_none() {
        let frame = packet(false, Protocol::SCTP, &[0; 40]);
        assert!(Segments::new(&frame, &Layers::parse(&frame, frame.len()).unwrap(), 10).is_none());
        let frame = packet(true, Protocol::TCP, &tcp(TcpFlags::ACK, &[]));
        let layers = Layers::parse(&frame, frame.len()).unwrap();
        assert!(Segments::new(&frame, &layers, 0).is_none());
        let whole = Segments::new(&frame, &layers, 10).unwrap();
        assert_eq!((whole.count(), whole.payload(0).len()), (1, 0));
        assert_eq!(whole.write(1, Sum::ZERO, &mut [0; 200]), None);
        assert_eq!(whole.write(0, Sum::ZERO, &mut [0; 85]), None);
        assert!(whole.payload(usize::MAX).is_empty());
    }

    proptest! {
        #[test]
        fn segments_are_sound_and_make_up_the_payload(
            payload in prop::collection::vec(any::<u8>(), 0..4000), size in 1u16..1500, v6: bool, is_tcp: bool,
        ) {
            let (protocol, transport) = if is_tcp {
                (Protocol::TCP, tcp(TcpFlags::ACK, &payload))
            } else {
                let header = UdpHeader::new(40000, 443, payload.len()).unwrap();
                (Protocol::UDP, [header.as_bytes(), &payload].concat())
            };
            let mut joined: Vec<u8> = vec![];
            for segment in split(&packet(v6, protocol, &transport), size) {
                let layers = Layers::parse(&segment, segment.len()).unwrap();
                prop_assert_eq!(layers.end(), segment.len());
                prop_assert!(layers.header_checksum_ok(&segment));
                prop_assert_eq!(layers.transport_checksum_ok(&segment), Some(true));
                joined.extend(&segment[layers.payload()..]);
            }
            prop_assert_eq!(joined, payload);
        }
    }
}
