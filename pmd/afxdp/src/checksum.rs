//! Completes a partial transport checksum in software, for devices that cannot.
//!
//! Runs on the worker's thread, in the driver's transmit path. Source: RFC 1071, RFC 768 (a UDP sum of zero is sent as
//! ones), Linux `skb_checksum_help`. Cost: one pass over the packet from `start`.

use sluice_port::{Checksum, Frame};

/// Adds `bytes` to a 64-bit one's complement sum, as if they stood at an even position.
fn add(sum: u64, bytes: &[u8]) -> u64 {
    let mut sum = sum;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Folds the sum over the chain from `start` and stores it at `start + offset`; the frame is then
/// [`Checksum::None`]. A frame that asks for nothing is left alone.
///
/// `false`, and the frame unchanged, if the checksum field is not within the first chunk or the packet ends before
/// `start`: such a frame cannot be sent.
pub fn complete_checksum(frame: &mut Frame) -> bool {
    let Checksum::Partial { start, offset } = frame.checksum else { return true };
    let (start, offset) = (usize::from(start), usize::from(offset));
    let field = start + offset;
    if field + 2 > frame.head_len() {
        return false;
    }
    let (mut sum, mut at, mut odd) = (0u64, 0usize, false);
    frame.for_each_segment(|segment| {
        let skipped = start.saturating_sub(at).min(segment.len());
        at += segment.len();
        let covered = &segment[skipped..];
        if covered.is_empty() {
            return;
        }
        let part = fold(add(0, covered));
        // A part that begins at an odd byte has its octets in the other half of each word (RFC 1071, section 2 B).
        sum += u64::from(if odd { part.swap_bytes() } else { part });
        odd ^= covered.len() % 2 == 1;
    });
    let value = match !fold(sum) {
        0 => 0xffff,
        value => value,
    };
    frame.head_mut()[field..field + 2].copy_from_slice(&value.to_be_bytes());
    frame.checksum = Checksum::None;
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sluice_port::{FramePool, PoolOptions};
    use std::sync::{Arc, OnceLock};

    /// The sum a byte at a time, from the definition.
    fn oracle(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for (i, byte) in bytes.iter().enumerate() {
            sum += u32::from(*byte) << if i % 2 == 0 { 8 } else { 0 };
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// One pool for all cases: its memory is never given back.
    fn pool() -> &'static Arc<FramePool> {
        static POOL: OnceLock<Arc<FramePool>> = OnceLock::new();
        POOL.get_or_init(|| FramePool::new(PoolOptions { frames: 1024, huge_pages: false }).unwrap())
    }

    #[test]
    fn a_frame_that_asks_for_nothing_is_untouched() {
        let mut cache = pool().cache();
        let mut frame = cache.alloc_copy(&[1; 60]).unwrap();
        assert!(complete_checksum(&mut frame));
        assert_eq!(frame.to_vec(), [1; 60]);
        cache.free(frame);
    }

    #[test]
    fn a_field_outside_the_first_chunk_is_refused() {
        let mut cache = pool().cache();
        let mut frame = cache.alloc_copy(&[1; 20]).unwrap();
        frame.checksum = Checksum::Partial { start: 14, offset: 16 };
        assert!(!complete_checksum(&mut frame));
        assert_eq!(frame.to_vec(), [1; 20]);
        cache.free(frame);
    }

    #[test]
    fn a_sum_of_zero_is_sent_as_ones() {
        let mut cache = pool().cache();
        let mut frame = cache.alloc_copy(&[0xff, 0xff, 0, 0]).unwrap();
        frame.checksum = Checksum::Partial { start: 0, offset: 2 };
        assert!(complete_checksum(&mut frame));
        assert_eq!(frame.to_vec(), [0xff, 0xff, 0xff, 0xff]);
        cache.free(frame);
    }

    proptest! {
        /// With the completed field in place the sum over all covered bytes is all ones, however the packet is
        /// cut into chunks.
        #[test]
        fn the_completed_packet_sums_to_ones(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..6),
                                             head in prop::collection::vec(any::<u8>(), 40..200),
                                             start in 0u16..20, offset in 0u16..9) {
            let mut cache = pool().cache();
            let mut frame = cache.alloc_copy(&head).unwrap();
            for part in &parts {
                frame.append(cache.alloc_copy(part).unwrap());
            }
            let offset = offset * 2;
            frame.checksum = Checksum::Partial { start, offset };
            let before = frame.to_vec();
            prop_assert!(complete_checksum(&mut frame));
            let after = frame.to_vec();
            let field = usize::from(start + offset);
            // What stood in the field is the pseudo-header's part of the sum.
            let pseudo = [&before[field..field + 2], &oracle(&after[usize::from(start)..]).to_be_bytes()].concat();
            prop_assert_eq!(oracle(&pseudo), 0xffff);
            prop_assert_eq!(&before[..field], &after[..field]);
            prop_assert_eq!(&before[field + 2..], &after[field + 2..]);
            prop_assert_eq!(frame.checksum, Checksum::None);
            cache.free(frame);
        }
    }
}
