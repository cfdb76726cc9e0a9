//! What we answer ourselves: ARP and ND for the gateway and announced addresses, echo, resets and ICMP errors.
//!
//! Source: RFC 826, RFC 4861, RFC 792, RFC 4443, RFC 1812 §4.3, RFC 9293 §3.5.2. An answer goes back the way the packet came:
//! if it passed another half on this node, the answer passes that half too and is translated there.

use crate::item::{Fate, Item, Role};
use crate::pipeline::Pipeline;
use crate::reason::{Reason, Stage};
use crate::trace::Event;
use sluice_tables::node::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};
use sluice_tables::{Address, Family, HopId, HopKind, Route};
use sluice_wire::arp::ArpPacket;
use sluice_wire::ndp::NeighborSolicitation;
use sluice_wire::packet::{Packet, Shape};
use sluice_wire::reply::{self, IcmpError, Link};
use sluice_wire::{Layers, Mac};
use std::net::IpAddr;

/// Longest answer: an ICMPv6 error of 1,280 bytes, or an echo of a full frame.
const LONGEST: usize = 3800;
const ETHERNET: usize = 14;

impl Pipeline {
    /// ARP: the gateway's address towards pods and the host, announced addresses towards the uplink.
    #[cold]
    pub(crate) fn answer_arp(&mut self, item: &mut Item) {
        let Some(request) = ArpPacket::of(item.frame.head()).copied() else {
            return item.drop(Reason::Malformed, Stage::Parse);
        };
        let (sender, target) = (Address::v4(request.sender_ip), Address::v4(request.target_ip));
        let node = self.tables.node.clone();
        let mac = if item.meta.port == node.uplink {
            if node.internal.contains(&Some(target)) {
                return self.punt_frame(item, [0x08, 0x06]);
            }
            if !self.tables.egress.announced.contains(&target) {
                return item.drop(Reason::NotForUs, Stage::Parse);
            }
            node.uplink_mac
        } else {
            let link = item.frame.head().get(6..12);
            if let Some(pod) = self.tables.pods.by_port(item.meta.port)
                && (sender != Address::v4([0; 4]) && !pod.addresses.contains(&sender)
                    || request.sender_mac.0 != pod.mac
                    || link != Some(&pod.mac[..]))
            {
                return item.drop(Reason::SourceSpoofed, Stage::Parse);
            }
            if target != GATEWAY_V4 {
                return item.drop(Reason::NotForUs, Stage::Parse);
            }
            GATEWAY_MAC
        };
        let mut out = [0u8; 64];
        match reply::arp_reply(&request, Mac(mac), &mut out) {
            Some(n) => self.answer_in_place(item, &out[..n]),
            None => item.drop(Reason::NotForUs, Stage::Parse),
        }
    }

    /// Neighbour solicitations for addresses of ours; all other packets pass by untouched.
    #[inline]
    pub(crate) fn neighbour_discovery(&mut self, item: &mut Item) {
        if item.meta.packet.protocol == 58 && item.meta.packet.shape == Shape::IcmpOther && item.meta.peer == 0 {
            self.answer_solicitation(item);
        }
    }

    #[cold]
    fn answer_solicitation(&mut self, item: &mut Item) {
        let frame = item.frame.head();
        let Ok(layers) = Layers::parse(frame, item.frame.len()) else {
            return item.drop(Reason::Malformed, Stage::Parse);
        };
        let Some(kind) = frame.get(usize::from(layers.l4)).copied() else {
            return item.drop(Reason::Malformed, Stage::Parse);
        };
        if !(133..=137).contains(&kind) {
            return;
        }
        let uplink = item.meta.port == self.tables.node.uplink;
        let asker = Mac(frame.get(6..12).and_then(|m| m.first_chunk().copied()).unwrap_or_default());
        if let Some(pod) = self.tables.pods.by_port(item.meta.port)
            && let Some(source) = layers.source(frame).map(Address::from)
        {
            // Link-local sources and the unspecified one (while an address is being tried) are every host's (RFC 4861 §4.3).
            let own = pod.addresses.contains(&source) || super::egress::is_link_local(source) || source.bits() == 0;
            if !own || asker.0 != pod.mac {
                return item.drop(Reason::SourceSpoofed, Stage::Parse);
            }
        }
        if kind == 135
            && let Ok(solicitation) = NeighborSolicitation::parse(frame, &layers)
        {
            let mine = self.tables.pods.by_port(item.meta.port).map(|pod| Mac(pod.mac));
            if mine.is_some() && solicitation.source_link.is_some_and(|link| Some(link) != mine) {
                return item.drop(Reason::SourceSpoofed, Stage::Parse);
            }
            let target = Address::v6(solicitation.target.octets());
            let ours = if uplink { self.tables.egress.announced.contains(&target) } else { target == GATEWAY_V6 };
            if ours {
                let mac = if uplink { self.tables.node.uplink_mac } else { GATEWAY_MAC };
                let mut out = [0u8; 128];
                let link = Link { source: Mac(mac), destination: asker };
                if let Some(n) = reply::neighbor_advertisement(&solicitation, link, !uplink, &mut out) {
                    return self.answer_in_place(item, &out[..n]);
                }
            }
            if uplink && self.tables.node.internal.contains(&Some(target)) {
                return self.punt(item);
            }
        }
        if item.meta.role != Role::Node {
            // Router solicitations and multicast reports: pods need neither here.
            item.refuse(if uplink { Reason::NotForUs } else { Reason::NoRoute });
        }
    }

    /// Sends `bytes` back out of the port the packet came from.
    fn answer_in_place(&mut self, item: &mut Item, bytes: &[u8]) {
        let Some(frame) = self.cache.alloc_copy(bytes) else { return item.drop(Reason::TxFull, Stage::Send) };
        if self.tracing() {
            self.tell(item, Event::Replied(None));
        }
        self.counters.replies.add(1);
        self.counters.originated.add(1);
        let mut made = Item { frame, meta: item.meta, note: item.note.take() };
        made.meta.fate = Fate::Send(item.meta.port);
        self.settle(made);
        item.meta.fate = Fate::Consumed;
    }

    /// A frame that is no IP packet, to the host.
    fn punt_frame(&mut self, item: &mut Item, ether_type: [u8; 2]) {
        let Some(hop) = self.tables.hops.iter().find(|h| h.kind == HopKind::Host) else {
            return item.drop(Reason::NoRoute, Stage::Parse);
        };
        if let Some(header) = item.frame.head_mut().first_chunk_mut::<ETHERNET>() {
            header.copy_from_slice(&hop.header[..ETHERNET]);
            header[12..].copy_from_slice(&ether_type);
        }
        item.meta.fate = Fate::Send(hop.port);
    }

    /// Answers an echo request to an address that only exists here.
    pub(crate) fn answer_echo(&mut self, item: &mut Item) {
        self.respond(item, None, Reason::Malformed, |frame, layers, out| {
            let source = layers.destination(frame)?;
            reply::echo_reply(frame, layers, PLACEHOLDER, source, out)
        });
    }

    /// TTL or hop limit ran out.
    pub(crate) fn answer_ttl_expired(&mut self, item: &mut Item) {
        self.answer_error(item, IcmpError::TimeExceeded, Reason::TtlExpired);
    }

    /// The packet does not fit a way of `mtu` bytes.
    pub(crate) fn answer_too_big(&mut self, item: &mut Item, mtu: u16) {
        self.answer_error(item, IcmpError::TooBig { mtu }, Reason::TooBig);
    }

    /// Refuses at once: TCP reset, or port unreachable.
    pub(crate) fn refuse_unreachable(&mut self, item: &mut Item, reason: Reason) {
        if item.meta.packet.shape != Shape::Ports {
            return item.refuse(reason);
        }
        match item.meta.packet.protocol {
            6 => self.reset_or_drop(item, reason),
            _ => self.answer_error(item, IcmpError::PortUnreachable, reason),
        }
    }

    /// A denied packet: dropped, or refused aloud if the operator wants that.
    pub(crate) fn deny(&mut self, item: &mut Item) {
        if !self.tables.settings.reject || item.meta.packet.shape != Shape::Ports {
            return item.refuse(Reason::PolicyDeny);
        }
        match item.meta.packet.protocol {
            6 => self.reset_or_drop(item, Reason::PolicyDeny),
            _ => self.answer_error(item, IcmpError::Prohibited, Reason::PolicyDeny),
        }
    }

    /// Resets a TCP segment; what cannot be reset is dropped with the reason.
    pub(crate) fn reset_or_drop(&mut self, item: &mut Item, reason: Reason) {
        self.respond(item, Some(reason), reason, |frame, layers, out| {
            let source = layers.destination(frame)?;
            reply::tcp_reset(frame, layers, PLACEHOLDER, source, out)
        });
    }

    fn answer_error(&mut self, item: &mut Item, error: IcmpError, reason: Reason) {
        let family = if item.meta.packet.family == 4 { Family::V4 } else { Family::V6 };
        let node = &self.tables.node;
        let towards_outside = matches!(item.meta.role, Role::Node | Role::Transit) && item.meta.peer == 0;
        let (first, second) = (node.overlay(family), node.internal(family));
        let source = if towards_outside { second.or(first) } else { first.or(second) };
        let Some(source) = source else { return item.refuse(reason) };
        let allowed = {
            let skip = usize::from(item.meta.l3).saturating_sub(ETHERNET);
            let frame = item.frame.head().get(skip..).unwrap_or(&[]);
            Layers::parse(frame, item.frame.len() - skip).is_ok_and(|l| reply::may_send_error(frame, &l))
        };
        if item.meta.own || !allowed || !self.shared.may_send_icmp(self.now) {
            return item.refuse(reason);
        }
        let source = IpAddr::from(source);
        self.respond(item, Some(reason), reason, |frame, layers, out| {
            reply::icmp_error(frame, layers, PLACEHOLDER, source, error, out)
        });
    }

    /// Builds an answer to the packet and sends it back the way the packet came; drops the packet with `otherwise` if there can
    /// be none.
    fn respond(
        &mut self,
        item: &mut Item,
        reason: Option<Reason>,
        otherwise: Reason,
        build: impl FnOnce(&[u8], &Layers, &mut [u8]) -> Option<usize>,
    ) {
        if item.meta.own {
            return item.refuse(otherwise);
        }
        if std::mem::take(&mut item.meta.forwarded) {
            // An earlier half has lowered it; an error quotes the packet as its sender knows it.
            raise_ttl(item);
        }
        let skip = usize::from(item.meta.l3).saturating_sub(ETHERNET);
        let mut out = [0u8; LONGEST];
        let built = item.frame.head().get(skip..).and_then(|frame| {
            let layers = Layers::parse(frame, item.frame.len() - skip).ok()?;
            build(frame, &layers, &mut out)
        });
        let Some(n) = built else { return item.refuse(otherwise) };
        let Ok(packet) = Packet::parse(&out[ETHERNET..n], n - ETHERNET) else { return item.refuse(otherwise) };
        let Some(frame) = self.cache.alloc_copy(&out[..n]) else { return item.refuse(Reason::TxFull) };
        if self.tracing() {
            self.tell(item, Event::Replied(reason));
        }
        if let Some(reason) = reason {
            self.counters.drops[reason as usize][item.meta.role.stage() as usize].add(1);
        }
        self.counters.replies.add(1);
        self.counters.originated.add(1);
        let mut made = Item { frame, meta: item.meta, note: item.note.take() };
        made.meta.packet = packet;
        made.meta.l3 = ETHERNET as u16;
        made.meta.own = true;
        made.meta.forwarded = true;
        made.meta.fragment_known = false;
        made.meta.fate = Fate::Pending;
        self.send_back(&mut made);
        self.settle(made);
        item.meta.fate = Fate::Consumed;
    }

    /// Finds the way back for an answer of ours.
    fn send_back(&mut self, made: &mut Item) {
        let Some((_, client)) = super::classify::addresses(made) else { return made.refuse(Reason::Malformed) };
        let (role, zone, peer, transit) = (made.meta.role, made.meta.zone, made.meta.peer, made.meta.transit);
        (made.meta.peer, made.meta.transit) = (0, 0);
        let tables = self.tables.clone();
        match role {
            Role::Pod => match tables.pods.by_port(zone) {
                Some(pod) => return self.send(made, pod.hop),
                None => return made.refuse(Reason::NoRoute),
            },
            Role::Host => {
                if let Some(hop) = self.host_hop(made) {
                    self.send(made, hop);
                }
                return;
            }
            Role::Ingress => {
                if let Some(worker) = transit.checked_sub(1) {
                    return self.continue_as(made, Role::Transit, 0, worker);
                }
            }
            Role::Node | Role::Transit => {}
        }
        if let Some(hop) = peer.checked_sub(1) {
            return self.send(made, HopId(hop));
        }
        if let Some(pod) = tables.pods.by_address(client) {
            return self.continue_as(made, Role::Ingress, pod.port, pod.worker);
        }
        if tables.node.owns(client) {
            let owner = self.node_owner(made, client);
            return self.continue_as(made, Role::Node, 0, owner);
        }
        match tables.routes.external(client) {
            Some(Route::External(hop)) => self.send(made, hop),
            _ => made.refuse(Reason::NoNeighbour),
        }
    }
}

/// Undoes one hop's count.
fn raise_ttl(item: &mut Item) {
    let v4 = item.meta.packet.family == 4;
    let l3 = item.l3_mut();
    if !v4 {
        if let Some(limit) = l3.get_mut(7) {
            *limit = limit.saturating_add(1);
        }
        return;
    }
    let Some(head) = l3.first_chunk_mut::<20>() else { return };
    let old = u16::from_be_bytes([head[8], head[9]]);
    head[8] = head[8].saturating_add(1);
    let delta = sluice_wire::checksum::Delta::u16(old, u16::from_be_bytes([head[8], head[9]]));
    let sum = delta.apply(u16::from_be_bytes([head[10], head[11]]));
    head[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The hop writes the real addresses.
const PLACEHOLDER: Link = Link { source: Mac::ZERO, destination: Mac::ZERO };
