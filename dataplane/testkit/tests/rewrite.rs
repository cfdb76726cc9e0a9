//! Translating a packet in place gives byte for byte the packet that would have been built with the new addresses and ports.

use proptest::prelude::*;
use sluice_testkit::{Packet, describe, strategy};
use sluice_wire::checksum::Delta;
use sluice_wire::ipv4::Ipv4Header;
use sluice_wire::ipv6::Ipv6Header;
use sluice_wire::layers::{Layers, Transport};
use sluice_wire::sctp::SctpHeader;
use sluice_wire::tcp::TcpHeader;
use sluice_wire::udp::UdpHeader;
use sluice_wire::{Header, Mac, reply};
use std::net::IpAddr;

/// Addresses and ports, source first.
type Ends = ((IpAddr, IpAddr), (u16, u16));

#[derive(Clone, Copy, Debug)]
enum Kind {
    Tcp,
    Udp,
    UdpWithout,
    Sctp,
    Echo,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sum {
    Right,
    Wrong,
    Partial,
}

fn build(kind: Kind, sum: Sum, (addresses, ports): Ends, payload: &[u8]) -> Vec<u8> {
    let packet = Packet::eth().macs(Mac([2; 6]), Mac([4; 6])).addresses(addresses.0, addresses.1);
    let packet = match kind {
        Kind::Tcp => packet.tcp(ports.0, ports.1).payload(payload),
        Kind::Udp => packet.udp(ports.0, ports.1).payload(payload),
        Kind::UdpWithout => packet.udp(ports.0, ports.1).payload(payload).no_checksum(),
        Kind::Sctp => packet.sctp(ports.0, ports.1).chunk(0, 3, payload),
        Kind::Echo => packet.echo_request(ports.0, 9).payload(payload),
    };
    if sum == Sum::Partial { packet.partial_checksum().build() } else { packet.build() }
}

/// What an engine does to a packet of a flow, with our means.
fn translate(frame: &mut [u8], sum: Sum, ((source, destination), ports): Ends) {
    let layers = Layers::parse(frame, frame.len()).unwrap();
    let (l3, l4) = (usize::from(layers.l3), usize::from(layers.l4));
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let ip = Ipv4Header::at_mut(frame, l3).unwrap();
            ip.set_source(source.octets()).combine(ip.set_destination(destination.octets()))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let ip = Ipv6Header::at_mut(frame, l3).unwrap();
            ip.set_source(source.octets()).combine(ip.set_destination(destination.octets()))
        }
        _ => unreachable!("one family"),
    };
    let l4_length = layers.l4_length();
    let ports_delta =
        |old: (u16, u16)| Delta::u16(old.0, ports.0).combine(Delta::u16(old.1, ports.1)).combine(addresses);
    match layers.transport {
        Transport::Tcp { source, destination, .. } => {
            let tcp = TcpHeader::at_mut(frame, l4).unwrap();
            tcp.source.set(ports.0);
            tcp.destination.set(ports.1);
            if sum == Sum::Partial {
                tcp.checksum.set(addresses.apply_partial(tcp.checksum.get()));
            } else {
                tcp.update(ports_delta((source, destination)));
            }
        }
        Transport::Udp { source, destination } => {
            let udp = UdpHeader::at_mut(frame, l4).unwrap();
            udp.source.set(ports.0);
            udp.destination.set(ports.1);
            if sum == Sum::Partial {
                udp.checksum.set(addresses.apply_partial(udp.checksum.get()));
            } else {
                udp.update(ports_delta((source, destination)));
            }
        }
        Transport::Sctp { .. } => SctpHeader::at_mut(frame, l4).unwrap().set_ports(ports.0, ports.1, l4_length),
        Transport::Icmp { id, .. } => {
            let message = sluice_wire::icmp::IcmpHeader::at_mut(frame, l4).unwrap();
            message.identifier.set(ports.0);
            // Only ICMPv6 covers its addresses.
            let pseudo = if source.is_ipv4() { Delta::NONE } else { addresses };
            message.update(Delta::u16(id, ports.0).combine(pseudo));
        }
        other => unreachable!("{other:?}"),
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::Tcp, Kind::Udp, Kind::UdpWithout, Kind::Sctp, Kind::Echo])
}

/// Source and destination.
type Pair = (IpAddr, IpAddr);

/// Two pairs of addresses, all of one family.
fn two_pairs() -> impl Strategy<Value = (Pair, Pair)> {
    fn pairs<A: Into<IpAddr>>([a, b, c, d]: [A; 4]) -> (Pair, Pair) {
        ((a.into(), b.into()), (c.into(), d.into()))
    }
    prop_oneof![
        prop::array::uniform4(strategy::ipv4()).prop_map(pairs),
        prop::array::uniform4(strategy::ipv6()).prop_map(pairs),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn a_translated_packet_is_the_packet_built_with_the_new_ends(
        kind in kind(), partial: bool, (before, after) in two_pairs(), ports: [(u16, u16); 2],
        payload in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let can_be_partial = matches!(kind, Kind::Tcp | Kind::Udp);
        let sum = if partial && can_be_partial { Sum::Partial } else { Sum::Right };
        let mut frame = build(kind, sum, (before, ports[0]), &payload);
        translate(&mut frame, sum, (after, ports[1]));
        let wanted = build(kind, sum, (after, ports[1]), &payload);
        prop_assert_eq!(&frame, &wanted, "{}\n{}", describe(&frame), describe(&wanted));
        translate(&mut frame, sum, (before, ports[0]));
        prop_assert_eq!(frame, build(kind, sum, (before, ports[0]), &payload), "and back");
    }

    #[test]
    fn a_packet_that_was_damaged_on_its_way_stays_damaged(
        kind in kind(), (before, after) in two_pairs(), ports: [(u16, u16); 2], flip in 1u8..,
    ) {
        let mut frame = build(kind, Sum::Wrong, (before, ports[0]), b"payload");
        *frame.last_mut().unwrap() ^= flip;
        let verdict = |frame: &[u8]| Layers::parse(frame, frame.len()).unwrap().transport_checksum_ok(frame);
        let expected = verdict(&frame);
        prop_assert_ne!(expected, Some(true));
        translate(&mut frame, Sum::Wrong, (after, ports[1]));
        prop_assert_eq!(verdict(&frame), expected);
    }

    #[test]
    fn a_second_parser_reads_our_errors_and_finds_them_right(packet in strategy::packet(), mtu: u16) {
        let frame = packet.build();
        let layers = Layers::parse(&frame, frame.len()).unwrap();
        let link = reply::Link { source: Mac([2; 6]), destination: Mac([4; 6]) };
        let router = if layers.network == sluice_wire::Network::Ipv4 { "192.0.2.1" } else { "2001:db8::1" };
        let mut out = [0; 1500];
        let error = reply::IcmpError::TooBig { mtu };
        let len = reply::icmp_error(&frame, &layers, link, router.parse().unwrap(), error, &mut out);
        let line = len.map(|len| describe(&out[..len]));
        prop_assert!(line.as_ref().is_some_and(|line| line.starts_with(router) && !line.contains("BAD")), "{line:?}");
    }
}
