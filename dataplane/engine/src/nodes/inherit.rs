//! Flows of an egress address that has come from another node: made again from their mappings, before a packet of theirs
//! is looked at.
//!
//! Mappings come before the tables that make this node the address's carrier, and wait for them; so no packet finds the
//! address here and its flow not. Each is checked as a first packet would be: the pod is still selected, leaves here and
//! with this address, there is a way out and a way back. What does not hold is left out: that flow begins anew, or ends.

use super::established::Family;
use super::plan::flow_hash;
use crate::flow::{Common, Entry4, Entry6, Next, Side, State, Tuple};
use crate::nat::{Mapping, Wish};
use crate::pipeline::Pipeline;
use sluice_tables::{EgressPath, HopId, Route};
use std::sync::atomic::Ordering;

/// Nanoseconds a mapping may wait for its tables and for its neighbour.
const WAIT: u64 = 3_000_000_000;

/// What became of a mapping.
enum Heir {
    Made,
    Later,
    Refused,
}

impl Pipeline {
    /// Mappings of an address that will come here with the next tables.
    pub fn inherit(&mut self, mappings: Vec<Mapping>) {
        let until = self.now + WAIT;
        self.heirs.extend(mappings.into_iter().map(|mapping| (until, mapping)));
    }

    /// Makes the flows that waited for these tables.
    pub(crate) fn take_over(&mut self) {
        if self.heirs.is_empty() {
            return;
        }
        for (until, mapping) in std::mem::take(&mut self.heirs) {
            let heir = match mapping.source.is_v4() {
                true => self.make_heir::<Entry4>(&mapping),
                false => self.make_heir::<Entry6>(&mapping),
            };
            match heir {
                Heir::Made => self.shared.mirror.note(mapping, true),
                Heir::Later if until > self.now => self.heirs.push((until, mapping)),
                Heir::Later | Heir::Refused => {}
            }
        }
    }

    fn make_heir<E: Family>(&mut self, mapping: &Mapping) -> Heir {
        let tables = self.tables.clone();
        let original = Tuple {
            source: mapping.source,
            destination: mapping.destination,
            source_port: mapping.source_port,
            destination_port: mapping.destination_port,
            protocol: mapping.protocol,
        };
        let translated = Tuple { source: mapping.address, source_port: mapping.port, ..original };
        if !tables.egress.addresses.contains(&mapping.address) {
            return Heir::Later;
        }
        let rule = tables.egress.rule(original.source, original.destination);
        if !rule.is_some_and(|rule| rule.path == EgressPath::Here && rule.address == mapping.address) {
            return Heir::Refused;
        }
        let Some(Route::Tunnel(back)) = tables.routes.lookup(original.source) else { return Heir::Refused };
        let out = match tables.routes.lookup(original.destination) {
            Some(Route::External(hop)) => hop,
            Some(Route::Unresolved) => {
                self.shared.wanted.ask(original.destination);
                return Heir::Later;
            }
            _ => return Heir::Refused,
        };
        let reply = translated.reverse();
        let (there, back_key) = (E::key_of(&original, 0, Side::To), E::key_of(&reply, 0, Side::To));
        if E::table(self).find(&there).is_some() || E::table(self).find(&back_key).is_some() {
            return Heir::Refused;
        }
        let Some(index) = self.spaces.iter().position(|s| s.address == mapping.address) else { return Heir::Refused };
        let space = self.spaces[index].clone();
        let limit = self.shared.max_flows.load(Ordering::Relaxed);
        if self.shared.flows.load(Ordering::Relaxed) >= limit {
            return Heir::Refused;
        }
        let wish = Wish {
            space: index as u16,
            source: original.source,
            worker: self.options.id,
            flow_hash: flow_hash(&original),
            quota: tables.settings.snat_blocks_per_source,
            at: self.now,
        };
        if !self.leases.take_over(&space, &wish, mapping.port) {
            return Heir::Refused;
        }
        let state = match original.protocol {
            6 => State::Established,
            _ => State::Stream,
        };
        let common = |hop: HopId, bits: u8, space: u16| {
            let mut common = Common {
                hop: hop.0,
                hop_version: tables.hops.get(hop).map_or(0, |h| h.version),
                bits,
                space,
                state: state as u8,
                policy_version: tables.pods.versions().first().copied().unwrap_or(0),
                service_version: tables.services.version(0),
                last_seen: self.tick,
                ..Common::default()
            };
            common.set_next(Next::Send);
            common
        };
        let first = E::make(there, &original, &translated, common(out, 0, index as u16 + 1));
        let second = E::make(back_key, &reply, &original.reverse(), common(back, Common::REPLY, 0));
        if E::table_mut(self).insert(first, Some(second)).is_err() {
            self.leases.give_back(&space, index as u16, original.source, mapping.port, self.now);
            return Heir::Refused;
        }
        self.shared.flows.fetch_add(1, Ordering::Relaxed);
        self.counters.flows_created.add(1);
        self.counters.flows.add(1);
        Heir::Made
    }

    /// Notes the beginning or end of a flow that would live on elsewhere if this node died.
    pub(crate) fn mirror(&self, original: &Tuple, translated: &Tuple, lives: bool) {
        if original.source == translated.source || !self.tables.egress.addresses.contains(&translated.source) {
            return;
        }
        let mapping = Mapping {
            address: translated.source,
            port: translated.source_port,
            protocol: original.protocol,
            source: original.source,
            source_port: original.source_port,
            destination: original.destination,
            destination_port: original.destination_port,
        };
        self.shared.mirror.note(mapping, lives);
    }
}
