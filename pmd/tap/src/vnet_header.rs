//! `virtio_net_hdr_v1`: how a TAP says what is still to be done to a frame.
//!
//! ```text
//! 0      1         2        4         6           8            10           12
//! flags  gso_type  hdr_len  gso_size  csum_start  csum_offset  num_buffers
//! ```
//! Source: Virtual I/O Device 1.2, section 5.1.6; `linux/virtio_net.h`; little-endian by TUNSETVNETLE.
//! Invariants: what [`encode`] writes the kernel accepts for a frame it describes; [`decode`] never gives a request
//! that [`encode`] would refuse for want of a checksum. Positions come from the sender's kernel and, through a packet
//! socket, from the sender itself: whoever acts on them checks them against the parsed headers.
//! Cost: a dozen byte moves a frame.

use crate::device::HEADER_BYTES;
use sluice_port::{Checksum, Frame, Gso, GsoKind};

/// The checksum is partial and described by `csum_start` and `csum_offset`.
const NEEDS_CSUM: u8 = 1;
/// The checksum was verified.
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The first TCP segment carries CWR, the others must not (RFC 3168, section 6.1.2).
const GSO_ECN: u8 = 0x80;

/// A header as it stands in memory.
pub type Bytes = [u8; HEADER_BYTES];

fn word(bytes: &Bytes, at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Reads what a received frame needs; `None` for a header that no negotiated offload explains.
#[inline]
pub fn decode(bytes: &Bytes) -> Option<(Checksum, Gso)> {
    let checksum = if bytes[0] & NEEDS_CSUM != 0 {
        Checksum::Partial { start: word(bytes, 6), offset: word(bytes, 8) }
    } else if bytes[0] & DATA_VALID != 0 {
        Checksum::Verified
    } else {
        Checksum::None
    };
    // CWR stays readable in the TCP header, which `encode` asks again.
    let kind = match bytes[1] & !GSO_ECN {
        GSO_NONE => return Some((checksum, Gso::default())),
        GSO_TCPV4 => GsoKind::Tcp4,
        GSO_TCPV6 => GsoKind::Tcp6,
        GSO_UDP_L4 => GsoKind::Udp,
        _ => return None,
    };
    let size = word(bytes, 4);
    let partial = matches!(checksum, Checksum::Partial { .. });
    (partial && size > 0).then_some((checksum, Gso { kind, size }))
}

/// Writes what is to be done to `frame`; `None` if its metadata cannot be meant: a checksum outside the packet, or a
/// segmentation request without a partial checksum, which every segment's own checksum starts from.
#[inline]
pub fn encode(frame: &Frame) -> Option<Bytes> {
    let mut bytes = [0; HEADER_BYTES];
    let start = match frame.checksum {
        Checksum::Partial { start, offset } => {
            if usize::from(start) + usize::from(offset) + 2 > frame.len() {
                return None;
            }
            bytes[0] = NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&start.to_le_bytes());
            bytes[8..10].copy_from_slice(&offset.to_le_bytes());
            Some(usize::from(start))
        }
        Checksum::Verified => {
            bytes[0] = DATA_VALID;
            None
        }
        Checksum::None | Checksum::Unknown => None,
    };
    if frame.gso.kind == GsoKind::None {
        return Some(bytes);
    }
    let start = start?;
    if frame.gso.size == 0 {
        return None;
    }
    let transport = frame.head().get(start..)?;
    let (kind, header) = match frame.gso.kind {
        GsoKind::Udp => (GSO_UDP_L4, 8),
        kind => {
            let (data_offset, flags) = (*transport.get(12)?, transport.get(13)?);
            let ecn = if flags & 0x80 != 0 { GSO_ECN } else { 0 };
            let family = if kind == GsoKind::Tcp4 { GSO_TCPV4 } else { GSO_TCPV6 };
            (family | ecn, usize::from(data_offset >> 4).max(5) * 4)
        }
    };
    if header > transport.len() {
        return None;
    }
    bytes[1] = kind;
    bytes[2..4].copy_from_slice(&((start + header) as u16).to_le_bytes());
    bytes[4..6].copy_from_slice(&frame.gso.size.to_le_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_port::{FramePool, PoolCache, PoolOptions};

    fn cache() -> PoolCache {
        FramePool::new(PoolOptions { frames: 64, huge_pages: false }).unwrap().cache()
    }

    /// Ethernet, IPv4 and TCP headers' worth of bytes, data offset 8 words, the given flags, some payload.
    fn tcp_frame(cache: &mut PoolCache, flags: u8) -> Frame {
        let mut bytes = vec![0u8; 34 + 32 + 3000];
        bytes[34 + 12] = 8 << 4;
        bytes[34 + 13] = flags;
        let mut frame = cache.alloc_copy(&bytes).unwrap();
        frame.checksum = Checksum::Partial { start: 34, offset: 16 };
        frame.gso = Gso { kind: GsoKind::Tcp4, size: 1448 };
        frame
    }

    #[test]
    fn a_plain_frame_has_a_header_of_zeroes() {
        let mut cache = cache();
        let frame = cache.alloc_copy(&[0; 60]).unwrap();
        assert_eq!(encode(&frame), Some([0; 12]));
        assert_eq!(decode(&[0; 12]), Some((Checksum::None, Gso::default())));
        cache.free(frame);
    }

    #[test]
    fn a_segmented_tcp_frame_says_where_its_headers_end() {
        let mut cache = cache();
        let frame = tcp_frame(&mut cache, 0x10);
        let bytes = encode(&frame).unwrap();
        assert_eq!(bytes, [1, 1, 66, 0, 0xa8, 0x05, 34, 0, 16, 0, 0, 0]);
        assert_eq!(decode(&bytes), Some((frame.checksum, frame.gso)));
        cache.free(frame);
    }

    #[test]
    fn cwr_is_marked_so_that_only_the_first_segment_carries_it() {
        let mut cache = cache();
        let frame = tcp_frame(&mut cache, 0x90);
        let bytes = encode(&frame).unwrap();
        assert_eq!(bytes[1], 0x81);
        assert_eq!(decode(&bytes), Some((frame.checksum, frame.gso)), "the mark is no kind of its own");
        cache.free(frame);
    }

    #[test]
    fn each_kind_of_segmentation_survives_both_ways() {
        let mut cache = cache();
        for kind in [GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::Udp] {
            let mut frame = tcp_frame(&mut cache, 0x18);
            frame.gso.kind = kind;
            let bytes = encode(&frame).unwrap();
            assert_eq!(decode(&bytes), Some((frame.checksum, frame.gso)), "{kind:?}");
            cache.free(frame);
        }
    }

    #[test]
    fn segmentation_without_a_partial_checksum_is_refused_both_ways() {
        let mut cache = cache();
        let mut frame = tcp_frame(&mut cache, 0x10);
        frame.checksum = Checksum::Verified;
        assert_eq!(encode(&frame), None);
        assert_eq!(decode(&[0, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]), None);
        cache.free(frame);
    }

    #[test]
    fn a_checksum_beyond_the_frame_is_refused() {
        let mut cache = cache();
        let mut frame = cache.alloc_copy(&[0; 60]).unwrap();
        frame.checksum = Checksum::Partial { start: 44, offset: 15 };
        assert_eq!(encode(&frame), None);
        frame.checksum = Checksum::Partial { start: 44, offset: 14 };
        assert!(encode(&frame).is_some());
        cache.free(frame);
    }

    #[test]
    fn an_offload_that_was_not_asked_for_is_refused() {
        for kind in [2, 3, 6, 0x20, 0x41] {
            assert_eq!(decode(&[1, kind, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]), None, "gso_type {kind}");
        }
        assert_eq!(decode(&[1, 1, 66, 0, 0, 0, 34, 0, 16, 0, 0, 0]), None, "segments of no bytes");
    }

    proptest::proptest! {
        #[test]
        fn what_decodes_encodes_again_or_names_bytes_outside_the_frame(header: [u8; 12], len in 14usize..9000) {
            let mut cache = cache();
            let mut frame = cache.alloc_copy(&vec![0x55; len]).unwrap();
            if let Some((checksum, gso)) = decode(&header) {
                (frame.checksum, frame.gso) = (checksum, gso);
                let again = encode(&frame).and_then(|bytes| decode(&bytes));
                if let Some(again) = again {
                    proptest::prop_assert_eq!(again, (checksum, gso));
                } else if let Checksum::Partial { start, offset } = checksum {
                    let (start, offset) = (usize::from(start), usize::from(offset));
                    proptest::prop_assert!(start + offset + 2 > len || start + 20 > frame.head_len());
                } else {
                    proptest::prop_assert!(false, "refused without cause");
                }
            }
            cache.free(frame);
        }
    }
}
