//! What may come in: packets between addresses the node knows, mangled ones, ICMP errors, noise.

use crate::node::{POD_A, POD_B, POD_C, PORTS, UPLINK, from_pod, tunnelled};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sluice_testkit::{packet, strategy};
use sluice_wire::TcpFlags;

/// Addresses that mean something to the node.
fn known_address() -> impl Strategy<Value = &'static str> {
    select(vec![
        "10.244.1.5",
        "10.244.1.6",
        "10.244.1.7",
        "10.244.1.1",
        "10.244.1.99",
        "10.244.2.1",
        "10.244.2.11",
        "10.96.0.1",
        "10.96.0.2",
        "192.0.2.10",
        "192.0.2.12",
        "192.0.2.77",
        "198.51.100.1",
        "169.254.1.1",
        "fd00:1::5",
        "fd00:1::6",
        "fd00:1::7",
        "fd00:2::1",
        "fd00:96::1",
        "2001:db8::10",
        "2001:db8:9::1",
        "fe80::1",
    ])
}

/// A packet between addresses the node knows, so that it gets far.
pub fn known_packet() -> impl Strategy<Value = Vec<u8>> {
    let flags = select(vec![0x02u8, 0x12, 0x10, 0x18, 0x11, 0x04]);
    let what = (0u8..6, flags, select(vec![80u16, 8080, 30_000, 40_010, 53]), 1000u16..1010, vec(any::<u8>(), 0..1500));
    ((POD_A..=POD_C), known_address(), what, any::<bool>()).prop_map(
        |(pod, to, (kind, flags, port, source, payload), cut)| {
            let packet = from_pod(pod, to);
            let packet = match kind {
                0 | 1 => packet.tcp(source, port).flags(TcpFlags(flags)).payload(&payload),
                2 => packet.udp(source, port).payload(&payload),
                3 => packet.sctp(source, port).chunk(1, 0, &[0; 16]),
                4 => packet.echo_request(source, 1).payload(&payload),
                _ => packet.udp(source, port).may_fragment().payload(&payload),
            };
            let frame = packet.build();
            match cut && kind == 5 && frame.len() > 700 && !to.contains(':') {
                true => packet::fragments(&frame, 9, 600).swap_remove(1),
                false => frame,
            }
        },
    )
}

/// A frame and the port it comes in on.
pub fn arrival() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let ports = || select(vec![POD_A, POD_B, POD_C]);
    prop_oneof![
        6 => (ports(), known_packet()),
        4 => known_packet().prop_map(|inner| (UPLINK, tunnelled(&inner))),
        2 => strategy::mangled().prop_map(|inner| (UPLINK, tunnelled(&inner))),
        2 => (select(PORTS.to_vec()), strategy::mangled()),
        1 => strategy::icmp_error().prop_map(|(error, _)| (UPLINK, tunnelled(&error.build()))),
        1 => (select(PORTS.to_vec()), vec(any::<u8>(), 0..200)),
    ]
}
