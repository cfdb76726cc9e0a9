//! The egress half: a flow's first packet from a local pod. Anti-spoofing, Service, policy, egress gateway, masquerade,
//! route, in this order.

use super::plan::{Plan, Way};
use super::service::{Client, Found};
use crate::flow::{Common, Next, Side, Tuple};
use crate::item::{Fate, Item};
use crate::pipeline::Pipeline;
use crate::reason::Reason;
use sluice_tables::node::{GATEWAY_V4, GATEWAY_V6};
use sluice_tables::{Address, Direction, EgressPath, Pod, Route, RuleId};
use sluice_wire::packet::Shape;

/// Multicast and broadcast destinations: not forwarded, and no source is checked for them.
pub(crate) fn is_group(a: Address) -> bool {
    match a.family() {
        sluice_tables::Family::V4 => a.last4()[0] >= 224,
        sluice_tables::Family::V6 => a.0[0] == 0xff,
    }
}

/// Destinations that no packet on a wire may have: unspecified and loopback (RFC 1122 §3.2.1.3, RFC 4291 §2.5).
pub(crate) fn is_martian(a: Address) -> bool {
    match a.family() {
        sluice_tables::Family::V4 => matches!(a.last4()[0], 0 | 127),
        sluice_tables::Family::V6 => a.bits() <= 1,
    }
}

/// Link-local addresses: they mean something on a pod's own link only, where nobody but the gateway is.
pub(crate) fn is_link_local(a: Address) -> bool {
    match a.family() {
        sluice_tables::Family::V4 => a.last4()[..2] == [169, 254],
        sluice_tables::Family::V6 => a.0[0] == 0xfe && a.0[1] & 0xc0 == 0x80,
    }
}

/// An allowing verdict.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judged {
    pub rule: RuleId,
    /// [`Common::NAMED`], [`Common::AUDITED`], [`Common::OBSERVE`].
    pub marks: u8,
}

impl Judged {
    /// Allowed without asking.
    pub const UNASKED: Judged = Judged { rule: RuleId::NONE, marks: 0 };
    /// Every bit that a verdict may set.
    pub const MARKS: u8 = Common::NAMED | Common::AUDITED | Common::OBSERVE;
}

impl Pipeline {
    pub(crate) fn walk_egress(&mut self, item: &mut Item, tuple: Tuple) -> Option<Plan> {
        let Some(pod) = self.tables.pods.by_port(item.meta.zone).cloned() else {
            item.refuse(Reason::NotForUs);
            return None;
        };
        if is_group(tuple.destination) {
            item.refuse(Reason::NoRoute);
            return None;
        }
        // The MAC was compared when the packet came in.
        if !pod.may_bear(tuple.source) {
            item.refuse(Reason::SourceSpoofed);
            return None;
        }
        if tuple.destination == GATEWAY_V4 || tuple.destination == GATEWAY_V6 {
            if item.meta.packet.shape == Shape::Echo && tuple.source_port != 0 {
                self.answer_echo(item);
            } else {
                item.refuse(Reason::NotForUs);
            }
            return None;
        }
        if is_link_local(tuple.destination) {
            item.refuse(Reason::NoRoute);
            return None;
        }
        let (backend, slot) = match self.serve(item, &tuple, Client::Inside) {
            Found::Nothing => (None, 0),
            Found::Backend { backend, slot } => (Some(backend), slot),
            Found::Settled => return None,
        };
        if backend.is_none() && self.cannot_begin(item) {
            return None;
        }
        let mut translated = tuple;
        if let Some(backend) = backend {
            translated.destination = backend.address;
            translated.destination_port = backend.port;
        }
        let judged = self.judge(item, &pod, Direction::Egress, &translated, &tuple, false)?;
        self.route_egress(item, &pod, tuple, translated, slot, judged)
    }

    /// Policy of one direction of a pod; `None`: denied, the fate is set. `asked` is the packet before
    /// translation; `named`: the flow was allowed by a rule about domain names before.
    pub(crate) fn judge(
        &mut self,
        item: &mut Item,
        pod: &Pod,
        direction: Direction,
        packet: &Tuple,
        asked: &Tuple,
        named: bool,
    ) -> Option<Judged> {
        let (set, peer) = match direction {
            Direction::Egress => (pod.egress, packet.destination),
            Direction::Ingress => (pod.ingress, packet.source),
        };
        let identity = self.tables.identities.of(peer);
        let (policy, port) = (&self.tables.policy, packet.destination_port);
        let (decision, by_name) = if direction == Direction::Egress {
            let (learned, now) = (&self.learned, self.now);
            policy.decide_learned(set, identity, packet.protocol, port, |names| {
                [peer, asked.destination].iter().any(|address| learned.knows(pod.port, *address, names, named, now))
            })
        } else {
            (policy.decide(set, identity, packet.protocol, port), false)
        };
        let column = usize::from(direction == Direction::Egress);
        let row = if !decision.allow {
            1
        } else if decision.audit {
            2
        } else {
            0
        };
        self.counters.verdicts[row][column].add(1);
        self.tally.add(decision.rule, row);
        if let Some(note) = self.note(item)
            && (decision.rule != RuleId::NONE || !decision.allow)
            // What an audited policy would have denied is told, whoever allows it afterwards.
            && (!note.audited || !decision.allow)
        {
            note.rule = Some(decision.rule);
            note.audited = decision.audit;
        }
        if decision.allow {
            let observed =
                direction == Direction::Egress && self.observes(pod, packet.protocol, asked.destination_port);
            let mark = |yes: bool, bit: u8| if yes { bit } else { 0 };
            let marks =
                mark(by_name, Common::NAMED) | mark(decision.audit, Common::AUDITED) | mark(observed, Common::OBSERVE);
            return Some(Judged { rule: decision.rule, marks });
        }
        self.deny(item);
        None
    }

    fn route_egress(
        &mut self,
        item: &mut Item,
        pod: &Pod,
        tuple: Tuple,
        mut translated: Tuple,
        slot: u16,
        judged: Judged,
    ) -> Option<Plan> {
        let family = tuple.family();
        let tables = self.tables.clone();
        let mut space = 0;
        let own = (item.meta.zone, Side::To);
        let (mut reply_zone, mut reply_side) = own;
        let node_address = tables.node.internal(family);
        let forward = if let Some(target) = tables.pods.by_address(translated.destination) {
            if target.port == pod.port {
                // Hairpin: the pod must not see itself as the client, or it would answer itself directly.
                let Some(address) = node_address.or(tables.node.overlay(family)) else {
                    item.refuse(Reason::NoRoute);
                    return None;
                };
                space = self.snat(item, &tuple, &mut translated, address)?;
            }
            Way { next: Next::Pod, hop: target.hop, aux: target.port }
        } else if tables.node.owns(translated.destination) {
            (reply_zone, reply_side) = (0, Side::From);
            Way::send(self.host_hop(item)?)
        } else {
            match tables.routes.lookup(translated.destination) {
                Some(Route::Node) => {
                    (reply_zone, reply_side) = (0, Side::From);
                    Way::send(self.host_hop(item)?)
                }
                Some(Route::Tunnel(hop)) => Way::send(hop),
                Some(Route::PeerNode { tunnel, direct }) => {
                    match node_address.filter(|_| self.masquerades(translated.destination)) {
                        Some(address) => {
                            space = self.snat(item, &tuple, &mut translated, address)?;
                            Way::send(direct)
                        }
                        None => Way::send(tunnel),
                    }
                }
                Some(Route::Nowhere) | None => {
                    item.refuse(Reason::NoRoute);
                    return None;
                }
                Some(out @ (Route::External(_) | Route::Unresolved)) => {
                    match tables.egress.rule(tuple.source, translated.destination) {
                        Some(gateway) => match gateway.path {
                            EgressPath::Here => {
                                let hop = self.outside(item, out, translated.destination)?;
                                space = self.snat(item, &tuple, &mut translated, gateway.address)?;
                                Way::send(hop)
                            }
                            EgressPath::Gateway(hop) => Way::send(hop),
                            EgressPath::Nowhere => {
                                item.refuse(Reason::NoRoute);
                                return None;
                            }
                        },
                        None => {
                            // The hop first: a port taken for a packet that goes nowhere would never come back.
                            let hop = self.outside(item, out, translated.destination)?;
                            if self.masquerades(translated.destination) {
                                let Some(address) = node_address else {
                                    item.refuse(Reason::NoRoute);
                                    return None;
                                };
                                space = self.snat(item, &tuple, &mut translated, address)?;
                            }
                            Way::send(hop)
                        }
                    }
                }
            }
        };
        if space != 0 {
            (reply_zone, reply_side) = (0, Side::To);
        } else if !self.avoid_clash(&mut translated, reply_zone, reply_side) {
            item.refuse(Reason::SnatPortsExhausted);
            return None;
        }
        let back = Way::send(pod.hop);
        Some(Plan {
            original: tuple,
            translated,
            reply_zone,
            reply_side,
            forward,
            back,
            pod: pod.port,
            slot,
            rule: judged.rule,
            marks: judged.marks,
            space,
            direct: None,
        })
    }

    fn masquerades(&self, destination: Address) -> bool {
        let settings = &self.tables.settings;
        settings.masquerade && settings.masquerade_exclude.lookup(destination).is_none()
    }

    /// The hop of an external route; control is asked for a neighbour that is not known yet, and the packet waits.
    pub(crate) fn outside(
        &mut self,
        item: &mut Item,
        route: Route,
        destination: Address,
    ) -> Option<sluice_tables::HopId> {
        match route {
            Route::External(hop) => Some(hop),
            _ => {
                self.shared.wanted.ask(destination);
                item.meta.fate = Fate::AwaitNeighbour;
                None
            }
        }
    }

    /// The hop to the host port.
    pub(crate) fn host_hop(&self, item: &mut Item) -> Option<sluice_tables::HopId> {
        let at = self.tables.hops.iter().position(|h| h.kind == sluice_tables::HopKind::Host);
        match at {
            Some(at) => Some(sluice_tables::HopId(at as u16)),
            None => {
                item.refuse(Reason::NoRoute);
                None
            }
        }
    }
}
