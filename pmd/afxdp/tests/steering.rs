//! The steering program's rules, each with packets it must take and packets it must leave to the kernel. Every packet
//! is sent into a real veth and must turn up in exactly one place. Needs root; skips without.

mod lab;

use lab::{FAR, FAR_MAC, Memory, NEAR, NEAR_MAC, Raw, enter, ip, receive, veth_pair};
use sluice_afxdp::{AttachMode, Program, ProgramError, QueueOptions, Steering, XskQueue};
use sluice_port::Queue;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const PORTED: [u8; 3] = [TCP, UDP, SCTP];

const NODE4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const NODE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 50));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50));
const PEER4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const PEER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));
const OTHER4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77));
const OTHER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77));

/// The address of the same family.
fn like(a: IpAddr, v4: IpAddr, v6: IpAddr) -> IpAddr {
    if a.is_ipv4() { v4 } else { v6 }
}

fn peer(a: IpAddr) -> IpAddr {
    like(a, PEER4, PEER6)
}

fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [NEAR_MAC, FAR_MAC].concat();
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn ipv4_checksum(header: &mut [u8]) {
    let sum = internet_checksum(header);
    header[10..12].copy_from_slice(&sum);
}

/// A fragment's place: offset in 8-byte units, more to come, identification.
type Fragment = Option<(u16, bool, u16)>;

fn ip_packet(source: IpAddr, destination: IpAddr, protocol: u8, fragment: Fragment, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let mut h = vec![0x45, 0];
            h.extend_from_slice(&(20 + payload.len() as u16).to_be_bytes());
            let (offset, more, id) = fragment.unwrap_or((0, false, 7));
            h.extend_from_slice(&id.to_be_bytes());
            h.extend_from_slice(&(offset | if more { 0x2000 } else { 0 }).to_be_bytes());
            h.extend_from_slice(&[64, protocol, 0, 0]);
            h.extend_from_slice(&s.octets());
            h.extend_from_slice(&d.octets());
            ipv4_checksum(&mut h);
            h.extend_from_slice(payload);
            h
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            let mut body = vec![];
            let mut next = protocol;
            if let Some((offset, more, id)) = fragment {
                body.extend_from_slice(&[protocol, 0]);
                body.extend_from_slice(&((offset << 3) | u16::from(more)).to_be_bytes());
                body.extend_from_slice(&u32::from(id).to_be_bytes());
                next = 44;
            }
            body.extend_from_slice(payload);
            ipv6_packet(s, d, next, &body)
        }
        _ => panic!("one family"),
    }
}

fn ipv6_packet(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut h = vec![0x60, 0, 0, 0];
    h.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    h.extend_from_slice(&[next, 255]);
    h.extend_from_slice(&source.octets());
    h.extend_from_slice(&destination.octets());
    h.extend_from_slice(payload);
    h
}

fn wrap(destination: IpAddr, packet: &[u8]) -> Vec<u8> {
    ethernet(if destination.is_ipv4() { 0x0800 } else { 0x86dd }, packet)
}

/// Ports and some bytes: enough of a transport header for steering.
fn ports(source: u16, destination: u16) -> Vec<u8> {
    let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    bytes.extend_from_slice(&[0, 28, 0, 0]);
    bytes.extend_from_slice(&[0x55; 20]);
    bytes
}

fn to(destination: IpAddr, protocol: u8, port: u16) -> Vec<u8> {
    wrap(destination, &ip_packet(peer(destination), destination, protocol, None, &ports(1000, port)))
}

fn icmp(kind: u8, id: u16, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes.extend_from_slice(rest);
    bytes
}

fn icmp_protocol(a: IpAddr) -> u8 {
    if a.is_ipv4() { ICMP } else { ICMPV6 }
}

fn icmp_to(destination: IpAddr, kind: u8, id: u16) -> Vec<u8> {
    let packet = ip_packet(peer(destination), destination, icmp_protocol(destination), None, &icmp(kind, id, &[0; 24]));
    wrap(destination, &packet)
}

/// An ICMP error to `node` about a packet it sent with these ports.
fn error_about(node: IpAddr, kind: u8, protocol: u8, quoted: &[u8]) -> Vec<u8> {
    let quoted = ip_packet(node, peer(node), protocol, None, quoted);
    let packet = ip_packet(peer(node), node, icmp_protocol(node), None, &icmp(kind, 0, &quoted));
    wrap(node, &packet)
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Ours,
    Kernels,
    Lost,
}

/// A node interface with our program, VXLAN 4789, SNAT ports 40000-40099 and NodePort 30080 of each protocol.
struct Street {
    far: Raw,
    near: Raw,
    memory: Memory,
    program: Program,
    queue: XskQueue,
}

impl Street {
    fn open(mode: AttachMode) -> Street {
        veth_pair(NEAR, FAR, 1500);
        let mut memory = Memory::new(1024);
        let mut program = Program::attach(NEAR, mode).unwrap();
        let queue = memory.open(&mut program, &QueueOptions::default());
        program
            .set_config(Steering { vxlan_port: Some(4789), snat_ports: Some((40000, 40099)), steer_all: false })
            .unwrap();
        program.set_node_addresses(&[NODE4, NODE6]).unwrap();
        program.set_owned_addresses(&[VIP4, VIP6]).unwrap();
        program.set_node_ports(&PORTED.map(|p| (p, 30080))).unwrap();
        Street { far: Raw::open(FAR), near: Raw::open(NEAR), memory, program, queue }
    }

    fn fate(&mut self, frame: &[u8]) -> Fate {
        self.far.send(frame);
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            let mut burst = Vec::new();
            self.queue.rx(&mut self.memory.cache, &mut burst, 8);
            for got in burst {
                let bytes = got.to_vec();
                self.memory.cache.free(got);
                if bytes == frame {
                    return Fate::Ours;
                }
            }
            if self.near.recv(Duration::from_millis(1)).is_some_and(|(bytes, _)| bytes == frame) {
                return Fate::Kernels;
            }
        }
        Fate::Lost
    }

    fn ours(&mut self, what: &str, frame: &[u8]) {
        assert_eq!(self.fate(frame), Fate::Ours, "{what}: {frame:02x?}");
    }

    fn kernels(&mut self, what: &str, frame: &[u8]) {
        assert_eq!(self.fate(frame), Fate::Kernels, "{what}: {frame:02x?}");
    }

    fn close(mut self) {
        Box::new(self.queue).close(&mut self.memory.cache);
        self.memory.assert_whole();
    }
}

/// Runs the test in a fresh namespace in native and in generic mode.
fn street(test: fn(&mut Street)) {
    for mode in [AttachMode::Native, AttachMode::Generic] {
        std::thread::spawn(move || {
            if enter() {
                let mut street = Street::open(mode);
                test(&mut street);
                street.close();
            }
        })
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}

#[test]
fn without_tables_everything_is_the_kernels() {
    street(|s| {
        s.program.set_config(Steering::default()).unwrap();
        s.program.set_node_addresses(&[]).unwrap();
        s.program.set_owned_addresses(&[]).unwrap();
        s.program.set_node_ports(&[]).unwrap();
        for node in [NODE4, NODE6, VIP4, VIP6] {
            s.kernels("vxlan", &to(node, UDP, 4789));
            s.kernels("NodePort", &to(node, TCP, 30080));
        }
    });
}

#[test]
fn the_overlay_port_of_the_node_is_ours_over_udp_only() {
    street(|s| {
        for node in [NODE4, NODE6] {
            s.ours("VXLAN", &to(node, UDP, 4789));
            s.kernels("TCP to the same port", &to(node, TCP, 4789));
            s.kernels("another UDP port", &to(node, UDP, 53));
        }
        for other in [OTHER4, OTHER6] {
            s.kernels("VXLAN to somebody else", &to(other, UDP, 4789));
        }
    });
}

#[test]
fn node_ports_are_ours_for_their_protocol_exactly() {
    street(|s| {
        s.program.set_node_ports(&[(TCP, 30080), (UDP, 30053), (SCTP, 30132)]).unwrap();
        for node in [NODE4, NODE6] {
            for (protocol, port) in [(TCP, 30080), (UDP, 30053), (SCTP, 30132)] {
                s.ours("NodePort", &to(node, protocol, port));
                s.kernels("its neighbour", &to(node, protocol, port + 1));
                for other in PORTED.into_iter().filter(|p| *p != protocol) {
                    s.kernels("another protocol", &to(node, other, port));
                }
            }
            s.kernels("ssh", &to(node, TCP, 22));
        }
    });
}

#[test]
fn snat_ports_are_ours_from_the_first_to_the_last() {
    street(|s| {
        for node in [NODE4, NODE6] {
            for protocol in PORTED {
                s.kernels("below", &to(node, protocol, 39999));
                s.ours("first", &to(node, protocol, 40000));
                s.ours("last", &to(node, protocol, 40099));
                s.kernels("above", &to(node, protocol, 40100));
            }
        }
    });
}

#[test]
fn every_packet_to_an_owned_address_is_ours() {
    street(|s| {
        for vip in [VIP4, VIP6] {
            for protocol in PORTED {
                s.ours("any port", &to(vip, protocol, 12345));
            }
            s.ours("a protocol without ports", &to(vip, 47, 0));
            s.ours("echo request", &icmp_to(vip, if vip.is_ipv4() { 8 } else { 128 }, 1));
            for fragment in [(0, true, 5), (100, true, 5), (100, false, 6)] {
                let packet = ip_packet(peer(vip), vip, UDP, Some(fragment), &ports(1, 2));
                s.ours("any fragment", &wrap(vip, &packet));
            }
        }
    });
}

fn arp(operation: u8, target: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, operation];
    bytes.extend_from_slice(&FAR_MAC);
    bytes.extend_from_slice(&[192, 0, 2, 2]);
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&target);
    ethernet(0x0806, &bytes)
}

fn solicitation(target: IpAddr) -> Vec<u8> {
    let IpAddr::V6(target) = target else { panic!("ND is IPv6") };
    let low = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, low[13], low[14], low[15]]);
    let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&target.octets());
    body.extend_from_slice(&[1, 1]);
    body.extend_from_slice(&FAR_MAC);
    let IpAddr::V6(source) = PEER6 else { unreachable!() };
    // The kernel answers only what has a right checksum: over the pseudo-header, then the message.
    let pseudo = [&source.octets()[..], &group.octets()[..], &[0, body.len() as u8, 0, ICMPV6][..], &body].concat();
    body[2..4].copy_from_slice(&internet_checksum(&pseudo));
    ethernet(0x86dd, &ipv6_packet(source, group, ICMPV6, &body))
}

#[test]
fn neighbours_are_answered_by_us_for_owned_addresses_and_by_the_kernel_for_the_rest() {
    street(|s| {
        s.ours("ARP for a VIP", &arp(1, [192, 0, 2, 50]));
        s.kernels("ARP for the node", &arp(1, [192, 0, 2, 1]));
        s.kernels("ARP for another", &arp(1, [192, 0, 2, 77]));
        s.kernels("ARP reply to the node", &arp(2, [192, 0, 2, 1]));
        s.ours("ND for a VIP", &solicitation(VIP6));
        s.kernels("ND for the node", &solicitation(NODE6));
        s.kernels("ND for another", &solicitation(OTHER6));
    });
}

#[test]
fn icmp_errors_follow_the_packet_they_quote() {
    street(|s| {
        for node in [NODE4, NODE6] {
            let kinds: &[u8] = if node.is_ipv4() { &[3, 4, 11, 12] } else { &[1, 2, 3, 4] };
            for kind in kinds {
                for protocol in PORTED {
                    s.ours("of a SNAT port", &error_about(node, *kind, protocol, &ports(40050, 80)));
                    s.ours("of a NodePort", &error_about(node, *kind, protocol, &ports(30080, 5555)));
                    s.kernels("of a kernel socket", &error_about(node, *kind, protocol, &ports(35000, 80)));
                    s.kernels("to a SNAT port", &error_about(node, *kind, protocol, &ports(35000, 40050)));
                }
                s.ours("of the overlay", &error_about(node, *kind, UDP, &ports(60000, 4789)));
                s.kernels("TCP to the overlay's port", &error_about(node, *kind, TCP, &ports(60000, 4789)));
                let echo = if node.is_ipv4() { 8 } else { 128 };
                let ping = |id| error_about(node, *kind, icmp_protocol(node), &icmp(echo, id, &[0; 8]));
                s.ours("of a masqueraded ping", &ping(40001));
                s.kernels("of the node's own ping", &ping(12));
            }
        }
        s.kernels("a redirect", &error_about(NODE4, 5, TCP, &ports(40050, 80)));
    });
}

#[test]
fn echo_replies_follow_their_identifier() {
    street(|s| {
        for (node, request, reply) in [(NODE4, 8, 0), (NODE6, 128, 129)] {
            s.ours("reply to a masqueraded ping", &icmp_to(node, reply, 40007));
            s.kernels("reply to the node's own", &icmp_to(node, reply, 7));
            s.kernels("request to the node", &icmp_to(node, request, 40007));
        }
    });
}

#[test]
fn later_fragments_follow_their_first() {
    street(|s| {
        for node in [NODE4, NODE6] {
            let part =
                |fragment, payload: &[u8]| wrap(node, &ip_packet(peer(node), node, UDP, Some(fragment), payload));
            s.ours("first", &part((0, true, 1), &ports(1, 4789)));
            s.ours("middle", &part((4, true, 1), &[1; 32]));
            s.ours("last", &part((8, false, 1), &[2; 32]));
            s.kernels("first of the kernel's", &part((0, true, 2), &ports(1, 53)));
            // Its bytes would look like our ports.
            s.kernels("later of the kernel's", &part((4, false, 2), &ports(1, 4789)));
            s.kernels("later without a first", &part((4, false, 3), &ports(1, 4789)));
            s.kernels("an identification used again", &part((0, true, 1), &ports(1, 53)));
            s.kernels("and its rest", &part((4, false, 1), &[1; 32]));
        }
        s.ours(
            "an atomic fragment is a whole packet",
            &wrap(NODE6, &ip_packet(PEER6, NODE6, UDP, Some((0, false, 9)), &ports(1, 4789))),
        );
    });
}

#[test]
fn ipv6_extension_headers_are_stepped_over_up_to_a_bound() {
    street(|s| {
        let (IpAddr::V6(source), IpAddr::V6(node)) = (PEER6, NODE6) else { unreachable!() };
        let chain = |kinds: &[u8], last: u8, payload: &[u8]| {
            let mut body = vec![];
            for (i, _) in kinds.iter().enumerate() {
                // Options of one and two units: padding only.
                let next = kinds.get(i + 1).copied().unwrap_or(last);
                if i % 2 == 0 {
                    body.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]);
                } else {
                    body.extend_from_slice(&[next, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                }
            }
            body.extend_from_slice(payload);
            ethernet(0x86dd, &ipv6_packet(source, node, kinds.first().copied().unwrap_or(last), &body))
        };
        s.ours("hop-by-hop", &chain(&[0], UDP, &ports(1, 4789)));
        s.ours("several", &chain(&[0, 60, 43, 60], TCP, &ports(1, 30080)));
        s.kernels("the kernel's port behind several", &chain(&[0, 60, 43, 60], TCP, &ports(1, 22)));
        s.kernels("too many", &chain(&[0, 60, 60, 60, 60, 60, 60], UDP, &ports(1, 4789)));
        s.kernels("a header we do not know", &chain(&[0, 51], UDP, &ports(1, 4789)));
    });
}

#[test]
fn ipv4_options_are_stepped_over() {
    street(|s| {
        let (IpAddr::V4(source), IpAddr::V4(node)) = (PEER4, NODE4) else { unreachable!() };
        let mut h = vec![0x47, 0, 0, 56, 0, 1, 0, 0, 64, UDP, 0, 0];
        h.extend_from_slice(&source.octets());
        h.extend_from_slice(&node.octets());
        h.extend_from_slice(&[1; 8]);
        ipv4_checksum(&mut h);
        h.extend_from_slice(&ports(1, 4789));
        s.ours("two words of options", &ethernet(0x0800, &h));
    });
}

#[test]
fn tagged_and_malformed_frames_are_the_kernels() {
    street(|s| {
        let packet = ip_packet(PEER4, NODE4, UDP, None, &ports(1, 4789));
        s.kernels("an unknown EtherType", &ethernet(0x88b5, &packet));
        s.kernels("a header length below 20", &{
            let mut bad = packet.clone();
            bad[0] = 0x44;
            ethernet(0x0800, &bad)
        });
        s.kernels("version 6 in an IPv4 frame", &{
            let mut bad = packet.clone();
            bad[0] = 0x65;
            ethernet(0x0800, &bad)
        });
        let mut cut = [NEAR_MAC, FAR_MAC].concat();
        cut.extend_from_slice(&[8, 0]);
        cut.extend_from_slice(&packet[..22]);
        s.kernels("cut within its transport header", &cut);
    });
}

#[test]
fn a_vlan_tag_keeps_a_frame_with_the_kernel() {
    street(|s| {
        let packet = ip_packet(PEER4, NODE4, UDP, None, &ports(1, 4789));
        let tagged = ethernet(0x8100, &[&[0, 5, 8, 0], packet.as_slice()].concat());
        s.far.send(&tagged);
        // The kernel takes the tag out of the frame before a packet socket sees it.
        assert!(s.near.expect(|frame| frame.ends_with(&[0x55; 20])).is_some());
        assert_eq!(receive(&mut s.queue, &mut s.memory.cache, 1).len(), 0);
    });
}

#[test]
fn tables_are_replaced_not_added_to() {
    street(|s| {
        s.ours("before", &to(VIP4, TCP, 80));
        s.program.set_owned_addresses(&[VIP6]).unwrap();
        s.kernels("given up", &to(VIP4, TCP, 80));
        s.ours("kept", &to(VIP6, TCP, 80));
        s.program.set_owned_addresses(&[NODE4, VIP6]).unwrap();
        s.ours("node address that is also owned", &to(NODE4, TCP, 22));
        s.program.set_owned_addresses(&[VIP6]).unwrap();
        s.kernels("the node's only again", &to(NODE4, TCP, 22));
        s.ours("and still the node's", &to(NODE4, TCP, 30080));
        s.program.set_node_ports(&[(TCP, 30081)]).unwrap();
        s.program.set_node_ports(&[(TCP, 30081)]).unwrap();
        s.kernels("old NodePort", &to(NODE4, TCP, 30080));
        s.ours("new NodePort", &to(NODE4, TCP, 30081));
        s.program.set_config(Steering { steer_all: true, ..Steering::default() }).unwrap();
        s.ours("everything", &to(OTHER4, TCP, 1));
    });
}

#[test]
fn without_a_socket_the_kernel_gets_what_would_be_ours() {
    street(|s| {
        s.program.unregister(0).unwrap();
        s.program.unregister(0).unwrap();
        s.kernels("no socket", &to(NODE4, UDP, 4789));
        let verdicts = s.program.verdicts().unwrap();
        assert!(verdicts.passed >= 1 && verdicts.redirected == 0, "{verdicts:?}");
        s.program.register(0, s.queue.wait_fd().unwrap()).unwrap();
        s.ours("registered again", &to(NODE4, UDP, 4789));
    });
}

/// A lasting program with the tables of [`Street`].
fn lasting(mode: AttachMode) -> Program {
    let mut program = Program::lasting(NEAR, mode).unwrap();
    let steering = Steering { vxlan_port: Some(4789), snat_ports: Some((40000, 40099)), steer_all: false };
    program.set_config(steering).unwrap();
    program.set_node_addresses(&[NODE4, NODE6]).unwrap();
    program
}

#[test]
fn a_lasting_program_guards_what_is_ours_until_its_successor_takes_over_or_its_time_is_up() {
    for mode in [AttachMode::Native, AttachMode::Generic] {
        std::thread::spawn(move || {
            if !enter() {
                return;
            }
            veth_pair(NEAR, FAR, 1500);
            let mut memory = Memory::new(1024);
            let mut program = lasting(mode);
            program.guard(Duration::from_secs(60)).unwrap();
            let queue = memory.open(&mut program, &QueueOptions::default());
            let mut s = Street { far: Raw::open(FAR), near: Raw::open(NEAR), memory, program, queue };
            let (ours, theirs) = (to(NODE4, UDP, 4789), to(NODE4, TCP, 22));
            s.ours("the first process", &ours);
            // The process ends: its socket closes, its descriptors go.
            let Street { far, near, mut memory, program, queue } = s;
            drop(program);
            Box::new(queue).close(&mut memory.cache);
            let mut program = lasting(mode);
            program.guard(Duration::from_secs(60)).unwrap();
            let queue = memory.open(&mut program, &QueueOptions::default());
            let mut s = Street { far, near, memory, program, queue };
            assert_eq!(s.fate(&ours), Fate::Lost, "guarded while nobody has taken over");
            s.kernels("the node's own", &theirs);
            s.program.take_over().unwrap();
            s.program.take_over().unwrap();
            s.ours("the successor", &ours);
            s.program.unregister(0).unwrap();
            assert_eq!(s.fate(&ours), Fate::Lost);
            assert!(s.program.verdicts().unwrap().guarded >= 1);
            s.program.guard(Duration::ZERO).unwrap();
            s.kernels("time is up", &ours);
            s.close();
            assert!(matches!(Program::attach(NEAR, mode), Err(ProgramError::Occupied(_))));
            assert!(Program::remove(NEAR).unwrap() && !Program::remove(NEAR).unwrap());
            drop(Program::attach(NEAR, mode).unwrap());
        })
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}

#[test]
fn a_foreign_program_is_neither_succeeded_nor_taken_off() {
    std::thread::spawn(|| {
        if !enter() {
            return;
        }
        veth_pair(NEAR, FAR, 1500);
        let _foreign = Program::attach_all(NEAR, AttachMode::Auto).unwrap();
        let refused = Program::lasting(NEAR, AttachMode::Auto).err().unwrap();
        assert!(matches!(refused, ProgramError::Occupied(ref name) if name == NEAR), "{refused}");
        assert!(!Program::remove(NEAR).unwrap());
    })
    .join()
    .unwrap();
}

#[test]
fn a_program_that_steers_everything_has_no_tables() {
    std::thread::spawn(|| {
        if !enter() {
            return;
        }
        veth_pair(NEAR, FAR, 1500);
        let mut program = Program::attach_all(NEAR, AttachMode::Auto).unwrap();
        assert!(matches!(program.set_node_ports(&[(TCP, 1)]), Err(ProgramError::NoTables(_))));
        assert!(matches!(program.set_owned_addresses(&[VIP4]), Err(ProgramError::NoTables(_))));
    })
    .join()
    .unwrap();
}

#[test]
fn the_kernel_answers_ping_and_neighbour_requests_while_vxlan_is_ours() {
    street(|s| {
        ip("addr add 192.0.2.1/24 dev sg-near");
        ip("addr add 2001:db8::1/64 dev sg-near nodad");
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev sg-near");
        ip("neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev sg-near");
        s.far.send(&arp(1, [192, 0, 2, 1]));
        assert!(s.far.expect(|f| f[12..14] == [8, 6] && f[21] == 2).is_some(), "ARP reply");
        let mut ping = icmp(8, 1, &[0; 24]);
        let sum = internet_checksum(&ping);
        ping[2..4].copy_from_slice(&sum);
        s.far.send(&wrap(NODE4, &ip_packet(PEER4, NODE4, ICMP, None, &ping)));
        assert!(s.far.expect(|f| f[12..14] == [8, 0] && f[23] == ICMP && f[34] == 0).is_some(), "echo reply");
        s.far.send(&solicitation(NODE6));
        let advertised = s.far.expect(|f| f[12..14] == [0x86, 0xdd] && f[20] == ICMPV6 && f[54] == 136);
        assert!(advertised.is_some(), "neighbour advertisement");
        s.far.send(&to(NODE4, UDP, 4789));
        let frames = receive(&mut s.queue, &mut s.memory.cache, 1);
        assert_eq!(frames.len(), 1, "the ping and ARP were not ours, VXLAN is");
        frames.into_iter().for_each(|f| s.memory.cache.free(f));
        let verdicts = s.program.verdicts().unwrap();
        assert_eq!(verdicts.redirected, 1, "{verdicts:?}");
    });
}
