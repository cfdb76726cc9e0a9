//! ICMP errors travel with the flow of the packet they quote, translated outside and inside.
//!
//! Source: RFC 5508 §4 and §7, RFC 4443. The quoted packet went the other way, so the flow direction that this error takes
//! is the one whose key is the quoted packet's reverse.

use super::established::Family;
use crate::flow::{Common, Entry4, Entry6, Tuple};
use crate::item::{Fate, Item, Role};
use crate::pipeline::{Pipeline, side_of};
use crate::reason::Reason;
use sluice_tables::Address;
use sluice_wire::checksum::{Delta, Sum};
use sluice_wire::layers::{Inner, Layers, Transport};

/// Bytes of Ethernet header in front of every IP packet, the overlay's inner one included.
const ETHERNET: usize = 14;

/// What an error quotes: the tuple, and where its headers are, counted from the IP header of the error.
struct Quoted {
    tuple: Tuple,
    l3: usize,
    l4: usize,
}

fn quoted(item: &Item) -> Option<Quoted> {
    let from = usize::from(item.meta.l3).checked_sub(ETHERNET)?;
    let frame = item.frame.head().get(from..)?;
    let layers = Layers::parse(frame, item.frame.len() - from).ok()?;
    let inner: Inner = layers.inner?;
    let (l3, l4) = (usize::from(inner.l3) - ETHERNET, usize::from(inner.l4) - ETHERNET);
    let bytes = item.l3().get(l3..)?;
    let (source, destination) = match item.meta.packet.family {
        4 => {
            let h = bytes.first_chunk::<20>()?;
            (Address::v4([h[12], h[13], h[14], h[15]]), Address::v4([h[16], h[17], h[18], h[19]]))
        }
        _ => {
            let h = bytes.first_chunk::<40>()?;
            (Address::v6(*h[8..24].first_chunk()?), Address::v6(*h[24..40].first_chunk()?))
        }
    };
    let (source_port, destination_port) = match inner.transport {
        Transport::Tcp { source, destination, .. }
        | Transport::Udp { source, destination }
        | Transport::Sctp { source, destination, .. } => (source, destination),
        Transport::Icmp { kind: 8 | 128, id, .. } => (id, 0),
        Transport::Icmp { kind: 0 | 129, id, .. } => (0, id),
        Transport::Icmp { .. } | Transport::Opaque => (0, 0),
        Transport::Fragment => return None,
    };
    let tuple = Tuple { source, destination, source_port, destination_port, protocol: inner.protocol.0 };
    Some(Quoted { tuple, l3, l4 })
}

impl Pipeline {
    /// Source port of the packet an ICMP error quotes; 0 if it quotes none.
    pub(crate) fn quoted_source_port(&self, item: &Item) -> u16 {
        quoted(item).map_or(0, |q| q.tuple.source_port)
    }

    /// Sends an ICMP error along the flow it is about.
    pub(crate) fn icmp_error(&mut self, item: &mut Item) {
        if item.meta.packet.family == 4 {
            self.icmp_error_in::<Entry4>(item)
        } else {
            self.icmp_error_in::<Entry6>(item)
        }
    }

    fn icmp_error_in<E: Family>(&mut self, item: &mut Item) {
        let Some(quote) = quoted(item) else { return item.refuse(Reason::Malformed) };
        let Some(outer) = Tuple::of(item.l3(), &item.meta.packet) else { return item.refuse(Reason::Malformed) };
        let key = E::key_of(&quote.tuple.reverse(), item.meta.zone, side_of(item.meta.role));
        let Some(slot) = E::table(self).find(&key) else { return self.stray_error(item, &outer) };
        if !self.revalidate::<E>(item, slot) {
            if item.meta.fate == Fate::Pending {
                item.refuse(Reason::InvalidState);
            }
            return;
        }
        let Some(entry) = E::table(self).get(slot).copied() else { return item.refuse(Reason::InvalidState) };
        if item.meta.packet.ttl <= 1 && !item.meta.forwarded && entry.common().bits & Common::KEEP_TTL == 0 {
            return item.refuse(Reason::TtlExpired);
        }
        let to = entry.to();
        // An error of the translated endpoint itself gets its public address; a router on the way keeps its own.
        let source = if outer.source == quote.tuple.destination { to.source } else { outer.source };
        translate(item, &quote, &to.reverse(), source, to.destination);
        if entry.common().bits & Common::KEEP_TTL == 0 {
            self.lower_ttl(item);
        }
        if self.tracing() {
            self.note_established::<E>(item, slot);
        }
        let common = *entry.common();
        self.after_rewrite(item, &common, &[0; 4]);
    }

    /// An error about no flow: the host's own affair, or nobody's.
    fn stray_error(&mut self, item: &mut Item, outer: &Tuple) {
        match item.meta.role {
            Role::Node => {
                if self.came_honestly(item, outer.source) {
                    self.punt(item);
                }
            }
            Role::Transit if item.meta.peer == 0 => item.refuse(Reason::NotForUs),
            // The host's kernel or another node's gateway reports about a packet that keeps no state here.
            Role::Host => {
                if let Some(pod) = self.tables.pods.by_address(outer.destination).cloned() {
                    self.continue_as(item, Role::Ingress, pod.port, pod.worker);
                } else {
                    item.refuse(Reason::InvalidState);
                }
            }
            _ => item.refuse(Reason::InvalidState),
        }
    }
}

/// Rewrites an error: the quoted packet becomes `inner`, the error itself goes from `source` to `destination`.
fn translate(item: &mut Item, quote: &Quoted, inner: &Tuple, source: Address, destination: Address) {
    let (v4, l4) = (item.meta.packet.family == 4, usize::from(item.meta.packet.l4));
    let total = usize::from(item.meta.packet.total);
    let l3 = item.l3_mut();
    let end = total.min(l3.len());
    let Some(bytes) = l3.get_mut(..end) else { return };
    let before = Sum::bytes(&bytes[quote.l3..]);
    rewrite_quoted(&mut bytes[quote.l3..], quote.l4 - quote.l3, v4, &quote.tuple, inner);
    let mut delta = Delta::sums(before, Sum::bytes(&bytes[quote.l3..]));
    if v4 {
        let Some(head) = bytes.first_chunk_mut::<20>() else { return };
        let old = Sum::bytes(&head[12..20]);
        head[12..16].copy_from_slice(&source.last4());
        head[16..20].copy_from_slice(&destination.last4());
        let change = Delta::sums(old, Sum::bytes(&head[12..20]));
        let sum = change.apply(u16::from_be_bytes([head[10], head[11]]));
        head[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let old = Sum::bytes(&bytes[8..40]);
        bytes[8..24].copy_from_slice(&source.0);
        bytes[24..40].copy_from_slice(&destination.0);
        delta = delta.combine(Delta::sums(old, Sum::bytes(&bytes[8..40])));
    }
    if let Some(field) = bytes.get_mut(l4 + 2..l4 + 4) {
        let sum = delta.apply(u16::from_be_bytes([field[0], field[1]]));
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// Rewrites the quoted packet in place; its own checksums move along as far as they are quoted.
fn rewrite_quoted(bytes: &mut [u8], l4: usize, v4: bool, from: &Tuple, to: &Tuple) {
    let addresses = if v4 {
        let Some(head) = bytes.first_chunk_mut::<20>() else { return };
        let old = Sum::bytes(&head[12..20]);
        head[12..16].copy_from_slice(&to.source.last4());
        head[16..20].copy_from_slice(&to.destination.last4());
        let delta = Delta::sums(old, Sum::bytes(&head[12..20]));
        let sum = delta.apply(u16::from_be_bytes([head[10], head[11]]));
        head[10..12].copy_from_slice(&sum.to_be_bytes());
        delta
    } else {
        let old = Sum::bytes(&bytes[8..40]);
        bytes[8..24].copy_from_slice(&to.source.0);
        bytes[24..40].copy_from_slice(&to.destination.0);
        Delta::sums(old, Sum::bytes(&bytes[8..40]))
    };
    let Some(l4) = bytes.get_mut(l4..) else { return };
    let (source, destination) = (to.source_port.to_be_bytes(), to.destination_port.to_be_bytes());
    let ports =
        Delta::u16(from.source_port, to.source_port).combine(Delta::u16(from.destination_port, to.destination_port));
    let all = addresses.combine(ports);
    let mut mend = |at: usize, delta: Delta, udp: bool| {
        if let Some(field) = l4.get_mut(at..at + 2) {
            let old = u16::from_be_bytes([field[0], field[1]]);
            let new = if udp { delta.apply_udp(old) } else { delta.apply(old) };
            field.copy_from_slice(&new.to_be_bytes());
        }
    };
    match from.protocol {
        6 => mend(16, all, false),
        17 => mend(6, all, true),
        1 => mend(2, ports, false),
        58 => mend(2, all, false),
        _ => {}
    }
    match from.protocol {
        6 | 17 | 132 => {
            if let Some(h) = l4.first_chunk_mut::<4>() {
                h[..2].copy_from_slice(&source);
                h[2..].copy_from_slice(&destination);
            }
        }
        1 | 58 => {
            if let Some(id) = l4.get_mut(4..6) {
                id.copy_from_slice(if from.source_port != 0 { &source } else { &destination });
            }
        }
        _ => {}
    }
}
