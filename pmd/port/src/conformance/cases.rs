//! The cases: each opens a device, puts it through one law, and ends with everything closed and counted.
//!
//! Owner: the suite's thread. A law that a device cannot be held to is skipped with the reason, never silently.

use super::run::{Bench, Run, Shape, Stop, Verdict, ensure};
use super::traffic::{Direction, Identity, Numbers, SHORTEST};
use crate::faulty::Xorshift;
use crate::frame::{CHUNK, HEADROOM};
use crate::offload::{Gso, GsoKind};
use crate::port::{Burst, PortStats, Queue};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::time::{Duration, Instant};

type Case = fn(&mut Bench<'_>) -> Verdict;

/// Every case with its name, in the order they run.
pub(super) const ALL: &[(&str, Case)] = &[
    ("open: a fresh queue is idle and says what it is", open_idle),
    ("rx: every frame once, in order, intact", rx_all),
    ("rx: appends at most max frames", rx_max),
    ("rx: room for an overlay's headers in front", rx_headroom),
    ("rx: frames longer than a chunk", rx_long),
    ("tx: every frame once, in order, intact", tx_all),
    ("tx: chained frames", tx_chained),
    ("tx: frames longer than a chunk", tx_long),
    ("tx: what cannot be sent is freed and counted", tx_unsendable),
    ("tx: a full ring leaves frames in place", tx_full),
    ("tx: partial checksums are completed", tx_partial),
    ("tx: segmentation requests carry their payload", tx_segmentation),
    ("wait: the descriptor shows that frames wait", wait_shows),
    ("stats: counters equal what the calls returned", stats_grow),
    ("stress: both directions at once, all sizes", stress),
    ("close: no frame stays behind", close_returns),
];

/// Bytes that VXLAN over IPv6 puts in front of a frame: Ethernet, IPv6, UDP, VXLAN.
const OVERLAY: usize = 14 + 40 + 8 + 8;
/// Longest data of a chunk that was received or copied.
pub(super) const CHUNK_DATA: usize = CHUNK - HEADROOM;

fn skip(why: impl Into<String>) -> Verdict {
    Err(Stop::Skip(why.into()))
}

/// Frames of all lengths from the shortest to `longest`, edges included, in no order of length.
fn lengths(direction: Direction, n: u32, longest: usize) -> Vec<Identity> {
    let mut numbers = Numbers::new(direction);
    let mut random = Xorshift::new(u64::from(n));
    let usual = longest.clamp(SHORTEST, 1514);
    let edges = [SHORTEST, SHORTEST + 1, usual, usual - 1];
    (0..n as usize)
        .map(|i| {
            let any = SHORTEST + random.below((usual - SHORTEST + 1) as u64) as usize;
            numbers.next(edges.get(i % 64).copied().unwrap_or(any))
        })
        .collect()
}

/// Lengths around and above a chunk, for links that carry them.
fn long_lengths(direction: Direction, longest: usize) -> Vec<Identity> {
    let mut numbers = Numbers::new(direction);
    let wanted = [CHUNK_DATA + 1, CHUNK, CHUNK + 1, 9014, 2 * CHUNK_DATA + 1, 16_000, longest - 1, longest];
    wanted.into_iter().filter(|&len| len <= longest).map(|len| numbers.next(len)).collect()
}

fn open_idle(bench: &mut Bench<'_>) -> Verdict {
    let mut run = bench.open(&[])?;
    ensure(run.capabilities.max_frame as usize >= SHORTEST, || {
        format!("max_frame is {} bytes", run.capabilities.max_frame)
    })?;
    ensure(!run.queue.mode().driver.is_empty(), || "mode names no driver".into())?;
    if bench.laws.quiet {
        let stats = run.queue.stats();
        ensure(stats == PortStats::default(), || format!("counters start at {stats:?}"))?;
        let mut burst = Burst::new();
        let n = run.rx(&mut burst, 32)?;
        run.arrived(burst);
        ensure(n == 0, || format!("{n} frames received that nobody sent"))?;
    }
    let taken = run.tx()?;
    ensure(taken == 0, || format!("tx of no frames took {taken}"))?;
    for _ in 0..3 {
        run.queue.flush(&mut run.cache);
    }
    run.finish()
}

fn rx_all(bench: &mut Bench<'_>) -> Verdict {
    let ids = lengths(Direction::Rx, 600, bench.laws.longest);
    bench.open(&ids)?.finish()
}

fn rx_max(bench: &mut Bench<'_>) -> Verdict {
    let ids = lengths(Direction::Rx, 20, bench.laws.longest);
    let mut run = bench.open(&ids)?;
    // A frame that was in the burst before must stay where it is.
    let Some(own) = run.cache.alloc_copy(b"mine") else { return Err(Stop::Fail("the pool is empty".into())) };
    let mark = own.index();
    let mut burst = vec![own];
    let deadline = Instant::now() + bench.laws.patience;
    while burst.len() < 1 + ids.len() && Instant::now() < deadline {
        run.inject();
        run.queue.flush(&mut run.cache);
        let none = run.rx(&mut burst, 0)?;
        ensure(none == 0, || format!("rx with max 0 gave {none} frames"))?;
        run.rx(&mut burst, 3)?;
        ensure(burst.first().map(|f| f.index()) == Some(mark), || "rx disturbed what was in the burst".into())?;
    }
    let own = burst.remove(0);
    run.cache.free(own);
    run.arrived(burst);
    run.finish()
}

fn rx_headroom(bench: &mut Bench<'_>) -> Verdict {
    let ids = lengths(Direction::Rx, 40, bench.laws.longest);
    let mut run = bench.open(&ids)?;
    run.settle()?;
    ensure(run.least_headroom >= OVERLAY, || {
        format!("a frame came with {} bytes of headroom, an overlay needs {OVERLAY}", run.least_headroom)
    })?;
    if let Some((head, all)) = run.short_head {
        return Err(Stop::Fail(format!("a frame of {all} bytes came with only {head} of them in its first chunk")));
    }
    run.finish()
}

fn rx_long(bench: &mut Bench<'_>) -> Verdict {
    let capabilities = {
        let run = bench.open(&[])?;
        let capabilities = run.capabilities;
        run.finish()?;
        capabilities
    };
    let longest = bench.longest(&capabilities);
    if longest <= CHUNK_DATA {
        return skip(format!("the link carries {longest} bytes at most"));
    }
    bench.open(&long_lengths(Direction::Rx, longest))?.finish()
}

fn tx_all(bench: &mut Bench<'_>) -> Verdict {
    let mut run = bench.open(&[])?;
    run.send(lengths(Direction::Tx, 600, bench.longest(&run.capabilities)), Shape::default());
    run.finish()
}

fn tx_chained(bench: &mut Bench<'_>) -> Verdict {
    let mut run = bench.open(&[])?;
    if !run.capabilities.chained {
        return skip_and_close(run, "the driver takes frames of one chunk only");
    }
    run.send(lengths(Direction::Tx, 200, bench.longest(&run.capabilities)), Shape { chained: true, partial: false });
    run.finish()
}

fn tx_long(bench: &mut Bench<'_>) -> Verdict {
    let mut run = bench.open(&[])?;
    let longest = bench.longest(&run.capabilities);
    if longest <= CHUNK_DATA || !run.capabilities.chained {
        return skip_and_close(run, format!("one chunk, {longest} bytes at most"));
    }
    let ids = long_lengths(Direction::Tx, longest);
    run.send(ids.iter().copied(), Shape::default());
    run.settle()?;
    // The same lengths cut otherwise, as segmentation leaves them.
    let mut again = Numbers::new(Direction::Tx);
    ids.iter().for_each(|_| _ = again.next(SHORTEST));
    run.send(ids.iter().map(|id| again.next(id.len)), Shape { chained: true, partial: false });
    run.finish()
}

fn tx_unsendable(bench: &mut Bench<'_>) -> Verdict {
    let mut run = bench.open(&[])?;
    let mut good = Numbers::new(Direction::Tx);
    let mut bad = Vec::new();
    let too_long = vec![0x5a; run.capabilities.max_frame as usize + 1];
    bad.push(run.cache.alloc_copy(&too_long));
    if !run.capabilities.chained {
        let halves = (run.cache.alloc_copy(&[0x5a; SHORTEST]), run.cache.alloc_copy(&[0x5a; SHORTEST]));
        bad.push(match halves {
            (Some(mut frame), Some(rest)) => {
                frame.append(rest);
                Some(frame)
            }
            _ => None,
        });
    }
    let expected = bad.len() as u64;
    for frame in bad {
        let Some(frame) = frame else { return Err(Stop::Fail("the pool is too small for this law".into())) };
        run.send([good.next(SHORTEST)], Shape::default());
        let next = run.out.len() + 1;
        run.build(next)?;
        run.out.push(frame);
    }
    run.send([good.next(SHORTEST)], Shape::default());
    run.settle()?;
    let counted = run.queue.stats().tx_errors;
    ensure(counted == expected, || format!("{expected} frames could not be sent, tx_errors is {counted}"))?;
    run.finish()
}

fn tx_full(bench: &mut Bench<'_>) -> Verdict {
    let Some(limit) = bench.laws.fills_after else { return skip("nothing makes this device's ring fill") };
    let mut run = bench.open(&[])?;
    let mut numbers = Numbers::new(Direction::Tx);
    let before = run.queue.stats();
    let burst: Vec<Identity> = (0..limit + 8).map(|i| numbers.next(SHORTEST + i % 100)).collect();
    run.send(burst.iter().copied(), Shape::default());
    run.build(burst.len())?;
    let taken = run.tx()?;
    ensure(taken <= limit, || format!("{taken} frames were taken at once, the ring should be full after {limit}"))?;
    for (id, frame) in burst[taken..].iter().zip(&run.out) {
        let want = super::traffic::build(*id, &bench.laws.addresses).bytes;
        ensure(frame.to_vec() == want, || format!("{id:?} was left, but not as it was or not in its place"))?;
    }
    let full = run.queue.stats().tx_full - before.tx_full;
    ensure((1..=run.out.len() as u64).contains(&full), || {
        format!("{} frames were left, tx_full grew by {full}", run.out.len())
    })?;
    run.finish()
}

fn tx_partial(bench: &mut Bench<'_>) -> Verdict {
    let mut run = bench.open(&[])?;
    if !run.capabilities.tx_checksum {
        return skip_and_close(run, "the driver completes no checksums");
    }
    let ids = lengths(Direction::Tx, 200, bench.longest(&run.capabilities));
    let (whole, pieces) = ids.split_at(100);
    run.send(whole.iter().copied(), Shape { chained: false, partial: true });
    let chained = run.capabilities.chained;
    run.send(pieces.iter().copied(), Shape { chained, partial: true });
    run.finish()
}

/// Payload per segment of the segmentation case, in bytes.
const SEGMENT: usize = 1000;

/// A long TCP packet with a segmentation request arrives whole (a kernel stack, a wire in memory) or as segments of at
/// most the size asked for; either way its payload is complete and in order.
fn tx_segmentation(bench: &mut Bench<'_>) -> Verdict {
    let mut run = bench.open(&[])?;
    let offered = [(2, GsoKind::Tcp4, run.capabilities.tso4), (3, GsoKind::Tcp6, run.capabilities.tso6)];
    if !offered.iter().any(|(_, _, can)| *can) {
        return skip_and_close(run, "the driver takes no segmentation requests");
    }
    if !bench.laws.lossless || !bench.laws.intact {
        return skip_and_close(run, "segments cannot be told from lost or altered ones here");
    }
    for (flow, kind, _) in offered.into_iter().filter(|(_, _, can)| *can) {
        let most = (run.capabilities.max_frame as usize).min(bench.laws.segments.saturating_mul(CHUNK_DATA));
        let most = if run.capabilities.chained { most } else { most.min(CHUNK_DATA) };
        let id = Identity { direction: Direction::Tx, flow, number: 1000, len: most.min(20_000) };
        let mut frame = run.frame(id, Shape { chained: false, partial: true })?;
        frame.gso = Gso { kind, size: SEGMENT as u16 };
        run.out.push(frame);
        let whole = super::traffic::build(id, &bench.laws.addresses);
        let headers = whole.start + 20;
        let payload = &whole.bytes[headers..];
        let (mut arrived, mut frames) = (0, Vec::new());
        let deadline = Instant::now() + bench.laws.patience;
        while arrived < payload.len() && Instant::now() < deadline {
            run.tx()?;
            run.queue.flush(&mut run.cache);
            run.peer.collect(&mut run.cache, &mut frames);
            // Ours begin with the same addresses, and their ports stand where ours do.
            let ours = |bytes: &Vec<u8>| {
                bytes.get(..14) == whole.bytes.get(..14)
                    && bytes.get(whole.start..whole.start + 4) == Some(&whole.bytes[whole.start..whole.start + 4])
            };
            for bytes in frames.drain(..).filter(ours) {
                let Some(part) = bytes.get(headers..).filter(|part| !part.is_empty()) else {
                    return Err(Stop::Fail(format!("a segment of {} bytes without payload", bytes.len())));
                };
                if part.len() == payload.len() {
                    ensure(bytes == whole.bytes, || format!("{id:?} arrived whole, but altered"))?;
                } else {
                    ensure(part.len() <= SEGMENT, || format!("a segment of {} bytes, not {SEGMENT}", part.len()))?;
                }
                let number = u32::from_be_bytes([4, 5, 6, 7].map(|i| bytes[whole.start + i]));
                ensure(number == id.number + arrived as u32, || {
                    format!("a segment with number {number} came after {arrived} bytes from {}", id.number)
                })?;
                ensure(payload.get(arrived..arrived + part.len()) == Some(part), || {
                    format!("the segment with number {number} has other payload")
                })?;
                arrived += part.len();
            }
        }
        ensure(arrived == payload.len(), || format!("{arrived} of {} payload bytes arrived", payload.len()))?;
    }
    run.finish()
}

/// Whether the queue's descriptor is or becomes readable; `None` without one.
fn readable(queue: &dyn Queue, wait: Duration) -> Option<bool> {
    let fd = queue.wait_fd()?;
    let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
    Some(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).is_ok_and(|n| n > 0))
}

fn wait_shows(bench: &mut Bench<'_>) -> Verdict {
    if !bench.laws.live {
        return skip("the far end cannot inject while the device is open");
    }
    let mut run = bench.open(&lengths(Direction::Rx, 3, bench.laws.longest))?;
    if run.queue.wait_fd().is_none() {
        return skip_and_close(run, "the driver has no descriptor to wait on");
    }
    let ready = |run: &Run, wait| readable(&*run.queue, wait) == Some(true);
    run.queue.flush(&mut run.cache);
    ensure(!bench.laws.quiet || !ready(&run, Duration::ZERO), || "readable before anything was sent".into())?;
    run.inject();
    ensure(ready(&run, bench.laws.patience), || "not readable while frames wait".into())?;
    run.settle()?;
    ensure(!bench.laws.quiet || !ready(&run, Duration::ZERO), || "readable after everything was received".into())?;
    run.finish()
}

fn stats_grow(bench: &mut Bench<'_>) -> Verdict {
    let mut run = bench.open(&lengths(Direction::Rx, 50, bench.laws.longest))?;
    let mut numbers = Numbers::new(Direction::Tx);
    let mut last = run.queue.stats();
    for round in 0..10 {
        run.send((0..5).map(|i| numbers.next(SHORTEST + round * 7 + i)), Shape::default());
        run.settle()?;
        let now = run.queue.stats();
        let fields =
            |s: &PortStats| [s.rx_packets, s.rx_bytes, s.rx_missed, s.tx_packets, s.tx_bytes, s.tx_full, s.tx_errors];
        ensure(fields(&last).iter().zip(fields(&now)).all(|(a, b)| *a <= b), || {
            format!("a counter fell: {last:?}, then {now:?}")
        })?;
        last = now;
    }
    ensure(last.tx_errors == 0, || format!("{} good frames were counted as errors", last.tx_errors))?;
    run.finish()
}

fn stress(bench: &mut Bench<'_>) -> Verdict {
    let n = bench.laws.stress_frames;
    let mut run = bench.open(&lengths(Direction::Rx, n, bench.laws.longest))?;
    let longest = bench.longest(&run.capabilities);
    let chained = run.capabilities.chained;
    let mut random = Xorshift::new(42);
    for id in lengths(Direction::Tx, n, longest) {
        let long = longest > CHUNK_DATA && chained && random.below(16) == 0;
        let len = if long { CHUNK_DATA + random.below((longest - CHUNK_DATA) as u64) as usize } else { id.len };
        run.send([Identity { len, ..id }], Shape { chained: chained && random.below(8) == 0, partial: false });
    }
    run.finish()
}

fn close_returns(bench: &mut Bench<'_>) -> Verdict {
    for peer_first in [false, true] {
        let mut run = bench.open(&lengths(Direction::Rx, 40, bench.laws.longest))?;
        run.send(lengths(Direction::Tx, 40, bench.longest(&run.capabilities)), Shape::default());
        // Some of everything: injected and not received, taken and not collected, built and not taken.
        run.inject();
        let mut burst = Burst::new();
        run.rx(&mut burst, 2)?;
        run.arrived(burst);
        run.build(20)?;
        run.tx()?;
        run.queue.flush(&mut run.cache);
        run.inject();
        run.build(5)?;
        run.close(peer_first)?;
    }
    Ok(())
}

fn skip_and_close(run: Run, why: impl Into<String>) -> Verdict {
    run.finish()?;
    skip(why)
}
