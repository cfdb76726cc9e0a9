//! Worker threads: pinned, polling, and asleep on their sockets when there is nothing to do.
//!
//! Control speaks to a worker through a channel and an eventfd; the worker looks at the channel between turns. An idle worker
//! (adaptive mode) spins for a while, then sleeps in `poll` until a socket, another worker or control wakes it.

use super::shadow::Seen;
use crate::api::report::FlowReport;
use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded, unbounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use sluice_ctrl::config::Idle;
use sluice_engine::flow::{Entry, State};
use sluice_engine::learned::Lesson;
use sluice_engine::nat::Mapping;
use sluice_engine::trace::Trace;
use sluice_engine::{Counters, Rate, Worker};
use sluice_port::{PortMode, PortStats, Queue};
use sluice_tables::RuleId;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Idle turns before an adaptive worker sleeps.
const SPIN_TURNS: u32 = 400;
/// Longest sleep: upkeep goes on in idle times.
const SLEEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// The same with a port that nothing wakes us for (DPDK): how long a packet may wait when the node was idle.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000 };
/// The same while a port is held to its rate.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// The workers' clock in nanoseconds: CLOCK_MONOTONIC, so that a later process counts on from where an earlier one stopped.
pub fn clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Queues to be polled, by port number.
pub type Queues = Vec<(u16, Box<dyn Queue>)>;

/// What control asks of a worker.
pub enum Command {
    /// Poll these queues as these ports from now on.
    Attach {
        /// The queues.
        queues: Queues,
        /// Told when they are polled.
        done: Sender<()>,
    },
    /// Close the queue of this port.
    Detach {
        /// Port number.
        port: u16,
        /// Told whether there was one.
        done: Sender<bool>,
    },
    /// Hold this port to rates: towards it, and from it.
    Limit(u16, [Option<Rate>; 2]),
    /// Flows of an egress address that will come here with the next tables; told when they are noted.
    Inherit(Vec<Mapping>, Sender<()>),
    /// Send these frames out of this port.
    Originate(u16, Vec<Vec<u8>>),
    /// Describe the ports.
    Ports(Sender<Vec<PortReport>>),
    /// Describe flows, at most so many.
    Flows(usize, Sender<Vec<FlowReport>>),
    /// Tell of flows from these places of its two tables on, of at most so many; and where to go on.
    Seen([u32; 2], usize, Sender<SeenSlice>),
    /// What pods were told of domain names.
    Lessons(Sender<Vec<Lesson>>),
    /// Take up what was learned before.
    TakeUp(Vec<Lesson>),
    /// Verdicts by rule.
    Tally(Sender<Vec<(RuleId, [u64; 3])>>),
    /// Tell this listener what becomes of packets, or nobody.
    Trace(Option<Box<dyn Trace>>),
    /// The ways to wake every worker, by number.
    Peers(Vec<Waker>),
    /// Close everything and end.
    Stop,
}

/// Flows, and the places in both tables after them; none at the end.
pub type SeenSlice = (Vec<Seen>, Option<[u32; 2]>);

/// Wakes a worker that sleeps; costs one load while it does not.
#[derive(Clone)]
pub struct Waker {
    fd: Arc<OwnedFd>,
    asleep: Arc<AtomicBool>,
}

impl Waker {
    fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) {
            let _ = rustix::io::write(&*self.fd, &1u64.to_ne_bytes());
        }
    }
}

/// A port as a worker sees it.
#[derive(Clone, Debug)]
pub struct PortReport {
    /// Port number.
    pub port: u16,
    /// Its counters.
    pub stats: PortStats,
    /// How it runs.
    pub mode: PortMode,
}

/// A running worker, as control sees it.
pub struct Handle {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
    asleep: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// What it counts.
    pub counters: Arc<Counters>,
    alive: Arc<AtomicBool>,
    beat: Arc<AtomicU64>,
    pinned: Arc<AtomicI32>,
}

impl Handle {
    /// Starts a worker's thread on a CPU (`None`: wherever the scheduler likes).
    pub fn start(id: u16, worker: Worker, cpu: Option<usize>, idle: Idle) -> std::io::Result<Handle> {
        let (commands, inbox) = unbounded();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (alive, beat) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let counters = worker.counters();
        let asleep = Arc::new(AtomicBool::new(false));
        let thread = Thread {
            id,
            worker,
            inbox,
            wake: wake.clone(),
            asleep: asleep.clone(),
            peers: Vec::new(),
            idle,
            beat: beat.clone(),
        };
        let pinned = Arc::new(AtomicI32::new(0));
        let (living, own) = (Alive(alive.clone()), pinned.clone());
        let thread = std::thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
            let _living = living;
            match cpu {
                Some(cpu) if core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) => {
                    own.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Release);
                }
                Some(cpu) => {
                    tracing::warn!(worker = id, cpu, "cannot pin the worker; it runs where the scheduler puts it")
                }
                None => {}
            }
            thread.run();
        })?;
        Ok(Handle { commands, wake, asleep, thread: Some(thread), counters, alive, beat, pinned })
    }

    /// Whether its thread runs.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// The kernel's number of its thread, once it is pinned; none where it is not.
    pub fn thread_id(&self) -> Option<i32> {
        Some(self.pinned.load(Ordering::Acquire)).filter(|id| *id != 0 && self.is_alive())
    }

    /// Counts turns, slowly; stands still if the worker hangs.
    pub fn beat(&self) -> u64 {
        self.beat.load(Ordering::Relaxed)
    }

    /// Wakes it if it sleeps.
    pub fn wake(&self) {
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    /// A way for other workers to wake it.
    pub fn waker(&self) -> Waker {
        Waker { fd: Arc::clone(&self.wake), asleep: Arc::clone(&self.asleep) }
    }

    /// Tells it how to wake the others.
    pub fn introduce(&self, peers: Vec<Waker>) {
        let _ = self.commands.send(Command::Peers(peers));
        self.wake();
    }

    /// Gives it a queue to poll and waits until it does.
    pub fn attach(&self, port: u16, queue: Box<dyn Queue>) -> bool {
        self.attach_all(vec![(port, queue)])
    }

    /// Gives it queues to poll and waits until it does.
    pub fn attach_all(&self, queues: Queues) -> bool {
        queues.is_empty() || self.ask(|done| Command::Attach { queues, done }).is_some()
    }

    /// Takes a port away and waits until its queue is closed; `false` if it had none.
    pub fn detach(&self, port: u16) -> bool {
        self.ask(|done| Command::Detach { port, done }).unwrap_or(false)
    }

    /// Holds a port to rates, towards it and from it.
    pub fn limit(&self, port: u16, rates: [Option<Rate>; 2]) {
        let _ = self.commands.send(Command::Limit(port, rates));
        self.wake();
    }

    /// Gives it flows of an egress address to make with the next tables, and waits until it has them.
    pub fn inherit(&self, mappings: Vec<Mapping>) -> bool {
        self.ask(|done| Command::Inherit(mappings, done)).is_some()
    }

    /// Has it send frames out of a port.
    pub fn originate(&self, port: u16, frames: Vec<Vec<u8>>) {
        let _ = self.commands.send(Command::Originate(port, frames));
        self.wake();
    }

    /// Its ports.
    pub fn ports(&self) -> Vec<PortReport> {
        self.ask(Command::Ports).unwrap_or_default()
    }

    /// At most `limit` of its flows.
    pub fn flows(&self, limit: usize) -> Vec<FlowReport> {
        self.ask(|reply| Command::Flows(limit, reply)).unwrap_or_default()
    }

    /// A slice of its flows from these places on, and where the next one begins.
    pub fn seen(&self, from: [u32; 2], most: usize) -> SeenSlice {
        self.ask(|reply| Command::Seen(from, most, reply)).unwrap_or_default()
    }

    /// What its pods were told of domain names.
    pub fn lessons(&self) -> Vec<Lesson> {
        self.ask(Command::Lessons).unwrap_or_default()
    }

    /// Gives it what its pods were told before.
    pub fn take_up(&self, lessons: Vec<Lesson>) {
        let _ = self.commands.send(Command::TakeUp(lessons));
        self.wake();
    }

    /// Its verdicts by rule: allowed, denied, audited.
    pub fn tally(&self) -> Vec<(RuleId, [u64; 3])> {
        self.ask(Command::Tally).unwrap_or_default()
    }

    /// Sets or removes the listener.
    pub fn trace(&self, trace: Option<Box<dyn Trace>>) {
        let _ = self.commands.send(Command::Trace(trace));
        self.wake();
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = bounded(1);
        self.commands.send(command(reply)).ok()?;
        self.wake();
        answer.recv_timeout(Duration::from_secs(2)).ok()
    }

    /// Ends it: its queues are closed and its thread joined.
    pub fn stop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        self.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a worker had panicked");
        }
    }
}

/// Says that the thread has ended, however it ends.
struct Alive(Arc<AtomicBool>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

struct Thread {
    id: u16,
    worker: Worker,
    inbox: Receiver<Command>,
    wake: Arc<OwnedFd>,
    asleep: Arc<AtomicBool>,
    peers: Vec<Waker>,
    idle: Idle,
    beat: Arc<AtomicU64>,
}

impl Thread {
    fn run(mut self) {
        let mut idle_turns = 0u32;
        let mut turns = 0u64;
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => break,
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => {}
            }
            let handled = self.worker.turn(clock());
            turns += 1;
            let touched = self.worker.take_touched();
            if touched != 0 {
                let given = self.peers.iter().enumerate().filter(|(at, _)| touched >> (at & 63) & 1 != 0);
                given.for_each(|(_, peer)| peer.wake());
            }
            if turns.is_multiple_of(1024) || idle_turns > SPIN_TURNS {
                self.beat.store(turns, Ordering::Relaxed);
            }
            idle_turns = if handled > 0 { 0 } else { idle_turns.saturating_add(1) };
            if idle_turns > SPIN_TURNS && self.idle == Idle::Adaptive && !self.worker.has_waiting() {
                self.sleep();
            }
        }
        self.worker.close();
    }

    /// Sleeps until a socket is readable, somebody wakes us, or upkeep is due.
    fn sleep(&mut self) {
        self.worker.before_sleep();
        // Said before the last look: whoever gives us something after that look sees it and wakes us.
        self.asleep.store(true, Ordering::SeqCst);
        if self.worker.turn(clock()) > 0 || !self.inbox.is_empty() {
            self.asleep.store(false, Ordering::SeqCst);
            return;
        }
        let ready: Vec<usize> = {
            let (mut at, mut unwatched) = (Vec::new(), Vec::new());
            let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
            for (position, fd) in self.worker.wait_fds() {
                match fd {
                    Some(fd) => {
                        at.push(position);
                        fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
                    }
                    None => unwatched.push(position),
                }
            }
            let nap = match (self.worker.is_holding(), unwatched.is_empty()) {
                (true, _) => NAP,
                (false, false) => LOOK_AGAIN,
                (false, true) => SLEEP,
            };
            match poll(&mut fds, Some(&nap)) {
                Ok(0) | Err(_) => unwatched,
                Ok(_) => {
                    let woken = fds.iter().skip(1).zip(&at).filter(|(fd, _)| !fd.revents().is_empty());
                    woken.map(|(_, at)| *at).chain(unwatched).collect()
                }
            }
        };
        self.asleep.store(false, Ordering::SeqCst);
        let mut drained = [0u8; 8];
        let _ = rustix::io::read(self.wake.as_fd(), &mut drained);
        for position in ready {
            self.worker.mark_ready(position);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Attach { queues, done } => {
                for (port, queue) in queues {
                    self.worker.attach(port, queue);
                }
                let _ = done.send(());
            }
            Command::Detach { port, done } => {
                let _ = done.send(self.worker.detach(port));
            }
            Command::Limit(port, [towards, from]) => self.worker.limit(port, towards, from),
            Command::Inherit(mappings, done) => {
                self.worker.pipeline().inherit(mappings);
                let _ = done.send(());
            }
            Command::Originate(port, frames) => {
                for frame in frames {
                    if !self.worker.pipeline().originate(port, &frame) {
                        tracing::warn!(worker = self.id, "no free frame for an announcement");
                    }
                }
            }
            Command::Ports(reply) => {
                let all = self.worker.ports().map(|(port, stats, mode)| PortReport { port, stats, mode });
                let _ = reply.send(all.collect());
            }
            Command::Flows(limit, reply) => {
                let _ = reply.send(self.flows(limit));
            }
            Command::Seen(from, most, reply) => {
                let _ = reply.send(self.seen(from, most));
            }
            Command::Lessons(reply) => {
                let _ = reply.send(self.worker.pipeline().lessons());
            }
            Command::TakeUp(lessons) => self.worker.pipeline().take_up(&lessons),
            Command::Tally(reply) => {
                let _ = reply.send(self.worker.pipeline().tally().counts().collect());
            }
            Command::Trace(trace) => self.worker.set_trace(trace),
            Command::Peers(peers) => self.peers = peers,
            Command::Stop => {}
        }
    }

    fn seen(&mut self, from: [u32; 2], most: usize) -> SeenSlice {
        let (v4, v6) = self.worker.pipeline().flows();
        let mut seen = Vec::with_capacity(most.min(1024));
        let most = most as u32;
        if from[0] < v4.used() {
            seen.extend(v4.pairs(from[0], most).map(|(_, original, _)| Seen::of(original)));
            return (seen, Some([from[0].saturating_add(most), from[1]]));
        }
        seen.extend(v6.pairs(from[1], most).map(|(_, original, _)| Seen::of(original)));
        let next = from[1].saturating_add(most);
        (seen, (next < v6.used()).then_some([from[0], next]))
    }

    fn flows(&mut self, limit: usize) -> Vec<FlowReport> {
        let id = self.id;
        let pipeline = self.worker.pipeline();
        let (v4, v6) = pipeline.flows();
        let tick = pipeline.tick();
        let mut all: Vec<FlowReport> = v4.iter().take(limit).map(|(_, a, b)| report(a, b, tick, id)).collect();
        let left = limit.saturating_sub(all.len());
        all.extend(v6.iter().take(left).map(|(_, a, b)| report(a, b, tick, id)));
        all
    }
}

fn report<E: Entry>(original: &E, reply: &E, tick: u32, worker: u16) -> FlowReport {
    let (from, zone, _) = original.parts();
    let to = original.to();
    let end = |address: sluice_tables::Address, port: u16| std::net::SocketAddr::new(address.into(), port).to_string();
    let last = if reply.common().state == 0 {
        original.common().last_seen
    } else {
        original.common().last_seen.max(reply.common().last_seen)
    };
    let idle = u64::from(tick.saturating_sub(last));
    FlowReport {
        protocol: from.protocol,
        source: end(from.source, from.source_port),
        destination: end(from.destination, from.destination_port),
        translated_source: end(to.source, to.source_port),
        translated_destination: end(to.destination, to.destination_port),
        state: State::from_byte(original.common().state).name().to_owned(),
        idle_seconds: idle / u64::from(sluice_engine::pipeline::TICKS_PER_SECOND),
        zone,
        pod: None,
        worker,
    }
}
