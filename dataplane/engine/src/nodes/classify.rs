//! From the wire to a half: Ethernet and IP are checked, the overlay's wrapping comes off, the owner is found.
//!
//! Source: RFC 7348 (VXLAN), RFC 6040 (ECN), design ADR 1 (who owns a flow). Everything is told from tables and headers;
//! no flow is looked up here.

use super::plain::sender;
use crate::item::{Fate, Item, Role};
use crate::nat::owner_of;
use crate::pipeline::Pipeline;
use crate::reason::{Reason, Stage};
use sluice_port::{Checksum, Frame};
use sluice_tables::Address;
use sluice_tables::node::GATEWAY_MAC;
use sluice_wire::packet::{Packet, Refused, Shape};

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];
const UDP: u8 = 17;

fn reason_of(refused: Refused) -> Reason {
    match refused {
        Refused::Malformed => Reason::Malformed,
        Refused::BadChecksum => Reason::BadChecksum,
        Refused::InvalidFlags => Reason::InvalidState,
    }
}

impl Pipeline {
    /// Finds out what a received frame is and which half it belongs to.
    #[inline]
    pub(crate) fn classify(&mut self, item: &mut Item) {
        let Some(ethernet) = item.frame.head().first_chunk::<ETHERNET>().copied() else {
            return item.drop(Reason::Malformed, Stage::Parse);
        };
        let kind = [ethernet[12], ethernet[13]];
        let port = item.meta.port;
        let (uplink, host) = (self.tables.node.uplink, self.tables.node.host);
        if port != uplink {
            let group = ethernet[0] & 1 != 0;
            if !group && ethernet[..6] != GATEWAY_MAC {
                return item.drop(Reason::NotForUs, Stage::Parse);
            }
        }
        if kind != IPV4 && kind != IPV6 {
            return if kind == ARP {
                self.answer_arp(item)
            } else {
                item.drop(Reason::UnsupportedProtocol, Stage::Parse)
            };
        }
        item.meta.l3 = ETHERNET as u16;
        if !self.parse(item, kind == IPV4) {
            return;
        }
        if port == uplink {
            self.classify_uplink(item);
        } else if port == host {
            item.meta.role = Role::Host;
            self.neighbour_discovery(item);
        } else {
            item.meta.role = Role::Pod;
            item.meta.zone = port;
            // Every packet is asked, of known flows too: who is on the other end of the port may have changed his mind.
            if !self.tables.pods.is_sender(port, sender(&ethernet)) && self.tables.pods.by_port(port).is_some() {
                return item.refuse(Reason::SourceSpoofed);
            }
            self.neighbour_discovery(item);
        }
    }

    /// Parses the IP packet at `meta.l3`; sets the fate and returns `false` if it is not one.
    #[inline(always)]
    fn parse(&self, item: &mut Item, v4: bool) -> bool {
        let held = item.frame.len() - usize::from(item.meta.l3);
        match Packet::parse(item.l3(), held) {
            Ok(packet) if (packet.family == 4) == v4 => {
                item.meta.packet = packet;
                if item.frame.checksum == Checksum::Unknown {
                    resolve_checksum(&mut item.frame, item.meta.l3, &packet);
                }
                true
            }
            Ok(_) => {
                item.drop(Reason::Malformed, Stage::Parse);
                false
            }
            Err(refused) => {
                item.drop(reason_of(refused), Stage::Parse);
                false
            }
        }
    }

    /// A packet from the uplink: overlay, our own addresses, or neither.
    #[inline]
    fn classify_uplink(&mut self, item: &mut Item) {
        let packet = item.meta.packet;
        let Some((source, destination)) = addresses(item) else {
            return item.drop(Reason::Malformed, Stage::Parse);
        };
        let node = &self.tables.node;
        if packet.protocol == UDP
            && packet.shape == Shape::Ports
            && u16::from_be_bytes(packet.destination_port) == self.tables.settings.vxlan_port
            && node.internal.contains(&Some(destination))
            && !packet.fragment
        {
            return self.decapsulate(item, source);
        }
        self.locate(item, destination);
    }

    /// Takes the overlay's wrapping off and looks at the inner packet.
    #[inline]
    fn decapsulate(&mut self, item: &mut Item, peer: Address) {
        let l4 = usize::from(item.meta.l3 + item.meta.packet.l4);
        let Some(&[_, _, _, _, _, _, c0, c1, flags, _, _, _, v0, v1, v2, _]) =
            item.frame.head().get(l4..).and_then(|b| b.first_chunk::<16>())
        else {
            return item.drop(Reason::Malformed, Stage::Parse);
        };
        if [c0, c1] != [0, 0] && !outer_checksum_is_right(item) {
            return item.drop(Reason::BadChecksum, Stage::Parse);
        }
        if flags & 0x08 == 0 {
            return item.drop(Reason::Malformed, Stage::Parse);
        }
        let Some(hop) = self.tables.routes.peers.get(&peer).map(|p| p.hop) else {
            return item.drop(Reason::UnknownTunnelPeer, Stage::Parse);
        };
        if u32::from_be_bytes([0, v0, v1, v2]) != self.tables.settings.vni {
            return item.drop(Reason::UnknownVni, Stage::Parse);
        }
        let inner = l4 + 16;
        let Some(ethernet) = item.frame.head().get(inner..).and_then(|b| b.first_chunk::<ETHERNET>()) else {
            return item.drop(Reason::Malformed, Stage::Parse);
        };
        let kind = [ethernet[12], ethernet[13]];
        if kind != IPV4 && kind != IPV6 {
            return item.drop(Reason::UnsupportedProtocol, Stage::Parse);
        }
        // What the outer datagram says it carries bounds the inner packet; anything behind is Ethernet padding.
        let outer = item.meta.packet;
        let outer_end = usize::from(item.meta.l3) + usize::from(outer.total);
        item.meta.l3 = (inner + ETHERNET) as u16;
        item.meta.peer = hop.0 + 1;
        if !self.parse(item, kind == IPV4) {
            return;
        }
        if usize::from(item.meta.l3) + usize::from(item.meta.packet.total) > outer_end {
            return item.drop(Reason::Malformed, Stage::Parse);
        }
        if outer.tos & 3 != 0 && !carry_congestion(item, outer.tos) {
            return item.drop(Reason::Malformed, Stage::Parse);
        }
        let Some((_, destination)) = addresses(item) else {
            return item.drop(Reason::Malformed, Stage::Parse);
        };
        self.locate(item, destination);
    }

    /// Finds the half of a packet that no local pod sent, and its owner.
    #[inline]
    fn locate(&mut self, item: &mut Item, destination: Address) {
        if let Some(pod) = self.tables.pods.by_address(destination) {
            if item.meta.peer == 0 {
                // Native routing is not offered: a pod is reached through the overlay alone.
                return item.drop(Reason::NotForUs, Stage::Parse);
            }
            item.meta.role = Role::Ingress;
            item.meta.zone = pod.port;
            if pod.worker != self.options.id {
                item.meta.fate = Fate::Handoff(pod.worker);
            }
            return;
        }
        item.meta.zone = 0;
        if self.tables.node.owns(destination) || self.is_snat_address(destination) {
            item.meta.role = Role::Node;
            self.neighbour_discovery(item);
            if item.meta.fate == Fate::Pending {
                let owner = self.node_owner(item, destination);
                if owner != self.options.id {
                    item.meta.fate = Fate::Handoff(owner);
                }
            }
            return;
        }
        item.meta.role = Role::Transit;
        self.neighbour_discovery(item);
        if item.meta.peer != 0 && item.meta.fate == Fate::Pending {
            // A pod that leaves through this gateway: one worker has all of its flows, so that it leases one set of blocks.
            let source = addresses(item).map_or(destination, |(source, _)| source);
            let owner = owner_of(source, self.options.workers);
            if owner != self.options.id {
                item.meta.fate = Fate::Handoff(owner);
            }
        }
    }

    /// Whether an address that is no node address has SNAT ports here (egress gateways).
    fn is_snat_address(&self, address: Address) -> bool {
        self.tables.egress.addresses.contains(&address)
    }

    /// The worker that owns packets to one of our own addresses: by SNAT port block, else the host's worker. An ICMP error
    /// belongs to the flow of the packet it quotes; fragments are gathered at the host's worker first.
    pub(crate) fn node_owner(&self, item: &Item, destination: Address) -> u16 {
        let packet = &item.meta.packet;
        if packet.fragment && !item.meta.fragment_known {
            return self.host_worker();
        }
        let port = match packet.shape {
            Shape::IcmpError => self.quoted_source_port(item),
            _ => u16::from_be_bytes(packet.destination_port),
        };
        if let Some(space) = self.spaces.iter().find(|s| s.address == destination)
            && space.contains(port)
            && let Some(worker) = space.owner(port)
        {
            return worker;
        }
        // NodePorts are transit: they stay with the worker whose queue the NIC chose.
        if self.frontend_of(destination, packet.protocol, port).is_some() && item.meta.peer == 0 {
            return self.options.id;
        }
        self.host_worker()
    }
}

/// Source and destination of the parsed packet.
#[inline(always)]
pub(crate) fn addresses(item: &Item) -> Option<(Address, Address)> {
    let l3 = item.l3();
    if item.meta.packet.family == 4 {
        let h = l3.first_chunk::<20>()?;
        Some((Address::v4([h[12], h[13], h[14], h[15]]), Address::v4([h[16], h[17], h[18], h[19]])))
    } else {
        let h = l3.first_chunk::<40>()?;
        let (s, d) = (h[8..24].first_chunk::<16>()?, h[24..40].first_chunk::<16>()?);
        Some((Address::v6(*s), Address::v6(*d)))
    }
}

/// Position of a protocol's checksum field in its header.
pub(crate) fn checksum_offset(protocol: u8) -> Option<u16> {
    match protocol {
        6 => Some(16),
        17 => Some(6),
        58 => Some(2),
        _ => None,
    }
}

/// Pseudo-header sum of the packet (RFC 9293 §3.1, RFC 8200 §8.1), not complemented.
pub(crate) fn pseudo_sum(l3: &[u8], packet: &Packet) -> Option<u16> {
    use sluice_wire::checksum::Sum;
    let addresses = if packet.family == 4 { l3.get(12..20)? } else { l3.get(8..40)? };
    let length = packet.total.checked_sub(packet.l4)?;
    Some(Sum::bytes(addresses).add_u16(u16::from(packet.protocol)).add_u16(length).fold())
}

/// A device that cannot tell (veth): a field equal to the pseudo-header sum is partial. Should a complete checksum be equal
/// to it by chance, computing it anew gives the same value, so nothing is lost.
#[inline]
pub(crate) fn resolve_checksum(frame: &mut Frame, l3: u16, packet: &Packet) {
    // Stays unknown if the field is not the pseudo-header's: behind an outer datagram the inner packet is asked again.
    let partial = (|| {
        if packet.shape != Shape::Ports || packet.fragment {
            return None;
        }
        let offset = checksum_offset(packet.protocol)?;
        let at = usize::from(packet.l4 + offset);
        let bytes = frame.head().get(usize::from(l3)..)?;
        let field = bytes.get(at..at + 2)?;
        let field = u16::from_be_bytes([field[0], field[1]]);
        (field == pseudo_sum(bytes, packet)?).then_some(offset)
    })();
    if let Some(offset) = partial {
        frame.checksum = Checksum::Partial { start: l3 + packet.l4, offset };
    }
}

/// Whether a non-zero outer UDP checksum holds (RFC 6935 allows zero, we accept both).
fn outer_checksum_is_right(item: &mut Item) -> bool {
    use sluice_wire::checksum::{Sum, SumWalk};
    let packet = item.meta.packet;
    if matches!(item.frame.checksum, Checksum::Partial { .. } | Checksum::Unknown) {
        // Our neighbour is a kernel on the same machine that left a sum to a device that never was: the outer one, or the
        // inner one, on which the outer one then rests (local checksum offload). Nothing was on a wire.
        item.frame.checksum = Checksum::Unknown;
        return true;
    }
    let Some(pseudo) = pseudo_sum(item.l3(), &packet) else { return false };
    let (skip, mut left) = (usize::from(item.meta.l3 + packet.l4), usize::from(packet.total) - usize::from(packet.l4));
    let mut walk = SumWalk::from(Sum::ZERO.add_u16(pseudo));
    let mut at = 0;
    item.frame.for_each_segment(|bytes| {
        let from = skip.saturating_sub(at).min(bytes.len());
        let take = (bytes.len() - from).min(left);
        walk.push(&bytes[from..from + take]);
        left -= take;
        at += bytes.len();
    });
    walk.sum().fold() == 0xffff
}

/// RFC 6040 §4.2: what the outer header says of congestion goes into the inner one. `false`: the packet must be dropped.
fn carry_congestion(item: &mut Item, outer: u8) -> bool {
    let inner = item.meta.packet.tos;
    let Ok(tos) = sluice_wire::ecn::decap(inner, outer) else { return false };
    if tos == inner {
        return true;
    }
    item.meta.packet.tos = tos;
    let v4 = item.meta.packet.family == 4;
    let l3 = item.l3_mut();
    if v4 {
        let old = u16::from_be_bytes([l3[0], l3[1]]);
        l3[1] = tos;
        let field = u16::from_be_bytes([l3[10], l3[11]]);
        let delta = sluice_wire::checksum::Delta::u16(old, u16::from_be_bytes([l3[0], tos]));
        l3[10..12].copy_from_slice(&delta.apply(field).to_be_bytes());
    } else {
        l3[0] = l3[0] & 0xf0 | tos >> 4;
        l3[1] = l3[1] & 0x0f | tos << 4;
    }
    true
}
