//! The exception path: a port whose packets are divided between the pipeline and the kernel.
//!
//! ```text
//!              ┌─ ours ────────▶ rx (the pipeline)
//!   port ──rx──┤
//!              └─ the kernel's ─▶ TAP        port ◀──tx── the pipeline, and what the kernel sends through the TAP
//! ```
//! With DPDK nobody but us receives from a port, so the kernel gets a TAP with the port's MAC in its place, and everything
//! that is not ours. One worker, that of the port's first queue, holds the TAP; the others hand it what they divide off.
//!
//! Owner: each [`Divided`] belongs to the worker of its queue, [`Orders`] to the control thread. Invariants: a frame is
//! either the pipeline's or the kernel's; the kernel's are lost, and counted, only when it does not take them. Cost: the rules'
//! for each frame, and nothing else for ours.

use crate::steering::{Rules, Steering};
use crossbeam::queue::ArrayQueue;
use sluice_port::{Burst, Capabilities, Frame, PoolCache, PortMode, PortStats, Queue};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Frames from other workers that wait for the TAP.
const CROSSING: usize = 1024;
/// Frames that wait for the TAP or the port at most.
const WAITING: usize = 256;
/// Frames taken from the TAP in a turn.
const FROM_HOST: usize = 32;

/// What control tells the queues of a port.
#[derive(Clone)]
pub struct Orders {
    shared: Arc<Shared>,
}

struct Shared {
    version: AtomicU64,
    rules: Mutex<Arc<Rules>>,
    crossing: ArrayQueue<Frame>,
    passed: AtomicU64,
    lost: AtomicU64,
    sent: AtomicU64,
}

impl Default for Orders {
    /// Until there are rules, everything is the kernel's.
    fn default() -> Self {
        Orders {
            shared: Arc::new(Shared {
                version: AtomicU64::new(0),
                rules: Mutex::default(),
                crossing: ArrayQueue::new(CROSSING),
                passed: AtomicU64::new(0),
                lost: AtomicU64::new(0),
                sent: AtomicU64::new(0),
            }),
        }
    }
}

/// Frames of the exception path since the port was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exceptions {
    /// Divided off for the kernel.
    pub passed: u64,
    /// Of those, lost because the kernel did not take them.
    pub lost: u64,
    /// From the kernel to the network.
    pub sent: u64,
}

impl Orders {
    /// These rules hold from each queue's next turn on. Gives back the old ones, for the caller to drop: a worker may still
    /// read them.
    pub fn set(&self, rules: Rules) -> Arc<Rules> {
        let mut current = self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *current, Arc::new(rules));
        self.shared.version.fetch_add(1, Ordering::Release);
        old
    }

    /// Counters of the exception path, over all queues.
    pub fn exceptions(&self) -> Exceptions {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let s = &self.shared;
        Exceptions { passed: load(&s.passed), lost: load(&s.lost), sent: load(&s.sent) }
    }
}

/// A queue of a port, divided.
pub struct Divided {
    port: Box<dyn Queue>,
    /// The kernel's side; with the port's first queue.
    host: Option<Box<dyn Queue>>,
    shared: Arc<Shared>,
    rules: Arc<Rules>,
    version: u64,
    steering: Steering,
    received: Burst,
    to_host: Burst,
    from_host: Burst,
    /// What the counters of `port` have that the pipeline has not seen.
    hidden: PortStats,
}

impl Divided {
    /// Divides a queue of a port by these orders; `host` is the TAP, for one of the port's queues.
    pub fn new(port: Box<dyn Queue>, host: Option<Box<dyn Queue>>, orders: &Orders) -> Divided {
        Divided {
            port,
            host,
            shared: Arc::clone(&orders.shared),
            rules: Arc::default(),
            version: 0,
            steering: Steering::default(),
            received: Burst::with_capacity(256),
            to_host: Burst::with_capacity(2 * WAITING),
            from_host: Burst::with_capacity(FROM_HOST),
            hidden: PortStats::default(),
        }
    }

    /// Takes up new rules, unless control is just writing them: then the next turn does.
    #[inline]
    fn renew(&mut self) {
        let version = self.shared.version.load(Ordering::Acquire);
        if version != self.version
            && let Ok(rules) = self.shared.rules.try_lock()
        {
            self.rules = Arc::clone(&rules);
            self.version = version;
            self.steering.forget();
        }
    }

    /// Gives the kernel what is its.
    fn serve_host(&mut self, cache: &mut PoolCache) {
        if self.host.is_none() {
            for frame in self.to_host.drain(..) {
                if let Err(frame) = self.shared.crossing.push(frame) {
                    self.shared.lost.fetch_add(1, Ordering::Relaxed);
                    cache.free(frame);
                }
            }
            return;
        }
        while self.to_host.len() < WAITING
            && let Some(frame) = self.shared.crossing.pop()
        {
            self.to_host.push(frame);
        }
        let Some(host) = &mut self.host else { return };
        if !self.to_host.is_empty() {
            let errors = host.stats().tx_errors;
            host.tx(cache, &mut self.to_host);
            self.shared.lost.fetch_add(host.stats().tx_errors - errors, Ordering::Relaxed);
        }
        host.flush(cache);
        for frame in self.to_host.drain(WAITING.min(self.to_host.len())..) {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            cache.free(frame);
        }
    }

    /// Sends what the kernel sends.
    fn serve_network(&mut self, cache: &mut PoolCache) {
        let Some(host) = &mut self.host else { return };
        if self.from_host.is_empty() {
            host.rx(cache, &mut self.from_host, FROM_HOST);
        }
        if self.from_host.is_empty() {
            return;
        }
        // What a kernel socket leaves to the device, a port without offloads gets complete.
        if !self.port.capabilities().tx_checksum {
            self.from_host.iter_mut().for_each(|frame| _ = sluice_port::complete_checksum(frame));
        }
        // Reading a device's counters may be slow, so these are ours; a frame that it refuses is counted as sent here.
        let bytes = |frames: &Burst| frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        let before = bytes(&self.from_host);
        let taken = self.port.tx(cache, &mut self.from_host) as u64;
        self.hidden.tx_packets += taken;
        self.hidden.tx_bytes += before - bytes(&self.from_host);
        self.hidden.tx_full += self.from_host.len() as u64;
        self.shared.sent.fetch_add(taken, Ordering::Relaxed);
    }
}

impl Queue for Divided {
    fn rx(&mut self, cache: &mut PoolCache, out: &mut Burst, max: usize) -> usize {
        self.renew();
        let before = out.len();
        self.port.rx(cache, &mut self.received, max);
        let mut passed = 0;
        for frame in self.received.drain(..) {
            if self.steering.takes(&self.rules, &frame) {
                out.push(frame);
            } else {
                passed += 1;
                self.hidden.rx_bytes += frame.len() as u64;
                self.to_host.push(frame);
            }
        }
        if passed > 0 {
            self.hidden.rx_packets += passed;
            self.shared.passed.fetch_add(passed, Ordering::Relaxed);
            self.serve_host(cache);
        }
        out.len() - before
    }

    fn tx(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize {
        self.port.tx(cache, frames)
    }

    fn flush(&mut self, cache: &mut PoolCache) {
        self.port.flush(cache);
        self.serve_host(cache);
        self.serve_network(cache);
    }

    fn capabilities(&self) -> Capabilities {
        self.port.capabilities()
    }

    /// What the pipeline received and sent; the exception path's frames are in [`Orders::exceptions`].
    fn stats(&self) -> PortStats {
        let (all, hidden) = (self.port.stats(), self.hidden);
        PortStats {
            rx_packets: all.rx_packets - hidden.rx_packets,
            rx_bytes: all.rx_bytes - hidden.rx_bytes,
            tx_packets: all.tx_packets.saturating_sub(hidden.tx_packets),
            tx_bytes: all.tx_bytes.saturating_sub(hidden.tx_bytes),
            tx_full: all.tx_full.saturating_sub(hidden.tx_full),
            ..all
        }
    }

    fn mode(&self) -> PortMode {
        self.port.mode()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        // Two descriptors cannot be waited for as one; a port without one must be polled anyhow.
        if self.host.is_some() { None } else { self.port.wait_fd() }
    }

    fn close(mut self: Box<Self>, cache: &mut PoolCache) {
        self.to_host.drain(..).chain(self.from_host.drain(..)).for_each(|frame| cache.free(frame));
        self.port.close(cache);
        if let Some(host) = self.host.take() {
            while let Some(frame) = self.shared.crossing.pop() {
                cache.free(frame);
            }
            host.close(cache);
        }
    }
}

impl Drop for Shared {
    /// A queue that was closed after the one with the TAP may have left frames; their pool is not here any more, so this only
    /// says what would otherwise be silent.
    fn drop(&mut self) {
        debug_assert!(self.crossing.is_empty(), "{} frames were left between workers", self.crossing.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_port::mem::{self, MemConfig, MemHandle};
    use sluice_port::{FramePool, PoolOptions};

    /// A packet to the node on a UDP port; the overlay's is 4789.
    fn packet(port: u16) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        bytes.extend_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 198, 51, 100, 9, 192, 0, 2, 11, 0, 7]);
        bytes.extend_from_slice(&port.to_be_bytes());
        bytes.resize(60, 0);
        bytes
    }

    fn rules() -> Rules {
        Rules::new(["192.0.2.11".parse().unwrap()], [], [], 4789, (40_000, 50_000))
    }

    fn collect(handle: &mut MemHandle, cache: &mut PoolCache) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| handle.collect_bytes(cache)).collect()
    }

    fn inject(handle: &mut MemHandle, cache: &mut PoolCache, bytes: &[u8]) {
        assert!(handle.inject_bytes(cache, bytes).is_ok());
    }

    #[test]
    fn ours_go_to_the_pipeline_and_all_else_to_the_kernel_and_what_it_sends_to_the_network() {
        let pool = FramePool::new(PoolOptions { frames: 1024, huge_pages: false }).unwrap();
        let mut cache = pool.cache();
        let ((port, mut wire), (host, mut kernel)) =
            (mem::queue(MemConfig::default()), mem::queue(MemConfig::default()));
        let orders = Orders::default();
        let mut divided = Box::new(Divided::new(Box::new(port), Some(Box::new(host)), &orders));
        let mut out = Burst::new();
        // Without rules everything is the kernel's.
        inject(&mut wire, &mut cache, &packet(4789));
        assert_eq!(divided.rx(&mut cache, &mut out, 32), 0);
        assert_eq!(collect(&mut kernel, &mut cache), [packet(4789)]);
        drop(orders.set(rules()));
        inject(&mut wire, &mut cache, &packet(4789));
        inject(&mut wire, &mut cache, &packet(22));
        inject(&mut wire, &mut cache, &packet(4789));
        assert_eq!(divided.rx(&mut cache, &mut out, 32), 2);
        assert_eq!(collect(&mut kernel, &mut cache), [packet(22)]);
        inject(&mut kernel, &mut cache, &packet(53));
        divided.flush(&mut cache);
        assert_eq!(collect(&mut wire, &mut cache), [packet(53)]);
        divided.tx(&mut cache, &mut out);
        assert_eq!(collect(&mut wire, &mut cache).len(), 2);
        let stats = divided.stats();
        assert_eq!((stats.rx_packets, stats.rx_bytes, stats.tx_packets, stats.tx_bytes), (2, 120, 2, 120));
        assert_eq!(orders.exceptions(), Exceptions { passed: 2, lost: 0, sent: 1 });
        divided.close(&mut cache);
        for handle in [wire, kernel] {
            handle.close(&mut cache);
        }
        cache.account();
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn another_workers_exceptions_cross_to_the_one_with_the_tap() {
        let pool = FramePool::new(PoolOptions { frames: 1024, huge_pages: false }).unwrap();
        let mut cache = pool.cache();
        let orders = Orders::default();
        let ((port, wire0), (host, mut kernel)) = (mem::queue(MemConfig::default()), mem::queue(MemConfig::default()));
        let mut first = Box::new(Divided::new(Box::new(port), Some(Box::new(host)), &orders));
        let (port, mut wire1) = mem::queue(MemConfig::default());
        let mut second = Box::new(Divided::new(Box::new(port), None, &orders));
        let mut out = Burst::new();
        inject(&mut wire1, &mut cache, &packet(22));
        assert_eq!(second.rx(&mut cache, &mut out, 32), 0);
        assert!(collect(&mut kernel, &mut cache).is_empty());
        first.flush(&mut cache);
        assert_eq!(collect(&mut kernel, &mut cache), [packet(22)]);
        // Closed one after the other, with a frame under way.
        inject(&mut wire1, &mut cache, &packet(23));
        second.rx(&mut cache, &mut out, 32);
        second.close(&mut cache);
        first.close(&mut cache);
        for handle in [wire0, wire1, kernel] {
            handle.close(&mut cache);
        }
        cache.account();
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn a_kernel_that_takes_nothing_costs_its_own_frames_alone() {
        let pool = FramePool::new(PoolOptions { frames: 2048, huge_pages: false }).unwrap();
        let mut cache = pool.cache();
        let full = MemConfig { tx_ring: 16, ..MemConfig::default() };
        let ((port, mut wire), (host, kernel)) = (mem::queue(MemConfig::default()), mem::queue(full));
        let orders = Orders::default();
        drop(orders.set(rules()));
        let mut divided = Box::new(Divided::new(Box::new(port), Some(Box::new(host)), &orders));
        let mut out = Burst::new();
        for _ in 0..100 {
            for _ in 0..8 {
                inject(&mut wire, &mut cache, &packet(22));
            }
            inject(&mut wire, &mut cache, &packet(4789));
            divided.rx(&mut cache, &mut out, 64);
        }
        assert_eq!(out.len(), 100);
        let exceptions = orders.exceptions();
        assert_eq!(exceptions.passed, 800);
        assert!(exceptions.lost >= 800 - 16 - 2 * WAITING as u64, "{exceptions:?}");
        out.into_iter().for_each(|frame| cache.free(frame));
        divided.close(&mut cache);
        for handle in [wire, kernel] {
            handle.close(&mut cache);
        }
        cache.account();
        assert_eq!(pool.outstanding(), 0);
    }
}
