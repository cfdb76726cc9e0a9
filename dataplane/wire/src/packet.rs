//! One IP packet as the pipeline sees it, read in one pass: the ordinary case inline, the rest out of line.
//!
//! Source: RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 9260, RFC 792, RFC 4443. Cost: an IPv4 packet without options or
//! fragments touches bytes 0..20 and the first 20 bytes behind; nothing is copied. After a successful parse every offset
//! named here lies inside the bytes given.

/// Why a packet is not taken further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Lengths, versions or flags that contradict each other.
    Malformed,
    /// IPv4 header checksum.
    BadChecksum,
    /// TCP flag combinations that no endpoint sends: none at all, SYN with FIN, SYN with RST.
    InvalidFlags,
}

/// What stands behind the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Shape {
    /// TCP, UDP or SCTP with both ports readable.
    Ports,
    /// ICMP echo request or reply; the identifier stands in for a port.
    Echo,
    /// An ICMP error that quotes a packet.
    IcmpError,
    /// Any other ICMP message (neighbour discovery among them).
    IcmpOther,
    /// A protocol without ports.
    Portless,
    /// A fragment that is not the first: no transport header.
    LaterFragment,
}

/// Offsets count from the first byte of the IP header; ports are in network order as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// 4 or 6.
    pub family: u8,
    /// Protocol behind the network header and its extensions.
    pub protocol: u8,
    /// What stands there.
    pub shape: Shape,
    /// TCP flag byte; 0 for other protocols.
    pub tcp_flags: u8,
    /// Start of the transport header.
    pub l4: u16,
    /// Bytes of the whole IP packet (Ethernet padding excluded).
    pub total: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Whether this is any fragment.
    pub fragment: bool,
    /// IPv4 don't-fragment; always true for IPv6.
    pub dont_fragment: bool,
    /// Source port, echo identifier, or 0.
    pub source_port: [u8; 2],
    /// Destination port, echo identifier of a reply, or 0.
    pub destination_port: [u8; 2],
}

/// Fragment fields, read only when [`Packet::fragment`] says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentInfo {
    /// Identification (16 bits for IPv4).
    pub id: u32,
    /// First payload byte's place in the datagram.
    pub offset: u32,
    /// Payload bytes of this fragment.
    pub len: u32,
    /// More fragments follow.
    pub more: bool,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

#[inline]
fn be16(b: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([b[at], b[at + 1]]))
}

impl Packet {
    /// Reads the packet that starts at `l3[0]`. `held` is the number of bytes the frame holds from there on, over all its
    /// chunks; headers must lie inside `l3`.
    #[inline]
    pub fn parse(l3: &[u8], held: usize) -> Result<Packet, Refused> {
        if let Some(packet) = Self::plain4(l3, held) {
            return Ok(packet);
        }
        Self::parse_any(l3, held)
    }

    /// The ordinary IPv4 packet: TCP or UDP, no options, no fragment, nothing wrong with it. `None` says only that
    /// [`parse`](Self::parse) must look. Always inlined, so that the fields stay in registers: a struct written byte by
    /// byte and read back whole at once waits for the stores.
    #[inline(always)]
    pub fn plain4(l3: &[u8], held: usize) -> Option<Packet> {
        let head = l3.first_chunk::<40>()?;
        let total = be16(head, 2);
        let tcp = head[9] == TCP;
        // Version, header length and fragment fields compared as one word.
        const MASK: u64 = u64::from_ne_bytes([0xff, 0, 0, 0, 0, 0, 0x3f, 0xff]);
        const WHOLE: u64 = u64::from_ne_bytes([0x45, 0, 0, 0, 0, 0, 0, 0]);
        let word = u64::from_ne_bytes([head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7]]);
        if !((word & MASK == WHOLE) & (total <= held) & header_sum_is_right(head)) {
            return None;
        }
        let sound = if tcp {
            let end = 20 + usize::from(head[32] >> 4) * 4;
            (end >= 40) & (end <= total) & (end <= l3.len()) & flags_are_sane(head[33])
        } else {
            let len = be16(head, 24);
            (head[9] == UDP) & (len >= 8) & (20 + len <= total)
        };
        sound.then_some(Packet {
            family: 4,
            protocol: head[9],
            shape: Shape::Ports,
            tcp_flags: if tcp { head[33] } else { 0 },
            l4: 20,
            total: total as u16,
            ttl: head[8],
            tos: head[1],
            fragment: false,
            dont_fragment: head[6] & 0x40 != 0,
            source_port: [head[20], head[21]],
            destination_port: [head[22], head[23]],
        })
    }

    /// The ordinary IPv6 packet: TCP or UDP right behind the fixed header, nothing wrong with it. `None` as in
    /// [`plain4`](Self::plain4).
    #[inline(always)]
    pub fn plain6(l3: &[u8], held: usize) -> Option<Packet> {
        let head = l3.first_chunk::<48>()?;
        let (payload, tcp) = (be16(head, 4), head[6] == TCP);
        let total = 40 + payload;
        let ordinary =
            (head[0] >> 4 == 6) & (tcp | (head[6] == UDP)) & (total <= held) & (total <= 65_535) & (payload >= 8);
        if !ordinary {
            return None;
        }
        let mut tcp_flags = 0;
        if tcp {
            let segment = l3.get(40..)?.first_chunk::<20>()?;
            let end = 40 + usize::from(segment[12] >> 4) * 4;
            tcp_flags = segment[13];
            if !((end >= 60) & (end <= total) & (end <= l3.len()) & flags_are_sane(tcp_flags)) {
                return None;
            }
        } else {
            let len = be16(head, 44);
            if !((len >= 8) & (len <= payload)) {
                return None;
            }
        }
        Some(Packet {
            family: 6,
            protocol: head[6],
            shape: Shape::Ports,
            tcp_flags,
            l4: 40,
            total: total as u16,
            ttl: head[7],
            tos: (head[0] << 4) | (head[1] >> 4),
            fragment: false,
            dont_fragment: true,
            source_port: [head[40], head[41]],
            destination_port: [head[42], head[43]],
        })
    }

    #[inline(never)]
    fn parse_any(l3: &[u8], held: usize) -> Result<Packet, Refused> {
        match l3.first().map(|b| b >> 4) {
            Some(4) => Self::parse_v4(l3, held),
            Some(6) => Self::parse_v6(l3, held),
            _ => Err(Refused::Malformed),
        }
    }

    fn parse_v4(l3: &[u8], held: usize) -> Result<Packet, Refused> {
        let head = l3.first_chunk::<20>().ok_or(Refused::Malformed)?;
        let (ihl, total) = (usize::from(head[0] & 15) * 4, be16(head, 2));
        if ihl < 20 || total < ihl || total > held || l3.len() < ihl {
            return Err(Refused::Malformed);
        }
        if crate::checksum::Sum::bytes(&l3[..ihl]).fold() != 0xffff {
            return Err(Refused::BadChecksum);
        }
        let fragment_word = be16(head, 6);
        let (offset, more) = (fragment_word & 0x1fff, fragment_word & 0x2000 != 0);
        let mut packet = Packet {
            family: 4,
            protocol: head[9],
            shape: Shape::Portless,
            tcp_flags: 0,
            l4: ihl as u16,
            total: total as u16,
            ttl: head[8],
            tos: head[1],
            fragment: offset != 0 || more,
            dont_fragment: fragment_word & 0x4000 != 0,
            source_port: [0; 2],
            destination_port: [0; 2],
        };
        if packet.fragment {
            let payload = total - ihl;
            let end = offset * 8 + payload;
            if end > 65_535 || payload == 0 || (more && payload % 8 != 0) {
                return Err(Refused::Malformed);
            }
        }
        if offset != 0 {
            packet.shape = Shape::LaterFragment;
            return Ok(packet);
        }
        packet.transport(l3)
    }

    fn parse_v6(l3: &[u8], held: usize) -> Result<Packet, Refused> {
        let head = l3.first_chunk::<40>().ok_or(Refused::Malformed)?;
        let total = 40 + be16(head, 4);
        if total > held || total > 65_535 {
            return Err(Refused::Malformed);
        }
        let mut packet = Packet {
            family: 6,
            protocol: head[6],
            shape: Shape::Portless,
            tcp_flags: 0,
            l4: 40,
            total: total as u16,
            ttl: head[7],
            tos: (head[0] << 4) | (head[1] >> 4),
            fragment: false,
            dont_fragment: true,
            source_port: [0; 2],
            destination_port: [0; 2],
        };
        let mut at = 40;
        // Eight headers are more than any sender has use for; a longer chain is an attack on the parser.
        for _ in 0..8 {
            match packet.protocol {
                0 | 43 | 60 => {
                    let &[next, len] =
                        l3.get(at..at + 2).and_then(|b| b.first_chunk::<2>()).ok_or(Refused::Malformed)?;
                    at += 8 + usize::from(len) * 8;
                    packet.protocol = next;
                }
                44 => {
                    let h = l3.get(at..at + 8).and_then(|b| b.first_chunk::<8>()).ok_or(Refused::Malformed)?;
                    let word = be16(h, 2);
                    at += 8;
                    packet.protocol = h[0];
                    packet.fragment = word & 0xfff9 != 0;
                    if packet.fragment {
                        let payload = total.checked_sub(at).ok_or(Refused::Malformed)?;
                        let end = (word & 0xfff8) + payload;
                        if end > 65_535 || payload == 0 || (word & 1 != 0 && payload % 8 != 0) {
                            return Err(Refused::Malformed);
                        }
                    }
                    if word & 0xfff8 != 0 {
                        packet.l4 = at as u16;
                        packet.shape = Shape::LaterFragment;
                        return if at > total || at > l3.len() { Err(Refused::Malformed) } else { Ok(packet) };
                    }
                }
                _ => {
                    if at > total || at > l3.len() {
                        return Err(Refused::Malformed);
                    }
                    packet.l4 = at as u16;
                    return packet.transport(l3);
                }
            }
            if at > total {
                return Err(Refused::Malformed);
            }
        }
        Err(Refused::Malformed)
    }

    /// Reads the transport header at `self.l4`.
    fn transport(mut self, l3: &[u8]) -> Result<Packet, Refused> {
        let payload = usize::from(self.total) - usize::from(self.l4);
        let l4 = &l3[usize::from(self.l4)..];
        let l4 = &l4[..l4.len().min(payload)];
        match (self.protocol, self.family) {
            (TCP, _) => {
                let h = l4.first_chunk::<20>().ok_or(Refused::Malformed)?;
                let offset = usize::from(h[12] >> 4) * 4;
                if offset < 20 || offset > l4.len() {
                    return Err(Refused::Malformed);
                }
                self.tcp_flags = h[13];
                check_flags(h[13])?;
                self.ports(h[0..4].first_chunk())
            }
            (UDP, _) => {
                let h = l4.first_chunk::<8>().ok_or(Refused::Malformed)?;
                let len = be16(h, 4);
                // A first fragment's UDP length names the whole datagram.
                if len < 8 || (len > payload && !self.fragment) {
                    return Err(Refused::Malformed);
                }
                self.ports(h.first_chunk())
            }
            (SCTP, _) => {
                let h = l4.first_chunk::<12>().ok_or(Refused::Malformed)?;
                self.ports(h.first_chunk())
            }
            (ICMP, 4) | (ICMPV6, 6) => {
                let h = l4.first_chunk::<8>().or(None);
                let kind = *l4.first().ok_or(Refused::Malformed)?;
                let v4 = self.family == 4;
                let Some(h) = h else { return Err(Refused::Malformed) };
                let (request, reply) = if v4 { (8, 0) } else { (128, 129) };
                if kind == request {
                    self.shape = Shape::Echo;
                    self.source_port = [h[4], h[5]];
                } else if kind == reply {
                    self.shape = Shape::Echo;
                    self.destination_port = [h[4], h[5]];
                } else if (v4 && matches!(kind, 3 | 4 | 5 | 11 | 12)) || (!v4 && kind < 128) {
                    self.shape = Shape::IcmpError;
                } else {
                    self.shape = Shape::IcmpOther;
                }
                Ok(self)
            }
            (ICMP, _) | (ICMPV6, _) => Err(Refused::Malformed),
            _ => Ok(self),
        }
    }

    fn ports(mut self, ports: Option<&[u8; 4]>) -> Result<Packet, Refused> {
        let [a, b, c, d] = *ports.ok_or(Refused::Malformed)?;
        self.shape = Shape::Ports;
        self.source_port = [a, b];
        self.destination_port = [c, d];
        Ok(self)
    }

    /// The fragment fields of a packet whose [`fragment`](Self::fragment) is set.
    pub fn fragment_info(&self, l3: &[u8]) -> Option<FragmentInfo> {
        if !self.fragment {
            return None;
        }
        let len = u32::from(self.total) - u32::from(self.l4);
        if self.family == 4 {
            let word = be16(l3, 6);
            let id = be16(l3, 4) as u32;
            return Some(FragmentInfo { id, offset: (word as u32 & 0x1fff) * 8, len, more: word & 0x2000 != 0 });
        }
        // The fragment header is the last one in front of `l4` of a later fragment; for a first one other headers may
        // stand between, so the chain is walked again.
        let (mut next, mut at) = (*l3.get(6)?, 40usize);
        while next != 44 {
            let ext = l3.get(at..at + 2)?;
            next = ext[0];
            at += 8 + usize::from(ext[1]) * 8;
        }
        let h = l3.get(at..at + 8)?;
        let word = be16(h, 2) as u32;
        let payload = u32::from(self.total) - (at as u32 + 8);
        Some(FragmentInfo {
            id: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
            offset: word & 0xfff8,
            len: payload,
            more: word & 1 != 0,
        })
    }
}

/// One's-complement sum of a 20-byte IPv4 header, checksum included, is all ones.
#[inline(always)]
fn header_sum_is_right(head: &[u8; 40]) -> bool {
    let word = |at: usize| u64::from(u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    is_all_ones(word(0) + word(4) + word(8) + word(12) + word(16))
}

/// Whether a sum of at most 2^16 words of 32 bits is all ones when its carries are folded back into 16 bits (RFC 1071): then
/// it is a multiple of 65535, and not zero. Two instructions where folding takes ten: for an odd divisor the product with its
/// inverse modulo 2^64 is the quotient, small, if the division is exact, and large if not.
#[inline(always)]
pub fn is_all_ones(sum: u64) -> bool {
    const MOST: u64 = u64::MAX / 65_535;
    const INVERSE: u64 = MOST.wrapping_neg();
    const _: () = assert!(INVERSE.wrapping_mul(65_535) == 1);
    sum.wrapping_mul(INVERSE).wrapping_sub(1) < MOST
}

/// One bit for each combination of FIN, SYN, RST, PSH, ACK and URG that an endpoint sends.
const SANE_FLAGS: u64 = {
    const FIN: u64 = 1;
    const SYN: u64 = 2;
    const RST: u64 = 4;
    let (mut bits, mut flags) = (0u64, 1u64);
    while flags < 64 {
        if flags & SYN == 0 || flags & (FIN | RST) == 0 {
            bits |= 1 << flags;
        }
        flags += 1;
    }
    bits
};

#[inline(always)]
fn flags_are_sane(flags: u8) -> bool {
    SANE_FLAGS >> (flags & 0x3f) & 1 != 0
}

#[inline]
fn check_flags(flags: u8) -> Result<(), Refused> {
    if flags_are_sane(flags) { Ok(()) } else { Err(Refused::InvalidFlags) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sluice_testkit::strategy;

    proptest! {
        #[test]
        fn the_ordinary_path_reads_nothing_that_the_full_one_reads_otherwise(
            frame in prop_oneof![strategy::mangled(), strategy::packet().prop_map(|p| p.build())]
        ) {
            let l3 = frame.get(14..).unwrap_or(&[]);
            for packet in [Packet::plain4(l3, l3.len()), Packet::plain6(l3, l3.len())].into_iter().flatten() {
                prop_assert_eq!(Packet::parse_any(l3, l3.len()), Ok(packet));
            }
        }

        #[test]
        fn a_packet_without_peculiarities_is_ordinary(
            (from, to) in strategy::addresses(), tcp in any::<bool>(), size in 20usize..500
        ) {
            let packet = sluice_testkit::Packet::eth().addresses(from, to);
            let packet = if tcp { packet.tcp(1, 2) } else { packet.udp(1, 2) };
            let frame = packet.payload(&vec![7; size]).build();
            let l3 = &frame[14..];
            let plain = if from.is_ipv4() { Packet::plain4(l3, l3.len()) } else { Packet::plain6(l3, l3.len()) };
            prop_assert_eq!(plain.ok_or(Refused::Malformed), Packet::parse_any(l3, l3.len()));
        }
    }
}
