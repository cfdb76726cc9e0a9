//! One case's device and the traffic on it: offers, sends, receives and collects in turn until all is settled.
//!
//! Owner: the suite's thread, which is worker and far end at once. Invariant: whatever the queue's calls return is
//! added up here and compared with its counters when the case ends.

use super::cases::CHUNK_DATA;
use super::traffic::{Identity, Ledger, SHORTEST, build};
use super::{Laws, Peer, Rig};
use crate::frame::Frame;
use crate::offload::Checksum;
use crate::pool::{FramePool, PoolCache};
use crate::port::{Burst, Capabilities, PortStats, Queue};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Why a case did not pass.
pub(super) enum Stop {
    Skip(String),
    Fail(String),
}

pub(super) type Verdict = Result<(), Stop>;

/// A law, and what to say if it is broken.
pub(super) fn ensure(holds: bool, why: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(Stop::Fail(why())) }
}

/// How a frame is handed to the queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    /// In several chunks, cut behind the headers.
    pub chained: bool,
    /// With the transport checksum left to the device.
    pub partial: bool,
}

/// What a case opens its device with.
pub(super) struct Bench<'a> {
    pub rig: &'a mut dyn Rig,
    pub laws: Laws,
    pub pool: &'a Arc<FramePool>,
    /// Name of the device for the report.
    pub device: &'a mut String,
}

impl Bench<'_> {
    /// Opens a device that is to receive `incoming`.
    pub(super) fn open(&mut self, incoming: &[Identity]) -> Result<Run, Stop> {
        let laws = self.laws;
        let baseline = self.pool.outstanding();
        let mut rx = Ledger::new(laws);
        let mut recorded = Vec::new();
        let mut offer = VecDeque::new();
        for &id in incoming {
            if laws.live {
                offer.push_back(id);
            } else {
                recorded.push(build(id, &laws.addresses).bytes);
                rx.expect(id);
            }
        }
        let pair = self.rig.open(self.pool, &recorded).map_err(Stop::Fail)?;
        let mode = pair.queue.mode();
        *self.device = format!("{} ({})", mode.driver, mode.mode);
        Ok(Run {
            capabilities: pair.queue.capabilities(),
            queue: pair.queue,
            peer: pair.peer,
            laws,
            pool: Arc::clone(self.pool),
            cache: self.pool.cache(),
            baseline,
            offer,
            waiting: VecDeque::new(),
            out: Burst::new(),
            rx,
            tx: Ledger::new(laws),
            returned: PortStats::default(),
            least_headroom: usize::MAX,
            short_head: None,
            collected: Vec::new(),
        })
    }

    /// Longest frame of this device and link without a segmentation request, for a queue that sends `max_frame`.
    pub(super) fn longest(&self, capabilities: &Capabilities) -> usize {
        self.laws.longest.min(capabilities.max_frame as usize).min(super::traffic::LONGEST)
    }
}

/// An open device and the state of its traffic.
pub(super) struct Run {
    pub queue: Box<dyn Queue>,
    pub peer: Box<dyn Peer>,
    pub capabilities: Capabilities,
    pub laws: Laws,
    pub pool: Arc<FramePool>,
    pub cache: PoolCache,
    baseline: usize,
    /// For the far end to inject.
    offer: VecDeque<Identity>,
    /// For the queue to send, not built yet.
    waiting: VecDeque<(Identity, Shape)>,
    /// Built, and not taken yet.
    pub out: Burst,
    pub rx: Ledger,
    pub tx: Ledger,
    /// What the queue's calls returned: frames and bytes received, frames and bytes taken, frames left.
    pub returned: PortStats,
    /// Of all frames received.
    pub least_headroom: usize,
    /// A received frame whose headers were not all in its first chunk: bytes there, bytes in all.
    pub short_head: Option<(usize, usize)>,
    collected: Vec<Vec<u8>>,
}

impl Run {
    /// Has the queue send these.
    pub(super) fn send(&mut self, ids: impl IntoIterator<Item = Identity>, shape: Shape) {
        self.waiting.extend(ids.into_iter().map(|id| (id, shape)));
    }

    /// Lets the far end inject what fits the window and it accepts; how many.
    pub(super) fn inject(&mut self) -> usize {
        let mut n = 0;
        while self.rx.pending < self.laws.window
            && let Some(&id) = self.offer.front()
        {
            if !self.peer.inject(&mut self.cache, &build(id, &self.laws.addresses).bytes) {
                break;
            }
            self.rx.expect(id);
            self.offer.pop_front();
            n += 1;
        }
        n
    }

    /// Builds frames into `out` until `n` are there or the window is full.
    pub(super) fn build(&mut self, n: usize) -> Verdict {
        while self.out.len() < n
            && self.tx.pending < self.laws.window.max(n)
            && let Some((id, shape)) = self.waiting.pop_front()
        {
            let frame = self.frame(id, shape)?;
            self.out.push(frame);
            self.tx.expect(id);
        }
        Ok(())
    }

    /// Builds one frame in this shape.
    pub(super) fn frame(&mut self, id: Identity, shape: Shape) -> Result<Frame, Stop> {
        let built = build(id, &self.laws.addresses);
        let mut bytes = built.bytes;
        if shape.partial {
            bytes[built.start + built.offset..][..2].copy_from_slice(&built.pseudo.to_be_bytes());
        }
        let empty = || Stop::Fail("the pool ran empty: frames are held that should have come back".into());
        // Cut behind the headers, then into odd pieces, one of them a single byte; each as small as leaves the rest few
        // enough chunks.
        let least = |len: usize, chunks_after: usize| len.saturating_sub(chunks_after.saturating_mul(CHUNK_DATA));
        let most = self.laws.segments;
        let cut = if shape.chained { SHORTEST.max(least(bytes.len(), most - 1)).min(bytes.len()) } else { bytes.len() };
        let mut frame = self.cache.alloc_copy(&bytes[..cut]).ok_or_else(empty)?;
        let (mut rest, mut piece) = (&bytes[cut..], 1);
        while !rest.is_empty() {
            let size = least(rest.len(), most.saturating_sub(frame.segments() + 1)).max(piece).min(rest.len());
            let (now, later) = rest.split_at(size);
            frame.append(self.cache.alloc_copy(now).ok_or_else(empty)?);
            (rest, piece) = (later, (piece * 7 + 4).min(CHUNK_DATA));
        }
        if shape.partial {
            frame.checksum = Checksum::Partial { start: built.start as u16, offset: built.offset as u16 };
        }
        Ok(frame)
    }

    /// One `tx` call; checks its result against what it left.
    pub(super) fn tx(&mut self) -> Result<usize, Stop> {
        let before = self.out.len();
        let sizes: Vec<u64> = self.out.iter().map(|f| f.len() as u64).collect();
        let taken = self.queue.tx(&mut self.cache, &mut self.out);
        ensure(taken + self.out.len() == before, || {
            format!("tx of {before} frames returned {taken} and left {}", self.out.len())
        })?;
        self.returned.tx_packets += taken as u64;
        self.returned.tx_bytes += sizes[..taken].iter().sum::<u64>();
        self.returned.tx_full += self.out.len() as u64;
        Ok(taken)
    }

    /// One `rx` call behind what is in `burst` already; checks its result.
    pub(super) fn rx(&mut self, burst: &mut Burst, max: usize) -> Result<usize, Stop> {
        let before = burst.len();
        let n = self.queue.rx(&mut self.cache, burst, max);
        ensure(burst.len() == before + n, || {
            format!("rx returned {n}, but the burst went from {before} to {} frames", burst.len())
        })?;
        ensure(n <= max, || format!("rx with max {max} gave {n} frames"))?;
        self.returned.rx_packets += n as u64;
        self.returned.rx_bytes += burst[before..].iter().map(|f| f.len() as u64).sum::<u64>();
        Ok(n)
    }

    /// Checks received frames against what was injected, and ends them.
    pub(super) fn arrived(&mut self, frames: impl IntoIterator<Item = Frame>) {
        for frame in frames {
            if self.rx.take(&frame.to_vec()) {
                self.least_headroom = self.least_headroom.min(frame.headroom());
                if frame.head_len() < frame.len().min(SHORTEST) {
                    self.short_head = Some((frame.head_len(), frame.len()));
                }
            }
            self.cache.free(frame);
        }
    }

    /// Takes what the far end got.
    pub(super) fn collect(&mut self) -> usize {
        let mut frames = std::mem::take(&mut self.collected);
        self.peer.collect(&mut self.cache, &mut frames);
        let ours = frames.iter().filter(|bytes| self.tx.take(bytes)).count();
        frames.clear();
        self.collected = frames;
        ours
    }

    /// A turn of both ends; whether anything moved.
    fn step(&mut self) -> Result<bool, Stop> {
        let mut moved = self.inject() > 0;
        self.build(16)?;
        moved |= self.tx()? > 0;
        self.queue.flush(&mut self.cache);
        let mut burst = Burst::new();
        moved |= self.rx(&mut burst, 64)? > 0;
        self.arrived(burst);
        moved |= self.collect() > 0;
        Ok(moved)
    }

    /// Turns until everything offered and sent has arrived, or nothing has moved for the rig's patience.
    pub(super) fn settle(&mut self) -> Verdict {
        let mut last = Instant::now();
        loop {
            if self.step()? {
                last = Instant::now();
            }
            self.problem()?;
            let all_gone = self.offer.is_empty() && self.waiting.is_empty() && self.out.is_empty();
            if all_gone && self.rx.pending == 0 && self.tx.pending == 0 {
                return Ok(());
            }
            if last.elapsed() > self.laws.patience {
                // On a link that loses, what the window waits for may be lost; then it goes on without.
                let stuck = self.rx.pending == 0 && self.tx.pending == 0;
                self.rx.give_up();
                self.tx.give_up();
                self.problem()?;
                if all_gone {
                    return Ok(());
                }
                ensure(!stuck, || {
                    format!("{} frames were neither taken nor received for {:?}", self.left(), self.laws.patience)
                })?;
                last = Instant::now();
            }
            if !last.elapsed().is_zero() {
                std::thread::yield_now();
            }
        }
    }

    fn left(&self) -> usize {
        self.offer.len() + self.waiting.len() + self.out.len()
    }

    fn problem(&self) -> Verdict {
        match self.rx.problem.as_ref().map(|p| ("received", p)).or(self.tx.problem.as_ref().map(|p| ("sent", p))) {
            None => Ok(()),
            Some((way, problem)) => Err(Stop::Fail(format!("{way}: {problem}"))),
        }
    }

    /// Settles, compares the counters with what the calls returned, closes both ends and looks for lost chunks.
    pub(super) fn finish(mut self) -> Verdict {
        self.settle()?;
        let (stats, returned) = (self.queue.stats(), self.returned);
        let counted = (stats.rx_packets, stats.rx_bytes, stats.tx_packets + stats.tx_errors);
        let called = (returned.rx_packets, returned.rx_bytes, returned.tx_packets);
        ensure(counted == called, || {
            format!("received, bytes, taken: the calls returned {called:?}, the counters say {counted:?}")
        })?;
        let bytes_fit = if stats.tx_errors == 0 {
            stats.tx_bytes == returned.tx_bytes
        } else {
            stats.tx_bytes <= returned.tx_bytes
        };
        ensure(bytes_fit, || format!("{} bytes were taken, tx_bytes is {}", returned.tx_bytes, stats.tx_bytes))?;
        // A driver may leave frames for another cause than a full ring (a budget per call), so at most.
        ensure(stats.tx_full <= returned.tx_full, || {
            format!("{} times a frame was left, tx_full is {}", returned.tx_full, stats.tx_full)
        })?;
        self.close(false)
    }

    /// Closes both ends and looks for lost chunks.
    pub(super) fn close(self, peer_first: bool) -> Verdict {
        let Run { queue, peer, mut cache, out, pool, baseline, .. } = self;
        out.into_iter().for_each(|frame| cache.free(frame));
        if peer_first {
            peer.close(&mut cache);
            queue.close(&mut cache);
        } else {
            queue.close(&mut cache);
            peer.close(&mut cache);
        }
        cache.account();
        let outstanding = pool.outstanding();
        ensure(outstanding == baseline, || format!("{} chunks did not come back", outstanding as i64 - baseline as i64))
    }
}
