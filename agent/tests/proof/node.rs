//! The node under test: objects imported and compiled, and the real pipeline on the tables, one packet at a time.

use crate::world::{NODE, World, node_address, overlay_address};
use sluice_agent::settings;
use sluice_ctrl::compile::{Compiled, Knobs, LocalView, Replay, compile};
use sluice_ctrl::config::Config;
use sluice_ctrl::import::{Defaults, Importer};
use sluice_ctrl::source::{Identified, ObjectSet, Origin, RawObject, identify};
use sluice_engine::handoff::Handoff;
use sluice_engine::trace::{Event, Note, Trace};
use sluice_engine::{Pipeline, Reason, Shared, WorkerOptions};
use sluice_port::{Capabilities, FramePool};
use sluice_tables::node::GATEWAY_MAC;
use sluice_tables::{RuleId, Tables};
use sluice_testkit::Packet;
use sluice_testkit::packet::mac_of;
use sluice_wire::Mac;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Where a packet comes in or goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Port of the pod with this IPv4 address.
    Pod(IpAddr),
    /// Through the tunnel from or to a node.
    Tunnel(usize),
    /// The uplink, without the tunnel.
    Outside,
    /// The node's own network stack.
    Host,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Where it came out, with the (inner) IP packet; none: it was dropped.
    pub out: Option<(Gate, Vec<u8>)>,
    /// Why it was dropped.
    pub reason: Option<Reason>,
    /// The rule that its record names.
    pub rule: Option<String>,
}

#[derive(Default)]
struct Heard {
    reason: Option<Reason>,
    rule: Option<RuleId>,
}

struct Listener(Arc<Mutex<Heard>>);

impl Trace for Listener {
    fn event(&mut self, _port: u16, event: Event, note: Option<&Note>, _frame: Option<&[u8]>) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Event::Dropped(reason, _) = event {
            heard.reason = Some(reason);
        }
        heard.rule = note.and_then(|note| note.rule).or(heard.rule);
    }
}

/// Objects to tables, remembering what it made of them.
pub struct Control {
    importer: Importer,
    knobs: Knobs,
    view: Option<LocalView>,
    workers: u16,
    last: Option<Compiled>,
}

impl Control {
    pub fn new(workers: u16) -> Control {
        let knobs = Knobs::from(&Config::builtin(NODE));
        Control { importer: Importer::default(), knobs, view: None, workers, last: None }
    }

    /// Compiles a cluster; the machine stays as it was at first.
    pub fn compile(&mut self, world: &World) -> (Arc<Tables>, LocalView) {
        let mut set = ObjectSet::default();
        for value in &world.objects {
            let Ok(Identified::Key(key)) = identify(value) else { panic!("not an object we read: {value}") };
            let origin = Origin::File { path: std::path::Path::new("world").into(), line: 1 };
            set.objects.insert(key, Arc::new(RawObject { value: value.clone(), origin }));
        }
        let (cluster, invalid) = self.importer.build(&set, &Defaults::default());
        assert!(invalid.is_empty(), "the generator made what the import refuses: {}", invalid[0]);
        let (cluster, _) = {
            // Endpoints follow from selectors, as in a folder of manifests.
            let config = Config::builtin(NODE);
            let standalone = sluice_ctrl::model::standalone::Standalone {
                node: NODE.to_owned(),
                service_cidrs: config.cidrs.services.clone(),
                node_ports: config.node_ports,
                leases: Default::default(),
            };
            drop(cluster);
            self.importer.build(&set, &Defaults { standalone: Some(standalone) })
        };
        let replay = Replay { workers: self.workers, ..Replay::default() };
        let view = self
            .view
            .get_or_insert_with(|| LocalView::derived(&cluster, NODE, &replay).expect("the node is there"))
            .clone();
        let compiled = compile(&cluster, &view, &self.knobs, self.last.as_ref()).expect("it fits");
        let tables = Arc::new(compiled.tables.clone());
        self.last = Some(compiled);
        (tables, view)
    }
}

/// The workers.
pub struct Node {
    workers: Vec<Pipeline>,
    heard: Arc<Mutex<Heard>>,
    tables: Arc<Tables>,
    view: LocalView,
    now: u64,
}

impl Node {
    pub fn new(tables: &Arc<Tables>, view: &LocalView, workers: u16, flows: usize, pool: &Arc<FramePool>) -> Node {
        let shared = Shared::new(4 * flows as u32);
        settings::ensure_spaces(&shared, tables);
        let heard = Arc::new(Mutex::new(Heard::default()));
        let mut ports = vec![view.uplink.port, view.host.port];
        ports.extend(view.pods.values().map(|pod| pod.port));
        let make = |(id, handoff)| {
            let options = WorkerOptions { id, workers, flows, seed: 7, huge_pages: false };
            let mut pipeline =
                Pipeline::new(options, Arc::clone(tables), Arc::clone(&shared), pool.cache(), handoff).expect("memory");
            pipeline.listen(Some(Box::new(Listener(Arc::clone(&heard)))));
            for port in &ports {
                pipeline.open_lane(*port, Capabilities { chained: true, max_frame: 65_535, ..Default::default() });
            }
            pipeline
        };
        let workers = (0..workers).zip(Handoff::mesh(usize::from(workers))).map(make).collect();
        Node { workers, heard, tables: Arc::clone(tables), view: view.clone(), now: 1_000_000_000 }
    }

    /// Gives every worker new tables.
    pub fn adopt(&mut self, tables: &Arc<Tables>) {
        for worker in &mut self.workers {
            assert!(worker.adopt(tables));
        }
        self.tables = Arc::clone(tables);
    }

    /// Runs one IP packet to its end. `queue` stands for the uplink's hash, which keeps a flow on one worker.
    pub fn send(&mut self, gate: Gate, packet: Packet, queue: usize) -> Outcome {
        self.now += 1000;
        let (port, bytes) = self.frame(gate, packet);
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Heard::default();
        self.workers.iter_mut().for_each(|worker| worker.set_time(self.now));
        let at = match self.tables.pods.by_port(port) {
            Some(pod) => usize::from(pod.worker),
            None if port == self.view.host.port => 0,
            None => queue % self.workers.len(),
        };
        let mut frame = self.workers[at].cache_mut().alloc_copy(&bytes).expect("a free frame");
        frame.port = port;
        self.workers[at].receive(&mut vec![frame]);
        let mut handed = Vec::new();
        while self.workers.iter_mut().map(|worker| worker.take_handed(&mut handed)).sum::<usize>() > 0 {}
        let mut out = None;
        let pods = self.view.pods.values().map(|pod| (pod.port, Gate::Pod(pod.addresses[0])));
        let lanes = [(self.view.uplink.port, Gate::Outside), (self.view.host.port, Gate::Host)];
        for (port, gate) in lanes.into_iter().chain(pods) {
            for worker in &mut self.workers {
                for frame in worker.take_lane(port) {
                    assert!(out.is_none(), "one packet became several");
                    out = Some(unwrap(gate, frame.to_vec()));
                    worker.cache_mut().free(frame);
                }
            }
        }
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = heard.rule.and_then(|rule| self.tables.policy.name(rule)).map(ToString::to_string);
        Outcome { reason: heard.reason, rule, out }
    }

    fn frame(&self, gate: Gate, packet: Packet) -> (u16, Vec<u8>) {
        let mac = |address| mac_of(address);
        match gate {
            Gate::Pod(address) => {
                let pod = self.view.pods.values().find(|pod| pod.addresses[0] == address).expect("a local pod");
                (pod.port, packet.macs(mac(address), Mac(GATEWAY_MAC)).build())
            }
            Gate::Host => (self.view.host.port, packet.macs(mac(overlay_address(0, false)), Mac(GATEWAY_MAC)).build()),
            Gate::Outside => {
                let router: IpAddr = "192.0.2.1".parse().expect("an address");
                (self.view.uplink.port, packet.macs(mac(router), mac(node_address(0, false))).build())
            }
            Gate::Tunnel(node) => {
                let (from, to) = (node_address(node, false), node_address(0, false));
                let inner = packet.macs(mac(from), mac(to)).build();
                let outer = Packet::eth().macs(mac(from), mac(to)).addresses(from, to).vxlan(50_000, 4096, &inner);
                (self.view.uplink.port, outer.no_checksum().build())
            }
        }
    }
}

/// A sent frame without its Ethernet header and tunnel; the tunnel says which node it went to.
fn unwrap(gate: Gate, frame: Vec<u8>) -> (Gate, Vec<u8>) {
    let tunnelled = gate == Gate::Outside
        && frame[12..14] == [0x08, 0x00]
        && frame[23] == 17
        && frame[36..38] == 4789u16.to_be_bytes();
    if tunnelled {
        return (Gate::Tunnel(usize::from(frame[33] - 10)), frame[14 + 20 + 8 + 8 + 14..].to_vec());
    }
    (gate, frame[14..].to_vec())
}
