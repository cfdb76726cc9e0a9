//! What a configuration of `sluiced` needs: 2 MB pages by NUMA node.
//!
//! ```text
//! per worker  = 2 × table_buckets + entries4 + entries6        each rounded up to whole 2 MB pages
//!   buckets   = ⌈flows × 2 × 100 / (8 × 72)⌉ × 64 B            8 slots a bucket, at most 72 % of them filled
//!   entries4  = flows × 2 × 64 B,  entries6 = flows × 2 × 128 B   both directions of a connection
//! pool        = pool-mb                                         32,768 frames of 4 KiB = 128 MB
//! ```
//! Each worker has tables of `flows.max` connections for each family. Its tables belong on its CPU's node, the frame pool on
//! the first worker's. A unit test holds the formula against the flow table itself.

use crate::found::{Found, PAGE_KIB};
use serde::Serialize;

const PAGE: u64 = PAGE_KIB << 10;

/// The fields of a configuration that take memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Configuration {
    /// Connections that each worker can remember (`flows.max`).
    pub flows: u64,
    /// Workers; `None`: as many as `workers: auto` makes.
    pub workers: Option<usize>,
    /// The frame pool, in MiB.
    pub pool_mib: u64,
}

/// Why a configuration fits no such host.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WantedError {
    /// A worker needs a CPU of its own.
    #[error("{workers} workers asked for; {cpus} CPUs are there for them")]
    TooManyWorkers {
        /// Asked for.
        workers: usize,
        /// CPUs that workers can have.
        cpus: usize,
    },
    /// No worker, no dataplane.
    #[error("at least one worker is needed")]
    NoWorker,
}

/// The need of one NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeWanted {
    /// The kernel's number of the node.
    pub node: u32,
    /// CPUs of the workers there.
    pub workers: Vec<u32>,
    /// 2 MB pages of the frame pool.
    pub pool_pages: u64,
    /// 2 MB pages of the workers' flow tables.
    pub flow_pages: u64,
}

impl NodeWanted {
    /// All 2 MB pages of this node.
    pub fn pages(&self) -> u64 {
        self.pool_pages + self.flow_pages
    }
}

/// 2 MB pages of one worker's flow tables, for `flows` connections of each family.
pub fn flow_pages(flows: u64) -> u64 {
    let buckets = (flows * 2 * 100).div_ceil(8 * 72).max(2) * 64;
    2 * buckets.div_ceil(PAGE) + (flows * 2 * 64).div_ceil(PAGE) + (flows * 2 * 128).div_ceil(PAGE)
}

/// What `configuration` needs of this host, by node; nodes without a worker are left out.
pub fn wanted(configuration: &Configuration, found: &Found) -> Result<Vec<NodeWanted>, WantedError> {
    // As `workers: auto` does: the first CPU is the host's, where there is more than one.
    let cpus = if found.online.len() > 1 { &found.online[1..] } else { &found.online[..] };
    let count = configuration.workers.unwrap_or(cpus.len());
    if count == 0 {
        return Err(WantedError::NoWorker);
    }
    let Some(cpus) = cpus.get(..count) else {
        return Err(WantedError::TooManyWorkers { workers: count, cpus: cpus.len() });
    };
    let home = |cpu: u32| found.nodes.iter().find(|n| n.cpus.contains(&cpu)).map_or(0, |n| n.id);
    let mut all: Vec<NodeWanted> = Vec::new();
    for &cpu in cpus {
        let pool_pages = if all.is_empty() { (configuration.pool_mib << 20).div_ceil(PAGE) } else { 0 };
        let node = home(cpu);
        let at = all.iter().position(|w| w.node == node).unwrap_or_else(|| {
            all.push(NodeWanted { node, workers: Vec::new(), pool_pages, flow_pages: 0 });
            all.len() - 1
        });
        all[at].workers.push(cpu);
        all[at].flow_pages += flow_pages(configuration.flows);
    }
    all.sort_by_key(|w| w.node);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_engine::flow::{Entry4, Entry6, FlowTable};

    #[test]
    fn the_formula_is_what_the_flow_tables_map() {
        for flows in [1024usize, 5000, 65_536, 100_001] {
            let bytes4 = FlowTable::<Entry4>::new(flows, 1, false).unwrap().memory().0 as u64;
            let bytes6 = FlowTable::<Entry6>::new(flows, 1, false).unwrap().memory().0 as u64;
            let (entries4, entries6) = (flows as u64 * 128, flows as u64 * 256);
            assert_eq!(bytes4 - entries4, bytes6 - entries6);
            let pages = [bytes4 - entries4, bytes6 - entries6, entries4, entries6].map(|b| b.div_ceil(PAGE));
            assert_eq!(flow_pages(flows as u64), pages.iter().sum::<u64>());
        }
    }

    #[test]
    fn a_worker_with_the_default_million_flows_takes_216_pages() {
        assert_eq!(flow_pages(1_048_576), 12 + 12 + 64 + 128);
    }
}
