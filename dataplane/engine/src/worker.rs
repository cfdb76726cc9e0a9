//! One worker: its queues around its pipeline, one `turn` at a time.
//!
//! ```text
//! turn: adopt tables ─▶ gather from all queues into one batch ─▶ pipeline ─▶ rings of other workers ─▶ flush ─▶ upkeep
//! ```
//! A turn gathers from all of a worker's queues, so that many quiet pods still make full batches. Queues that have been
//! silent are only asked now and then unless somebody says that they are readable. Sleeping and pinning are the caller's.

use crate::counters::Counters;
use crate::item::{BATCH, Item};
use crate::meter::{Meter, Rate};
use crate::pipeline::Pipeline;
use crate::trace::Trace;
use sluice_port::{Burst, PortMode, PortStats, Queue};
use sluice_snapshot::Reader;
use sluice_tables::Tables;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Turns a queue is asked after it last had something.
const WARM_TURNS: u32 = 256;
/// A silent queue is asked every so many turns.
const COLD_EVERY: u32 = 64;

struct Attached {
    port: u16,
    queue: Box<dyn Queue>,
    /// Turns left in which it is asked each time.
    warm: u32,
    /// What is taken from it, where that is held to a rate.
    meter: Option<Meter>,
    /// Nothing is taken from it until there is credit again; what waits, waits in the device.
    paused: bool,
}

/// The longest frame a device may hand over.
const LONGEST_FRAME: u64 = 65_536;

/// A worker; owned and run by one thread.
pub struct Worker {
    pipeline: Pipeline,
    reader: Reader<Tables>,
    stale: bool,
    queues: Vec<Attached>,
    /// What this turn has gathered.
    burst: Burst,
    handed: Vec<Item>,
    turns: u32,
}

impl Worker {
    /// A worker around a pipeline; `reader` brings new tables.
    pub fn new(pipeline: Pipeline, reader: Reader<Tables>) -> Self {
        Worker {
            pipeline,
            reader,
            stale: false,
            queues: Vec::with_capacity(1024),
            burst: Vec::with_capacity(BATCH),
            handed: Vec::with_capacity(BATCH),
            turns: 0,
        }
    }

    /// Its counters, for readers on other threads.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(self.pipeline.counters())
    }

    /// The pipeline, for tests and benches.
    pub fn pipeline(&mut self) -> &mut Pipeline {
        &mut self.pipeline
    }

    /// Sets or removes the listener.
    pub fn set_trace(&mut self, trace: Option<Box<dyn Trace>>) {
        self.pipeline.listen(trace);
    }

    /// Takes over a queue of a port. The tables that know the port must be applied first.
    pub fn attach(&mut self, port: u16, queue: Box<dyn Queue>) {
        self.pipeline.outbox.open(port, queue.capabilities());
        self.queues.push(Attached { port, queue, warm: WARM_TURNS, meter: None, paused: false });
    }

    /// Holds a port to rates, towards the device and from it; `None` for no limit. What comes from the device faster waits
    /// in the device, so that whoever sends it notices.
    pub fn limit(&mut self, port: u16, towards: Option<Rate>, from: Option<Rate>) {
        let now = self.pipeline.now;
        self.pipeline.outbox.limit(port, towards);
        if let Some(q) = self.queues.iter_mut().find(|q| q.port == port)
            && q.meter.map(|m| m.rate()) != from
        {
            q.meter = from.map(|rate| Meter::new(rate, now));
            q.paused = false;
        }
    }

    /// Gives up a port: its queue is closed and what waited for it is freed. `false` if it has none here.
    pub fn detach(&mut self, port: u16) -> bool {
        let Some(at) = self.queues.iter().position(|q| q.port == port) else { return false };
        let attached = self.queues.remove(at);
        attached.queue.close(&mut self.pipeline.cache);
        self.pipeline.outbox.close(port, &mut self.pipeline.cache);
        true
    }

    /// Ports it polls, with their counters and modes.
    pub fn ports(&self) -> impl Iterator<Item = (u16, PortStats, PortMode)> {
        self.queues.iter().map(|q| (q.port, q.queue.stats(), q.queue.mode()))
    }

    /// Descriptors to sleep on, by position for [`mark_ready`](Self::mark_ready); queues without one must be polled.
    pub fn wait_fds(&self) -> impl Iterator<Item = (usize, Option<BorrowedFd<'_>>)> {
        self.queues.iter().enumerate().map(|(at, q)| (at, if q.paused { None } else { q.queue.wait_fd() }))
    }

    /// Says that the queue at a position is readable.
    pub fn mark_ready(&mut self, at: usize) {
        if let Some(q) = self.queues.get_mut(at) {
            q.warm = q.warm.max(2);
        }
    }

    /// One turn at time `now` (nanoseconds of a monotonic clock); returns the number of packets handled.
    pub fn turn(&mut self, now: u64) -> usize {
        self.pipeline.set_time(now);
        if self.reader.refresh() || self.stale {
            self.stale = !self.pipeline.adopt(self.reader.get());
            if !self.stale {
                self.pipeline.resume();
            }
        }
        self.turns = self.turns.wrapping_add(1);
        let mut handled = 0;
        let cold_turn = self.turns.is_multiple_of(COLD_EVERY);
        for at in 0..self.queues.len() {
            let q = &mut self.queues[at];
            if q.warm == 0 && !cold_turn {
                continue;
            }
            let gathered = self.burst.len();
            let mut room = BATCH - gathered;
            if let Some(meter) = &mut q.meter {
                q.paused = !meter.open(now);
                if q.paused {
                    q.warm = q.warm.max(2);
                    continue;
                }
                room = room.min(1 + (meter.credit() / LONGEST_FRAME) as usize);
            }
            let n = q.queue.rx(&mut self.pipeline.cache, &mut self.burst, room);
            if let Some(meter) = &mut q.meter {
                self.burst.iter().skip(gathered).for_each(|frame| meter.charge(frame.len()));
            }
            q.warm = if n > 0 { WARM_TURNS } else { q.warm.saturating_sub(1) };
            for frame in self.burst.iter_mut().skip(gathered) {
                frame.port = q.port;
            }
            if self.burst.len() >= BATCH {
                handled += self.burst.len();
                self.pipeline.receive(&mut self.burst);
                if self.pipeline.outbox.is_pressing() {
                    self.flush_lanes();
                }
            }
        }
        if !self.burst.is_empty() {
            handled += self.burst.len();
            self.pipeline.receive(&mut self.burst);
        }
        handled += self.pipeline.take_handed(&mut self.handed);
        for q in &mut self.queues {
            self.pipeline.outbox.flush(q.port, q.queue.as_mut(), &mut self.pipeline.cache);
            if q.warm > 0 || cold_turn || self.pipeline.outbox.waiting(q.port) > 0 {
                q.queue.flush(&mut self.pipeline.cache);
            }
        }
        self.pipeline.upkeep();
        let counters = &self.pipeline.counters;
        counters.turns.add(1);
        if handled > 0 {
            counters.busy_turns.add(1);
        }
        handled
    }

    /// Hands what is waiting to the devices before the turn is over: many full queues may send to one lane.
    #[cold]
    fn flush_lanes(&mut self) {
        for q in &mut self.queues {
            self.pipeline.outbox.flush(q.port, q.queue.as_mut(), &mut self.pipeline.cache);
        }
    }

    /// Workers that this one has handed packets to since the last call, one bit each: they may have to be woken.
    pub fn take_touched(&mut self) -> u64 {
        self.pipeline.handoff.take_touched()
    }

    /// Whether frames wait for a device that refused them: the worker must not sleep for long.
    pub fn has_waiting(&self) -> bool {
        self.queues.iter().any(|q| self.pipeline.outbox.waiting(q.port) > 0)
    }

    /// Whether a port is held to its rate just now: the worker must look again within a millisecond or so.
    pub fn is_holding(&self) -> bool {
        self.queues.iter().any(|q| q.paused || self.pipeline.outbox.is_holding(q.port))
    }

    /// To be called before sleeping: the queues' upkeep, so that nothing due waits for the wake-up, and a longer look at
    /// idle flows.
    pub fn before_sleep(&mut self) {
        for q in &mut self.queues {
            q.queue.flush(&mut self.pipeline.cache);
        }
        self.pipeline.idle_upkeep();
    }

    /// Closes every queue and gives all frames back.
    pub fn close(mut self) {
        while let Some(attached) = self.queues.pop() {
            attached.queue.close(&mut self.pipeline.cache);
            self.pipeline.outbox.close(attached.port, &mut self.pipeline.cache);
        }
        self.pipeline.let_go();
    }
}
