//! The driver conformance suite: the laws of [`Queue`] as named cases that any driver can be put through.
//!
//! A development tool, in the library so that every driver crate's tests can call it: write a [`Rig`] that opens the
//! device and its far end, then [`assert_conforms`]. Owner: the calling test's thread, which plays worker and far end in
//! turn. Invariant: each case opens a fresh device and ends with both ends closed, no chunk outstanding and the
//! counters equal to what the calls returned. Cost: milliseconds for an in-memory port; at most
//! [`Laws::patience`] for a frame that does not come.

mod cases;
mod run;
mod traffic;

use crate::pool::{FramePool, PoolCache, PoolOptions};
use crate::port::Queue;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What holds for a device, as far as devices differ.
#[derive(Clone, Copy, Debug)]
pub struct Laws {
    /// The far end can inject while the device is open. If not, the suite hands [`Rig::open`] what is to be received.
    pub live: bool,
    /// Every frame arrives. If not, frames may be missing, but none twice and none out of order.
    pub lossless: bool,
    /// Frames arrive as they were sent. If not, altered ones are taken for lost.
    pub intact: bool,
    /// Nobody else sends on the link. If not, frames that are not the suite's are ignored (a kernel's neighbour
    /// discovery on a fresh interface).
    pub quiet: bool,
    /// Frames that one `tx` call takes at most before the ring is full, into an idle device; `None` if the device
    /// cannot be filled that way.
    pub fills_after: Option<usize>,
    /// Longest frame without a segmentation request that the link carries, in bytes with the Ethernet header; capped
    /// by the queue's `max_frame`.
    pub longest: usize,
    /// Chunks of a frame at most, for a driver that takes chains up to a length (`Capabilities` has no word for it).
    pub segments: usize,
    /// Frames under way in each direction at most, so that buffers beyond the device (a socket's) do not overflow.
    pub window: usize,
    /// Frames in each direction of the stress case.
    pub stress_frames: u32,
    /// How long nothing may arrive before what is missing counts as lost.
    pub patience: Duration,
    /// Chunks of the pool that the suite makes.
    pub pool_frames: usize,
    /// Destination and source MAC address of frames towards the queue; those it sends have them the other way round.
    pub addresses: [[u8; 6]; 2],
}

impl Default for Laws {
    /// A lossless, quiet link with a far end that injects; frames as long as the queue sends.
    fn default() -> Self {
        Laws {
            live: true,
            lossless: true,
            intact: true,
            quiet: true,
            fills_after: None,
            longest: usize::MAX,
            segments: usize::MAX,
            window: 32,
            stress_frames: 5_000,
            patience: Duration::from_secs(2),
            pool_frames: 2048,
            addresses: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
        }
    }
}

/// The other side of the wire.
pub trait Peer {
    /// Sends a frame towards the queue; `false` if it could not now and is to be tried again.
    fn inject(&mut self, cache: &mut PoolCache, bytes: &[u8]) -> bool;

    /// Appends the frames that arrived from the queue since the last call, complete: checksums too.
    fn collect(&mut self, cache: &mut PoolCache, out: &mut Vec<Vec<u8>>);

    /// Ends the far side; frames of the pool that it holds go to `cache`.
    fn close(self: Box<Self>, cache: &mut PoolCache);
}

/// A device under test, with its far end.
pub struct Pair {
    /// Our side.
    pub queue: Box<dyn Queue>,
    /// The far side.
    pub peer: Box<dyn Peer>,
}

/// Makes devices for the suite.
pub trait Rig {
    /// What holds for them; asked once.
    fn laws(&self) -> Laws;

    /// Opens a fresh device on `pool`. The last pair has been closed before. Frames in `recorded` (empty for a
    /// [`live`](Laws::live) rig) are to be received, in this order.
    fn open(&mut self, pool: &Arc<FramePool>, recorded: &[Vec<u8>]) -> Result<Pair, String>;
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The law holds.
    Pass,
    /// The law does not apply, for this reason.
    Skip(String),
    /// The law is broken, in this way.
    Fail(String),
}

/// What the suite found, case by case.
#[derive(Clone, Debug)]
pub struct Report {
    /// Driver and mode, as the queue names them.
    pub device: String,
    /// Name and outcome of each case, in the order they ran.
    pub cases: Vec<(&'static str, Outcome)>,
}

impl Report {
    /// Whether no case failed.
    pub fn conforms(&self) -> bool {
        !self.cases.iter().any(|(_, outcome)| matches!(outcome, Outcome::Fail(_)))
    }

    /// The outcome of a case by name.
    pub fn outcome(&self, name: &str) -> Option<&Outcome> {
        self.cases.iter().find(|(case, _)| *case == name).map(|(_, outcome)| outcome)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.cases.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        writeln!(f, "{}", self.device)?;
        for (name, outcome) in &self.cases {
            match outcome {
                Outcome::Pass => writeln!(f, "  {name:width$}  pass")?,
                Outcome::Skip(why) => writeln!(f, "  {name:width$}  skip  {why}")?,
                Outcome::Fail(why) => writeln!(f, "  {name:width$}  FAIL  {why}")?,
            }
        }
        Ok(())
    }
}

/// Runs every case on a fresh device each.
///
/// # Panics
/// If the pool cannot be mapped.
pub fn run(rig: &mut dyn Rig) -> Report {
    let laws = rig.laws();
    let options = PoolOptions { frames: laws.pool_frames, huge_pages: false };
    let pool = FramePool::new(options).unwrap_or_else(|error| panic!("{error}"));
    let mut report = Report { device: "(not opened)".into(), cases: Vec::with_capacity(cases::ALL.len()) };
    for &(name, case) in cases::ALL {
        let mut bench = run::Bench { rig, laws, pool: &pool, device: &mut report.device };
        let outcome = match case(&mut bench) {
            Ok(()) => Outcome::Pass,
            Err(run::Stop::Skip(why)) => Outcome::Skip(why),
            Err(run::Stop::Fail(why)) => Outcome::Fail(why),
        };
        report.cases.push((name, outcome));
    }
    report
}

/// Runs every case and panics with the table if one failed; else returns the report.
///
/// # Panics
/// If a case failed.
#[track_caller]
pub fn assert_conforms(rig: &mut dyn Rig) -> Report {
    let report = run(rig);
    assert!(report.conforms(), "\n{report}");
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Frame;
    use crate::mem::{self, MemConfig, MemQueue};
    use crate::port::{Burst, Capabilities, PortMode, PortStats};
    use std::os::fd::BorrowedFd;

    /// Ways in which a driver can be wrong.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fault {
        LosesOnReceive,
        ReordersOnReceive,
        DeliversTwice,
        AltersOnSend,
        ReordersOnSend,
        IgnoresMax,
        OverwritesBurst,
        KeepsUnsendable,
        ForgetsUnsendable,
        ClaimsChecksums,
        LosesRefused,
        CountsNothing,
        LeaksOnClose,
        EatsHeadroom,
        CutsSegments,
    }

    struct Broken {
        inner: MemQueue,
        fault: Fault,
        kept: Vec<Frame>,
        seen: u64,
    }

    impl Queue for Broken {
        fn rx(&mut self, cache: &mut PoolCache, out: &mut Burst, max: usize) -> usize {
            if self.fault == Fault::OverwritesBurst {
                out.drain(..).for_each(|f| cache.free(f));
            }
            let max = if self.fault == Fault::IgnoresMax { usize::MAX } else { max };
            let start = out.len();
            self.inner.rx(cache, out, max);
            self.seen += (out.len() - start) as u64;
            match self.fault {
                Fault::LosesOnReceive if self.seen > 100 && out.len() > start => cache.free(out.pop().unwrap()),
                Fault::ReordersOnReceive => out[start..].reverse(),
                Fault::DeliversTwice if out.len() > start && self.seen > 50 => {
                    self.seen = 0;
                    out.extend(cache.alloc_copy(&out[start].to_vec()));
                }
                Fault::EatsHeadroom => {
                    for frame in &mut out[start..] {
                        let bytes = frame.to_vec();
                        frame.push(frame.headroom()).unwrap()[..bytes.len()].copy_from_slice(&bytes);
                        frame.truncate(bytes.len());
                    }
                }
                _ => {}
            }
            out.len() - start
        }

        fn tx(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize {
            match self.fault {
                Fault::AltersOnSend => frames.iter_mut().for_each(|f| f.head_mut()[50] ^= 1),
                Fault::ReordersOnSend => frames.reverse(),
                Fault::CutsSegments => {
                    frames.iter_mut().filter(|f| f.gso.size > 0).for_each(|f| _ = f.truncate(f.len() - 1));
                }
                Fault::ClaimsChecksums => frames.iter_mut().for_each(|f| f.checksum = crate::Checksum::None),
                Fault::KeepsUnsendable => {
                    let sendable = frames.iter().position(|f| f.len() > 1514).unwrap_or(frames.len());
                    let rest = frames.split_off(sendable);
                    let taken = self.inner.tx(cache, frames);
                    frames.extend(rest);
                    return taken;
                }
                Fault::ForgetsUnsendable => {
                    let long = frames.iter().filter(|f| f.len() > 1514).count();
                    for frame in frames.extract_if(.., |f| f.len() > 1514) {
                        cache.free(frame);
                    }
                    return self.inner.tx(cache, frames) + long;
                }
                _ => {}
            }
            let taken = self.inner.tx(cache, frames);
            if self.fault == Fault::LosesRefused {
                frames.drain(..).for_each(|f| cache.free(f));
            }
            taken
        }

        fn flush(&mut self, cache: &mut PoolCache) {
            if self.fault == Fault::LeaksOnClose && self.kept.is_empty() {
                self.kept.extend(cache.alloc());
            }
        }

        fn capabilities(&self) -> Capabilities {
            self.inner.capabilities()
        }

        fn stats(&self) -> PortStats {
            if self.fault == Fault::CountsNothing { PortStats::default() } else { self.inner.stats() }
        }

        fn mode(&self) -> PortMode {
            self.inner.mode()
        }

        fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        fn close(self: Box<Self>, cache: &mut PoolCache) {
            Box::new(self.inner).close(cache);
        }
    }

    struct BrokenRig(Fault);

    impl Rig for BrokenRig {
        fn laws(&self) -> Laws {
            Laws { fills_after: Some(64), patience: Duration::from_millis(20), ..Laws::default() }
        }

        fn open(&mut self, _pool: &Arc<FramePool>, _recorded: &[Vec<u8>]) -> Result<Pair, String> {
            let capabilities = Capabilities { max_frame: 1514, ..MemConfig::default().capabilities };
            let (inner, handle) = mem::queue(MemConfig { tx_ring: 64, capabilities, ..MemConfig::default() });
            let queue = Broken { inner, fault: self.0, kept: Vec::new(), seen: 0 };
            Ok(Pair { queue: Box::new(queue), peer: Box::new(handle) })
        }
    }

    #[test]
    fn a_driver_with_any_of_these_faults_is_caught_by_the_case_that_names_it() {
        use Fault::*;
        for (fault, case) in [
            (LosesOnReceive, "rx: every frame once, in order, intact"),
            (ReordersOnReceive, "rx: every frame once, in order, intact"),
            (DeliversTwice, "rx: every frame once, in order, intact"),
            (AltersOnSend, "tx: every frame once, in order, intact"),
            (ReordersOnSend, "tx: every frame once, in order, intact"),
            (IgnoresMax, "rx: appends at most max frames"),
            (OverwritesBurst, "rx: appends at most max frames"),
            (KeepsUnsendable, "tx: what cannot be sent is freed and counted"),
            (ForgetsUnsendable, "tx: what cannot be sent is freed and counted"),
            (ClaimsChecksums, "tx: partial checksums are completed"),
            (LosesRefused, "tx: a full ring leaves frames in place"),
            (CountsNothing, "stats: counters equal what the calls returned"),
            (LeaksOnClose, "close: no frame stays behind"),
            (CutsSegments, "tx: segmentation requests carry their payload"),
            (EatsHeadroom, "rx: room for an overlay's headers in front"),
        ] {
            let report = run(&mut BrokenRig(fault));
            assert!(matches!(report.outcome(case), Some(Outcome::Fail(_))), "{fault:?} passed:\n{report}");
        }
    }

    #[test]
    fn a_rig_that_cannot_open_fails_every_case_with_the_reason() {
        struct Absent;
        impl Rig for Absent {
            fn laws(&self) -> Laws {
                Laws { pool_frames: 64, fills_after: Some(1), ..Laws::default() }
            }
            fn open(&mut self, _pool: &Arc<FramePool>, _recorded: &[Vec<u8>]) -> Result<Pair, String> {
                Err("no such device".into())
            }
        }
        let report = run(&mut Absent);
        assert!(!report.conforms());
        assert!(
            report.to_string().lines().all(|l| l == "(not opened)" || l.contains("FAIL  no such device")),
            "{report}"
        );
    }
}
