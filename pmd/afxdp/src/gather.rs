//! Copies a packet into fewer chunks, for what the kernel would not take as it lies.
//!
//! Runs on the worker's thread, in transmit, rarely: chains of many small pieces, and data too far in front of its chunk.
//! Cost: one copy of the packet.

use crate::abi::COPY_MAX_SEGMENTS;
use sluice_port::{CHUNK, Frame, HEADROOM, PoolCache};

/// Copies a packet into as few chunks as it fits, each with all its headroom: for chains of more pieces than the kernel
/// takes and for data too far in front. `None` if the pool is empty.
#[cold]
pub(crate) fn gather(frame: &Frame, cache: &mut PoolCache) -> Option<Frame> {
    const ROOM: usize = CHUNK - HEADROOM;
    let mut left = frame.len();
    let mut chunks: [Option<Frame>; COPY_MAX_SEGMENTS] = [const { None }; COPY_MAX_SEGMENTS];
    let mut complete = left <= ROOM * COPY_MAX_SEGMENTS;
    for slot in &mut chunks {
        if left == 0 || !complete {
            break;
        }
        *slot = cache.alloc();
        match slot.as_mut().map(|chunk| chunk.reset(left.min(ROOM))) {
            Some(_) => left -= left.min(ROOM),
            None => complete = false,
        }
    }
    if !complete {
        chunks.into_iter().flatten().for_each(|chunk| cache.free(chunk));
        return None;
    }
    let mut at = 0;
    frame.for_each_segment(|mut bytes| {
        while !bytes.is_empty() {
            let Some(chunk) = chunks.get_mut(at / ROOM).and_then(Option::as_mut) else { return };
            let target = &mut chunk.head_mut()[at % ROOM..];
            let n = target.len().min(bytes.len());
            target[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            at += n;
        }
    });
    let mut chunks = chunks.into_iter().flatten();
    let mut head = chunks.next()?;
    chunks.for_each(|chunk| head.append(chunk));
    (head.port, head.checksum, head.gso) = (frame.port, frame.checksum, frame.gso);
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sluice_port::{Checksum, FramePool, PoolOptions};
    use std::sync::{Arc, LazyLock};

    static POOL: LazyLock<Arc<FramePool>> =
        LazyLock::new(|| FramePool::new(PoolOptions { frames: 512, huge_pages: false }).unwrap());

    #[test]
    fn a_packet_longer_than_the_kernel_takes_is_refused_and_nothing_is_lost() {
        let pool = FramePool::new(PoolOptions { frames: 64, huge_pages: false }).unwrap();
        let mut cache = pool.cache();
        let frame = cache.alloc_copy(&vec![1; (CHUNK - HEADROOM) * COPY_MAX_SEGMENTS + 1]).unwrap();
        assert!(gather(&frame, &mut cache).is_none());
        cache.free(frame);
        // Nor with a pool that runs empty on the way.
        let frame = cache.alloc_copy(&vec![1; 60_000]).unwrap();
        let hoard: Vec<_> = (0..40).map(|_| cache.alloc().unwrap()).collect();
        assert!(gather(&frame, &mut cache).is_none());
        cache.free(frame);
        hoard.into_iter().for_each(|frame| cache.free(frame));
        cache.account();
        assert_eq!(pool.outstanding(), 0);
    }

    proptest! {
        /// Whatever the pieces, the gathered packet has the same bytes and metadata in as few chunks as they fit.
        #[test]
        fn a_gathered_packet_is_the_same_packet(pieces in prop::collection::vec(1usize..3840, 1..18)) {
            let mut cache = POOL.cache();
            let bytes: Vec<u8> = (0..pieces.iter().sum()).map(|i: usize| (i % 251) as u8).collect();
            let mut rest = &bytes[..];
            let mut frame: Option<Frame> = None;
            for piece in pieces {
                let (now, later) = rest.split_at(piece);
                let next = cache.alloc_copy(now).unwrap();
                match frame.as_mut() {
                    Some(frame) => frame.append(next),
                    None => frame = Some(next),
                }
                rest = later;
            }
            let mut frame = frame.unwrap();
            frame.port = 7;
            frame.checksum = Checksum::Partial { start: 34, offset: 6 };
            let gathered = gather(&frame, &mut cache).unwrap();
            prop_assert_eq!(gathered.to_vec(), bytes.clone());
            prop_assert_eq!(gathered.segments(), bytes.len().div_ceil(CHUNK - HEADROOM));
            prop_assert_eq!((gathered.port, gathered.checksum), (frame.port, frame.checksum));
            prop_assert_eq!(gathered.offset(), HEADROOM);
            cache.free(frame);
            cache.free(gathered);
        }
    }
}
