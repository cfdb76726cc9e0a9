//! Every answer is parsed again, and its checksums hold.

use super::*;
use crate::arp::ArpPacket;
use crate::ipv4;
use crate::layers::{Layers, Network, Transport};
use crate::ndp::{self, Invalid, NeighborAdvertisement, NeighborSolicitation, RouterAdvertisement};
use crate::sctp;
use crate::tcp::{TcpFlags, TcpHeader};
use core::net::{Ipv4Addr, Ipv6Addr};
use zerocopy::IntoBytes;
use zerocopy::network_endian::{U16, U32};

const CLIENT: Mac = Mac([2, 0, 10, 0, 0, 1]);
const GATEWAY: Mac = Mac([2, 0, 0xa9, 0xfe, 1, 1]);
const BACK: Link = Link { source: GATEWAY, destination: CLIENT };

/// `(client, server, router)` of each family.
fn families() -> [(IpAddr, IpAddr, IpAddr); 2] {
    let v4 = |last| IpAddr::from([10, 0, 0, last]);
    let v6 = |last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]);
    [(v4(1), v4(2), v4(254)), (v6(1), v6(2), v6(254))]
}

/// A frame from `source` to `destination`, checksum of `payload` filled at `checksum`.
fn frame(source: IpAddr, destination: IpAddr, protocol: Protocol, payload: &[u8], checksum: Option<u16>) -> Vec<u8> {
    let mut out = vec![0; 70_000];
    let link = Link { source: CLIENT, destination: GATEWAY };
    let envelope = Envelope { link, source, destination, protocol, ttl: 9, tos: 0x2c };
    let mut draft = envelope.open(payload.len(), &mut out).unwrap();
    draft.copy(0, payload).unwrap();
    let len = match checksum {
        Some(at) => draft.close(at).unwrap(),
        None => draft.out.len(),
    };
    out.truncate(len);
    out
}

fn parse(frame: &[u8]) -> Layers {
    Layers::parse(frame, frame.len()).unwrap()
}

/// Parses an answer and holds it to what all answers have in common.
fn check(out: &[u8], source: IpAddr, destination: IpAddr) -> Layers {
    let layers = parse(out);
    assert_eq!((layers.source(out), layers.destination(out)), (Some(source), Some(destination)));
    assert!(layers.header_checksum_ok(out));
    assert_eq!(layers.transport_checksum_ok(out), Some(true));
    assert_eq!(layers.end(), out.len());
    assert_eq!(EthernetHeader::at(out, 0).map(|e| (e.source, e.destination)), Some((GATEWAY, CLIENT)));
    if let Some(ip) = layers.ipv4(out) {
        assert!(ip.dont_fragment() && ip.identification.get() == 0);
    }
    assert_eq!(layers.ttl, TTL);
    layers
}

fn tcp(sequence: u32, acknowledgment: u32, flags: TcpFlags, payload: &[u8]) -> Vec<u8> {
    let header = TcpHeader {
        source: U16::new(40000),
        destination: U16::new(80),
        sequence: U32::new(sequence),
        acknowledgment: U32::new(acknowledgment),
        data_offset: 0x50,
        flags,
        ..TcpHeader::default()
    };
    [header.as_bytes(), payload].concat()
}

const UDP: [u8; 12] = [0x9c, 0x40, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];

#[test]
fn every_error_has_its_type_code_and_quotes_the_packet() {
    let errors = [
        (IcmpError::PortUnreachable, (3, 3), (1, 4), 0),
        (IcmpError::HostUnreachable, (3, 1), (1, 3), 0),
        (IcmpError::NoRoute, (3, 0), (1, 0), 0),
        (IcmpError::Prohibited, (3, 13), (1, 1), 0),
        (IcmpError::TooBig { mtu: 1450 }, (3, 4), (2, 0), 1450),
        (IcmpError::TimeExceeded, (11, 0), (3, 0), 0),
    ];
    for (client, server, router) in families() {
        let original = frame(client, server, Protocol::UDP, &UDP, Some(6));
        let layers = parse(&original);
        for (error, v4, v6, rest) in errors {
            let mut out = [0; 1500];
            let len = icmp_error(&original, &layers, BACK, router, error, &mut out).unwrap();
            let answer = check(&out[..len], router, client);
            let header = crate::icmp::IcmpHeader::at(&out, usize::from(answer.l4)).unwrap();
            assert_eq!((header.kind, header.code), if client.is_ipv4() { v4 } else { v6 }, "{error:?}");
            assert_eq!(header.rest(), rest);
            assert_eq!(out[answer.payload()..len], original[14..]);
            assert_eq!(answer.inner.unwrap().transport.ports(), Some((40000, 53)));
            assert_eq!(answer.tos, 0);
        }
    }
}

#[test]
fn a_long_packet_is_quoted_up_to_the_familys_limit() {
    for ((client, server, router), limit) in families().into_iter().zip([576, 1280]) {
        let original = frame(client, server, Protocol(47), &[7; 5000], None);
        let mut out = [0; 1500];
        let len = icmp_error(&original, &parse(&original), BACK, router, IcmpError::NoRoute, &mut out).unwrap();
        assert_eq!(len, 14 + limit);
        check(&out[..len], router, client);
        let too_short = &mut out[..len - 1];
        assert_eq!(icmp_error(&original, &parse(&original), BACK, router, IcmpError::NoRoute, too_short), None);
    }
}

#[test]
fn nothing_is_said_about_errors_groups_later_fragments_and_strangers() {
    let says = |frame: &[u8]| may_send_error(frame, &parse(frame));
    for (client, server, router) in families() {
        let original = frame(client, server, Protocol::UDP, &UDP, Some(6));
        assert!(says(&original));
        let mut out = [0; 1500];
        let len = icmp_error(&original, &parse(&original), BACK, router, IcmpError::NoRoute, &mut out).unwrap();
        assert!(!says(&out[..len]), "about an error");
        let mut broadcast = original.clone();
        broadcast[..6].fill(0xff);
        assert!(!says(&broadcast), "sent to everyone on the link");
    }
    let [(client4, ..), (client6, server6, router6)] = families();
    for group in [Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::BROADCAST] {
        assert!(!says(&frame(client4, group.into(), Protocol::UDP, &UDP, Some(6))));
    }
    assert!(!says(&frame(client6, ndp::ALL_NODES.into(), Protocol::UDP, &UDP, Some(6))));
    assert!(!says(&frame(client6, server6, Protocol::ICMPV6, &[137, 0, 0, 0, 0, 0, 0, 0], Some(2))), "a redirect");
    let mut later = frame(client4, families()[0].1, Protocol::UDP, &UDP, Some(6));
    later[20..22].copy_from_slice(&[0, 9]);
    assert!(!says(&later));
    let original = frame(client4, families()[0].1, Protocol::UDP, &UDP, Some(6));
    let other_family = icmp_error(&original, &parse(&original), BACK, router6, IcmpError::NoRoute, &mut [0; 1500]);
    assert_eq!(other_family, None);
}

#[test]
fn an_echo_comes_back_with_its_data_and_marks() {
    for (client, server, _) in families() {
        let (protocol, request, reply) =
            if client.is_ipv4() { (Protocol::ICMP, 8, 0) } else { (Protocol::ICMPV6, 128, 129) };
        let message = [request, 0, 0, 0, 0x12, 0x34, 0, 7, 1, 2, 3, 4, 5];
        let mut original = frame(client, server, protocol, &message, Some(2));
        let mut out = [0; 200];
        let len = echo_reply(&original, &parse(&original), BACK, server, &mut out).unwrap();
        let answer = check(&out[..len], server, client);
        assert_eq!(answer.transport, Transport::Icmp { kind: reply, code: 0, id: 0x1234 });
        assert_eq!(out[usize::from(answer.l4) + 4..len], message[4..]);
        assert_eq!(answer.tos, 0x2c);
        assert_eq!(echo_reply(&out[..len], &answer, BACK, client, &mut [0; 200]), None, "a reply is no request");
        let last = original.len() - 1;
        original[last] ^= 1;
        assert_eq!(echo_reply(&original, &parse(&original), BACK, server, &mut out), None, "wrong checksum");
    }
}

#[test]
fn a_reset_carries_the_numbers_of_rfc_9293() {
    let (ack, syn, fin) = (TcpFlags::ACK, TcpFlags::SYN, TcpFlags::FIN);
    let cases = [
        (tcp(100, 555, ack, b"data"), (555, 0, TcpFlags::RST)),
        (tcp(100, 555, syn | ack, b""), (555, 0, TcpFlags::RST)),
        (tcp(100, 0, syn, b""), (0, 101, TcpFlags::RST | ack)),
        (tcp(100, 0, fin, b"data"), (0, 105, TcpFlags::RST | ack)),
        (tcp(u32::MAX, 0, syn, b"fast open"), (0, 9, TcpFlags::RST | ack)),
    ];
    for (client, server, _) in families() {
        for (segment, expected) in &cases {
            let original = frame(client, server, Protocol::TCP, segment, Some(16));
            let mut out = [0; 100];
            let len = tcp_reset(&original, &parse(&original), BACK, server, &mut out).unwrap();
            let answer = check(&out[..len], server, client);
            let reset = TcpHeader::at(&out, usize::from(answer.l4)).unwrap();
            assert_eq!((reset.sequence.get(), reset.acknowledgment.get(), reset.flags), *expected);
            assert_eq!((reset.source.get(), reset.destination.get(), reset.window.get()), (80, 40000, 0));
            assert_eq!(tcp_reset(&out[..len], &answer, BACK, client, &mut [0; 100]), None, "never about a reset");
        }
        let udp = frame(client, server, Protocol::UDP, &UDP, Some(6));
        assert_eq!(tcp_reset(&udp, &parse(&udp), BACK, server, &mut [0; 100]), None);
    }
}

#[test]
fn a_question_for_an_address_is_answered_to_who_asked() {
    let (pod, gateway) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(169, 254, 1, 1));
    let mut question = [0; 42];
    assert_eq!(arp_request(CLIENT, pod, gateway, &mut question), Some(42));
    assert_eq!(parse(&question).network, Network::Arp);
    let mut out = [0; 60];
    assert_eq!(arp_reply(ArpPacket::of(&question).unwrap(), GATEWAY, &mut out), Some(42));
    let answer = ArpPacket::of(&out).unwrap();
    assert_eq!(*answer, ArpPacket::new(ArpPacket::REPLY, (GATEWAY, gateway), (CLIENT, pod)));
    assert_eq!(EthernetHeader::at(&out, 0).map(|e| e.destination), Some(CLIENT));
    assert_eq!(arp_reply(answer, GATEWAY, &mut [0; 60]), None, "a reply is no request");
    assert_eq!(arp_announcement(GATEWAY, gateway, &mut out), Some(42));
    let announced = ArpPacket::of(&out).unwrap();
    assert_eq!((announced.sender(), announced.target(), announced.sender_mac), (gateway, gateway, GATEWAY));
    assert_eq!(arp_announcement(GATEWAY, gateway, &mut [0; 41]), None);
}

#[test]
fn a_solicitation_is_answered_to_who_asked_or_to_all_if_that_is_nobody() {
    let (pod, gateway): (Ipv6Addr, Ipv6Addr) = ("fe80::2".parse().unwrap(), "fe80::1".parse().unwrap());
    for source in [pod, Ipv6Addr::UNSPECIFIED] {
        let mut question = [0; 86];
        let len = neighbor_solicitation(CLIENT, source, gateway, &mut question).unwrap();
        let solicitation = NeighborSolicitation::parse(&question[..len], &parse(&question[..len])).unwrap();
        let source_link = (source == pod).then_some(CLIENT);
        assert_eq!(solicitation, NeighborSolicitation { source, target: gateway, source_link });
        let mut out = [0; 86];
        assert_eq!(neighbor_advertisement(&solicitation, BACK, true, &mut out), Some(86));
        let layers = parse(&out);
        let answer = NeighborAdvertisement::parse(&out, &layers).unwrap();
        let solicited = source == pod;
        let target_link = Some(GATEWAY);
        let wanted = NeighborAdvertisement { target: gateway, router: true, solicited, overrides: true, target_link };
        assert_eq!(answer, wanted);
        let to = if solicited { (pod, CLIENT) } else { (ndp::ALL_NODES, Mac([0x33, 0x33, 0, 0, 0, 1])) };
        assert_eq!(layers.destination(&out), Some(IpAddr::V6(to.0)));
        assert_eq!(EthernetHeader::at(&out, 0).map(|e| e.destination), Some(to.1));
    }
    let mut out = [0; 86];
    assert_eq!(unsolicited_neighbor_advertisement(GATEWAY, gateway, false, &mut out), Some(86));
    assert!(!NeighborAdvertisement::parse(&out, &parse(&out)).unwrap().solicited);
}

#[test]
fn a_neighbour_message_that_breaks_a_rule_is_ignored_each_with_its_cause() {
    let target: Ipv6Addr = "fe80::1".parse().unwrap();
    let pod: Ipv6Addr = "fe80::2".parse().unwrap();
    let mut good = [0; 86];
    neighbor_solicitation(CLIENT, pod, target, &mut good).unwrap();
    let cause = |change: &dyn Fn(&mut [u8; 86])| {
        let mut bad = good;
        change(&mut bad);
        // Only the change under test may be what is wrong.
        bad[56..58].fill(0);
        let layers = parse(&bad);
        let sum = layers.pseudo_header(&bad).unwrap().combine(Sum::bytes(&bad[54..])).finish();
        bad[56..58].copy_from_slice(&sum.to_be_bytes());
        NeighborSolicitation::parse(&bad, &parse(&bad)).err()
    };
    assert_eq!(cause(&|_| ()), None);
    assert_eq!(cause(&|f| f[21] = 254), Some(Invalid::HopLimit));
    assert_eq!(cause(&|f| f[54] = 136), Some(Invalid::Kind));
    assert_eq!(cause(&|f| f[55] = 1), Some(Invalid::Code));
    assert_eq!(cause(&|f| f[62] = 0xff), Some(Invalid::Target));
    assert_eq!(cause(&|f| f[79] = 0), Some(Invalid::Option));
    assert_eq!(cause(&|f| f[79] = 2), Some(Invalid::Option));
    assert_eq!(cause(&|f| f[22..38].fill(0)), Some(Invalid::Address), "nobody may not tell a link address");
    let mut wrong = good;
    wrong[80] ^= 1;
    assert_eq!(NeighborSolicitation::parse(&wrong, &parse(&wrong)), Err(Invalid::Checksum));
    let layers = parse(&good);
    assert_eq!(NeighborSolicitation::parse(&good[..80], &layers), Err(Invalid::Truncated));
}

#[test]
fn a_router_tells_the_mtu_and_is_believed_on_its_link_only() {
    let gateway: Ipv6Addr = "fe80::1".parse().unwrap();
    let message = RouterAdvertisement { hop_limit: 64, lifetime_s: 1800, source_link: Some(GATEWAY), mtu: Some(1430) };
    let mut out = [0; 100];
    let len = router_advertisement(&message, BACK, gateway, ndp::ALL_NODES, &mut out).unwrap();
    assert_eq!(RouterAdvertisement::parse(&out[..len], &parse(&out[..len])), Ok(message));
    let afar: Ipv6Addr = "fd00::1".parse().unwrap();
    let len = router_advertisement(&message, BACK, afar, ndp::ALL_NODES, &mut out).unwrap();
    assert_eq!(RouterAdvertisement::parse(&out[..len], &parse(&out[..len])), Err(Invalid::Address));
    let nobody = frame(
        Ipv6Addr::UNSPECIFIED.into(),
        ndp::ALL_NODES.into(),
        Protocol::ICMPV6,
        &[133, 0, 0, 0, 0, 0, 0, 0],
        Some(2),
    );
    let mut nobody = nobody;
    nobody[21] = 255;
    let found = ndp::RouterSolicitation::parse(&nobody, &parse(&nobody)).unwrap();
    assert_eq!(found, ndp::RouterSolicitation { source: Ipv6Addr::UNSPECIFIED, source_link: None });
}

#[test]
fn the_checksum_of_every_protocol_is_found_right_or_wrong() {
    for (client, server, _) in families() {
        let echo = if client.is_ipv4() { (Protocol::ICMP, 8) } else { (Protocol::ICMPV6, 128) };
        let mut sctp = vec![0, 7, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 11, 0, 0, 4];
        sctp::fill(&mut sctp);
        let packets = [
            frame(client, server, Protocol::TCP, &tcp(1, 2, TcpFlags::ACK, b"odd"), Some(16)),
            frame(client, server, Protocol::UDP, &UDP, Some(6)),
            frame(client, server, Protocol::SCTP, &sctp, None),
            frame(client, server, echo.0, &[echo.1, 0, 0, 0, 0, 1, 0, 1, 9], Some(2)),
        ];
        for packet in packets {
            assert_eq!(parse(&packet).transport_checksum_ok(&packet), Some(true));
            let mut wrong = packet;
            *wrong.last_mut().unwrap() ^= 0x40;
            assert_eq!(parse(&wrong).transport_checksum_ok(&wrong), Some(false));
        }
        assert!(ipv4::verify_checksum(&frame(families()[0].0, families()[0].1, Protocol::UDP, &UDP, None)[14..34]));
    }
}
