//! The four rings an AF_XDP socket shares with the kernel, as a producer's and a consumer's half.
//!
//! ```text
//!                  shared page(s), mapped from the socket
//!   +----------+----------+-------+-------------------------------------------+
//!   | producer | consumer | flags | slot 0 | slot 1 | ...           | size-1  |
//!   +----------+----------+-------+-------------------------------------------+
//!        free-running u32 counters; a slot's number is counter & (size - 1)
//!
//!   producer's side                             consumer's side
//!     load consumer   (Acquire) <---------+       load producer  (Acquire) <--+
//!     write slots                         |       read slots                  |
//!     store producer  (Release) --------- | ----------------------------------+
//!                                         +------ store consumer (Release)
//!
//!   fill:        we produce chunk addresses       the kernel consumes
//!   rx:          the kernel produces descriptors  we consume
//!   tx:          we produce descriptors           the kernel consumes
//!   completion:  the kernel produces addresses    we consume
//! ```
//! Release on the counter publishes the slots before it (or, from the consumer, says that they were read); Acquire on
//! the other side's counter makes them visible. Each half caches both counters, so that the shared line is touched
//! once per burst, not per slot.
//!
//! Owner: the worker that polls the queue. Source: Documentation/networking/af_xdp.rst, `net/xdp/xsk_queue.h`.
//! Invariants: `produced - consumed <= size`; counters wrap at 2^32. Cost: one atomic load and one store per burst.

use crate::abi::XDP_RING_NEED_WAKEUP;
use core::ffi::c_void;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use rustix::fd::BorrowedFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::xdp::XdpRingOffset;

/// A mapping of ring pages, unmapped on drop.
struct Mapping {
    at: *mut c_void,
    bytes: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        // SAFETY: `at..at + bytes` was mapped by `Shared::map` and nothing derived from it outlives its ring, which
        // owns this value.
        let _ = unsafe { munmap(self.at, self.bytes) };
    }
}

/// What both halves need: where the counters and the slots are.
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    mask: u32,
    _mapping: Mapping,
    _owns: PhantomData<T>,
}

// SAFETY: the pointers lead into a mapping this value owns alone in this process; moving it to another thread moves
// the only user.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T: Copy> Shared<T> {
    /// Maps the ring of `size` slots (a power of two, already set on the socket) at page offset `page`.
    fn map(socket: BorrowedFd<'_>, page: u64, offsets: &XdpRingOffset, size: u32) -> rustix::io::Result<Self> {
        assert!(size.is_power_of_two());
        // Kernels before 5.4 have no flags; then no wake-up flag can be asked for either, and the socket is refused.
        let flags = offsets.flags.ok_or(rustix::io::Errno::NOSYS)?;
        let bytes = offsets.desc as usize + size as usize * size_of::<T>();
        // SAFETY: a fresh shared mapping of the socket's ring at an address of the kernel's choice.
        let at = unsafe {
            mmap(
                core::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                socket,
                page,
            )?
        };
        let mapping = Mapping { at, bytes };
        let base = NonNull::new(at.cast::<u8>()).ok_or(rustix::io::Errno::NOMEM)?;
        // SAFETY: the kernel says where in the mapping each field lies; all are within `bytes` and aligned.
        unsafe {
            Ok(Shared {
                producer: base.add(offsets.producer as usize).cast(),
                consumer: base.add(offsets.consumer as usize).cast(),
                flags: base.add(flags as usize).cast(),
                slots: base.add(offsets.desc as usize).cast(),
                mask: size - 1,
                _mapping: mapping,
                _owns: PhantomData,
            })
        }
    }

    #[inline]
    fn size(&self) -> u32 {
        self.mask + 1
    }

    #[inline]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: points into the mapping, which lives as long as `self`; shared with the kernel, hence atomic.
        unsafe { self.producer.as_ref() }
    }

    #[inline]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as `producer`.
        unsafe { self.consumer.as_ref() }
    }

    #[inline]
    fn needs_wakeup(&self) -> bool {
        // SAFETY: as `producer`.
        unsafe { self.flags.as_ref() }.load(Ordering::Relaxed) & XDP_RING_NEED_WAKEUP != 0
    }

    #[inline]
    fn slot(&self, counter: u32) -> *mut T {
        // SAFETY: counter & mask < size, and the mapping holds `size` slots.
        unsafe { self.slots.as_ptr().add((counter & self.mask) as usize) }
    }
}

/// The half that writes slots: fill and tx.
pub(crate) struct Producer<T> {
    shared: Shared<T>,
    /// Written so far; the shared counter follows at `submit`.
    written: u32,
    /// The consumer's counter as last seen.
    consumed: u32,
}

impl<T: Copy> Producer<T> {
    /// Maps the ring; see [`Shared::map`].
    pub(crate) fn map(fd: BorrowedFd<'_>, page: u64, at: &XdpRingOffset, size: u32) -> rustix::io::Result<Self> {
        let shared = Shared::map(fd, page, at, size)?;
        let (written, consumed) =
            (shared.producer().load(Ordering::Relaxed), shared.consumer().load(Ordering::Acquire));
        Ok(Producer { shared, written, consumed })
    }

    /// Free slots, at least `want` of them if there are as many.
    #[inline]
    pub(crate) fn free(&mut self, want: u32) -> u32 {
        let free = self.shared.size() - self.written.wrapping_sub(self.consumed);
        if free >= want {
            return free;
        }
        self.consumed = self.shared.consumer().load(Ordering::Acquire);
        self.shared.size() - self.written.wrapping_sub(self.consumed)
    }

    /// Writes the next slot. The caller has seen that one is free; in debug builds this is checked.
    #[inline]
    pub(crate) fn write(&mut self, value: T) {
        debug_assert!(self.written.wrapping_sub(self.consumed) < self.shared.size(), "ring overrun");
        // SAFETY: the slot lies in the mapping. It is ours: the kernel reads only below the shared producer counter,
        // and has consumed what stood here before (`free`).
        unsafe { self.shared.slot(self.written).write(value) };
        self.written = self.written.wrapping_add(1);
    }

    /// Publishes what was written.
    #[inline]
    pub(crate) fn submit(&mut self) {
        self.shared.producer().store(self.written, Ordering::Release);
    }

    /// Slots the kernel has not consumed yet.
    #[inline]
    pub(crate) fn pending(&mut self) -> u32 {
        self.consumed = self.shared.consumer().load(Ordering::Acquire);
        self.written.wrapping_sub(self.consumed)
    }

    /// Whether the kernel waits for a system call before it looks at this ring.
    #[inline]
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.shared.needs_wakeup()
    }

    /// Number of slots.
    #[inline]
    pub(crate) fn size(&self) -> u32 {
        self.shared.size()
    }
}

/// The half that reads slots: rx and completion.
pub(crate) struct Consumer<T> {
    shared: Shared<T>,
    /// Read so far; the shared counter follows at `release`.
    read: u32,
    /// The producer's counter as last seen.
    produced: u32,
}

impl<T: Copy> Consumer<T> {
    /// Maps the ring; see [`Shared::map`].
    pub(crate) fn map(fd: BorrowedFd<'_>, page: u64, at: &XdpRingOffset, size: u32) -> rustix::io::Result<Self> {
        let shared = Shared::map(fd, page, at, size)?;
        let (read, produced) = (shared.consumer().load(Ordering::Relaxed), shared.producer().load(Ordering::Acquire));
        Ok(Consumer { shared, read, produced })
    }

    /// Slots that can be read now. Looks at the shared counter only when the cached one is used up.
    #[inline]
    pub(crate) fn available(&mut self) -> u32 {
        if self.produced == self.read {
            self.produced = self.shared.producer().load(Ordering::Acquire);
        }
        self.produced.wrapping_sub(self.read)
    }

    /// Takes the next slot's value; `None` when the ring is empty.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<T> {
        if self.available() == 0 {
            return None;
        }
        // SAFETY: the slot lies in the mapping, and its content was published by the Acquire load in `available`.
        let value = unsafe { self.shared.slot(self.read).read() };
        self.read = self.read.wrapping_add(1);
        Some(value)
    }

    /// Gives the slots read so far back to the kernel.
    #[inline]
    pub(crate) fn release(&mut self) {
        self.shared.consumer().store(self.read, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A ring over ordinary memory, with both halves in one hand: our producer against our consumer, as the kernel
    /// would be on the other side. Also the flags. The memory is leaked: it is small, and both halves point into it.
    fn pair(size: u32, start: u32) -> (Producer<u64>, Consumer<u64>, &'static AtomicU32) {
        let slots = NonNull::from(Box::leak(vec![0u64; size as usize].into_boxed_slice())).cast();
        let [producer, consumer, flags] =
            Box::leak(Box::new([AtomicU32::new(start), AtomicU32::new(start), AtomicU32::new(0)]));
        let shared = || Shared {
            producer: NonNull::from(&*producer),
            consumer: NonNull::from(&*consumer),
            flags: NonNull::from(&*flags),
            slots,
            mask: size - 1,
            _mapping: Mapping { at: core::ptr::null_mut(), bytes: 0 },
            _owns: PhantomData,
        };
        (
            Producer { shared: shared(), written: start, consumed: start },
            Consumer { shared: shared(), read: start, produced: start },
            flags,
        )
    }

    #[test]
    fn nothing_is_seen_before_it_is_submitted() {
        let (mut p, mut c, _) = pair(4, 0);
        p.write(7);
        assert_eq!(c.next(), None);
        p.submit();
        assert_eq!(c.next(), Some(7));
        assert_eq!(c.next(), None);
    }

    #[test]
    fn slots_are_free_again_only_after_release() {
        let (mut p, mut c, _) = pair(4, 0);
        for i in 0..4 {
            p.write(i);
        }
        p.submit();
        assert_eq!((p.free(1), p.pending()), (0, 4));
        assert_eq!((c.next(), c.next()), (Some(0), Some(1)));
        assert_eq!(p.free(1), 0);
        c.release();
        assert_eq!((p.free(1), p.pending()), (2, 2));
    }

    #[test]
    fn the_wakeup_flag_is_read_from_the_ring() {
        let (p, _, flags) = pair(4, 0);
        assert!(!p.needs_wakeup());
        flags.store(XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
        assert!(p.needs_wakeup());
    }

    #[test]
    fn values_cross_threads_in_order() {
        let (mut p, mut c, _) = pair(8, u32::MAX - 100);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0;
                while next < 10_000 {
                    if p.free(1) == 0 {
                        std::thread::yield_now();
                        continue;
                    }
                    p.write(next);
                    p.submit();
                    next += 1;
                }
            });
            let mut expected = 0;
            while expected < 10_000 {
                match c.next() {
                    Some(value) => {
                        assert_eq!(value, expected);
                        expected += 1;
                        c.release();
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
    }

    proptest! {
        /// Whatever the interleaving, and across the wrap of the counters, a ring is a bounded queue.
        #[test]
        fn a_ring_is_a_bounded_queue(start in prop_oneof![Just(0u32), (u32::MAX - 40)..u32::MAX],
                                     ops in prop::collection::vec((any::<bool>(), 1u32..9), 0..200)) {
            let (mut p, mut c, _) = pair(8, start);
            let mut twin = VecDeque::new();
            let mut value = 0u64;
            for (produce, count) in ops {
                if produce {
                    let free = p.free(count);
                    prop_assert!(free as usize <= 8 - twin.len());
                    if free < count {
                        prop_assert_eq!(free as usize, 8 - twin.len());
                    }
                    for _ in 0..count.min(free) {
                        p.write(value);
                        twin.push_back(value);
                        value += 1;
                    }
                    p.submit();
                } else {
                    for _ in 0..count {
                        prop_assert_eq!(c.next(), twin.pop_front());
                    }
                    c.release();
                }
                prop_assert_eq!(p.pending() as usize, twin.len());
            }
        }
    }
}
