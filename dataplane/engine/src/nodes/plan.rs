//! From a decision to a flow: what the first packet's walk found becomes two linked entries.

use super::established::Family;
use crate::flow::{Common, Entry4, Entry6, Next, Side, Slot, State, Tuple};
use crate::item::{Item, Role};
use crate::nat::Wish;
use crate::pipeline::{Pipeline, TICKS_PER_SECOND, saturating_dec, side_of};
use crate::reason::Reason;
use sluice_tables::hops::HopId;
use sluice_tables::{Address, RuleId};
use std::sync::atomic::Ordering;

/// Where packets of one direction go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub next: Next,
    pub hop: HopId,
    pub aux: u16,
}

impl Way {
    pub fn send(hop: HopId) -> Self {
        Way { next: Next::Send, hop, aux: 0 }
    }
}

/// A flow to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The first packet as it came.
    pub original: Tuple,
    /// As it leaves.
    pub translated: Tuple,
    /// Zone and side in which replies are looked up.
    pub reply_zone: u16,
    pub reply_side: Side,
    pub forward: Way,
    pub back: Way,
    /// Port of the pod whose policy decided; 0: none.
    pub pod: u16,
    /// Version slot of the Service; 0: none.
    pub slot: u16,
    pub rule: RuleId,
    /// Bits of [`Common`] that the verdict leaves in both entries.
    pub marks: u8,
    /// SNAT space + 1; 0: none.
    pub space: u16,
    /// The other side's packets do not pass here, or leave with another source than they were asked for at.
    pub direct: Option<Directly>,
}

/// Direct return, seen from one of its two nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Directly {
    /// Here the client asks; the answers go another way.
    Asked,
    /// Here the backend answers, from this address and port.
    Answers(Address, u16),
}

/// Entries looked at for an eviction when the table is full.
const EVICTION_SEARCH: u32 = 256;

impl Pipeline {
    /// Makes the flow of `plan` and returns the first packet's entry; sets the fate if there is no room.
    pub(crate) fn install(&mut self, item: &mut Item, plan: &Plan) -> Option<Slot> {
        if item.meta.packet.family == 4 {
            self.install_in::<Entry4>(item, plan)
        } else {
            self.install_in::<Entry6>(item, plan)
        }
    }

    fn install_in<E: Family>(&mut self, item: &mut Item, plan: &Plan) -> Option<Slot> {
        let side = side_of(item.meta.role);
        let state = State::first(item.meta.packet.protocol, item.meta.packet.tcp_flags);
        // Who sees one side only takes the client's word that it was answered.
        let one_sided = matches!(plan.direct, Some(Directly::Asked)) && state == State::SynSent;
        let state = if one_sided { State::SynReceived } else { state } as u8;
        let version_of = |hop: HopId| self.tables.hops.get(hop).map_or(0, |h| h.version);
        let keep = |way: &Way| {
            let to_host = way.next == Next::Send
                && self.tables.hops.get(way.hop).is_some_and(|h| h.port == self.tables.node.host);
            if way.next == Next::Node || to_host { Common::KEEP_TTL } else { 0 }
        };
        let base = Common {
            pod: plan.pod,
            slot: plan.slot,
            state,
            policy_version: self.tables.pods.versions().get(usize::from(plan.pod)).copied().unwrap_or(0),
            service_version: self.tables.services.version(plan.slot),
            last_seen: self.tick,
            ..Common::default()
        };
        let mut forward = Common {
            hop: plan.forward.hop.0,
            hop_version: version_of(plan.forward.hop),
            aux: plan.forward.aux,
            bits: keep(&plan.forward) | plan.marks,
            space: plan.space,
            rule: plan.rule.0,
            ..base
        };
        forward.set_next(plan.forward.next);
        let mut back = Common {
            hop: plan.back.hop.0,
            hop_version: version_of(plan.back.hop),
            aux: plan.back.aux,
            bits: Common::REPLY | keep(&plan.back) | plan.marks,
            ..base
        };
        back.set_next(plan.back.next);
        let reply_from = plan.translated.reverse();
        let mut answer = plan.original.reverse();
        if let Some(Directly::Answers(address, port)) = plan.direct {
            (answer.source, answer.source_port) = (address, port);
        }
        let original =
            E::make(E::key_of(&plan.original, item.meta.zone, side), &plan.original, &plan.translated, forward);
        let reply = E::make(E::key_of(&reply_from, plan.reply_zone, plan.reply_side), &reply_from, &answer, back);
        // The reply's place may be held by a flow that has timed out but was not swept yet.
        if let Some(stale) = E::table(self).find(reply.key()) {
            if !E::table(self).is_expired(stale, self.tick, TICKS_PER_SECOND, &self.tables.settings.timeouts) {
                self.give_back_port(plan);
                item.refuse(Reason::InvalidState);
                return None;
            }
            self.forget::<E>(stale);
        }
        if !self.make_room::<E>() {
            self.give_back_port(plan);
            item.refuse(Reason::FlowTableFull);
            return None;
        }
        match E::table_mut(self).insert(original, Some(reply)) {
            Ok(slot) => {
                self.shared.flows.fetch_add(1, Ordering::Relaxed);
                self.counters.flows_created.add(1);
                self.counters.flows.add(1);
                Some(slot)
            }
            Err(_) => {
                self.give_back_port(plan);
                item.refuse(Reason::FlowTableFull);
                None
            }
        }
    }

    /// Sees to it that one more flow may be made: half-open and closing ones make room, established ones never.
    fn make_room<E: Family>(&mut self) -> bool {
        let limit = self.shared.max_flows.load(Ordering::Relaxed);
        let full =
            |p: &Self| p.shared.flows.load(Ordering::Relaxed) >= limit || E::table(p).len() >= E::table(p).capacity();
        if !full(self) {
            return true;
        }
        if let Some(slot) = E::table_mut(self).evictable(EVICTION_SEARCH) {
            self.forget::<E>(slot);
        }
        !full(self)
    }

    /// Ends a flow.
    pub(crate) fn forget<E: Family>(&mut self, slot: Slot) {
        let slot = slot.original();
        let Some(entry) = E::table(self).get(slot).copied() else { return };
        if entry.common().state == 0 {
            return;
        }
        E::table_mut(self).remove(slot);
        self.release_flow(&entry);
    }

    /// Counts a removed flow out and gives its SNAT port back.
    pub(crate) fn release_flow<E: Family>(&mut self, original: &E) {
        saturating_dec(&self.shared.flows);
        let left = self.counters.flows.get().saturating_sub(1);
        self.counters.flows.set(left);
        let Some(index) = original.common().space.checked_sub(1) else { return };
        if let Some(space) = self.spaces.get(usize::from(index)).cloned() {
            let (from, zone, _) = original.parts();
            if zone == 0 {
                self.mirror(&from, &original.to(), false);
            }
            self.leases.give_back(&space, index, from.source, snat_port(&original.to()), self.now);
        }
    }

    fn give_back_port(&mut self, plan: &Plan) {
        if let Some(index) = plan.space.checked_sub(1)
            && let Some(space) = self.spaces.get(usize::from(index)).cloned()
        {
            self.leases.give_back(&space, index, plan.original.source, snat_port(&plan.translated), self.now);
        }
    }

    /// Gives the flow a port of `address`: sets source address and port of `translated` and returns the space + 1. Sets the
    /// fate if there is none.
    pub(crate) fn snat(
        &mut self,
        item: &mut Item,
        original: &Tuple,
        translated: &mut Tuple,
        address: Address,
    ) -> Option<u16> {
        use sluice_wire::packet::Shape;
        if !matches!(item.meta.packet.shape, Shape::Ports | Shape::Echo) {
            item.refuse(Reason::UnsupportedProtocol);
            return None;
        }
        let Some(index) = self.spaces.iter().position(|s| s.address == address) else {
            item.refuse(Reason::SnatPortsExhausted);
            return None;
        };
        let space = self.spaces[index].clone();
        let wish = Wish {
            space: index as u16,
            source: original.source,
            worker: self.options.id,
            flow_hash: flow_hash(original),
            quota: self.tables.settings.snat_blocks_per_source,
            at: self.now,
        };
        let mut leases = std::mem::take(&mut self.leases);
        let base = Tuple { source: address, ..*translated };
        let free = |port: u16| {
            let reply = with_source_port(&base, port).reverse();
            let found = if reply.destination.is_v4() {
                self.flows4.find(&reply.key4(0, Side::To)).map(|s| self.is_stale::<Entry4>(s))
            } else {
                self.flows6.find(&reply.key6(0, Side::To)).map(|s| self.is_stale::<Entry6>(s))
            };
            found != Some(false)
        };
        let port = leases.take(&space, &wish, free);
        self.leases = leases;
        match port {
            Some(port) => {
                *translated = with_source_port(&base, port);
                Some(index as u16 + 1)
            }
            None => {
                item.refuse(Reason::SnatPortsExhausted);
                None
            }
        }
    }

    fn is_stale<E: Family>(&self, slot: Slot) -> bool {
        E::table(self).is_expired(slot, self.tick, TICKS_PER_SECOND, &self.tables.settings.timeouts)
    }

    /// Whether replies of `translated` would be looked up under a key that another flow holds.
    pub(crate) fn reply_is_taken(&self, translated: &Tuple, zone: u16, side: Side) -> bool {
        let reply = translated.reverse();
        if reply.destination.is_v4() {
            self.flows4.find(&reply.key4(zone, side)).is_some_and(|s| !self.is_stale::<Entry4>(s))
        } else {
            self.flows6.find(&reply.key6(zone, side)).is_some_and(|s| !self.is_stale::<Entry6>(s))
        }
    }

    /// Two flows of one client that lead to one backend through two frontends: the second gets another source port.
    pub(crate) fn avoid_clash(&self, translated: &mut Tuple, zone: u16, side: Side) -> bool {
        if !self.reply_is_taken(translated, zone, side) {
            return true;
        }
        let start = flow_hash(translated);
        for step in 0..256u64 {
            let port = 32_768 + ((start.wrapping_add(step * 7919)) % 28_000) as u16;
            let other = with_source_port(translated, port);
            if !self.reply_is_taken(&other, zone, side) {
                *translated = other;
                return true;
            }
        }
        false
    }

    /// Walks the slow path of the packet's half; the flow's entry if one was made, else the fate says what happened.
    #[cold]
    pub(crate) fn decide(&mut self, item: &mut Item) -> Option<Slot> {
        let Some(tuple) = Tuple::of(item.l3(), &item.meta.packet) else {
            item.refuse(Reason::Malformed);
            return None;
        };
        let group = super::egress::is_group(tuple.destination);
        if (!is_sane_source(tuple.source) && !group) || super::egress::is_martian(tuple.destination) {
            item.refuse(Reason::Malformed);
            return None;
        }
        let plan = match item.meta.role {
            Role::Pod => self.walk_egress(item, tuple),
            Role::Ingress => self.walk_ingress(item, tuple),
            Role::Node => self.walk_node(item, tuple),
            Role::Transit => self.walk_transit(item, tuple),
            Role::Host => {
                if self.asks_the_pods_worker(item, &tuple) {
                    return None;
                }
                self.walk_host(item, tuple)
            }
        }?;
        let common = Common {
            hop: plan.forward.hop.0,
            aux: plan.forward.aux,
            bits: {
                let to_host = plan.forward.next == Next::Send
                    && self.tables.hops.get(plan.forward.hop).is_some_and(|h| h.port == self.tables.node.host);
                if plan.forward.next == Next::Node || to_host { Common::KEEP_TTL } else { 0 }
            },
            ..Common::default()
        };
        let mut common = common;
        common.set_next(plan.forward.next);
        if !self.fits(item, &common) {
            self.give_back_port(&plan);
            return None;
        }
        let slot = self.install(item, &plan)?;
        if plan.space != 0 && item.meta.role == Role::Transit {
            self.mirror(&plan.original, &plan.translated, true);
        }
        if item.meta.packet.tcp_flags & 0x02 != 0 {
            self.clamp_mss(item, &common);
        }
        Some(slot)
    }

    /// Refuses TCP packets that cannot begin a flow anywhere. `true`: the fate is set.
    pub(crate) fn cannot_begin(&self, item: &mut Item) -> bool {
        use crate::flow::state::flags::{ACK, RST, SYN};
        let packet = &item.meta.packet;
        if packet.protocol != 6 || packet.shape != sluice_wire::packet::Shape::Ports {
            return false;
        }
        let syn_ack = packet.tcp_flags & (SYN | ACK) == SYN | ACK;
        if syn_ack || packet.tcp_flags & RST != 0 {
            item.refuse(Reason::InvalidState);
            return true;
        }
        false
    }
}

/// A source that a host can have: not unspecified, loopback, multicast or broadcast (RFC 1122 §3.2.1.3, RFC 4291 §2.7).
fn is_sane_source(a: Address) -> bool {
    match a.family() {
        sluice_tables::Family::V4 => {
            let [first, ..] = a.last4();
            first != 0 && first != 127 && first < 224
        }
        sluice_tables::Family::V6 => a.bits() > 1 && a.0[0] != 0xff,
    }
}

/// The port SNAT gave: the source port, or an echo reply's identifier.
fn snat_port(translated: &Tuple) -> u16 {
    translated.source_port
}

fn with_source_port(tuple: &Tuple, port: u16) -> Tuple {
    Tuple { source_port: port, ..*tuple }
}

/// Hash of a tuple under fixed keys: the same on every node and in every run (backend choice, SNAT port choice).
pub(crate) fn flow_hash(tuple: &Tuple) -> u64 {
    let ports =
        u64::from(tuple.source_port) << 32 | u64::from(tuple.destination_port) << 16 | u64::from(tuple.protocol);
    let mut h = 0x243f_6a88_85a3_08d3_u64;
    for word in [
        (tuple.source.bits() >> 64) as u64,
        tuple.source.bits() as u64,
        (tuple.destination.bits() >> 64) as u64,
        tuple.destination.bits() as u64,
        ports,
    ] {
        let product = u128::from(h ^ word) * u128::from(0x9e37_79b9_7f4a_7c15_u64 ^ word.rotate_left(29));
        h = (product as u64) ^ (product >> 64) as u64 ^ h.rotate_left(23);
    }
    h ^= h >> 29;
    h = h.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h ^ (h >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_tables::{Backend, BackendSet};
    use std::collections::HashMap;

    #[test]
    fn a_hundred_thousand_flows_are_spread_within_five_per_cent_of_even() {
        let client = |v6: bool, n: u32| match v6 {
            false => Address::v4((0xc633_6400 + n).to_be_bytes()),
            true => Address::v6((0x2001_0db8_u128 << 96 | u128::from(n)).to_be_bytes()),
        };
        for (v6, count) in [(false, 2), (false, 7), (true, 10)] {
            let backend = |n: u32| Backend { address: client(v6, 1 << 20 | n), port: 8080, local: false };
            let set = BackendSet::new((0..count).map(backend).collect()).unwrap();
            let mut shares: HashMap<Address, u32> = HashMap::new();
            // Neighbouring clients and ports in sequence, as they are in life.
            for n in 0..100_000u32 {
                let flow = Tuple {
                    source: client(v6, n / 1_000),
                    destination: client(v6, 1 << 24),
                    source_port: 32_768 + (n % 1_000) as u16,
                    destination_port: 80,
                    protocol: 6,
                };
                *shares.entry(set.choose(flow_hash(&flow)).unwrap().address).or_default() += 1;
            }
            let even = 100_000 / count;
            for share in shares.values() {
                assert!(share.abs_diff(even) * 20 <= even, "{share} of {even} with {count} backends");
            }
            assert_eq!(shares.len(), count as usize);
        }
    }
}
