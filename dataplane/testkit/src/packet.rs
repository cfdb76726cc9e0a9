//! Packets, said in the order of their layers: `Packet::eth().ipv4(a, b).tcp(40000, 80).flags(SYN).build()`.
//!
//! Source: the layouts of RFC 791, 8200, 9293, 768, 9260, 792, 4443 and 7348, written out byte by byte; sums by the words of
//! RFC 1071, CRC32c bit by bit. Invariant: what is built is right in every length and checksum unless a method says otherwise.
//! Cost: irrelevant here. Methods panic on what makes no packet, such as addresses of two families.

use sluice_wire::{Mac, Protocol, TcpFlags};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A packet in the making.
#[derive(Clone, Debug)]
pub struct Packet {
    macs: Option<(Mac, Mac)>,
    addresses: (IpAddr, IpAddr),
    ttl: u8,
    tos: u8,
    flow_label: u32,
    id: u32,
    dont_fragment: bool,
    options: Vec<u8>,
    extensions: Vec<(Protocol, Vec<u8>)>,
    fragment: Option<(u16, bool)>,
    transport: Transport,
    payload: Vec<u8>,
    sum: Sum,
    padding: usize,
}

#[derive(Clone, Debug)]
enum Transport {
    Raw(Protocol),
    Tcp { ports: (u16, u16), sequence: u32, acknowledgment: u32, flags: TcpFlags, window: u16, options: Vec<u8> },
    Udp { ports: (u16, u16) },
    Sctp { ports: (u16, u16), tag: u32 },
    Icmp { kind: u8, code: u8, rest: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sum {
    Right,
    Wrong,
    Partial,
    Absent,
}

impl Packet {
    /// An Ethernet frame; its addresses are those the IP addresses give ([`mac_of`]) unless [`macs`](Self::macs) says others.
    pub fn eth() -> Self {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            macs: None,
            addresses: (nobody, nobody),
            ttl: 64,
            tos: 0,
            flow_label: 0,
            id: 0,
            dont_fragment: true,
            options: vec![],
            extensions: vec![],
            fragment: None,
            transport: Transport::Raw(Protocol::NO_NEXT),
            payload: vec![],
            sum: Sum::Right,
            padding: 0,
        }
    }

    /// Source and destination hardware address.
    pub fn macs(mut self, source: Mac, destination: Mac) -> Self {
        self.macs = Some((source, destination));
        self
    }

    /// IPv4, TTL 64, DF set.
    pub fn ipv4(self, source: impl Into<Ipv4Addr>, destination: impl Into<Ipv4Addr>) -> Self {
        self.addresses(source.into().into(), destination.into().into())
    }

    /// IPv6, hop limit 64.
    pub fn ipv6(self, source: impl Into<Ipv6Addr>, destination: impl Into<Ipv6Addr>) -> Self {
        self.addresses(source.into().into(), destination.into().into())
    }

    /// Either family, addresses as text.
    pub fn ip(self, source: &str, destination: &str) -> Self {
        self.addresses(source.parse().expect("an address"), destination.parse().expect("an address"))
    }

    /// Either family.
    pub fn addresses(mut self, source: IpAddr, destination: IpAddr) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "addresses of one family");
        self.addresses = (source, destination);
        self
    }

    /// TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// DSCP and ECN.
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// IPv6 flow label.
    pub fn flow_label(mut self, label: u32) -> Self {
        self.flow_label = label & 0xf_ffff;
        self
    }

    /// Identification; of an IPv6 fragment all 32 bits.
    pub fn id(mut self, id: u32) -> Self {
        self.id = id;
        self
    }

    /// Clears DF, so that the packet may be fragmented.
    pub fn may_fragment(mut self) -> Self {
        self.dont_fragment = false;
        self
    }

    /// IPv4 options, a multiple of 4 bytes.
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        assert!(options.len().is_multiple_of(4) && options.len() <= 40);
        self.options = options.to_vec();
        self
    }

    /// An IPv6 extension header behind those said so far: `data` is what follows its next-header and length bytes, 8·n + 6 bytes.
    pub fn extension(mut self, kind: Protocol, data: &[u8]) -> Self {
        assert!(data.len() % 8 == 6, "an extension header is a multiple of 8 bytes");
        self.extensions.push((kind, data.to_vec()));
        self
    }

    /// Makes it a fragment at `offset` bytes of the whole, with the payload it has; a later fragment wants
    /// [`raw`](Self::raw). See [`fragments`] to split a packet.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        assert!(offset.is_multiple_of(8));
        self.fragment = Some((offset, more));
        self.dont_fragment = false;
        self
    }

    /// A TCP segment: an ACK with sequence and acknowledgment number 1 unless said otherwise.
    pub fn tcp(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Tcp {
            ports: (source, destination),
            sequence: 1,
            acknowledgment: 1,
            flags: TcpFlags::ACK,
            window: 64240,
            options: vec![],
        };
        self
    }

    fn with_tcp(mut self, change: impl FnOnce(&mut u32, &mut u32, &mut TcpFlags, &mut Vec<u8>)) -> Self {
        let Transport::Tcp { sequence, acknowledgment, flags, options, .. } = &mut self.transport else {
            panic!("only a TCP segment has that");
        };
        change(sequence, acknowledgment, flags, options);
        self
    }

    /// TCP control bits.
    pub fn flags(self, set: TcpFlags) -> Self {
        self.with_tcp(|_, _, flags, _| *flags = set)
    }

    /// TCP sequence number.
    pub fn seq(self, number: u32) -> Self {
        self.with_tcp(|sequence, _, _, _| *sequence = number)
    }

    /// TCP acknowledgment number.
    pub fn ack(self, number: u32) -> Self {
        self.with_tcp(|_, acknowledgment, _, _| *acknowledgment = number)
    }

    /// TCP options, a multiple of 4 bytes.
    pub fn tcp_options(self, bytes: &[u8]) -> Self {
        assert!(bytes.len().is_multiple_of(4) && bytes.len() <= 40);
        self.with_tcp(|_, _, _, options| *options = bytes.to_vec())
    }

    /// The TCP option that names a maximum segment size, behind those said so far.
    pub fn mss(self, bytes: u16) -> Self {
        let [high, low] = bytes.to_be_bytes();
        self.with_tcp(|_, _, _, options| options.extend([2, 4, high, low]))
    }

    /// A UDP datagram.
    pub fn udp(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Udp { ports: (source, destination) };
        self
    }

    /// A VXLAN datagram around an inner frame, without UDP checksum over IPv4 and with one over IPv6.
    pub fn vxlan(self, source_port: u16, vni: u32, inner: &[u8]) -> Self {
        let mut payload = vec![0x08, 0, 0, 0];
        payload.extend((vni << 8).to_be_bytes());
        payload.extend(inner);
        let outer = self.udp(source_port, 4789).payload(&payload);
        if outer.addresses.0.is_ipv4() { outer.no_checksum() } else { outer }
    }

    /// An SCTP packet without chunks, verification tag 1.
    pub fn sctp(mut self, source: u16, destination: u16) -> Self {
        self.transport = Transport::Sctp { ports: (source, destination), tag: 1 };
        self
    }

    /// SCTP verification tag.
    pub fn vtag(mut self, value: u32) -> Self {
        let Transport::Sctp { tag, .. } = &mut self.transport else { panic!("only an SCTP packet has that") };
        *tag = value;
        self
    }

    /// An SCTP chunk behind those said so far.
    pub fn chunk(mut self, kind: u8, flags: u8, value: &[u8]) -> Self {
        assert!(matches!(self.transport, Transport::Sctp { .. }), "only an SCTP packet has that");
        self.payload.extend([kind, flags]);
        self.payload.extend((4 + value.len() as u16).to_be_bytes());
        self.payload.extend(value);
        self.payload.resize(self.payload.len().next_multiple_of(4), 0);
        self
    }

    /// An ICMP message of the packet's family; `rest` are the four bytes behind the checksum.
    pub fn icmp(mut self, kind: u8, code: u8, rest: u32) -> Self {
        self.transport = Transport::Icmp { kind, code, rest };
        self
    }

    /// An echo request of the packet's family.
    pub fn echo_request(self, id: u16, sequence: u16) -> Self {
        let kind = if self.addresses.0.is_ipv4() { 8 } else { 128 };
        self.icmp(kind, 0, u32::from(id) << 16 | u32::from(sequence))
    }

    /// An echo reply of the packet's family.
    pub fn echo_reply(self, id: u16, sequence: u16) -> Self {
        let kind = if self.addresses.0.is_ipv4() { 0 } else { 129 };
        self.icmp(kind, 0, u32::from(id) << 16 | u32::from(sequence))
    }

    /// An ICMP error that quotes the IP packet in `frame`, as far as 128 bytes of it.
    pub fn icmp_error(self, kind: u8, code: u8, rest: u32, frame: &[u8]) -> Self {
        self.icmp(kind, code, rest).payload(&frame[14..frame.len().min(14 + 128)])
    }

    /// Any protocol: the payload is all there is behind the network header.
    pub fn raw(mut self, protocol: Protocol) -> Self {
        self.transport = Transport::Raw(protocol);
        self
    }

    /// What the transport carries.
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    /// A transport checksum that is wrong by one bit.
    pub fn wrong_checksum(mut self) -> Self {
        self.sum = Sum::Wrong;
        self
    }

    /// A transport checksum field that holds the pseudo-header's sum only, as a kernel leaves it for a device.
    pub fn partial_checksum(mut self) -> Self {
        self.sum = Sum::Partial;
        self
    }

    /// A UDP checksum of 0: "none".
    pub fn no_checksum(mut self) -> Self {
        self.sum = Sum::Absent;
        self
    }

    /// Zero bytes behind the IP packet, as short frames have.
    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        let (protocol, transport) = self.transport_bytes();
        let packet = match self.addresses {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.ipv4_packet(source, destination, protocol, &transport)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.ipv6_packet(source, destination, protocol, &transport)
            }
            _ => unreachable!("`addresses` takes one family only"),
        };
        let (source, destination) = self.macs.unwrap_or((mac_of(self.addresses.0), mac_of(self.addresses.1)));
        let ether_type = if self.addresses.0.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        [&destination.0[..], &source.0, &ether_type, &packet, &vec![0; self.padding]].concat()
    }

    fn ipv4_packet(&self, source: Ipv4Addr, destination: Ipv4Addr, protocol: Protocol, transport: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let total = u16::try_from(header_len + transport.len()).expect("a packet of at most 65535 bytes");
        let (offset, more) = self.fragment.unwrap_or((0, false));
        let word = (u16::from(self.dont_fragment) << 14) | (u16::from(more) << 13) | (offset / 8);
        let mut header = vec![0x40 | (header_len / 4) as u8, self.tos];
        header.extend(total.to_be_bytes());
        header.extend((self.id as u16).to_be_bytes());
        header.extend(word.to_be_bytes());
        header.extend([self.ttl, protocol.0, 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(&self.options);
        let sum = !slow_sum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [&header, transport].concat()
    }

    fn ipv6_packet(&self, source: Ipv6Addr, destination: Ipv6Addr, protocol: Protocol, transport: &[u8]) -> Vec<u8> {
        let mut extensions = self.extensions.clone();
        if let Some((offset, more)) = self.fragment {
            // The length byte of other extension headers is reserved here.
            let mut data = (offset | u16::from(more)).to_be_bytes().to_vec();
            data.extend(self.id.to_be_bytes());
            extensions.push((Protocol::FRAGMENT, data));
        }
        let mut chain = vec![];
        for (i, (_, data)) in extensions.iter().enumerate() {
            let next = extensions.get(i + 1).map_or(protocol, |(kind, _)| *kind);
            chain.extend([next.0, (data.len() / 8) as u8]);
            chain.extend(data);
        }
        let first = extensions.first().map_or(protocol, |(kind, _)| *kind);
        let length = u16::try_from(chain.len() + transport.len()).expect("a payload of at most 65535 bytes");
        let mut header = (6 << 28 | u32::from(self.tos) << 20 | self.flow_label).to_be_bytes().to_vec();
        header.extend(length.to_be_bytes());
        header.extend([first.0, self.ttl]);
        header.extend(source.octets());
        header.extend(destination.octets());
        [header, chain, transport.to_vec()].concat()
    }

    fn transport_bytes(&self) -> (Protocol, Vec<u8>) {
        let v4 = self.addresses.0.is_ipv4();
        let ports = |(source, destination): (u16, u16)| [source.to_be_bytes(), destination.to_be_bytes()].concat();
        let (protocol, mut bytes, checksum_at) = match &self.transport {
            Transport::Raw(protocol) => return (*protocol, self.payload.clone()),
            Transport::Tcp { ports: both, sequence, acknowledgment, flags, window, options } => {
                let mut bytes = ports(*both);
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(acknowledgment.to_be_bytes());
                bytes.extend([((20 + options.len()) / 4 * 16) as u8, flags.0]);
                bytes.extend(window.to_be_bytes());
                bytes.extend([0, 0, 0, 0]);
                bytes.extend(options);
                (Protocol::TCP, bytes, 16)
            }
            Transport::Udp { ports: both } => {
                let length = u16::try_from(8 + self.payload.len()).expect("a datagram of at most 65535 bytes");
                let mut bytes = ports(*both);
                bytes.extend(length.to_be_bytes());
                bytes.extend([0, 0]);
                (Protocol::UDP, bytes, 6)
            }
            Transport::Sctp { ports: both, tag } => {
                let mut bytes = ports(*both);
                bytes.extend(tag.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(&self.payload);
                let crc = slow_crc32c(&bytes) ^ u32::from(self.sum == Sum::Wrong);
                bytes[8..12].copy_from_slice(&crc.to_le_bytes());
                return (Protocol::SCTP, bytes);
            }
            Transport::Icmp { kind, code, rest } => {
                let mut bytes = vec![*kind, *code, 0, 0];
                bytes.extend(rest.to_be_bytes());
                (if v4 { Protocol::ICMP } else { Protocol::ICMPV6 }, bytes, 2)
            }
        };
        bytes.extend(&self.payload);
        let pseudo = if protocol == Protocol::ICMP { vec![] } else { self.pseudo_header(protocol, bytes.len()) };
        let complete = match !slow_sum(&[&pseudo[..], &bytes].concat()) {
            0 if protocol == Protocol::UDP => 0xffff,
            sum => sum,
        };
        let field = match self.sum {
            Sum::Right => complete,
            Sum::Wrong => complete ^ 0x0100,
            Sum::Partial => slow_sum(&pseudo),
            Sum::Absent => 0,
        };
        bytes[checksum_at..checksum_at + 2].copy_from_slice(&field.to_be_bytes());
        (protocol, bytes)
    }

    fn pseudo_header(&self, protocol: Protocol, length: usize) -> Vec<u8> {
        let mut bytes = vec![];
        for address in [self.addresses.0, self.addresses.1] {
            match address {
                IpAddr::V4(address) => bytes.extend(address.octets()),
                IpAddr::V6(address) => bytes.extend(address.octets()),
            }
        }
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend([0, 0, 0, protocol.0]);
        bytes
    }
}

/// The hardware address that a neighbour with this address has in tests and replays: `02:00` and its last four bytes.
pub fn mac_of(address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(address) => Mac::from_ipv4(address),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            Mac([2, 0, a, b, c, d])
        }
    }
}

/// Splits the IP packet of a frame, without IPv4 options or IPv6 extension headers, into fragments of at most `mtu` bytes.
pub fn fragments(frame: &[u8], id: u32, mtu: usize) -> Vec<Vec<u8>> {
    let (ethernet, packet) = frame.split_at(14);
    let v4 = packet[0] >> 4 == 4;
    let (header, room) = if v4 { (20, mtu - 20) } else { (40, mtu - 48) };
    let end = if v4 { usize::from(u16::from_be_bytes([packet[2], packet[3]])) } else { packet.len() };
    let pieces: Vec<&[u8]> = packet[header..end].chunks(room / 8 * 8).collect();
    let mut offset = 0u16;
    let mut built = vec![];
    for (i, piece) in pieces.iter().enumerate() {
        let more = i + 1 < pieces.len();
        let mut head = packet[..header].to_vec();
        if v4 {
            head[2..4].copy_from_slice(&(20 + piece.len() as u16).to_be_bytes());
            head[4..6].copy_from_slice(&(id as u16).to_be_bytes());
            head[6..8].copy_from_slice(&((u16::from(more) << 13) | (offset / 8)).to_be_bytes());
            head[10..12].fill(0);
            let sum = !slow_sum(&head);
            head[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let protocol = std::mem::replace(&mut head[6], Protocol::FRAGMENT.0);
            head[4..6].copy_from_slice(&(8 + piece.len() as u16).to_be_bytes());
            head.extend([protocol, 0]);
            head.extend((offset | u16::from(more)).to_be_bytes());
            head.extend(id.to_be_bytes());
        }
        built.push([ethernet, &head, piece].concat());
        offset += piece.len() as u16;
    }
    built
}

/// The one's complement sum of RFC 1071, word by word.
pub fn slow_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// CRC32c (RFC 9260 appendix A), bit by bit.
pub fn slow_crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_has_the_bytes_of_a_ping() {
        let ping = Packet::eth().ipv4([10, 0, 0, 1], [10, 0, 0, 2]).echo_request(1, 2).payload(b"hi").build();
        let expected = [
            2, 0, 10, 0, 0, 2, 2, 0, 10, 0, 0, 1, 8, 0, // Ethernet
            0x45, 0, 0, 30, 0, 0, 0x40, 0, 64, 1, 0x26, 0xdd, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
            8, 0, 0x8f, 0x93, 0, 1, 0, 2, b'h', b'i', // ICMP
        ];
        assert_eq!(ping, expected);
    }

    #[test]
    fn fragments_put_together_are_the_packet() {
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let whole = Packet::eth().ip(from, to).udp(1, 2).payload(&[7; 100]).build();
            let (header, extra) = if from.contains('.') { (34, 0) } else { (54, 8) };
            let pieces = fragments(&whole, 9, 90);
            let joined: Vec<u8> = pieces.iter().flat_map(|piece| piece[header + extra..].to_vec()).collect();
            assert_eq!(joined, whole[header..]);
            assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() <= 104));
        }
    }
}
