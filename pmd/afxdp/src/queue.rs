//! A device queue as a [`Queue`]: bursts in, bursts out, over one AF_XDP socket.
//!
//! ```text
//!            fill ring <- free chunks                tx ring <- descriptors of frames
//!   device ------------------------------> kernel <-----------------------------------> device
//!            rx ring -> frames                       completion ring -> free chunks
//! ```
//! Opened on the control thread, then owned and polled by one worker. Source: Documentation/networking/af_xdp.rst.
//! Invariants: a chunk is in a frame, in the pool, or lent to the kernel in the ledger (`umem`); chunks posted for
//! receiving and chunks under way for sending never exceed their ring, so no ring overflows.
//! Cost: an idle queue is one load a turn; a sending one a system call per 32 packets in copy mode.

use crate::abi::{
    COPY_MAX_SEGMENTS, Desc, TX_BATCH, TX_METADATA_LEN, TxMetadata, XDP_PKT_CONTD, XDP_TX_METADATA,
    XDP_TXMD_FLAGS_CHECKSUM,
};
use crate::program::{Attached, Program, max_queues};
use crate::socket::{OpenError, Socket};
use crate::umem::Umem;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::net::sockopt::xdp_statistics;
use rustix::net::xdp::SocketAddrXdpFlags as Flags;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use sluice_port::frame::LINK_BYTES;
use sluice_port::{
    Burst, CHUNK, Capabilities, Checksum, Frame, Gso, HEADROOM, PoolCache, PortMode, PortStats, Queue,
    complete_checksum,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Chain length for zero-copy transmit. Drivers that take chains allow eight or more; four carry a 9,000-byte frame.
const ZERO_COPY_MAX_SEGMENTS: usize = 4;
const ETHERNET_HEADER: u32 = 14;
/// Shortest frame that has a whole Ethernet header; the kernel drops shorter ones.
const MIN_FRAME: usize = 14;
/// How long `close` lets packets under way leave.
const CLOSE_DRAIN: Duration = Duration::from_millis(20);
/// How long `close` waits for a zero-copy driver to let go of the memory.
const CLOSE_RELEASE: Duration = Duration::from_secs(2);
/// Quiet turns after which a grown receive reserve is halved.
const QUIET_TURNS: u32 = 1 << 16;

/// Which way the kernel is to move packets between the device and our memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BindMode {
    /// Zero-copy where driver and XDP mode allow it, else copy.
    #[default]
    Auto,
    /// Zero-copy or fail.
    ZeroCopy,
    /// Copy.
    Copy,
}

/// How a queue is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Slots of each of the four rings: a power of two. 512 for pods, 2048 for the uplink.
    pub ring_size: u32,
    /// Zero-copy or copy.
    pub mode: BindMode,
    /// Chunks kept with the kernel for receiving while there is little traffic. Under load the reserve doubles up to
    /// `ring_size`, as long as half of the pool is free; so hundreds of idle pods do not eat the pool.
    pub fill_reserve: u32,
}

impl Default for QueueOptions {
    fn default() -> Self {
        QueueOptions { ring_size: 512, mode: BindMode::Auto, fill_reserve: 64 }
    }
}

impl QueueOptions {
    /// For the node's uplink: large rings, filled from the start.
    pub fn uplink() -> Self {
        QueueOptions { ring_size: 2048, mode: BindMode::Auto, fill_reserve: 1024 }
    }
}

/// One AF_XDP socket on one queue of a device.
pub struct XskQueue {
    socket: Socket,
    umem: Arc<Umem>,
    device: crate::device::Device,
    queue: u32,
    attached: Attached,
    reason: String,
    zero_copy: bool,
    max_frame: u32,
    /// Descriptors a packet may have; 1 without chains.
    max_segments: usize,
    rx_checksum: Checksum,
    /// First chunks of a packet whose last one is still to come.
    partial: Option<Frame>,
    /// The rest of the current packet is to be dropped: one of its chunks was bad.
    skipping: bool,
    /// Chunks with the kernel for receiving.
    posted: u32,
    /// How many there should be.
    reserve: u32,
    least_reserve: u32,
    quiet: u32,
    /// Chunks with the kernel for sending.
    in_flight: u32,
    /// The device is gone: what is sent is lost, and counted.
    gone: bool,
    stats: PortStats,
}

impl XskQueue {
    /// Opens queue `queue` of the program's interface and starts receiving what the program steers to it. To be called
    /// in that interface's network namespace; may sleep up to a second if the queue's last owner has just gone.
    pub fn open(
        umem: &Arc<Umem>,
        program: &mut Program,
        queue: u32,
        options: &QueueOptions,
        cache: &mut PoolCache,
    ) -> Result<XskQueue, OpenError> {
        assert!(Arc::ptr_eq(umem.pool(), cache.pool()), "a queue's memory is its cache's pool");
        let device = program.device().clone();
        if queue >= max_queues() {
            return Err(OpenError::NoQueue { device: device.name, queue });
        }
        let (socket, mut reasons) = bind_best(umem, program, queue, options)?;
        if !program.reason().is_empty() {
            reasons.insert(0, program.reason().to_owned());
        }
        let zero_copy = socket.flags.contains(Flags::XDP_ZEROCOPY);
        if !socket.metadata {
            reasons.push("checksums in software: this kernel has no AF_XDP transmit metadata".into());
        } else if zero_copy {
            reasons.push("checksums in software: drivers do not say whether they take the request".into());
        }
        let chained = socket.flags.contains(Flags::XDP_USE_SG);
        let max_segments = match (chained, zero_copy) {
            (false, _) => 1,
            (true, true) => ZERO_COPY_MAX_SEGMENTS,
            (true, false) => COPY_MAX_SEGMENTS,
        };
        let mut opened = XskQueue {
            attached: program.attached(),
            reason: reasons.join("; "),
            zero_copy,
            max_frame: device.mtu + ETHERNET_HEADER,
            max_segments,
            rx_checksum: if device.hides_partial_checksums() { Checksum::Unknown } else { Checksum::None },
            partial: None,
            skipping: false,
            posted: 0,
            reserve: options.fill_reserve.clamp(16, options.ring_size),
            least_reserve: options.fill_reserve.clamp(16, options.ring_size),
            quiet: 0,
            in_flight: 0,
            gone: false,
            stats: PortStats::default(),
            umem: Arc::clone(umem),
            socket,
            device,
            queue,
        };
        opened.refill(cache);
        if let Err(error) = program.register(queue, opened.socket.as_fd()) {
            let device = opened.device.name.clone();
            Box::new(opened).close(cache);
            return Err(OpenError::Register { device, queue, why: error.to_string() });
        }
        Ok(opened)
    }

    /// The device's queue number.
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// The device.
    pub fn device(&self) -> &crate::device::Device {
        &self.device
    }

    /// Whether packets move without a copy.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Tells the kernel, whatever its wake-up flags say, that there is work on both sides: the first remedy when the
    /// [`Watchdog`](crate::Watchdog) sees a stall.
    pub fn wake(&mut self) {
        self.wake_receiver();
        self.send_pending();
    }

    /// Keeps as many chunks posted for receiving as the reserve says.
    fn refill(&mut self, cache: &mut PoolCache) {
        let missing = self.reserve.saturating_sub(self.posted);
        // A few at a time are not worth publishing.
        if missing == 0 || missing < self.reserve / 8 {
            return;
        }
        let count = missing.min(self.socket.fill.free(missing));
        let mut filled = 0;
        while filled < count {
            let Some(index) = cache.alloc_index() else { break };
            self.umem.lend(index, self.socket.slot);
            self.socket.fill.write(u64::from(index) * CHUNK as u64);
            filled += 1;
        }
        if filled > 0 {
            self.socket.fill.submit();
            self.posted += filled;
        }
        if self.socket.fill.needs_wakeup() {
            self.wake_receiver();
        }
    }

    #[cold]
    fn wake_receiver(&mut self) {
        let _ = recv(self.socket.as_fd(), &mut [0u8; 0], RecvFlags::DONTWAIT);
    }

    /// Doubles the reserve when a burst took most of it and the pool can afford it.
    #[inline]
    fn adapt(&mut self, taken: u32) {
        self.quiet = 0;
        if taken >= self.reserve / 2 && self.reserve < self.socket.fill.size() {
            let pool = self.umem.pool();
            if pool.outstanding() * 2 < pool.frames() {
                self.reserve = (self.reserve * 2).min(self.socket.fill.size());
            }
        }
    }

    /// Takes back what has been sent.
    #[inline]
    fn drain_completions(&mut self, cache: &mut PoolCache) {
        if self.in_flight == 0 {
            return;
        }
        let mut drained = 0;
        while let Some(addr) = self.socket.completion.next() {
            drained += 1;
            let index = (addr / CHUNK as u64) as u32;
            if self.umem.take_back(index, self.socket.slot) {
                self.in_flight = self.in_flight.saturating_sub(1);
                // SAFETY: the ledger says the chunk was lent to this socket, and the completion ends that.
                unsafe { cache.free_index(index) };
            }
        }
        if drained > 0 {
            self.socket.completion.release();
        }
    }

    /// Makes a frame of a received descriptor's chunk; `None` if the kernel never had that chunk from us.
    #[inline]
    fn claim(&mut self, desc: Desc) -> Option<Frame> {
        let (index, offset, len) = desc.place()?;
        if !self.umem.take_back(index, self.socket.slot) {
            return None;
        }
        // SAFETY: the chunk belongs to the pool (the ledger has its index), it was lent to this socket and nobody
        // else names it, and `place` has checked offset and length.
        Some(unsafe { Frame::from_raw(self.umem.pool().chunk(index), index, offset, len) })
    }

    /// Whether the device can send the frame, and how; does in software what it does not.
    fn prepare(&self, frame: &mut Frame) -> Option<Prepared> {
        if frame.len() < MIN_FRAME || frame.segments() > self.max_segments || frame.head_len() == 0 {
            return None;
        }
        let Checksum::Partial { start, offset } = frame.checksum else { return Some(Prepared::Plain) };
        let has_room = frame.offset() >= LINK_BYTES + TX_METADATA_LEN;
        if self.socket.metadata && !self.zero_copy && has_room {
            return Some(Prepared::Request(TxMetadata {
                flags: XDP_TXMD_FLAGS_CHECKSUM,
                csum_start: start,
                csum_offset: offset,
                ..TxMetadata::default()
            }));
        }
        complete_checksum(frame).then_some(Prepared::Plain)
    }

    /// Writes a frame's descriptors. The kernel owns its chunks afterwards.
    fn submit(&mut self, cache: &mut PoolCache, frame: Frame, prepared: Prepared) {
        let mut options = 0;
        if let Prepared::Request(metadata) = prepared {
            options = XDP_TX_METADATA;
            let at = self.umem.pool().chunk(frame.index()).as_ptr().wrapping_add(frame.offset() - TX_METADATA_LEN);
            // SAFETY: `prepare` saw room for the metadata between the chunk's link and its data, and the frame, which
            // we own, is the only one to name the chunk. The address need not be aligned.
            unsafe { at.cast::<TxMetadata>().write_unaligned(metadata) };
        }
        let mut left = frame.segments();
        let mut last: Option<Desc> = None;
        frame.for_each_descriptor(|index, offset, len| {
            left -= 1;
            if len == 0 {
                // SAFETY: the frame is taken apart here and names the chunk no more; an empty one is not sent.
                unsafe { cache.free_index(index) };
                return;
            }
            if let Some(desc) = last.take() {
                self.socket.tx.write(Desc { options: desc.options | XDP_PKT_CONTD, ..desc });
            }
            self.umem.lend(index, self.socket.slot);
            self.in_flight += 1;
            last = Some(Desc::new(index, offset, len, core::mem::take(&mut options)));
        });
        debug_assert_eq!(left, 0);
        if let Some(desc) = last {
            self.socket.tx.write(desc);
        }
    }

    /// Whether every chunk has the room in front of its data that the kernel wants once a UMEM has metadata, used or
    /// not.
    #[inline]
    fn has_metadata_room(&self, frame: &Frame) -> bool {
        if !self.socket.metadata {
            return true;
        }
        if frame.segments() == 1 {
            return frame.offset() >= TX_METADATA_LEN;
        }
        let mut room = true;
        frame.for_each_descriptor(|_, offset, _| room &= usize::from(offset) >= TX_METADATA_LEN);
        room
    }

    /// Tells the kernel of pending descriptors until it has taken them all, or takes no more for now.
    fn send_pending(&mut self) {
        let mut pending = self.socket.tx.pending();
        // One call sends at most TX_BATCH packets in copy mode; a few more for calls that were told to try again.
        let mut calls = self.socket.tx.size() / TX_BATCH + 4;
        while pending > 0 && calls > 0 && !self.gone {
            calls -= 1;
            let result = send(self.socket.as_fd(), &[], SendFlags::DONTWAIT);
            let now = self.socket.tx.pending();
            match result {
                Ok(_) => return,
                Err(Errno::NXIO | Errno::BADF | Errno::NODEV) => self.gone = true,
                // Down for now: the descriptors stay until it is up or we close.
                Err(Errno::NETDOWN) => return,
                // More to do (AGAIN), a packet the device dropped (BUSY), no memory or send buffer (NOBUFS, NOMEM),
                // a packet it cannot take (others): go on while it makes progress, else try in the next turn.
                Err(_) if now < pending => {}
                Err(_) => return,
            }
            pending = now;
        }
    }

    /// Safe code may hand us a frame of another pool, whose chunk number means a stranger's memory here.
    #[inline]
    fn assert_ours(&self, frame: &Frame) {
        let here = self.umem.pool().chunk(frame.index()).as_ptr().wrapping_add(frame.offset());
        assert!(core::ptr::eq(here, frame.data_ptr()), "a frame of another pool");
    }

    fn assert_pool(&self, cache: &PoolCache) {
        assert!(Arc::ptr_eq(self.umem.pool(), cache.pool()), "a queue's memory is its cache's pool");
    }
}

/// Copies a packet into as few chunks as it fits, each with all its headroom: for chains of more pieces than the kernel
/// takes and for data too far in front. `None` if the pool is empty.
#[cold]
fn gather(frame: &Frame, cache: &mut PoolCache) -> Option<Frame> {
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

/// What `prepare` found: send as it is, or with this request in front.
enum Prepared {
    Plain,
    Request(TxMetadata),
}

impl Queue for XskQueue {
    fn rx(&mut self, cache: &mut PoolCache, out: &mut Burst, max: usize) -> usize {
        if self.socket.rx.available() == 0 {
            return 0;
        }
        self.assert_pool(cache);
        let (mut received, mut taken) = (0, 0);
        while received < max {
            let Some(desc) = self.socket.rx.next() else { break };
            taken += 1;
            self.posted = self.posted.saturating_sub(1);
            let more = desc.options & XDP_PKT_CONTD != 0;
            let Some(frame) = self.claim(desc) else {
                // Cannot happen with a sane kernel; the packet is lost, its other chunks are not.
                if let Some(head) = self.partial.take() {
                    cache.free(head);
                }
                self.stats.rx_missed += u64::from(!self.skipping);
                self.skipping = more;
                continue;
            };
            if self.skipping {
                cache.free(frame);
                self.skipping = more;
                continue;
            }
            let frame = match self.partial.take() {
                Some(mut head) => {
                    head.append(frame);
                    head
                }
                None => frame,
            };
            if more {
                self.partial = Some(frame);
                continue;
            }
            let mut frame = frame;
            frame.checksum = self.rx_checksum;
            frame.gso = Gso::default();
            self.stats.rx_packets += 1;
            self.stats.rx_bytes += frame.len() as u64;
            out.push(frame);
            received += 1;
        }
        self.socket.rx.release();
        self.adapt(taken);
        self.refill(cache);
        received
    }

    fn tx(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize {
        if frames.is_empty() {
            return 0;
        }
        self.assert_pool(cache);
        self.drain_completions(cache);
        // As many frames as have room, in order: each chunk needs a slot now and one in the completion ring later.
        let size = self.socket.tx.size();
        let mut room = (size - self.in_flight.min(size)).min(self.socket.tx.free(size)) as usize;
        let mut count = 0;
        for frame in frames.iter() {
            let segments = if self.gone { 0 } else { frame.segments().min(self.max_segments) };
            if segments > room {
                break;
            }
            room -= segments;
            count += 1;
        }
        self.stats.tx_full += (frames.len() - count) as u64;
        let capabilities = Capabilities { chained: true, ..self.capabilities() };
        for mut frame in frames.drain(..count) {
            self.assert_ours(&frame);
            let bytes = frame.len() as u64;
            let acceptable = !self.gone && capabilities.accepts(&frame);
            if acceptable
                && (frame.segments() > self.max_segments || !self.has_metadata_room(&frame))
                && let Some(gathered) = gather(&frame, cache)
            {
                cache.free(core::mem::replace(&mut frame, gathered));
            }
            match self.prepare(&mut frame) {
                Some(prepared) if acceptable => {
                    self.submit(cache, frame, prepared);
                    self.stats.tx_packets += 1;
                    self.stats.tx_bytes += bytes;
                }
                _ => {
                    cache.free(frame);
                    self.stats.tx_errors += 1;
                }
            }
        }
        self.socket.tx.submit();
        if self.socket.tx.needs_wakeup() {
            self.send_pending();
        }
        count
    }

    fn flush(&mut self, cache: &mut PoolCache) {
        if self.in_flight > 0 {
            self.assert_pool(cache);
            self.drain_completions(cache);
            if self.socket.tx.pending() > 0 && self.socket.tx.needs_wakeup() {
                self.send_pending();
            }
        }
        if self.posted < self.reserve {
            self.assert_pool(cache);
            self.refill(cache);
        }
        self.quiet += 1;
        if self.quiet >= QUIET_TURNS {
            self.quiet = 0;
            self.reserve = (self.reserve / 2).max(self.least_reserve);
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            tx_checksum: true,
            tso4: false,
            tso6: false,
            // Chains of more pieces than the kernel takes are copied into fewer.
            chained: self.max_segments > 1,
            wants_coalescing: false,
            max_frame: self.max_frame,
        }
    }

    /// One system call (XDP_STATISTICS): read it at the pace of metrics, not of packets.
    fn stats(&self) -> PortStats {
        let mut stats = self.stats;
        if let Ok(kernel) = xdp_statistics(self.socket.as_fd()) {
            stats.rx_missed += kernel.rx_dropped + kernel.rx_ring_full.unwrap_or(0);
            stats.tx_errors += kernel.tx_invalid_descs;
        }
        stats
    }

    fn mode(&self) -> PortMode {
        let copy = if self.zero_copy { "zero-copy" } else { "copy" };
        PortMode { driver: "af_xdp", mode: format!("{}, {copy}", self.attached), reason: self.reason.clone() }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    /// Lets packets under way leave for some milliseconds, then closes. After a zero-copy socket the driver is given
    /// up to two seconds to let go of the memory; if it does not, the chunks stay out of the pool, because a NIC may
    /// still write to them.
    fn close(mut self: Box<Self>, cache: &mut PoolCache) {
        self.assert_pool(cache);
        let deadline = Instant::now() + CLOSE_DRAIN;
        loop {
            self.drain_completions(cache);
            if self.in_flight == 0 || self.gone || Instant::now() >= deadline {
                break;
            }
            self.send_pending();
            std::thread::sleep(Duration::from_micros(200));
        }
        if let Some(head) = self.partial.take() {
            cache.free(head);
        }
        let (zero_copy, slot, flags) = (self.zero_copy, self.socket.slot, self.socket.flags);
        let XskQueue { socket, umem, device, queue, .. } = *self;
        let ring_size = socket.tx.size();
        drop(socket);
        // Closing waits for packets that are being received (synchronize_net), and in copy mode sent packets are
        // copies: the chunks are ours. A zero-copy driver lets go later; the queue can be bound again once it has.
        if zero_copy {
            let deadline = Instant::now() + CLOSE_RELEASE;
            loop {
                match Socket::open(&umem, &device, queue, ring_size, flags) {
                    Ok(probe) => {
                        let probe_slot = probe.slot;
                        drop(probe);
                        umem.reclaim(probe_slot, |_| {});
                        break;
                    }
                    Err(OpenError::Busy { .. }) if Instant::now() < deadline => {}
                    Err(OpenError::Busy { .. }) => return,
                    // The device is gone, and its driver's hold on the memory with it.
                    Err(_) => break,
                }
            }
        }
        umem.reclaim(slot, |index| {
            // SAFETY: the chunk was lent to the socket that is now closed, so nobody names it.
            unsafe { cache.free_index(index) }
        });
        cache.account();
    }
}

/// Binds in the best way the device allows; with the reasons why not a better one.
fn bind_best(
    umem: &Arc<Umem>,
    program: &Program,
    queue: u32,
    options: &QueueOptions,
) -> Result<(Socket, Vec<String>), OpenError> {
    let device = program.device();
    let open = |flags| Socket::open(umem, device, queue, options.ring_size, flags | Flags::XDP_USE_NEED_WAKEUP);
    let mut reasons = Vec::new();
    let zero_copy_is_hopeless = match program.attached() {
        Attached::Generic => Some("no zero-copy: XDP runs in generic mode".to_owned()),
        Attached::Native if device.copies_always() => Some(format!("no zero-copy: {} has none", device.driver)),
        Attached::Native => None,
    };
    match (options.mode, zero_copy_is_hopeless) {
        (BindMode::Copy, _) => reasons.push("copy mode was asked for".to_owned()),
        (BindMode::Auto, Some(why)) => reasons.push(why),
        (mode, _) => {
            // Chains in zero-copy are newer than zero-copy; without them a frame must fit a chunk.
            let fits = device.mtu + ETHERNET_HEADER + 4 <= (CHUNK - sluice_port::HEADROOM) as u32;
            let mut error = match open(Flags::XDP_ZEROCOPY | Flags::XDP_USE_SG) {
                Ok(socket) => return Ok((socket, reasons)),
                Err(error) => error,
            };
            if fits && matches!(error, OpenError::Step { step: "bind", .. }) {
                error = match open(Flags::XDP_ZEROCOPY) {
                    Ok(socket) => {
                        reasons.push(format!("no chained frames: {} refuses them in zero-copy mode", device.name));
                        return Ok((socket, reasons));
                    }
                    Err(error) => error,
                };
            }
            match error {
                OpenError::Step { step: "bind", source, .. } if mode == BindMode::Auto => {
                    reasons.push(format!("no zero-copy: {} driver says: {source}", device.driver));
                }
                OpenError::Step { step: "bind", source, .. } => {
                    return Err(OpenError::Mode { device: device.name.clone(), mode: "zero-copy", source });
                }
                other => return Err(other),
            }
        }
    }
    match open(Flags::XDP_COPY | Flags::XDP_USE_SG) {
        Err(OpenError::Step { step: "bind", source: Errno::INVAL, .. }) => {
            reasons.push("no chained frames: this kernel has no XDP_USE_SG (Linux 6.6)".into());
            open(Flags::XDP_COPY).map(|socket| (socket, reasons))
        }
        result => result.map(|socket| (socket, reasons)),
    }
}
