//! Flows that outlive their process: tables in files, closed without a word and opened by a node that knows other numbers.

mod node;

use node::{FlowTables, Node, POD_A, POD_B, SECOND, UPLINK, Wish, from_pod, ip, tunnelled};
use sluice_engine::flow::FlowTable;
use sluice_engine::{Reason, Strays};
use sluice_port::Mapped;
use sluice_testkit::Packet;
use sluice_wire::{Mac, TcpFlags};
use std::fs::File;
use std::os::fd::OwnedFd;

const SYN_ACK: TcpFlags = TcpFlags(0x12);
const PAIRS: usize = 1024;

/// The files of a node's workers.
struct Files(Vec<[File; 2]>);

impl Files {
    fn new(workers: u16) -> Files {
        let file = || tempfile::tempfile_in("/dev/shm").expect("a file in memory");
        Files((0..workers).map(|_| [file(), file()]).collect())
    }

    fn tables(&self, worker: u16) -> FlowTables {
        let [v4, v6] = &self.0[usize::from(worker)];
        let fd = |file: &File| OwnedFd::from(file.try_clone().expect("a descriptor"));
        let (v4, v6) = (Mapped::in_file(fd(v4), 4096, PAIRS * 2), Mapped::in_file(fd(v6), 4096, PAIRS * 2));
        let table4 = FlowTable::over(v4.expect("a mapping"), PAIRS, 7, false).expect("memory");
        (table4, FlowTable::over(v6.expect("a mapping"), PAIRS, 7, false).expect("memory"))
    }

    /// A node on these files, as it is after a start at `now`; the connections that found no worker.
    fn start(&self, wish: &Wish, now: u64) -> (Node, Strays) {
        let mut node = Node::on(wish, 1024, |id| self.tables(id));
        let mut strays = Strays::default();
        for worker in &mut node.workers {
            let found = worker.resume_flows(now, &mut strays);
            assert_eq!(found.torn, 0);
        }
        for worker in &mut node.workers {
            worker.take_strays(&mut strays);
        }
        (node, strays)
    }
}

fn segment(packet: Packet, ports: (u16, u16), flags: TcpFlags) -> Vec<u8> {
    packet.tcp(ports.0, ports.1).flags(flags).payload(b"x").build()
}

/// Source and destination with their ports.
type Ends = ((String, u16), (String, u16));

/// Addresses and ports of the packet at `l3`.
fn ends(l3: &[u8]) -> Ends {
    let v4 = l3[0] >> 4 == 4;
    let text = |at: usize| match v4 {
        true => std::net::Ipv4Addr::new(l3[at], l3[at + 1], l3[at + 2], l3[at + 3]).to_string(),
        false => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(&l3[at..at + 16]).expect("16 bytes")).to_string(),
    };
    let (source, destination, l4) = if v4 { (12, 16, 20) } else { (8, 24, 40) };
    let port = |at: usize| u16::from_be_bytes([l3[l4 + at], l3[l4 + at + 1]]);
    ((text(source), port(0)), (text(destination), port(2)))
}

/// Opens a connection of pod a by a full handshake; returns the ends of what left, and the frame that replies arrive in.
fn connect(node: &mut Node, to: &str, port: u16) -> (Ends, impl Fn(TcpFlags) -> Vec<u8> + use<>) {
    node.receive(0, POD_A, &[segment(from_pod(POD_A, to), (port, 80), TcpFlags::SYN)]);
    let sent = node.sent(UPLINK);
    assert_eq!(sent.len(), 1, "the SYN leaves: {:?}", node.counters(0));
    let l3 = if sent[0].len() > 100 { &sent[0][64..] } else { &sent[0][14..] };
    let tunnel = sent[0].len() > 100;
    let left = ends(l3);
    let ((own, own_port), (far, far_port)) = left.clone();
    let reply = move |flags| {
        let inner = Packet::eth().macs(Mac([0x02, 0, 192, 0, 2, 1]), Mac([0x02, 0, 192, 0, 2, 10])).ip(&far, &own);
        let inner = segment(inner, (far_port, own_port), flags);
        if tunnel { tunnelled(&inner) } else { inner }
    };
    let worker = 0;
    node.receive(worker, UPLINK, &[reply(SYN_ACK)]);
    node.run_rings();
    assert_eq!(node.sent(POD_A).len(), 1, "the SYN-ACK arrives: {:?}", node.counters(0));
    node.receive(0, POD_A, &[segment(from_pod(POD_A, to), (port, 80), TcpFlags::ACK)]);
    assert_eq!(node.sent(UPLINK).len(), 1);
    (left, reply)
}

/// Sends on a connection both ways; the ends that the outside sees.
fn talk(node: &mut Node, to: &str, port: u16, reply: &impl Fn(TcpFlags) -> Vec<u8>) -> Option<Ends> {
    node.receive(0, POD_A, &[segment(from_pod(POD_A, to), (port, 80), TcpFlags::ACK)]);
    node.run_rings();
    let sent = node.sent(UPLINK);
    node.receive(0, UPLINK, &[reply(TcpFlags::ACK)]);
    node.run_rings();
    let back = node.sent(POD_A);
    let [frame] = &sent[..] else { return None };
    (back.len() == 1).then(|| ends(if frame.len() > 100 { &frame[64..] } else { &frame[14..] }))
}

#[test]
fn connections_go_on_with_their_backend_and_their_port_after_a_kill() {
    for (service, outside) in [("10.96.0.1", "198.51.100.7"), ("fd00:96::1", "2001:db8:7::7")] {
        let files = Files::new(1);
        let mut node = Node::on(&Wish::default(), 1024, |id| files.tables(id));
        let (backend, from_backend) = connect(&mut node, service, 2000);
        let (masqueraded, from_outside) = connect(&mut node, outside, 2001);
        drop(node);
        let (mut node, strays) = files.start(&Wish::default(), 5 * SECOND);
        assert!(strays.is_empty());
        assert_eq!(node.counters(0).flows.get(), 2);
        assert_eq!(talk(&mut node, service, 2000, &from_backend), Some(backend));
        assert_eq!(talk(&mut node, outside, 2001, &from_outside), Some(masqueraded.clone()));
        assert_eq!(node.counters(0).flows_created.get(), 0, "nothing was decided anew");
        // A new flow to the same place does not get the port in use.
        let ((_, other), _) = {
            node.receive(0, POD_B, &[segment(from_pod(POD_B, outside), (2001, 80), TcpFlags::SYN)]);
            ends(&node.sent(UPLINK)[0][14..])
        };
        assert_ne!(other, masqueraded.0.1);
        node.finish();
    }
}

#[test]
fn a_new_flow_of_the_same_source_does_not_get_a_port_in_use() {
    let files = Files::new(1);
    let mut node = Node::on(&Wish::default(), 1024, |id| files.tables(id));
    let mut used: Vec<u16> = (0..60).map(|n| connect(&mut node, "198.51.100.7", 3000 + n).0.0.1).collect();
    drop(node);
    let (mut node, _) = files.start(&Wish::default(), 5 * SECOND);
    used.extend((0..60).map(|n| connect(&mut node, "198.51.100.7", 4000 + n).0.0.1));
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), 120);
    let leased: usize = node.shared.spaces.all().iter().map(|s| s.leased_ports()).sum();
    assert_eq!(leased, 128, "two blocks, as without the restart");
    node.finish();
}

#[test]
fn a_flow_that_was_forbidden_meanwhile_dies_with_its_next_packet_even_if_the_version_says_nothing() {
    let files = Files::new(1);
    let mut node = Node::on(&Wish::default(), 1024, |id| files.tables(id));
    let (_, reply) = connect(&mut node, "10.96.0.1", 2000);
    drop(node);
    let (mut node, _) = files.start(&Wish { policy: (1, true), ..Wish::default() }, 5 * SECOND);
    assert_eq!(talk(&mut node, "10.96.0.1", 2000, &reply), None);
    assert_eq!(node.drops(Reason::PolicyDeny), 2);
    node.finish();
}

#[test]
fn a_backend_that_went_meanwhile_is_not_sent_to() {
    let files = Files::new(1);
    let mut node = Node::on(&Wish::default(), 1024, |id| files.tables(id));
    // Find a connection to the backend that will go.
    let mut port = 2000;
    let reply = loop {
        let ((_, (backend, _)), reply) = connect(&mut node, "10.96.0.1", port);
        if backend == "10.244.2.1" {
            break reply;
        }
        port += 1;
    };
    drop(node);
    let wish = Wish { first_backend: false, services: [2, 1], ..Wish::default() };
    let (mut node, _) = files.start(&wish, 5 * SECOND);
    assert_eq!(talk(&mut node, "10.96.0.1", port, &reply), None);
    assert!(node.sent(UPLINK).is_empty());
    node.finish();
}

#[test]
fn what_was_idle_too_long_or_is_from_the_future_is_no_live_flow_or_a_fresh_one() {
    let files = Files::new(1);
    let mut node = Node::on(&Wish::default(), 1024, |id| files.tables(id));
    node.at(1000 * SECOND);
    drop(connect(&mut node, "10.96.0.1", 2000));
    drop(node);
    let (node, _) = files.start(&Wish::default(), 10 * SECOND);
    assert_eq!(node.counters(0).flows.get(), 1, "marked by a clock that was ahead");
    drop(node);
    let (node, _) = files.start(&Wish::default(), 10 * SECOND + 25 * 3600 * SECOND);
    assert_eq!(node.counters(0).flows.get(), 0);
    node.finish();
}

#[test]
fn with_more_or_fewer_workers_each_connection_goes_to_its_pods_worker() {
    for (before, after, moved) in [(1, 2, 1), (3, 1, 1), (2, 3, 0)] {
        let files = Files::new(before.max(after));
        let wish = |workers| Wish { workers, ..Wish::default() };
        let mut node = Node::on(&wish(before), 1024, |id| files.tables(id));
        let (backend, from_backend) = connect(&mut node, "10.96.0.1", 2000);
        let (masqueraded, from_outside) = connect(&mut node, "198.51.100.7", 2001);
        let pod_b = usize::from(before > 1);
        node.receive(pod_b, POD_B, &[segment(from_pod(POD_B, "198.51.100.7"), (2001, 80), TcpFlags::SYN)]);
        assert_eq!(node.sent(UPLINK).len(), 1);
        drop(node);
        let mut node = Node::on(&wish(after), 1024, |id| files.tables(id));
        let mut strays = Strays::default();
        for worker in &mut node.workers {
            worker.resume_flows(5 * SECOND, &mut strays);
        }
        for gone in after..before {
            let [v4, _] = &files.0[usize::from(gone)];
            let entries = Mapped::in_file(OwnedFd::from(v4.try_clone().unwrap()), 4096, PAIRS * 2).unwrap();
            assert_eq!(strays.collect4(gone, &entries), 0);
        }
        let taken: u32 = node.workers.iter_mut().map(|w| w.take_strays(&mut strays).kept).sum();
        assert!(strays.is_empty() && taken == moved, "{taken} moved, {} lost", strays.len());
        let flows: Vec<u64> = (0..usize::from(after)).map(|n| node.counters(n).flows.get()).collect();
        assert_eq!(flows, if after == 1 { vec![3] } else { [vec![2, 1], vec![0; usize::from(after) - 2]].concat() });
        assert_eq!(talk(&mut node, "10.96.0.1", 2000, &from_backend), Some(backend));
        assert_eq!(talk(&mut node, "198.51.100.7", 2001, &from_outside), Some(masqueraded));
        let space = node.shared.spaces.all().into_iter().find(|s| s.address == ip("192.0.2.10")).unwrap();
        assert_eq!(space.leased_ports(), 128);
        node.finish();
    }
}
