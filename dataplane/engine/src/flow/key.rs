//! What identifies one direction of a flow: zone, side, protocol, addresses, ports.
//!
//! The zone is the local pod whose port the packet crosses (0: the node itself), the side says which way it crosses, so
//! that both halves of a flow between two local pods, and a spoofed packet, are different keys.

use sluice_tables::{Address, Family};
use sluice_wire::packet::Packet;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Which way a packet crosses its zone's border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Side {
    /// From the pod (or from the host, in zone 0).
    From = 1,
    /// To the pod (or to the node's addresses and in transit, in zone 0).
    To = 2,
}

impl Side {
    /// The other way.
    pub fn flip(self) -> Self {
        match self {
            Side::From => Side::To,
            Side::To => Side::From,
        }
    }
}

/// IPv4 key, 16 bytes: `addresses` = source, destination; `rest` = ports (32 bits), zone (16), protocol (8), side (8).
/// Address and port bytes keep the order of the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Key4 {
    addresses: u64,
    rest: u64,
}

/// IPv6 key, 40 bytes, same fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Key6 {
    source: [u64; 2],
    destination: [u64; 2],
    rest: u64,
}

#[inline(always)]
fn rest(packet: &Packet, zone: u16, side: Side) -> u64 {
    let [a, b] = packet.source_port;
    let [c, d] = packet.destination_port;
    rest_of(u32::from_ne_bytes([a, b, c, d]), packet.protocol, zone, side)
}

#[inline(always)]
fn rest_of(ports: u32, protocol: u8, zone: u16, side: Side) -> u64 {
    u64::from(ports) | u64::from(zone) << 32 | u64::from(protocol) << 48 | (side as u64) << 56
}

#[inline(always)]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

impl Key4 {
    /// Of a parsed packet whose IPv4 header starts at `l3[0]`.
    #[inline(always)]
    pub fn of(l3: &[u8; 20], packet: &Packet, zone: u16, side: Side) -> Self {
        let addresses = u64::from_ne_bytes([l3[12], l3[13], l3[14], l3[15], l3[16], l3[17], l3[18], l3[19]]);
        Key4 { addresses, rest: rest(packet, zone, side) }
    }

    /// Of a packet whose ports stand right behind its 20-byte header: two loads, nothing put together from bytes.
    #[inline(always)]
    pub fn plain(l3: &[u8; 24], zone: u16, side: Side) -> Self {
        let addresses = u64::from_ne_bytes([l3[12], l3[13], l3[14], l3[15], l3[16], l3[17], l3[18], l3[19]]);
        let ports = u32::from_ne_bytes([l3[20], l3[21], l3[22], l3[23]]);
        Key4 { addresses, rest: rest_of(ports, l3[9], zone, side) }
    }

    /// Source and destination port, in wire order.
    pub fn ports(&self) -> [u8; 4] {
        (self.rest as u32).to_ne_bytes()
    }

    /// Hash under a secret seed, so that nobody can aim at one bucket.
    #[inline(always)]
    pub fn hash(&self, seed: u64) -> u64 {
        mix(self.addresses ^ seed, self.rest ^ 0x9e37_79b9_7f4a_7c15)
    }
}

impl Key6 {
    /// Of a parsed packet whose IPv6 header starts at `l3[0]`.
    #[inline(always)]
    pub fn of(l3: &[u8; 40], packet: &Packet, zone: u16, side: Side) -> Self {
        let word = |at: usize| {
            u64::from_ne_bytes([
                l3[at],
                l3[at + 1],
                l3[at + 2],
                l3[at + 3],
                l3[at + 4],
                l3[at + 5],
                l3[at + 6],
                l3[at + 7],
            ])
        };
        Key6 { source: [word(8), word(16)], destination: [word(24), word(32)], rest: rest(packet, zone, side) }
    }

    /// Of a packet whose ports stand right behind its fixed header.
    #[inline(always)]
    pub fn plain(l3: &[u8; 44], zone: u16, side: Side) -> Self {
        let word = |at: usize| {
            let b = [l3[at], l3[at + 1], l3[at + 2], l3[at + 3], l3[at + 4], l3[at + 5], l3[at + 6], l3[at + 7]];
            u64::from_ne_bytes(b)
        };
        let ports = u32::from_ne_bytes([l3[40], l3[41], l3[42], l3[43]]);
        let rest = rest_of(ports, l3[6], zone, side);
        Key6 { source: [word(8), word(16)], destination: [word(24), word(32)], rest }
    }

    /// Source and destination port, in wire order.
    pub fn ports(&self) -> [u8; 4] {
        (self.rest as u32).to_ne_bytes()
    }

    /// Hash under a secret seed.
    #[inline(always)]
    pub fn hash(&self, seed: u64) -> u64 {
        let a = mix(self.source[0] ^ seed, self.source[1] ^ 0xa076_1d64_78bd_642f);
        let b = mix(self.destination[0] ^ seed.rotate_left(32), self.destination[1] ^ 0xe703_7ed1_a0b4_28db);
        mix(a ^ self.rest, b ^ 0x9e37_79b9_7f4a_7c15)
    }
}

/// A flow's addresses and ports on the slow path: either family, host-order ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port; echo identifier of a request.
    pub source_port: u16,
    /// Destination port; echo identifier of a reply.
    pub destination_port: u16,
    /// Protocol number.
    pub protocol: u8,
}

impl Tuple {
    /// Of a parsed packet whose IP header starts at `l3[0]`; `None` if `l3` is shorter than the header.
    pub fn of(l3: &[u8], packet: &Packet) -> Option<Self> {
        let (source, destination) = if packet.family == 4 {
            let h = l3.first_chunk::<20>()?;
            (Address::v4([h[12], h[13], h[14], h[15]]), Address::v4([h[16], h[17], h[18], h[19]]))
        } else {
            let h = l3.first_chunk::<40>()?;
            (Address::v6(h[8..24].first_chunk().copied()?), Address::v6(h[24..40].first_chunk().copied()?))
        };
        Some(Tuple {
            source,
            destination,
            source_port: u16::from_be_bytes(packet.source_port),
            destination_port: u16::from_be_bytes(packet.destination_port),
            protocol: packet.protocol,
        })
    }

    /// The tuple of packets the other way.
    pub fn reverse(self) -> Self {
        Tuple {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }

    /// Family of its addresses.
    pub fn family(&self) -> Family {
        self.destination.family()
    }

    fn rest(&self, zone: u16, side: Side) -> u64 {
        let [a, b] = self.source_port.to_be_bytes();
        let [c, d] = self.destination_port.to_be_bytes();
        u64::from(u32::from_ne_bytes([a, b, c, d]))
            | u64::from(zone) << 32
            | u64::from(self.protocol) << 48
            | (side as u64) << 56
    }

    /// As an IPv4 key.
    pub fn key4(&self, zone: u16, side: Side) -> Key4 {
        let ([a, b, c, d], [e, f, g, h]) = (self.source.last4(), self.destination.last4());
        Key4 { addresses: u64::from_ne_bytes([a, b, c, d, e, f, g, h]), rest: self.rest(zone, side) }
    }

    /// As an IPv6 key.
    pub fn key6(&self, zone: u16, side: Side) -> Key6 {
        let halves = |a: &Address| {
            let (x, y) = a.0.split_at(8);
            let word = |b: &[u8]| u64::from_ne_bytes(b.first_chunk().copied().unwrap_or_default());
            [word(x), word(y)]
        };
        Key6 { source: halves(&self.source), destination: halves(&self.destination), rest: self.rest(zone, side) }
    }
}

fn split_rest(rest: u64) -> (u16, u16, u8, u16, u8) {
    let [a, b, c, d] = (rest as u32).to_ne_bytes();
    (
        u16::from_be_bytes([a, b]),
        u16::from_be_bytes([c, d]),
        (rest >> 48) as u8,
        (rest >> 32) as u16,
        (rest >> 56) as u8,
    )
}

impl Key4 {
    /// Back to a tuple with zone and side.
    pub fn parts(&self) -> (Tuple, u16, Side) {
        let b = self.addresses.to_ne_bytes();
        let (source_port, destination_port, protocol, zone, side) = split_rest(self.rest);
        let tuple = Tuple {
            source: Address::v4([b[0], b[1], b[2], b[3]]),
            destination: Address::v4([b[4], b[5], b[6], b[7]]),
            source_port,
            destination_port,
            protocol,
        };
        (tuple, zone, if side == Side::From as u8 { Side::From } else { Side::To })
    }
}

impl Key6 {
    /// Back to a tuple with zone and side.
    pub fn parts(&self) -> (Tuple, u16, Side) {
        let join = |w: [u64; 2]| {
            let mut out = [0; 16];
            out[..8].copy_from_slice(&w[0].to_ne_bytes());
            out[8..].copy_from_slice(&w[1].to_ne_bytes());
            Address::v6(out)
        };
        let (source_port, destination_port, protocol, zone, side) = split_rest(self.rest);
        let tuple = Tuple {
            source: join(self.source),
            destination: join(self.destination),
            source_port,
            destination_port,
            protocol,
        };
        (tuple, zone, if side == Side::From as u8 { Side::From } else { Side::To })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_survives_the_way_through_both_keys() {
        let v4 = Tuple {
            source: Address::v4([10, 244, 1, 5]),
            destination: Address::v4([10, 96, 0, 10]),
            source_port: 40_001,
            destination_port: 53,
            protocol: 17,
        };
        assert_eq!(v4.key4(7, Side::From).parts(), (v4, 7, Side::From));
        let v6 = Tuple { source: Address::v6([0xfd; 16]), destination: Address::v6([0x20; 16]), ..v4 };
        assert_eq!(v6.key6(9, Side::To).parts(), (v6, 9, Side::To));
        assert_eq!(v6.reverse().reverse(), v6);
    }
}
