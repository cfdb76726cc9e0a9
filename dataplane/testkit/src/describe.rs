//! One line about a frame, read by a parser that is not ours, for failure messages and golden stories.

use etherparse::{LinkSlice, NetSlice, SlicedPacket, TcpSlice, TransportSlice, UdpSlice};
use std::net::IpAddr;

/// The frame in one line, such as `10.0.0.1:40000 > 10.0.0.2:80 TCP SYN seq 1 ack 0 len 0 ttl 64`. A transport checksum that is not right
/// is said, a VXLAN datagram's inner frame follows in brackets, a frame that does not parse says why.
pub fn describe(frame: &[u8]) -> String {
    match SlicedPacket::from_ethernet(frame) {
        Ok(packet) => network(&packet, frame.len()),
        Err(error) => format!("{} bytes, unreadable: {error}", frame.len()),
    }
}

fn network(packet: &SlicedPacket<'_>, len: usize) -> String {
    let (source, destination, ttl, tos, fragment): (IpAddr, IpAddr, u8, u8, String) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let place = (header.fragments_offset().byte_offset(), header.more_fragments());
            let fragment = fragment(ip.is_payload_fragmented(), u32::from(header.identification()), place);
            let tos = header.dcp().value() << 2 | header.ecn().value();
            (header.source_addr().into(), header.destination_addr().into(), header.ttl(), tos, fragment)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let extension = ip.extensions().clone().into_iter().find_map(|extension| match extension {
                etherparse::Ipv6ExtensionSlice::Fragment(header) => Some(header),
                _ => None,
            });
            let fragment = extension.map_or(String::new(), |extension| {
                let place = (extension.fragment_offset().byte_offset(), extension.more_fragments());
                fragment(true, extension.identification(), place)
            });
            let (source, destination) = (header.source_addr().into(), header.destination_addr().into());
            (source, destination, header.hop_limit(), header.traffic_class(), fragment)
        }
        Some(NetSlice::Arp(arp)) => return arp_line(&arp.to_packet()),
        None => {
            let Some(LinkSlice::Ethernet2(link)) = &packet.link else { return format!("{len} bytes") };
            return format!("{len} bytes of EtherType {:#06x}", link.ether_type().0);
        }
    };
    let tos = if tos == 0 { String::new() } else { format!(" tos {tos:#04x}") };
    let tail = format!("ttl {ttl}{tos}{fragment}");
    let ends = |ports: (u16, u16)| format!("{} > {}", end(source, ports.0), end(destination, ports.1));
    let bare = format!("{source} > {destination}");
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let ends = ends((tcp.source_port(), tcp.destination_port()));
            let sum = judge(tcp_sum(tcp, source, destination), tcp.checksum());
            let (sequence, acknowledgment) = (tcp.sequence_number(), tcp.acknowledgment_number());
            let payload = tcp.payload().len();
            format!("{ends} TCP {} seq {sequence} ack {acknowledgment} len {payload} {tail}{sum}", flags(tcp))
        }
        Some(TransportSlice::Udp(udp)) => {
            let ends = ends((udp.source_port(), udp.destination_port()));
            let sum = match udp.checksum() {
                0 => " no checksum",
                field => judge(udp_sum(udp, source, destination), field),
            };
            let inner = vxlan(udp).map_or(String::new(), |(vni, inner)| format!(" VXLAN {vni} [{}]", describe(inner)));
            format!("{ends} UDP len {} {tail}{sum}{inner}", udp.payload().len())
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let right = icmp.icmp_type().calc_checksum(icmp.payload());
            let sum = judge(Some(right), icmp.checksum());
            let (kind, code) = (icmp.type_u8(), icmp.code_u8());
            let rest = u32::from_be_bytes(icmp.bytes5to8());
            let payload = icmp.payload().len();
            format!("{bare} ICMP type {kind} code {code} rest {rest:#x} len {payload} {tail}{sum}")
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let sum = match (source, destination) {
                (IpAddr::V6(from), IpAddr::V6(to)) if !icmp.is_checksum_valid(from.octets(), to.octets()) => {
                    " BAD CHECKSUM"
                }
                _ => "",
            };
            let (kind, code) = (icmp.type_u8(), icmp.code_u8());
            let rest = u32::from_be_bytes(icmp.bytes5to8());
            let payload = icmp.payload().len();
            format!("{bare} ICMPv6 type {kind} code {code} rest {rest:#x} len {payload} {tail}{sum}")
        }
        _ => {
            let payload = packet.net.as_ref().and_then(|net| net.ip_payload_ref());
            let Some(payload) = payload else { return format!("{bare} {tail}") };
            match (payload.ip_number.0, payload.payload) {
                (132, [a, b, c, d, _, _, _, _, _, _, _, _, chunks @ ..]) if !payload.fragmented => {
                    let ends = ends((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])));
                    let chunk = chunks.first().map_or("none".to_owned(), |kind| kind.to_string());
                    format!("{ends} SCTP chunk {chunk} len {} {tail}", chunks.len())
                }
                (number, bytes) => format!("{bare} protocol {number} len {} {tail}", bytes.len()),
            }
        }
    }
}

fn end(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

fn fragment(is_piece: bool, id: u32, (offset, more): (u16, bool)) -> String {
    if !is_piece {
        return String::new();
    }
    format!(" fragment {id} at {offset}{}", if more { "+" } else { "" })
}

fn judge(right: Option<u16>, field: u16) -> &'static str {
    if right == Some(field) { "" } else { " BAD CHECKSUM" }
}

fn tcp_sum(tcp: &TcpSlice<'_>, source: IpAddr, destination: IpAddr) -> Option<u16> {
    match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => tcp.calc_checksum_ipv4(from.octets(), to.octets()).ok(),
        (IpAddr::V6(from), IpAddr::V6(to)) => tcp.calc_checksum_ipv6(from.octets(), to.octets()).ok(),
        _ => None,
    }
}

fn udp_sum(udp: &UdpSlice<'_>, source: IpAddr, destination: IpAddr) -> Option<u16> {
    let (header, payload) = (udp.to_header(), udp.payload());
    match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload).ok(),
        (IpAddr::V6(from), IpAddr::V6(to)) => header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload).ok(),
        _ => None,
    }
}

fn flags(tcp: &TcpSlice<'_>) -> String {
    let named = [
        (tcp.syn(), "SYN"),
        (tcp.fin(), "FIN"),
        (tcp.rst(), "RST"),
        (tcp.psh(), "PSH"),
        (tcp.ack(), "ACK"),
        (tcp.urg(), "URG"),
        (tcp.ece(), "ECE"),
        (tcp.cwr(), "CWR"),
    ];
    let set: Vec<&str> = named.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)).collect();
    if set.is_empty() { "no flags".to_owned() } else { set.join("|") }
}

fn vxlan<'a>(udp: &UdpSlice<'a>) -> Option<(u32, &'a [u8])> {
    let (header, inner) = udp.payload().split_first_chunk::<8>()?;
    let [flags, _, _, _, a, b, c, _] = *header;
    (udp.destination_port() == 4789 && flags & 8 != 0).then_some((u32::from_be_bytes([0, a, b, c]), inner))
}

fn arp_line(arp: &etherparse::ArpPacket) -> String {
    let address = |bytes: &[u8]| {
        let octets = <[u8; 4]>::try_from(bytes);
        octets.map_or_else(|_| format!("{bytes:02x?}"), |octets| IpAddr::from(octets).to_string())
    };
    let mac = arp.sender_hw_addr().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    let (sender, target) = (address(arp.sender_protocol_addr()), address(arp.target_protocol_addr()));
    match arp.operation.0 {
        1 => format!("ARP who has {target}, tell {sender} at {mac}"),
        2 => format!("ARP {sender} is at {mac}, to {target}"),
        other => format!("ARP operation {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Packet;
    use crate::packet::fragments;
    use sluice_wire::{Mac, Protocol, TcpFlags, reply};

    #[test]
    fn a_line_names_what_an_operator_looks_for() {
        let pair = || Packet::eth().ip("10.0.0.1", "10.0.0.2");
        let six = || Packet::eth().ip("fd00::1", "fd00::2");
        let syn = pair().tcp(40000, 80).flags(TcpFlags::SYN).ack(0);
        let says = |packet: &Packet| describe(&packet.build());
        assert_eq!(says(&syn), "10.0.0.1:40000 > 10.0.0.2:80 TCP SYN seq 1 ack 0 len 0 ttl 64");
        assert_eq!(
            says(&syn.wrong_checksum().tos(3)),
            "10.0.0.1:40000 > 10.0.0.2:80 TCP SYN seq 1 ack 0 len 0 ttl 64 tos 0x03 BAD CHECKSUM"
        );
        let dns = six().udp(40000, 53).payload(b"query").ttl(9);
        assert_eq!(says(&dns), "[fd00::1]:40000 > [fd00::2]:53 UDP len 5 ttl 9");
        assert_eq!(says(&six().sctp(7, 9).chunk(1, 0, &[])), "[fd00::1]:7 > [fd00::2]:9 SCTP chunk 1 len 4 ttl 64");
        assert_eq!(
            says(&pair().echo_request(1, 2)),
            "10.0.0.1 > 10.0.0.2 ICMP type 8 code 0 rest 0x10002 len 0 ttl 64"
        );
        assert_eq!(says(&six().echo_reply(1, 2)), "fd00::1 > fd00::2 ICMPv6 type 129 code 0 rest 0x10002 len 0 ttl 64");
        assert_eq!(says(&pair().raw(Protocol(47)).payload(b"gre")), "10.0.0.1 > 10.0.0.2 protocol 47 len 3 ttl 64");
        let wrapped = Packet::eth().ip("192.0.2.1", "192.0.2.2").vxlan(50000, 4096, &dns.build());
        assert_eq!(
            says(&wrapped),
            "192.0.2.1:50000 > 192.0.2.2:4789 UDP len 75 ttl 64 no checksum VXLAN 4096 [[fd00::1]:40000 > [fd00::2]:53 UDP len 5 ttl 9]"
        );
        let last = fragments(&pair().udp(1, 2).payload(&[0; 100]).build(), 7, 100).pop().unwrap();
        assert_eq!(describe(&last), "10.0.0.1 > 10.0.0.2 protocol 17 len 28 ttl 64 fragment 7 at 80");
        let mut question = [0; 42];
        reply::arp_request(Mac([2, 0, 10, 0, 0, 1]), [10, 0, 0, 1].into(), [169, 254, 1, 1].into(), &mut question);
        assert_eq!(describe(&question), "ARP who has 169.254.1.1, tell 10.0.0.1 at 02:00:0a:00:00:01");
        assert_eq!(describe(&[0; 14]), "14 bytes of EtherType 0x0000");
        assert!(describe(&[0; 3]).starts_with("3 bytes, unreadable"));
    }
}
