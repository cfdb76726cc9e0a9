//! The measured node: workers on lanes, flows established by real handshakes, and rounds of prepared frames.
//!
//! A round fills at most [`ROUND`] buffers in an untimed pass, then runs the workers until every frame has come out or
//! was dropped; only that second part is timed. Buffers lie one chunk apart, as a driver's do, and their headers are
//! fresh in each round.

use super::cluster::Bed;
use super::lane::{self, Lane};
use super::machine;
use super::packets::{self, ACK, SYN, SYN_ACK, Segment, Shot, Tunnel};
use super::scenario::{From, Scenario};
use anyhow::{Context, Result, bail};
use sluice_engine::handoff::Handoff;
use sluice_engine::{Counters, Pipeline, Shared, Worker, WorkerOptions};
use sluice_port::{Checksum, Frame, FramePool, PoolCache, PoolOptions, staggered};
use sluice_snapshot::Writer;
use sluice_tables::{Address, Tables};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Frames in flight in one round.
pub const ROUND: usize = 4096;
/// The same for several workers: what the ring between two of them holds, so that one which is descheduled loses nothing.
const SHARED_ROUND: usize = 1024;
/// Frames a worker's cache may keep, and groups of them on their way.
const SPARE_FRAMES: usize = 512;
/// Flows that shake hands together.
const TOGETHER: usize = 64;
/// Turns without a packet after which none will come: a queue that has been quiet is asked every 64th turn.
const SILENT_TURNS: u32 = 1000;
/// Seed of the flow hash: figures must not depend on chance.
const SEED: u64 = 0x5106_9a7e;
/// Where the rig's clock starts, in nanoseconds.
const START: u64 = 3_600_000_000_000;

/// What a timed part took, over all workers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Packets that went through.
    pub packets: u64,
    /// Thread CPU time, in nanoseconds.
    pub cpu: u64,
    /// Wall time of the slowest worker, in nanoseconds.
    pub wall: u64,
    /// Ticks of the time-stamp counter, where there is one.
    pub ticks: Option<u64>,
    /// Allocations.
    pub allocations: u64,
}

impl Spent {
    /// Adds a later part.
    pub fn add(&mut self, other: &Spent) {
        self.packets += other.packets;
        self.cpu += other.cpu;
        self.wall += other.wall;
        self.ticks = match (self.ticks, other.ticks) {
            (Some(a), Some(b)) => Some(a + b),
            (None, later) if self.packets == other.packets => later,
            _ => None,
        };
        self.allocations += other.allocations;
    }
}

/// A worker and its ports.
struct Station {
    worker: Worker,
    counters: Arc<Counters>,
    /// By port number; `None`: another worker polls it.
    lanes: Vec<Option<Lane>>,
}

impl Station {
    fn finished(&self) -> u64 {
        self.counters.sent.get() + self.counters.punted.get() + self.counters.dropped.get()
    }

    /// Puts a shot's frame in line on its port.
    fn load(&mut self, shot: &Shot) -> Result<()> {
        let lane = self.lanes.get_mut(usize::from(shot.port)).and_then(Option::as_mut).context("no such lane")?;
        let mut frame = self.worker.pipeline().cache_mut().alloc().context("the frame pool is empty")?;
        let (at, len) = (staggered(frame.index()), usize::from(shot.len));
        let bytes = frame.reset_at(at, len).context("a frame is longer than a chunk")?;
        let n = usize::from(shot.head_len);
        bytes[..n].copy_from_slice(&shot.head[..n]);
        bytes[n..].fill(0);
        frame.checksum = Checksum::None;
        lane.prepare(frame).context("a round is longer than a lane")
    }

    /// Hands what was loaded to the worker.
    fn start(&mut self) -> Result<()> {
        self.lanes.iter_mut().flatten().try_for_each(Lane::start).context("a round was left in its lane")
    }

    /// Takes everything that was sent.
    fn drain(&mut self, mut f: impl FnMut(u16, &[u8])) {
        let cache: &mut PoolCache = self.worker.pipeline().cache_mut();
        for (port, lane) in (0u16..).zip(&mut self.lanes) {
            let Some(lane) = lane else { continue };
            lane.drain_sent(|frame: Frame| {
                f(port, frame.head());
                cache.free(frame);
            });
        }
    }
}

/// The node under measurement.
pub struct Rig {
    stations: Vec<Station>,
    /// Keeps the workers' tables current.
    _writer: Writer<Tables>,
    tables: Arc<Tables>,
    tunnel: Tunnel,
    scenario: Scenario,
    services: u32,
    v6: bool,
    frame: usize,
    /// The clock that workers are told, in nanoseconds: it advances with timed work only, so that preparing many frames
    /// does not make flows look idle.
    now: u64,
}

impl Rig {
    /// Builds the node with room for `flows` flows of the scenario.
    pub fn new(bed: &Bed, scenario: Scenario, flows: usize, frame: usize, v6: bool, workers: u16) -> Result<Rig> {
        // Shares differ a little between workers.
        let slack = if workers > 1 { flows / 4 } else { 0 };
        let room = ((flows + slack) * scenario.entries_per_flow()).div_ceil(usize::from(workers)).max(64);
        let all = u32::try_from(room * usize::from(workers)).context("too many flows")?;
        let shared = Shared::new(all);
        crate::settings::ensure_spaces(&shared, &bed.tables);
        // A round's buffers and what caches keep: the depot goes round, so a larger pool would only be a larger working set.
        let frames = ROUND + SPARE_FRAMES * usize::from(workers);
        let pool = FramePool::new(PoolOptions { frames, huge_pages: true })?;
        let mut writer = Writer::new(Arc::clone(&bed.tables));
        let mut stations = Vec::new();
        for (id, handoff) in (0..workers).zip(Handoff::mesh(usize::from(workers))) {
            let options = WorkerOptions { id, workers, flows: room, seed: SEED, huge_pages: true };
            let tables = Arc::clone(&bed.tables);
            let pipeline = Pipeline::new(options, tables, Arc::clone(&shared), pool.cache(), handoff)?;
            let mut worker = Worker::new(pipeline, writer.reader());
            let mut lanes: Vec<Option<Lane>> = (0..bed.view.pods.len() + 8).map(|_| None).collect();
            let pods = bed.view.pods.values().filter(|pod| pod.worker == id).map(|pod| pod.port);
            let host = (id == 0).then_some(bed.view.host.port);
            for port in pods.chain(host).chain([bed.view.uplink.port]) {
                let (lane, queue) = lane::open(ROUND);
                worker.attach(port, queue);
                *lanes.get_mut(usize::from(port)).context("port numbers have gaps")? = Some(lane);
            }
            stations.push(Station { counters: worker.counters(), worker, lanes });
        }
        let vni = bed.tables.settings.vni;
        let tunnel = Tunnel { from: [192, 0, 2, 12], to: [192, 0, 2, 11], vni };
        let tables = Arc::clone(&bed.tables);
        Ok(Rig { stations, _writer: writer, tables, tunnel, scenario, services: bed.services, v6, frame, now: START })
    }

    fn now(&self) -> u64 {
        self.now
    }

    /// The frame of a segment that comes from `from`.
    fn shot(&self, from: From, segment: &Segment, flags: u8) -> Result<Shot> {
        let size = self.scenario.frame_size(segment.flow, self.frame);
        let uplink = self.tables.node.uplink;
        Ok(match from {
            From::Pod(address) => {
                let pod = self.tables.pods.by_address(Address::from(address)).context("not a pod of this node")?;
                packets::shot(segment, flags, size, pod.port, None).sent_by(pod.mac)
            }
            From::Tunnel => packets::shot(segment, flags, size, uplink, Some(self.tunnel)),
            From::Outside => packets::shot(segment, flags, size, uplink, None),
        })
    }

    /// The worker whose queue a shot arrives on: the pod's own, or one that the NIC's hash chooses.
    fn station_of(&self, shot: &Shot, flow: u32) -> usize {
        match self.tables.pods.by_port(shot.port) {
            Some(pod) => usize::from(pod.worker),
            None => flow as usize % self.stations.len(),
        }
    }

    /// The first packets of flows `0..flows`, each with the worker that receives it.
    pub fn first_packets(&self, flows: u32) -> Result<Vec<(u16, Shot)>> {
        let shot = |n| {
            let (from, segment) = self.scenario.first(n, self.v6, self.services);
            let shot = self.shot(from, &segment, SYN)?;
            Ok((self.station_of(&shot, n) as u16, shot))
        };
        (0..flows).map(shot).collect()
    }

    /// Opens flows `0..flows` by handshakes through the pipeline; returns the packet to measure for each, and what the
    /// first packets alone cost.
    pub fn establish(&mut self, flows: u32) -> Result<(Vec<(u16, Shot)>, Spent)> {
        let mut measured = Vec::with_capacity(flows as usize);
        self.keep_sent(true);
        let mut first_cost = Spent::default();
        for start in (0..flows).step_by(TOGETHER) {
            let flows = start..flows.min(start + TOGETHER as u32);
            let firsts: Vec<_> = flows.clone().map(|n| self.scenario.first(n, self.v6, self.services)).collect();
            let mut answers = vec![None; firsts.len()];
            let mut send = |rig: &mut Rig, flags: u8, cost: &mut Spent| -> Result<()> {
                let mut shots = Vec::new();
                for (from, segment) in &firsts {
                    let shot = rig.shot(*from, segment, flags)?;
                    shots.push((rig.station_of(&shot, segment.flow) as u16, shot));
                }
                cost.add(&rig.serial(&shots)?);
                rig.collect(|rig, port, bytes| {
                    let Some((segment, wrapped)) = packets::read(bytes) else { return };
                    let Some(answer) = answers.get_mut((segment.flow.wrapping_sub(start)) as usize) else { return };
                    let from = match rig.tables.pods.by_port(port) {
                        Some(_) => From::Pod(segment.destination),
                        None if wrapped => From::Tunnel,
                        None => From::Outside,
                    };
                    *answer = Some((from, segment.reverse()));
                });
                Ok(())
            };
            send(self, SYN, &mut first_cost)?;
            let made = |n: u32| self.scenario.of(n).0.makes_flows();
            if let Some(n) = flows.clone().find(|n| made(*n) == answers[(n - start) as usize].is_none()) {
                bail!("flow {n}: its first packet {}", if made(n) { "did not come out" } else { "was not denied" });
            }
            let replies: Vec<_> = answers.iter().flatten().copied().collect();
            let mut shots = Vec::new();
            for (from, segment) in &replies {
                let shot = self.shot(*from, segment, SYN_ACK)?;
                shots.push((self.station_of(&shot, segment.flow) as u16, shot));
            }
            self.serial(&shots)?;
            self.collect(|_, _, _| {});
            let mut ignored = Spent::default();
            let mut confirm = Vec::new();
            for (from, segment) in &firsts {
                let shot = self.shot(*from, segment, ACK)?;
                confirm.push((self.station_of(&shot, segment.flow) as u16, shot));
            }
            ignored.add(&self.serial(&confirm)?);
            self.collect(|_, _, _| {});
            for ((from, segment), answer) in firsts.iter().zip(&answers) {
                let (from, segment) = match answer {
                    Some(reply) if self.scenario.of(segment.flow).0.measures_replies() => reply,
                    _ => &(*from, *segment),
                };
                let shot = self.shot(*from, segment, ACK)?;
                measured.push((self.station_of(&shot, segment.flow) as u16, shot));
            }
        }
        self.keep_sent(false);
        Ok((measured, first_cost))
    }

    /// Runs shots through all workers on the calling thread.
    fn serial(&mut self, shots: &[(u16, Shot)]) -> Result<Spent> {
        for (station, shot) in shots {
            self.stations[usize::from(*station)].load(shot)?;
        }
        self.stations.iter_mut().try_for_each(Station::start)?;
        let target = self.finished() + shots.len() as u64;
        let clock = Stopwatch::start();
        let now = self.now();
        let mut silent = 0;
        while self.finished() < target {
            let handled: usize = self.stations.iter_mut().map(|s| s.worker.turn(now)).sum();
            silent = if handled == 0 { silent + 1 } else { 0 };
            if silent > SILENT_TURNS {
                bail!("{} packets were lost in the pipeline", target - self.finished());
            }
        }
        let spent = clock.stop(shots.len() as u64);
        self.now += spent.wall;
        Ok(spent)
    }

    fn keep_sent(&self, keep: bool) {
        self.stations.iter().flat_map(|s| s.lanes.iter().flatten()).for_each(|lane| lane.keep(keep));
    }

    fn finished(&self) -> u64 {
        self.stations.iter().map(Station::finished).sum()
    }

    /// Takes everything that was sent.
    fn collect(&mut self, mut f: impl FnMut(&Rig, u16, &[u8])) {
        let mut stations = std::mem::take(&mut self.stations);
        for station in &mut stations {
            station.drain(|port, bytes| f(self, port, bytes));
        }
        self.stations = stations;
    }

    /// Sends every shot once, in their order, in rounds; each worker on a thread of its own if there are several.
    pub fn pass(&mut self, shots: &[(u16, Shot)]) -> Result<Spent> {
        let mut spent = Spent::default();
        let size = if self.stations.len() == 1 { ROUND } else { SHARED_ROUND };
        for round in shots.chunks(size) {
            let part = if self.stations.len() == 1 { self.serial(round)? } else { self.parallel(round)? };
            spent.add(&part);
        }
        Ok(spent)
    }

    fn parallel(&mut self, shots: &[(u16, Shot)]) -> Result<Spent> {
        for (station, shot) in shots {
            self.stations[usize::from(*station)].load(shot)?;
        }
        self.stations.iter_mut().try_for_each(Station::start)?;
        let before: Vec<u64> = self.stations.iter().map(Station::finished).collect();
        let done: Vec<AtomicU64> = before.iter().map(|_| AtomicU64::new(0)).collect();
        let (ready, cpus) = (AtomicU64::new(0), machine::cpus());
        let (now, target) = (self.now(), shots.len() as u64);
        let mut parts = Vec::new();
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (at, station) in self.stations.iter_mut().enumerate() {
                let (done, before, ready) = (&done, before[at], &ready);
                let cpu = cpus.get(at % cpus.len().max(1)).copied().unwrap_or_default();
                threads.push(scope.spawn(move || {
                    machine::pin(cpu);
                    // Spinning, so that all start within a cache line's journey of each other.
                    ready.fetch_add(1, Ordering::AcqRel);
                    while ready.load(Ordering::Acquire) < done.len() as u64 {
                        std::thread::yield_now();
                    }
                    let clock = Stopwatch::start();
                    while done.iter().map(|d| d.load(Ordering::Acquire)).sum::<u64>() < target {
                        station.worker.turn(now);
                        done[at].store(station.finished() - before, Ordering::Release);
                    }
                    clock.stop(done[at].load(Ordering::Relaxed))
                }));
            }
            parts.extend(threads.into_iter().map(|thread| thread.join()));
        });
        let mut spent = Spent::default();
        for part in parts {
            let Ok(part) = part else { bail!("a worker has panicked") };
            let wall = spent.wall.max(part.wall);
            spent.add(&part);
            spent.wall = wall;
        }
        self.now += spent.wall;
        Ok(spent)
    }

    /// Lets every flow time out, so that the next packet of each is its first again.
    pub fn forget_all(&mut self) {
        self.now += 2 * 86_400_000_000_000;
        for station in &mut self.stations {
            while station.counters.flows.get() > 0 {
                station.worker.turn(self.now);
                station.worker.pipeline().idle_upkeep();
            }
        }
    }

    /// Packets dropped so far, over all workers.
    pub fn dropped(&self) -> u64 {
        self.stations.iter().map(|s| s.counters.dropped.get()).sum()
    }

    /// Connections in all tables, the tables' bytes, and whether they lie on reserved 2 MB pages.
    pub fn flow_tables(&mut self) -> (usize, usize, bool) {
        let mut all = (0, 0, true);
        for station in &mut self.stations {
            let (flows4, flows6) = station.worker.pipeline().flows();
            let (len, (bytes, huge)) =
                if self.v6 { (flows6.len(), flows6.memory()) } else { (flows4.len(), flows4.memory()) };
            all = (all.0 + len, all.1 + bytes, all.2 && huge);
        }
        all
    }
}

struct Stopwatch {
    allocations: u64,
    wall: Instant,
    ticks: Option<u64>,
    cpu: u64,
}

impl Stopwatch {
    fn start() -> Self {
        Stopwatch {
            allocations: sluice_port::alloc::allocations(),
            wall: Instant::now(),
            ticks: sluice_port::ticks::ticks(),
            cpu: machine::thread_cpu(),
        }
    }

    fn stop(&self, packets: u64) -> Spent {
        let cpu = machine::thread_cpu() - self.cpu;
        let now = sluice_port::ticks::ticks();
        Spent {
            packets,
            cpu,
            wall: self.wall.elapsed().as_nanos() as u64,
            ticks: now.zip(self.ticks).map(|(now, then)| now.wrapping_sub(then)),
            allocations: sluice_port::alloc::allocations() - self.allocations,
        }
    }
}
