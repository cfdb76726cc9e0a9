//! Flows whose world has moved: what a decision rested on is asked again, and only that.
//!
//! Each entry remembers the versions of its hop, of its pod's policy and of its Service. A moved hop is looked up anew; a
//! moved policy is judged anew and a forbidden flow is cut with this packet (and stays remembered as denied); a moved Service is asked whether the backend is
//! still there.

use super::egress::Judged;
use super::established::Family;
use crate::flow::{Common, Next, Side, Slot, State, Tuple};
use crate::item::Item;
use crate::pipeline::Pipeline;
use crate::reason::Reason;
use sluice_tables::services::FrontendKind;
use sluice_tables::{Direction, EgressPath, HopId, Route, RuleId};

impl Pipeline {
    /// Brings a flow up to date; `false`: it has ended (with a pending fate: decide anew).
    pub(crate) fn revalidate<E: Family>(&mut self, item: &mut Item, slot: Slot) -> bool {
        let Some(entry) = E::table(self).get(slot).copied() else { return false };
        let c = *entry.common();
        let policy = self.tables.pods.versions().get(usize::from(c.pod)).copied().unwrap_or(0);
        let denied = State::from_byte(c.state) == State::Denied;
        if (denied || policy != c.policy_version) && !self.judge_again::<E>(item, slot, policy) {
            let tick = self.tick;
            if let Some(e) = E::table_mut(self).get_mut(slot) {
                e.common_mut().last_seen = tick;
            }
            return false;
        }
        let service = self.tables.services.version(c.slot);
        if service != c.service_version && !self.serve_again::<E>(item, slot, service) {
            return false;
        }
        let hop = self.tables.hops.get(HopId(c.hop)).map_or(0, |h| h.version);
        hop == c.hop_version || self.route_again::<E>(item, slot)
    }

    fn judge_again<E: Family>(&mut self, item: &mut Item, slot: Slot, version: u32) -> bool {
        let first = slot.original();
        let Some(original) = E::table(self).get(first).copied() else { return false };
        let Some(pod) = self.tables.pods.by_port(original.common().pod).cloned() else {
            self.forget::<E>(slot);
            item.refuse(Reason::NoRoute);
            return false;
        };
        let (tuple, _, side) = original.parts();
        if side == Side::From && !pod.may_bear(tuple.source) {
            let reply = slot != first;
            self.forget::<E>(slot);
            item.refuse(if reply { Reason::NoRoute } else { Reason::SourceSpoofed });
            return false;
        }
        let named = original.common().bits & Common::NAMED != 0;
        let rule = match side {
            Side::To if self.tables.node.owns(tuple.source) => Some(Judged::UNASKED),
            Side::To => self.judge(item, &pod, Direction::Ingress, &tuple, &tuple, false),
            Side::From => self.judge(item, &pod, Direction::Egress, &original.to(), &tuple, named),
        };
        let was = State::from_byte(original.common().state);
        let state = match (rule, was) {
            (None, _) => State::Denied,
            (Some(_), State::Denied) if tuple.protocol == 6 => State::Established,
            (Some(_), State::Denied) => State::New,
            (Some(_), was) => was,
        };
        for s in [first, first.sibling()] {
            if let Some(e) = E::table_mut(self).get_mut(s)
                && e.common().state != 0
            {
                let c = e.common_mut();
                c.policy_version = version;
                c.state = state as u8;
                if let Some(judged) = rule {
                    c.bits = c.bits & !Judged::MARKS | judged.marks;
                }
            }
        }
        if let (Some(e), Some(rule)) = (E::table_mut(self).get_mut(first), rule) {
            e.common_mut().rule = rule.rule.0;
        }
        rule.is_some()
    }

    fn serve_again<E: Family>(&mut self, item: &mut Item, slot: Slot, version: u32) -> bool {
        let first = slot.original();
        let Some(original) = E::table(self).get(first).copied() else { return false };
        let (tuple, ..) = original.parts();
        let to = original.to();
        if self.backend_is_alive(&tuple, (to.destination, to.destination_port)) {
            for s in [first, first.sibling()] {
                if let Some(e) = E::table_mut(self).get_mut(s)
                    && e.common().state != 0
                {
                    e.common_mut().service_version = version;
                }
            }
            return true;
        }
        let reply = slot != first;
        let state = State::from_byte(original.common().state);
        // A handshake is not cut: the client's next SYN finds another backend.
        if reply && tuple.protocol == 6 && state != State::SynSent && become_reset(item) {
            // The client waits for a backend that is gone: the answer it gets ends the connection. The entry keeps its old
            // version, so that whatever still comes is cut as well.
            return true;
        }
        self.forget::<E>(slot);
        if reply {
            // A late word of a backend that is gone; the client will get another.
            item.refuse(Reason::InvalidState);
        } else if tuple.protocol == 6 && state != State::SynSent {
            self.reset_or_drop(item, Reason::NoBackend);
        }
        // Everything else is decided anew with this packet: another backend, or the refusal the Service now gives.
        false
    }

    fn route_again<E: Family>(&mut self, item: &mut Item, slot: Slot) -> bool {
        let Some(entry) = E::table(self).get(slot).copied() else { return false };
        let c = *entry.common();
        let to = entry.to();
        let (tuple, zone, side) = entry.parts();
        let found = match c.next() {
            Next::Pod => {
                self.tables.pods.by_port(c.aux).filter(|pod| pod.addresses.contains(&to.destination)).map(|pod| pod.hop)
            }
            Next::Node | Next::Transit => self.tables.pods.by_port(c.pod).map(|pod| pod.hop),
            Next::Send => {
                let way = self.way_of(&c, zone, &to);
                // A client outside that keeps its address towards another node: direct return.
                let direct = zone == 0 && side == Side::To && c.slot != 0 && c.space == 0 && !c.is_reply();
                match way {
                    Some(plain)
                        if direct && matches!(self.tables.routes.lookup(to.destination), Some(Route::Tunnel(_))) =>
                    {
                        self.direct_way(&tuple, plain)
                    }
                    way => way,
                }
            }
        };
        let version = found.and_then(|hop| self.tables.hops.get(hop)).map(|h| h.version);
        match (found, version) {
            (Some(hop), Some(version)) => {
                if let Some(e) = E::table_mut(self).get_mut(slot) {
                    e.common_mut().hop = hop.0;
                    e.common_mut().hop_version = version;
                }
                true
            }
            _ => {
                let reply = c.is_reply();
                self.forget::<E>(slot);
                if reply {
                    item.refuse(Reason::NoRoute);
                }
                // The other direction is decided anew with this packet: the address may be a new pod's.
                false
            }
        }
    }

    /// The hop of an established direction, asked anew.
    fn way_of(&self, c: &Common, zone: u16, to: &Tuple) -> Option<HopId> {
        let tables = &self.tables;
        if let Some(pod) = tables.pods.by_address(to.destination) {
            return Some(pod.hop);
        }
        if tables.node.owns(to.destination)
            || tables.node.owns(to.source) && tables.routes.lookup(to.destination).is_none()
        {
            return tables.hops.iter().position(|h| h.kind == sluice_tables::HopKind::Host).map(|at| HopId(at as u16));
        }
        match tables.routes.lookup(to.destination)? {
            Route::Tunnel(hop) => Some(hop),
            Route::PeerNode { tunnel, direct } => Some(if zone == 0 || c.space != 0 { direct } else { tunnel }),
            out @ (Route::External(_) | Route::Unresolved) => {
                let direct = if let Route::External(hop) = out { Some(hop) } else { None };
                if c.space != 0 || c.is_reply() {
                    return direct;
                }
                let Some(rule) = tables.egress.rule(to.source, to.destination) else { return direct };
                // A flow stays with its gateway as long as that one is there, whoever came beside it.
                let old = tables.hops.gateway_of_version(c.hop_version).filter(|hop| rule.keep.contains(hop));
                old.or(match rule.path {
                    EgressPath::Gateway(hop) => Some(hop),
                    EgressPath::Here | EgressPath::Nowhere => None,
                })
            }
            Route::Nowhere | Route::Node => None,
        }
    }

    /// What a trace says of a packet of a known flow.
    pub(crate) fn note_established<E: Family>(&mut self, item: &mut Item, slot: Slot) {
        let Some(original) = E::table(self).get(slot.original()).copied() else { return };
        let (tuple, ..) = original.parts();
        let to = original.to();
        let translated = (tuple.destination, tuple.destination_port) != (to.destination, to.destination_port);
        let service = if translated {
            let frontend = self.frontend_of(tuple.destination, tuple.protocol, tuple.destination_port);
            frontend.filter(|f| f.kind != FrontendKind::HostPort).map(|f| f.name.clone())
        } else {
            None
        };
        let rule = RuleId(original.common().rule);
        let audited = original.common().bits & Common::AUDITED != 0;
        if let Some(note) = self.note(item) {
            if rule != RuleId::NONE && (!note.audited || audited) {
                note.rule = Some(rule);
                note.audited = audited;
            }
            if let Some(service) = service {
                note.service = Some(service);
                note.backend = Some((to.destination, to.destination_port));
            }
        }
    }
}

/// Turns a TCP segment into the reset that its sender could have sent in its place (RFC 9293 §3.5.2). `false`: it cannot be
/// done in place (a chain of chunks, or a reset already).
fn become_reset(item: &mut Item) -> bool {
    use crate::flow::state::flags::{ACK, RST};
    use sluice_wire::checksum::{Delta, Sum};
    const HEADER: usize = 20;
    let packet = item.meta.packet;
    if packet.fragment || packet.tcp_flags & RST != 0 || item.frame.segments() != 1 {
        return false;
    }
    let (l4, total) = (usize::from(packet.l4), usize::from(packet.l4) + HEADER);
    let l3 = item.l3_mut();
    let Some(bytes) = l3.get_mut(..total) else { return false };
    let tcp = &mut bytes[l4..];
    tcp[12] = 0x50;
    tcp[13] = RST | ACK;
    tcp[14..20].fill(0);
    if packet.family == 4 {
        let old = u16::from_be_bytes([bytes[2], bytes[3]]);
        bytes[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        let sum = Delta::u16(old, total as u16).apply(u16::from_be_bytes([bytes[10], bytes[11]]));
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        bytes[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
    }
    item.meta.packet.total = total as u16;
    item.meta.packet.tcp_flags = RST | ACK;
    item.frame.checksum = sluice_port::Checksum::None;
    item.frame.gso = Default::default();
    let packet = item.meta.packet;
    let Some(pseudo) = super::classify::pseudo_sum(item.l3(), &packet) else { return false };
    let tcp = &mut item.l3_mut()[l4..total];
    let sum = Sum::bytes(tcp).add_u16(pseudo).finish();
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    true
}
