//! Stage three of an ordinary packet whose flow has had no surprise since its last packet: one look at its entry, which is
//! used where it lies, a rewrite, the hop's header, a lane. Whatever else it may be goes the general way (`established.rs`)
//! with nothing done to it; a property test holds both ways to the same bytes.
//!
//! Cost: the entry's line, its hop's, one load each for pod and Service version; all conditions are one branch.

use super::established::Family;
use super::send::{entropy, outer4, put_start};
use crate::batch::{Columns, Facts, Kind, NO_PORT};
use crate::flow::{Common, Entry4, Entry6, FlowTable, Slot, State};
use crate::item::BATCH;
use crate::pipeline::{Pipeline, TICKS_PER_SECOND};
use sluice_port::Frame;
use sluice_tables::hops::Hop;
use sluice_wire::checksum::Delta;

const TCP: u8 = 6;
/// Length of a hop's header: Ethernet.
const PLAIN: u8 = 14;
/// The overlay over IPv4.
const TUNNEL: u8 = 64;

/// What the stage looks up, borrowed once for a batch.
struct Ways<'a> {
    hops: &'a [Hop],
    policies: &'a [u32],
    services: &'a [u32],
    tick: u32,
}

impl Pipeline {
    /// Stage three: rewrites and wraps each steady packet where it lies and notes the port it leaves through. `frames` are
    /// the ordinary ones among the first `n` positions.
    pub(crate) fn turn_steady(&mut self, frames: &mut [Frame], n: usize) {
        let Pipeline { tables, flows4, flows6, columns, tick, .. } = self;
        let ways = Ways {
            hops: tables.hops.list(),
            policies: tables.pods.versions(),
            services: tables.services.versions(),
            tick: *tick,
        };
        // Each family's loop alone keeps in registers what both together have no room for.
        let Columns { facts, hashes, slots, outs, keys4, keys6 } = &mut **columns;
        let all = |kind| facts.iter().take(n).all(|facts| facts.kind == kind);
        if n == frames.len() && all(Kind::V4) {
            turn_all(flows4, &ways, frames, &Found { facts, hashes, slots, keys: keys4 }, outs);
        } else if n == frames.len() && all(Kind::V6) {
            turn_all(flows6, &ways, frames, &Found { facts, hashes, slots, keys: keys6 }, outs);
        } else {
            outs.iter_mut().take(n).for_each(|out| *out = NO_PORT);
            let mut frames = frames.iter_mut();
            for at in 0..n.min(BATCH) {
                let facts = &facts[at];
                let (slot, hash) = (slots[at], hashes[at]);
                outs[at] = match facts.kind {
                    Kind::Other => continue,
                    kind => {
                        let Some(frame) = frames.next() else { break };
                        match kind {
                            Kind::V4 => turn_one(flows4, &ways, &keys4[at], slot, hash, facts.l3, frame),
                            Kind::V6 => turn_one(flows6, &ways, &keys6[at], slot, hash, facts.l3, frame),
                            Kind::Foreign | Kind::Other => NO_PORT,
                        }
                    }
                };
            }
        }
    }
}

/// The columns of a batch of one family.
struct Found<'a, K> {
    facts: &'a [Facts; BATCH],
    hashes: &'a [u64; BATCH],
    slots: &'a [Slot; BATCH],
    keys: &'a [K; BATCH],
}

/// A batch of one family.
#[inline(never)]
fn turn_all<E: Swift>(
    table: &mut FlowTable<E>,
    ways: &Ways<'_>,
    frames: &mut [Frame],
    found: &Found<'_, E::Key>,
    outs: &mut [u16; BATCH],
) {
    let columns = found.facts.iter().zip(found.hashes).zip(found.slots).zip(found.keys).zip(outs);
    for (frame, ((((facts, hash), slot), key), out)) in frames.iter_mut().zip(columns) {
        *out = swift(table, ways, key, *slot, *hash, usize::from(facts.l3), frame).unwrap_or(NO_PORT);
    }
}

/// A packet of a mixed batch.
#[inline(never)]
fn turn_one<E: Swift>(
    table: &mut FlowTable<E>,
    ways: &Ways<'_>,
    key: &E::Key,
    slot: Slot,
    hash: u64,
    l3: u8,
    frame: &mut Frame,
) -> u16 {
    swift(table, ways, key, slot, hash, usize::from(l3), frame).unwrap_or(NO_PORT)
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
    let head = E::head(frame, l3)?;
    let (total, tos, tcp) = (E::total(head), E::tos(head), E::is_tcp(head));
    let c = entry.common();
    let hop = ways.hops.get(usize::from(c.hop))?;
    let policy = ways.policies.get(usize::from(c.pod)).copied().unwrap_or(0);
    let service = ways.services.get(usize::from(c.slot)).copied().unwrap_or(0);
    let moved = (hop.version ^ c.hop_version) | (policy ^ c.policy_version) | (service ^ c.service_version);
    let steady = (entry.key() == key)
        & (moved == 0)
        & (c.state == State::Established as u8 || c.state == State::Stream as u8)
        & (E::ttl(head) > 1)
        & (total <= hop.mtu)
        & (ways.tick.wrapping_sub(c.last_seen) <= TICKS_PER_SECOND)
        & c.sends_at_once()
        & frame.is_bare();
    if !steady {
        return None;
    }
    // A hop without a header of these lengths is unresolved or an overlay over IPv6.
    match hop.header_len {
        PLAIN => {
            let header = E::turn::<{ PLAIN as usize }>(entry, frame, l3, tcp)?;
            put_start(header, hop, E::ETHER_TYPE);
        }
        TUNNEL => {
            let header = E::turn::<{ TUNNEL as usize }>(entry, frame, l3, tcp)?;
            put_start(header, hop, E::ETHER_TYPE);
            outer4(header, total, tos, entropy(hash), hop.outer_sum);
        }
        _ => return None,
    }
    // Written only when it moves: most packets leave the line clean.
    if entry.common().last_seen != ways.tick {
        entry.common_mut().last_seen = ways.tick;
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
    fn head(frame: &Frame, l3: usize) -> Option<&Self::Head>;
    /// Bytes of the whole packet.
    fn total(head: &Self::Head) -> u16;
    /// TTL or hop limit.
    fn ttl(head: &Self::Head) -> u8;
    /// TOS or traffic class.
    fn tos(head: &Self::Head) -> u8;
    /// Whether TCP follows; else it is UDP.
    fn is_tcp(head: &Self::Head) -> bool;
    /// Puts `H` bytes in front of the packet at `l3` and rewrites its addresses, ports, TTL and checksums; the bytes in front,
    /// to be written. `None`, with nothing done: a segment that opens or ends its connection, or no room.
    fn turn<'f, const H: usize>(&self, frame: &'f mut Frame, l3: usize, tcp: bool) -> Option<&'f mut [u8; H]>;
}

impl Swift for Entry4 {
    const ETHER_TYPE: [u8; 2] = [0x08, 0x00];

    type Head = [u8; 40];

    #[inline(always)]
    fn head(frame: &Frame, l3: usize) -> Option<&Self::Head> {
        frame.peek(l3)
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
    fn turn<'f, const H: usize>(&self, frame: &'f mut Frame, l3: usize, tcp: bool) -> Option<&'f mut [u8; H]> {
        let head = Self::head(frame, l3)?;
        if tcp && !State::goes_on(head[33]) {
            return None;
        }
        let total = usize::from(Self::total(head));
        let (header, l3) = frame.rewrap_fixed::<H, 40>(l3, total)?;
        let mut sum = u16::from_be_bytes([l3[10], l3[11]]);
        if self.common.bits & Common::PLAIN == 0 {
            l3[12..20].copy_from_slice(&self.addresses);
            l3[20..24].copy_from_slice(&self.ports);
            sum = Delta::from_bits(self.delta_l3).apply(sum);
            let delta = Delta::from_bits(self.delta_l4);
            if tcp {
                let field = delta.apply(u16::from_be_bytes([l3[36], l3[37]]));
                l3[36..38].copy_from_slice(&field.to_be_bytes());
            } else {
                let field = delta.apply_udp(u16::from_be_bytes([l3[26], l3[27]]));
                l3[26..28].copy_from_slice(&field.to_be_bytes());
            }
        }
        if self.common.bits & Common::KEEP_TTL == 0 {
            l3[8] = l3[8].wrapping_sub(1);
            // TTL is the high byte of its word: one less there is 0x0100 more in the complement (RFC 1624).
            let (more, carry) = sum.overflowing_add(0x0100);
            sum = more + u16::from(carry);
        }
        l3[10..12].copy_from_slice(&sum.to_be_bytes());
        Some(header)
    }
}

impl Swift for Entry6 {
    const ETHER_TYPE: [u8; 2] = [0x86, 0xdd];

    type Head = [u8; 48];

    #[inline(always)]
    fn head(frame: &Frame, l3: usize) -> Option<&Self::Head> {
        frame.peek(l3)
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
    fn turn<'f, const H: usize>(&self, frame: &'f mut Frame, l3: usize, tcp: bool) -> Option<&'f mut [u8; H]> {
        let total = usize::from(Self::total(Self::head(frame, l3)?));
        let plain = self.common.bits & Common::PLAIN != 0;
        let delta = Delta::from_bits(self.delta_l4);
        let (header, fixed) = if tcp {
            let segment = frame.peek::<60>(l3)?;
            if !State::goes_on(segment[53]) {
                return None;
            }
            let (header, packet) = frame.rewrap_fixed::<H, 60>(l3, total)?;
            if !plain {
                let field = delta.apply(u16::from_be_bytes([packet[56], packet[57]]));
                packet[56..58].copy_from_slice(&field.to_be_bytes());
            }
            (header, packet.first_chunk_mut::<44>()?)
        } else {
            let (header, packet) = frame.rewrap_fixed::<H, 48>(l3, total)?;
            if !plain {
                let field = delta.apply_udp(u16::from_be_bytes([packet[46], packet[47]]));
                packet[46..48].copy_from_slice(&field.to_be_bytes());
            }
            (header, packet.first_chunk_mut::<44>()?)
        };
        if !plain {
            fixed[8..24].copy_from_slice(&self.addresses[0]);
            fixed[24..40].copy_from_slice(&self.addresses[1]);
            fixed[40..44].copy_from_slice(&self.ports);
        }
        if self.common.bits & Common::KEEP_TTL == 0 {
            fixed[7] = fixed[7].wrapping_sub(1);
        }
        Some(header)
    }
}
