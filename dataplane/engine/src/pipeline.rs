//! The corridor: one worker's state and the stages a batch passes, as plain loops.
//!
//! ```text
//! one    parse, key, hash; the bucket is asked for          nodes/plain.rs, flow/key.rs
//! two    tags; the entry is asked for                        flow/table.rs
//! three  entry against packet, rewrite, header               nodes/steady.rs
//! four   into the lanes, in order                            outbox.rs
//!        │ what is not ordinary, not steady or not known
//!        ▼
//! Item:  classify ─▶ key ─▶ look up ─▶ apply ─▶ settle        miss ─▶ decide ─▶ install ─▶ apply
//! ```
//! Stages one to four work on columns (`batch.rs`). A steady packet is rewritten before the batch's other packets have acted;
//! all leave in the order in which they came.
//! Owner: one worker thread. Nodes borrow an [`Item`], `settle` moves its frame. Nothing here allocates, locks or reads a
//! clock for a packet of an established flow.

use crate::affinity::Affinity;
use crate::batch::{Columns, Facts, Kind, NO_PORT};
use crate::counters::Counters;
use crate::dns_stream::Streams;
use crate::flow::{Entry4, Entry6, FlowTable, Key4, Key6, Side, Slot};
use crate::handoff::Handoff;
use crate::item::{BATCH, Fate, Item, Role};
use crate::learned::{Learned, Lesson};
use crate::nat::{Leases, Mapping, Mirror, Secret, SnatSpace, SnatSpaces};
use crate::nodes::fragment::Fragments;
use crate::nodes::plain::{Entrance, Known};
use crate::outbox::Outbox;
use crate::reason::{Reason, Stage};
use crate::tally::Tally;
use crate::trace::{Event, Note, Trace};
use sluice_port::{Burst, Dealer, Frame, PoolCache, PoolError};
use sluice_tables::Tables;
use sluice_wire::packet::Shape;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Length of a tick: last-seen times are counted in these. 2^26 ns, about 67 ms.
pub const TICK_SHIFT: u32 = 26;
/// Ticks in a second, rounded up so that no flow dies early.
pub const TICKS_PER_SECOND: u32 = 15;
/// Packets that may wait for a neighbour at a time, and nanoseconds that each may.
const WAITING: usize = 64;
const NEIGHBOUR_WAIT: u64 = 1_000_000_000;
/// Halves a packet can pass on one node: hairpin through SNAT passes four.
const MAX_PASSES: usize = 6;

/// What all workers of a node share outside the tables; touched on slow paths only.
#[derive(Debug, Default)]
pub struct Shared {
    /// SNAT port ranges.
    pub spaces: SnatSpaces,
    /// Connections in all tables, and the most there may be.
    pub flows: AtomicU32,
    /// Limit of `flows`.
    pub max_flows: AtomicU32,
    /// Fragments waiting, over all workers.
    pub fragments_held: AtomicU32,
    /// ICMP errors: nanoseconds up to which credit is spent.
    icmp_spent_until: AtomicU64,
    /// Clients that keep their backends.
    pub affinity: Affinity,
    /// Egress mappings, for the node that would take over.
    pub mirror: Mirror,
    /// Which address a client's port asked a backend at that answers it directly.
    pub directly_asked: Affinity,
    /// Neighbours that control should find: written by workers, drained by control.
    pub wanted: crate::wanted::Wanted,
}

/// ICMP errors a node sends a second (Linux' default `icmp_msgs_per_sec`) and may send at once.
const ICMP_PER_SECOND: u64 = 1000;

impl Shared {
    /// For a node with room for `max_flows` connections.
    pub fn new(max_flows: u32) -> Arc<Self> {
        Shared::with_clients(max_flows, Affinity::default())
    }

    /// The same, with clients that an earlier process left.
    pub fn with_clients(max_flows: u32, affinity: Affinity) -> Arc<Self> {
        Arc::new(Shared { max_flows: AtomicU32::new(max_flows), affinity, ..Shared::default() })
    }

    /// Whether another ICMP error may be sent now: a token bucket of one second's worth.
    pub fn may_send_icmp(&self, now: u64) -> bool {
        let cost = 1_000_000_000 / ICMP_PER_SECOND;
        let spent = self.icmp_spent_until.load(Ordering::Relaxed).max(now.saturating_sub(1_000_000_000));
        if spent + cost > now.max(1_000_000_000) {
            return false;
        }
        self.icmp_spent_until.store(spent + cost, Ordering::Relaxed);
        true
    }
}

/// Size and identity of a worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerOptions {
    /// Number of this worker.
    pub id: u16,
    /// Number of workers.
    pub workers: u16,
    /// Connections each family's table of this worker can hold.
    pub flows: usize,
    /// Seed of the flow hash and of the SNAT ports; the same for all workers of a node, so that outcomes do not depend on
    /// their number.
    pub seed: u64,
    /// Try 2 MB pages for the tables.
    pub huge_pages: bool,
}

/// One worker's packet path.
pub struct Pipeline {
    pub(crate) options: WorkerOptions,
    pub(crate) tables: Arc<Tables>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) flows4: FlowTable<Entry4>,
    pub(crate) flows6: FlowTable<Entry6>,
    pub(crate) spaces: Vec<Arc<SnatSpace>>,
    pub(crate) leases: Leases,
    pub(crate) fragments: Fragments,
    /// What pods were told of domain names.
    pub(crate) learned: Learned,
    /// DNS messages that have not passed whole yet.
    pub(crate) streams: Streams,
    /// Verdicts by rule.
    pub(crate) tally: Tally,
    pub(crate) counters: Arc<Counters>,
    pub(crate) cache: PoolCache,
    pub(crate) outbox: Outbox,
    pub(crate) handoff: Handoff,
    pub(crate) trace: Option<Box<dyn Trace>>,
    /// Nanoseconds of the caller's clock at this turn.
    pub(crate) now: u64,
    pub(crate) tick: u32,
    /// Tick in which `sweep_due` was set.
    pub(crate) swept_tick: u32,
    /// Connections still to be looked at for expiry in this tick, IPv4 and IPv6.
    pub(crate) sweep_due: [u32; 2],
    /// Items that pass another half in this turn.
    again: Vec<Item>,
    /// Packets whose neighbour is being asked for, with the time at which they are given up.
    waiting: Vec<(u64, Item)>,
    /// Mappings of an egress address that is to come here, with the time at which they are given up.
    pub(crate) heirs: Vec<(u64, Mapping)>,
    /// Deadline of the packet that is decided anew.
    wait_until: Option<u64>,
    /// Fragments whose first has just come.
    pub(crate) released: Vec<Item>,
    /// What stage one has to know of the tables.
    pub(crate) known: Known,
    pub(crate) columns: Box<Columns>,
    /// Packets of this batch that are not ordinary, in their order.
    others: Vec<Item>,
}

/// Packets between asking for a header's line and reading it: enough to hide a visit to the shared cache, few enough that
/// the lines, all of one or two sets, are still there.
const AHEAD: usize = 6;

impl Pipeline {
    /// A pipeline on these tables.
    pub fn new(
        options: WorkerOptions,
        tables: Arc<Tables>,
        shared: Arc<Shared>,
        cache: PoolCache,
        handoff: Handoff,
    ) -> Result<Self, PoolError> {
        let table4 = FlowTable::new(options.flows, options.seed, options.huge_pages)?;
        let table6 = FlowTable::new(options.flows, options.seed, options.huge_pages)?;
        Ok(Self::with_flows(options, tables, shared, cache, handoff, (table4, table6)))
    }

    /// The same on these flow tables; what stands in them is taken up by [`resume_flows`](Self::resume_flows).
    pub fn with_flows(
        options: WorkerOptions,
        tables: Arc<Tables>,
        shared: Arc<Shared>,
        cache: PoolCache,
        handoff: Handoff,
        (flows4, flows6): (FlowTable<Entry4>, FlowTable<Entry6>),
    ) -> Self {
        let mut spaces = Vec::new();
        shared.spaces.catch_up(&mut spaces);
        let known = Known::new(&tables, options.id);
        Pipeline {
            options,
            tables,
            flows4,
            flows6,
            spaces,
            leases: Leases::new(Secret::new(options.seed)),
            fragments: Fragments::default(),
            learned: Learned::default(),
            streams: Streams::default(),
            tally: Tally::default(),
            counters: Arc::new(Counters::default()),
            cache,
            outbox: Outbox::default(),
            handoff,
            shared,
            trace: None,
            now: 0,
            tick: 0,
            swept_tick: u32::MAX,
            sweep_due: [0; 2],
            again: Vec::with_capacity(2 * BATCH),
            waiting: Vec::with_capacity(WAITING),
            heirs: Vec::new(),
            wait_until: None,
            released: Vec::with_capacity(BATCH),
            known,
            columns: Columns::new(),
            others: Vec::with_capacity(BATCH),
        }
    }

    /// Sets the turn's time.
    pub fn set_time(&mut self, now: u64) {
        self.now = now;
        self.tick = (now >> TICK_SHIFT) as u32;
        self.outbox.set_time(now);
    }

    /// Replaces the tables; `false` if control is just changing the shared port ranges (try again next turn).
    pub fn adopt(&mut self, tables: &Arc<Tables>) -> bool {
        if !self.shared.spaces.catch_up(&mut self.spaces) {
            return false;
        }
        if !self.learned.is_empty() {
            // A port that has come to another pod takes nothing of what the old one was told.
            let (old, new) = (Arc::clone(&self.tables), tables);
            self.learned.forget(|zone| match (old.pods.by_port(zone), new.pods.by_port(zone)) {
                (Some(a), Some(b)) => a.name == b.name && a.addresses == b.addresses,
                (None, Some(_)) => true,
                (_, None) => false,
            });
        }
        self.tables = Arc::clone(tables);
        self.known.renew(tables);
        true
    }

    /// Decides anew what waited for a neighbour; called when tables have changed.
    pub fn resume(&mut self) {
        self.take_over();
        if self.waiting.is_empty() {
            return;
        }
        for (deadline, mut item) in std::mem::take(&mut self.waiting) {
            item.meta.fate = Fate::Pending;
            self.wait_until = Some(deadline);
            self.again.push(item);
            self.finish();
        }
        self.wait_until = None;
        self.show_held();
    }

    /// Ends what has waited for a neighbour too long.
    pub(crate) fn give_up_waiting(&mut self) {
        while let Some(at) = self.waiting.iter().position(|(deadline, _)| *deadline <= self.now) {
            let (_, mut item) = self.waiting.remove(at);
            item.refuse(Reason::NoNeighbour);
            self.settle(item);
        }
    }

    /// Gives back the frames that still wait, for an end.
    pub(crate) fn let_go(&mut self) {
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|(_, item)| item);
        for item in waiting.chain(self.fragments.let_go()) {
            self.cache.free(item.frame);
        }
    }

    /// Shows how many packets wait.
    pub(crate) fn show_held(&self) {
        self.counters.held.set((self.fragments.held() + self.waiting.len()) as u64);
    }

    /// Sets or removes the listener.
    pub fn listen(&mut self, trace: Option<Box<dyn Trace>>) {
        self.trace = trace;
    }

    /// This worker's free frames.
    pub fn cache_mut(&mut self) -> &mut PoolCache {
        &mut self.cache
    }

    /// Its flow tables, IPv4 and IPv6.
    pub fn flows(&self) -> (&FlowTable<Entry4>, &FlowTable<Entry6>) {
        (&self.flows4, &self.flows6)
    }

    /// The turn's time in ticks.
    pub fn tick(&self) -> u32 {
        self.tick
    }

    /// What its pods were told of domain names.
    pub fn lessons(&self) -> Vec<Lesson> {
        self.learned.lessons(self.now)
    }

    /// Takes up what another process had learned for pods of this worker.
    pub fn take_up(&mut self, lessons: &[Lesson]) {
        self.learned.take_up(lessons, self.now);
        self.counters.domain_addresses.set(self.learned.len() as u64);
    }

    /// Verdicts by rule.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Its counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Opens the lane of a port without a device: what is sent waits for [`take_lane`](Self::take_lane).
    pub fn open_lane(&mut self, port: u16, capabilities: sluice_port::Capabilities) {
        self.outbox.open(port, capabilities);
    }

    /// Takes what was sent on a lane.
    pub fn take_lane(&mut self, port: u16) -> Burst {
        self.outbox.take(port)
    }

    /// Handles what other workers have handed over; returns their number. `room` is scratch space.
    pub fn take_handed(&mut self, room: &mut Vec<Item>) -> usize {
        let n = self.handoff.pop(BATCH, room);
        if n > 0 {
            self.receive_handed(room);
        }
        n
    }

    /// Whether somebody listens.
    #[inline(always)]
    pub(crate) fn tracing(&self) -> bool {
        self.trace.is_some()
    }

    /// Sends a frame that nobody's packet has caused; `false` if there is no free frame.
    pub fn originate(&mut self, port: u16, bytes: &[u8]) -> bool {
        let Some(mut frame) = self.cache.alloc_copy(bytes) else { return false };
        self.counters.originated.add(1);
        frame.port = port;
        let mut item = Item::received(frame);
        item.meta.own = true;
        item.meta.fate = Fate::Send(port);
        self.settle(item);
        true
    }

    // Each stage is a function of its own: in one piece they have not registers enough.

    /// Takes frames just received, each of which names its port, in their order. `burst` is left empty.
    pub fn receive(&mut self, burst: &mut Burst) {
        self.counters.received.add(burst.len() as u64);
        self.counters.batch(burst.len());
        while !burst.is_empty() {
            let n = burst.len().min(BATCH);
            if self.enter(&mut burst[..n]) < n {
                self.enter_others(burst, n);
            }
            self.find(n);
            let ordinary = n - self.others.len();
            self.turn_steady(&mut burst[..ordinary], n);
            self.leave(burst, n);
        }
        self.finish();
    }

    /// Stage one: parse, key, hash, bucket asked for. Returns the number of ordinary packets.
    #[inline(never)]
    fn enter(&mut self, frames: &mut [Frame]) -> usize {
        if self.tracing() {
            // A listener is told more than the columns hold.
            self.columns.facts = [Facts::default(); BATCH];
            return 0;
        }
        let Pipeline { known, tables, flows4, flows6, columns, .. } = self;
        let mut entrance = Entrance { known, tables, flows4, flows6, columns };
        frames.iter().take(AHEAD).for_each(prefetch_head);
        let mut ordinary = 0;
        for at in 0..frames.len() {
            if let Some(later) = frames.get(at + AHEAD) {
                prefetch_head(later);
            }
            if entrance.plain(at, &mut frames[at]) {
                ordinary += 1;
            } else {
                entrance.columns.facts[at].kind = Kind::Other;
            }
        }
        ordinary
    }

    /// Stage one of the others, which become items.
    #[cold]
    fn enter_others(&mut self, burst: &mut Burst, n: usize) {
        let (facts, mut at) = (&self.columns.facts, 0);
        let is_other = |_: &mut Frame| {
            at += 1;
            facts[at - 1].kind == Kind::Other
        };
        self.others.extend(burst.extract_if(..n, is_other).map(Item::received));
        let mut others = std::mem::take(&mut self.others);
        let mut places = 0..n;
        for item in &mut others {
            let Some(at) = places.find(|at| self.columns.facts[*at].kind == Kind::Other) else { break };
            self.classify(item);
            if item.meta.fate == Fate::Pending {
                self.key_stage(at, item);
            }
        }
        self.others = others;
    }

    /// Stage two: tags compared, entry asked for.
    #[inline(never)]
    fn find(&mut self, n: usize) {
        let Pipeline { flows4, flows6, columns, others, .. } = self;
        let mut missing = false;
        for at in 0..n.min(BATCH) {
            let kind = columns.facts[at].kind;
            columns.slots[at] = if kind == Kind::V4 {
                flows4.candidate(columns.hashes[at])
            } else if kind == Kind::V6 {
                flows6.candidate(columns.hashes[at])
            } else {
                Slot::NONE
            };
            missing |= columns.slots[at] == Slot::NONE;
        }
        if missing {
            for at in 0..n.min(BATCH) {
                if columns.slots[at] == Slot::NONE {
                    columns.slots[at] = match columns.facts[at].kind {
                        Kind::V4 => flows4.second_candidate(columns.hashes[at]),
                        Kind::V6 => flows6.second_candidate(columns.hashes[at]),
                        Kind::Foreign | Kind::Other => Slot::NONE,
                    };
                }
            }
        }
        if !others.is_empty() {
            self.find_others(n);
        }
    }

    #[cold]
    fn find_others(&mut self, n: usize) {
        let Pipeline { flows4, flows6, columns, others, .. } = self;
        let mut places = (0..n).filter(|at| columns.facts[*at].kind == Kind::Other);
        for (item, at) in others.iter().zip(&mut places) {
            if item.meta.fate == Fate::Pending {
                let hash = item.meta.hash;
                columns.slots[at] = match item.meta.packet.family {
                    4 => flows4.candidate(hash),
                    _ => flows6.candidate(hash),
                };
            }
        }
    }

    /// Stage four: each packet in its order goes into a lane if it is ready, else the general way as an item.
    #[inline(never)]
    fn leave(&mut self, burst: &mut Burst, n: usize) {
        let mut others = std::mem::take(&mut self.others);
        let host = self.tables.node.host;
        let (mut queued, mut punted) = (0u64, 0u64);
        {
            let mut frames = Dealer::new(burst, n - others.len());
            let mut items = others.drain(..);
            let outs = self.columns.outs;
            for (at, port) in outs.iter().copied().enumerate().take(n) {
                if port != NO_PORT
                    && let Some(lane) = self.outbox.plain_lane(port)
                {
                    lane.push(frames.take());
                    queued += 1;
                    punted += u64::from(port == host);
                } else {
                    self.leave_as_item(at, port, &mut frames, &mut items);
                }
            }
        }
        self.outbox.count_queued(queued as usize);
        self.counters.sent.add(queued - punted);
        self.counters.punted.add(punted);
        self.others = others;
    }

    /// A packet that no ordinary lane takes.
    #[inline(never)]
    fn leave_as_item(&mut self, at: usize, port: u16, frames: &mut Dealer<'_>, items: &mut std::vec::Drain<'_, Item>) {
        let mut item = if port != NO_PORT {
            let mut item = Item::received(frames.take());
            item.meta.fate = Fate::Send(port);
            item
        } else if self.columns.facts[at].kind != Kind::Other {
            self.columns.item(at, frames.take())
        } else if let Some(item) = items.next() {
            item
        } else {
            return;
        };
        self.apply_at(at, &mut item);
        self.settle(item);
    }

    /// The flow of an item whose key and candidate stand at a position, unless its fate is set.
    fn apply_at(&mut self, at: usize, item: &mut Item) {
        if item.meta.fate != Fate::Pending {
            return;
        }
        let slot = self.columns.slots[at];
        if item.meta.packet.family == 4 {
            let key = self.columns.keys4[at];
            self.apply::<Entry4>(item, &key, slot);
        } else {
            let key = self.columns.keys6[at];
            self.apply::<Entry6>(item, &key, slot);
        }
    }

    /// Takes packets that other workers handed over: they know their half.
    pub fn receive_handed(&mut self, items: &mut Vec<Item>) {
        self.counters.handed_in.add(items.len() as u64);
        self.pass(items);
        self.finish();
    }

    /// Runs the remaining halves of packets that stay on this worker.
    fn finish(&mut self) {
        for _ in 0..MAX_PASSES {
            if self.again.is_empty() && self.released.is_empty() {
                return;
            }
            let mut items = std::mem::take(&mut self.again);
            items.append(&mut self.released);
            while items.len() > BATCH {
                let mut part: Vec<Item> = items.drain(..BATCH).collect();
                self.pass(&mut part);
            }
            self.pass(&mut items);
            // Keep the allocation; `again` may have been filled by the pass.
            items.append(&mut self.again);
            self.again = items;
        }
        // Halves that never end are a loop in the tables.
        while let Some(mut item) = self.again.pop() {
            item.refuse(Reason::NoRoute);
            self.settle(item);
        }
    }

    /// One half of up to [`BATCH`] packets that know their half.
    fn pass(&mut self, items: &mut Vec<Item>) {
        debug_assert!(items.len() <= BATCH);
        for (at, item) in items.iter_mut().enumerate().take(BATCH) {
            if item.meta.fate == Fate::Pending {
                self.key_stage(at, item);
            }
        }
        self.look_up(items);
    }

    /// From the buckets, which were asked for, to the way out.
    fn look_up(&mut self, items: &mut Vec<Item>) {
        let mut missing = false;
        for (at, item) in items.iter().enumerate().take(BATCH) {
            self.columns.slots[at] = Slot::NONE;
            if item.meta.fate == Fate::Pending {
                let found = match item.meta.packet.family {
                    4 => self.flows4.candidate(item.meta.hash),
                    _ => self.flows6.candidate(item.meta.hash),
                };
                missing |= found == Slot::NONE;
                self.columns.slots[at] = found;
            }
        }
        if missing {
            self.look_further(items);
        }
        let mut items = items.drain(..);
        for at in 0.. {
            let Some(mut item) = items.next() else { break };
            self.apply_at(at, &mut item);
            self.settle(item);
        }
    }

    /// The second bucket of those that the first one did not have.
    fn look_further(&mut self, items: &[Item]) {
        for (at, item) in items.iter().enumerate().take(BATCH) {
            if self.columns.slots[at] == Slot::NONE && item.meta.fate == Fate::Pending {
                self.columns.slots[at] = match item.meta.packet.family {
                    4 => self.flows4.second_candidate(item.meta.hash),
                    _ => self.flows6.second_candidate(item.meta.hash),
                };
            }
        }
    }

    /// Computes the flow key and asks for its bucket. Fragments and ICMP errors leave the fast path here.
    #[inline(always)]
    pub(crate) fn key_stage(&mut self, at: usize, item: &mut Item) {
        let meta = &mut item.meta;
        if (meta.packet.fragment && !meta.fragment_known) || meta.packet.shape == Shape::IcmpError {
            self.uncommon(item);
            if item.meta.fate != Fate::Pending {
                return;
            }
        }
        let side = side_of(item.meta.role);
        let (packet, zone) = (item.meta.packet, item.meta.zone);
        if packet.family == 4 {
            let Some(l3) = item.l3().first_chunk::<20>() else { return item.drop(Reason::Malformed, Stage::Parse) };
            let key = Key4::of(l3, &packet, zone, side);
            let hash = self.flows4.hash(&key);
            self.flows4.prefetch_bucket(hash);
            self.columns.keys4[at] = key;
            item.meta.hash = hash;
        } else {
            let Some(l3) = item.l3().first_chunk::<40>() else { return item.drop(Reason::Malformed, Stage::Parse) };
            let key = Key6::of(l3, &packet, zone, side);
            let hash = self.flows6.hash(&key);
            self.flows6.prefetch_bucket(hash);
            self.columns.keys6[at] = key;
            item.meta.hash = hash;
        }
    }

    /// Moves an item's frame to where its fate says.
    pub(crate) fn settle(&mut self, mut item: Item) {
        match item.meta.fate {
            Fate::Send(port) if !self.outbox.has(port) => self.send_elsewhere(item, port),
            Fate::Send(port) => {
                if self.tracing() {
                    let event = if port == self.tables.node.host { Event::Punted(port) } else { Event::Sent(port) };
                    self.tell(&item, event);
                }
                let sent = if port == self.tables.node.host { &self.counters.punted } else { &self.counters.sent };
                self.outbox.push(port, item.frame, &mut self.cache, &self.counters, sent);
            }
            Fate::Drop(reason, stage) => {
                self.counters.lost(reason, stage);
                if self.tracing() {
                    self.tell(&item, Event::Dropped(reason, stage));
                }
                self.cache.free(item.frame);
            }
            Fate::Again | Fate::Pending => {
                item.meta.fate = Fate::Pending;
                self.again.push(item);
            }
            Fate::Handoff(worker) => {
                item.meta.fate = Fate::Pending;
                match self.handoff.push(worker, item) {
                    Ok(()) => self.counters.handed_out.add(1),
                    Err(mut item) => {
                        item.refuse(Reason::HandoffFull);
                        self.settle(item);
                    }
                }
            }
            Fate::Hold => {
                if self.tracing() {
                    self.tell(&item, Event::Held);
                }
                self.fragments.hold(item);
                self.show_held();
            }
            Fate::AwaitNeighbour if self.waiting.len() < WAITING => {
                if self.tracing() {
                    self.tell(&item, Event::Held);
                }
                let deadline = self.wait_until.unwrap_or(self.now + NEIGHBOUR_WAIT);
                self.waiting.push((deadline, item));
                self.show_held();
            }
            Fate::AwaitNeighbour => {
                item.refuse(Reason::NoNeighbour);
                self.settle(item);
            }
            Fate::Consumed => {
                self.counters.consumed.add(1);
                self.cache.free(item.frame);
            }
        }
    }

    /// Hands a finished frame to the worker that sends on its port.
    #[cold]
    fn send_elsewhere(&mut self, mut item: Item, port: u16) {
        let owner = self.tables.pods.by_port(port).map_or(self.host_worker(), |pod| pod.worker);
        if owner == self.options.id {
            // The port is going or has not come yet.
            item.drop(Reason::TxFull, Stage::Send);
            return self.settle(item);
        }
        match self.handoff.push(owner, item) {
            Ok(()) => self.counters.handed_out.add(1),
            Err(mut item) => {
                item.drop(Reason::HandoffFull, Stage::Send);
                self.settle(item);
            }
        }
    }

    /// Tells the listener what befell an item.
    #[cold]
    pub(crate) fn tell(&mut self, item: &Item, event: Event) {
        if let Some(trace) = &mut self.trace {
            trace.event(item.meta.port, event, item.note.as_deref(), Some(item.frame.head()));
        }
    }

    /// The note of an item, made when first asked for; `None` while nobody listens.
    pub(crate) fn note<'a>(&self, item: &'a mut Item) -> Option<&'a mut Note> {
        if self.trace.is_none() { None } else { Some(item.note.get_or_insert_default()) }
    }

    /// Puts an item into another half on this node; `worker` owns it.
    pub(crate) fn continue_as(&self, item: &mut Item, role: Role, zone: u16, worker: u16) {
        item.meta.role = role;
        item.meta.zone = zone;
        item.meta.fate = if worker == self.options.id { Fate::Again } else { Fate::Handoff(worker) };
    }

    /// Worker that polls and owns the host port.
    pub(crate) fn host_worker(&self) -> u16 {
        0
    }
}

/// Asks for the first two lines of a frame's headers.
#[inline(always)]
fn prefetch_head(frame: &Frame) {
    let head = frame.data_ptr();
    sluice_port::prefetch::prefetch(head);
    sluice_port::prefetch::prefetch(head.wrapping_add(64));
}

/// Side of the zone's border a half crosses.
#[inline(always)]
pub(crate) fn side_of(role: Role) -> Side {
    match role {
        Role::Pod | Role::Host => Side::From,
        Role::Ingress | Role::Node | Role::Transit => Side::To,
    }
}

/// Counts a gauge down without wrapping below zero.
pub(crate) fn saturating_dec(gauge: &AtomicU32) {
    let _ = gauge.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
}
