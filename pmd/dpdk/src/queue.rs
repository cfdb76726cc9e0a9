//! The queue that a worker polls: bursts of mbufs become frames, and frames mbufs.
//!
//! ```text
//! shared memory:  mbuf k ⇄ chunk k: descriptors are translated, bytes stay where they are
//! own memory:     bytes are copied into a frame and out of it, and counted
//! ```
//! Owner: one worker. Invariants: a chunk is in a frame, in the pool, or with the driver, never in two of them; a header whose
//! chunk is not with the driver is unchained. Cost: two calls into DPDK a burst, and a header's first cache line a frame.

use crate::device::{Device, Memory};
use crate::mempool::{BUFFER_AT, Lent, OWN_DATA, Shared};
use crate::offload;
use sluice_dpdk_sys as sys;
use sluice_port::{
    Burst, CHUNK, Capabilities, Frame, FramePool, GsoKind, PoolCache, PortMode, PortStats, Queue, complete_checksum,
};
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// Mbufs in one call.
const BURST: usize = 64;
/// Turns without sending after which the driver is asked to give sent frames back.
const QUIET_TURNS: u32 = 256;
/// Turns after sending until which a device of own memory is called again, each time after twice as many: `net_af_xdp` wakes
/// the kernel in its send call only, and what that leaves waits for the next.
const NUDGES: u32 = 1 << 20;
/// Bursts without success after which the link is looked at again.
const LOOK_AT_LINK: u32 = 64;
/// Bytes of a packet that must lie in its first chunk: the longest headers.
const HEADERS: usize = 128;
/// Bursts that closing takes at most from a device which still receives.
const CLOSING_BURSTS: usize = 1 << 12;
/// Where data begins in an mbuf of the device's own.
const OWN_HEADROOM: u16 = 128;

/// One receive and transmit queue pair of a DPDK device.
pub struct DpdkQueue {
    device: Arc<Device>,
    queue: u16,
    /// The transmit queue's number: the same, unless queues were crossed.
    sending: u16,
    frames: Arc<FramePool>,
    limits: Limits,
    reason: String,
    stats: PortStats,
    mbufs: Box<[*mut sys::rte_mbuf; BURST]>,
    /// Bursts of which nothing was taken, one after the other.
    stuck: u32,
    /// Nothing is taken because the link is down.
    down: bool,
    /// Turns since something was sent; the driver may hold sent frames for as long.
    quiet: u32,
    /// What the device had lost when it was opened.
    missed_before: u64,
}

// SAFETY: the mbuf pointers are only used within the call that fills them.
unsafe impl Send for DpdkQueue {}

/// What the device takes.
#[derive(Clone, Copy)]
struct Limits {
    capabilities: Capabilities,
    /// Longest frame without a segmentation request.
    longest: u32,
    /// Checksums of chained frames are completed here.
    whole: bool,
}

impl Limits {
    /// Whether what the frame asks for can be done at all.
    #[inline]
    fn accept(&self, frame: &Frame) -> bool {
        self.capabilities.accepts(frame)
            && (frame.gso.kind != GsoKind::None || frame.len() <= self.longest as usize)
            && !frame.is_empty()
    }
}

/// What became of a frame that was to be sent.
enum Ready {
    Yes(*mut sys::rte_mbuf),
    /// Its bytes begin where no mbuf's do.
    Low,
    /// No memory now.
    Later,
    Never,
}

impl DpdkQueue {
    pub(crate) fn new(
        device: Arc<Device>,
        queue: u16,
        frames: &Arc<FramePool>,
        capabilities: Capabilities,
        longest: u32,
        reason: &str,
    ) -> Self {
        let limits = Limits { capabilities, longest, whole: device.sums_whole_frames_only() };
        let missed_before = if queue == 0 { device.missed() } else { 0 };
        DpdkQueue {
            device,
            queue,
            sending: queue,
            frames: Arc::clone(frames),
            limits,
            reason: reason.to_owned(),
            stats: PortStats::default(),
            mbufs: Box::new([null_mut(); BURST]),
            stuck: 0,
            down: false,
            quiet: u32::MAX,
            missed_before,
        }
    }

    /// Number of the queue on its device.
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Exchanges the transmit queues of two queues of a device. On a device that sends to itself (`net_ring`) each then
    /// receives what the other sends: a wire in memory.
    ///
    /// # Panics
    /// If they are of two devices.
    pub fn cross(&mut self, other: &mut DpdkQueue) {
        assert!(Arc::ptr_eq(&self.device, &other.device), "queues of two devices cannot be crossed");
        std::mem::swap(&mut self.sending, &mut other.sending);
    }

    /// Does what DPDK's event of a removal does, for tests: no virtual device can be pulled out.
    #[doc(hidden)]
    pub fn pretend_removal(&self) {
        self.device.note_removal();
    }

    /// Fills `mbufs` from the device.
    #[inline]
    fn receive(&mut self, cache: &mut PoolCache, max: usize) -> usize {
        let _lent = Lent::new(cache);
        // SAFETY: a started port, a queue of it that this value alone polls, room for BURST pointers.
        let n =
            unsafe { sys::sg_rx_burst(self.device.port, self.queue, self.mbufs.as_mut_ptr(), max.min(BURST) as u16) };
        usize::from(n)
    }

    /// The request for the card; what it cannot do is done here.
    #[inline]
    fn request(limits: Limits, frame: &mut Frame) -> Option<offload::Request> {
        if frame.is_bare() {
            return Some(offload::Request::default());
        }
        if !(limits.whole && frame.segments() > 1)
            && let Some(request) = offload::request(frame)
        {
            return Some(request);
        }
        (frame.gso.kind == GsoKind::None && complete_checksum(frame)).then(offload::Request::default)
    }

    /// The header of a frame's first chunk, ready to be sent.
    #[inline]
    fn wrap(limits: Limits, shared: &Shared, frame: &mut Frame) -> Ready {
        let base = shared.base().as_ptr().addr();
        let ours = frame.data_ptr().addr().wrapping_sub(frame.offset()) == base + frame.index() as usize * CHUNK;
        if !ours || !limits.accept(frame) {
            return Ready::Never;
        }
        let mut low = frame.offset() < BUFFER_AT;
        if frame.segments() > 1 {
            frame.for_each_descriptor(|_, offset, _| low |= usize::from(offset) < BUFFER_AT);
        }
        if low {
            return Ready::Low;
        }
        let Some(request) = Self::request(limits, frame) else { return Ready::Never };
        let head = shared.header(frame.index());
        // SAFETY: the frame owns its chunks, and with each the chunk's header (the module's invariant); `head` is one of this
        // pool's headers since the frame is of this pool (checked above).
        unsafe {
            (*head).data_off = (frame.offset() - BUFFER_AT) as u16;
            (*head).data_len = frame.head_len() as u16;
            (*head).pkt_len = frame.len() as u32;
            (*head).nb_segs = frame.segments() as u16;
            (*head).ol_flags = sys::SG_EXTERNAL | request.flags;
            if request.flags != 0 {
                (*head).__bindgen_anon_3.tx_offload = request.lengths;
            }
            if frame.segments() > 1 {
                let mut last: *mut sys::rte_mbuf = null_mut();
                frame.for_each_descriptor(|chunk, offset, len| {
                    let header = shared.header(chunk);
                    (*header).data_off = offset - BUFFER_AT as u16;
                    (*header).data_len = len;
                    if !last.is_null() {
                        (*header).ol_flags = sys::SG_EXTERNAL;
                        (*last).next = header;
                    }
                    last = header;
                });
            }
        }
        Ready::Yes(head)
    }

    /// Takes a frame's headers apart again: it was not sent.
    #[cold]
    fn unwrap(shared: &Shared, frame: &Frame) {
        frame.for_each_descriptor(|chunk, _, _| {
            let header = shared.header(chunk);
            // SAFETY: as in `wrap`; the driver did not take it.
            unsafe {
                (*header).next = null_mut();
                (*header).nb_segs = 1;
            }
        });
    }

    /// A copy of a frame in an mbuf of the device's own.
    fn copy_out(limits: Limits, pool: *mut sys::rte_mempool, frame: &mut Frame) -> Ready {
        if !limits.accept(frame) {
            return Ready::Never;
        }
        let Some(request) = Self::request(limits, frame) else { return Ready::Never };
        let mut mbuf: *mut sys::rte_mbuf = null_mut();
        // SAFETY: the device's mempool; room for one pointer. The mbuf is fresh: one segment, data at its headroom.
        if unsafe { sys::sg_alloc_bulk(pool, &raw mut mbuf, 1) } != 0 {
            return Ready::Later;
        }
        let (first, mut at, mut used, mut segments, mut out_of_memory) = (mbuf, mbuf, 0, 1, false);
        frame.for_each_segment(|mut bytes| {
            while !bytes.is_empty() && !out_of_memory {
                // SAFETY: `at` is an mbuf of ours with OWN_DATA bytes of room behind its headroom, of which `used` are taken;
                // a further one is allocated when they are.
                unsafe {
                    if used == OWN_DATA {
                        let mut next: *mut sys::rte_mbuf = null_mut();
                        out_of_memory = sys::sg_alloc_bulk(pool, &raw mut next, 1) != 0;
                        if out_of_memory {
                            return;
                        }
                        (*at).next = next;
                        (at, used) = (next, 0);
                        segments += 1;
                    }
                    let part = bytes.len().min(OWN_DATA - used);
                    let to = (*at).buf_addr.cast::<u8>().add(usize::from(OWN_HEADROOM) + used);
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, part);
                    used += part;
                    (*at).data_len = used as u16;
                    bytes = &bytes[part..];
                }
            }
        });
        // SAFETY: the chain just built.
        unsafe {
            (*first).nb_segs = segments;
            (*first).pkt_len = frame.len() as u32;
            (*first).ol_flags = request.flags;
            (*first).__bindgen_anon_3.tx_offload = request.lengths;
            if out_of_memory {
                sys::sg_free_bulk(&raw mut mbuf, 1);
                return Ready::Later;
            }
        }
        Ready::Yes(first)
    }

    /// Frame of a received mbuf of the frame pool's own headers; all its segments are taken.
    #[inline(always)]
    fn unwrap_received(shared: &Shared, mbuf: *mut sys::rte_mbuf) -> Frame {
        // SAFETY: the driver gave this header away, so its chunk is ours now and nobody else's; data lies within the buffer,
        // which is the chunk, behind DPDK's headroom.
        unsafe {
            let mut frame = Self::segment(shared, mbuf);
            frame.checksum = offload::received((*mbuf).ol_flags, &[]);
            if (*mbuf).ol_flags & sys::SG_RX_L4_MASK == sys::SG_RX_L4_NONE {
                frame.checksum = offload::received((*mbuf).ol_flags, frame.head());
            }
            if (*mbuf).nb_segs > 1 {
                let mut next = std::mem::replace(&mut (*mbuf).next, null_mut());
                (*mbuf).nb_segs = 1;
                while !next.is_null() {
                    let after = std::mem::replace(&mut (*next).next, null_mut());
                    (*next).nb_segs = 1;
                    frame.append(Self::segment(shared, next));
                    next = after;
                }
            }
            frame
        }
    }

    /// # Safety
    /// `mbuf` is one of `shared`'s headers, with data in its chunk, which nobody else names.
    #[inline(always)]
    unsafe fn segment(shared: &Shared, mbuf: *mut sys::rte_mbuf) -> Frame {
        // SAFETY: the caller's condition.
        unsafe {
            let start: *mut u8 = (*mbuf).buf_addr.cast::<u8>().sub(BUFFER_AT);
            let chunk = ((start.addr() - shared.base().as_ptr().addr()) / CHUNK) as u32;
            let offset = (*mbuf).data_off + BUFFER_AT as u16;
            Frame::from_raw(NonNull::new_unchecked(start), chunk, offset, (*mbuf).data_len)
        }
    }

    /// A copy of a received mbuf as a frame; the mbuf stays the caller's.
    fn copy_in(cache: &mut PoolCache, mbuf: *mut sys::rte_mbuf) -> Option<Frame> {
        // SAFETY: the driver gave the mbuf to us; every segment holds `data_len` bytes at `data_off` of its buffer.
        unsafe {
            let bytes = |mbuf: *mut sys::rte_mbuf| {
                let at = (*mbuf).buf_addr.cast::<u8>().add(usize::from((*mbuf).data_off));
                std::slice::from_raw_parts(at, usize::from((*mbuf).data_len))
            };
            let mut frame = cache.alloc_copy(bytes(mbuf))?;
            let mut next = (*mbuf).next;
            while !next.is_null() {
                match cache.alloc_copy(bytes(next)) {
                    Some(more) => frame.append(more),
                    None => {
                        cache.free(frame);
                        return None;
                    }
                }
                next = (*next).next;
            }
            frame.checksum = offload::received((*mbuf).ol_flags, frame.head());
            Some(frame)
        }
    }

    /// The same packet with its headers in one chunk; some virtual devices cut where they like.
    #[cold]
    fn straighten(cache: &mut PoolCache, frame: Frame) -> Option<Frame> {
        let mut straight = cache.alloc_copy(&frame.to_vec());
        if let Some(straight) = &mut straight {
            (straight.checksum, straight.gso) = (frame.checksum, frame.gso);
        }
        cache.free(frame);
        straight
    }

    /// Puts a copy in a frame's place, whose bytes begin where an mbuf's do; `false` if the pool is empty.
    #[cold]
    fn lift(cache: &mut PoolCache, frame: &mut Frame) -> bool {
        let Some(mut copy) = cache.alloc_copy(&frame.to_vec()) else { return false };
        (copy.checksum, copy.gso, copy.port) = (frame.checksum, frame.gso, frame.port);
        std::mem::swap(frame, &mut copy);
        cache.free(copy);
        true
    }

    /// Makes frames of the first `n` mbufs.
    fn take(&mut self, cache: &mut PoolCache, out: &mut Burst, n: usize) -> usize {
        let before = out.len();
        for at in 0..n {
            let mbuf = self.mbufs[at];
            // SAFETY: reading a header the driver just gave us.
            let pool = unsafe { (*mbuf).pool };
            let frame = match &self.device.memory {
                Memory::Shared(shared) if pool == shared.pool() => {
                    let frame = Self::unwrap_received(shared, mbuf);
                    if frame.segments() > 1 && frame.head_len() < frame.len().min(HEADERS) {
                        self.stats.rx_copied += 1;
                        Self::straighten(cache, frame)
                    } else {
                        Some(frame)
                    }
                }
                _ => {
                    self.stats.rx_copied += 1;
                    let frame = Self::copy_in(cache, mbuf);
                    let _lent = Lent::new(cache);
                    // SAFETY: the mbuf is ours to free.
                    unsafe { sys::sg_free_bulk(&raw mut self.mbufs[at], 1) };
                    frame
                }
            };
            match frame {
                Some(frame) => {
                    self.stats.rx_bytes += frame.len() as u64;
                    out.push(frame);
                }
                None => self.stats.rx_missed += 1,
            }
        }
        let received = out.len() - before;
        self.stats.rx_packets += received as u64;
        received
    }

    /// Hands the first `n` mbufs to the device; how many it took. A frame that it can never take ends the burst: then the
    /// second value is true.
    fn hand_over(&mut self, cache: &mut PoolCache, n: usize, asks: bool) -> (usize, bool) {
        let _lent = Lent::new(cache);
        let (port, queue, mbufs) = (self.device.port, self.sending, self.mbufs.as_mut_ptr());
        // SAFETY: a started port, a queue of it that this value alone uses, `n` mbufs that are ours.
        unsafe {
            let fit = if asks { usize::from(sys::sg_tx_prepare(port, queue, mbufs, n as u16)) } else { n };
            let sent = usize::from(sys::sg_tx_burst(port, queue, mbufs, fit as u16));
            (sent, fit < n && sent == fit)
        }
    }

    /// Whether nothing was taken because nobody is at the other end: a pod's program that ended, a cable.
    #[cold]
    fn is_down(&mut self) -> bool {
        if self.stuck.is_multiple_of(LOOK_AT_LINK) {
            self.down = !self.device.link().up;
        }
        self.stuck = self.stuck.wrapping_add(1);
        self.down
    }

    /// Frees the frame at the front.
    #[cold]
    fn refuse(&mut self, cache: &mut PoolCache, frames: &mut Burst) {
        cache.free(frames.remove(0));
        self.stats.tx_errors += 1;
    }
}

impl Queue for DpdkQueue {
    fn rx(&mut self, cache: &mut PoolCache, out: &mut Burst, max: usize) -> usize {
        if max == 0 || self.device.is_gone() {
            return 0;
        }
        assert!(Arc::ptr_eq(cache.pool(), &self.frames), "a queue's frames are of its own pool");
        let n = self.receive(cache, max);
        if n == 0 {
            return 0;
        }
        self.take(cache, out, n)
    }

    fn tx(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize {
        assert!(Arc::ptr_eq(cache.pool(), &self.frames), "a queue's frames are of its own pool");
        let mut taken = 0;
        while !frames.is_empty() {
            if self.device.is_gone() {
                let n = frames.len();
                cache.free_first(frames, n);
                self.stats.tx_errors += n as u64;
                return taken + n;
            }
            let (mut n, mut never, mut later, mut asks, mut bytes) = (0, false, false, false, [0u32; BURST]);
            for frame in frames.iter_mut().take(BURST) {
                let ready = match &self.device.memory {
                    Memory::Shared(shared) => match Self::wrap(self.limits, shared, frame) {
                        Ready::Low => match Self::lift(cache, frame) {
                            true => {
                                self.stats.tx_copied += 1;
                                Self::wrap(self.limits, shared, frame)
                            }
                            false => Ready::Later,
                        },
                        ready => ready,
                    },
                    Memory::Own(own) => Self::copy_out(self.limits, own.pool(), frame),
                };
                match ready {
                    Ready::Yes(mbuf) => {
                        // SAFETY: a header that is ready to be sent.
                        asks |= unsafe { (*mbuf).ol_flags } & !sys::SG_EXTERNAL != 0;
                        self.mbufs[n] = mbuf;
                        bytes[n] = frame.len() as u32;
                        n += 1;
                    }
                    Ready::Low | Ready::Later => {
                        later = true;
                        break;
                    }
                    Ready::Never => {
                        never = true;
                        break;
                    }
                }
            }
            let (sent, unfit) = if n > 0 { self.hand_over(cache, n, asks) } else { (0, false) };
            self.stats.tx_packets += sent as u64;
            self.stats.tx_bytes += bytes[..sent].iter().map(|b| u64::from(*b)).sum::<u64>();
            frames[sent..n].iter_mut().filter(|f| f.gso.kind != GsoKind::None).for_each(offload::restore);
            match &self.device.memory {
                Memory::Shared(shared) => {
                    // What was sent is the driver's, what was not is the caller's again.
                    frames[sent..n].iter().filter(|f| f.segments() > 1).for_each(|f| Self::unwrap(shared, f));
                    frames.drain(..sent);
                }
                Memory::Own(_) => {
                    self.stats.tx_copied += sent as u64;
                    if sent < n {
                        // SAFETY: mbufs of ours that the driver did not take.
                        unsafe { sys::sg_free_bulk(&raw mut self.mbufs[sent], (n - sent) as u32) };
                    }
                    cache.free_first(frames, sent);
                }
            }
            taken += sent;
            if sent > 0 {
                (self.quiet, self.stuck, self.down) = (0, 0, false);
            } else if n > 0 && !unfit && self.is_down() {
                let left = frames.len();
                cache.free_first(frames, left);
                self.stats.tx_errors += left as u64;
                return taken + left;
            }
            if unfit || (never && sent == n) {
                self.refuse(cache, frames);
                taken += 1;
            } else if sent < n || later {
                self.stats.tx_full += frames.len() as u64;
                break;
            }
        }
        taken
    }

    /// Nothing is due, but drivers keep sent frames until they send again: a quiet one is asked to give them back.
    fn flush(&mut self, cache: &mut PoolCache) {
        self.quiet = self.quiet.saturating_add(1);
        if self.quiet <= NUDGES
            && self.quiet.is_power_of_two()
            && matches!(self.device.memory, Memory::Own(_))
            && !self.device.is_gone()
        {
            // SAFETY: a started port, a queue of it that this value alone uses, no packets.
            unsafe { sys::sg_tx_burst(self.device.port, self.sending, self.mbufs.as_mut_ptr(), 0) };
        }
        if self.quiet == QUIET_TURNS && !self.device.is_gone() {
            let _lent = Lent::new(cache);
            // SAFETY: a started port, a queue of it that this value alone uses. Drivers that cannot, say so.
            unsafe { sys::sg_tx_done_cleanup(self.device.port, self.sending) };
        }
    }

    fn capabilities(&self) -> Capabilities {
        self.limits.capabilities
    }

    fn stats(&self) -> PortStats {
        let mut stats = self.stats;
        if self.queue == 0 {
            stats.rx_missed += self.device.missed().saturating_sub(self.missed_before);
        }
        stats
    }

    fn mode(&self) -> PortMode {
        let memory = match self.device.memory {
            Memory::Shared(_) => "shared memory",
            Memory::Own(_) => "copied",
        };
        let (mode, reason) = if self.device.look_for_removal() {
            ("removed".to_owned(), format!("the device {} is gone", self.device.name))
        } else {
            (format!("{}, {memory}", self.device.driver), self.reason.clone())
        };
        PortMode { driver: "dpdk", mode, reason }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn close(mut self: Box<Self>, cache: &mut PoolCache) {
        // What waits in the device is lost, but not its memory: virtual devices forget what they queue.
        for _ in 0..CLOSING_BURSTS {
            let n = if self.device.is_gone() { 0 } else { self.receive(cache, BURST) };
            if n == 0 {
                break;
            }
            let _lent = Lent::new(cache);
            // SAFETY: the driver gave these mbufs to us.
            unsafe { sys::sg_free_bulk(self.mbufs.as_mut_ptr(), n as u32) };
        }
        let _lent = Lent::new(cache);
        drop(self);
    }
}
