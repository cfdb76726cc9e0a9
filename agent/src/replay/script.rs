//! The clusters of a replay: the one it begins with, and those that take its place from some packet on.

use super::Options;
use super::inputs::{self, Input};
use anyhow::{Context, Result, bail};
use sluice_ctrl::compile::{Compiled, Knobs, LocalView, Replay, compile, local};
use sluice_ctrl::config::Config;
use sluice_ctrl::import::{Defaults, Importer};
use sluice_ctrl::model::standalone::Standalone;
use sluice_ctrl::model::{Cluster, NamespacedName};
use sluice_ctrl::source::manifests::ManifestSource;
use sluice_tables::Tables;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Layer-3 MTU of a replayed uplink.
const UPLINK_MTU: u16 = 1500;

/// One cluster and the node's view in it.
pub struct Scene {
    /// Number of the first packet that meets it.
    from: usize,
    cluster: Cluster,
    /// What of the machine follows from the cluster.
    pub view: LocalView,
}

/// All clusters, in the order of their packets.
pub struct Script {
    /// Never empty.
    pub scenes: Vec<Scene>,
}

impl Script {
    /// Reads all manifests. A pod keeps its port from its first scene to its last.
    pub fn read(options: &Options, config: &Config) -> Result<Script> {
        let mut replay = Replay { uplink_mtu: UPLINK_MTU, workers: options.workers, ..Replay::default() };
        for gateway in &options.gateways {
            let slot = &mut replay.gateways[usize::from(gateway.is_ipv6())];
            if slot.replace(*gateway).is_some() {
                bail!("--gateway {gateway}: a second gateway of one family");
            }
        }
        let mut importer = Importer::default();
        let mut ports: BTreeMap<NamespacedName, (u16, u16)> = BTreeMap::new();
        let mut scenes: Vec<Scene> = Vec::new();
        let begin = std::iter::once((0, &options.manifests));
        for (from, folder) in begin.chain(options.changes.iter().map(|(from, folder)| (*from, folder))) {
            if scenes.last().is_some_and(|before| before.from > from) {
                bail!("--change {from}=…: changes must be given in the order of their packets");
            }
            let source = ManifestSource::new(folder)
                .with_context(|| format!("cannot read the manifests in {}", folder.display()))?;
            let snapshot = source.snapshot();
            for problem in &snapshot.problems {
                eprintln!("sluice: {problem}");
            }
            let standalone = Standalone {
                node: options.node.clone(),
                service_cidrs: config.cidrs.services.clone(),
                node_ports: config.node_ports,
                leases: BTreeMap::new(),
            };
            let (cluster, invalid) = importer.build(&snapshot.objects, &Defaults { standalone: Some(standalone) });
            for finding in &invalid {
                eprintln!("sluice: {finding}");
            }
            let mut view = LocalView::derived(&cluster, &options.node, &replay)?;
            for (name, pod) in &mut view.pods {
                let index = ports.len() as u16;
                let fresh = (local::FIRST_POD_PORT.saturating_add(index), index % replay.workers.max(1));
                (pod.port, pod.worker) = *ports.entry(name.clone()).or_insert(fresh);
            }
            scenes.push(Scene { from, cluster, view });
        }
        Ok(Script { scenes })
    }

    /// Makes neighbours of all addresses that the packets name.
    pub fn learn(&mut self, inputs: &[Input]) {
        for input in inputs {
            for scene in &mut self.scenes {
                inputs::for_each_address(&input.bytes, |address| scene.view.learn_derived(address));
            }
        }
    }

    /// The tables of each scene with the number of its first packet, each compiled as a change of the one before.
    pub fn compile(self, config: &Config) -> Result<Vec<(usize, Arc<Tables>)>> {
        let knobs = Knobs::from(config);
        let mut all = Vec::new();
        let mut last: Option<Compiled> = None;
        for (scene, generation) in self.scenes.into_iter().zip(1..) {
            let mut compiled = compile(&scene.cluster, &scene.view, &knobs, last.as_ref())?;
            compiled.tables.generation = generation;
            for finding in &compiled.invalid {
                eprintln!("sluice: {finding}");
            }
            all.push((scene.from, Arc::new(compiled.tables.clone())));
            last = Some(compiled);
        }
        Ok(all)
    }
}
