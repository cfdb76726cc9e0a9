//! Which packets of a port are ours and which the kernel's, decided in software: what the XDP program decides on a kernel
//! interface (`pmd/afxdp/bpf/sluice.bpf.c`), by the same rules.
//!
//! Whenever in doubt (truncated, tagged, unknown) the packet is the kernel's. Owner: rules are made by the control thread and
//! read by workers; the memory for fragments is a worker's. Cost: a comparison for the address that came last, a hash lookup
//! for any other; no allocation.

use sluice_port::Frame;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ETHERNET: usize = 14;
/// Most IPv6 extension headers that are stepped over.
const MAX_EXTENSIONS: usize = 6;
/// First fragments that are remembered; a power of two.
const FRAGMENTS: usize = 1024;

/// What an address is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Nothing.
    Other,
    /// The node's own, shared with the kernel: ours are the overlay, NodePorts, SNAT ports, and what belongs to them.
    Node,
    /// A Service's or an egress gateway's: every packet to it is ours, ARP and neighbour discovery too.
    Owned,
}

/// What is ours.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    roles: HashMap<[u8; 16], Owned>,
    ports: HashSet<(u8, u16)>,
    vxlan_port: u16,
    snat_ports: (u16, u16),
}

/// Whether an address in the rules is ours alone.
type Owned = bool;

impl Rules {
    /// Rules for these addresses of the node, these addresses that are ours alone, these `(protocol, port)` on the node's
    /// addresses, the overlay's UDP port (0: none), and the first and last SNAT port.
    pub fn new(
        node: impl IntoIterator<Item = IpAddr>,
        owned: impl IntoIterator<Item = IpAddr>,
        ports: impl IntoIterator<Item = (u8, u16)>,
        vxlan_port: u16,
        snat_ports: (u16, u16),
    ) -> Rules {
        let mut roles: HashMap<[u8; 16], Owned> = node.into_iter().map(|a| (key(a), false)).collect();
        roles.extend(owned.into_iter().map(|a| (key(a), true)));
        Rules { roles, ports: ports.into_iter().collect(), vxlan_port, snat_ports }
    }

    fn is_snat(&self, port: u16) -> bool {
        (self.snat_ports.0..=self.snat_ports.1).contains(&port)
    }

    fn is_service(&self, protocol: u8, port: u16) -> bool {
        self.ports.contains(&(protocol, port))
    }
}

/// IPv4 as `::ffff:a.b.c.d`.
fn key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

/// A fragmented packet: source, destination, identification, protocol.
type Fragment = ([u8; 16], [u8; 16], u32, u8);

/// A worker's state of steering.
pub struct Steering {
    last: ([u8; 16], Role),
    fragments: Box<[Option<Fragment>]>,
}

impl Default for Steering {
    fn default() -> Self {
        Steering { last: ([0; 16], Role::Other), fragments: vec![None; FRAGMENTS].into_boxed_slice() }
    }
}

/// A packet's transport header, and what is known of its fragmentation.
#[derive(Clone, Copy, Default)]
struct Transport {
    at: usize,
    protocol: u8,
    fragmented: bool,
    first: bool,
    id: u32,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn v4_at(bytes: &[u8], at: usize) -> Option<[u8; 16]> {
    let mut out = [0; 16];
    out[10..12].fill(0xff);
    out[12..].copy_from_slice(bytes.get(at..at + 4)?);
    Some(out)
}

fn v6_at(bytes: &[u8], at: usize) -> Option<[u8; 16]> {
    bytes.get(at..at + 16)?.try_into().ok()
}

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP)
}

/// Steps over IPv6 extension headers; `None` if there are too many, or the packet ends within them.
fn skip_extensions(bytes: &[u8], mut t: Transport) -> Option<Transport> {
    for _ in 0..MAX_EXTENSIONS {
        match t.protocol {
            0 | 43 | 60 => {
                let length = usize::from(*bytes.get(t.at + 1)?);
                t.protocol = bytes[t.at];
                t.at += (length + 1) * 8;
            }
            44 => {
                let (place, id) = (u16_at(bytes, t.at + 2)?, u32_at(bytes, t.at + 4)?);
                t.protocol = bytes[t.at];
                t.at += 8;
                // Neither offset nor M: an atomic fragment (RFC 6946), a whole packet.
                t.fragmented = place & 0xfff9 != 0;
                t.first = place & 0xfff8 == 0;
                t.id = id;
                if !t.first {
                    return Some(t);
                }
            }
            _ => return Some(t),
        }
    }
    None
}

impl Steering {
    /// Rules have changed: what was remembered of them is forgotten.
    pub fn forget(&mut self) {
        self.last = ([0; 16], Role::Other);
    }

    /// Whether a received frame is ours.
    #[inline]
    pub fn takes(&mut self, rules: &Rules, frame: &Frame) -> bool {
        self.is_ours(rules, frame.head()).unwrap_or(false)
    }

    #[inline]
    fn role(&mut self, rules: &Rules, address: [u8; 16]) -> Role {
        if self.last.0 != address || address == [0; 16] {
            let role = match rules.roles.get(&address) {
                None => Role::Other,
                Some(false) => Role::Node,
                Some(true) => Role::Owned,
            };
            self.last = (address, role);
        }
        self.last.1
    }

    /// `None` where the packet ends too early.
    fn is_ours(&mut self, rules: &Rules, bytes: &[u8]) -> Option<bool> {
        match u16_at(bytes, 12)? {
            0x0800 => self.ipv4(rules, bytes),
            0x86dd => self.ipv6(rules, bytes),
            0x0806 => {
                let ethernet_ipv4 = bytes.get(14..18)? == [0, 1, 8, 0];
                Some(ethernet_ipv4 && self.role(rules, v4_at(bytes, 38)?) == Role::Owned)
            }
            _ => Some(false),
        }
    }

    fn ipv4(&mut self, rules: &Rules, bytes: &[u8]) -> Option<bool> {
        let first = *bytes.get(ETHERNET)?;
        let destination = v4_at(bytes, ETHERNET + 16)?;
        if first >> 4 != 4 || first & 15 < 5 {
            return Some(false);
        }
        match self.role(rules, destination) {
            Role::Owned => return Some(true),
            Role::Other => return Some(false),
            Role::Node => {}
        }
        let fragment = u16_at(bytes, ETHERNET + 6)?;
        let t = Transport {
            at: ETHERNET + usize::from(first & 15) * 4,
            protocol: *bytes.get(ETHERNET + 9)?,
            fragmented: fragment & 0x3fff != 0,
            first: fragment & 0x1fff == 0,
            id: u16_at(bytes, ETHERNET + 4)?.into(),
        };
        self.shared_address(rules, bytes, t, v4_at(bytes, ETHERNET + 12)?, destination)
    }

    fn ipv6(&mut self, rules: &Rules, bytes: &[u8]) -> Option<bool> {
        let (source, destination) = (v6_at(bytes, ETHERNET + 8)?, v6_at(bytes, ETHERNET + 24)?);
        let t = Transport { at: ETHERNET + 40, protocol: bytes[ETHERNET + 6], ..Transport::default() };
        // A neighbour solicitation is sent to a group; what it asks for stands behind its header.
        if t.protocol == ICMPV6 && bytes.get(t.at) == Some(&135) {
            return Some(self.role(rules, v6_at(bytes, t.at + 8)?) == Role::Owned);
        }
        match self.role(rules, destination) {
            Role::Owned => return Some(true),
            Role::Other => return Some(false),
            Role::Node => {}
        }
        let t = skip_extensions(bytes, t)?;
        self.shared_address(rules, bytes, t, source, destination)
    }

    /// Only a first fragment carries ports; its verdict is remembered for the later ones.
    fn shared_address(
        &mut self,
        rules: &Rules,
        bytes: &[u8],
        t: Transport,
        source: [u8; 16],
        destination: [u8; 16],
    ) -> Option<bool> {
        if !t.fragmented {
            return node_packet(rules, bytes, t);
        }
        let fragment = (source, destination, t.id, t.protocol);
        let slot = &mut self.fragments[slot(&fragment)];
        if !t.first {
            return Some(slot.as_ref() == Some(&fragment));
        }
        let ours = node_packet(rules, bytes, t).unwrap_or(false);
        if ours {
            *slot = Some(fragment);
        } else if slot.as_ref() == Some(&fragment) {
            *slot = None;
        }
        Some(ours)
    }
}

/// Where a fragmented packet is remembered; a later one may take its place.
fn slot((source, destination, id, protocol): &Fragment) -> usize {
    let words = source.iter().chain(destination).chain([protocol]);
    let hash = words.fold(u64::from(*id), |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    (hash >> 20) as usize % FRAGMENTS
}

/// A packet to an address that we share with the kernel.
fn node_packet(rules: &Rules, bytes: &[u8], t: Transport) -> Option<bool> {
    if has_ports(t.protocol) {
        let port = u16_at(bytes, t.at + 2)?;
        let overlay = t.protocol == UDP && rules.vxlan_port != 0 && port == rules.vxlan_port;
        return Some(overlay || rules.is_snat(port) || rules.is_service(t.protocol, port));
    }
    let kind = match t.protocol {
        ICMP | ICMPV6 => *bytes.get(t.at)?,
        _ => return Some(false),
    };
    let id = u16_at(bytes, t.at + 4)?;
    match (t.protocol, kind) {
        (ICMP, 0) | (ICMPV6, 129) => Some(rules.is_snat(id)),
        (ICMP, 3 | 4 | 11 | 12) => quoted_v4(rules, bytes, t.at + 8),
        (ICMPV6, 1..=4) => quoted_v6(rules, bytes, t.at + 8),
        _ => Some(false),
    }
}

fn quoted_v4(rules: &Rules, bytes: &[u8], at: usize) -> Option<bool> {
    let first = *bytes.get(at)?;
    let header = bytes.get(at..at + 20)?;
    if first >> 4 != 4 || u16_at(header, 6)? & 0x1fff != 0 {
        return Some(false);
    }
    let t = Transport { at: at + usize::from(first & 15) * 4, protocol: header[9], ..Transport::default() };
    quoted(rules, bytes, t)
}

fn quoted_v6(rules: &Rules, bytes: &[u8], at: usize) -> Option<bool> {
    let header = bytes.get(at..at + 40)?;
    let t = Transport { at: at + 40, protocol: header[6], ..Transport::default() };
    let t = skip_extensions(bytes, t)?;
    if t.fragmented && !t.first {
        return Some(false);
    }
    quoted(rules, bytes, t)
}

/// Whether the packet quoted in an ICMP error is one that we sent.
fn quoted(rules: &Rules, bytes: &[u8], t: Transport) -> Option<bool> {
    if has_ports(t.protocol) {
        let (source, destination) = (u16_at(bytes, t.at)?, u16_at(bytes, t.at + 2)?);
        let overlay = t.protocol == UDP && rules.vxlan_port != 0 && destination == rules.vxlan_port;
        return Some(overlay || rules.is_snat(source) || rules.is_service(t.protocol, source));
    }
    let asks = matches!((t.protocol, *bytes.get(t.at)?), (ICMP, 8) | (ICMPV6, 128));
    Some(asks && rules.is_snat(u16_at(bytes, t.at + 4)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        Rules::new(
            [address("192.0.2.11"), address("2001:db8::11")],
            [address("203.0.113.7"), address("2001:db8:7::7")],
            [(TCP, 30080), (UDP, 30053), (SCTP, 30090)],
            4789,
            (40_000, 57_343),
        )
    }

    fn ethernet(kind: u16) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes
    }

    fn octets(address: &str) -> Vec<u8> {
        match address.parse::<IpAddr>().unwrap() {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        }
    }

    fn ip(from: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
        if to.contains(':') {
            let mut bytes = vec![0x60, 0, 0, 0];
            bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
            bytes.extend_from_slice(&[protocol, 64]);
            return [bytes, octets(from), octets(to), payload.to_vec()].concat();
        }
        let mut bytes = vec![0x45, 0];
        bytes.extend_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&[0, 9, 0, 0, 64, protocol, 0, 0]);
        [bytes, octets(from), octets(to), payload.to_vec()].concat()
    }

    fn packet(from: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let kind = if to.contains(':') { 0x86dd } else { 0x0800 };
        [ethernet(kind), ip(from, to, protocol, payload)].concat()
    }

    fn ports(source: u16, destination: u16) -> Vec<u8> {
        [source.to_be_bytes(), destination.to_be_bytes(), [0; 2], [0; 2]].concat()
    }

    fn ours(bytes: &[u8]) -> bool {
        Steering::default().is_ours(&rules(), bytes).unwrap_or(false)
    }

    const FAMILIES: [(&str, &str, &str, &str); 2] = [
        ("198.51.100.9", "192.0.2.11", "203.0.113.7", "198.51.100.1"),
        ("2001:db8:9::9", "2001:db8::11", "2001:db8:7::7", "2001:db8:1::1"),
    ];

    #[test]
    fn on_the_nodes_address_the_overlay_services_and_translated_ports_are_ours_and_all_else_the_kernels() {
        for (peer, node, owned, other) in FAMILIES {
            for (protocol, port, expected) in [
                (UDP, 4789, true),
                (TCP, 4789, false),
                (TCP, 30080, true),
                (UDP, 30080, false),
                (UDP, 30053, true),
                (SCTP, 30090, true),
                (TCP, 40_000, true),
                (UDP, 57_343, true),
                (TCP, 57_344, false),
                (TCP, 22, false),
                (TCP, 10250, false),
            ] {
                let payload = ports(1234, port);
                assert_eq!(ours(&packet(peer, node, protocol, &payload)), expected, "{node} {protocol} {port}");
                assert!(ours(&packet(peer, owned, protocol, &payload)), "everything to {owned}");
                assert!(!ours(&packet(peer, other, protocol, &payload)), "nothing to {other}");
            }
            assert!(!ours(&packet(peer, node, 47, &[0; 20])), "GRE");
        }
    }

    #[test]
    fn icmp_follows_what_it_is_about() {
        for (peer, node, _, _) in FAMILIES {
            let v6 = node.contains(':');
            let (protocol, error, reply, request) = if v6 { (ICMPV6, 2, 129, 128) } else { (ICMP, 3, 0, 8) };
            let echo = |kind: u8, id: u16| [vec![kind, 0, 0, 0], id.to_be_bytes().to_vec(), vec![0; 2]].concat();
            assert!(ours(&packet(peer, node, protocol, &echo(reply, 50_000))));
            assert!(!ours(&packet(peer, node, protocol, &echo(reply, 77))), "the kernel's own ping");
            assert!(!ours(&packet(peer, node, protocol, &echo(request, 50_000))), "somebody pings the node");
            let about =
                |inner: Vec<u8>| packet(peer, node, protocol, &[vec![error, 0, 0, 0, 0, 0, 0, 0], inner].concat());
            assert!(ours(&about(ip(node, peer, TCP, &ports(45_000, 80)))));
            assert!(ours(&about(ip(node, peer, UDP, &ports(50, 4789)))));
            assert!(ours(&about(ip(node, peer, TCP, &ports(30080, 5555)))));
            assert!(!ours(&about(ip(node, peer, TCP, &ports(33_000, 443)))));
            assert!(ours(&about(ip(node, peer, protocol, &echo(request, 41_000)))));
            assert!(!ours(&about(ip(node, peer, protocol, &echo(request, 12)))));
            assert!(!ours(&about(vec![0x45; 3])), "cut short");
        }
    }

    #[test]
    fn arp_and_neighbour_discovery_are_ours_for_our_addresses_alone() {
        for (target, expected) in [("203.0.113.7", true), ("192.0.2.11", false), ("192.0.2.12", false)] {
            let mut arp = ethernet(0x0806);
            arp.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
            arp.extend_from_slice(&[0; 16]);
            arp.extend_from_slice(&octets(target));
            assert_eq!(ours(&arp), expected, "{target}");
        }
        for (target, expected) in [("2001:db8:7::7", true), ("2001:db8::11", false)] {
            let body = [vec![135, 0, 0, 0, 0, 0, 0, 0], octets(target)].concat();
            assert_eq!(ours(&packet("fe80::9", "ff02::1:ff00:7", ICMPV6, &body)), expected, "{target}");
        }
    }

    #[test]
    fn later_fragments_follow_their_first() {
        let first = |port: u16| {
            let mut bytes = packet("198.51.100.9", "192.0.2.11", UDP, &ports(7, port));
            bytes[ETHERNET + 6] = 0x20;
            bytes
        };
        let later = || {
            let mut bytes = packet("198.51.100.9", "192.0.2.11", UDP, &[0; 8]);
            bytes[ETHERNET + 7] = 1;
            bytes
        };
        let (rules, mut steering) = (rules(), Steering::default());
        let mut takes = |bytes: &[u8]| steering.is_ours(&rules, bytes).unwrap_or(false);
        assert!(!takes(&later()), "its first was not seen");
        assert!(takes(&first(4789)) && takes(&later()));
        assert!(!takes(&first(53)) && !takes(&later()), "the same packet again, and not ours this time");
        // IPv6: the ports stand behind the fragment header.
        let v6 = |place: u16, payload: &[u8]| {
            let header = [vec![UDP, 0], place.to_be_bytes().to_vec(), vec![0, 0, 0, 5]].concat();
            packet("2001:db8:9::9", "2001:db8::11", 44, &[header, payload.to_vec()].concat())
        };
        assert!(takes(&v6(1, &ports(7, 4789))) && takes(&v6(8, &[0; 8])));
        assert!(takes(&v6(0, &ports(7, 4789))), "an atomic fragment is a whole packet");
        assert!(!takes(&v6(1, &ports(7, 53))) && !takes(&v6(8, &[0; 8])));
    }

    #[test]
    fn what_cannot_be_read_is_the_kernels_wherever_it_is_cut() {
        let whole = packet("198.51.100.9", "192.0.2.11", UDP, &ports(7, 4789));
        for cut in 0..ETHERNET + 20 + 4 {
            assert!(!ours(&whole[..cut]), "{cut}");
        }
        let mut tagged = whole.clone();
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        assert!(!ours(&tagged));
        let mut short = whole;
        short[ETHERNET] = 0x44;
        assert!(!ours(&short));
        let long = vec![0; 56];
        assert!(!ours(&packet("2001:db8:9::9", "2001:db8::11", 0, &long)), "too many extension headers");
    }

    #[test]
    fn changed_rules_count_from_the_next_packet() {
        let bytes = packet("198.51.100.9", "203.0.113.7", TCP, &ports(7, 80));
        let mut steering = Steering::default();
        assert_eq!(steering.is_ours(&rules(), &bytes), Some(true));
        steering.forget();
        assert_eq!(steering.is_ours(&Rules::default(), &bytes), Some(false));
    }
}
