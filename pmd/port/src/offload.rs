//! What a frame asks of the device that sends it (checksum completion, segmentation), and the software way to complete
//! a checksum for devices that cannot.
//!
//! Owner: the frame's holder. Source: RFC 1071 (Internet checksum), RFC 768 (an all-zero UDP checksum means none);
//! the partial state is what `struct virtio_net_hdr` (csum_start, csum_offset) and AF_XDP's TX metadata carry.
//! Cost: [`complete_checksum`] reads every byte from `start` on; nothing else here touches packet memory.

use crate::frame::Frame;

/// What is known of the innermost transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checksum {
    /// As on a wire: complete, not verified, the endpoint's business.
    #[default]
    None,
    /// The field holds the pseudo-header sum only; the sum over `start..` is still to be folded in at
    /// `start + offset`. Both in bytes; `start` counts from the first byte of the frame.
    Partial {
        /// First byte covered by the sum, from the start of the frame.
        start: u16,
        /// Position of the checksum field, from `start`.
        offset: u16,
    },
    /// A device that cannot tell (veth): partial if the field equals the pseudo-header sum, else complete.
    Unknown,
    /// Verified by the device.
    Verified,
}

/// Which segmentation a frame longer than the MTU asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GsoKind {
    /// An ordinary packet.
    #[default]
    None,
    /// TCP over IPv4 (innermost).
    Tcp4,
    /// TCP over IPv6 (innermost).
    Tcp6,
    /// UDP datagrams of equal size (UDP_SEGMENT), either family.
    Udp,
}

/// Segmentation request of a frame: kind and payload bytes per segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Gso {
    /// Kind of segmentation.
    pub kind: GsoKind,
    /// Transport payload bytes in each segment but the last; 0 for [`GsoKind::None`].
    pub size: u16,
}

/// Completes a partial checksum over the whole chain, as a device would, and marks the frame [`Checksum::None`].
/// Frames in any other state are left as they are. `false`, with the frame unchanged, if the checksum field does not
/// lie within the first chunk.
pub fn complete_checksum(frame: &mut Frame) -> bool {
    let Checksum::Partial { start, offset } = frame.checksum else { return true };
    let start = usize::from(start);
    let field = start + usize::from(offset);
    if field + 2 > frame.head_len() {
        return false;
    }
    // The field's own content, the pseudo-header's sum, is covered and so counted.
    let mut sum = InternetSum::default();
    let mut skip = start;
    frame.for_each_segment(|bytes| {
        sum.add(&bytes[skip..]);
        skip = 0;
    });
    frame.head_mut()[field..field + 2].copy_from_slice(&sum.finish().to_be_bytes());
    frame.checksum = Checksum::None;
    true
}

/// One's complement sum over pieces of any length, odd ones included.
#[derive(Default)]
pub(crate) struct InternetSum {
    sum: u64,
    odd: bool,
}

impl InternetSum {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let words = bytes.chunks_exact(2);
        let last = words.remainder().first().map_or(0, |&b| u64::from(b) << 8);
        let mut piece = last + words.map(|w| u64::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u64>();
        piece = u64::from(fold(piece));
        // A piece that begins at an odd position has its bytes in the other halves of the words (RFC 1071 section 2 B).
        self.sum += if self.odd { u64::from((piece as u16).swap_bytes()) } else { piece };
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Counts a 16-bit word in, whatever the parity of what went before.
    pub(crate) fn add_word(&mut self, word: u16) {
        self.sum += u64::from(word);
    }

    /// The folded sum, not complemented: what a partial checksum's field holds for the pseudo-header.
    pub(crate) fn folded(&self) -> u16 {
        fold(self.sum)
    }

    /// The checksum. Never 0: 0xffff is the same number and does not mean "none" in UDP.
    pub(crate) fn finish(&self) -> u16 {
        match !self.folded() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{FramePool, PoolOptions};
    use proptest::prelude::*;
    use std::sync::{Arc, LazyLock};

    static POOL: LazyLock<Arc<FramePool>> =
        LazyLock::new(|| FramePool::new(PoolOptions { frames: 1024, huge_pages: false }).unwrap());

    /// The definition, read literally: 16-bit big-endian words, odd tail padded with zero, carries added back.
    fn plain_sum(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for i in (0..bytes.len()).step_by(2) {
            sum += u32::from(bytes[i]) << 8 | u32::from(*bytes.get(i + 1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_sums_as_printed() {
        let mut sum = InternetSum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
    }

    #[test]
    fn a_sum_of_zero_is_sent_as_all_ones() {
        let mut cache = POOL.cache();
        let mut frame = cache.alloc_copy(&[0xff, 0xff, 0x00, 0x00]).unwrap();
        frame.checksum = Checksum::Partial { start: 0, offset: 2 };
        assert!(complete_checksum(&mut frame));
        assert_eq!(frame.head(), [0xff, 0xff, 0xff, 0xff]);
        cache.free(frame);
    }

    #[test]
    fn a_field_outside_the_first_chunk_is_refused_and_the_frame_kept() {
        let mut cache = POOL.cache();
        let mut frame = cache.alloc_copy(&[1, 2, 3, 4]).unwrap();
        for (start, offset) in [(0, 3), (4, 0), (65535, 65535)] {
            frame.checksum = Checksum::Partial { start, offset };
            assert!(!complete_checksum(&mut frame));
            assert_eq!((frame.checksum, frame.head()), (Checksum::Partial { start, offset }, &[1, 2, 3, 4][..]));
        }
        cache.free(frame);
    }

    #[test]
    fn a_complete_frame_is_left_alone() {
        let mut cache = POOL.cache();
        let mut frame = cache.alloc_copy(&[1, 2, 3, 4]).unwrap();
        for state in [Checksum::None, Checksum::Unknown, Checksum::Verified] {
            frame.checksum = state;
            assert!(complete_checksum(&mut frame));
            assert_eq!((frame.checksum, frame.head()), (state, &[1, 2, 3, 4][..]));
        }
        cache.free(frame);
    }

    proptest! {
        #[test]
        fn a_completed_frame_verifies_wherever_the_chain_is_cut(
            bytes in prop::collection::vec(any::<u8>(), 40..400),
            cuts in prop::collection::vec(1usize..60, 0..6),
            start in 0usize..20,
            offset in 0usize..18,
        ) {
            // The head holds all headers, so the first cut lies behind them.
            let mut cache = POOL.cache();
            let (head, mut rest) = bytes.split_at(40);
            let mut frame = cache.alloc_copy(head).unwrap();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                frame.append(cache.alloc_copy(piece).unwrap());
                rest = after;
            }
            frame.append(cache.alloc_copy(rest).unwrap());
            // Fields lie on even offsets from where the sum starts; `odd` fields would shift the whole word.
            let offset = offset & !1;
            frame.checksum = Checksum::Partial { start: start as u16, offset: offset as u16 };
            prop_assert!(complete_checksum(&mut frame));
            let done = frame.to_vec();
            cache.free(frame);
            // Same bytes elsewhere, and the receiver's check: sum with the field = ~(pseudo header), which was what
            // the field held before.
            let field = start + offset;
            prop_assert_eq!(&done[..field], &bytes[..field]);
            prop_assert_eq!(&done[field + 2..], &bytes[field + 2..]);
            let pseudo = [bytes[field], bytes[field + 1]];
            let check = plain_sum(&[&done[start..], if (done.len() - start) % 2 == 1 { &[0][..] } else { &[] }, &pseudo].concat());
            prop_assert_eq!(check, 0xffff);
        }
    }
}
