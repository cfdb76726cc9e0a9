//! A port made of two rings: a round of prepared frames goes in, frames that were sent come out, or are freed at once as a
//! device's completions would be while time is taken. No device, no copy of a packet, no locked instruction: a worker pays
//! here what the cheapest driver would cost it, one descriptor taken and one given back.

use rtrb::{Consumer, Producer, RingBuffer};
use sluice_port::prefetch::prefetch;
use sluice_port::{Burst, Capabilities, Frame, PoolCache, PortMode, PortStats, Queue};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Frames that are handed over together.
const CHUNK: usize = 64;

/// The bench's end.
pub struct Lane {
    /// What is being prepared.
    chunk: Burst,
    chunks: Producer<Burst>,
    /// Vectors that are empty again.
    spare: Consumer<Burst>,
    sent: Consumer<Frame>,
    keep: Arc<AtomicBool>,
}

struct LaneQueue {
    chunks: Consumer<Burst>,
    /// A chunk of which the worker had room for a part only, the rest of it.
    rest: Burst,
    spare: Producer<Burst>,
    sent: Producer<Frame>,
    keep: Arc<AtomicBool>,
}

/// A lane for rounds of at most so many frames, and the worker's end of it.
pub fn open(frames: usize) -> (Lane, Box<dyn Queue>) {
    let places = frames.div_ceil(CHUNK) + 1;
    let (to_worker, chunks) = RingBuffer::new(places);
    let (to_spare, spare) = RingBuffer::new(places);
    let (to_bench, sent) = RingBuffer::new(frames);
    let keep = Arc::new(AtomicBool::new(false));
    let lane = Lane { chunk: Vec::with_capacity(CHUNK), chunks: to_worker, spare, sent, keep: Arc::clone(&keep) };
    (lane, Box::new(LaneQueue { chunks, rest: Vec::with_capacity(CHUNK), spare: to_spare, sent: to_bench, keep }))
}

impl Lane {
    /// Puts a frame in line; it goes with the next [`start`](Self::start) at the latest. `None`: the lane is full.
    pub fn prepare(&mut self, frame: Frame) -> Option<()> {
        self.chunk.push(frame);
        if self.chunk.len() < CHUNK { Some(()) } else { self.start() }
    }

    /// Hands the rest of what is prepared to the worker. `None`: the lane is full.
    pub fn start(&mut self) -> Option<()> {
        if self.chunk.is_empty() {
            return Some(());
        }
        let next = self.spare.pop().unwrap_or_else(|_| Vec::with_capacity(CHUNK));
        self.chunks.push(std::mem::replace(&mut self.chunk, next)).ok()
    }

    /// Whether frames that are sent are kept for [`drain_sent`](Self::drain_sent) or freed.
    pub fn keep(&self, keep: bool) {
        self.keep.store(keep, Ordering::Relaxed);
    }

    /// Calls `f` with every frame that was sent.
    pub fn drain_sent(&mut self, mut f: impl FnMut(Frame)) {
        while let Ok(frame) = self.sent.pop() {
            f(frame);
        }
    }
}

impl Queue for LaneQueue {
    fn rx(&mut self, _: &mut PoolCache, out: &mut Burst, max: usize) -> usize {
        let mut chunk = match self.rest.is_empty() {
            true => match self.chunks.pop() {
                Ok(chunk) => chunk,
                Err(_) => return 0,
            },
            false => std::mem::take(&mut self.rest),
        };
        let n = chunk.len().min(max);
        if n == chunk.len() {
            out.append(&mut chunk);
            // A full ring of spare vectors frees this one.
            let _ = self.spare.push(chunk);
        } else {
            out.extend(chunk.drain(..n));
            self.rest = chunk;
        }
        // As drivers do that know what comes next in their ring: the next burst's headers are on their way while the worker
        // has this one in hand.
        if let Ok(next) = self.chunks.peek() {
            for frame in next {
                prefetch(frame.data_ptr());
                prefetch(frame.data_ptr().wrapping_add(64));
            }
        }
        n
    }

    fn tx(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize {
        if !self.keep.load(Ordering::Relaxed) {
            let n = frames.len();
            cache.free_first(frames, n);
            return n;
        }
        let n = frames.len().min(self.sent.slots());
        for frame in frames.drain(..n) {
            // There is room for `n`: only the bench takes out.
            if let Err(rtrb::PushError::Full(frame)) = self.sent.push(frame) {
                cache.free(frame);
            }
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

    fn close(mut self: Box<Self>, cache: &mut PoolCache) {
        self.rest.drain(..).for_each(|frame| cache.free(frame));
        while let Ok(chunk) = self.chunks.pop() {
            chunk.into_iter().for_each(|frame| cache.free(frame));
        }
    }
}
