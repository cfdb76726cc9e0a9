//! In-memory ports: a queue whose far end is a handle (tests, replay, benches) or another queue, back to back.
//!
//! ```text
//! queue():  MemQueue ──tx ring──▶ MemHandle::collect        pair():  MemQueue ──▶ MemQueue
//!           MemQueue ◀──rx ring── MemHandle::inject                  MemQueue ◀── MemQueue
//! ```
//! Owner: each end belongs to one thread, the two ends may be on different ones. Invariants: a ring has one producer
//! and one consumer; frames keep their metadata (checksum state, segmentation) on the way, except that a queue with
//! `tx_checksum` completes partial checksums as hardware would; the end that closes last frees what both rings still
//! hold. Cost: one compare-and-swap per frame and ring operation, no allocation.

use crate::frame::Frame;
use crate::offload::complete_checksum;
use crate::pool::PoolCache;
use crate::port::{Burst, Capabilities, PortMode, PortStats, Queue};
use core::sync::atomic::{AtomicBool, Ordering};
use crossbeam::queue::ArrayQueue;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Ring sizes and what the queue says it can do.
#[derive(Clone, Copy, Debug)]
pub struct MemConfig {
    /// Frames that wait to be received before the sender is refused; at least 1.
    pub rx_ring: usize,
    /// Frames that wait to be collected before `tx` refuses; at least 1. A [`pair`] has only this ring, one each way.
    pub tx_ring: usize,
    /// What the queue does; enforced, so a frame it does not [accept](Capabilities::accepts) is freed and counted.
    pub capabilities: Capabilities,
}

impl Default for MemConfig {
    /// Rings of 512; completes checksums, takes chains, 65,550-byte frames and TCP segmentation, as a TAP does.
    fn default() -> Self {
        MemConfig {
            rx_ring: 512,
            tx_ring: 512,
            capabilities: Capabilities {
                tx_checksum: true,
                tso4: true,
                tso6: true,
                chained: true,
                wants_coalescing: false,
                max_frame: 65_550,
            },
        }
    }
}

/// A queue and the handle of its far end.
pub fn queue(config: MemConfig) -> (MemQueue, MemHandle) {
    let (near, far) = link(config.rx_ring, config.tx_ring);
    (MemQueue { end: near, capabilities: config.capabilities, stats: PortStats::default() }, MemHandle { end: far })
}

/// Two queues back to back: what one sends, the other receives. Both have the same ring size and capabilities.
pub fn pair(config: MemConfig) -> (MemQueue, MemQueue) {
    let (near, far) = link(config.tx_ring, config.tx_ring);
    let queue = |end| MemQueue { end, capabilities: config.capabilities, stats: PortStats::default() };
    (queue(near), queue(far))
}

fn link(to_near: usize, to_far: usize) -> (End, End) {
    let link = Arc::new(Link {
        rings: [ArrayQueue::new(to_near.max(1)), ArrayQueue::new(to_far.max(1))],
        closed: [AtomicBool::new(false), AtomicBool::new(false)],
    });
    (End { link: Arc::clone(&link), side: 0 }, End { link, side: 1 })
}

struct Link {
    /// What each side receives.
    rings: [ArrayQueue<Frame>; 2],
    closed: [AtomicBool; 2],
}

/// One side of a link.
struct End {
    link: Arc<Link>,
    side: usize,
}

impl End {
    #[inline]
    fn incoming(&self) -> &ArrayQueue<Frame> {
        &self.link.rings[self.side]
    }

    #[inline]
    fn outgoing(&self) -> &ArrayQueue<Frame> {
        &self.link.rings[1 - self.side]
    }

    #[inline]
    fn peer_closed(&self) -> bool {
        self.link.closed[1 - self.side].load(Ordering::SeqCst)
    }

    /// Frees what waits for this side, and what waits for the other if that has gone already. Of two sides that close
    /// at once at least one sees the other's flag (both are sequentially consistent), and with it its last push.
    fn close(&self, cache: &mut PoolCache) {
        self.link.closed[self.side].store(true, Ordering::SeqCst);
        let peer_closed = self.peer_closed();
        while let Some(frame) = self.incoming().pop() {
            cache.free(frame);
        }
        while peer_closed && let Some(frame) = self.outgoing().pop() {
            cache.free(frame);
        }
    }
}

impl Drop for End {
    /// An end dropped without `close` has no cache to free into; it says so, and the other end's close frees for both.
    fn drop(&mut self) {
        self.link.closed[self.side].store(true, Ordering::SeqCst);
    }
}

/// The driver's end of an in-memory port.
pub struct MemQueue {
    end: End,
    capabilities: Capabilities,
    stats: PortStats,
}

impl Queue for MemQueue {
    #[inline]
    fn rx(&mut self, _cache: &mut PoolCache, out: &mut Burst, max: usize) -> usize {
        let mut n = 0;
        while n < max
            && let Some(frame) = self.end.incoming().pop()
        {
            self.stats.rx_bytes += frame.len() as u64;
            out.push(frame);
            n += 1;
        }
        self.stats.rx_packets += n as u64;
        n
    }

    #[inline]
    fn tx(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize {
        let up = !self.end.peer_closed();
        // One producer per ring: room only grows until we push, so what is counted here fits below.
        let ring = self.end.outgoing();
        let mut room = ring.capacity() - ring.len();
        let mut taken = 0;
        for frame in frames.iter() {
            if up && self.capabilities.accepts(frame) {
                if room == 0 {
                    break;
                }
                room -= 1;
            }
            taken += 1;
        }
        for mut frame in frames.drain(..taken) {
            let bytes = frame.len() as u64;
            let fit = up && self.capabilities.accepts(&frame) && complete_checksum(&mut frame);
            let refused = if fit { ring.push(frame).err() } else { Some(frame) };
            match refused {
                None => {
                    self.stats.tx_packets += 1;
                    self.stats.tx_bytes += bytes;
                }
                Some(frame) => {
                    self.stats.tx_errors += 1;
                    cache.free(frame);
                }
            }
        }
        self.stats.tx_full += frames.len() as u64;
        taken
    }

    #[inline]
    fn flush(&mut self, _cache: &mut PoolCache) {}

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn stats(&self) -> PortStats {
        self.stats
    }

    fn mode(&self) -> PortMode {
        PortMode { driver: "mem", mode: "ring".into(), reason: String::new() }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn close(self: Box<Self>, cache: &mut PoolCache) {
        self.end.close(cache);
    }
}

/// Why a frame could not be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// The queue's receive ring is full; receive and try again.
    #[error("the receive ring is full")]
    RingFull,
    /// The pool has no chunk left for the bytes.
    #[error("the frame pool is empty")]
    PoolEmpty,
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed,
}

/// The far end of a [`MemQueue`]: puts frames in and takes out what was sent.
pub struct MemHandle {
    end: End,
}

impl MemHandle {
    /// Gives the queue a frame to receive, metadata included; the frame comes back if the ring is full or the queue
    /// closed.
    pub fn inject(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.end.peer_closed() {
            return Err(frame);
        }
        self.end.outgoing().push(frame)
    }

    /// Gives the queue a copy of `bytes` to receive, in a frame from `cache`.
    pub fn inject_bytes(&mut self, cache: &mut PoolCache, bytes: &[u8]) -> Result<(), InjectError> {
        let frame = cache.alloc_copy(bytes).ok_or(InjectError::PoolEmpty)?;
        self.inject(frame).map_err(|frame| {
            cache.free(frame);
            if self.end.peer_closed() { InjectError::Closed } else { InjectError::RingFull }
        })
    }

    /// The next frame that the queue sent, to be given back to a cache.
    pub fn collect(&mut self) -> Option<Frame> {
        self.end.incoming().pop()
    }

    /// The bytes of the next frame that the queue sent; the frame goes to `cache`.
    pub fn collect_bytes(&mut self, cache: &mut PoolCache) -> Option<Vec<u8>> {
        let frame = self.collect()?;
        let bytes = frame.to_vec();
        cache.free(frame);
        Some(bytes)
    }

    /// Frames sent and not yet collected.
    pub fn waiting(&self) -> usize {
        self.end.incoming().len()
    }

    /// Frames injected and not yet received.
    pub fn unreceived(&self) -> usize {
        self.end.outgoing().len()
    }

    /// Frees what was not collected. The queue then counts what it is given to send as errors, as with a cable pulled.
    pub fn close(self, cache: &mut PoolCache) {
        self.end.close(cache);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Laws, Pair, Peer, Rig};
    use crate::offload::{Checksum, Gso, GsoKind};
    use crate::pool::{FramePool, PoolOptions};

    fn pool(frames: usize) -> Arc<FramePool> {
        FramePool::new(PoolOptions { frames, huge_pages: false }).unwrap()
    }

    struct MemRig(MemConfig);

    impl Peer for MemHandle {
        fn inject(&mut self, cache: &mut PoolCache, bytes: &[u8]) -> bool {
            self.inject_bytes(cache, bytes).is_ok()
        }

        fn collect(&mut self, cache: &mut PoolCache, out: &mut Vec<Vec<u8>>) {
            out.extend(std::iter::from_fn(|| self.collect_bytes(cache)));
        }

        fn close(self: Box<Self>, cache: &mut PoolCache) {
            MemHandle::close(*self, cache);
        }
    }

    impl Rig for MemRig {
        fn laws(&self) -> Laws {
            Laws { fills_after: Some(self.0.tx_ring), ..Laws::default() }
        }

        fn open(&mut self, _pool: &Arc<FramePool>, _recorded: &[Vec<u8>]) -> Result<Pair, String> {
            let (queue, handle) = queue(self.0);
            Ok(Pair { queue: Box::new(queue), peer: Box::new(handle) })
        }
    }

    #[test]
    fn conforms_with_everything_offered() {
        conformance::assert_conforms(&mut MemRig(MemConfig::default()));
    }

    #[test]
    fn conforms_with_nothing_offered_and_tiny_rings() {
        let capabilities = Capabilities { max_frame: 1514, ..Capabilities::default() };
        conformance::assert_conforms(&mut MemRig(MemConfig { rx_ring: 3, tx_ring: 2, capabilities }));
    }

    #[test]
    fn a_pair_carries_frames_and_their_metadata_across() {
        let pool = pool(64);
        let mut cache = pool.cache();
        let (mut a, mut b) = pair(MemConfig::default());
        let mut frame = cache.alloc_copy(&[9; 100]).unwrap();
        frame.gso = Gso { kind: GsoKind::Tcp4, size: 30 };
        let index = frame.index();
        assert_eq!(a.tx(&mut cache, &mut vec![frame]), 1);
        let mut burst = Burst::new();
        assert_eq!(b.rx(&mut cache, &mut burst, 8), 1);
        let frame = burst.pop().unwrap();
        assert_eq!((frame.index(), frame.gso.size, frame.len()), (index, 30, 100));
        cache.free(frame);
        Box::new(a).close(&mut cache);
        Box::new(b).close(&mut cache);
    }

    #[test]
    fn what_the_capabilities_do_not_cover_is_freed_and_counted() {
        let pool = pool(64);
        let mut cache = pool.cache();
        let capabilities = Capabilities { max_frame: 1514, ..Capabilities::default() };
        let (mut queue, mut handle) = queue(MemConfig { capabilities, ..MemConfig::default() });
        let mut partial = cache.alloc_copy(&[0; 60]).unwrap();
        partial.checksum = Checksum::Partial { start: 34, offset: 16 };
        let mut large = cache.alloc_copy(&[0; 1000]).unwrap();
        large.gso = Gso { kind: GsoKind::Tcp6, size: 500 };
        let long = cache.alloc_copy(&[0; 1515]).unwrap();
        let mut chained = cache.alloc_copy(&[0; 60]).unwrap();
        chained.append(cache.alloc_copy(&[0; 60]).unwrap());
        let good = cache.alloc_copy(&[5; 1514]).unwrap();
        assert_eq!(queue.tx(&mut cache, &mut vec![partial, large, long, chained, good]), 5);
        assert_eq!((queue.stats().tx_errors, queue.stats().tx_packets, queue.stats().tx_bytes), (4, 1, 1514));
        assert_eq!(handle.collect_bytes(&mut cache), Some(vec![5; 1514]));
        cache.account();
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn whichever_end_closes_first_nothing_is_left_behind() {
        let pool = pool(256);
        for handle_first in [true, false] {
            let mut cache = pool.cache();
            let (mut queue, mut handle) = queue(MemConfig::default());
            let mut burst: Burst = (0..10).map(|_| cache.alloc().unwrap()).collect();
            queue.tx(&mut cache, &mut burst);
            for _ in 0..5 {
                handle.inject_bytes(&mut cache, &[1; 60]).unwrap();
            }
            if handle_first {
                handle.close(&mut cache);
                let mut burst = vec![cache.alloc().unwrap()];
                assert_eq!((queue.tx(&mut cache, &mut burst), queue.stats().tx_errors), (1, 1));
                Box::new(queue).close(&mut cache);
            } else {
                Box::new(queue).close(&mut cache);
                assert_eq!(handle.inject_bytes(&mut cache, &[1]), Err(InjectError::Closed));
                assert_eq!(handle.waiting(), 10);
                handle.close(&mut cache);
            }
            cache.account();
            assert_eq!(pool.outstanding(), 0);
        }
    }

    #[test]
    fn a_handle_that_was_only_dropped_is_cleaned_up_by_the_queue() {
        let pool = pool(64);
        let mut cache = pool.cache();
        let (mut queue, handle) = queue(MemConfig::default());
        queue.tx(&mut cache, &mut vec![cache_frame(&pool)]);
        drop(handle);
        Box::new(queue).close(&mut cache);
        cache.account();
        assert_eq!(pool.outstanding(), 0);
    }

    fn cache_frame(pool: &Arc<FramePool>) -> Frame {
        pool.cache().alloc().unwrap()
    }

    #[test]
    fn two_threads_exchange_frames_in_order_and_leave_none_behind() {
        const FRAMES: u32 = 50_000;
        let pool = pool(1024);
        let (a, b) = pair(MemConfig { tx_ring: 64, ..MemConfig::default() });
        let run = |mut queue: MemQueue| {
            let pool = Arc::clone(&pool);
            move || {
                let mut cache = pool.cache();
                let (mut sent, mut seen) = (0u32, 0u32);
                let (mut out, mut burst) = (Burst::new(), Burst::new());
                while sent < FRAMES || !out.is_empty() || seen < FRAMES {
                    while out.len() < 32
                        && sent < FRAMES
                        && let Some(mut frame) = cache.alloc()
                    {
                        frame.reset(60).unwrap()[..4].copy_from_slice(&sent.to_be_bytes());
                        out.push(frame);
                        sent += 1;
                    }
                    queue.tx(&mut cache, &mut out);
                    if queue.rx(&mut cache, &mut burst, 32) == 0 {
                        std::thread::yield_now();
                    }
                    for frame in burst.drain(..) {
                        assert_eq!(frame.head()[..4], seen.to_be_bytes());
                        seen += 1;
                        cache.free(frame);
                    }
                }
                Box::new(queue).close(&mut cache);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(run(a));
            scope.spawn(run(b));
        });
        assert_eq!(pool.outstanding(), 0);
    }
}
