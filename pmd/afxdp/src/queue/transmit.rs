//! The transmit half of a queue: frames to descriptors, wake-ups, completions.
//!
//! Owner: the worker that polls the queue. Source: `net/xdp/xsk.c` (copy mode sends at most 32 packets a call),
//! Documentation/networking/xsk-tx-metadata.rst. Cost: a system call per 32 packets in copy mode.

use super::XskQueue;
use crate::abi::{
    Desc, TX_BATCH, TX_METADATA_LEN, TxMetadata, XDP_PKT_CONTD, XDP_TX_METADATA, XDP_TXMD_FLAGS_CHECKSUM,
};
use crate::gather::gather;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use sluice_port::frame::LINK_BYTES;
use sluice_port::{Burst, CHUNK, Capabilities, Checksum, Frame, PoolCache, Queue, complete_checksum};

/// Shortest frame that has a whole Ethernet header; the kernel drops shorter ones.
const MIN_FRAME: usize = 14;

/// What `prepare` found: send as it is, or with this request in front.
enum Prepared {
    Plain,
    Request(TxMetadata),
}

impl XskQueue {
    /// What [`Queue::tx`] does with a burst that is not empty.
    pub(super) fn transmit(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize {
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

    /// Takes back what has been sent.
    #[inline]
    pub(super) fn drain_completions(&mut self, cache: &mut PoolCache) {
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
    pub(super) fn send_pending(&mut self) {
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
}
