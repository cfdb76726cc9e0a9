//! The node's own half: packets to its addresses, from its host, and through it (NodePorts, VIPs, egress gateway).

use super::egress::is_group;
use super::plan::{Plan, Way};
use super::service::{Client, Found};
use crate::flow::{Next, Side, Tuple};
use crate::item::{Fate, Item};
use crate::pipeline::Pipeline;
use crate::reason::Reason;
use sluice_tables::node::{GATEWAY_V4, GATEWAY_V6};
use sluice_tables::{Backend, EgressPath, Route, RuleId};
use sluice_wire::packet::Shape;

impl Pipeline {
    /// To an address of this node, and no flow knows it: a NodePort, or the host's.
    pub(crate) fn walk_node(&mut self, item: &mut Item, tuple: Tuple) -> Option<Plan> {
        if !self.came_honestly(item, tuple.source) {
            return None;
        }
        let with_ports = item.meta.packet.shape == Shape::Ports;
        if with_ports
            && item.meta.peer == 0
            && self.frontend_of(tuple.destination, tuple.protocol, tuple.destination_port).is_some()
        {
            return match self.serve(item, &tuple, Client::Outside) {
                Found::Backend { backend, slot } => self.backend_plan(item, tuple, backend, slot),
                Found::Nothing | Found::Settled => None,
            };
        }
        if !self.tables.node.owns(tuple.destination) {
            // An egress address takes part in flows only.
            if item.meta.packet.shape == Shape::Echo && tuple.source_port != 0 {
                self.answer_echo(item);
            } else {
                item.refuse(Reason::NotForUs);
            }
            return None;
        }
        self.punt(item);
        None
    }

    /// Neither to nor from this node.
    pub(crate) fn walk_transit(&mut self, item: &mut Item, tuple: Tuple) -> Option<Plan> {
        if !self.came_honestly(item, tuple.source) {
            return None;
        }
        if item.meta.peer == 0 {
            if is_group(tuple.destination) {
                item.refuse(Reason::NotForUs);
                return None;
            }
            match self.serve(item, &tuple, Client::Outside) {
                Found::Backend { backend, slot } => return self.backend_plan(item, tuple, backend, slot),
                Found::Settled => return None,
                Found::Nothing => {}
            }
            item.refuse(Reason::NotForUs);
            return None;
        }
        self.through_gateway(item, tuple)
    }

    /// A pod's packet that another node sent here because this node is its egress gateway.
    fn through_gateway(&mut self, item: &mut Item, tuple: Tuple) -> Option<Plan> {
        let tables = self.tables.clone();
        let out = tables.routes.lookup(tuple.destination);
        let Some(out @ (Route::External(_) | Route::Unresolved)) = out else {
            item.refuse(Reason::NoRoute);
            return None;
        };
        let Some(rule) = tables.egress.rule(tuple.source, tuple.destination) else {
            item.refuse(Reason::NoRoute);
            return None;
        };
        if rule.path != EgressPath::Here {
            item.refuse(Reason::NoRoute);
            return None;
        }
        if self.cannot_begin(item) {
            return None;
        }
        let hop = self.outside(item, out, tuple.destination)?;
        let mut translated = tuple;
        let space = self.snat(item, &tuple, &mut translated, rule.address)?;
        let back = sluice_tables::HopId(item.meta.peer.checked_sub(1)?);
        Some(Plan {
            original: tuple,
            translated,
            reply_zone: 0,
            reply_side: Side::To,
            forward: Way::send(hop),
            back: Way::send(back),
            pod: 0,
            slot: 0,
            rule: RuleId::NONE,
            marks: 0,
            space,
        })
    }

    /// A client outside and its backend: on this node the client's address is kept, elsewhere ours stands in for it, so that
    /// replies come back this way.
    fn backend_plan(&mut self, item: &mut Item, tuple: Tuple, backend: Backend, slot: u16) -> Option<Plan> {
        let tables = self.tables.clone();
        let mut translated = Tuple { destination: backend.address, destination_port: backend.port, ..tuple };
        let back = match tables.routes.external(tuple.source) {
            Some(Route::External(hop)) => hop,
            Some(_) => {
                self.shared.wanted.ask(tuple.source);
                item.meta.fate = Fate::AwaitNeighbour;
                return None;
            }
            None => {
                item.refuse(Reason::NoRoute);
                return None;
            }
        };
        let mut plan = Plan {
            original: tuple,
            translated,
            reply_zone: 0,
            reply_side: Side::To,
            forward: Way::send(back),
            back: Way::send(back),
            pod: 0,
            slot,
            rule: RuleId::NONE,
            marks: 0,
            space: 0,
        };
        if let Some(pod) = tables.pods.by_address(backend.address) {
            if !self.avoid_clash(&mut translated, 0, Side::To) {
                item.refuse(Reason::SnatPortsExhausted);
                return None;
            }
            plan.forward = Way { next: Next::Pod, hop: pod.hop, aux: pod.port };
        } else if tables.node.owns(backend.address) {
            plan.forward = Way::send(self.host_hop(item)?);
            plan.reply_side = Side::From;
        } else {
            let family = tuple.family();
            let route = tables.routes.lookup(backend.address);
            let (hop, address) = match route {
                Some(Route::Tunnel(hop)) => (hop, tables.node.overlay(family)),
                Some(Route::PeerNode { direct, .. }) => (direct, tables.node.internal(family)),
                Some(Route::External(hop)) => (hop, tables.node.internal(family)),
                _ => {
                    item.refuse(Reason::NoRoute);
                    return None;
                }
            };
            let Some(address) = address else {
                item.refuse(Reason::NoRoute);
                return None;
            };
            plan.space = self.snat(item, &tuple, &mut translated, address)?;
            plan.forward = Way::send(hop);
        }
        plan.translated = translated;
        Some(plan)
    }

    /// From the host: to a Service, a pod here or elsewhere, or another node's pods.
    pub(crate) fn walk_host(&mut self, item: &mut Item, tuple: Tuple) -> Option<Plan> {
        if is_group(tuple.destination) {
            item.refuse(Reason::NoRoute);
            return None;
        }
        if !self.tables.node.owns(tuple.source) {
            item.refuse(Reason::SourceSpoofed);
            return None;
        }
        if (tuple.destination == GATEWAY_V4 || tuple.destination == GATEWAY_V6) && item.meta.packet.shape == Shape::Echo
        {
            self.answer_echo(item);
            return None;
        }
        match self.serve(item, &tuple, Client::Inside) {
            Found::Settled => None,
            Found::Backend { backend, slot } => self.host_to_backend(item, tuple, backend, slot),
            Found::Nothing => self.host_to_pod(item, tuple),
        }
    }

    fn host_to_backend(&mut self, item: &mut Item, tuple: Tuple, backend: Backend, slot: u16) -> Option<Plan> {
        let tables = self.tables.clone();
        let back = Way::send(self.host_hop(item)?);
        let mut translated = Tuple { destination: backend.address, destination_port: backend.port, ..tuple };
        let (mut reply_side, mut space) = (Side::To, 0);
        let forward = if let Some(pod) = tables.pods.by_address(backend.address) {
            Way { next: Next::Pod, hop: pod.hop, aux: pod.port }
        } else if tables.node.owns(backend.address) {
            // The host would refuse a packet from itself that comes in from outside: the gateway stands in.
            translated.source = if tuple.source.is_v4() { GATEWAY_V4 } else { GATEWAY_V6 };
            reply_side = Side::From;
            back
        } else {
            match tables.routes.lookup(backend.address) {
                Some(Route::Tunnel(hop)) => Way::send(hop),
                Some(Route::PeerNode { direct: hop, .. } | Route::External(hop)) => {
                    let Some(address) = tables.node.internal(tuple.family()) else {
                        item.refuse(Reason::NoRoute);
                        return None;
                    };
                    space = self.snat(item, &tuple, &mut translated, address)?;
                    Way::send(hop)
                }
                _ => {
                    item.refuse(Reason::NoRoute);
                    return None;
                }
            }
        };
        if space == 0 && !self.avoid_clash(&mut translated, 0, reply_side) {
            item.refuse(Reason::SnatPortsExhausted);
            return None;
        }
        Some(Plan {
            original: tuple,
            translated,
            reply_zone: 0,
            reply_side,
            forward,
            back,
            pod: 0,
            slot,
            rule: RuleId::NONE,
            marks: 0,
            space,
        })
    }

    /// The host to a pod. A flow is kept although nothing need be translated: the host may use one port towards a Service
    /// and towards a pod behind it, and only the flows tell their replies apart.
    fn host_to_pod(&mut self, item: &mut Item, tuple: Tuple) -> Option<Plan> {
        if self.cannot_begin(item) {
            return None;
        }
        let tables = self.tables.clone();
        let forward = if let Some(pod) = tables.pods.by_address(tuple.destination) {
            Way { next: Next::Pod, hop: pod.hop, aux: pod.port }
        } else {
            match tables.routes.lookup(tuple.destination) {
                Some(Route::Tunnel(hop) | Route::PeerNode { tunnel: hop, .. }) => Way::send(hop),
                _ => {
                    item.refuse(Reason::NoRoute);
                    return None;
                }
            }
        };
        let mut translated = tuple;
        if !self.avoid_clash(&mut translated, 0, Side::To) {
            item.refuse(Reason::SnatPortsExhausted);
            return None;
        }
        let back = Way::send(self.host_hop(item)?);
        Some(Plan {
            original: tuple,
            translated,
            reply_zone: 0,
            reply_side: Side::To,
            forward,
            back,
            pod: 0,
            slot: 0,
            rule: RuleId::NONE,
            marks: 0,
            space: 0,
        })
    }

    /// To the host, layer 3 unchanged.
    pub(crate) fn punt(&mut self, item: &mut Item) {
        if let Some(hop) = self.host_hop(item) {
            item.meta.forwarded = true;
            self.send(item, hop);
        }
    }
}
