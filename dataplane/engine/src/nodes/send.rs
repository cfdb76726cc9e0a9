//! The way out: the old wrapping comes off, the hop's header goes on, and the frame is fit for its port.
//!
//! Source: RFC 7348 §5 (VXLAN), RFC 6040 §4.1 (ECN, normal mode), RFC 6935 (zero UDP checksum over IPv4 only: stock kernels
//! refuse it over IPv6). Cost for a tunnel hop: one 64-byte copy and five stores.

use crate::flow::Common;
use crate::item::{Fate, Item};
use crate::pipeline::Pipeline;
use crate::reason::{Reason, Stage};
use sluice_port::{Checksum, Frame, GsoKind};
use sluice_tables::hops::{Hop, HopId, HopKind};
use sluice_wire::checksum::{Delta, Sum, SumWalk};
use sluice_wire::sctp::SctpHeader;
use sluice_wire::{Header, tcp};

/// First UDP source port of the overlay (RFC 7348 §5: the dynamic range).
const ENTROPY_BASE: u16 = 49_152;

impl Pipeline {
    /// Sends the IP packet at `meta.l3` through a hop.
    #[inline(always)]
    pub(crate) fn send(&mut self, item: &mut Item, hop: HopId) {
        let tables = &self.tables;
        let Some(hop) = tables.hops.get(hop) else { return item.drop(Reason::NoRoute, Stage::Send) };
        if !is_plain(item, hop) || item.meta.packet.total > hop.mtu {
            let hop = hop.clone();
            return self.send_special(item, &hop);
        }
        wrap(item, hop);
    }

    /// Packets that need work of their own: segmentation, fragmentation, checksums, IPv6 overlays.
    #[inline(never)]
    fn send_special(&mut self, item: &mut Item, hop: &Hop) {
        if hop.kind == HopKind::Unresolved {
            return item.drop(Reason::NoNeighbour, Stage::Send);
        }
        let capabilities = self.outbox.capabilities(hop.port).copied().unwrap_or_default();
        let tunnel = hop.kind == HopKind::Tunnel;
        match item.frame.gso.kind {
            GsoKind::None => {}
            GsoKind::Tcp4 if capabilities.tso4 && !tunnel => {}
            GsoKind::Tcp6 if capabilities.tso6 && !tunnel => {}
            _ => return self.segment(item, hop),
        }
        if item.frame.gso.kind == GsoKind::None && item.meta.packet.total > hop.mtu {
            return self.fragment_out(item, hop);
        }
        if !capabilities.tx_checksum || !hop.outer_is_v4() {
            sluice_port::complete_checksum(&mut item.frame);
        }
        wrap(item, hop);
        if tunnel && !hop.outer_is_v4() {
            fill_outer_checksum6(&mut item.frame);
        }
    }

    /// Sends a frame that holds one IP packet from `l3` on, made in place of `of`.
    pub(crate) fn send_made(&mut self, frame: Frame, l3: u16, of: &Item, total: u16, hop: &Hop) {
        self.counters.originated.add(1);
        let mut made = Item { frame, meta: of.meta, note: of.note.clone() };
        made.meta.l3 = l3;
        made.meta.packet.total = total;
        made.meta.fate = Fate::Pending;
        made.frame.gso = Default::default();
        wrap(&mut made, hop);
        if hop.kind == HopKind::Tunnel && !hop.outer_is_v4() {
            fill_outer_checksum6(&mut made.frame);
        }
        self.settle(made);
    }

    /// Lowers TTL or hop limit by one, once.
    pub(crate) fn lower_ttl(&self, item: &mut Item) {
        if std::mem::replace(&mut item.meta.forwarded, true) {
            return;
        }
        let v4 = item.meta.packet.family == 4;
        let l3 = item.l3_mut();
        if !v4 {
            if let Some(limit) = l3.get_mut(7) {
                *limit = limit.saturating_sub(1);
            }
            return;
        }
        let Some(head) = l3.first_chunk_mut::<20>() else { return };
        let old = u16::from_be_bytes([head[8], head[9]]);
        head[8] = head[8].saturating_sub(1);
        let delta = Delta::u16(old, u16::from_be_bytes([head[8], head[9]]));
        let sum = delta.apply(u16::from_be_bytes([head[10], head[11]]));
        head[10..12].copy_from_slice(&sum.to_be_bytes());
    }

    /// Lowers the MSS a SYN announces to what fits both the way it came, which is the way data for it goes, and the way it
    /// leaves (RFC 9293 §3.7.1).
    pub(crate) fn clamp_mss(&self, item: &mut Item, c: &Common) {
        let packet = item.meta.packet;
        if packet.shape != sluice_wire::packet::Shape::Ports || packet.protocol != 6 {
            return;
        }
        let mtu_of = |hop: HopId| self.tables.hops.get(hop).map_or(u16::MAX, |h| h.mtu);
        let came = match (item.meta.peer.checked_sub(1), self.tables.pods.by_port(item.meta.port)) {
            (Some(tunnel), _) => mtu_of(HopId(tunnel)),
            (None, Some(pod)) => mtu_of(pod.hop),
            (None, None) => u16::MAX,
        };
        let mtu = mtu_of(HopId(c.hop)).min(came);
        let mss = mtu.saturating_sub(if packet.family == 4 { 40 } else { 60 });
        let partial = matches!(item.frame.checksum, Checksum::Partial { .. });
        let Some(l4) = item.l3_mut().get_mut(usize::from(packet.l4)..) else { return };
        if partial {
            let _ = tcp::lower_mss(l4, mss);
        } else {
            let _ = tcp::clamp_mss(l4, mss);
        }
    }
}

/// Whether a packet that fits the hop needs nothing but its header.
#[inline(always)]
pub(crate) fn is_plain(item: &Item, hop: &Hop) -> bool {
    item.frame.gso.kind == GsoKind::None
        && !matches!(item.frame.checksum, Checksum::Partial { .. })
        && hop.kind != HopKind::Unresolved
        && hop.outer_is_v4()
}

/// Replaces everything in front of the IP packet by the hop's header and sets the fate.
#[inline(always)]
pub(crate) fn wrap(item: &mut Item, hop: &Hop) {
    let total = usize::from(item.meta.packet.total);
    if !item.frame.pull(usize::from(item.meta.l3)) {
        return item.drop(Reason::Malformed, Stage::Send);
    }
    if item.frame.len() != total && !item.frame.truncate(total) {
        return item.drop(Reason::Malformed, Stage::Send);
    }
    let n = usize::from(hop.header_len);
    let v4 = item.meta.packet.family == 4;
    let entropy = entropy(item.meta.hash);
    let tos = item.meta.packet.tos;
    let Some(head) = item.frame.push(n) else { return item.drop(Reason::TooBig, Stage::Send) };
    put_header(head, hop, n);
    let ether_type: [u8; 2] = if v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    if let Some(field) = head.get_mut(n - 2..n) {
        field.copy_from_slice(&ether_type);
    }
    if hop.kind == HopKind::Tunnel {
        if n == 64 {
            outer4(head, total as u16, tos, entropy, hop.outer_sum);
        } else {
            outer6(head, total as u16, tos, entropy);
        }
    }
    item.meta.fate = Fate::Send(hop.port);
}

/// Copies the hop's header. The two common lengths are constants, so that each is a few moves and no call.
#[inline(always)]
fn put_header(head: &mut [u8], hop: &Hop, n: usize) {
    match n {
        14 => {
            if let (Some(to), Some(from)) = (head.first_chunk_mut::<14>(), hop.header.first_chunk::<14>()) {
                *to = *from;
            }
        }
        64 => {
            if let (Some(to), Some(from)) = (head.first_chunk_mut::<64>(), hop.header.first_chunk::<64>()) {
                *to = *from;
            }
        }
        _ => {
            if let (Some(to), Some(from)) = (head.get_mut(..n), hop.header.get(..n)) {
                to.copy_from_slice(from);
            }
        }
    }
}

/// The hop's header of `N` bytes with the type of what follows.
#[inline(always)]
pub(crate) fn put_start<const N: usize>(header: &mut [u8; N], hop: &Hop, ether_type: [u8; 2]) {
    let Some(from) = hop.header.first_chunk::<N>() else { return };
    *header = *from;
    header[N - 2..].copy_from_slice(&ether_type);
}

/// Outer source port of a flow: receivers spread their load by it (RFC 7348 §5).
#[inline(always)]
pub(crate) fn entropy(hash: u64) -> u16 {
    ENTROPY_BASE | ((hash >> 20) as u16 & 0x3fff)
}

/// Fills the outer IPv4 and UDP header of `inner` bytes of IP packet.
#[inline(always)]
pub(crate) fn outer4(head: &mut [u8], inner: u16, tos: u8, entropy: u16, base: u16) {
    let Some(h) = head.first_chunk_mut::<64>() else { return };
    let (ip, udp) = (inner + 50, inner + 30);
    h[15] = tos;
    h[16..18].copy_from_slice(&ip.to_be_bytes());
    let sum = u32::from(base) + u32::from(ip) + u32::from(tos);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    h[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    h[34..36].copy_from_slice(&entropy.to_be_bytes());
    h[38..40].copy_from_slice(&udp.to_be_bytes());
}

/// Fills the outer IPv6 and UDP header; the checksum follows when the payload is final.
fn outer6(head: &mut [u8], inner: u16, tos: u8, entropy: u16) {
    let Some(h) = head.first_chunk_mut::<84>() else { return };
    let udp = inner + 30;
    h[14] = 0x60 | tos >> 4;
    h[15] = tos << 4;
    h[18..20].copy_from_slice(&udp.to_be_bytes());
    h[54..56].copy_from_slice(&entropy.to_be_bytes());
    h[58..60].copy_from_slice(&udp.to_be_bytes());
}

/// Computes the UDP checksum of an overlay packet over IPv6 (RFC 8200 §8.1: zero is not allowed).
fn fill_outer_checksum6(frame: &mut Frame) {
    let length = (frame.len() - 54) as u32;
    let addresses = frame.head().get(22..54).map_or(Sum::ZERO, Sum::bytes);
    let mut walk = SumWalk::from(addresses.add_u32(length).add_u16(17));
    let mut first = true;
    frame.for_each_segment(|bytes| {
        walk.push(if first { bytes.get(54..).unwrap_or(&[]) } else { bytes });
        first = false;
    });
    let sum = walk.sum().finish_udp();
    if let Some(field) = frame.head_mut().get_mut(60..62) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// Sets the ports of an SCTP packet of `len` bytes; its CRC32c moves along, right or wrong as it was.
pub(crate) fn rewrite_sctp(l4: &mut [u8], ports: &[u8; 4], len: usize) {
    if let Some(header) = SctpHeader::at_mut(l4, 0) {
        let (source, destination) =
            (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]));
        header.set_ports(source, destination, len);
    }
}
