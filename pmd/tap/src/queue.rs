//! The queue that a worker polls: `readv` straight into pool frames, `writev` straight out of them.
//!
//! ```text
//! readv: [ virtio header ][ slot 0: chunk at HEADROOM ][ slot 1: chunk at 64 ] … [ slot 16 ]
//!          on the stack     3840 bytes, all headers      4032 bytes each: 68,352 bytes in all
//! ```
//! All slots are filled before each read; a frame takes the slots it needed and only those are filled again, so a
//! small packet costs one chunk, and a queue at rest holds [`SLOTS`] of them.
//! Owner: one worker. Source: `drivers/net/tun.c` (`tun_do_read`, `tun_get_user`).
//! Invariants: a chunk is in a slot, in a `Frame` or in the pool, never in two; with the pool empty nothing is read
//! and frames wait in the device (the sender's socket feels it), none is cut short.
//! Cost: one system call and one copy a frame; no allocation, no lock.

use crate::device::{HEADER_BYTES, TapDevice, TapError, TapOptions, last_errno};
use crate::vnet_header;
use core::ptr::NonNull;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use sluice_port::{Burst, CHUNK, Capabilities, Frame, HEADROOM, PoolCache, PortMode, PortStats, Queue};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Chunks prepared for one read: enough for the longest frame.
pub const SLOTS: usize = 17;
/// Where data starts in every chunk but the first: behind the chain link, on a cache line's border.
const FOLLOW_OFFSET: usize = 64;
const FIRST_BYTES: usize = CHUNK - HEADROOM;
const FOLLOW_BYTES: usize = CHUNK - FOLLOW_OFFSET;
/// Bytes that one read can take; more than [`MAX_FRAME`], so a longer frame is seen to be cut.
const READ_BYTES: usize = FIRST_BYTES + (SLOTS - 1) * FOLLOW_BYTES;
/// Longest frame in either direction: the longest IP packet, an Ethernet header and one VLAN tag.
pub const MAX_FRAME: usize = 65_535 + 18;
const _: () = assert!(MAX_FRAME < READ_BYTES);
/// Most chunks of a frame to send: a 64 KB segment that was put together from 536-byte ones fits.
const TX_SEGMENTS: usize = 128;

/// One prepared chunk.
#[derive(Clone, Copy)]
struct Slot {
    base: NonNull<u8>,
    index: u32,
}

/// Chunks waiting for the next read, with the `iovec`s that name them.
struct Slots {
    slots: [Slot; SLOTS],
    /// Element 0 is the virtio header's, set anew at each call; element `i + 1` is slot `i`'s.
    iovecs: [libc::iovec; SLOTS + 1],
    /// Slots `..taken` are empty, the others hold a chunk.
    taken: usize,
    /// Region of the pool that the chunks come from; chunks of two pools never mix.
    region: Option<NonNull<u8>>,
}

const NO_IOVEC: libc::iovec = libc::iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };

impl Slots {
    fn new() -> Self {
        Slots {
            slots: [Slot { base: NonNull::dangling(), index: 0 }; SLOTS],
            iovecs: [NO_IOVEC; SLOTS + 1],
            taken: SLOTS,
            region: None,
        }
    }

    /// Panics if `cache` is of another pool than the chunks held: giving them to it would corrupt both.
    fn check_pool(&mut self, cache: &PoolCache) {
        let region = cache.pool().region().0;
        assert!(*self.region.get_or_insert(region) == region, "a queue's chunks come from one pool only");
    }

    /// Fills the empty slots; `false` if the pool had too few.
    #[inline]
    fn fill(&mut self, cache: &mut PoolCache) -> bool {
        while self.taken > 0 {
            let Some(index) = cache.alloc_index() else { return false };
            let at = self.taken - 1;
            let base = cache.pool().chunk(index);
            let (offset, len) = if at == 0 { (HEADROOM, FIRST_BYTES) } else { (FOLLOW_OFFSET, FOLLOW_BYTES) };
            self.slots[at] = Slot { base, index };
            let data = base.as_ptr().wrapping_add(offset);
            self.iovecs[at + 1] = libc::iovec { iov_base: data.cast(), iov_len: len };
            self.taken = at;
        }
        true
    }

    /// Makes a frame of the first `len` bytes read, `len <= READ_BYTES`, all slots being full.
    #[inline]
    fn take(&mut self, len: usize) -> Frame {
        debug_assert!(self.taken == 0 && len <= READ_BYTES);
        let first = len.min(FIRST_BYTES);
        let Slot { base, index } = self.slots[0];
        // SAFETY: slot 0 is full (`taken` == 0): `fill` got `index` and its address `base` from the pool, which gave
        // them to nobody else, and raising `taken` below takes them out of the slots. first <= CHUNK - HEADROOM.
        let mut frame = unsafe { Frame::from_raw(base, index, HEADROOM as u16, first as u16) };
        self.taken = 1;
        let mut rest = len - first;
        while rest > 0 {
            let part = rest.min(FOLLOW_BYTES);
            let Slot { base, index } = self.slots[self.taken];
            // SAFETY: as above for slot `taken`, which is full until `taken` passes it (len <= READ_BYTES keeps it
            // below SLOTS, and indexing checks it); FOLLOW_OFFSET >= LINK_BYTES and part <= CHUNK - FOLLOW_OFFSET.
            frame.append(unsafe { Frame::from_raw(base, index, FOLLOW_OFFSET as u16, part as u16) });
            self.taken += 1;
            rest -= part;
        }
        frame
    }

    /// Gives all chunks back.
    fn release(&mut self, cache: &mut PoolCache) {
        self.check_pool(cache);
        for slot in &self.slots[self.taken..] {
            // SAFETY: the slot is full, so its chunk is this pool's (checked above) and named by nothing else; it
            // counts as empty from the next line on.
            unsafe { cache.free_index(slot.index) };
        }
        self.taken = SLOTS;
    }
}

/// What became of a frame offered to the kernel.
enum Sent {
    Yes,
    /// Not now; the frame stays.
    Full,
    /// Never; the frame goes.
    Refused,
}

/// A TAP device as a port queue.
pub struct TapQueue {
    fd: OwnedFd,
    slots: Slots,
    tx: [libc::iovec; TX_SEGMENTS + 1],
    stats: PortStats,
    capabilities: Capabilities,
    reason: &'static str,
    name: String,
    created: bool,
    lost: bool,
}

// SAFETY: the pointers in `slots` name chunks that this queue alone owns (as a `Frame` owns its own), and those in `tx`
// are only used within the call that writes them; moving the queue to another thread moves that ownership with it.
unsafe impl Send for TapQueue {}

impl TapQueue {
    /// Opens the device (see [`TapDevice::open`]) as a queue. It can be polled at once; frames flow when the interface is up.
    pub fn open(options: &TapOptions<'_>) -> Result<Self, TapError> {
        TapDevice::open(options).map(Self::from)
    }

    /// Interface name in its own namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether opening made the device; `false` after a restart that found the old one.
    pub fn created(&self) -> bool {
        self.created
    }

    /// Whether the device was deleted under us, by the pod or with its namespace. Nothing moves any more; close it.
    pub fn lost(&self) -> bool {
        self.lost
    }

    /// One `readv` of header and slots; the number of bytes behind the header.
    #[inline]
    fn read(&mut self, header: &mut vnet_header::Bytes) -> Result<usize, Errno> {
        self.slots.iovecs[0] = libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER_BYTES };
        let iovecs = &self.slots.iovecs;
        // SAFETY: element 0 names `header`, borrowed mutably for the call; the others name the free part of chunks
        // that the slots own (all are full, the caller saw to it), so the kernel writes to memory nobody else reads.
        let n = unsafe { libc::readv(self.fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int) };
        if n < 0 { Err(last_errno()) } else { Ok((n as usize).saturating_sub(HEADER_BYTES)) }
    }

    /// One `writev` of header and chunks.
    #[inline]
    fn write(&mut self, frame: &Frame) -> Sent {
        if self.lost || frame.segments() > TX_SEGMENTS || frame.len() > MAX_FRAME {
            return Sent::Refused;
        }
        let Some(mut header) = vnet_header::encode(frame) else { return Sent::Refused };
        let mut n = 1;
        self.tx[0] = libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER_BYTES };
        frame.for_each_segment(|bytes| {
            self.tx[n] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            n += 1;
        });
        // SAFETY: the first `n` elements name `header` and the chunks of `frame`, all borrowed for the call; writev
        // only reads them.
        let written = unsafe { libc::writev(self.fd.as_raw_fd(), self.tx.as_ptr(), n as libc::c_int) };
        if written >= 0 {
            return Sent::Yes;
        }
        match last_errno() {
            Errno::AGAIN => Sent::Full,
            Errno::BADFD => {
                self.lose();
                Sent::Refused
            }
            _ => Sent::Refused,
        }
    }

    /// The device is gone: its descriptor reports an error to every poll from now on, which would keep an idle worker
    /// awake, so a descriptor that never becomes readable takes its place.
    #[cold]
    fn lose(&mut self) {
        self.lost = true;
        if let Ok(quiet) = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) {
            self.fd = quiet;
        }
    }
}

impl From<TapDevice> for TapQueue {
    fn from(device: TapDevice) -> Self {
        let offloads = device.offloads();
        TapQueue {
            slots: Slots::new(),
            tx: [NO_IOVEC; TX_SEGMENTS + 1],
            stats: PortStats::default(),
            capabilities: Capabilities {
                tx_checksum: true,
                tso4: offloads.tso,
                tso6: offloads.tso,
                chained: true,
                wants_coalescing: true,
                max_frame: MAX_FRAME as u32,
            },
            reason: device.reason(),
            name: device.name().to_owned(),
            created: device.created(),
            lost: false,
            fd: device.fd,
        }
    }
}

impl Queue for TapQueue {
    fn rx(&mut self, cache: &mut PoolCache, out: &mut Burst, max: usize) -> usize {
        if self.lost {
            return 0;
        }
        self.slots.check_pool(cache);
        let mut received = 0;
        let mut header = [0; HEADER_BYTES];
        for _ in 0..max {
            if !self.slots.fill(cache) {
                break;
            }
            let len = match self.read(&mut header) {
                Ok(len) => len,
                Err(Errno::BADFD) => {
                    self.lose();
                    break;
                }
                Err(_) => break,
            };
            // A frame that filled every slot was probably cut; one that we cannot describe must not be guessed at.
            let metadata = if len < READ_BYTES { vnet_header::decode(&header) } else { None };
            let Some((checksum, gso)) = metadata else {
                self.stats.rx_missed += 1;
                continue;
            };
            let mut frame = self.slots.take(len);
            (frame.checksum, frame.gso) = (checksum, gso);
            self.stats.rx_packets += 1;
            self.stats.rx_bytes += len as u64;
            out.push(frame);
            received += 1;
        }
        received
    }

    fn tx(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize {
        let mut taken = 0;
        for frame in frames.iter() {
            match self.write(frame) {
                Sent::Yes => {
                    self.stats.tx_packets += 1;
                    self.stats.tx_bytes += frame.len() as u64;
                }
                Sent::Refused => self.stats.tx_errors += 1,
                Sent::Full => {
                    self.stats.tx_full += (frames.len() - taken) as u64;
                    break;
                }
            }
            taken += 1;
        }
        for frame in frames.drain(..taken) {
            cache.free(frame);
        }
        taken
    }

    /// Nothing is ever due: reads and writes are complete when they return.
    fn flush(&mut self, _cache: &mut PoolCache) {}

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn stats(&self) -> PortStats {
        self.stats
    }

    fn mode(&self) -> PortMode {
        let (mode, reason) = if self.lost { ("lost", "the device was deleted") } else { ("vnet_hdr", self.reason) };
        PortMode { driver: "tap", mode: mode.to_owned(), reason: reason.to_owned() }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn close(mut self: Box<Self>, cache: &mut PoolCache) {
        self.slots.release(cache);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_port::{FramePool, PoolOptions};

    #[test]
    fn a_short_frame_takes_one_chunk_and_a_long_one_as_many_as_it_fills() {
        let pool = FramePool::new(PoolOptions { frames: 128, huge_pages: false }).unwrap();
        let mut cache = pool.cache();
        let mut slots = Slots::new();
        for (len, chunks) in [(60, 1), (FIRST_BYTES, 1), (FIRST_BYTES + 1, 2), (MAX_FRAME, 17), (READ_BYTES, 17)] {
            assert!(slots.fill(&mut cache));
            let frame = slots.take(len);
            assert_eq!((frame.len(), frame.segments(), slots.taken), (len, chunks, chunks));
            cache.free(frame);
        }
        slots.release(&mut cache);
        drop(cache);
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn an_empty_pool_leaves_the_slots_as_they_are_and_loses_no_chunk() {
        let pool = FramePool::new(PoolOptions { frames: 64, huge_pages: false }).unwrap();
        let mut cache = pool.cache();
        let held: Vec<_> = (0..60).map(|_| cache.alloc().unwrap()).collect();
        let mut slots = Slots::new();
        assert!(!slots.fill(&mut cache), "4 chunks are not 17");
        assert_eq!(slots.taken, 13);
        for frame in held {
            cache.free(frame);
        }
        assert!(slots.fill(&mut cache));
        slots.release(&mut cache);
        drop(cache);
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    #[should_panic(expected = "one pool only")]
    fn chunks_of_one_pool_cannot_be_given_to_another() {
        let make = || FramePool::new(PoolOptions { frames: 64, huge_pages: false }).unwrap().cache();
        let mut slots = Slots::new();
        slots.check_pool(&make());
        slots.release(&mut make());
    }
}
