//! Frames on their way out, one lane for each port this worker sends on; lanes are flushed once a turn.

use crate::counters::{Counter, Counters};
use crate::gro;
use crate::reason::{Reason, Stage};
use sluice_port::{Burst, Capabilities, Frame, PoolCache, Queue};

/// Frames a lane holds for a device that refuses them; more are dropped as `TxFull`.
const LANE_LIMIT: usize = 512;
/// A lane this long is flushed before the turn is over.
const LANE_PRESSING: usize = LANE_LIMIT / 2;

struct Lane {
    frames: Burst,
    capabilities: Capabilities,
}

/// All lanes, by port number.
#[derive(Default)]
pub struct Outbox {
    lanes: Vec<Option<Lane>>,
    /// A lane has become long since the last look.
    pressing: bool,
}

impl Outbox {
    /// Whether a lane has become long since the last call.
    #[inline(always)]
    pub fn is_pressing(&mut self) -> bool {
        std::mem::take(&mut self.pressing)
    }

    /// Opens the lane of a port.
    pub fn open(&mut self, port: u16, capabilities: Capabilities) {
        let at = usize::from(port);
        if self.lanes.len() <= at {
            self.lanes.resize_with(at + 1, || None);
        }
        self.lanes[at] = Some(Lane { frames: Vec::with_capacity(LANE_LIMIT), capabilities });
    }

    /// Closes a lane and frees what it held; returns the number of frames lost.
    pub fn close(&mut self, port: u16, cache: &mut PoolCache) -> usize {
        let Some(lane) = self.lanes.get_mut(usize::from(port)).and_then(Option::take) else { return 0 };
        let lost = lane.frames.len();
        lane.frames.into_iter().for_each(|frame| cache.free(frame));
        lost
    }

    /// What the port behind a lane can do; `None`: another worker sends on it.
    #[inline(always)]
    pub fn capabilities(&self, port: u16) -> Option<&Capabilities> {
        self.lanes.get(usize::from(port)).and_then(|l| l.as_ref()).map(|l| &l.capabilities)
    }

    /// Whether this worker sends on a port.
    #[inline(always)]
    pub fn has(&self, port: u16) -> bool {
        self.lanes.get(usize::from(port)).is_some_and(Option::is_some)
    }

    /// Queues a frame in the ordinary case; gives it back where [`push`](Self::push) must look: no lane, no room, or a
    /// device that wants segments joined. The caller counts.
    #[inline(always)]
    pub fn push_plain(&mut self, port: u16, frame: Frame) -> Result<(), Frame> {
        match self.lanes.get_mut(usize::from(port)) {
            Some(Some(lane)) if lane.frames.len() < LANE_LIMIT && !lane.capabilities.wants_coalescing => {
                lane.frames.push(frame);
                self.pressing |= lane.frames.len() >= LANE_PRESSING;
                Ok(())
            }
            _ => Err(frame),
        }
    }

    /// Queues a frame and counts it in `sent`, unless the lane has no room (a drop) or the frame joins the one before it.
    #[inline]
    pub fn push(&mut self, port: u16, frame: Frame, cache: &mut PoolCache, counters: &Counters, sent: &Counter) {
        let Some(Some(lane)) = self.lanes.get_mut(usize::from(port)) else {
            counters.lost(Reason::TxFull, Stage::Send);
            return cache.free(frame);
        };
        if lane.frames.len() >= LANE_LIMIT {
            counters.lost(Reason::TxFull, Stage::Send);
            return cache.free(frame);
        }
        let frame = if lane.capabilities.wants_coalescing {
            match gro::coalesce(&mut lane.frames, frame) {
                Some(frame) => frame,
                None => return counters.consumed.add(1),
            }
        } else {
            frame
        };
        lane.frames.push(frame);
        sent.add(1);
        self.pressing |= lane.frames.len() >= LANE_PRESSING;
    }

    /// Hands a lane's frames to its device; those it refuses wait.
    #[inline]
    pub fn flush(&mut self, port: u16, queue: &mut dyn Queue, cache: &mut PoolCache) -> usize {
        match self.lanes.get_mut(usize::from(port)) {
            Some(Some(lane)) if !lane.frames.is_empty() => queue.tx(cache, &mut lane.frames),
            _ => 0,
        }
    }

    /// Frames waiting on a port.
    pub fn waiting(&self, port: u16) -> usize {
        self.lanes.get(usize::from(port)).and_then(|l| l.as_ref()).map_or(0, |l| l.frames.len())
    }

    /// Takes a lane's frames: ports without a device (replay).
    pub fn take(&mut self, port: u16) -> Burst {
        match self.lanes.get_mut(usize::from(port)) {
            Some(Some(lane)) => std::mem::take(&mut lane.frames),
            _ => Vec::new(),
        }
    }
}
