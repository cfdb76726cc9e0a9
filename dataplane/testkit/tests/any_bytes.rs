//! Nothing that takes bytes from a wire panics, whatever they are and however short the room for the answer is.

use proptest::prelude::*;
use sluice_testkit::{describe, strategy};
use sluice_wire::arp::ArpPacket;
use sluice_wire::checksum::Sum;
use sluice_wire::fragment::Fragments;
use sluice_wire::layers::Layers;
use sluice_wire::ndp::{NeighborAdvertisement, NeighborSolicitation, RouterAdvertisement, RouterSolicitation};
use sluice_wire::reply::{self, IcmpError, Link};
use sluice_wire::segment::Segments;
use sluice_wire::{FlowTuple, Mac, ipv4, sctp, tcp};
use std::net::IpAddr;

/// Everything that may happen to a parsed frame. What was written for someone else must parse again.
fn exercise(frame: &[u8], layers: &Layers, room: usize, size: u16) {
    let _ = (FlowTuple::of(frame, layers), FlowTuple::of_inner(frame, layers));
    let _ = (layers.transport_checksum_ok(frame), layers.header_checksum_ok(frame));
    let _ = NeighborSolicitation::parse(frame, layers);
    let _ = NeighborAdvertisement::parse(frame, layers);
    let _ = RouterSolicitation::parse(frame, layers);
    let _ = RouterAdvertisement::parse(frame, layers);
    let mut out = vec![0; room];
    let link = Link { source: Mac([2; 6]), destination: Mac([4; 6]) };
    let v6: IpAddr = "fd00::1".parse().unwrap();
    for source in [IpAddr::from([10, 0, 0, 1]), v6] {
        for which in 0..3 {
            let len = match which {
                0 => reply::icmp_error(frame, layers, link, source, IcmpError::TooBig { mtu: size }, &mut out),
                1 => reply::echo_reply(frame, layers, link, source, &mut out),
                _ => reply::tcp_reset(frame, layers, link, source, &mut out),
            };
            if let Some(len) = len {
                let sent = &out[..len];
                let again = Layers::parse(sent, len);
                assert!(again.is_ok(), "{again:?} of {} to {}", describe(sent), describe(frame));
                assert_eq!(again.unwrap().transport_checksum_ok(sent), Some(true), "{}", describe(sent));
            }
        }
    }
    if let Some(segments) = Segments::new(frame, layers, size) {
        for i in [0, 1, segments.count() - 1, segments.count(), usize::MAX] {
            let _ = (segments.payload(i), segments.write(i, Sum::ZERO, &mut out));
        }
    }
    if let Some(fragments) = Fragments::new(frame, layers, size) {
        for i in [0, 1, fragments.count() - 1, fragments.count(), usize::MAX] {
            let _ = (fragments.payload(i), fragments.write(i, &mut out));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::with_cases(2000) } })]

    #[test]
    fn a_mangled_packet_harms_nobody(frame in strategy::mangled(), room in 0usize..1400, size: u16, more in 0usize..2000) {
        if let Ok(layers) = Layers::parse(&frame, frame.len() + more) {
            exercise(&frame, &layers, room, size);
        }
    }

    #[test]
    fn layers_of_another_frame_harm_nobody(a in strategy::mangled(), b in strategy::mangled(), size: u16) {
        // A caller's mistake, or a frame that changed under its layers: wrong answers are allowed, a panic is not.
        if let Ok(layers) = Layers::parse(&a, a.len()) {
            let cut = &b[..b.len().min(60)];
            let _ = (FlowTuple::of(cut, &layers), layers.transport_checksum_ok(cut), layers.pseudo_header(cut));
            let _ = Segments::new(cut, &layers, size).map(|segments| segments.write(0, Sum::ZERO, &mut [0; 200]));
            let _ = Fragments::new(cut, &layers, size).map(|fragments| fragments.write(0, &mut [0; 200]));
            let _ = NeighborSolicitation::parse(cut, &layers);
        }
    }

    #[test]
    fn any_bytes_harm_nobody(mut bytes in prop::collection::vec(any::<u8>(), 0..120), max: u16) {
        tcp::clamp_mss(&mut bytes, max);
        sctp::verify(&bytes);
        sctp::fill(&mut bytes);
        ipv4::fill_checksum(&mut bytes);
        let _ = ArpPacket::of(&bytes).map(|request| reply::arp_reply(request, Mac::ZERO, &mut [0; 42]));
    }
}
