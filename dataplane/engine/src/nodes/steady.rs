//! Stage three of an ordinary packet whose flow has had no surprise since its last packet: one look at its entry, which is
//! used where it lies, a rewrite, the hop's header, a lane. Whatever else it may be goes the general way (`established.rs`)
//! with nothing done to it; a property test holds both ways to the same bytes.
//!
//! Cost: the entry's line, its hop's, one load each for pod and Service version; all conditions are one branch.

use super::established::Family;
use super::send::{entropy, outer4, put_start};
use crate::batch::{Kind, NO_PORT};
use crate::flow::{Common, Entry4, Entry6, FlowTable, Slot, State};
use crate::pipeline::{Pipeline, TICKS_PER_SECOND};
use sluice_port::Frame;
use sluice_tables::Tables;
use sluice_tables::hops::{HopId, HopKind};
use sluice_wire::checksum::Delta;

const TCP: u8 = 6;
/// Length of a hop's header: Ethernet.
const PLAIN: usize = 14;
/// The overlay over IPv4.
const TUNNEL: usize = 64;

/// What the stage looks up, borrowed once for a batch.
struct Ways<'a> {
    tables: &'a Tables,
    policies: &'a [u32],
    services: &'a [u32],
    tick: u32,
}

impl Pipeline {
    /// Stage three: rewrites and wraps each steady packet where it lies and notes the port it leaves through. `frames` are
    /// the ordinary ones among the first `n` positions.
    #[inline(never)]
    pub(crate) fn turn_steady(&mut self, frames: &mut [Frame], n: usize) {
        let Pipeline { tables, flows4, flows6, columns, tick, .. } = self;
        let tables: &Tables = tables;
        let (policies, services) = (tables.pods.versions(), tables.services.versions());
        let ways = Ways { tables, policies, services, tick: *tick };
        let mut frames = frames.iter_mut();
        for at in 0..n.min(columns.facts.len()) {
            let facts = columns.facts[at];
            columns.outs[at] = NO_PORT;
            if facts.kind == Kind::Other {
                continue;
            }
            let Some(frame) = frames.next() else { break };
            let (slot, hash, l3) = (columns.slots[at], columns.hashes[at], usize::from(facts.l3));
            let out = if facts.kind == Kind::V4 {
                swift(flows4, &ways, &columns.keys4[at], slot, hash, l3, frame)
            } else if facts.kind == Kind::V6 {
                swift(flows6, &ways, &columns.keys6[at], slot, hash, l3, frame)
            } else {
                None
            };
            columns.outs[at] = out.unwrap_or(NO_PORT);
        }
    }
}

/// Rewrites and wraps a packet whose flow and way are as they were; the port it leaves through. `None`: nothing was done.
#[inline(always)]
fn swift<E: Swift>(
    table: &mut FlowTable<E>,
    ways: &Ways<'_>,
    key: &E::Key,
    slot: Slot,
    hash: u64,
    l3: usize,
    frame: &mut Frame,
) -> Option<u16> {
    let entry = table.get_mut(slot)?;
    let packet = frame.head().get(l3..)?;
    let head = E::head(packet)?;
    let (total, tcp) = (E::total(head), E::is_tcp(head));
    let c = entry.common();
    let hop = ways.tables.hops.get(HopId(c.hop))?;
    let policy = ways.policies.get(usize::from(c.pod)).copied().unwrap_or(0);
    let service = ways.services.get(usize::from(c.slot)).copied().unwrap_or(0);
    let moved = (hop.version ^ c.hop_version) | (policy ^ c.policy_version) | (service ^ c.service_version);
    let n = usize::from(hop.header_len);
    let steady = (entry.key() == key)
        & (moved == 0)
        & State::is_steady(c.state, E::tcp_flags(packet, tcp))
        & (E::ttl(head) > 1)
        & (total <= hop.mtu)
        & (ways.tick.wrapping_sub(c.last_seen) <= TICKS_PER_SECOND)
        & c.sends_at_once()
        & ((n == PLAIN) | (n == TUNNEL))
        & (hop.kind != HopKind::Unresolved)
        & frame.is_bare();
    if !steady {
        return None;
    }
    let tos = E::tos(head);
    // The last thing that can fail.
    let head = frame.rewrap(l3, usize::from(total), n)?;
    // Written only when it moves: most packets leave the line clean.
    if c.last_seen != ways.tick {
        entry.common_mut().last_seen = ways.tick;
    }
    let (header, l3) = head.split_at_mut_checked(n)?;
    entry.turn(l3, tcp);
    if n == PLAIN {
        put_start::<PLAIN>(header, hop, E::ETHER_TYPE);
    } else {
        put_start::<TUNNEL>(header, hop, E::ETHER_TYPE);
        if hop.kind == HopKind::Tunnel {
            outer4(header, total, tos, entropy(hash), hop.outer_sum);
        }
    }
    Some(hop.port)
}

/// A family whose ordinary packets are rewritten without a look at what they are: TCP or UDP right behind the fixed header,
/// checksum complete.
trait Swift: Family {
    /// In front of its packets.
    const ETHER_TYPE: [u8; 2];
    /// As many bytes as an ordinary packet has at least.
    type Head;
    /// The packet's first bytes; `None` if it is too short to be ordinary.
    fn head(packet: &[u8]) -> Option<&Self::Head>;
    /// Bytes of the whole packet.
    fn total(head: &Self::Head) -> u16;
    /// TTL or hop limit.
    fn ttl(head: &Self::Head) -> u8;
    /// TOS or traffic class.
    fn tos(head: &Self::Head) -> u8;
    /// Whether TCP follows; else it is UDP.
    fn is_tcp(head: &Self::Head) -> bool;
    /// TCP's flags; 0 for UDP.
    fn tcp_flags(packet: &[u8], tcp: bool) -> u8;
    /// Rewrites addresses, ports, TTL and checksums.
    fn turn(&self, l3: &mut [u8], tcp: bool);
}

impl Swift for Entry4 {
    const ETHER_TYPE: [u8; 2] = [0x08, 0x00];

    type Head = [u8; 40];

    #[inline(always)]
    fn head(packet: &[u8]) -> Option<&Self::Head> {
        packet.first_chunk()
    }

    #[inline(always)]
    fn total(head: &Self::Head) -> u16 {
        u16::from_be_bytes([head[2], head[3]])
    }

    #[inline(always)]
    fn ttl(head: &Self::Head) -> u8 {
        head[8]
    }

    #[inline(always)]
    fn tos(head: &Self::Head) -> u8 {
        head[1]
    }

    #[inline(always)]
    fn is_tcp(head: &Self::Head) -> bool {
        head[9] == TCP
    }

    #[inline(always)]
    fn tcp_flags(packet: &[u8], tcp: bool) -> u8 {
        match packet.get(33) {
            Some(flags) if tcp => *flags,
            _ => 0,
        }
    }

    #[inline(always)]
    fn turn(&self, l3: &mut [u8], tcp: bool) {
        let Some((ip, l4)) = l3.split_first_chunk_mut::<20>() else { return };
        let mut sum = u16::from_be_bytes([ip[10], ip[11]]);
        if self.common.bits & Common::PLAIN == 0 {
            ip[12..20].copy_from_slice(&self.addresses);
            sum = Delta::from_bits(self.delta_l3).apply(sum);
            turn_transport(l4, tcp, &self.ports, self.delta_l4);
        }
        if self.common.bits & Common::KEEP_TTL == 0 {
            ip[8] = ip[8].wrapping_sub(1);
            // TTL is the high byte of its word: one less there is 0x0100 more in the complement (RFC 1624).
            let (more, carry) = sum.overflowing_add(0x0100);
            sum = more + u16::from(carry);
        }
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

impl Swift for Entry6 {
    const ETHER_TYPE: [u8; 2] = [0x86, 0xdd];

    type Head = [u8; 48];

    #[inline(always)]
    fn head(packet: &[u8]) -> Option<&Self::Head> {
        packet.first_chunk()
    }

    #[inline(always)]
    fn total(head: &Self::Head) -> u16 {
        u16::from_be_bytes([head[4], head[5]]).saturating_add(40)
    }

    #[inline(always)]
    fn ttl(head: &Self::Head) -> u8 {
        head[7]
    }

    #[inline(always)]
    fn tos(head: &Self::Head) -> u8 {
        head[0] << 4 | head[1] >> 4
    }

    #[inline(always)]
    fn is_tcp(head: &Self::Head) -> bool {
        head[6] == TCP
    }

    #[inline(always)]
    fn tcp_flags(packet: &[u8], tcp: bool) -> u8 {
        match packet.get(53) {
            Some(flags) if tcp => *flags,
            _ => 0,
        }
    }

    #[inline(always)]
    fn turn(&self, l3: &mut [u8], tcp: bool) {
        let Some((ip, l4)) = l3.split_first_chunk_mut::<40>() else { return };
        if self.common.bits & Common::PLAIN == 0 {
            ip[8..24].copy_from_slice(&self.addresses[0]);
            ip[24..40].copy_from_slice(&self.addresses[1]);
            turn_transport(l4, tcp, &self.ports, self.delta_l4);
        }
        if self.common.bits & Common::KEEP_TTL == 0 {
            ip[7] = ip[7].wrapping_sub(1);
        }
    }
}

#[inline(always)]
fn turn_transport(l4: &mut [u8], tcp: bool, ports: &[u8; 4], delta: u16) {
    let delta = Delta::from_bits(delta);
    if tcp {
        let Some(h) = l4.first_chunk_mut::<20>() else { return };
        h[..4].copy_from_slice(ports);
        let sum = delta.apply(u16::from_be_bytes([h[16], h[17]]));
        h[16..18].copy_from_slice(&sum.to_be_bytes());
    } else {
        let Some(h) = l4.first_chunk_mut::<8>() else { return };
        h[..4].copy_from_slice(ports);
        let sum = delta.apply_udp(u16::from_be_bytes([h[6], h[7]]));
        h[6..8].copy_from_slice(&sum.to_be_bytes());
    }
}
