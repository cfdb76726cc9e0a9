//! What an established flow may count on: no allocation, its place in a full table, an end only for its own sake, and its
//! order across workers.

mod node;

use node::{Node, POD_A, POD_B, POD_C, SECOND, UPLINK, Wish, from_pod, tunnelled};
use sluice_engine::Reason;
use sluice_engine::item::BATCH;
use sluice_port::alloc::{Counting, allocations, is_counting};
use sluice_testkit::Packet;
use sluice_wire::TcpFlags;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SYN_ACK: TcpFlags = TcpFlags(0x12);

fn segment(packet: Packet, ports: (u16, u16), flags: TcpFlags, payload: &[u8]) -> Vec<u8> {
    packet.tcp(ports.0, ports.1).flags(flags).payload(payload).build()
}

fn to_service(service: &str, port: u16, flags: TcpFlags) -> Vec<u8> {
    segment(from_pod(POD_A, service), (port, 80), flags, b"")
}

/// The backend's SYN-ACK to a SYN that left through the tunnel.
fn answer(sent: &[u8]) -> Vec<u8> {
    let l3 = &sent[64..];
    let v4 = l3[0] >> 4 == 4;
    let (source, destination, l4) = if v4 {
        let text = |b: &[u8]| std::net::Ipv4Addr::new(b[0], b[1], b[2], b[3]).to_string();
        (text(&l3[12..16]), text(&l3[16..20]), 20)
    } else {
        let text = |b: &[u8]| std::net::Ipv6Addr::from(<[u8; 16]>::try_from(b).expect("16 bytes")).to_string();
        (text(&l3[8..24]), text(&l3[24..40]), 40)
    };
    let port = |at: usize| u16::from_be_bytes([l3[l4 + at], l3[l4 + at + 1]]);
    let packet = Packet::eth().ip(&destination, &source);
    tunnelled(&segment(packet, (port(2), port(0)), SYN_ACK, b""))
}

/// Opens a connection of pod a to a Service by a full handshake.
fn connect(node: &mut Node, service: &str, port: u16) {
    node.receive(0, POD_A, &[to_service(service, port, TcpFlags::SYN)]);
    let sent = node.sent(UPLINK);
    assert_eq!(sent.len(), 1, "the SYN leaves: {:?}", node.counters(0));
    node.receive(0, UPLINK, &[answer(&sent[0])]);
    assert_eq!(node.sent(POD_A).len(), 1, "the SYN-ACK arrives: {:?}", node.counters(0));
    node.receive(0, POD_A, &[to_service(service, port, TcpFlags::ACK)]);
    assert_eq!(node.sent(UPLINK).len(), 1);
}

#[test]
fn an_established_packet_allocates_nothing() {
    assert!(is_counting());
    for service in ["10.96.0.1", "fd00:96::1"] {
        let mut node = Node::new(&Wish::default(), 1024);
        connect(&mut node, service, 2000);
        let packet = to_service(service, 2000, TcpFlags::ACK);
        let mut burst = Vec::with_capacity(BATCH);
        let mut allocated = 0;
        for round in 0..20 {
            for _ in 0..BATCH {
                burst.push(node.frame_on(0, &packet, POD_A));
            }
            let before = allocations();
            node.workers[0].receive(&mut burst);
            node.workers[0].upkeep();
            // The first rounds warm the vectors up.
            if round >= 2 {
                allocated += allocations() - before;
            }
            // Takes the lane's vector too, as no worker does: give it a new one outside the count.
            assert_eq!(node.sent(UPLINK).len(), BATCH);
            let all = sluice_port::Capabilities { chained: true, max_frame: 65_535, ..Default::default() };
            node.workers[0].open_lane(UPLINK, all);
        }
        assert_eq!(allocated, 0, "{service}");
        node.finish();
    }
}

#[test]
fn a_full_table_gives_up_half_open_flows_and_never_established_ones() {
    let mut node = Node::new(&Wish::default(), 8);
    for port in 2000..2004 {
        connect(&mut node, "10.96.0.1", port);
    }
    // Four half-open ones fill the table, eight more take their places.
    for port in 3000..3012 {
        node.receive(0, POD_A, &[to_service("10.96.0.1", port, TcpFlags::SYN)]);
        assert_eq!(node.sent(UPLINK).len(), 1);
    }
    assert_eq!((node.counters(0).flows.get(), node.drops(Reason::FlowTableFull)), (8, 0));
    for port in 2000..2004 {
        let before = node.counters(0).flows_created.get();
        node.receive(0, POD_A, &[to_service("10.96.0.1", port, TcpFlags::ACK)]);
        assert_eq!(node.sent(UPLINK).len(), 1, "flow {port} is still there");
        assert_eq!(node.counters(0).flows_created.get(), before);
    }
    node.finish();
}

#[test]
fn a_closing_flow_makes_room_and_a_table_of_established_ones_refuses() {
    let mut node = Node::new(&Wish::default(), 4);
    for port in 2000..2004 {
        connect(&mut node, "10.96.0.1", port);
    }
    node.receive(0, POD_A, &[to_service("10.96.0.1", 3000, TcpFlags::SYN)]);
    assert_eq!(node.drops(Reason::FlowTableFull), 1);
    node.receive(0, POD_A, &[to_service("10.96.0.1", 2001, TcpFlags::RST)]);
    assert_eq!(node.sent(UPLINK).len(), 1);
    node.receive(0, POD_A, &[to_service("10.96.0.1", 3000, TcpFlags::SYN)]);
    assert_eq!(node.sent(UPLINK).len(), 1, "the reset flow's place is free");
    assert_eq!(node.drops(Reason::FlowTableFull), 1);
    node.finish();
}

#[test]
fn a_flow_that_a_new_policy_forbids_dies_with_its_next_packet_and_others_live() {
    let mut node = Node::new(&Wish::default(), 1024);
    connect(&mut node, "10.96.0.1", 2000);
    let of_b = |flags| segment(from_pod(POD_B, "10.244.2.1"), (2000, 8080), flags, b"");
    node.receive(0, POD_B, &[of_b(TcpFlags::ACK)]);
    assert_eq!(node.sent(UPLINK).len(), 1);
    node.publish(&Wish { policy: (2, true), ..Wish::default() });
    node.receive(0, POD_A, &[to_service("10.96.0.1", 2000, TcpFlags::ACK)]);
    assert_eq!((node.sent(UPLINK).len(), node.drops(Reason::PolicyDeny)), (0, 1));
    node.receive(0, POD_A, &[to_service("10.96.0.1", 2000, TcpFlags::ACK)]);
    assert_eq!((node.sent(UPLINK).len(), node.drops(Reason::PolicyDeny)), (0, 2), "and stays dead");
    let created = node.counters(0).flows_created.get();
    node.receive(0, POD_B, &[of_b(TcpFlags::ACK)]);
    assert_eq!((node.sent(UPLINK).len(), node.counters(0).flows_created.get()), (1, created));
    node.finish();
}

#[test]
fn a_policy_that_still_allows_leaves_the_flow_as_it_is() {
    let mut node = Node::new(&Wish::default(), 1024);
    connect(&mut node, "fd00:96::1", 2000);
    let judged = |node: &Node| node.counters(0).verdicts[0][1].get();
    let (created, before) = (node.counters(0).flows_created.get(), judged(&node));
    node.publish(&Wish { policy: (2, false), ..Wish::default() });
    for _ in 0..3 {
        node.receive(0, POD_A, &[to_service("fd00:96::1", 2000, TcpFlags::ACK)]);
    }
    assert_eq!(node.sent(UPLINK).len(), 3);
    assert_eq!(node.counters(0).flows_created.get(), created);
    assert_eq!(judged(&node), before + 1, "asked once, not for each packet");
    node.finish();
}

#[test]
fn a_change_of_one_service_sends_no_other_services_flows_down_the_slow_path() {
    let mut node = Node::new(&Wish::default(), 1024);
    for port in 2000..2016 {
        connect(&mut node, "10.96.0.1", port);
        connect(&mut node, "10.96.0.2", port);
    }
    // Service 1 moves to another backend: its flows to the old one end, and nothing happens to those of Service 2.
    node.publish(&Wish { services: [2, 1], first_backend: false, ..Wish::default() });
    let refused = node.drops(Reason::NoBackend) + node.counters(0).replies.get();
    let flows = node.counters(0).flows.get();
    for port in 2000..2016 {
        node.receive(0, POD_A, &[to_service("10.96.0.2", port, TcpFlags::ACK)]);
    }
    assert_eq!(node.sent(UPLINK).len(), 16);
    assert_eq!(node.drops(Reason::NoBackend) + node.counters(0).replies.get(), refused);
    assert_eq!(node.counters(0).flows.get(), flows);
    let mut alive = 0;
    for port in 2000..2016 {
        node.receive(0, POD_A, &[to_service("10.96.0.1", port, TcpFlags::ACK)]);
        alive += node.sent(UPLINK).len();
    }
    assert!(alive < 16, "some were on the backend that is gone");
    assert_eq!(node.counters(0).flows.get(), flows - (16 - alive as u64));
    node.finish();
}

#[test]
fn a_flow_keeps_its_order_from_worker_to_worker() {
    let wish = Wish { workers: 3, ..Wish::default() };
    let mut node = Node::new(&wish, 1024);
    // The uplink's frames come to worker 0; pods a, b and c belong to workers 0, 1 and 2.
    for (n, pod) in (0u16..).zip([POD_A, POD_B, POD_C]) {
        let to = format!("10.244.1.{}", 5 + n);
        let numbered = |i: u16| {
            let packet = Packet::eth().ip("10.244.2.1", &to).udp(4000, 53);
            tunnelled(&packet.payload(&i.to_be_bytes()).build())
        };
        let frames: Vec<_> = (0..200).map(numbered).collect();
        node.receive(0, UPLINK, &frames);
        node.run_rings();
        let order: Vec<u16> = node.sent(pod).iter().map(|f| u16::from_be_bytes([f[42], f[43]])).collect();
        assert_eq!(order, (0..200).collect::<Vec<_>>(), "pod {pod}");
        assert_eq!(node.counters(usize::from(n)).flows_created.get(), 1);
    }
    assert_eq!(node.counters(0).handed_out.get(), 400);
    assert_eq!(node.counters(1).handed_in.get() + node.counters(2).handed_in.get(), 400);
    node.finish();
}

#[test]
fn an_idle_second_does_not_end_an_established_flow() {
    let mut node = Node::new(&Wish::default(), 1024);
    connect(&mut node, "10.96.0.1", 2000);
    for hours in 1..5 {
        node.at(hours * 3600 * SECOND);
        node.workers[0].upkeep();
        node.receive(0, POD_A, &[to_service("10.96.0.1", 2000, TcpFlags::ACK)]);
        assert_eq!(node.sent(UPLINK).len(), 1);
    }
    assert_eq!(node.counters(0).flows_created.get(), 1);
    node.at(5 * 3600 * SECOND);
    node.check_law().expect("law 1");
}
