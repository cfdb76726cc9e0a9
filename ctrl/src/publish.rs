//! Publish: hands each compiled generation to the workers, and knows which one they all run.
//!
//! Owner: the control thread. Invariants: generations count from 1 without gaps; a failed compilation publishes nothing,
//! the last good generation stands; old tables are freed here, never by a worker.

use std::sync::Arc;

use sluice_snapshot::{Reader, Writer};
use sluice_tables::Tables;

use crate::compile::{CompileError, Compiled, Knobs, LocalView, compile};
use crate::model::Cluster;

/// The writing end of the tables, with the last generation's by-products.
pub struct Publisher {
    writer: Writer<Tables>,
    last: Compiled,
}

impl Publisher {
    /// Starts with a first compiled cluster as generation 1.
    pub fn new(first: Compiled) -> Publisher {
        let mut last = first;
        last.tables.generation = 1;
        Publisher { writer: Writer::new(Arc::new(last.tables.clone())), last }
    }

    /// A worker's end.
    pub fn reader(&mut self) -> Reader<Tables> {
        self.writer.reader()
    }

    /// Compiles against the last generation, so that only what changed is built; nothing is published yet.
    pub fn compile(&self, cluster: &Cluster, local: &LocalView, knobs: &Knobs) -> Result<Compiled, CompileError> {
        compile(cluster, local, knobs, Some(&self.last))
    }

    /// Offers a compiled generation to every worker; returns its number.
    pub fn publish(&mut self, compiled: Compiled) -> u64 {
        self.last = compiled;
        self.last.tables.generation = self.writer.generation() + 1;
        self.writer.publish(Arc::new(self.last.tables.clone()))
    }

    /// The newest compiled generation.
    pub fn current(&self) -> &Compiled {
        &self.last
    }

    /// Number of the newest generation.
    pub fn generation(&self) -> u64 {
        self.writer.generation()
    }

    /// The lowest generation a worker still runs: everything up to it is applied everywhere.
    pub fn applied(&self) -> u64 {
        self.writer.applied()
    }

    /// Frees tables that workers have left; returns how many.
    pub fn collect(&mut self) -> usize {
        self.writer.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Replay;
    use crate::config::Config;
    use crate::import::Defaults;
    use crate::source::ObjectSet;

    fn compiled() -> (Cluster, LocalView, Knobs, Compiled) {
        let (mut cluster, _) = Cluster::build(&ObjectSet::default(), &Defaults::default());
        let node = crate::model::Node {
            name: "node-a".into(),
            labels: Default::default(),
            annotations: Default::default(),
            internal_ips: vec!["192.0.2.1".parse().unwrap()],
            external_ips: Vec::new(),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            vtep_mac: None,
            ready: None,
            leaving: false,
        };
        cluster.nodes.insert("node-a".into(), Arc::new(node));
        let view = LocalView::derived(&cluster, "node-a", &Replay::default()).unwrap();
        let knobs = Knobs::from(&Config::builtin("node-a"));
        let compiled = compile(&cluster, &view, &knobs, None).unwrap();
        (cluster, view, knobs, compiled)
    }

    #[test]
    fn tables_bear_the_generation_that_workers_acknowledge() {
        let (cluster, view, knobs, first) = compiled();
        let mut publisher = Publisher::new(first);
        let mut worker = publisher.reader();
        let next = publisher.compile(&cluster, &view, &knobs).unwrap();
        assert_eq!(publisher.publish(next), 2);
        assert_eq!((publisher.generation(), publisher.applied()), (2, 1));
        assert!(worker.refresh());
        assert_eq!((worker.get().generation, publisher.applied()), (2, 2));
        assert_eq!(publisher.collect(), 1);
    }

    #[test]
    fn a_cluster_without_this_node_leaves_the_last_generation_in_force() {
        let (_, view, knobs, first) = compiled();
        let publisher = Publisher::new(first);
        assert!(publisher.compile(&Cluster::default(), &view, &knobs).is_err());
        assert_eq!(publisher.generation(), 1);
    }
}
