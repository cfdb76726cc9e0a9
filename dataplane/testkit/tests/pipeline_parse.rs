//! The pipeline's one-pass reading of a packet and the full parse agree wherever both accept it, and where only one
//! accepts, the difference is one of those listed here.

use proptest::prelude::*;
use sluice_testkit::{describe, strategy};
use sluice_wire::icmp;
use sluice_wire::ipv4::Ipv4Header;
use sluice_wire::layers::{Layers, Network, Transport};
use sluice_wire::packet::{Packet, Refused, Shape};
use sluice_wire::{Header, Malformed, Protocol};

/// Whether the pipeline took a header for a protocol without ports that the full parse walks past: AH, HIP, Mobility, Shim6.
fn stops_early(packet: &Packet) -> bool {
    packet.family == 6 && packet.shape == Shape::Portless && Protocol(packet.protocol).is_ipv6_extension()
}

/// Holds a packet to what the full parse found.
fn agree(frame: &[u8], layers: &Layers, packet: &Packet) -> Result<(), TestCaseError> {
    if stops_early(packet) {
        return Ok(());
    }
    prop_assert_eq!(packet.family, if layers.network == Network::Ipv4 { 4 } else { 6 });
    prop_assert_eq!((packet.ttl, packet.tos, packet.protocol), (layers.ttl, layers.tos, layers.protocol.0));
    prop_assert_eq!(u32::from(packet.total), layers.l3_length);
    prop_assert_eq!(packet.l4, layers.l4 - layers.l3);
    prop_assert_eq!(packet.fragment, layers.is_fragment());
    let ports = (u16::from_be_bytes(packet.source_port), u16::from_be_bytes(packet.destination_port));
    let (shape, expected) = match layers.transport {
        Transport::Tcp { source, destination, .. }
        | Transport::Udp { source, destination }
        | Transport::Sctp { source, destination, .. } => (Shape::Ports, (source, destination)),
        Transport::Icmp { kind, id, .. } if icmp::is_echo_request(layers.protocol, kind) => (Shape::Echo, (id, 0)),
        Transport::Icmp { kind, id, .. } if icmp::is_echo_reply(layers.protocol, kind) => (Shape::Echo, (0, id)),
        Transport::Icmp { .. } if layers.is_icmp_error() => (Shape::IcmpError, (0, 0)),
        Transport::Icmp { .. } => (Shape::IcmpOther, (0, 0)),
        Transport::Fragment => (Shape::LaterFragment, (0, 0)),
        Transport::Opaque => (Shape::Portless, (0, 0)),
    };
    prop_assert_eq!((packet.shape, ports), (shape, expected));
    prop_assert_eq!(packet.tcp_flags, layers.transport.tcp_flags().0);
    let dont_fragment = Ipv4Header::at(frame, 14).filter(|ip| ip.version() == 4).is_none_or(|ip| ip.dont_fragment());
    prop_assert_eq!(packet.dont_fragment, dont_fragment);
    if let (true, Some(fragment)) = (packet.fragment, layers.fragment) {
        let info = packet.fragment_info(&frame[14..]).expect("a fragment has its fields");
        let len = layers.end() - usize::from(fragment.data);
        prop_assert_eq!((info.id, info.offset, info.more), (fragment.id, u32::from(fragment.offset), fragment.more));
        prop_assert_eq!(info.len as usize, len);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 5000, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_valid_packet_is_accepted_and_read_alike(packet in strategy::packet()) {
        let frame = packet.build();
        let layers = Layers::parse(&frame, frame.len()).unwrap();
        match Packet::parse(&frame[14..], frame.len() - 14) {
            Ok(packet) => agree(&frame, &layers, &packet)?,
            Err(refused) => prop_assert_eq!(refused, Refused::InvalidFlags, "{}", describe(&frame)),
        }
    }

    #[test]
    fn what_both_accept_of_a_mangled_packet_they_read_alike(frame in strategy::mangled(), more in 0usize..100) {
        let total = frame.len() + more;
        let l3 = frame.get(14..).unwrap_or(&[]);
        let packet = Packet::parse(l3, total.saturating_sub(14));
        if let (Ok(packet), Ok(layers)) = (packet, Layers::parse(&frame, total)) && layers.is_ip() {
            agree(&frame, &layers, &packet)?;
        }
    }

    #[test]
    fn what_only_the_full_parse_refuses_is_an_address_a_route_or_a_quote(frame in strategy::mangled(), more in 0usize..100) {
        let total = frame.len() + more;
        let l3 = frame.get(14..).unwrap_or(&[]);
        let packet = Packet::parse(l3, total.saturating_sub(14));
        if let (Ok(packet), Err(cause)) = (packet, Layers::parse(&frame, total)) {
            let known = match cause {
                // The pipeline takes the version nibble's word and never looks at the EtherType.
                Malformed::Version => true,
                Malformed::SourceUnspecified | Malformed::SourceMulticast | Malformed::SourceLoopback => true,
                Malformed::SourceMapped | Malformed::SourceBroadcast => true,
                Malformed::DestinationLoopback | Malformed::DestinationUnspecified => true,
                Malformed::SourceRoute | Malformed::Options | Malformed::ExtensionOrder => true,
                Malformed::InnerHeader | Malformed::InnerTruncated if packet.shape == Shape::IcmpError => true,
                // What is behind the header the pipeline stops at is no header to it.
                _ => stops_early(&packet),
            };
            prop_assert!(known, "{cause:?} {packet:?} {}", describe(&frame));
        }
    }

    #[test]
    fn what_only_the_pipeline_refuses_is_short_or_of_the_other_family(frame in strategy::mangled(), more in 0usize..100) {
        let total = frame.len() + more;
        let l3 = frame.get(14..).unwrap_or(&[]);
        let packet = Packet::parse(l3, total.saturating_sub(14));
        if let (Err(Refused::Malformed), Ok(layers)) = (packet, Layers::parse(&frame, total)) && layers.is_ip() {
            let other_icmp = layers.transport == Transport::Opaque
                && matches!(layers.protocol, Protocol::ICMP | Protocol::ICMPV6);
            let short_icmp = layers.l4_header == 4;
            let long_chain = layers.network == Network::Ipv6 && layers.l4 >= 54 + 64;
            prop_assert!(other_icmp || short_icmp || long_chain, "{layers:?} {}", describe(&frame));
        }
    }
}
