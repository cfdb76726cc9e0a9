//! A node without devices: what is sent stays in the workers' lanes.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod tables;

use sluice_engine::flow::{Entry4, Entry6, FlowTable};
use sluice_engine::handoff::Handoff;
use sluice_engine::item::BATCH;
use sluice_engine::{Counters, Pipeline, Reason, Shared, WorkerOptions};
use sluice_port::{Capabilities, Frame, FramePool, PoolOptions};
use sluice_tables::Tables;
use sluice_tables::node::GATEWAY_MAC;
use sluice_testkit::Packet;
use sluice_wire::Mac;
use std::sync::Arc;
pub use tables::*;

/// A second on the workers' clock.
pub const SECOND: u64 = 1_000_000_000;

/// Flow tables of both families.
pub type FlowTables = (FlowTable<Entry4>, FlowTable<Entry6>);

/// The node.
pub struct Node {
    /// Its workers.
    pub workers: Vec<Pipeline>,
    /// What they share.
    pub shared: Arc<Shared>,
    pool: Arc<FramePool>,
}

impl Node {
    /// A node that keeps at most so many connections.
    pub fn new(wish: &Wish, max_flows: u32) -> Node {
        let flows = |_| Some((FlowTable::new(4096, 7, false).ok()?, FlowTable::new(4096, 7, false).ok()?));
        Node::on(wish, max_flows, |id| flows(id).expect("memory for flows"))
    }

    /// The same, with flow tables of the test by worker.
    pub fn on(wish: &Wish, max_flows: u32, mut flows: impl FnMut(u16) -> FlowTables) -> Node {
        let tables = Arc::new(tables(wish));
        let shared = Shared::new(max_flows);
        for address in tables.node.internal.iter().chain(&tables.node.overlay).flatten() {
            shared.spaces.ensure(*address, tables.settings.snat_ports);
        }
        let pool = FramePool::new(PoolOptions { frames: 2048, huge_pages: false }).expect("memory");
        let workers = (0..wish.workers)
            .zip(Handoff::mesh(usize::from(wish.workers)))
            .map(|(id, handoff)| {
                let options = WorkerOptions { id, workers: wish.workers, flows: 4096, seed: 7, huge_pages: false };
                let (tables, shared) = (Arc::clone(&tables), Arc::clone(&shared));
                let mut worker = Pipeline::with_flows(options, tables, shared, pool.cache(), handoff, flows(id));
                for port in PORTS {
                    let all = Capabilities { chained: true, max_frame: 65_535, ..Capabilities::default() };
                    worker.open_lane(port, all);
                }
                worker.set_time(SECOND);
                worker
            })
            .collect();
        Node { workers, shared, pool }
    }

    /// Gives every worker new tables.
    pub fn publish(&mut self, wish: &Wish) {
        let tables: Arc<Tables> = Arc::new(tables(wish));
        for worker in &mut self.workers {
            assert!(worker.adopt(&tables));
        }
    }

    /// Sets every worker's clock.
    pub fn at(&mut self, time: u64) {
        self.workers.iter_mut().for_each(|w| w.set_time(time));
    }

    /// A frame of a worker.
    pub fn frame(&mut self, worker: usize, bytes: &[u8]) -> Frame {
        self.workers[worker].cache_mut().alloc_copy(bytes).expect("a free frame")
    }

    /// A frame of a worker as it comes in on a port.
    pub fn frame_on(&mut self, worker: usize, bytes: &[u8], port: u16) -> Frame {
        let mut frame = self.frame(worker, bytes);
        frame.port = port;
        frame
    }

    /// Gives a worker a batch on a port.
    pub fn receive(&mut self, worker: usize, port: u16, frames: &[Vec<u8>]) {
        for part in frames.chunks(BATCH) {
            let mut burst = Vec::new();
            for bytes in part {
                burst.push(self.frame_on(worker, bytes, port));
            }
            self.workers[worker].receive(&mut burst);
        }
    }

    /// Lets workers take what others handed over, until nothing moves.
    pub fn run_rings(&mut self) {
        let mut handed = Vec::new();
        while self.workers.iter_mut().map(|w| w.take_handed(&mut handed)).sum::<usize>() > 0 {}
    }

    /// Everything sent on a port, in order for each worker.
    pub fn sent(&mut self, port: u16) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for worker in &mut self.workers {
            for frame in worker.take_lane(port) {
                all.push(frame.to_vec());
                worker.cache_mut().free(frame);
            }
        }
        all
    }

    /// A worker's counters.
    pub fn counters(&self, worker: usize) -> &Arc<Counters> {
        self.workers[worker].counters()
    }

    /// Drops of a reason over all workers and stages.
    pub fn drops(&self, reason: Reason) -> u64 {
        self.workers.iter().map(|w| w.counters().drops_of(reason)).sum()
    }

    /// Law 1 on every worker, and no frame is missing. Empties rings and lanes.
    pub fn check_law(&mut self) -> Result<(), String> {
        self.run_rings();
        let mut held = 0;
        for (n, worker) in self.workers.iter_mut().enumerate() {
            let c = Arc::clone(worker.counters());
            let came = c.received.get() + c.originated.get() + c.handed_in.get();
            let went: u64 =
                [&c.sent, &c.punted, &c.dropped, &c.handed_out, &c.held, &c.consumed].map(|c| c.get()).iter().sum();
            if came != went {
                return Err(format!("worker {n}: {came} came, {went} went: {c:?}"));
            }
            held += c.held.get() as usize;
            for port in PORTS {
                for frame in worker.take_lane(port) {
                    worker.cache_mut().free(frame);
                }
            }
            worker.cache_mut().account();
        }
        match self.pool.outstanding() {
            n if n == held => Ok(()),
            n => Err(format!("{n} frames are out, {held} are held")),
        }
    }

    /// Fragments that wait are given up, then nothing may be out.
    pub fn finish(mut self) {
        self.at(40 * SECOND);
        self.workers.iter_mut().for_each(Pipeline::upkeep);
        self.check_law().expect("law 1");
        assert_eq!(self.pool.outstanding(), 0);
    }
}

/// A packet of pod a, b or c (by port) on its way to the gateway.
pub fn from_pod(port: u16, to: &str) -> Packet {
    let last = 5 + port - POD_A;
    let source = if to.contains(':') { format!("fd00:1::{last}") } else { format!("10.244.1.{last}") };
    Packet::eth().macs(Mac([0x02, 0, 10, 244, 1, last as u8]), Mac(GATEWAY_MAC)).ip(&source, to)
}

/// A frame of the peer node around an inner frame.
pub fn tunnelled(inner: &[u8]) -> Vec<u8> {
    let macs = (Mac([0x02, 0, 192, 0, 2, 12]), Mac([0x02, 0, 192, 0, 2, 10]));
    Packet::eth().macs(macs.0, macs.1).ip("192.0.2.12", "192.0.2.10").vxlan(50_000, 4096, inner).no_checksum().build()
}
