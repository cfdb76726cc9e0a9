//! What leaves the fast path before a flow can be looked up: fragments and ICMP errors. Also the upkeep of a turn.

use super::established::Family;
use super::fragment::{self, Step};
use crate::flow::{Common, Entry4, Entry6};
use crate::item::{Fate, Item, Role};
use crate::learned::Learned;
use crate::pipeline::{Pipeline, TICKS_PER_SECOND, saturating_dec};
use crate::reason::{Reason, Stage};
use sluice_wire::packet::Shape;
use std::sync::atomic::Ordering;

/// Connections looked at for expiry in one turn.
const SWEEP: u32 = 32;
/// Ticks in which every connection is looked at once, about 4 s: what a busy worker's turns do beyond that is wasted.
const SWEEP_TICKS: u32 = 64;

impl Pipeline {
    /// Handles a fragment or an ICMP error; a fragment whose ports are known goes on (fate still pending).
    #[cold]
    pub(crate) fn uncommon(&mut self, item: &mut Item) {
        if item.meta.packet.fragment && !item.meta.fragment_known {
            self.fragment(item);
            if item.meta.fate != Fate::Pending {
                return;
            }
        }
        if item.meta.packet.shape == Shape::IcmpError {
            self.icmp_error(item);
        }
    }

    fn fragment(&mut self, item: &mut Item) {
        let Some((key, info)) = fragment::key_of(item) else { return item.drop(Reason::Malformed, Stage::Parse) };
        let packet = item.meta.packet;
        let first = packet.shape != Shape::LaterFragment;
        let ports = first.then_some((packet.source_port, packet.destination_port));
        match self.fragments.note(key, info, ports, self.now) {
            Step::Pass(source, destination) => {
                item.meta.packet.source_port = source;
                item.meta.packet.destination_port = destination;
                item.meta.fragment_known = true;
                if first {
                    let n = self.fragments.release(&key, &mut self.released);
                    for _ in 0..n {
                        saturating_dec(&self.shared.fragments_held);
                    }
                    for held in self.released.iter_mut().rev().take(n as usize) {
                        held.meta.fate = Fate::Pending;
                        held.meta.fragment_known = true;
                        held.meta.packet.source_port = source;
                        held.meta.packet.destination_port = destination;
                    }
                    self.show_held();
                }
                if item.meta.role == Role::Node
                    && let Some((_, destination)) = super::classify::addresses(item)
                {
                    let owner = self.node_owner(item, destination);
                    if owner != self.options.id {
                        item.meta.fate = Fate::Handoff(owner);
                    }
                }
            }
            Step::Wait => {
                if self.shared.fragments_held.load(Ordering::Relaxed) >= fragment::HELD_LIMIT {
                    return item.drop(Reason::FragmentLimit, Stage::Parse);
                }
                self.shared.fragments_held.fetch_add(1, Ordering::Relaxed);
                item.meta.fate = Fate::Hold;
            }
            Step::Overlap => item.drop(Reason::Malformed, Stage::Parse),
            Step::Limit => item.drop(Reason::FragmentLimit, Stage::Parse),
        }
    }

    /// Upkeep of a worker that has nothing else to do.
    pub fn idle_upkeep(&mut self) {
        self.sweep::<Entry4>(64 * SWEEP);
        self.sweep::<Entry6>(64 * SWEEP);
        self.cache.account();
    }

    /// A bounded slice of upkeep: idle flows, old fragments.
    pub fn upkeep(&mut self) {
        if self.swept_tick != self.tick {
            self.swept_tick = self.tick;
            let share = |used: u32| SWEEP.max(used.div_ceil(SWEEP_TICKS));
            self.sweep_due = [share(self.flows4.used()), share(self.flows6.used())];
        }
        let [due4, due6] = self.sweep_due.map(|due| due.min(SWEEP));
        if due4 > 0 {
            self.sweep_due[0] -= due4;
            self.sweep::<Entry4>(due4);
        }
        if due6 > 0 {
            self.sweep_due[1] -= due6;
            self.sweep::<Entry6>(due6);
        }
        self.flows4.grow_ahead();
        self.flows6.grow_ahead();
        self.give_up_waiting();
        if !self.learned.is_empty() {
            self.learned.tidy(self.now);
            self.counters.domain_addresses.set(self.learned.len() as u64);
        }
        let mut late = Vec::new();
        self.fragments.expire(self.now, &mut late);
        for mut item in late {
            saturating_dec(&self.shared.fragments_held);
            item.drop(Reason::FragmentTimeout, Stage::Parse);
            self.settle(item);
        }
        self.show_held();
    }

    /// Looks at the next `pairs` flows of a family and ends those that are idle or whose pod is gone.
    fn sweep<E: Family>(&mut self, pairs: u32) {
        let (tick, tables) = (self.tick, std::sync::Arc::clone(&self.tables));
        let mut gone: Vec<E> = Vec::new();
        let (mut learned, now) = (std::mem::replace(&mut self.learned, Learned::nothing()), self.now);
        E::table_mut(self).sweep(
            pairs,
            |table, slot| {
                let orphan = table
                    .get(slot)
                    .is_some_and(|e| e.common().pod != 0 && tables.pods.by_port(e.common().pod).is_none());
                let over = orphan || table.is_expired(slot, tick, TICKS_PER_SECOND, &tables.settings.timeouts);
                if !over && let Some(e) = table.get(slot).filter(|e| e.common().bits & Common::NAMED != 0) {
                    learned.hold(e.common().pod, e.to().destination, now);
                    learned.hold(e.common().pod, e.parts().0.destination, now);
                }
                over
            },
            |original, _| gone.push(*original),
        );
        self.learned = learned;
        for entry in &gone {
            self.release_flow(entry);
        }
    }
}
