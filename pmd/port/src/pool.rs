//! The frame pool: one memory region of equal chunks that all ports of a process share, and each worker's cache of it.
//!
//! ```text
//! FramePool ── shared depot of free chunk numbers, in groups of 64 ──┐
//!   PoolCache (worker 0): stack ≤ 2 groups + slack                   │ one queue operation per 64 frames
//!   PoolCache (worker 1): …                                          ┘
//! ```
//! The region is mapped once and never unmapped (frames may be in a NIC's hands when a thread ends). Allocation and
//! release on a cache touch only that worker's stack.

use crate::frame::{CHUNK, Frame, HEADROOM};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use crossbeam::queue::ArrayQueue;
use std::sync::Arc;

const GROUP: usize = 64;
type Group = ([u32; GROUP], u8);

/// What a pool could not do.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The region could not be mapped.
    #[error("cannot map {bytes} bytes of packet memory: {source}; lower `pool.frames` or give the process more memory")]
    Map {
        /// Bytes asked for.
        bytes: usize,
        /// The kernel's answer.
        source: rustix::io::Errno,
    },
    /// A pool needs at least one group of frames.
    #[error("a frame pool needs at least {GROUP} frames, not {0}")]
    TooSmall(usize),
}

/// How a pool's memory is made.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Number of chunks.
    pub frames: usize,
    /// Try 2 MB pages first; fall back to 4 KB pages where there are none.
    pub huge_pages: bool,
}

/// The region and its depot of free chunks.
pub struct FramePool {
    base: NonNull<u8>,
    frames: usize,
    huge: bool,
    depot: ArrayQueue<Group>,
    free_in_depot: AtomicUsize,
    free_in_caches: AtomicUsize,
}

// SAFETY: `base` is the address of a region that lives as long as the process; the pool itself never reads or writes
// through it, it only derives chunk addresses for Frames, each of which is exclusive.
unsafe impl Send for FramePool {}
// SAFETY: as above; the depot and counters are thread-safe.
unsafe impl Sync for FramePool {}

impl FramePool {
    /// Maps and touches the region (first touch is slow on virtual machines, so it happens here, not per packet).
    pub fn new(options: PoolOptions) -> Result<Arc<Self>, PoolError> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let PoolOptions { frames, huge_pages } = options;
        if frames < GROUP {
            return Err(PoolError::TooSmall(frames));
        }
        let bytes = (frames * CHUNK).next_multiple_of(2 << 20);
        let map = |extra: MapFlags| {
            // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
            unsafe {
                mmap_anonymous(
                    core::ptr::null_mut(),
                    bytes,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::SHARED | MapFlags::POPULATE | extra,
                )
            }
        };
        let huge = if huge_pages { map(MapFlags::HUGETLB).ok() } else { None };
        let (address, huge) = match huge {
            Some(address) => (address, true),
            None => (map(MapFlags::empty()).map_err(|source| PoolError::Map { bytes, source })?, false),
        };
        let base =
            NonNull::new(address.cast::<u8>()).ok_or(PoolError::Map { bytes, source: rustix::io::Errno::NOMEM })?;
        let depot = ArrayQueue::new(frames.div_ceil(GROUP) * 4 + 64);
        let mut at = 0u32;
        while (at as usize) < frames {
            let mut group = ([0; GROUP], 0u8);
            while usize::from(group.1) < GROUP && (at as usize) < frames {
                group.0[usize::from(group.1)] = at;
                group.1 += 1;
                at += 1;
            }
            let _ = depot.push(group);
        }
        Ok(Arc::new(FramePool {
            base,
            frames,
            huge,
            depot,
            free_in_depot: AtomicUsize::new(frames),
            free_in_caches: AtomicUsize::new(0),
        }))
    }

    /// Number of chunks.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Whether the region got 2 MB pages.
    pub fn huge_pages(&self) -> bool {
        self.huge
    }

    /// First byte of the region and its length, for registering it with the kernel (XDP_UMEM_REG).
    pub fn region(&self) -> (NonNull<u8>, usize) {
        (self.base, self.frames * CHUNK)
    }

    /// Chunks that are neither in the depot nor in a cache: in ports, queues and hands. Exact while no worker runs,
    /// within a group per worker else.
    pub fn outstanding(&self) -> usize {
        let free = self.free_in_depot.load(Ordering::Relaxed) + self.free_in_caches.load(Ordering::Relaxed);
        self.frames.saturating_sub(free)
    }

    /// Address of a chunk.
    pub fn chunk(&self, index: u32) -> NonNull<u8> {
        assert!((index as usize) < self.frames, "chunk {index} of a pool of {}", self.frames);
        // SAFETY: index < frames, so the address is inside the region.
        unsafe { self.base.add(index as usize * CHUNK) }
    }

    /// A worker's cache.
    pub fn cache(self: &Arc<Self>) -> PoolCache {
        PoolCache { pool: Arc::clone(self), stack: Vec::with_capacity(4 * GROUP), shown: 0 }
    }
}

/// A worker's free chunks. Not shared; give frames back to the cache of the thread that ends them.
pub struct PoolCache {
    pool: Arc<FramePool>,
    stack: Vec<u32>,
    shown: usize,
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
        // SAFETY: an index on a stack is owned by this cache alone, and popping it hands that ownership on.
        Some(unsafe { Frame::from_raw(self.pool.base.add(index as usize * CHUNK), index, HEADROOM as u16, 0) })
    }

    /// A frame holding a copy of `bytes`, chained if they are longer than a chunk.
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
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        if frame.segments() == 1 {
            self.stack.push(frame.index());
        } else {
            frame.for_each_descriptor(|index, _, _| self.stack.push(index));
        }
        if self.stack.len() >= 3 * GROUP {
            self.spill(2 * GROUP);
        }
    }

    /// Takes back a chunk that a driver held by number (a completed or unused descriptor).
    ///
    /// # Safety
    /// `index` is a chunk of this pool that no `Frame` and no device names any more.
    #[inline]
    pub unsafe fn free_index(&mut self, index: u32) {
        self.stack.push(index);
        if self.stack.len() >= 3 * GROUP {
            self.spill(2 * GROUP);
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
        let Some((group, n)) = self.pool.depot.pop() else { return false };
        self.stack.extend_from_slice(&group[..usize::from(n)]);
        self.pool.free_in_depot.fetch_sub(usize::from(n), Ordering::Relaxed);
        self.account();
        true
    }

    #[cold]
    fn spill(&mut self, keep: usize) {
        while self.stack.len() > keep {
            let n = (self.stack.len() - keep).min(GROUP);
            let mut group = ([0; GROUP], n as u8);
            let from = self.stack.len() - n;
            group.0[..n].copy_from_slice(&self.stack[from..]);
            if self.pool.depot.push(group).is_err() {
                break;
            }
            self.stack.truncate(from);
            self.pool.free_in_depot.fetch_add(n, Ordering::Relaxed);
        }
        self.account();
    }

    /// Makes `FramePool::outstanding` exact for this cache; called when a worker is idle and at each refill and spill.
    pub fn account(&mut self) {
        let now = self.stack.len();
        if now >= self.shown {
            self.pool.free_in_caches.fetch_add(now - self.shown, Ordering::Relaxed);
        } else {
            self.pool.free_in_caches.fetch_sub(self.shown - now, Ordering::Relaxed);
        }
        self.shown = now;
    }
}

impl Drop for PoolCache {
    fn drop(&mut self) {
        self.spill(0);
    }
}
