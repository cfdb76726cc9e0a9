//! xsk-rs, and with it libxdp's ring code, as a [`Queue`]: the yardstick for our own rings.
//!
//! It has its own UMEM and copies each packet in and out, as xsk-rs cannot work on foreign memory; at 60 bytes that is
//! a few nanoseconds of the microsecond and a half that the kernel takes to send a packet on a veth.

use sluice_afxdp::{AttachMode, Program};
use sluice_port::{Burst, Capabilities, Checksum, PoolCache, PortMode, PortStats, Queue, complete_checksum};
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use xsk_rs::config::{BindFlags, FrameSize, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

const RING: u32 = 512;
const MAX_FRAME: u32 = 1514;

pub struct XskRs {
    umem: Umem,
    fill: FillQueue,
    completion: CompQueue,
    tx: TxQueue,
    rx: RxQueue,
    free: Vec<FrameDesc>,
    scratch: Vec<FrameDesc>,
    stats: PortStats,
    _program: Program,
}

impl XskRs {
    /// Opens queue 0 of `interface` with our steering program sending everything to it.
    pub fn open(interface: &str, mode: AttachMode) -> XskRs {
        let mut program = Program::attach_all(interface, mode).unwrap();
        let size = QueueSize::new(RING).unwrap();
        let umem_config = UmemConfig::builder()
            .frame_size(FrameSize::new(4096).unwrap())
            .fill_queue_size(size)
            .comp_queue_size(size)
            .build()
            .unwrap();
        let (umem, mut descs) = Umem::new(umem_config, (2 * RING).try_into().unwrap(), false).unwrap();
        let socket_config = SocketConfig::builder()
            .rx_queue_size(size)
            .tx_queue_size(size)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        // SAFETY: the queue is bound once, with its own fill and completion rings.
        let (tx, rx, rings) = unsafe { Socket::new(socket_config, &umem, &interface.parse().unwrap(), 0) }.unwrap();
        let (mut fill, completion) = rings.unwrap();
        let free = descs.split_off(RING as usize);
        // SAFETY: these frames are in no other ring.
        unsafe { fill.produce(&descs) };
        // SAFETY: the socket outlives the call.
        program.register(0, unsafe { BorrowedFd::borrow_raw(rx.fd().as_raw_fd()) }).unwrap();
        let scratch = vec![free[0]; 64];
        XskRs { umem, fill, completion, tx, rx, free, scratch, stats: PortStats::default(), _program: program }
    }
}

impl Queue for XskRs {
    fn rx(&mut self, cache: &mut PoolCache, out: &mut Burst, max: usize) -> usize {
        let n = max.min(self.scratch.len());
        // SAFETY: what is consumed goes back to the fill ring below, and nowhere else.
        let n = unsafe { self.rx.consume(&mut self.scratch[..n]) };
        let mut received = 0;
        for desc in &self.scratch[..n] {
            // SAFETY: the frame is ours until it is produced again.
            let data = unsafe { self.umem.data(desc) };
            if let Some(mut frame) = cache.alloc_copy(data.contents()) {
                frame.checksum = Checksum::Unknown;
                self.stats.rx_packets += 1;
                self.stats.rx_bytes += frame.len() as u64;
                out.push(frame);
                received += 1;
            } else {
                self.stats.rx_missed += 1;
            }
        }
        // SAFETY: the frames were consumed above; the fill ring has room for all receive frames.
        unsafe { self.fill.produce(&self.scratch[..n]) };
        received
    }

    fn tx(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize {
        self.flush(cache);
        let capabilities = self.capabilities();
        let mut taken = 0;
        while let Some(frame) = frames.get(taken) {
            if capabilities.accepts(frame) && (self.free.is_empty() || self.tx.nb_free(1) == 0) {
                break;
            }
            taken += 1;
            let frame = &mut frames[taken - 1];
            if !capabilities.accepts(frame) || !complete_checksum(frame) {
                self.stats.tx_errors += 1;
                continue;
            }
            let mut desc = self.free.pop().unwrap();
            // SAFETY: a free frame is in no ring.
            unsafe { self.umem.data_mut(&mut desc) }.cursor().write_all(frame.head()).unwrap();
            // SAFETY: as above, and it comes back by the completion ring.
            assert_eq!(unsafe { self.tx.produce_one(&desc) }, 1);
            self.stats.tx_packets += 1;
            self.stats.tx_bytes += frame.len() as u64;
        }
        self.stats.tx_full += (frames.len() - taken) as u64;
        frames.drain(..taken).for_each(|frame| cache.free(frame));
        self.flush(cache);
        taken
    }

    fn flush(&mut self, _cache: &mut PoolCache) {
        // One call sends 32 packets at most.
        for _ in 0..RING / 32 + 1 {
            if self.tx.nb_free_exact() == RING {
                break;
            }
            let _ = self.tx.wakeup();
        }
        loop {
            // SAFETY: completed frames become free frames.
            let n = unsafe { self.completion.consume(&mut self.scratch) };
            self.free.extend_from_slice(&self.scratch[..n]);
            if n == 0 {
                break;
            }
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { tx_checksum: true, max_frame: MAX_FRAME, ..Capabilities::default() }
    }

    fn stats(&self) -> PortStats {
        self.stats
    }

    fn mode(&self) -> PortMode {
        PortMode { driver: "xsk-rs", mode: "copy".into(), reason: "yardstick".into() }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the socket lives as long as `self`.
        Some(unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) })
    }

    fn close(self: Box<Self>, _cache: &mut PoolCache) {}
}
