//! Service DNAT: frontend, backend, and the refusals.
//!
//! Source: Service.spec (internalTrafficPolicy, externalTrafficPolicy, sessionAffinity, loadBalancerSourceRanges).

use super::plan::flow_hash;
use crate::affinity;
use crate::flow::Tuple;
use crate::item::Item;
use crate::pipeline::Pipeline;
use crate::reason::Reason;
use sluice_tables::services::{ClientAffinity, FrontendKind, tag_of};
use sluice_tables::{Address, Backend, BackendSet, Family, Frontend, FrontendKey};
use sluice_wire::packet::Shape;

/// Who asks for a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// A pod or this node.
    Inside,
    /// Anybody else.
    Outside,
}

/// What a Service lookup found.
pub(crate) enum Found {
    /// No Service has anything to do with the destination.
    Nothing,
    /// Go to this backend.
    Backend { backend: Backend, slot: u16 },
    /// The fate is set.
    Settled,
}

/// Whether a packet can only belong to a TCP connection that began earlier.
pub(crate) fn is_mid_stream(item: &Item) -> bool {
    item.meta.packet.protocol == 6 && item.meta.packet.tcp_flags & 0x02 == 0
}

/// The key of a NodePort that is asked at an address.
pub(crate) fn node_port_key(asked: Address, protocol: u8, port: u16) -> FrontendKey {
    let address = match asked.family() {
        Family::V4 => Address::v4([0; 4]),
        Family::V6 => Address::v6([0; 16]),
    };
    FrontendKey { address, protocol, port }
}

impl Pipeline {
    /// The frontend of a destination: a Service's own address, or a NodePort on one of this node's addresses.
    pub(crate) fn frontend_of(&self, destination: Address, protocol: u8, port: u16) -> Option<&Frontend> {
        let services = &self.tables.services;
        if let Some(found) = services.frontend(&FrontendKey { address: destination, protocol, port }) {
            return Some(found);
        }
        if !self.tables.node.node_port_addresses.contains(&destination) {
            return None;
        }
        services.frontend(&node_port_key(destination, protocol, port))
    }

    /// Chooses a backend for a flow's first packet, or refuses it.
    pub(crate) fn serve(&mut self, item: &mut Item, tuple: &Tuple, client: Client) -> Found {
        let with_ports = item.meta.packet.shape == Shape::Ports;
        let frontend = match with_ports {
            true => self.frontend_of(tuple.destination, tuple.protocol, tuple.destination_port).cloned(),
            false => None,
        };
        let Some(frontend) = frontend else {
            if self.tables.services.address(tuple.destination).is_none() {
                return Found::Nothing;
            }
            if item.meta.packet.shape == Shape::Echo && tuple.source_port != 0 {
                self.answer_echo(item);
            } else {
                self.count_service(1);
                self.refuse_unreachable(item, Reason::NoBackend);
            }
            return Found::Settled;
        };
        let is_service = frontend.kind != FrontendKind::HostPort;
        if is_service && let Some(note) = self.note(item) {
            note.service = Some(frontend.name.clone());
        }
        let taken_up = frontend.direct && client == Client::Outside;
        if is_mid_stream(item) && !taken_up {
            // A connection that no longer (or never) was: the client learns it at once.
            self.reset_or_drop(item, Reason::InvalidState);
            return Found::Settled;
        }
        if self.cannot_begin(item) {
            return Found::Settled;
        }
        if let Some(ranges) = &frontend.source_ranges
            && frontend.kind == FrontendKind::LoadBalancer
            && ranges.lookup(tuple.source).is_none()
        {
            self.count_service(2);
            item.refuse(Reason::SourceRangeDeny);
            return Found::Settled;
        }
        let (set, local_empty) = match (client, frontend.kind) {
            (Client::Inside, _) | (Client::Outside, FrontendKind::ClusterIp) => {
                (&frontend.internal, frontend.internal_local_empty)
            }
            (Client::Outside, _) => (&frontend.external, frontend.external_local_empty),
        };
        let chosen = match frontend.affinity {
            Some(affinity) => self.keep(affinity, set, tuple.source),
            None => set.choose(flow_hash(tuple)).copied(),
        };
        match chosen {
            Some(backend) => {
                self.count_service(0);
                if is_service && let Some(note) = self.note(item) {
                    note.backend = Some((backend.address, backend.port));
                }
                Found::Backend { backend, slot: frontend.slot }
            }
            None if local_empty => {
                self.count_service(2);
                item.refuse(Reason::NoLocalBackend);
                Found::Settled
            }
            None => {
                self.count_service(1);
                self.refuse_unreachable(item, Reason::NoBackend);
                Found::Settled
            }
        }
    }

    /// The backend this client had, as long as it may still be sent there; else one by the hash of its address alone, the
    /// same on every node. Either way the client has just asked.
    fn keep(&self, affinity: ClientAffinity, set: &BackendSet, client: Address) -> Option<Backend> {
        let anywhere = Address::default();
        let hash = flow_hash(&Tuple {
            source: client,
            destination: anywhere,
            source_port: 0,
            destination_port: 0,
            protocol: 0,
        });
        let who = affinity::Client::new(hash, affinity.service);
        let now = (self.now / 1_000_000_000) as u32;
        let known = self.shared.affinity.recall(who, now, affinity.seconds);
        let tag = known.filter(|tag| set.tagged(*tag, hash).is_some());
        let tag = tag.or_else(|| set.choose(hash).map(|b| tag_of(b.address)))?;
        self.shared.affinity.remember(who, tag, now);
        set.tagged(tag, hash).copied()
    }

    fn count_service(&self, result: usize) {
        self.counters.services[result].add(1);
    }

    /// Whether a flow through a frontend may go on with its backend after the Service has changed.
    pub(crate) fn backend_is_alive(&self, original: &Tuple, backend: (Address, u16)) -> bool {
        self.frontend_of(original.destination, original.protocol, original.destination_port)
            .is_some_and(|frontend| frontend.alive.contains(&backend))
    }
}
