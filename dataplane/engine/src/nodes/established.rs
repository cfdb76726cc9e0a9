//! The fast path: a packet of a known flow is checked against its entry, rewritten and sent.
//!
//! Cost per packet: the entry's line, one small-table load each for hop, pod version and Service version. Whatever is not
//! steady (states, time-outs, moved versions, TTL, size) goes through `unsteady`, out of line, on the same entry.

use super::send::{is_plain, wrap};
use crate::flow::{Common, Entry, Entry4, Entry6, FlowTable, Next, Slot, State};
use crate::item::{Fate, Item, Role};
use crate::pipeline::{Pipeline, TICKS_PER_SECOND};
use crate::reason::Reason;
use sluice_port::{Checksum, GsoKind};
use sluice_tables::Tables;
use sluice_tables::hops::{Hop, HopId};
use sluice_wire::checksum::Delta;
use sluice_wire::packet::{Packet, Shape};

/// What the fast path made of a packet.
enum Swift {
    /// Rewritten, and its fate is set.
    Done,
    /// Rewritten; the hop needs the long way out.
    Special(HopId),
    /// Rewritten; another half follows.
    Next(Common, [u8; 4]),
    /// Not this flow, or nothing here.
    Miss,
    /// This flow, but something needs a closer look.
    Look,
}

/// Whether nothing has happened to the flow, the packet and its way since the last packet.
#[inline(always)]
fn is_steady(c: &Common, packet: &Packet, hop: &Hop, tables: &Tables, tick: u32) -> bool {
    let policy = tables.pods.versions().get(usize::from(c.pod)).copied().unwrap_or(0);
    let service = tables.services.version(c.slot);
    (hop.version == c.hop_version)
        & (c.bits & Common::OBSERVE == 0)
        & (policy == c.policy_version)
        & (service == c.service_version)
        & State::is_steady(c.state, packet.tcp_flags)
        & (packet.ttl > 1)
        & (packet.total <= hop.mtu)
        & (tick.wrapping_sub(c.last_seen) <= TICKS_PER_SECOND)
}

impl Pipeline {
    /// Applies the flow of a packet, or decides it.
    #[inline(always)]
    pub(crate) fn apply<E: Family>(&mut self, item: &mut Item, key: &E::Key, slot: Slot) {
        match self.swift::<E>(item, key, slot) {
            Swift::Done => {}
            Swift::Special(hop) => self.send(item, hop),
            Swift::Next(common, ports) => self.after_rewrite(item, &common, &ports),
            Swift::Miss => self.apply_slowly::<E>(item, key, None),
            Swift::Look => self.apply_slowly::<E>(item, key, Some(slot)),
        }
    }

    /// The steady packet: one look at its entry, which is used where it lies.
    #[inline(always)]
    fn swift<E: Family>(&mut self, item: &mut Item, key: &E::Key, slot: Slot) -> Swift {
        let (tick, tracing) = (self.tick, self.tracing());
        let (table, tables) = E::table_and_tables(self);
        let Some(entry) = table.get_mut(slot) else { return Swift::Miss };
        if entry.key() != key || entry.common().state == 0 {
            return Swift::Miss;
        }
        let c = entry.common_mut();
        let Some(hop) = tables.hops.get(HopId(c.hop)) else { return Swift::Look };
        if !is_steady(c, &item.meta.packet, hop, tables, tick) || tracing {
            return Swift::Look;
        }
        // Written only when it moves: most packets leave the line clean.
        if c.last_seen != tick {
            c.last_seen = tick;
        }
        let entry = &*entry;
        if !entry.rewrite(item) {
            return Swift::Done;
        }
        if entry.common().next() != Next::Send {
            return Swift::Next(*entry.common(), *entry.ports());
        }
        if !is_plain(item, hop) {
            return Swift::Special(HopId(entry.common().hop));
        }
        wrap(item, hop);
        Swift::Done
    }

    #[inline(never)]
    fn apply_slowly<E: Family>(&mut self, item: &mut Item, key: &E::Key, slot: Option<Slot>) {
        let slot = slot.or_else(|| E::table(self).find_hashed(key, item.meta.hash));
        let slot = match slot {
            Some(slot) => self.unsteady_in::<E>(item, slot),
            None => None,
        };
        if item.meta.fate != Fate::Pending {
            return;
        }
        if let Some(slot) = slot.or_else(|| self.decide(item))
            && let Some(e) = E::table(self).get(slot).copied()
        {
            if e.common().bits & Common::OBSERVE != 0 {
                self.observe(item, e.common(), e.ports());
            }
            if e.rewrite(item) {
                self.after_rewrite(item, e.common(), e.ports());
            }
        }
    }

    /// A packet of a known flow that something has happened to. `None` with a pending fate: the flow is gone, decide anew.
    fn unsteady_in<E: Family>(&mut self, item: &mut Item, slot: Slot) -> Option<Slot> {
        let tick = self.tick;
        if E::table(self).is_expired(slot, tick, TICKS_PER_SECOND, &self.tables.settings.timeouts) {
            self.forget::<E>(slot);
            return None;
        }
        let entry = *E::table(self).get(slot)?;
        let (flags, protocol) = (item.meta.packet.tcp_flags, item.meta.packet.protocol);
        let reply = entry.common().is_reply();
        // A new connection on a pair of ports whose last one has ended.
        let opens = protocol == 6 && flags & 0x12 == 0x02;
        let before = State::from_byte(entry.common().state);
        if opens && !reply && matches!(before, State::Closed | State::FinOriginal | State::FinReply) {
            self.forget::<E>(slot);
            return None;
        }
        if !self.revalidate::<E>(item, slot) {
            return None;
        }
        let flags = item.meta.packet.tcp_flags;
        let entry = *E::table(self).get(slot)?;
        let state = State::from_byte(entry.common().state);
        if !self.fits(item, entry.common()) {
            return None;
        }
        let after = state.after(protocol, flags, !reply);
        let two_way = E::table(self).get(slot.sibling()).is_some_and(|e| e.common().state != 0);
        if after != state {
            for s in [slot, slot.sibling()] {
                if (s == slot || two_way)
                    && let Some(e) = E::table_mut(self).get_mut(s)
                {
                    e.common_mut().state = after as u8;
                }
            }
        }
        if let Some(e) = E::table_mut(self).get_mut(slot) {
            e.common_mut().last_seen = tick;
        }
        if opens || flags & 0x02 != 0 {
            self.clamp_mss(item, entry.common());
        }
        if self.tracing() {
            self.note_established::<E>(item, slot);
        }
        Some(slot)
    }

    /// TTL and size of a packet against the entry's way; answers the sender if it does not fit.
    pub(crate) fn fits(&mut self, item: &mut Item, c: &Common) -> bool {
        if item.meta.packet.ttl <= 1 && !item.meta.forwarded && c.bits & Common::KEEP_TTL == 0 {
            self.answer_ttl_expired(item);
            return false;
        }
        let Some(hop) = self.tables.hops.get(HopId(c.hop)) else {
            item.refuse(Reason::NoRoute);
            return false;
        };
        let mtu = if c.next() == Next::Node { u16::MAX } else { hop.mtu };
        if item.meta.packet.total > mtu && !self.segments_fit(item, mtu) {
            let may_fragment = item.meta.packet.family == 4 && !item.meta.packet.dont_fragment;
            if !may_fragment {
                self.answer_too_big(item, mtu);
                return false;
            }
        }
        true
    }

    /// Whether a packet is to be segmented anyway, and its segments fit.
    fn segments_fit(&self, item: &Item, mtu: u16) -> bool {
        let gso = item.frame.gso;
        if gso.kind == GsoKind::None {
            return false;
        }
        let l4 = usize::from(item.meta.packet.l4);
        let header = match item.meta.packet.protocol {
            6 => item.l3().get(l4 + 12).map_or(20, |b| usize::from(b >> 4) * 4),
            _ => 8,
        };
        l4 + header + usize::from(gso.size) <= usize::from(mtu)
    }

    /// Sends the rewritten packet or passes it to its next half.
    #[inline(always)]
    pub(crate) fn after_rewrite(&mut self, item: &mut Item, c: &Common, ports: &[u8; 4]) {
        if c.next() == Next::Send {
            return self.send(item, HopId(c.hop));
        }
        // Ports have changed: the next half's key is made of the new ones.
        item.meta.packet.source_port = [ports[0], ports[1]];
        item.meta.packet.destination_port = [ports[2], ports[3]];
        self.next_half(item, c);
    }

    #[inline(never)]
    fn next_half(&mut self, item: &mut Item, c: &Common) {
        match c.next() {
            Next::Pod => {
                let owner = self.tables.pods.by_port(c.aux).map(|pod| pod.worker);
                match owner {
                    Some(worker) => {
                        // A transit half remembers itself so that replies come back to it.
                        let transit = matches!(item.meta.role, Role::Transit | Role::Node) && item.meta.zone == 0;
                        item.meta.transit = if transit { self.options.id + 1 } else { 0 };
                        if transit {
                            item.meta.peer = 0;
                        }
                        self.continue_as(item, Role::Ingress, c.aux, worker);
                    }
                    None => item.refuse(Reason::NoRoute),
                }
            }
            Next::Node => {
                let Some((_, destination)) = super::classify::addresses(item) else {
                    return item.refuse(Reason::Malformed);
                };
                let owner = self.node_owner(item, destination);
                self.continue_as(item, Role::Node, 0, owner);
            }
            Next::Transit => self.continue_as(item, Role::Transit, 0, c.aux),
            Next::Send => {}
        }
    }
}

/// Sets ports (or the echo identifier) and mends the transport checksum; `len` is the transport's length in the packet.
/// A partial checksum holds the addresses' sum alone, so its delta is the addresses'.
#[inline(always)]
pub(crate) fn rewrite_transport(l4: &mut [u8], protocol: u8, ports: &[u8; 4], delta: u16, partial: bool, len: usize) {
    let delta = Delta::from_bits(delta);
    match protocol {
        6 => {
            let Some(h) = l4.first_chunk_mut::<20>() else { return };
            h[..4].copy_from_slice(ports);
            let field = u16::from_be_bytes([h[16], h[17]]);
            let new = if partial { delta.apply_partial(field) } else { delta.apply(field) };
            h[16..18].copy_from_slice(&new.to_be_bytes());
        }
        17 => {
            let Some(h) = l4.first_chunk_mut::<8>() else { return };
            h[..4].copy_from_slice(ports);
            let field = u16::from_be_bytes([h[6], h[7]]);
            let new = if partial { delta.apply_partial(field) } else { delta.apply_udp(field) };
            h[6..8].copy_from_slice(&new.to_be_bytes());
        }
        132 => super::send::rewrite_sctp(l4, ports, len),
        1 | 58 => {
            let Some(h) = l4.first_chunk_mut::<8>() else { return };
            let request = h[0] == 8 || h[0] == 128;
            let id = if request { [ports[0], ports[1]] } else { [ports[2], ports[3]] };
            if h[0] == 0 || h[0] == 8 || h[0] == 128 || h[0] == 129 {
                h[4..6].copy_from_slice(&id);
            }
            let field = u16::from_be_bytes([h[2], h[3]]);
            h[2..4].copy_from_slice(&delta.apply(field).to_be_bytes());
        }
        _ => {}
    }
}

/// A family's table in the pipeline, and its header's rewrite.
pub(crate) trait Family: Entry {
    /// The table.
    fn table(p: &Pipeline) -> &FlowTable<Self>;
    /// The table, writable.
    fn table_mut(p: &mut Pipeline) -> &mut FlowTable<Self>;
    /// The table, writable, beside what control has published.
    fn table_and_tables(p: &mut Pipeline) -> (&mut FlowTable<Self>, &Tables);
    /// New source and destination port, wire order.
    fn ports(&self) -> &[u8; 4];
    /// Rewrites the packet's headers; `false`: it has none, the fate is set.
    fn rewrite(&self, item: &mut Item) -> bool;
}

/// What a rewrite has to know of a packet, whatever its family.
struct Change {
    l4: usize,
    protocol: u8,
    /// Transport bytes.
    len: usize,
    keep_ttl: bool,
    /// Addresses and ports stay.
    plain: bool,
    /// There is a transport header whose ports change.
    ports: bool,
    partial: bool,
}

impl Change {
    #[inline(always)]
    fn of(item: &Item, c: &Common) -> Self {
        let packet = &item.meta.packet;
        let plain = c.bits & Common::PLAIN != 0;
        Change {
            l4: usize::from(packet.l4),
            protocol: packet.protocol,
            len: usize::from(packet.total) - usize::from(packet.l4),
            keep_ttl: item.meta.forwarded || c.bits & Common::KEEP_TTL != 0,
            plain,
            ports: !plain && packet.shape != Shape::LaterFragment,
            partial: matches!(item.frame.checksum, Checksum::Partial { .. }),
        }
    }
}

impl Family for Entry4 {
    fn table(p: &Pipeline) -> &FlowTable<Self> {
        &p.flows4
    }
    fn table_mut(p: &mut Pipeline) -> &mut FlowTable<Self> {
        &mut p.flows4
    }
    #[inline(always)]
    fn table_and_tables(p: &mut Pipeline) -> (&mut FlowTable<Self>, &Tables) {
        (&mut p.flows4, &p.tables)
    }
    #[inline(always)]
    fn ports(&self) -> &[u8; 4] {
        &self.ports
    }

    #[inline(always)]
    fn rewrite(&self, item: &mut Item) -> bool {
        let change = Change::of(item, &self.common);
        let l3 = item.l3_mut();
        let Some(head) = l3.first_chunk_mut::<20>() else {
            item.refuse(Reason::Malformed);
            return false;
        };
        let mut sum = u16::from_be_bytes([head[10], head[11]]);
        if !change.plain {
            head[12..20].copy_from_slice(&self.addresses);
            sum = Delta::from_bits(self.delta_l3).apply(sum);
        }
        if !change.keep_ttl {
            head[8] = head[8].saturating_sub(1);
            // TTL is the high byte of its word: one less there is 0x0100 more in the complement (RFC 1624).
            let (more, carry) = sum.overflowing_add(0x0100);
            sum = more + u16::from(carry);
        }
        head[10..12].copy_from_slice(&sum.to_be_bytes());
        if change.ports {
            let delta = if change.partial { self.delta_l3 } else { self.delta_l4 };
            rewrite_transport(&mut l3[change.l4..], change.protocol, &self.ports, delta, change.partial, change.len);
        }
        item.meta.forwarded |= !change.keep_ttl;
        true
    }
}

impl Family for Entry6 {
    fn table(p: &Pipeline) -> &FlowTable<Self> {
        &p.flows6
    }
    fn table_mut(p: &mut Pipeline) -> &mut FlowTable<Self> {
        &mut p.flows6
    }
    #[inline(always)]
    fn table_and_tables(p: &mut Pipeline) -> (&mut FlowTable<Self>, &Tables) {
        (&mut p.flows6, &p.tables)
    }
    #[inline(always)]
    fn ports(&self) -> &[u8; 4] {
        &self.ports
    }

    #[inline(always)]
    fn rewrite(&self, item: &mut Item) -> bool {
        let change = Change::of(item, &self.common);
        let l3 = item.l3_mut();
        let Some(head) = l3.first_chunk_mut::<40>() else {
            item.refuse(Reason::Malformed);
            return false;
        };
        if !change.plain {
            head[8..24].copy_from_slice(&self.addresses[0]);
            head[24..40].copy_from_slice(&self.addresses[1]);
        }
        if !change.keep_ttl {
            head[7] = head[7].saturating_sub(1);
        }
        if change.ports {
            let delta = if change.partial { self.delta_l3 } else { self.delta_l4 };
            rewrite_transport(&mut l3[change.l4..], change.protocol, &self.ports, delta, change.partial, change.len);
        }
        item.meta.forwarded |= !change.keep_ttl;
        true
    }
}
