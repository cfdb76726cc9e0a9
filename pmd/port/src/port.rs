//! What a worker needs of a network port: bursts in, bursts out, and what the port can do.
//!
//! Owner: a [`Queue`] belongs to the worker that polls it; no call blocks. Invariants (the laws that
//! [`conformance`](crate::conformance) checks): a frame is in one place; what `tx` does not take stays, in order;
//! `tx`'s results add up to `tx_packets + tx_errors`; `close` leaves no chunk behind. Cost: one virtual call per burst.

use crate::frame::{Frame, GsoKind};
use crate::pool::PoolCache;
use std::os::fd::BorrowedFd;

/// Number of a port on this node, given by control when the port is made and not reused while flows may name it.
/// 0 is no port; it stands for the node itself in flow keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PortId(pub u16);

/// Frames on their way: in arrival order on receive, in sending order on transmit.
pub type Burst = Vec<Frame>;

/// What a port does for a frame, so that the worker need not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Completes a partial transport checksum on transmit.
    pub tx_checksum: bool,
    /// Takes [`GsoKind::Tcp4`](crate::GsoKind) frames longer than the MTU whole.
    pub tso4: bool,
    /// Takes [`GsoKind::Tcp6`](crate::GsoKind) frames longer than the MTU whole.
    pub tso6: bool,
    /// Takes frames of more than one chunk.
    pub chained: bool,
    /// The other end gains from coalesced TCP segments (a kernel stack behind a TAP).
    pub wants_coalescing: bool,
    /// Longest frame it sends, in bytes with the Ethernet header; segmentation requests included.
    pub max_frame: u32,
}

impl Capabilities {
    /// Whether a device with these capabilities can send the frame as it is. What it cannot send it takes, frees and
    /// counts in [`PortStats::tx_errors`]; a partial checksum that nobody will complete is such a frame.
    #[inline]
    pub fn accepts(&self, frame: &Frame) -> bool {
        let segmentation = match frame.gso.kind {
            GsoKind::None => true,
            GsoKind::Tcp4 => self.tso4,
            GsoKind::Tcp6 => self.tso6,
            GsoKind::Udp => false,
        };
        segmentation
            && frame.len() <= self.max_frame as usize
            && (self.chained || frame.segments() == 1)
            && (self.tx_checksum || !matches!(frame.checksum, crate::Checksum::Partial { .. }))
    }
}

/// Counters a driver keeps; monotonic, read by the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames the device lost before we saw them (ring full, no buffer).
    pub rx_missed: u64,
    /// Frames taken for sending, those in `tx_errors` excepted.
    pub tx_packets: u64,
    /// Bytes of those frames.
    pub tx_bytes: u64,
    /// Frames left with the caller because the device's ring was full; one that is refused again counts again.
    pub tx_full: u64,
    /// Frames the device refused for another cause (too long, link down); they are freed and counted here.
    pub tx_errors: u64,
    /// Frames received by a copy that other devices of the kind do without: the device has memory of its own.
    pub rx_copied: u64,
    /// Frames sent by such a copy.
    pub tx_copied: u64,
}

/// How a port runs, shown in `port_mode_info` and `sluice status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMode {
    /// `af_xdp`, `tap`, `mem`, `pcap`, `dpdk`.
    pub driver: &'static str,
    /// For example `zero-copy`, `copy`, `native`, `vnet_hdr`.
    pub mode: String,
    /// Why this mode and not a better one; empty if it is the best.
    pub reason: String,
}

/// One receive and transmit queue pair of a port, owned and polled by one worker.
pub trait Queue: Send {
    /// Appends at most `max` received frames to `out`, each with `port` left for the worker to set; returns their
    /// number. All headers are in a frame's first chunk, with room in front for an overlay's.
    fn rx(&mut self, cache: &mut PoolCache, out: &mut Burst, max: usize) -> usize;

    /// Takes frames from the front of `frames`, in order, as many as the device accepts; the rest stay in place.
    /// Returns the number taken. A frame the device can never send is taken, freed and counted in `tx_errors`.
    fn tx(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize;

    /// Does what is due without new frames: completions, fill ring, wake-up of the kernel. Called once a turn.
    fn flush(&mut self, cache: &mut PoolCache);

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Counters since it was opened.
    fn stats(&self) -> PortStats;

    /// How it runs.
    fn mode(&self) -> PortMode;

    /// A descriptor that is readable while frames wait, for an idle worker to sleep on; `None` if it must be polled.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Gives every chunk the driver holds back to `cache` and closes the device. Nothing is received afterwards.
    fn close(self: Box<Self>, cache: &mut PoolCache);
}
