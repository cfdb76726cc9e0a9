//! What neighbours on a link tell each other: ARP and Neighbor Discovery.

use super::{Envelope, Link};
use crate::arp::ArpPacket;
use crate::ethernet::{EtherType, EthernetHeader, Mac};
use crate::header::Header;
use crate::icmp::IcmpHeader;
use crate::ndp::{
    ALL_NODES, HOP_LIMIT, NeighborAdvertisement, NeighborSolicitation, RouterAdvertisement, solicited_node,
};
use crate::protocol::Protocol;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn arp(link: Link, packet: &ArpPacket, out: &mut [u8]) -> Option<usize> {
    let ethernet = EthernetHeader { destination: link.destination, source: link.source, ether_type: EtherType::ARP };
    let l3 = ethernet.put(out, 0)?;
    packet.put(out, l3)
}

/// "`request.target()` is at `mac`", to who asked; returns the bytes written. `None` if it is no request, or `out` is shorter
/// than 42 bytes.
pub fn arp_reply(request: &ArpPacket, mac: Mac, out: &mut [u8]) -> Option<usize> {
    if !request.is_request() {
        return None;
    }
    let asker = (request.sender_mac, request.sender());
    let packet = ArpPacket::new(ArpPacket::REPLY, (mac, request.target()), asker);
    arp(Link { source: mac, destination: request.sender_mac }, &packet, out)
}

/// "Who has `target`?", from `sender`, to everyone; returns the bytes written. `None` if `out` is shorter than 42 bytes.
pub fn arp_request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr, out: &mut [u8]) -> Option<usize> {
    let packet = ArpPacket::new(ArpPacket::REQUEST, (mac, sender), (Mac::ZERO, target));
    arp(Link { source: mac, destination: Mac::BROADCAST }, &packet, out)
}

/// "`address` is at `mac`", to everyone unasked: an announcement, which is a request for one's own address (RFC 5227 §3);
/// returns the bytes written. `None` if `out` is shorter than 42 bytes.
pub fn arp_announcement(mac: Mac, address: Ipv4Addr, out: &mut [u8]) -> Option<usize> {
    arp_request(mac, address, address, out)
}

/// Sends the message that `put` writes, from `source` to `destination`.
fn ndp(
    link: Link,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    out: &mut [u8],
    put: impl Fn(&mut [u8], usize) -> Option<usize>,
) -> Option<usize> {
    // The longest message, to learn the length before the headers are written.
    let mut scratch = [0; 64];
    let length = put(&mut scratch, 0)?;
    let (source, destination) = (IpAddr::V6(source), IpAddr::V6(destination));
    let envelope = Envelope { link, source, destination, protocol: Protocol::ICMPV6, ttl: HOP_LIMIT, tos: 0 };
    let mut draft = envelope.open(length, out)?;
    draft.copy(0, scratch.get(..length)?)?;
    draft.close(IcmpHeader::CHECKSUM_OFFSET)
}

/// "`solicitation.target` is at `link.source`", to who asked, or to all nodes if who asked has no address yet (RFC 4861
/// §7.2.4; the frame then goes to their group whatever `link.destination` is); returns the bytes written. `router`: whether
/// the target forwards packets. `None` if `out` is shorter than 86 bytes.
pub fn neighbor_advertisement(
    solicitation: &NeighborSolicitation,
    link: Link,
    router: bool,
    out: &mut [u8],
) -> Option<usize> {
    let solicited = !solicitation.source.is_unspecified();
    let (destination, mac) = if solicited {
        (solicitation.source, link.destination)
    } else {
        (ALL_NODES, Mac::from_ipv6_multicast(&ALL_NODES.octets()))
    };
    let target = solicitation.target;
    let message = NeighborAdvertisement { target, router, solicited, overrides: true, target_link: Some(link.source) };
    ndp(Link { source: link.source, destination: mac }, target, destination, out, |out, at| message.put(out, at))
}

/// "`address` is at `mac`", to all nodes unasked (RFC 4861 §7.2.6); returns the bytes written. `None` if `out` is shorter
/// than 86 bytes.
pub fn unsolicited_neighbor_advertisement(mac: Mac, address: Ipv6Addr, router: bool, out: &mut [u8]) -> Option<usize> {
    let link = Link { source: mac, destination: Mac::ZERO };
    let nobody = NeighborSolicitation { source: Ipv6Addr::UNSPECIFIED, target: address, source_link: None };
    neighbor_advertisement(&nobody, link, router, out)
}

/// "Who has `target`?", from `source`, to the target's group; returns the bytes written. `None` if `out` is shorter than
/// 86 bytes.
pub fn neighbor_solicitation(mac: Mac, source: Ipv6Addr, target: Ipv6Addr, out: &mut [u8]) -> Option<usize> {
    let group = solicited_node(target);
    let link = Link { source: mac, destination: Mac::from_ipv6_multicast(&group.octets()) };
    let source_link = (!source.is_unspecified()).then_some(mac);
    let message = NeighborSolicitation { source, target, source_link };
    ndp(link, source, group, out, |out, at| message.put(out, at))
}

/// An advertisement from `source`, which must be link-local, to `destination`; returns the bytes written. `None` if `out` is
/// shorter than 86 bytes.
pub fn router_advertisement(
    message: &RouterAdvertisement,
    link: Link,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    out: &mut [u8],
) -> Option<usize> {
    ndp(link, source, destination, out, |out, at| message.put(out, at))
}
