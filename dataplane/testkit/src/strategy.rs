//! Random packets for property tests: valid ones of every family and protocol, and ones that are nearly valid.

use crate::packet::Packet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use sluice_wire::{Protocol, TcpFlags};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A unicast IPv4 address that a packet may come from and go to.
pub fn ipv4() -> impl Strategy<Value = Ipv4Addr> {
    (1u8..=222, any::<[u8; 3]>()).prop_map(|(first, [b, c, d])| {
        // Steps over 127, loopback.
        Ipv4Addr::new(first + u8::from(first >= 127), b, c, d)
    })
}

/// A unicast IPv6 address that a packet may come from and go to.
pub fn ipv6() -> impl Strategy<Value = Ipv6Addr> {
    let global = any::<[u8; 15]>().prop_map(|rest| {
        let mut octets = [0xfd; 16];
        octets[1..].copy_from_slice(&rest);
        Ipv6Addr::from(octets)
    });
    // Many zeros, as addresses have: sums meet their corners here.
    let sparse = any::<u16>().prop_map(|last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last));
    prop_oneof![global, sparse]
}

/// Source and destination of one family.
pub fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        (ipv4(), ipv4()).prop_map(|(from, to)| (from.into(), to.into())),
        (ipv6(), ipv6()).prop_map(|(from, to)| (from.into(), to.into())),
    ]
}

/// Network layer fields around whatever comes behind.
fn network() -> impl Strategy<Value = Packet> {
    let options = select(vec![vec![], vec![1, 1, 1, 0], vec![0x94, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0]]);
    let extension = select(vec![
        (Protocol::DESTINATION_OPTIONS, vec![1, 4, 0, 0, 0, 0]),
        (Protocol::ROUTING, vec![4, 0, 0, 0, 0, 0]),
        (Protocol::DESTINATION_OPTIONS, vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ]);
    (addresses(), any::<u8>(), any::<u8>(), any::<u16>(), options, vec(extension, 0..3), any::<bool>()).prop_map(
        |((from, to), ttl, tos, id, options, extensions, dont_fragment)| {
            let mut packet = Packet::eth().addresses(from, to).ttl(ttl).tos(tos).id(id.into());
            if from.is_ipv4() {
                packet = packet.ip_options(&options);
                if !dont_fragment {
                    packet = packet.may_fragment();
                }
            } else {
                for (kind, data) in extensions {
                    packet = packet.extension(kind, &data);
                }
            }
            packet
        },
    )
}

/// Adds a transport of any kind we look into.
fn transport(packet: Packet) -> impl Strategy<Value = Packet> {
    let ports = || any::<(u16, u16)>();
    let bytes = || vec(any::<u8>(), 0..200);
    let tcp_options = select(vec![vec![], vec![2, 4, 5, 0xb4], vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]]);
    let [tcp, udp, sctp, echo, raw] = std::array::from_fn(|_| packet.clone());
    prop_oneof![
        (ports(), any::<(u32, u32)>(), any::<u8>(), tcp_options, bytes()).prop_map(
            move |(ports, (seq, ack), flags, options, payload)| {
                let segment = tcp.clone().tcp(ports.0, ports.1).seq(seq).ack(ack).flags(TcpFlags(flags));
                segment.tcp_options(&options).payload(&payload)
            }
        ),
        (ports(), bytes()).prop_map(move |(ports, payload)| udp.clone().udp(ports.0, ports.1).payload(&payload)),
        (ports(), any::<u32>(), 0u8..15, bytes()).prop_map(move |(ports, tag, kind, value)| {
            sctp.clone().sctp(ports.0, ports.1).vtag(tag).chunk(kind, 0, &value)
        }),
        (any::<bool>(), any::<(u16, u16)>(), bytes()).prop_map(move |(request, (id, sequence), payload)| {
            let packet = echo.clone();
            let echo = if request { packet.echo_request(id, sequence) } else { packet.echo_reply(id, sequence) };
            echo.payload(&payload)
        }),
        bytes().prop_map(move |payload| raw.clone().raw(Protocol(47)).payload(&payload)),
    ]
}

/// A valid packet, not a fragment, not an ICMP error.
pub fn packet() -> impl Strategy<Value = Packet> {
    network().prop_flat_map(transport)
}

/// An ICMP error of some router about a packet; also that packet's frame.
pub fn icmp_error() -> impl Strategy<Value = (Packet, Vec<u8>)> {
    (packet(), ipv4(), ipv6(), any::<u32>()).prop_map(|(about, router4, router6, rest)| {
        let original = about.build();
        let error = if original[14] >> 4 == 4 {
            let sender = Ipv4Addr::new(original[26], original[27], original[28], original[29]);
            Packet::eth().ipv4(router4, sender).icmp_error(3, 4, rest, &original)
        } else {
            let sender = <[u8; 16]>::try_from(&original[22..38]).expect("16 bytes");
            Packet::eth().ipv6(router6, sender).icmp_error(2, 0, rest, &original)
        };
        (error, original)
    })
}

/// A frame that was valid until some bytes changed and its end was cut off or grew.
pub fn mangled() -> impl Strategy<Value = Vec<u8>> {
    let frame =
        prop_oneof![packet().prop_map(|packet| packet.build()), icmp_error().prop_map(|(error, _)| error.build())];
    (frame, vec((any::<Index>(), any::<u8>()), 0..8), any::<Index>()).prop_map(|(mut frame, changes, cut)| {
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        // Half of all cuts are behind the end.
        frame.resize(cut.index(frame.len() * 2), 0);
        frame
    })
}
