//! A port made of two vectors: frames that were prepared go in, frames that were sent come out, or are freed at once as a
//! device's completions would be while time is taken. No device, no copy.

use sluice_port::{Burst, Capabilities, Frame, PoolCache, PortMode, PortStats, Queue};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Frames to receive (the last one first) and frames sent.
#[derive(Default)]
struct Ends {
    prepared: Vec<Frame>,
    sent: Vec<Frame>,
}

#[derive(Default)]
struct Shared {
    ends: Mutex<Ends>,
    keep: AtomicBool,
}

/// The bench's hold on a lane.
#[derive(Clone, Default)]
pub struct Lane(Arc<Shared>);

impl Lane {
    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a frame in line.
    pub fn prepare(&self, frame: Frame) {
        self.ends().prepared.push(frame);
    }

    /// Whether frames that are sent are kept for [`drain_sent`](Self::drain_sent) or freed.
    pub fn keep(&self, keep: bool) {
        self.0.keep.store(keep, Ordering::Relaxed);
    }

    /// Calls `f` with every frame that was sent.
    pub fn drain_sent(&self, mut f: impl FnMut(Frame)) {
        self.ends().sent.drain(..).for_each(&mut f);
    }

    /// The worker's end.
    pub fn queue(&self) -> Box<dyn Queue> {
        Box::new(LaneQueue(self.clone()))
    }
}

struct LaneQueue(Lane);

impl Queue for LaneQueue {
    fn rx(&mut self, _: &mut PoolCache, out: &mut Burst, max: usize) -> usize {
        let prepared = &mut self.0.ends().prepared;
        let n = prepared.len().min(max);
        let from = prepared.len() - n;
        out.extend(prepared.drain(from..));
        n
    }

    fn tx(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize {
        let n = frames.len();
        if self.0.0.keep.load(Ordering::Relaxed) {
            self.0.ends().sent.append(frames);
        } else {
            frames.drain(..).for_each(|frame| cache.free(frame));
        }
        n
    }

    fn flush(&mut self, _: &mut PoolCache) {}

    fn capabilities(&self) -> Capabilities {
        Capabilities { chained: true, max_frame: 65_535, ..Capabilities::default() }
    }

    fn stats(&self) -> PortStats {
        PortStats::default()
    }

    fn mode(&self) -> PortMode {
        PortMode { driver: "mem", mode: "bench".into(), reason: String::new() }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn close(self: Box<Self>, cache: &mut PoolCache) {
        let mut ends = self.0.ends();
        let Ends { prepared, sent } = &mut *ends;
        prepared.drain(..).chain(sent.drain(..)).for_each(|frame| cache.free(frame));
    }
}
