//! Frames on their way out, one lane for each port this worker sends on; lanes are flushed once a turn.
//!
//! A lane may be held to a rate: its frames then wait until their bytes are due, and what would wait too long is dropped as
//! `TxFull`, like anything that a full port cannot take.

use crate::counters::{Counter, Counters};
use crate::gro;
use crate::meter::{Meter, Rate};
use crate::reason::{Reason, Stage};
use sluice_port::{Burst, Capabilities, Frame, PoolCache, Queue};

/// Frames a lane holds for a device that refuses them; more are dropped as `TxFull`.
const LANE_LIMIT: usize = 512;
/// When so many frames have been queued, lanes are flushed before the turn is over.
const PRESSING: usize = LANE_LIMIT / 2;

/// A shaped lane holds what its rate passes in this part of a second, and at least so many bytes.
const HOLD_PART: u64 = 10;
const HOLD_LEAST: u64 = 128 * 1024;

struct Lane {
    frames: Burst,
    capabilities: Capabilities,
    /// Neither joins segments nor is held to a rate.
    plain: bool,
    shaper: Option<Shaper>,
}

/// What a lane with a rate has besides.
struct Shaper {
    meter: Meter,
    /// Frames whose time has come and that the device has not taken yet.
    due: Burst,
    /// Bytes in the lane's `frames`.
    held: u64,
    /// Most of them.
    most: u64,
}

impl Shaper {
    fn new(rate: Rate, now: u64) -> Shaper {
        let most = (rate.bytes_per_second / HOLD_PART).max(HOLD_LEAST).max(rate.burst);
        Shaper { meter: Meter::new(rate, now), due: Vec::with_capacity(LANE_LIMIT), held: 0, most }
    }

    /// Moves frames whose time has come from the lane to `due`.
    fn release(&mut self, frames: &mut Burst, now: u64) {
        if !self.meter.open(now) || !self.due.is_empty() {
            return;
        }
        let mut count = 0;
        for frame in frames.iter() {
            if !self.meter.open(now) {
                break;
            }
            self.meter.charge(frame.len());
            self.held = self.held.saturating_sub(frame.len() as u64);
            count += 1;
        }
        self.due.extend(frames.drain(..count));
    }
}

/// All lanes, by port number.
#[derive(Default)]
pub struct Outbox {
    lanes: Vec<Option<Lane>>,
    /// Frames queued since the last flush before a turn's end, or the turn's beginning.
    queued: usize,
    /// The turn's time.
    now: u64,
}

impl Outbox {
    /// Whether so much has been queued that a lane may be long; counts anew then.
    #[inline(always)]
    pub fn is_pressing(&mut self) -> bool {
        let pressing = self.queued >= PRESSING;
        if pressing {
            self.queued = 0;
        }
        pressing
    }

    /// Counts frames put into [`plain_lane`](Self::plain_lane)s.
    #[inline(always)]
    pub fn count_queued(&mut self, n: usize) {
        self.queued += n;
    }

    /// Sets the turn's time.
    #[inline(always)]
    pub fn set_time(&mut self, now: u64) {
        self.now = now;
        self.queued = 0;
    }

    /// Holds a port to a rate, or to none any more.
    pub fn limit(&mut self, port: u16, rate: Option<Rate>) {
        let Some(Some(lane)) = self.lanes.get_mut(usize::from(port)) else { return };
        if lane.shaper.as_ref().map(|s| s.meter.rate()) == rate {
            return;
        }
        let mut shaper = rate.map(|rate| Shaper::new(rate, self.now));
        if let Some(old) = lane.shaper.take() {
            // What was due stays in front.
            lane.frames.splice(..0, old.due);
        }
        if let Some(shaper) = &mut shaper {
            shaper.held = lane.frames.iter().map(|frame| frame.len() as u64).sum();
        }
        lane.plain = shaper.is_none() && !lane.capabilities.wants_coalescing;
        lane.shaper = shaper;
    }

    /// Opens the lane of a port.
    pub fn open(&mut self, port: u16, capabilities: Capabilities) {
        let at = usize::from(port);
        if self.lanes.len() <= at {
            self.lanes.resize_with(at + 1, || None);
        }
        let plain = !capabilities.wants_coalescing;
        self.lanes[at] = Some(Lane { frames: Vec::with_capacity(LANE_LIMIT), capabilities, plain, shaper: None });
    }

    /// Closes a lane and frees what it held; returns the number of frames lost.
    pub fn close(&mut self, port: u16, cache: &mut PoolCache) -> usize {
        let Some(lane) = self.lanes.get_mut(usize::from(port)).and_then(Option::take) else { return 0 };
        let due = lane.shaper.map(|shaper| shaper.due).unwrap_or_default();
        let lost = lane.frames.len() + due.len();
        lane.frames.into_iter().chain(due).for_each(|frame| cache.free(frame));
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

    /// The lane of a port in the ordinary case, with room for one frame at least; the caller counts what it puts there. `None`
    /// where [`push`](Self::push) must look: no lane, no room, a rate, or a device that wants segments joined.
    #[inline(always)]
    pub fn plain_lane(&mut self, port: u16) -> Option<&mut Burst> {
        match self.lanes.get_mut(usize::from(port)) {
            Some(Some(lane)) if lane.plain && lane.frames.len() < LANE_LIMIT => Some(&mut lane.frames),
            _ => None,
        }
    }

    /// Queues a frame and counts it in `sent`, unless the lane has no room (a drop) or the frame joins the one before it.
    #[inline]
    pub fn push(&mut self, port: u16, frame: Frame, cache: &mut PoolCache, counters: &Counters, sent: &Counter) {
        let Some(Some(lane)) = self.lanes.get_mut(usize::from(port)) else {
            counters.lost(Reason::TxFull, Stage::Send);
            return cache.free(frame);
        };
        let bytes = frame.len() as u64;
        if lane.frames.len() >= LANE_LIMIT || lane.shaper.as_ref().is_some_and(|s| s.held + bytes > s.most) {
            counters.lost(Reason::TxFull, Stage::Send);
            return cache.free(frame);
        }
        if let Some(shaper) = &mut lane.shaper {
            shaper.held += bytes;
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
        self.queued += 1;
        sent.add(1);
    }

    /// Hands a lane's frames to its device; those it refuses wait.
    #[inline]
    pub fn flush(&mut self, port: u16, queue: &mut dyn Queue, cache: &mut PoolCache) -> usize {
        match self.lanes.get_mut(usize::from(port)) {
            Some(Some(Lane { frames, shaper: Some(shaper), .. })) => {
                shaper.release(frames, self.now);
                if shaper.due.is_empty() { 0 } else { queue.tx(cache, &mut shaper.due) }
            }
            Some(Some(lane)) if !lane.frames.is_empty() => queue.tx(cache, &mut lane.frames),
            _ => 0,
        }
    }

    /// Frames that wait for a port's device.
    pub fn waiting(&self, port: u16) -> usize {
        let lane = self.lanes.get(usize::from(port)).and_then(|l| l.as_ref());
        lane.map_or(0, |l| l.shaper.as_ref().map_or(l.frames.len(), |shaper| shaper.due.len()))
    }

    /// Whether frames of a port wait for their time.
    pub fn is_holding(&self, port: u16) -> bool {
        let lane = self.lanes.get(usize::from(port)).and_then(|l| l.as_ref());
        lane.is_some_and(|l| l.shaper.is_some() && !l.frames.is_empty())
    }

    /// Takes a lane's frames: ports without a device (replay).
    pub fn take(&mut self, port: u16) -> Burst {
        match self.lanes.get_mut(usize::from(port)) {
            Some(Some(lane)) => std::mem::take(&mut lane.frames),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_port::mem::{self, MemConfig};
    use sluice_port::{FramePool, PoolOptions};

    const RATE: Rate = Rate { bytes_per_second: 1_000_000, burst: 10_000 };
    const PORT: u16 = 3;
    const MS: u64 = 1_000_000;

    fn drain(far: &mut mem::MemHandle, cache: &mut PoolCache) -> u64 {
        std::iter::from_fn(|| far.collect()).map(|frame| cache.free(frame)).count() as u64
    }

    #[test]
    fn a_shaped_lane_passes_its_rate_holds_what_is_due_soon_and_drops_the_rest() {
        let pool = FramePool::new(PoolOptions { frames: 1024, huge_pages: false }).unwrap();
        let mut cache = pool.cache();
        let (mut queue, mut far) = mem::queue(MemConfig::default());
        let (counters, mut outbox) = (Counters::default(), Outbox::default());
        outbox.open(PORT, queue.capabilities());
        outbox.limit(PORT, Some(RATE));
        // 150 frames of 1,000 bytes: 128 KB may wait.
        for _ in 0..150 {
            assert!(outbox.plain_lane(PORT).is_none(), "a shaped lane is no plain one");
            let frame = cache.alloc_copy(&[0; 1000]).unwrap();
            outbox.push(PORT, frame, &mut cache, &counters, &counters.sent);
        }
        assert_eq!((counters.sent.get(), counters.drops_of(Reason::TxFull)), (131, 19));
        let mut received = 0;
        for ms in 0..=200 {
            outbox.set_time(ms * MS);
            outbox.flush(PORT, &mut queue, &mut cache);
            received += drain(&mut far, &mut cache);
            let allowed = 10 + ms + 1;
            assert!(received <= allowed && (received + 2 >= allowed || received == 131), "{received} at {ms} ms");
        }
        assert_eq!(received, 131);
        assert!(!outbox.is_holding(PORT) && outbox.waiting(PORT) == 0);
        assert_eq!(outbox.close(PORT, &mut cache), 0);
    }

    #[test]
    fn a_limit_that_goes_lets_everything_out_and_none_is_lost() {
        let pool = FramePool::new(PoolOptions { frames: 64, huge_pages: false }).unwrap();
        let mut cache = pool.cache();
        let (mut queue, mut far) = mem::queue(MemConfig::default());
        let (counters, mut outbox) = (Counters::default(), Outbox::default());
        outbox.open(PORT, queue.capabilities());
        outbox.limit(PORT, Some(RATE));
        for _ in 0..30 {
            let frame = cache.alloc_copy(&[0; 1000]).unwrap();
            outbox.push(PORT, frame, &mut cache, &counters, &counters.sent);
        }
        outbox.flush(PORT, &mut queue, &mut cache);
        assert!(outbox.is_holding(PORT));
        outbox.limit(PORT, None);
        outbox.flush(PORT, &mut queue, &mut cache);
        assert_eq!(drain(&mut far, &mut cache), 30);
    }
}
