//! The ordinary packet's way from the wire to its lookup: TCP or UDP without options, fragments or surprises, from a pod or
//! the uplink, in the overlay or not.
//!
//! It answers exactly what `classify` and `key_stage` would (a property test holds it to that) or nothing at all, and then
//! those two look. Why it exists: everything stays in registers from the header to the hash. Fields stored one by one and
//! read back as a whole wait for the stores, which measured 10 ns a packet.

use super::classify::resolve_checksum;
use crate::flow::{Key4, Key6, Side};
use crate::item::{Fate, Item, Role};
use crate::pipeline::Pipeline;
use sluice_port::Checksum;
use sluice_tables::node::GATEWAY_MAC;
use sluice_tables::{Address, HopId};
use sluice_wire::packet::Packet;

const ETHERNET: usize = 14;
/// Ethernet, IPv4, UDP, VXLAN, Ethernet.
const OVERLAY: usize = 14 + 20 + 8 + 8 + 14;

/// A packet, where it begins, and the address it goes to.
struct Seen {
    packet: Packet,
    l3: u16,
    destination: Address,
}

/// The ordinary packet behind the Ethernet header at `at - 14`.
#[inline(always)]
fn read(frame: &sluice_port::Frame, at: usize) -> Option<Seen> {
    let l3 = frame.head().get(at..)?;
    let kind = frame.head().get(at - 2..at)?;
    let held = frame.len() - at;
    if kind == [0x08, 0x00] {
        let packet = Packet::plain4(l3, held)?;
        let h = l3.first_chunk::<20>()?;
        Some(Seen { packet, l3: at as u16, destination: Address::v4([h[16], h[17], h[18], h[19]]) })
    } else if kind == [0x86, 0xdd] {
        let packet = Packet::plain6(l3, held)?;
        Some(Seen { packet, l3: at as u16, destination: Address::v6(*l3.get(24..40)?.first_chunk()?) })
    } else {
        None
    }
}

impl Pipeline {
    /// Classifies an ordinary packet and asks for its flow's bucket. `false`: nothing was done, the general way must look.
    /// On `true` the item's fate may be set.
    #[inline(always)]
    pub(crate) fn plain(&mut self, at: usize, item: &mut Item) -> bool {
        let (port, node) = (item.meta.port, &*self.tables.node);
        if port == node.uplink {
            return self.plain_uplink(at, item);
        }
        let Some(ethernet) = item.frame.head().first_chunk::<ETHERNET>() else { return false };
        if port == node.host || ethernet[..6] != GATEWAY_MAC {
            return false;
        }
        let Some(seen) = read(&item.frame, ETHERNET) else { return false };
        // Most of what a pod sends leaves through the overlay, whose header goes into the line in front.
        sluice_port::prefetch::prefetch(item.frame.data_ptr().wrapping_sub(64));
        self.enter(at, item, &seen, Role::Pod, port);
        true
    }

    #[inline(always)]
    fn plain_uplink(&mut self, at: usize, item: &mut Item) -> bool {
        let Some(hop) = self.overlay_peer(item) else { return false };
        let Some(seen) = read(&item.frame, OVERLAY) else { return false };
        // What the outer datagram says it carries bounds the inner packet.
        let outer_end = ETHERNET + usize::from(u16::from_be_bytes([item.frame.head()[16], item.frame.head()[17]]));
        if OVERLAY + usize::from(seen.packet.total) > outer_end {
            return false;
        }
        let tables = &self.tables;
        let owner = self
            .pod_memo
            .get(seen.destination, || tables.pods.by_address(seen.destination).map(|pod| (pod.port, pod.worker)));
        let Some((zone, worker)) = owner else { return false };
        item.meta.peer = hop.0 + 1;
        self.enter(at, item, &seen, Role::Ingress, zone);
        if worker != self.options.id {
            item.meta.fate = Fate::Handoff(worker);
        }
        true
    }

    /// The tunnel hop of the node that sent an ordinary overlay packet: IPv4 without options or fragments, checksum right,
    /// UDP checksum zero, no congestion mark, our network.
    #[inline(always)]
    fn overlay_peer(&mut self, item: &Item) -> Option<HopId> {
        let head = item.frame.head().first_chunk::<OVERLAY>()?;
        let outer = item.frame.head().get(ETHERNET..)?;
        let packet = Packet::plain4(outer, item.frame.len() - ETHERNET)?;
        let settings = &*self.tables.settings;
        let destination = Address::v4([head[30], head[31], head[32], head[33]]);
        let ordinary = (head[12..14] == [0x08, 0x00])
            & (packet.protocol == 17)
            & (packet.tos & 3 == 0)
            & (u16::from_be_bytes(packet.destination_port) == settings.vxlan_port)
            & (head[40..42] == [0, 0])
            & (head[42] & 0x08 != 0)
            & (u32::from_be_bytes([0, head[46], head[47], head[48]]) == settings.vni)
            & (self.tables.node.internal[0] == Some(destination))
            & !matches!(item.frame.checksum, Checksum::Partial { .. });
        if !ordinary {
            return None;
        }
        let peer = Address::v4([head[26], head[27], head[28], head[29]]);
        let tables = &self.tables;
        self.peer_memo.get(peer, || tables.routes.peers.get(&peer).map(|p| p.hop.0)).map(HopId)
    }

    /// Writes down what was seen, makes the flow's key and asks for its bucket.
    #[inline(always)]
    fn enter(&mut self, at: usize, item: &mut Item, seen: &Seen, role: Role, zone: u16) {
        let packet = &seen.packet;
        if item.frame.checksum == Checksum::Unknown {
            resolve_checksum(&mut item.frame, seen.l3, packet);
        }
        let side = if role == Role::Pod { Side::From } else { Side::To };
        let l3 = item.frame.head().get(usize::from(seen.l3)..).unwrap_or(&[]);
        if packet.family == 4 {
            let Some(l3) = l3.first_chunk::<20>() else { return };
            let key = Key4::of(l3, packet, zone, side);
            let hash = self.flows4.hash(&key);
            self.flows4.prefetch_bucket(hash);
            self.keys4[at] = key;
            item.meta.hash = hash;
        } else {
            let Some(l3) = l3.first_chunk::<40>() else { return };
            let key = Key6::of(l3, packet, zone, side);
            let hash = self.flows6.hash(&key);
            self.flows6.prefetch_bucket(hash);
            self.keys6[at] = key;
            item.meta.hash = hash;
        }
        item.meta.packet = seen.packet;
        item.meta.l3 = seen.l3;
        item.meta.role = role;
        item.meta.zone = zone;
    }
}
