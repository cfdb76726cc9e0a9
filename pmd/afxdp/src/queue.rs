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

mod transmit;

use crate::abi::{COPY_MAX_SEGMENTS, Desc, XDP_PKT_CONTD};
use crate::attach::Attached;
use crate::bind::{ETHERNET_HEADER, QueueOptions, bind_best};
use crate::program::{Program, max_queues};
use crate::socket::{OpenError, Socket};
use crate::umem::Umem;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::net::sockopt::xdp_statistics;
use rustix::net::xdp::SocketAddrXdpFlags as Flags;
use rustix::net::{RecvFlags, recv};
use sluice_port::{Burst, CHUNK, Capabilities, Checksum, Frame, Gso, PoolCache, PortMode, PortStats, Queue};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Chain length for zero-copy transmit. Drivers that take chains allow eight or more; four carry a 9,000-byte frame.
const ZERO_COPY_MAX_SEGMENTS: usize = 4;
/// How long `close` lets packets under way leave.
const CLOSE_DRAIN: Duration = Duration::from_millis(20);
/// How long `close` waits for a zero-copy driver to let go of the memory.
const CLOSE_RELEASE: Duration = Duration::from_secs(2);
/// Quiet turns after which a grown receive reserve is halved.
const QUIET_TURNS: u32 = 1 << 16;

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

    fn assert_pool(&self, cache: &PoolCache) {
        assert!(Arc::ptr_eq(self.umem.pool(), cache.pool()), "a queue's memory is its cache's pool");
    }
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
        self.transmit(cache, frames)
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
