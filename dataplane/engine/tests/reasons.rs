//! Reasons that a replay cannot produce, or only with a cluster far larger than a story: full rings, full tables, an
//! unknown neighbour, time that passes. Each test ends with law 1: what came in is accounted for, and no frame leaks.

use sluice_engine::handoff::Handoff;
use sluice_engine::item::BATCH;
use sluice_engine::{Pipeline, Reason, Shared, Stage, WorkerOptions};
use sluice_port::{Capabilities, FramePool, PoolOptions};
use sluice_tables::node::GATEWAY_MAC;
use sluice_tables::{
    Address, Hop, HopId, HopKind, Hops, LocalNode, Lpm, Pod, Pods, Prefix, Routes, Services, Settings, Tables, Timeouts,
};
use sluice_testkit::Packet;
use sluice_wire::{Mac, TcpFlags};
use std::sync::Arc;

const UPLINK: u16 = 1;
const HOST: u16 = 2;
const POD_A: u16 = 3;
const POD_B: u16 = 4;
const NODE: Address = Address::v4([192, 0, 2, 10]);
const OUTSIDE: &str = "198.51.100.7";
const SECOND: u64 = 1_000_000_000;

/// A node with two pods, b on the last worker, and a gateway towards the outside.
fn tables(workers: u16, masquerade: bool) -> Tables {
    let pod_mac = |n: u8| [0x02, 0, 10, 244, 1, n];
    let uplink_mac = [0x02, 0, 192, 0, 2, 10];
    let hops = vec![
        Hop::ethernet(HopKind::Host, HOST, 1450, [2, 0, 0, 0, 0, 1], GATEWAY_MAC),
        Hop::ethernet(HopKind::Pod, POD_A, 1450, pod_mac(5), GATEWAY_MAC),
        Hop::ethernet(HopKind::Pod, POD_B, 1450, pod_mac(6), GATEWAY_MAC),
        Hop::ethernet(HopKind::Uplink, UPLINK, 1500, [0x02, 0, 192, 0, 2, 1], uplink_mac),
    ];
    let pod = |name: &str, port: u16, last: u8, worker: u16, hop: u16| Pod {
        name: name.into(),
        port,
        worker,
        mac: pod_mac(last),
        addresses: vec![Address::v4([10, 244, 1, last])],
        extra_sources: Vec::new(),
        ingress: None,
        egress: None,
        hop: HopId(hop),
    };
    let pods = [pod("default/a", POD_A, 5, 0, 1), pod("default/b", POD_B, 6, workers - 1, 2)];
    let on_link = Prefix::new(Address::v4([192, 0, 2, 0]), 24).expect("a prefix");
    Tables {
        generation: 1,
        settings: Arc::new(Settings {
            vni: 4096,
            vxlan_port: 4789,
            reject: false,
            masquerade,
            masquerade_exclude: Lpm::default(),
            snat_ports: (40_000, 40_063),
            snat_blocks_per_source: 64,
            node_ports: (30_000, 32_767),
            timeouts: Timeouts::default(),
        }),
        node: Arc::new(LocalNode {
            name: "node-a".to_owned(),
            internal: [Some(NODE), None],
            node_port_addresses: vec![NODE],
            overlay: [Some(Address::v4([10, 244, 1, 1])), None],
            uplink_mac,
            uplink: UPLINK,
            host: HOST,
            host_mac: [2, 0, 0, 0, 0, 1],
            uplink_mtu: 1500,
            pod_mtu: 1450,
        }),
        pods: Arc::new(Pods::new(pods.map(|pod| (Arc::new(pod), 1)))),
        routes: Arc::new(Routes {
            on_link: Lpm::from_entries([(on_link, ())]),
            gateways: [Some(HopId(3)), None],
            ..Routes::default()
        }),
        hops: Arc::new(Hops::new(hops)),
        services: Services::default(),
        direct: Arc::default(),
        identities: Arc::default(),
        policy: Arc::default(),
        egress: Arc::default(),
    }
}

/// Workers without devices: what is sent stays in the lanes.
struct Node {
    workers: Vec<Pipeline>,
    shared: Arc<Shared>,
    pool: Arc<FramePool>,
}

impl Node {
    fn new(tables: Tables, workers: u16, max_flows: u32) -> Node {
        let shared = Shared::new(max_flows);
        shared.spaces.ensure(NODE, tables.settings.snat_ports);
        let pool = FramePool::new(PoolOptions { frames: 4096, huge_pages: false }).expect("memory");
        let tables = Arc::new(tables);
        let workers = (0..workers)
            .zip(Handoff::mesh(usize::from(workers)))
            .map(|(id, handoff)| {
                let options = WorkerOptions { id, workers, flows: 4096, seed: 7, huge_pages: false };
                let mut pipeline = Pipeline::new(options, tables.clone(), shared.clone(), pool.cache(), handoff)
                    .expect("memory for flows");
                for port in [UPLINK, HOST, POD_A, POD_B] {
                    let capabilities = Capabilities { chained: true, max_frame: 65_535, ..Default::default() };
                    pipeline.open_lane(port, capabilities);
                }
                pipeline.set_time(SECOND);
                pipeline
            })
            .collect();
        Node { workers, shared, pool }
    }

    /// Gives worker 0 a frame on pod a's port.
    fn send(&mut self, frame: &[u8]) {
        let mut frame = self.workers[0].cache_mut().alloc_copy(frame).expect("a free frame");
        frame.port = POD_A;
        self.workers[0].receive(&mut vec![frame]);
    }

    /// Lets time pass on worker 0.
    fn later(&mut self, nanoseconds: u64) {
        self.workers[0].set_time(SECOND + nanoseconds);
        self.workers[0].upkeep();
    }

    fn drops(&self, reason: Reason, stage: Stage) -> u64 {
        self.workers[0].counters().drops[reason as usize][stage as usize].get()
    }

    /// Empties rings and lanes and checks law 1 on every worker.
    fn finish(mut self) {
        let mut handed = Vec::new();
        while self.workers.iter_mut().map(|w| w.take_handed(&mut handed)).sum::<usize>() > 0 {}
        let mut held = 0;
        for worker in &mut self.workers {
            let c = Arc::clone(worker.counters());
            let came = c.received.get() + c.originated.get() + c.handed_in.get();
            let went = [&c.sent, &c.punted, &c.dropped, &c.handed_out, &c.held, &c.consumed];
            assert_eq!(came, went.iter().map(|counter| counter.get()).sum::<u64>(), "law 1: {c:?}");
            held += c.held.get() as usize;
            for port in [UPLINK, HOST, POD_A, POD_B] {
                for frame in worker.take_lane(port) {
                    worker.cache_mut().free(frame);
                }
            }
            worker.cache_mut().account();
        }
        assert_eq!(self.pool.outstanding(), held, "frames are missing");
    }
}

fn from_a(to: &str) -> Packet {
    Packet::eth().macs(Mac([0x02, 0, 10, 244, 1, 5]), Mac(GATEWAY_MAC)).ip("10.244.1.5", to)
}

fn udp(to: &str, source_port: u16) -> Vec<u8> {
    from_a(to).udp(source_port, 53).payload(b"question").build()
}

#[test]
fn a_neighbour_on_the_uplinks_subnet_that_nobody_knows_is_asked_for_and_waited_for_a_second() {
    let mut node = Node::new(tables(1, false), 1, 1024);
    node.send(&udp("192.0.2.99", 1000));
    assert_eq!(node.shared.wanted.drain(), [Address::v4([192, 0, 2, 99])]);
    node.later(SECOND / 2);
    assert_eq!((node.drops(Reason::NoNeighbour, Stage::Egress), node.workers[0].counters().held.get()), (0, 1));
    node.later(SECOND);
    assert_eq!((node.drops(Reason::NoNeighbour, Stage::Egress), node.workers[0].counters().held.get()), (1, 0));
    node.finish();
}

#[test]
fn a_packet_that_waits_goes_out_when_its_neighbour_is_known() {
    let unknown = tables(1, false);
    let mut known = unknown.clone();
    let mut routes = (*known.routes).clone();
    let gateway = routes.gateways[0].expect("a gateway");
    routes.neighbours.insert(Address::v4([192, 0, 2, 99]), gateway);
    known.routes = Arc::new(routes);
    let mut node = Node::new(unknown, 1, 1024);
    node.send(&udp("192.0.2.99", 1000));
    assert_eq!(node.workers[0].take_lane(UPLINK).len(), 0);
    assert!(node.workers[0].adopt(&Arc::new(known)));
    node.workers[0].resume();
    let sent = node.workers[0].take_lane(UPLINK);
    assert_eq!(sent.len(), 1);
    sent.into_iter().for_each(|frame| node.workers[0].cache_mut().free(frame));
    assert_eq!(node.workers[0].counters().held.get(), 0);
    node.finish();
}

#[test]
fn a_flow_that_waits_for_a_neighbour_keeps_no_snat_port() {
    let mut node = Node::new(tables(1, true), 1, 1024);
    node.send(&udp("192.0.2.99", 1000));
    assert_eq!(node.shared.spaces.all()[0].leased_ports(), 0);
    node.later(SECOND);
    assert_eq!(node.drops(Reason::NoNeighbour, Stage::Egress), 1);
    node.finish();
}

#[test]
fn a_gateway_whose_mac_is_not_known_takes_nothing() {
    let mut tables = tables(1, false);
    let mut hops: Vec<Hop> = tables.hops.iter().cloned().collect();
    hops[3] = Hop::unresolved(hops[3].port, hops[3].mtu);
    tables.hops = Arc::new(Hops::new(hops));
    let mut node = Node::new(tables, 1, 1024);
    node.send(&udp(OUTSIDE, 1000));
    assert_eq!(node.drops(Reason::NoNeighbour, Stage::Send), 1);
    node.finish();
}

#[test]
fn established_flows_leave_no_room_for_another() {
    let mut node = Node::new(tables(1, false), 1, 2);
    for port in 1000..1003 {
        node.send(&from_a(OUTSIDE).tcp(port, 80).flags(TcpFlags::ACK).payload(b"x").build());
    }
    assert_eq!(node.drops(Reason::FlowTableFull, Stage::Egress), 1);
    assert_eq!(node.workers[0].counters().flows.get(), 2);
    node.finish();
}

#[test]
fn half_open_flows_make_room_for_another() {
    let mut node = Node::new(tables(1, false), 1, 2);
    for port in 1000..1003 {
        node.send(&from_a(OUTSIDE).tcp(port, 80).flags(TcpFlags::SYN).build());
    }
    assert_eq!(node.drops(Reason::FlowTableFull, Stage::Egress), 0);
    assert_eq!(node.workers[0].counters().flows_created.get(), 3);
    assert_eq!(node.workers[0].counters().flows.get(), 2);
    node.finish();
}

#[test]
fn an_address_gives_each_of_its_ports_once_to_a_destination() {
    let mut node = Node::new(tables(1, true), 1, 1024);
    for port in 1000..1064 {
        node.send(&udp(OUTSIDE, port));
    }
    assert_eq!(node.drops(Reason::SnatPortsExhausted, Stage::Egress), 0);
    node.send(&udp(OUTSIDE, 1064));
    assert_eq!(node.drops(Reason::SnatPortsExhausted, Stage::Egress), 1);
    node.send(&udp("198.51.100.8", 1065));
    assert_eq!(node.drops(Reason::SnatPortsExhausted, Stage::Egress), 1, "another destination has all ports again");
    node.finish();
}

#[test]
fn a_fragment_waits_thirty_seconds_for_its_first() {
    let mut node = Node::new(tables(1, false), 1, 1024);
    let whole = from_a(OUTSIDE).may_fragment().udp(1000, 53).payload(&[7; 1200]).build();
    let parts = sluice_testkit::packet::fragments(&whole, 9, 600);
    node.send(&parts[1]);
    assert_eq!(node.workers[0].counters().held.get(), 1);
    node.workers[0].set_time(30 * SECOND);
    node.workers[0].upkeep();
    assert_eq!(node.drops(Reason::FragmentTimeout, Stage::Parse), 0, "29 seconds");
    node.workers[0].set_time(32 * SECOND);
    node.workers[0].upkeep();
    assert_eq!(node.drops(Reason::FragmentTimeout, Stage::Parse), 1);
    node.finish();
}

#[test]
fn a_lane_that_its_device_does_not_empty_fills_up() {
    let mut node = Node::new(tables(1, false), 1, 1024);
    for _ in 0..513 {
        node.send(&udp(OUTSIDE, 1000));
    }
    assert_eq!(node.drops(Reason::TxFull, Stage::Send), 1);
    node.finish();
}

#[test]
fn a_ring_that_its_worker_does_not_empty_fills_up() {
    let mut node = Node::new(tables(2, false), 2, 1024);
    for _ in 0..1025 {
        node.send(&udp("10.244.1.6", 1000));
    }
    assert_eq!(node.drops(Reason::HandoffFull, Stage::Ingress), 1);
    assert_eq!(node.workers[0].counters().handed_out.get(), 1024);
    for _ in 0..16 {
        let mut handed = Vec::new();
        node.workers[1].take_handed(&mut handed);
        for frame in node.workers[1].take_lane(POD_B) {
            node.workers[1].cache_mut().free(frame);
        }
    }
    node.finish();
}

#[test]
fn a_reason_counts_each_packet_of_a_batch() {
    let mut node = Node::new(tables(1, false), 1, 1024);
    let mut frames = Vec::new();
    for _ in 0..BATCH {
        let mut frame = node.workers[0].cache_mut().alloc_copy(&[0; 10]).expect("a free frame");
        frame.port = POD_A;
        frames.push(frame);
    }
    node.workers[0].receive(&mut frames);
    assert_eq!(node.workers[0].counters().drops_of(Reason::Malformed), BATCH as u64);
    assert_eq!(node.workers[0].counters().dropped.get(), BATCH as u64);
    node.finish();
}
