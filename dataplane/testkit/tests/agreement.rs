//! Our parser and an independent one see the same packet, and ours takes any bytes at all.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use sluice_testkit::packet::fragments;
use sluice_testkit::{describe, strategy};
use sluice_wire::layers::{Layers, Network, Transport};
use sluice_wire::{FlowTuple, Protocol};
use std::net::IpAddr;

/// What both parsers can say of an IP packet.
#[derive(Debug, PartialEq)]
struct Seen {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    tos: u8,
    protocol: u8,
    fragment: bool,
    transport: Option<(u16, u16, Vec<u8>)>,
}

fn ours(frame: &[u8], layers: &Layers) -> Seen {
    let transport = match layers.transport {
        Transport::Tcp { source, destination, .. } => Some((source, destination)),
        Transport::Udp { source, destination } => Some((source, destination)),
        Transport::Icmp { kind, code, id } => Some((u16::from(kind) << 8 | u16::from(code), id)),
        Transport::Sctp { .. } | Transport::Fragment | Transport::Opaque => None,
    };
    let payload = || match layers.transport {
        // Its own length counts, which may be less than the packet's.
        Transport::Udp { .. } => {
            let l4 = usize::from(layers.l4);
            let length = usize::from(u16::from_be_bytes([frame[l4 + 4], frame[l4 + 5]]));
            frame[layers.payload()..l4 + length].to_vec()
        }
        _ => frame[layers.payload()..layers.end()].to_vec(),
    };
    Seen {
        source: layers.source(frame).unwrap(),
        destination: layers.destination(frame).unwrap(),
        ttl: layers.ttl,
        tos: layers.tos,
        protocol: layers.protocol.0,
        fragment: layers.is_fragment(),
        // The other parser looks at no transport of a fragment, not even of the first.
        transport: if layers.is_fragment() { None } else { transport.map(|(a, b)| (a, b, payload())) },
    }
}

fn theirs(frame: &[u8]) -> Option<Seen> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination, ttl, tos, payload): (IpAddr, IpAddr, u8, u8, _) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let tos = header.dcp().value() << 2 | header.ecn().value();
            (header.source_addr().into(), header.destination_addr().into(), header.ttl(), tos, ip.payload().clone())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let (source, destination) = (header.source_addr().into(), header.destination_addr().into());
            (source, destination, header.hop_limit(), header.traffic_class(), ip.payload().clone())
        }
        NetSlice::Arp(_) => return None,
    };
    let v4 = source.is_ipv4();
    let icmp = |kind: u8, code: u8, rest: [u8; 4]| {
        (u16::from(kind) << 8 | u16::from(code), u16::from_be_bytes([rest[0], rest[1]]))
    };
    let transport = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => Some(((tcp.source_port(), tcp.destination_port()), tcp.payload())),
        Some(TransportSlice::Udp(udp)) => Some(((udp.source_port(), udp.destination_port()), udp.payload())),
        // Bytes behind the first 8 are payload to us, whatever the message's own header length is to others.
        Some(TransportSlice::Icmpv4(m)) if v4 => Some((icmp(m.type_u8(), m.code_u8(), m.bytes5to8()), m.slice())),
        Some(TransportSlice::Icmpv6(m)) if !v4 => Some((icmp(m.type_u8(), m.code_u8(), m.bytes5to8()), m.slice())),
        _ => None,
    };
    let skip =
        if matches!(packet.transport, Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_))) { 8 } else { 0 };
    Some(Seen {
        source,
        destination,
        ttl,
        tos,
        protocol: payload.ip_number.0,
        fragment: payload.fragmented,
        transport: transport.map(|((a, b), bytes)| (a, b, bytes[skip..].to_vec())),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn both_parsers_see_the_same_in_a_valid_packet(packet in strategy::packet(), padding in 0usize..20) {
        let frame = packet.padding(padding).build();
        let layers = Layers::parse(&frame, frame.len());
        prop_assert!(layers.is_ok(), "{layers:?}: {}", describe(&frame));
        let layers = layers.unwrap();
        prop_assert_eq!(ours(&frame, &layers), theirs(&frame).unwrap(), "{}", describe(&frame));
        prop_assert!(layers.header_checksum_ok(&frame));
        prop_assert!(layers.transport_checksum_ok(&frame) != Some(false), "{}", describe(&frame));
        prop_assert!(!describe(&frame).contains("BAD"), "{}", describe(&frame));
        prop_assert_eq!(layers.end() + padding, frame.len());
        prop_assert!(FlowTuple::of(&frame, &layers).is_some());
    }

    #[test]
    fn both_parsers_see_the_same_in_every_fragment(
        (from, to) in strategy::addresses(), len in 0usize..1000, mtu in 68usize..300, id: u32,
    ) {
        let whole = sluice_testkit::Packet::eth().addresses(from, to).may_fragment().udp(1, 2).payload(&vec![7; len]).build();
        for frame in fragments(&whole, id, mtu) {
            let layers = Layers::parse(&frame, frame.len()).unwrap();
            prop_assert_eq!(ours(&frame, &layers), theirs(&frame).unwrap(), "{}", describe(&frame));
            let Some(fragment) = layers.fragment else { continue };
            prop_assert_eq!(fragment.id, if from.is_ipv4() { id & 0xffff } else { id });
            prop_assert_eq!(layers.transport == Transport::Fragment, fragment.offset != 0);
        }
    }

    #[test]
    fn the_packet_an_error_quotes_is_the_one_it_is_about((error, original) in strategy::icmp_error()) {
        let frame = error.build();
        let (about, layers) =
            (Layers::parse(&original, original.len()).unwrap(), Layers::parse(&frame, frame.len()).unwrap());
        let inner = layers.inner.unwrap();
        prop_assert_eq!(inner.protocol, about.protocol);
        prop_assert_eq!(inner.transport, about.transport);
        prop_assert_eq!(inner.l4 - inner.l3, about.l4 - about.l3);
        prop_assert_eq!(FlowTuple::of_inner(&frame, &layers), FlowTuple::of(&original, &about));
        prop_assert_eq!(FlowTuple::of(&frame, &layers), None);
    }

    #[test]
    fn what_we_accept_of_a_mangled_packet_both_parsers_see_alike(frame in strategy::mangled()) {
        let Ok(layers) = Layers::parse(&frame, frame.len()) else { return Ok(()) };
        if !matches!(layers.network, Network::Ipv4 | Network::Ipv6) {
            return Ok(());
        }
        // The other parser walks into AH over IPv4, which is a payload to us, and stops at HIP, Mobility and Shim6 headers.
        let plain = matches!(layers.protocol, Protocol::TCP | Protocol::UDP | Protocol::ICMP | Protocol::ICMPV6);
        if let (true, Some(theirs)) = (plain, theirs(&frame))
            && !Protocol(theirs.protocol).is_ipv6_extension()
        {
            prop_assert_eq!(ours(&frame, &layers), theirs, "{}", describe(&frame));
        }
    }

    #[test]
    fn a_truncation_anywhere_is_refused_or_sound(packet in strategy::packet(), cut: prop::sample::Index) {
        let frame = packet.build();
        let len = cut.index(frame.len());
        // Cut off for good, or going on in another chunk.
        prop_assert!(Layers::parse(&frame[..len], len).is_err());
        if let Ok(layers) = Layers::parse(&frame[..len], frame.len()) {
            prop_assert!(layers.payload() <= len && layers.end() == frame.len());
        }
    }

    #[test]
    fn any_bytes_do_not_panic(frame in prop::collection::vec(any::<u8>(), 0..256), total: u16) {
        let _ = Layers::parse(&frame, total.into());
        describe(&frame);
    }
}
