//! The node's own half: packets to its addresses, from its host, and through it (NodePorts, VIPs, egress gateway).

use super::egress::is_group;
use super::plan::{Directly, Plan, Way, flow_hash};
use super::service::{Client, Found, is_mid_stream, node_port_key};
use crate::affinity;
use crate::flow::{Next, Side, Tuple};
use crate::item::{Fate, Item};
use crate::pipeline::Pipeline;
use crate::reason::Reason;
use sluice_tables::node::{GATEWAY_V4, GATEWAY_V6};
use sluice_tables::{Backend, EgressPath, FrontendKey, HopId, Route, RuleId};
use sluice_wire::packet::Shape;

/// Seconds for which a client's port is remembered to have asked a backend at one address.
const DIRECT_MEMORY: u32 = 86_400;

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
        let back = HopId(item.meta.peer.checked_sub(1)?);
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
            direct: None,
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
            direct: None,
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
        } else if let Some(hop) = self.direct_hop(&tuple, &translated) {
            plan.forward = Way::send(hop);
            plan.direct = Some(Directly::Asked);
        } else {
            if is_mid_stream(item) {
                self.reset_or_drop(item, Reason::InvalidState);
                return None;
            }
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

    /// The way to a backend's node that answers the client itself: where the Service asks for it, the client is outside the
    /// cluster, and no other flow's packets look the same there.
    fn direct_hop(&self, asked: &Tuple, translated: &Tuple) -> Option<HopId> {
        let tables = &self.tables;
        let Some(Route::Tunnel(plain)) = tables.routes.lookup(translated.destination) else { return None };
        let hop = self.direct_way(asked, plain)?;
        let outside = matches!(tables.routes.lookup(asked.source), Some(Route::External(_) | Route::Unresolved));
        (outside && !self.reply_is_taken(translated, 0, Side::To) && self.is_told_apart(asked, translated))
            .then_some(hop)
    }

    /// Whether the backend's node can tell a directly answered flow from all others of its client: the same client port must
    /// not ask one backend at two addresses. Another worker may have met the other one, so all share the memory of it.
    fn is_told_apart(&self, asked: &Tuple, translated: &Tuple) -> bool {
        let who = affinity::Client::new(flow_hash(translated), 0);
        let front = flow_hash(&Tuple { source: asked.destination, source_port: 0, ..*asked }) as u32;
        let now = (self.now / 1_000_000_000) as u32;
        let known = self.shared.directly_asked.recall(who, now, DIRECT_MEMORY);
        if known.is_some_and(|other| other != front) {
            return false;
        }
        self.shared.directly_asked.remember(who, front, now);
        true
    }

    /// The way that bears the tag of what was asked at, in place of a plain one.
    pub(crate) fn direct_way(&self, asked: &Tuple, plain: HopId) -> Option<HopId> {
        let (address, protocol, port) = (asked.destination, asked.protocol, asked.destination_port);
        let tables = &self.tables;
        if tables.direct.is_empty() {
            return None;
        }
        let own = FrontendKey { address, protocol, port };
        if tables.services.frontend(&own).is_some() {
            return tables.direct.hop(&own, plain);
        }
        // The other node knows us by one address of each family.
        let ours = tables.node.internal.contains(&Some(address));
        ours.then(|| tables.direct.hop(&node_port_key(address, protocol, port), plain)).flatten()
    }

    /// The flow of a pod towards its own node lies with the pod's worker, both ways: what the host sends to a pod and no flow
    /// here knows is shown to that worker first, which gives back what it does not know either. `true`: the fate is set.
    pub(crate) fn asks_the_pods_worker(&self, item: &mut Item, tuple: &Tuple) -> bool {
        let next = match self.tables.pods.by_address(tuple.destination) {
            Some(pod) if !item.meta.asked => pod.worker,
            _ => self.host_worker(),
        };
        if next == self.options.id {
            return false;
        }
        item.meta.asked = true;
        item.meta.fate = Fate::Handoff(next);
        true
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
            direct: None,
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
            direct: None,
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
