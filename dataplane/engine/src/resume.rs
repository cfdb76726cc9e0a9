//! Flows of an earlier process, taken up again: what their numbers refer to is looked at before the first packet.
//!
//! An entry holds numbers of tables that are gone. Hops and Services are safe as they are, since an entry is used only
//! while the number leads to content of the remembered version (`docs/adr/0006`), else it is asked again. The rest is
//! settled here, per connection:
//! - pods: the port number must be a pod's that has the address; policy is asked again with the next packet, so that rules
//!   that changed meanwhile hold and the rule's number is one of these tables;
//! - SNAT: the space is found by its address, the block is leased anew before any new flow can get it;
//! - workers: a connection goes to the worker that now owns it, and remembers workers by their new numbers.
//!
//! Owner: the thread that runs it, before the worker's own starts. Cost: about 200 ns for a connection.

use crate::flow::recover::{Fate, proves_itself};
use crate::flow::{Entry, Entry4, Entry6, FlowTable, Next, Side, State, Stored, Tuple};
use crate::nat::{Leases, SnatSpace, owner_of};
use crate::pipeline::{Pipeline, TICK_SHIFT, TICKS_PER_SECOND};
use sluice_tables::{Pod, Tables};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Connections on their way to another worker's table, with the worker that had them.
#[derive(Default)]
pub struct Strays {
    v4: Vec<(u16, Entry4, Entry4)>,
    v6: Vec<(u16, Entry6, Entry6)>,
}

impl Strays {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds the connections of a table whose worker is no more. Returns how many pairs did not prove themselves.
    pub fn collect4(&mut self, worker: u16, entries: &[Entry4]) -> u32 {
        collect(&mut self.v4, worker, entries)
    }

    /// The same for IPv6.
    pub fn collect6(&mut self, worker: u16, entries: &[Entry6]) -> u32 {
        collect(&mut self.v6, worker, entries)
    }

    /// Takes over what another list holds.
    pub fn append(&mut self, mut other: Strays) {
        self.v4.append(&mut other.v4);
        self.v6.append(&mut other.v6);
    }
}

fn collect<E: Entry>(list: &mut Vec<(u16, E, E)>, worker: u16, entries: &[E]) -> u32 {
    let mut torn = 0;
    for pair in entries.chunks_exact(2) {
        if pair[0].common().state == 0 {
            continue;
        }
        match proves_itself(&pair[0], &pair[1]) {
            true => list.push((worker, pair[0], pair[1])),
            false => torn += 1,
        }
    }
    torn
}

impl Pipeline {
    /// Takes up what stands in this worker's tables; what belongs to others goes to `strays`. `now` as for
    /// [`set_time`](Self::set_time); the tables must be those that the first packet will meet, and their SNAT ranges there.
    pub fn resume_flows(&mut self, now: u64, strays: &mut Strays) -> Stored {
        self.set_time(now);
        self.shared.spaces.catch_up(&mut self.spaces);
        let mut judge = Judge {
            tables: &self.tables,
            spaces: &self.spaces,
            leases: &mut self.leases,
            id: self.options.id,
            workers: self.options.workers,
            tick: self.tick,
        };
        let found =
            judge.recover(&mut self.flows4, &mut strays.v4).plus(judge.recover(&mut self.flows6, &mut strays.v6));
        self.count_in(found.kept);
        found
    }

    /// Takes in those strays that are this worker's and leaves the others.
    pub fn take_strays(&mut self, strays: &mut Strays) -> Stored {
        let mut judge = Judge {
            tables: &self.tables,
            spaces: &self.spaces,
            leases: &mut self.leases,
            id: self.options.id,
            workers: self.options.workers,
            tick: self.tick,
        };
        let found = judge.take(&mut self.flows4, &mut strays.v4).plus(judge.take(&mut self.flows6, &mut strays.v6));
        self.count_in(found.kept);
        found
    }

    fn count_in(&self, kept: u32) {
        self.shared.flows.fetch_add(kept, Ordering::Relaxed);
        self.counters.flows.add(u64::from(kept));
    }
}

struct Judge<'a> {
    tables: &'a Tables,
    spaces: &'a [Arc<SnatSpace>],
    leases: &'a mut Leases,
    id: u16,
    workers: u16,
    tick: u32,
}

impl Judge<'_> {
    fn recover<E: Entry>(&mut self, table: &mut FlowTable<E>, strays: &mut Vec<(u16, E, E)>) -> Stored {
        let mut lost = Vec::new();
        let id = self.id;
        let found = table.recover(&mut lost, |a, b, fits| {
            let fate = self.judge(id, a, b, fits);
            if fate == Fate::Move {
                strays.push((id, *a, *b));
            }
            fate
        });
        lost.iter().for_each(|original| self.give_back(original));
        found
    }

    fn take<E: Entry>(&mut self, table: &mut FlowTable<E>, strays: &mut Vec<(u16, E, E)>) -> Stored {
        let mut found = Stored::default();
        strays.retain_mut(|(worker, a, b)| {
            match self.judge(*worker, a, b, true) {
                Fate::Move => return true,
                Fate::End => found.ended += 1,
                // A key may be there already if the file was copied, or the process killed between two tables.
                Fate::Keep if table.find(a.key()).is_some() || table.find(b.key()).is_some() => {
                    self.give_back(a);
                    found.torn += 1;
                }
                Fate::Keep => match table.insert(*a, Some(*b).filter(|b| b.common().state != 0)) {
                    Ok(_) => found.kept += 1,
                    Err(_) => {
                        self.give_back(a);
                        found.ended += 1;
                    }
                },
            }
            false
        });
        found
    }

    /// What becomes of a whole pair that worker `from` had. Kept ones have their numbers brought up to date and their SNAT
    /// port leased.
    fn judge<E: Entry>(&mut self, from: u16, a: &mut E, b: &mut E, fits: bool) -> Fate {
        if !self.is_fresh(a, b) || !self.has_its_pods(a) || !self.has_its_pods(b) {
            return Fate::End;
        }
        match self.owner(from, a) {
            None => return Fate::End,
            Some(owner) if owner != self.id || !fits => return Fate::Move,
            Some(_) => {}
        }
        if !self.lease(a) {
            return Fate::End;
        }
        let state = match (State::from_byte(a.common().state), State::from_byte(b.common().state)) {
            // A kill between the two: what forbids counts, else what came later.
            (state, State::Free) => state,
            (state, other) => state.max(other),
        };
        for entry in [a, b] {
            let workers = self.workers;
            let c = entry.common_mut();
            if c.state == 0 {
                continue;
            }
            c.state = state as u8;
            if c.pod != 0 {
                c.policy_version = 0;
            }
            if c.next() == Next::Transit {
                c.aux = successor(c.aux, workers);
            }
        }
        Fate::Keep
    }

    /// Whether a connection was seen within its time; marks from a clock that was ahead of this one are brought back.
    fn is_fresh<E: Entry>(&self, a: &mut E, b: &mut E) -> bool {
        let mut idle = u32::MAX;
        for entry in [&mut *a, b] {
            let c = entry.common_mut();
            if c.state == 0 {
                continue;
            }
            let age = self.tick.wrapping_sub(c.last_seen);
            if age > u32::MAX / 2 {
                c.last_seen = self.tick;
                idle = 0;
            }
            idle = idle.min(age);
        }
        let (tuple, ..) = a.parts();
        let allowed = State::from_byte(a.common().state).timeout(tuple.protocol, &self.tables.settings.timeouts);
        u64::from(idle) <= u64::from(allowed) * u64::from(TICKS_PER_SECOND)
    }

    /// Whether the pods that an entry names by port are there, and the one whose border it crosses has the address.
    fn has_its_pods<E: Entry>(&self, entry: &E) -> bool {
        let c = entry.common();
        if c.state == 0 {
            return true;
        }
        if c.pod != 0 && self.tables.pods.by_port(c.pod).is_none() {
            return false;
        }
        let (tuple, zone, side) = entry.parts();
        zone == 0 || self.tables.pods.by_port(zone).is_some_and(|pod| is_address_of(pod, &tuple, side))
    }

    /// The worker whose table a connection belongs to.
    fn owner<E: Entry>(&self, from: u16, original: &E) -> Option<u16> {
        match original.parts() {
            (_, 0, Side::From) => Some(0),
            // Through this gateway: one worker has all of a pod's flows.
            (tuple, 0, Side::To) if self.tables.egress.addresses.contains(&original.to().source) => {
                Some(owner_of(tuple.source, self.workers))
            }
            (_, 0, Side::To) => Some(successor(from, self.workers)),
            (_, zone, _) => self.tables.pods.by_port(zone).map(|pod| pod.worker),
        }
    }

    /// Leases a connection's SNAT port; `false`: it is no longer this node's to give.
    fn lease<E: Entry>(&mut self, original: &mut E) -> bool {
        if original.common().space == 0 {
            return true;
        }
        let (from, to) = (original.parts().0.source, original.to());
        let found = self.spaces.iter().position(|space| space.address == to.source);
        let Some((index, space)) = found.and_then(|at| Some((at, self.spaces.get(at)?))) else { return false };
        let number = index as u16;
        if !self.leases.resume(space, number, from, self.id, to.source_port) {
            return false;
        }
        original.common_mut().space = number + 1;
        true
    }

    fn give_back<E: Entry>(&mut self, original: &E) {
        let Some(index) = original.common().space.checked_sub(1) else { return };
        if let Some(space) = self.spaces.get(usize::from(index)) {
            let at = u64::from(self.tick) << TICK_SHIFT;
            self.leases.give_back(space, index, original.parts().0.source, original.to().source_port, at);
        }
    }
}

/// The worker that has taken the place of an earlier one: queues of the uplink are dealt out the same way.
fn successor(worker: u16, workers: u16) -> u16 {
    worker % workers.max(1)
}

fn is_address_of(pod: &Pod, tuple: &Tuple, side: Side) -> bool {
    let own = match side {
        Side::From => tuple.source,
        Side::To => tuple.destination,
    };
    pod.addresses.contains(&own) || pod.extra_sources.iter().any(|prefix| prefix.contains(own))
}
