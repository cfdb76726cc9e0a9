//! The hot entry: all that a packet of an established flow needs, in one cache line for IPv4 and two for IPv6.
//!
//! ```text
//! Entry4  0        16            28     30     32                                   64
//!         ├─ key ──┼─ to ────────┼─ Δl3─┼─ Δl4─┼─ Common: hop, versions, state … ────┤
//! Entry6  0                40                       76      80               112    128
//!         ├─ key ──────────┼─ to ─────────────────── ┼─ Δl4 ┼─ Common ────────┼──────┤
//! ```
//! Both directions of a connection are neighbours: entry 2n is the first packet's way, 2n+1 the replies' way.

use super::key::{Key4, Key6, Side, Tuple};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where a packet goes after its rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Next {
    /// Out through the entry's hop.
    Send = 0,
    /// Into the local pod `aux`: its ingress half follows.
    Pod = 1,
    /// To this node's own address: SNAT replies and the host follow.
    Node = 2,
    /// Back to the worker `aux` that holds the transit half.
    Transit = 3,
}

/// The part both families share, 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Common {
    /// Way out: index into the hops.
    pub hop: u16,
    /// Port number of the pod whose policy decided; 0: none.
    pub pod: u16,
    /// Slot of the Service's version; 0: none.
    pub slot: u16,
    /// Port of the next pod, or worker of the transit half.
    pub aux: u16,
    /// [`State`](super::State) as a byte; 0: the entry is free.
    pub state: u8,
    /// Bits: [`Common::REPLY`] and the next step.
    pub bits: u8,
    /// SNAT space of the flow's leased port, plus 1; 0: none. Only in the first direction's entry.
    pub space: u16,
    /// Version of the hop at decision time.
    pub hop_version: u32,
    /// Version of the pod's policy at decision time.
    pub policy_version: u32,
    /// Version of the Service's slot at decision time.
    pub service_version: u32,
    /// Last packet, in ticks.
    pub last_seen: u32,
    /// Rule that allowed the flow, in the first direction's entry; next free pair while free.
    pub rule: u32,
}

impl Common {
    /// The replies' direction.
    pub const REPLY: u8 = 0x80;
    /// No rewrite: addresses and ports stay.
    pub const PLAIN: u8 = 0x40;
    /// TTL is left alone: the packet goes to this node itself.
    pub const KEEP_TTL: u8 = 0x20;
    /// Answers to what a pod asks DNS: never steady, each packet is looked at.
    pub const OBSERVE: u8 = 0x10;
    /// Allowed by a rule about domain names: the address is kept for the flow.
    pub const NAMED: u8 = 0x08;
    /// An audited policy alone would have denied it.
    pub const AUDITED: u8 = 0x04;
    const NEXT: u8 = 0x03;

    /// What follows the rewrite.
    #[inline(always)]
    pub fn next(&self) -> Next {
        match self.bits & Self::NEXT {
            0 => Next::Send,
            1 => Next::Pod,
            2 => Next::Node,
            _ => Next::Transit,
        }
    }

    /// Whether its packets are rewritten and sent, and nothing else: no other half, no look at what they say.
    #[inline(always)]
    pub fn sends_at_once(&self) -> bool {
        self.bits & (Self::NEXT | Self::OBSERVE) == 0
    }

    /// Sets what follows the rewrite.
    pub fn set_next(&mut self, next: Next) {
        self.bits = (self.bits & !Self::NEXT) | next as u8;
    }

    /// Whether this is the replies' direction.
    #[inline(always)]
    pub fn is_reply(&self) -> bool {
        self.bits & Self::REPLY != 0
    }
}

/// One direction of an IPv4 flow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct Entry4 {
    /// Identity.
    pub key: Key4,
    /// New source and destination address, wire order.
    pub addresses: [u8; 8],
    /// New source and destination port, wire order.
    pub ports: [u8; 4],
    /// Checksum delta of the addresses (RFC 1624), for the IPv4 header and for partial transport checksums.
    pub delta_l3: u16,
    /// Checksum delta of addresses and ports, for the transport header.
    pub delta_l4: u16,
    /// Shared part.
    pub common: Common,
}

/// One direction of an IPv6 flow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(128))]
pub struct Entry6 {
    /// Identity.
    pub key: Key6,
    /// New source and destination address, wire order.
    pub addresses: [[u8; 16]; 2],
    /// New source and destination port, wire order.
    pub ports: [u8; 4],
    /// Checksum delta of the addresses, for partial checksums.
    pub delta_l3: u16,
    /// Checksum delta of addresses and ports, for the transport header.
    pub delta_l4: u16,
    /// Shared part.
    pub common: Common,
    /// Room to 128 bytes.
    room: [u64; 2],
}

const _: () = {
    assert!(size_of::<Common>() == 32);
    assert!(size_of::<Entry4>() == 64 && align_of::<Entry4>() == 64);
    assert!(size_of::<Entry6>() == 128);
};

/// What the table and the slow path need of an entry, whatever its family.
pub trait Entry: Copy + Default + FromBytes + IntoBytes + Immutable + KnownLayout + Send + 'static {
    /// Its key type.
    type Key: Copy + PartialEq + core::fmt::Debug;

    /// Key of a tuple.
    fn key_of(tuple: &Tuple, zone: u16, side: Side) -> Self::Key;
    /// Hash of a key.
    fn hash(key: &Self::Key, seed: u64) -> u64;
    /// Its key.
    fn key(&self) -> &Self::Key;
    /// Back to tuple, zone and side.
    fn parts(&self) -> (Tuple, u16, Side);
    /// An entry that turns packets of `key` into packets of `to`.
    fn make(key: Self::Key, from: &Tuple, to: &Tuple, common: Common) -> Self;
    /// The tuple its packets leave with.
    fn to(&self) -> Tuple;
    /// Shared part.
    fn common(&self) -> &Common;
    /// Shared part, writable.
    fn common_mut(&mut self) -> &mut Common;
}

/// Bytes that enter the transport checksum when a port changes: both ports, or the echo identifier once.
fn port_delta(from: &Tuple, to: &Tuple) -> sluice_wire::checksum::Delta {
    use sluice_wire::checksum::Delta;
    Delta::u16(from.source_port, to.source_port).combine(Delta::u16(from.destination_port, to.destination_port))
}

impl Entry for Entry4 {
    type Key = Key4;

    fn key_of(tuple: &Tuple, zone: u16, side: Side) -> Key4 {
        tuple.key4(zone, side)
    }

    #[inline(always)]
    fn hash(key: &Key4, seed: u64) -> u64 {
        key.hash(seed)
    }

    #[inline(always)]
    fn key(&self) -> &Key4 {
        &self.key
    }

    fn parts(&self) -> (Tuple, u16, Side) {
        self.key.parts()
    }

    fn make(key: Key4, from: &Tuple, to: &Tuple, mut common: Common) -> Self {
        use sluice_wire::checksum::Delta;
        let mut addresses = [0; 8];
        addresses[..4].copy_from_slice(&to.source.last4());
        addresses[4..].copy_from_slice(&to.destination.last4());
        let l3 = Delta::ipv4(from.source.last4(), to.source.last4())
            .combine(Delta::ipv4(from.destination.last4(), to.destination.last4()));
        let ports = port_delta(from, to);
        // ICMPv4 has no pseudo-header: only the identifier enters its checksum.
        let l4 = if from.protocol == 1 { ports } else { l3.combine(ports) };
        if from == to {
            common.bits |= Common::PLAIN;
        }
        Entry4 { key, addresses, ports: port_bytes(to), delta_l3: l3.to_bits(), delta_l4: l4.to_bits(), common }
    }

    fn to(&self) -> Tuple {
        let a = self.addresses;
        let (tuple, ..) = self.key.parts();
        Tuple {
            source: sluice_tables::Address::v4([a[0], a[1], a[2], a[3]]),
            destination: sluice_tables::Address::v4([a[4], a[5], a[6], a[7]]),
            source_port: u16::from_be_bytes([self.ports[0], self.ports[1]]),
            destination_port: u16::from_be_bytes([self.ports[2], self.ports[3]]),
            protocol: tuple.protocol,
        }
    }

    #[inline(always)]
    fn common(&self) -> &Common {
        &self.common
    }

    #[inline(always)]
    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }
}

impl Entry for Entry6 {
    type Key = Key6;

    fn key_of(tuple: &Tuple, zone: u16, side: Side) -> Key6 {
        tuple.key6(zone, side)
    }

    #[inline(always)]
    fn hash(key: &Key6, seed: u64) -> u64 {
        key.hash(seed)
    }

    #[inline(always)]
    fn key(&self) -> &Key6 {
        &self.key
    }

    fn parts(&self) -> (Tuple, u16, Side) {
        self.key.parts()
    }

    fn make(key: Key6, from: &Tuple, to: &Tuple, mut common: Common) -> Self {
        use sluice_wire::checksum::Delta;
        let l3 = Delta::ipv6(&from.source.0, &to.source.0).combine(Delta::ipv6(&from.destination.0, &to.destination.0));
        let l4 = l3.combine(port_delta(from, to));
        if from == to {
            common.bits |= Common::PLAIN;
        }
        Entry6 {
            key,
            addresses: [to.source.0, to.destination.0],
            ports: port_bytes(to),
            delta_l3: l3.to_bits(),
            delta_l4: l4.to_bits(),
            common,
            ..Entry6::default()
        }
    }

    fn to(&self) -> Tuple {
        let (tuple, ..) = self.key.parts();
        Tuple {
            source: sluice_tables::Address::v6(self.addresses[0]),
            destination: sluice_tables::Address::v6(self.addresses[1]),
            source_port: u16::from_be_bytes([self.ports[0], self.ports[1]]),
            destination_port: u16::from_be_bytes([self.ports[2], self.ports[3]]),
            protocol: tuple.protocol,
        }
    }

    #[inline(always)]
    fn common(&self) -> &Common {
        &self.common
    }

    #[inline(always)]
    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }
}

fn port_bytes(tuple: &Tuple) -> [u8; 4] {
    let ([a, b], [c, d]) = (tuple.source_port.to_be_bytes(), tuple.destination_port.to_be_bytes());
    [a, b, c, d]
}
