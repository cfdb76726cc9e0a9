//! Literal packets, one rule each, and the promise about any bytes at all.

use super::*;
use crate::sctp::ChunkType;
use crate::tcp::TcpFlags;
use proptest::prelude::*;

/// 10.0.0.1:40000 → 10.0.0.2:80, SYN, no payload.
const TCP4: [u8; 54] = [
    2, 0, 10, 0, 0, 2, 2, 0, 10, 0, 0, 1, 0x08, 0x00, // Ethernet
    0x45, 0x02, 0, 40, 0x12, 0x34, 0x40, 0, 64, 6, 0x14, 0x98, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
    0x9c, 0x40, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x02, 0xfa, 0xf0, 0, 0, 0, 0, // TCP
];

/// fd00::1 port 40000 → fd00::2 port 53, four bytes of payload.
const UDP6: [u8; 66] = [
    2, 0, 10, 0, 0, 2, 2, 0, 10, 0, 0, 1, 0x86, 0xdd, // Ethernet
    0x60, 0, 0, 0, 0, 12, 17, 64, // IPv6
    0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, // source
    0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, // destination
    0x9c, 0x40, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4, // UDP
];

fn parse(frame: &[u8]) -> Result<Layers, Malformed> {
    Layers::parse(frame, frame.len())
}

/// The cause of refusing `frame` once `bytes` are written at `at`.
fn refusal(frame: &[u8], at: usize, bytes: &[u8]) -> Option<Malformed> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    parse(&frame).err()
}

/// An Ethernet and IPv4 header in front of `payload`.
fn ipv4(protocol: Protocol, flags_offset: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = TCP4[..34].to_vec();
    frame[16..18].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    frame[20..22].copy_from_slice(&flags_offset.to_be_bytes());
    frame[23] = protocol.0;
    frame.extend(payload);
    frame
}

/// An Ethernet and IPv6 header in front of `payload`.
fn ipv6(next: Protocol, payload: &[u8]) -> Vec<u8> {
    let mut frame = UDP6[..54].to_vec();
    frame[18..20].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    frame[20] = next.0;
    frame.extend(payload);
    frame
}

#[test]
fn a_syn_is_found_with_all_its_parts() {
    let layers = parse(&TCP4).unwrap();
    assert_eq!((layers.network, layers.protocol, layers.tos, layers.ttl), (Network::Ipv4, Protocol::TCP, 2, 64));
    assert_eq!((layers.l3, layers.l4, layers.l4_header, layers.l3_length), (14, 34, 20, 40));
    assert_eq!(layers.transport, Transport::Tcp { source: 40000, destination: 80, flags: TcpFlags::SYN });
    assert_eq!((layers.end(), layers.payload(), layers.payload_len()), (54, 54, 0));
    assert!(layers.header_checksum_ok(&TCP4));
    assert_eq!(layers.source(&TCP4), Some(IpAddr::from([10, 0, 0, 1])));
    assert!(layers.fragment.is_none() && layers.inner.is_none());
    let mut wrong = TCP4;
    wrong[24] ^= 1;
    assert!(!parse(&wrong).unwrap().header_checksum_ok(&wrong));
}

#[test]
fn a_datagram_over_ipv6_is_found_with_all_its_parts() {
    let layers = parse(&UDP6).unwrap();
    assert_eq!((layers.network, layers.protocol, layers.ttl), (Network::Ipv6, Protocol::UDP, 64));
    assert_eq!((layers.l4, layers.l4_header, layers.l3_length, layers.payload_len()), (54, 8, 52, 4));
    assert_eq!(layers.transport.ports(), Some((40000, 53)));
    assert!(layers.header_checksum_ok(&UDP6));
    assert_eq!(layers.transport_checksum_ok(&UDP6), None, "none is claimed");
}

#[test]
fn padding_is_outside_and_a_long_tail_may_lie_in_other_chunks() {
    let padded = [&TCP4[..], &[0; 6]].concat();
    assert_eq!(parse(&padded).unwrap().end(), 54);
    let mut long = TCP4;
    long[16..18].copy_from_slice(&9000u16.to_be_bytes());
    assert_eq!(Layers::parse(&long, 9014).unwrap().payload_len(), 8960);
    assert_eq!(Layers::parse(&long, 9013), Err(Malformed::TotalLength));
}

#[test]
fn what_is_not_ip_is_named_and_not_looked_at() {
    let mut frame = [0u8; 14];
    frame[12..].copy_from_slice(&[8, 6]);
    assert_eq!(parse(&frame).unwrap().network, Network::Arp);
    frame[12..].copy_from_slice(&[0x88, 0xcc]);
    let layers = parse(&frame).unwrap();
    assert_eq!(format!("{:?}", layers.network), "Other(0x88cc)");
    assert!(!layers.is_ip());
    assert_eq!((layers.source(&frame), layers.checksum_offset()), (None, None));
}

#[test]
fn lengths_that_cannot_be_are_refused_each_with_its_cause() {
    assert_eq!(parse(&TCP4[..13]), Err(Malformed::EthernetTruncated));
    assert_eq!(parse(&TCP4[..33]), Err(Malformed::NetworkTruncated));
    assert_eq!(refusal(&TCP4, 14, &[0x65]), Some(Malformed::Version));
    assert_eq!(refusal(&UDP6, 14, &[0x45]), Some(Malformed::Version));
    assert_eq!(refusal(&TCP4, 14, &[0x44]), Some(Malformed::HeaderLength));
    assert_eq!(refusal(&TCP4, 16, &[0, 19]), Some(Malformed::TotalLength));
    assert_eq!(refusal(&TCP4, 16, &[0, 41]), Some(Malformed::TotalLength));
    assert_eq!(refusal(&UDP6, 18, &[0, 13]), Some(Malformed::PayloadLength));
    assert_eq!(refusal(&TCP4, 16, &[0, 39]), Some(Malformed::TransportTruncated));
    assert_eq!(refusal(&TCP4, 46, &[0x40]), Some(Malformed::TcpDataOffset));
    assert_eq!(refusal(&TCP4, 46, &[0x60]), Some(Malformed::TcpDataOffset));
    assert_eq!(refusal(&UDP6, 58, &[0, 7]), Some(Malformed::UdpLength));
    assert_eq!(refusal(&UDP6, 58, &[0, 13]), Some(Malformed::UdpLength));
    assert_eq!(refusal(&UDP6, 58, &[0, 8]), None, "bytes behind the datagram are allowed");
    assert_eq!(parse(&ipv4(Protocol::SCTP, 0, &[0; 11])), Err(Malformed::TransportTruncated));
    assert_eq!(parse(&ipv4(Protocol::ICMP, 0, &[8, 0, 0, 0, 0, 0, 0])), Err(Malformed::TransportTruncated));
    assert_eq!(parse(&ipv6(Protocol::ICMPV6, &[128, 0, 0, 0])), Err(Malformed::TransportTruncated));
    assert_eq!(parse(&ipv6(Protocol::ICMPV6, &[200, 0, 0])), Err(Malformed::TransportTruncated));
    assert_eq!(parse(&ipv6(Protocol::ICMPV6, &[200, 0, 0, 0])).unwrap().l4_header, 4);
}

#[test]
fn martians_are_refused_each_with_its_cause() {
    for (address, cause) in [
        ([0, 0, 0, 0], Malformed::SourceUnspecified),
        ([0, 1, 2, 3], Malformed::SourceUnspecified),
        ([127, 0, 0, 1], Malformed::SourceLoopback),
        ([224, 0, 0, 1], Malformed::SourceMulticast),
        ([255, 255, 255, 255], Malformed::SourceBroadcast),
    ] {
        assert_eq!(refusal(&TCP4, 26, &address), Some(cause));
    }
    assert_eq!(refusal(&TCP4, 26, &[240, 0, 0, 1]), None, "class E is unusual, not malformed");
    assert_eq!(refusal(&TCP4, 30, &[127, 0, 0, 1]), Some(Malformed::DestinationLoopback));
    assert_eq!(refusal(&TCP4, 30, &[0, 0, 0, 0]), Some(Malformed::DestinationUnspecified));
    assert_eq!(refusal(&TCP4, 30, &[255, 255, 255, 255]), None, "who may broadcast is not decided here");
    let v6 = |text: &str| text.parse::<core::net::Ipv6Addr>().unwrap().octets();
    assert_eq!(refusal(&UDP6, 22, &v6("::")), Some(Malformed::SourceUnspecified));
    assert_eq!(refusal(&UDP6, 22, &v6("::1")), Some(Malformed::SourceLoopback));
    assert_eq!(refusal(&UDP6, 22, &v6("ff02::1")), Some(Malformed::SourceMulticast));
    assert_eq!(refusal(&UDP6, 22, &v6("::ffff:10.0.0.1")), Some(Malformed::SourceMapped));
    assert_eq!(refusal(&UDP6, 38, &v6("::")), Some(Malformed::DestinationUnspecified));
    assert_eq!(refusal(&UDP6, 38, &v6("::1")), Some(Malformed::DestinationLoopback));
    assert_eq!(refusal(&UDP6, 38, &v6("64:ff9b::1")), None);
}

#[test]
fn a_host_without_an_address_may_solicit_a_group_and_nothing_else() {
    let mut frame = ipv6(Protocol::ICMPV6, &[135, 0, 0, 0, 0, 0, 0, 0]);
    frame[22..38].fill(0);
    assert_eq!(parse(&frame).err(), Some(Malformed::SourceUnspecified));
    frame[38..40].copy_from_slice(&[0xff, 0x02]);
    assert!(parse(&frame).is_ok());
    frame[20] = Protocol::UDP.0;
    assert_eq!(parse(&frame).err(), Some(Malformed::SourceUnspecified));
}

#[test]
fn options_move_the_transport_and_source_routes_are_refused() {
    let mut frame = TCP4.to_vec();
    frame.splice(34..34, [0x94, 4, 0, 0]);
    frame[14] = 0x46;
    frame[17] = 44;
    assert_eq!(parse(&frame).unwrap().l4, 38);
    for (option, cause) in [
        ([131, 4, 0, 0], Malformed::SourceRoute),
        ([137, 4, 0, 0], Malformed::SourceRoute),
        ([7, 5, 0, 0], Malformed::Options),
    ] {
        frame[34..38].copy_from_slice(&option);
        assert_eq!(parse(&frame), Err(cause));
    }
}

#[test]
fn a_first_fragment_has_ports_and_a_later_one_has_none() {
    let datagram = [0x9c, 0x40, 0, 53, 0x0f, 0xa0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let first = parse(&ipv4(Protocol::UDP, 0x2000, &datagram)).unwrap();
    assert_eq!(first.transport, Transport::Udp { source: 40000, destination: 53 });
    assert_eq!(first.fragment, Some(Fragment { id: 0x1234, offset: 0, more: true, header: 14, data: 34 }));
    let last = parse(&ipv4(Protocol::UDP, 0x0002, &datagram[..3])).unwrap();
    assert_eq!((last.transport, last.l4_header), (Transport::Fragment, 0));
    assert_eq!(last.fragment, Some(Fragment { id: 0x1234, offset: 16, more: false, header: 14, data: 34 }));
    assert!(first.is_fragment() && last.is_fragment());
}

#[test]
fn a_fragment_header_of_ipv6_is_reported_and_a_whole_packet_with_one_is_whole() {
    let udp = [0x9c, 0x40, 0, 53, 0, 8, 0, 0];
    let whole = parse(&ipv6(Protocol::FRAGMENT, &[&[17, 0, 0, 0, 0, 0, 0, 9][..], &udp].concat())).unwrap();
    assert_eq!(whole.fragment, Some(Fragment { id: 9, offset: 0, more: false, header: 54, data: 62 }));
    assert!(!whole.is_fragment());
    assert_eq!((whole.transport.ports(), whole.protocol), (Some((40000, 53)), Protocol::UDP));
    let later = parse(&ipv6(Protocol::FRAGMENT, &[&[17, 0, 0x05, 0xa8, 0, 0, 0, 9][..], &udp].concat())).unwrap();
    assert_eq!((later.transport, later.fragment.unwrap().offset), (Transport::Fragment, 1448));
}

#[test]
fn fragments_that_cannot_be_are_refused() {
    assert_eq!(parse(&ipv4(Protocol::UDP, 0x2001, &[0; 12])), Err(Malformed::FragmentLength));
    assert_eq!(parse(&ipv4(Protocol::UDP, 0x0001, &[])), Err(Malformed::FragmentLength));
    assert_eq!(parse(&ipv4(Protocol::UDP, 0x1fff, &[0; 8])), Err(Malformed::FragmentBeyondEnd));
    assert!(parse(&ipv4(Protocol::UDP, 0x1fff, &[0; 7])).is_ok());
    assert_eq!(
        parse(&ipv4(Protocol::TCP, 0x2000, &[0; 16])),
        Err(Malformed::TransportTruncated),
        "RFC 1858's tiny first fragment"
    );
}

#[test]
fn an_error_tells_which_packet_it_is_about() {
    let quoted = &TCP4[14..42];
    let frame = ipv4(Protocol::ICMP, 0, &[&[3, 4, 0, 0, 0, 0, 5, 0x78][..], quoted].concat());
    let layers = parse(&frame).unwrap();
    assert!(layers.is_icmp_error());
    let inner = layers.inner.unwrap();
    assert_eq!((inner.l3, inner.l4, inner.protocol), (42, 62, Protocol::TCP));
    assert_eq!(inner.transport, Transport::Tcp { source: 40000, destination: 80, flags: TcpFlags::EMPTY });
    let quoted = &UDP6[14..];
    let frame = ipv6(Protocol::ICMPV6, &[&[2, 0, 0, 0, 0, 0, 5, 0][..], quoted].concat());
    let inner = parse(&frame).unwrap().inner.unwrap();
    assert_eq!((inner.l3, inner.l4, inner.transport.ports()), (62, 102, Some((40000, 53))));
}

#[test]
fn an_error_that_quotes_too_little_or_nonsense_is_refused() {
    let error = |quoted: &[u8]| parse(&ipv4(Protocol::ICMP, 0, &[&[3, 1, 0, 0, 0, 0, 0, 0], quoted].concat()));
    assert_eq!(error(&TCP4[14..33]).err(), Some(Malformed::InnerTruncated));
    assert_eq!(error(&TCP4[14..41]).err(), Some(Malformed::InnerTruncated));
    assert_eq!(error(&UDP6[14..]).err(), Some(Malformed::InnerHeader));
}

#[test]
fn an_error_about_a_later_fragment_or_an_echo_is_told_apart() {
    let mut quoted = TCP4[14..42].to_vec();
    quoted[6..8].copy_from_slice(&[0, 1]);
    let error =
        |quoted: &[u8]| parse(&ipv4(Protocol::ICMP, 0, &[&[11, 0, 0, 0, 0, 0, 0, 0], quoted].concat())).unwrap();
    assert_eq!(error(&quoted).inner.unwrap().transport, Transport::Fragment);
    quoted[6..10].copy_from_slice(&[0x40, 0, 64, 1]);
    quoted[20..].copy_from_slice(&[8, 0, 0, 0, 0x12, 0x34, 0, 1]);
    let inner = error(&quoted).inner.unwrap();
    assert_eq!(inner.transport, Transport::Icmp { kind: 8, code: 0, id: 0x1234 });
}

#[test]
fn icmp_of_the_other_family_is_not_looked_into() {
    assert_eq!(parse(&ipv4(Protocol::ICMPV6, 0, &[1, 0])).unwrap().transport, Transport::Opaque);
    assert_eq!(parse(&ipv6(Protocol::ICMP, &[3, 0])).unwrap().transport, Transport::Opaque);
}

#[test]
fn sctp_tells_its_first_chunk() {
    let mut packet = vec![0, 7, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];
    let sctp = |chunk| Transport::Sctp { source: 7, destination: 9, chunk };
    assert_eq!(parse(&ipv4(Protocol::SCTP, 0, &packet)).unwrap().transport, sctp(None));
    packet.push(1);
    assert_eq!(parse(&ipv4(Protocol::SCTP, 0, &packet)).unwrap().transport, sctp(Some(ChunkType::INIT)));
}

/// A frame that is mostly right, so that the deeper checks are reached.
fn nearly_a_packet() -> impl Strategy<Value = Vec<u8>> {
    let base = prop_oneof![Just(TCP4.to_vec()), Just(UDP6.to_vec())];
    (
        base,
        prop::collection::vec(any::<u8>(), 0..120),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(mut frame, tail, changes, cut)| {
            frame.extend(tail);
            for (at, byte) in changes {
                let at = 12 + at.index(frame.len() - 12);
                frame[at] = byte;
            }
            frame.truncate(cut.index(frame.len() * 2).max(1));
            frame
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn every_offset_is_inside_and_in_order(frame in nearly_a_packet(), more in 0usize..100) {
        if let Ok(layers) = Layers::parse(&frame, frame.len() + more) && layers.is_ip() {
            prop_assert!(layers.l3 <= layers.l4);
            prop_assert!(layers.payload() <= frame.len());
            prop_assert!(layers.payload() <= layers.end());
            prop_assert!(layers.end() <= frame.len() + more);
            if let Some(inner) = layers.inner {
                prop_assert!(layers.payload() <= usize::from(inner.l3) && inner.l3 < inner.l4);
                prop_assert!(usize::from(inner.l4) <= frame.len());
            }
            layers.transport_checksum_ok(&frame);
            layers.pseudo_header(&frame);
        }
    }

    #[test]
    fn any_bytes_do_not_panic(frame in prop::collection::vec(any::<u8>(), 0..200), total in any::<usize>()) {
        let _ = Layers::parse(&frame, total);
    }
}
