//! What a configuration of `sluiced` needs: huge pages by NUMA node, VFs, the VFIO driver, ports that the kernel leaves alone.
//!
//! ```text
//! per worker  = 2 × table_buckets + entries4 + entries6        each rounded up to whole 2 MB pages
//!   buckets   = ⌈flows × 2 × 100 / (8 × 72)⌉ × 64 B            8 slots a bucket, at most 72 % of them filled
//!   entries4  = flows × 2 × 64 B,  entries6 = flows × 2 × 128 B   both directions of a connection
//! pool        = pool-mb                                         32,768 frames of 4 KiB = 128 MB
//! ```
//! Each worker has tables of `flows.max` connections for each family. Its tables belong on its CPU's node, the frame pool on
//! the node of the uplink's device, else the first worker's. A unit test holds the formula against the flow table itself.

use serde::Serialize;
use sluice_machine::Machine;
use sluice_machine::devices::{self, Method};
use sluice_machine::machine::PAGE_KIB;
use sluice_machine::pci::{Function, NetDevice};
use sluice_machine::placement::{Placement, PlacementError, Wish, place};
use std::collections::BTreeMap;

const PAGE: u64 = PAGE_KIB << 10;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Configuration {
    /// Connections that each worker can remember (`flows.max`).
    pub flows: u64,
    /// Workers; none: as many as `workers: auto` makes.
    pub workers: Option<usize>,
    /// CPUs of the workers (`workers` as a list); empty: left to the machine.
    pub cpus: Vec<u32>,
    /// The uplink's interface or PCI address.
    pub uplink: Option<String>,
    /// The frame pool, in MiB.
    pub pool_mib: u64,
    /// 1 GB pages for others than `sluiced`, by node.
    pub gigantic: BTreeMap<u32, u64>,
    /// VFs, by the interface or PCI address of their PF.
    pub vfs: BTreeMap<String, u32>,
    /// Whether devices are to be taken by VFIO whatever else is asked for.
    pub vfio: bool,
    /// Ports that the kernel must not give to sockets (`masquerade.ports`): first and last.
    pub ports: Option<(u16, u16)>,
}

/// Why a configuration fits no such host.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WantedError {
    /// Workers cannot be placed.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// A PF that is not there.
    #[error("there is no network device {name}; this host has: {all}")]
    NoDevice {
        /// As it was asked for.
        name: String,
        /// What is there.
        all: String,
    },
    /// A node that is not there.
    #[error("there is no NUMA node {0}")]
    NoNode(u32),
}

/// The need of one NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeWanted {
    /// The kernel's number of the node.
    pub node: u32,
    /// CPUs of the workers there.
    pub workers: Vec<u32>,
    /// 2 MB pages of the frame pool.
    pub pool_pages: u64,
    /// 2 MB pages of the workers' flow tables.
    pub flow_pages: u64,
    /// 1 GB pages.
    pub gigantic: u64,
}

impl NodeWanted {
    /// All 2 MB pages of this node.
    pub fn pages(&self) -> u64 {
        self.pool_pages + self.flow_pages
    }
}

/// VFs wanted of a PF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VfsWanted {
    /// Address of the PF.
    pub pf: String,
    /// Its interface, where it has one.
    pub interface: Option<String>,
    /// How many.
    pub count: u32,
    /// How VFs of it are taken; none for a device that is not known.
    pub method: Option<Method>,
}

/// The whole need.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// By node; nodes that nothing is wanted of are left out.
    pub nodes: Vec<NodeWanted>,
    /// By PF.
    pub vfs: Vec<VfsWanted>,
    /// Whether `vfio-pci` is needed.
    pub vfio: bool,
    /// Ports to be left alone: first and last.
    pub ports: Option<(u16, u16)>,
    /// What is bad about the workers' places.
    pub problems: Vec<String>,
}

/// 2 MB pages of one worker's flow tables, for `flows` connections of each family.
pub fn flow_pages(flows: u64) -> u64 {
    let buckets = (flows * 2 * 100).div_ceil(8 * 72).max(2) * 64;
    2 * buckets.div_ceil(PAGE) + (flows * 2 * 64).div_ceil(PAGE) + (flows * 2 * 128).div_ceil(PAGE)
}

/// How VFs of a PF are taken: as the PF itself is, or as the VFs that are there.
fn method(pf: &NetDevice, machine: &Machine) -> Option<Method> {
    let of = |d: &NetDevice| devices::kind(d.vendor, d.device).map(|k| k.method);
    let vf = machine.devices.iter().find(|d| d.pf() == Some(&pf.address));
    vf.and_then(of).or_else(|| of(pf))
}

/// What `configuration` needs of this host.
pub fn wanted(configuration: &Configuration, machine: &Machine) -> Result<Wanted, WantedError> {
    let uplink = configuration.uplink.as_deref().and_then(|name| machine.device(name));
    let wish = Wish {
        cpus: configuration.cpus.clone(),
        count: configuration.workers,
        node: uplink.and_then(|d| d.node),
        cpuset: None,
    };
    let Placement { seats, problems } = place(machine, &wish)?;
    let mut nodes: BTreeMap<u32, NodeWanted> = BTreeMap::new();
    for seat in &seats {
        let node = nodes.entry(seat.node).or_insert_with(|| NodeWanted { node: seat.node, ..NodeWanted::default() });
        node.workers.push(seat.cpu);
        node.flow_pages += flow_pages(configuration.flows);
    }
    if let Some(home) = wish.node.or(seats.first().map(|s| s.node)) {
        let node = nodes.entry(home).or_insert_with(|| NodeWanted { node: home, ..NodeWanted::default() });
        node.pool_pages = (configuration.pool_mib << 20).div_ceil(PAGE);
    }
    for (&id, &pages) in &configuration.gigantic {
        if !machine.nodes.iter().any(|n| n.id == id) {
            return Err(WantedError::NoNode(id));
        }
        nodes.entry(id).or_insert_with(|| NodeWanted { node: id, ..NodeWanted::default() }).gigantic = pages;
    }
    for node in nodes.values_mut() {
        node.workers.sort_unstable();
    }
    let mut vfs = Vec::new();
    for (name, &count) in &configuration.vfs {
        let Some(pf) = machine.device(name) else {
            return Err(WantedError::NoDevice { name: name.clone(), all: known(machine) });
        };
        let interface = pf.interfaces.first().map(|i| i.name.clone());
        // What can have no VFs needs no driver for them.
        let none = matches!(pf.function, Function::Physical { total_vfs: 0, .. });
        let method = if none { None } else { method(pf, machine) };
        vfs.push(VfsWanted { pf: pf.address.clone(), interface, count, method });
    }
    let vfio = configuration.vfio || vfs.iter().any(|v| v.count > 0 && v.method == Some(Method::VfioPci));
    Ok(Wanted { nodes: nodes.into_values().collect(), vfs, vfio, ports: configuration.ports, problems })
}

/// The devices that can be named, for a message.
fn known(machine: &Machine) -> String {
    let pfs = machine.devices.iter().filter(|d| matches!(d.function, Function::Physical { .. }));
    let names: Vec<String> = pfs
        .map(|d| match d.interfaces.first() {
            Some(interface) => format!("{} ({})", interface.name, d.address),
            None => d.address.clone(),
        })
        .collect();
    if names.is_empty() { "none on the PCI bus".to_owned() } else { names.join(", ") }
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
