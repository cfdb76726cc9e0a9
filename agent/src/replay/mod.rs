//! `sluice replay`: captures through the real pipeline, no machine touched.
//!
//! The clock is the packets' own; one packet runs to its end before the next, through as many workers as asked for, so the
//! same input gives the same bytes whatever their number. See `docs/replay.md`.

mod inputs;
mod script;
pub(crate) mod verdict;

use crate::settings;
use anyhow::{Context, Result, bail};
use inputs::Input;
use script::Script;
use sluice_ctrl::config::Config;
use sluice_engine::handoff::Handoff;
use sluice_engine::{Pipeline, Shared, WorkerOptions};
use sluice_port::capture::{PcapWriter, Resolution};
use sluice_port::{Capabilities, FramePool, PoolOptions};
use sluice_tables::Tables;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use verdict::{Names, Recorder, Verdict};

/// What a replay is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of manifests.
    pub manifests: PathBuf,
    /// Name of the node that the packets pass.
    pub node: String,
    /// Configuration file; defaults where absent.
    pub config: Option<PathBuf>,
    /// `PORT=FILE`, in order.
    pub inputs: Vec<(String, PathBuf)>,
    /// Folder for the outputs; made if it is absent.
    pub out: PathBuf,
    /// Number of workers.
    pub workers: u16,
    /// Gateways towards the outside, at most one per family.
    pub gateways: Vec<IpAddr>,
    /// From which packet on which other manifests are the cluster.
    pub changes: Vec<(usize, PathBuf)>,
}

/// Frames of a replay's pool: what one packet can turn into, and held fragments.
const FRAMES: usize = 8192;
/// Seed of the flow hash: a replay must not depend on chance.
const SEED: u64 = 0x5106_9a7e;

/// Runs a replay; returns the number of packets.
pub fn run(options: &Options) -> Result<usize> {
    let config = match &options.config {
        Some(path) => Config::load(path)?,
        None => Config::builtin(&options.node),
    };
    let mut script = Script::read(options, &config)?;
    let names = Names::of(script.scenes.iter().map(|scene| &scene.view));
    let (inputs, resolution) = inputs::read(&options.inputs, &names)?;
    script.learn(&inputs);
    let mut tables_left = script.compile(&config)?.into_iter();
    let Some((_, first)) = tables_left.next() else { bail!("no manifests") };
    let mut node = Node::new(&config, first, options.workers, names.ports())?;
    let mut next = tables_left.next();
    std::fs::create_dir_all(&options.out).with_context(|| format!("cannot make {}", options.out.display()))?;
    let mut outputs = Outputs::new(&options.out, resolution);
    let path = options.out.join("verdicts.jsonl");
    let mut lines = std::io::BufWriter::new(
        std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?,
    );
    for (n, input) in inputs.iter().enumerate() {
        while let Some((from, tables)) = next.take() {
            if from > n {
                next = Some((from, tables));
                break;
            }
            node.adopt(tables, input.time);
            next = tables_left.next();
        }
        let verdict = node.step(n, input, &names, &mut outputs)?;
        serde_json::to_writer(&mut lines, &verdict)?;
        lines.write_all(b"\n")?;
    }
    lines.flush()?;
    outputs.finish()?;
    Ok(inputs.len())
}

/// The node that is replayed: its workers without ports.
struct Node {
    tables: Arc<Tables>,
    workers: Vec<Pipeline>,
    shared: Arc<Shared>,
    recorder: Recorder,
    ports: Vec<u16>,
}

impl Node {
    fn new(config: &Config, tables: Arc<Tables>, workers: u16, ports: Vec<u16>) -> Result<Self> {
        let shared = Shared::new(config.flows.max);
        settings::ensure_spaces(&shared, &tables);
        let pool = FramePool::new(PoolOptions { frames: FRAMES, huge_pages: false })?;
        let recorder = Recorder::default();
        let mut all = Vec::new();
        for (id, handoff) in (0..workers).zip(Handoff::mesh(usize::from(workers))) {
            let options =
                WorkerOptions { id, workers, flows: config.flows.max as usize, seed: SEED, huge_pages: false };
            let mut pipeline = Pipeline::new(options, tables.clone(), shared.clone(), pool.cache(), handoff)?;
            pipeline.listen(Some(Box::new(recorder.listener())));
            for port in &ports {
                pipeline.open_lane(*port, Capabilities { chained: true, max_frame: 65_535, ..Default::default() });
            }
            all.push(pipeline);
        }
        Ok(Node { tables, workers: all, shared, recorder, ports })
    }

    /// Gives all workers new tables, between two packets.
    fn adopt(&mut self, tables: Arc<Tables>, now: u64) {
        settings::ensure_spaces(&self.shared, &tables);
        for worker in &mut self.workers {
            worker.set_time(now);
            // Nobody else holds the list of port ranges here, so it cannot be busy.
            let adopted = worker.adopt(&tables);
            debug_assert!(adopted);
            worker.resume();
        }
        self.tables = tables;
    }

    /// Runs one packet to its end.
    fn step(&mut self, n: usize, input: &Input, names: &Names, outputs: &mut Outputs) -> Result<Verdict> {
        for worker in &mut self.workers {
            worker.set_time(input.time);
            worker.upkeep();
        }
        self.recorder.clear();
        let at = self.receiver(input);
        let worker = &mut self.workers[at];
        let Some(mut frame) = worker.cache_mut().alloc_copy(&input.bytes) else {
            bail!("packet {n}: the replay's frame pool is empty");
        };
        frame.port = input.port;
        worker.receive(&mut vec![frame]);
        let mut handed = Vec::new();
        loop {
            let mut moved = 0;
            for worker in &mut self.workers {
                moved += worker.take_handed(&mut handed);
            }
            if moved == 0 {
                break;
            }
        }
        for port in &self.ports {
            for worker in &mut self.workers {
                for frame in worker.take_lane(*port) {
                    outputs.write(names.name(*port), input.time, &frame.to_vec())?;
                    worker.cache_mut().free(frame);
                }
            }
        }
        Ok(self.recorder.verdict(n, names, input, &self.tables))
    }

    /// The worker that polls the input's port; packets of the uplink are spread as a NIC would.
    fn receiver(&self, input: &Input) -> usize {
        if let Some(pod) = self.tables.pods.by_port(input.port) {
            return usize::from(pod.worker);
        }
        if input.port == self.tables.node.host {
            return 0;
        }
        inputs::spread(&input.bytes) % self.workers.len()
    }
}

/// The captures written, one for each port that sent something.
struct Outputs {
    folder: PathBuf,
    resolution: Resolution,
    writers: BTreeMap<String, PcapWriter>,
}

impl Outputs {
    fn new(folder: &Path, resolution: Resolution) -> Self {
        Outputs { folder: folder.to_owned(), resolution, writers: BTreeMap::new() }
    }

    fn write(&mut self, port: &str, time: u64, bytes: &[u8]) -> Result<()> {
        if !self.writers.contains_key(port) {
            let path = self.folder.join(format!("{}.pcap", port.replace([':', '/'], "_")));
            self.writers.insert(port.to_owned(), PcapWriter::create(&path, self.resolution)?);
        }
        if let Some(writer) = self.writers.get_mut(port) {
            writer.write(time, bytes)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        for (_, writer) in self.writers {
            writer.finish()?;
        }
        Ok(())
    }
}
