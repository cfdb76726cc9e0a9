//! The frame pool: one memory region of equal chunks that all ports of a process share, and each worker's cache of it.
//!
//! ```text
//! FramePool ── shared depot of free chunk numbers, in groups of 64 ──┐
//!   PoolCache (worker 0): stack of at most 3 groups                  │ one queue operation per 64 frames
//!   PoolCache (worker 1): …                                          ┘
//! ```
//! The region is mapped once and never unmapped: frames may be in a NIC's hands when a thread ends, and a `Frame` is
//! valid for as long as it exists. Allocation and release on a cache touch only that worker's stack.
//!
//! Owner: a pool is shared, a cache belongs to one thread. Invariant: a chunk number is in exactly one place: the
//! depot, one cache's stack, one `Frame`, or one driver (by [`PoolCache::alloc_index`]). Cost: a stack push or pop per
//! frame and a region comparison per free. Sizing: idle caches keep up to 192 chunks each, so a pool needs
//! that many per worker on top of what rings and queues hold.

use crate::frame::{CHUNK, Frame, HEADROOM};
use crate::memory::{HUGE_PAGE, map_joined, map_present};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicIsize, Ordering};
use crossbeam::queue::ArrayQueue;
use rustix::mm::MapFlags;
use std::sync::Arc;

/// Chunks that move between the depot and a cache in one queue operation.
const GROUP: usize = 64;
/// A cache that has grown to this many chunks gives groups back, down to [`CACHE_KEEP`].
const CACHE_HIGH: usize = 3 * GROUP;
/// What a cache keeps when it gives groups back.
const CACHE_KEEP: usize = 2 * GROUP;
/// Chunk numbers and how many of them count.
type Group = ([u32; GROUP], u8);

/// What a pool could not do.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The region could not be mapped.
    #[error("cannot map {bytes} bytes of memory: {source}; configure fewer frames or flows, or give the process more")]
    Map {
        /// Bytes asked for.
        bytes: usize,
        /// The kernel's answer.
        source: rustix::io::Errno,
    },
    /// A pool needs at least one group of frames.
    #[error("a frame pool needs at least {GROUP} frames, not {0}")]
    TooSmall(usize),
    /// Chunk numbers have 32 bits, and one of them means "none".
    #[error("a frame pool has at most {max} frames, not {0}", max = u32::MAX)]
    TooLarge(usize),
}

/// How a pool's memory is made.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Number of chunks.
    pub frames: usize,
    /// Try reserved 2 MB pages first; where there are none, or fewer than the process may use, let the kernel join 4 KB
    /// pages to large ones as far as it can.
    pub huge_pages: bool,
}

/// The region and its depot of free chunks.
pub struct FramePool {
    base: NonNull<u8>,
    frames: usize,
    huge: bool,
    depot: ArrayQueue<Group>,
    /// Chunks out of the depot and of every cache's last accounted stack. Signed: a cache that frees what another one
    /// allocated may account first.
    taken: AtomicIsize,
}

// SAFETY: `base` is the address of a region that lives as long as the process; the pool itself never reads or writes
// through it, it only derives chunk addresses for Frames, each of which is exclusive.
unsafe impl Send for FramePool {}
// SAFETY: as above; the depot and counters are thread-safe.
unsafe impl Sync for FramePool {}

impl FramePool {
    /// Maps and touches the region (first touch is slow on virtual machines, so it happens here, not per packet).
    pub fn new(options: PoolOptions) -> Result<Arc<Self>, PoolError> {
        let PoolOptions { frames, huge_pages } = options;
        if frames < GROUP {
            return Err(PoolError::TooSmall(frames));
        }
        let bytes = match frames.checked_mul(CHUNK) {
            Some(bytes) if frames < u32::MAX as usize => bytes,
            _ => return Err(PoolError::TooLarge(frames)),
        };
        // Shared, so that a registered region is the same memory for the kernel and for us whatever forks.
        let present = |bytes, extra| map_present(bytes, MapFlags::SHARED | extra);
        let huge =
            huge_pages.then(|| present(bytes.next_multiple_of(HUGE_PAGE), MapFlags::HUGETLB)).and_then(Result::ok);
        let small = || {
            // Transparent large pages are not for shared memory, so that memory is private.
            let joined = huge_pages.then(|| map_joined(bytes)).and_then(Result::ok);
            joined.map_or_else(|| present(bytes, MapFlags::empty()), Ok)
        };
        let (base, huge) = match huge {
            Some(base) => (base, true),
            None => (small().map_err(|source| PoolError::Map { bytes, source })?, false),
        };
        let pool =
            FramePool { base, frames, huge, depot: ArrayQueue::new(depot_groups(frames)), taken: AtomicIsize::new(0) };
        let mut group = ([0; GROUP], 0u8);
        for index in 0..frames as u32 {
            group.0[usize::from(group.1)] = index;
            group.1 += 1;
            if usize::from(group.1) == GROUP || index as usize == frames - 1 {
                let _ = pool.depot.push(core::mem::replace(&mut group, ([0; GROUP], 0)));
            }
        }
        Ok(Arc::new(pool))
    }

    /// Number of chunks.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Whether the region got reserved 2 MB pages.
    pub fn huge_pages(&self) -> bool {
        self.huge
    }

    /// First byte of the region and its length, for registering it with the kernel (XDP_UMEM_REG).
    pub fn region(&self) -> (NonNull<u8>, usize) {
        (self.base, self.frames * CHUNK)
    }

    /// Chunks that are neither in the depot nor in a cache: in ports, queues and hands. Exact when every cache has
    /// been dropped or has called [`PoolCache::account`] since it last moved; else off by at most 192 per cache.
    pub fn outstanding(&self) -> usize {
        usize::try_from(self.taken.load(Ordering::Acquire)).unwrap_or(0)
    }

    /// Address of a chunk.
    ///
    /// # Panics
    /// If the pool has no such chunk.
    #[inline]
    pub fn chunk(&self, index: u32) -> NonNull<u8> {
        assert!((index as usize) < self.frames, "chunk {index} of a pool of {}", self.frames);
        // SAFETY: index < frames, so the address is inside the region.
        unsafe { self.base.add(index as usize * CHUNK) }
    }

    /// A worker's cache.
    pub fn cache(self: &Arc<Self>) -> PoolCache {
        PoolCache { pool: Arc::clone(self), stack: Vec::with_capacity(CACHE_HIGH + GROUP), accounted: 0 }
    }
}

/// Slots of the depot: four times what full groups need. Only a cache's end makes groups that are not full, and it
/// joins them when slots run out (see [`PoolCache`]'s `Drop`).
fn depot_groups(frames: usize) -> usize {
    frames.div_ceil(GROUP) * 4 + 64
}

/// A worker's free chunks. Not shared; give frames back to the cache of the thread that ends them.
pub struct PoolCache {
    pool: Arc<FramePool>,
    stack: Vec<u32>,
    /// Length of the stack as last accounted, moved along by groups taken from and given to the depot.
    accounted: isize,
}

impl PoolCache {
    /// The pool behind it.
    pub fn pool(&self) -> &Arc<FramePool> {
        &self.pool
    }

    /// A frame with no data at [`HEADROOM`], or `None` when the pool is empty.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        if self.stack.is_empty() && !self.refill() {
            return None;
        }
        let index = self.stack.pop()?;
        // SAFETY: an index on a stack is below `frames` and owned by this cache alone; popping it hands that ownership
        // on. The address is inside the region, HEADROOM inside the chunk, and the mapping lives as long as the process.
        Some(unsafe { Frame::from_raw(self.pool.base.add(index as usize * CHUNK), index, HEADROOM as u16, 0) })
    }

    /// A frame holding a copy of `bytes`, chained if they are longer than a chunk's data area (3840 bytes). `None`,
    /// with nothing taken, when the pool has not enough chunks.
    pub fn alloc_copy(&mut self, bytes: &[u8]) -> Option<Frame> {
        let mut parts = bytes.chunks(CHUNK - HEADROOM);
        let mut head = self.alloc_part(parts.next().unwrap_or(&[]))?;
        for part in parts {
            match self.alloc_part(part) {
                Some(frame) => head.append(frame),
                None => {
                    self.free(head);
                    return None;
                }
            }
        }
        Some(head)
    }

    fn alloc_part(&mut self, bytes: &[u8]) -> Option<Frame> {
        let mut frame = self.alloc()?;
        if let Some(room) = frame.reset(bytes.len()) {
            room.copy_from_slice(bytes);
        }
        Some(frame)
    }

    /// Ends a packet: its chunks are free again.
    ///
    /// # Panics
    /// If the frame is of another pool: its chunk number would name a stranger's memory here.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        self.give_back(&frame);
    }

    /// Takes a frame's chunks; the caller forgets the frame.
    #[inline(always)]
    fn give_back(&mut self, frame: &Frame) {
        assert!(frame.region() == self.pool.base.as_ptr().cast_const(), "a frame of another pool");
        if frame.segments() == 1 {
            self.stack.push(frame.index());
        } else {
            frame.for_each_descriptor(|index, _, _| self.stack.push(index));
        }
        if self.stack.len() >= CACHE_HIGH {
            self.spill();
        }
    }

    /// Ends the first `n` packets of a burst.
    ///
    /// # Panics
    /// As [`free`](Self::free), and if the burst has fewer.
    #[inline]
    pub fn free_first(&mut self, frames: &mut Vec<Frame>, n: usize) {
        // By number, before the burst forgets them, and one look at the stack's size for a group: moving 40 bytes to free four
        // of them, one by one, took three times as many instructions.
        let base = self.pool.base.as_ptr().cast_const();
        for group in frames[..n].chunks(GROUP) {
            let (height, mut odd) = (self.stack.len(), false);
            self.stack.extend(group.iter().map(|frame| {
                odd |= (frame.segments() != 1) | (frame.region() != base);
                frame.index()
            }));
            if odd {
                self.stack.truncate(height);
                group.iter().for_each(|frame| self.give_back(frame));
            } else if self.stack.len() >= CACHE_HIGH {
                self.spill();
            }
        }
        frames.drain(..n);
    }

    /// Takes back a chunk that a driver held by number (a completed or unused descriptor).
    ///
    /// # Safety
    /// `index` is a chunk of this pool that no `Frame`, cache or device names any more.
    #[inline]
    pub unsafe fn free_index(&mut self, index: u32) {
        debug_assert!((index as usize) < self.pool.frames);
        self.stack.push(index);
        if self.stack.len() >= CACHE_HIGH {
            self.spill();
        }
    }

    /// Gives a chunk away by number, for a driver's fill ring; the driver owns it until it makes a `Frame` of it.
    #[inline]
    pub fn alloc_index(&mut self) -> Option<u32> {
        if self.stack.is_empty() && !self.refill() {
            return None;
        }
        self.stack.pop()
    }

    #[cold]
    fn refill(&mut self) -> bool {
        let Some((group, n)) = self.pool.depot.pop() else {
            self.account();
            return false;
        };
        self.stack.extend_from_slice(&group[..usize::from(n)]);
        self.accounted += isize::from(n);
        self.account();
        true
    }

    /// Gives full groups back until fewer than a group lie above [`CACHE_KEEP`].
    #[cold]
    fn spill(&mut self) {
        while self.stack.len() >= CACHE_KEEP + GROUP && self.give(GROUP) {}
        self.account();
    }

    /// Moves the `n` topmost chunks to the depot; `false`, with nothing moved, if it has no slot.
    fn give(&mut self, n: usize) -> bool {
        let from = self.stack.len() - n;
        let mut group = ([0; GROUP], n as u8);
        group.0[..n].copy_from_slice(&self.stack[from..]);
        if self.pool.depot.push(group).is_err() {
            return false;
        }
        self.stack.truncate(from);
        self.accounted -= n as isize;
        true
    }

    /// Makes [`FramePool::outstanding`] exact for this cache. Refills and spills do it too; a worker calls it when idle.
    pub fn account(&mut self) {
        let now = self.stack.len() as isize;
        if now != self.accounted {
            self.pool.taken.fetch_add(self.accounted - now, Ordering::AcqRel);
            self.accounted = now;
        }
    }
}

impl Drop for PoolCache {
    fn drop(&mut self) {
        self.account();
        while !self.stack.is_empty() {
            if self.give(self.stack.len().min(GROUP)) {
                continue;
            }
            // Every slot is taken, so the average group holds less than a quarter: join ours with one of them. The
            // depot is first in, first out, so going round meets two that fit one slot.
            if let Some((group, n)) = self.pool.depot.pop() {
                self.stack.extend_from_slice(&group[..usize::from(n)]);
                self.accounted += isize::from(n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::sync::atomic::AtomicBool;

    fn pool(frames: usize) -> Arc<FramePool> {
        FramePool::new(PoolOptions { frames, huge_pages: false }).unwrap()
    }

    fn free_all(cache: &mut PoolCache, frames: impl IntoIterator<Item = Frame>) {
        frames.into_iter().for_each(|f| cache.free(f));
        cache.account();
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_with_a_reason() {
        let new = |frames| FramePool::new(PoolOptions { frames, huge_pages: false }).map(|_| ());
        assert!(matches!(new(63), Err(PoolError::TooSmall(63))));
        assert!(matches!(new(u32::MAX as usize), Err(PoolError::TooLarge(_))));
        assert!(matches!(new(usize::MAX), Err(PoolError::TooLarge(_))));
    }

    #[test]
    fn a_pool_without_huge_pages_to_have_gets_small_ones() {
        // Whether the machine has huge pages or not, every byte is there and zero.
        let pool = FramePool::new(PoolOptions { frames: 100, huge_pages: true }).unwrap();
        let mut cache = pool.cache();
        let mut frames: Vec<Frame> = std::iter::from_fn(|| cache.alloc()).collect();
        assert_eq!(frames.len(), 100);
        for frame in &mut frames {
            let room = frame.reset(CHUNK - HEADROOM).unwrap();
            assert!(room.iter().all(|&b| b == 0));
            room.fill(1);
        }
        free_all(&mut cache, frames);
    }

    #[test]
    fn every_chunk_is_handed_out_once_and_then_none() {
        let pool = pool(200);
        let mut cache = pool.cache();
        let frames: Vec<Frame> = std::iter::from_fn(|| cache.alloc()).collect();
        assert_eq!(frames.iter().map(Frame::index).collect::<HashSet<_>>().len(), 200);
        assert_eq!(pool.outstanding(), 200);
        assert!(cache.alloc().is_none() && cache.alloc_index().is_none() && cache.alloc_copy(&[1]).is_none());
        let spread: HashSet<usize> = frames.iter().map(|f| f.data_ptr() as usize - HEADROOM).collect();
        let (base, bytes) = pool.region();
        assert_eq!(spread, (0..bytes).step_by(CHUNK).map(|at| base.as_ptr() as usize + at).collect());
        free_all(&mut cache, frames);
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn a_copy_that_does_not_fit_the_pool_takes_nothing() {
        let pool = pool(64);
        let mut cache = pool.cache();
        let bytes = vec![5; 65 * (CHUNK - HEADROOM)];
        assert!(cache.alloc_copy(&bytes).is_none());
        cache.account();
        assert_eq!(pool.outstanding(), 0);
        let frame = cache.alloc_copy(&bytes[..64 * (CHUNK - HEADROOM)]).unwrap();
        assert_eq!((frame.segments(), frame.to_vec().len()), (64, 64 * (CHUNK - HEADROOM)));
        cache.free(frame);
    }

    #[test]
    fn outstanding_counts_chunks_whichever_cache_frees_them() {
        let pool = pool(512);
        let (mut a, mut b) = (pool.cache(), pool.cache());
        let frames: Vec<Frame> = (0..300).map(|_| a.alloc().unwrap()).collect();
        a.account();
        assert_eq!(pool.outstanding(), 300);
        free_all(&mut b, frames);
        assert_eq!(pool.outstanding(), 0);
        let index = a.alloc_index().unwrap();
        a.account();
        assert_eq!(pool.outstanding(), 1);
        // SAFETY: the number was given to this test, which makes no frame of it.
        unsafe { b.free_index(index) };
        drop(b);
        a.account();
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn a_cache_keeps_less_than_three_groups_and_never_reallocates_its_stack() {
        let pool = pool(1024);
        let (mut from, mut to) = (pool.cache(), pool.cache());
        let capacity = to.stack.capacity();
        let long = vec![0; 17 * (CHUNK - HEADROOM)];
        let frames: Vec<Frame> = (0..50).map(|_| from.alloc_copy(&long).unwrap()).collect();
        for frame in frames {
            to.free(frame);
            assert!(to.stack.len() < CACHE_HIGH);
        }
        assert_eq!(to.stack.capacity(), capacity);
    }

    #[test]
    fn caches_that_end_with_a_few_chunks_each_lose_none() {
        // 4,096 caches of one chunk each want 4,096 slots of a depot of 320.
        let pool = pool(4096);
        let mut first = pool.cache();
        let frames: Vec<Frame> = std::iter::from_fn(|| first.alloc()).collect();
        for frame in frames {
            let mut cache = pool.cache();
            cache.free(frame);
        }
        assert_eq!(pool.outstanding(), 0);
        let again: HashSet<u32> = std::iter::from_fn(|| first.alloc_index()).collect();
        assert_eq!(again.len(), 4096);
    }

    #[test]
    #[should_panic(expected = "another pool")]
    fn a_frame_of_another_pool_is_not_taken() {
        let stranger = pool(64).cache().alloc().unwrap();
        pool(64).cache().free(stranger);
    }

    #[test]
    fn threads_that_pass_frames_around_never_see_a_chunk_twice() {
        const FRAMES: usize = 1500;
        const TURNS: usize = 20_000;
        let pool = pool(FRAMES);
        let held: Vec<AtomicBool> = (0..FRAMES).map(|_| AtomicBool::new(false)).collect();
        let wires: [ArrayQueue<Frame>; 2] = [ArrayQueue::new(256), ArrayQueue::new(256)];
        std::thread::scope(|scope| {
            for me in 0..2 {
                let (pool, held, wires) = (&pool, &held, &wires);
                scope.spawn(move || {
                    let mut cache = pool.cache();
                    let end = |cache: &mut PoolCache, frame: Frame| {
                        assert_eq!(frame.head()[..4], frame.index().to_le_bytes());
                        frame.for_each_descriptor(|i, _, _| {
                            assert!(held[i as usize].swap(false, Ordering::AcqRel), "chunk {i} freed twice");
                        });
                        cache.free(frame);
                    };
                    for turn in 0..TURNS {
                        // Uneven on purpose: chains of 1 to 5 chunks, so that groups move in both directions.
                        let Some(mut frame) = cache.alloc_copy(&vec![0; 1 + (turn * 997) % (4 * CHUNK)]) else {
                            while let Some(frame) = wires[me].pop() {
                                end(&mut cache, frame);
                            }
                            continue;
                        };
                        frame.for_each_descriptor(|i, _, _| {
                            assert!(!held[i as usize].swap(true, Ordering::AcqRel), "chunk {i} handed out twice");
                        });
                        frame.push(4).unwrap();
                        let mark = frame.index().to_le_bytes();
                        frame.head_mut()[..4].copy_from_slice(&mark);
                        if let Err(frame) = wires[1 - me].push(frame) {
                            end(&mut cache, frame);
                        }
                        if turn % 3 == me {
                            wires[me].pop().into_iter().for_each(|frame| end(&mut cache, frame));
                        }
                    }
                });
            }
        });
        let mut cache = pool.cache();
        wires.iter().for_each(|w| free_all(&mut cache, std::iter::from_fn(|| w.pop())));
        assert_eq!(pool.outstanding(), 0);
        assert_eq!(std::iter::from_fn(|| cache.alloc_index()).collect::<HashSet<_>>().len(), FRAMES);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Alloc(usize, usize),
        Free(usize, usize),
        /// Ends a cache and starts another in its place.
        Renew(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0usize..3, 1usize..40).prop_map(|(c, n)| Step::Alloc(c, n)),
            4 => (0usize..3, 1usize..60).prop_map(|(c, n)| Step::Free(c, n)),
            1 => (0usize..3).prop_map(Step::Renew),
        ]
    }

    proptest! {
        #[test]
        fn whatever_the_order_a_chunk_is_in_one_place(steps in prop::collection::vec(step(), 0..120)) {
            static POOL: std::sync::LazyLock<Arc<FramePool>> = std::sync::LazyLock::new(|| pool(640));
            let mut caches = [POOL.cache(), POOL.cache(), POOL.cache()];
            let mut held: Vec<Frame> = Vec::new();
            for step in steps {
                match step {
                    Step::Alloc(cache, n) => held.extend((0..n).map_while(|_| caches[cache].alloc())),
                    Step::Free(cache, n) => {
                        let from = held.len().saturating_sub(n);
                        held.drain(from..).for_each(|f| caches[cache].free(f));
                    }
                    Step::Renew(cache) => caches[cache] = POOL.cache(),
                }
                let distinct: HashSet<u32> = held.iter().map(Frame::index).collect();
                prop_assert_eq!(distinct.len(), held.len());
                caches.iter_mut().for_each(PoolCache::account);
                prop_assert_eq!(POOL.outstanding(), held.len());
            }
            free_all(&mut caches[0], held);
            prop_assert_eq!(POOL.outstanding(), 0);
        }
    }
}
