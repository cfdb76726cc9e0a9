//! A cluster read from manifests, and the tables its nodes would run on.
//!
//! What a real cluster gives its pods and hand-written manifests leave out is made up: a pod without a node stands on a
//! node of its own, a pod without addresses gets free ones at the end of its node's podCIDRs. Both are told as notes,
//! because rules on address blocks see them. Cost: one compilation for each node asked for.

use super::domains::DomainArgs;
use crate::cli::failure::Failure;
use crate::domain_names::Known;

use ipnet::IpNet;
use sluice_ctrl::compile::local::FIRST_POD_PORT;
use sluice_ctrl::compile::{LocalPod, LocalView, Replay, compile, derived_mac};
use sluice_ctrl::config::Config;
use sluice_ctrl::import::Defaults;
use sluice_ctrl::model::standalone::Standalone;
use sluice_ctrl::model::{Cluster, NamespacedName, Node};
use sluice_ctrl::source::manifests::ManifestSource;
use sluice_tables::Tables;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// Name of the node of pods that are on none; no real node can have it.
const NOWHERE: &str = "(none)";

/// The cluster, and its nodes' tables as they are needed.
pub struct Rehearsal {
    /// The cluster, completed.
    pub cluster: Cluster,
    /// What was made up, and what in the manifests was not understood.
    pub notes: Vec<String>,
    /// Addresses of domain names.
    pub domains: Known,
    config: Config,
    tables: RefCell<BTreeMap<String, Rc<Tables>>>,
}

impl Rehearsal {
    /// Reads a folder; `domains` says which addresses domain names have.
    pub fn read(folder: &Path, domains: &DomainArgs) -> Result<Rehearsal, Failure> {
        let domains = domains.read()?;
        let refused =
            |error| Failure::usage(format_args!("cannot read the manifests in {}: {error}", folder.display()));
        let snapshot = ManifestSource::new(folder).map_err(refused)?.snapshot();
        let mut notes: Vec<String> = snapshot.problems.iter().map(ToString::to_string).collect();
        // A file that cannot be read may hold the policy that decides: no verdict may be built on what is left.
        if let Some(problem) = snapshot.problems.first() {
            return Err(Failure::usage(problem));
        }
        let config = Config::builtin(NOWHERE);
        let standalone = |leases| Standalone {
            node: NOWHERE.to_owned(),
            service_cidrs: config.cidrs.services.clone(),
            node_ports: config.node_ports,
            leases,
        };
        // Once to see who lacks an address, and once more so that endpoints are derived with them.
        let build = |leases| Cluster::build(&snapshot.objects, &Defaults { standalone: Some(standalone(leases)) });
        let (first, _) = build(BTreeMap::new());
        let given = give_addresses(&first, &config, &mut notes);
        let (mut cluster, invalid) = build(given.leases);
        for (name, node) in given.nodes {
            if let Some(pod) = cluster.pods.get_mut(&name) {
                Arc::make_mut(pod).node = Some(node);
            }
        }
        if cluster.pods.values().any(|pod| pod.node.as_deref() == Some(NOWHERE)) {
            let node = nowhere(&cluster, &config);
            cluster.nodes.insert(node.name.clone(), Arc::new(node));
        }
        notes.extend(invalid.iter().map(ToString::to_string));
        notes.extend(domains.notes(&cluster));
        Ok(Rehearsal { cluster, notes, domains, config, tables: RefCell::default() })
    }

    /// Tables with every pod of the cluster on one node: what policy says of a pod does not depend on where it is.
    pub fn everywhere(&self) -> Result<Rc<Tables>, Failure> {
        let Some(node) = self.cluster.nodes.keys().next() else { return Ok(Rc::new(self.nobody())) };
        let failed = |error: &dyn std::fmt::Display| {
            Failure::usage(format_args!("the tables of the whole cluster cannot be made: {error}"))
        };
        let mut view = LocalView::derived(&self.cluster, node, &Replay::default()).map_err(|error| failed(&error))?;
        view.pods.clear();
        let standing = self.cluster.pods.values().filter(|pod| !pod.host_network && !pod.is_finished());
        for (at, pod) in standing.enumerate() {
            let port = u16::try_from(at + usize::from(FIRST_POD_PORT)).map_err(|_| failed(&"more than 65,533 pods"))?;
            let local = LocalPod {
                port,
                worker: 0,
                mac: derived_mac(&pod.addresses).unwrap_or_default(),
                addresses: pod.addresses.clone(),
                extra_sources: Vec::new(),
                mappings: Vec::new(),
            };
            view.pods.insert(pod.name.clone(), local);
        }
        let knobs = sluice_ctrl::compile::Knobs::from(&self.config);
        let compiled = compile(&self.cluster, &view, &knobs, None).map_err(|error| failed(&error))?;
        Ok(Rc::new(compiled.tables))
    }

    /// Tables of a cluster without nodes, which has no pods either.
    fn nobody(&self) -> Tables {
        let node = nowhere(&self.cluster, &self.config);
        let mut cluster = Cluster::default();
        cluster.nodes.insert(node.name.clone(), Arc::new(node));
        let knobs = sluice_ctrl::compile::Knobs::from(&self.config);
        let view = LocalView::derived(&cluster, NOWHERE, &Replay::default());
        let compiled = view.and_then(|view| compile(&cluster, &view, &knobs, None));
        compiled.map_or_else(|_| unreachable!("one node and nothing else compiles"), |compiled| compiled.tables)
    }

    /// The tables of a node.
    pub fn tables(&self, node: &str) -> Result<Rc<Tables>, Failure> {
        if let Some(known) = self.tables.borrow().get(node) {
            return Ok(known.clone());
        }
        let failed = |error| Failure::usage(format_args!("the tables of node {node} cannot be made: {error}"));
        let view = LocalView::derived(&self.cluster, node, &Replay::default()).map_err(failed)?;
        let compiled =
            compile(&self.cluster, &view, &sluice_ctrl::compile::Knobs::from(&self.config), None).map_err(failed)?;
        let tables = Rc::new(compiled.tables);
        self.tables.borrow_mut().insert(node.to_owned(), tables.clone());
        Ok(tables)
    }
}

#[derive(Default)]
struct Given {
    leases: BTreeMap<NamespacedName, Vec<IpAddr>>,
    /// Where pods stand; a lease alone would place them on this (that is, no) node.
    nodes: Vec<(NamespacedName, String)>,
}

/// Addresses for pods that have none, and a node for those on none.
fn give_addresses(cluster: &Cluster, config: &Config, notes: &mut Vec<String>) -> Given {
    let mut used: BTreeSet<IpAddr> = cluster.pods.values().flat_map(|pod| pod.addresses.iter().copied()).collect();
    let mut given = Given::default();
    for (name, pod) in &cluster.pods {
        if pod.is_finished() || pod.host_network {
            continue;
        }
        let node = pod.node.as_ref().and_then(|node| cluster.nodes.get(node));
        let place = node.map_or(NOWHERE, |node| &node.name).to_owned();
        if pod.node.as_ref() != Some(&place) {
            notes.push(match &pod.node {
                Some(gone) => format!("{name} is on node {gone}, which is not in the manifests"),
                None => format!("{name} is on no node"),
            });
        }
        given.nodes.push((name.clone(), place));
        if !pod.addresses.is_empty() {
            continue;
        }
        let own = node.map(|node| node.pod_cidrs.clone()).filter(|cidrs| !cidrs.is_empty());
        let ranges = own.unwrap_or_else(|| config.cidrs.pods.clone());
        let addresses: Vec<IpAddr> = ranges.iter().filter_map(|range| last_free(range, &used)).collect();
        used.extend(&addresses);
        let list: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        notes.push(format!("{name} has no address; {} stands in", list.join(" and ")));
        given.leases.insert(name.clone(), addresses);
    }
    given
}

/// The highest address that is free; the last one of an IPv4 network (its broadcast address) is never given.
fn last_free(range: &IpNet, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let below = |address: IpAddr| match address {
        IpAddr::V4(a) => u32::from(a).checked_sub(1).map(|a| IpAddr::V4(a.into())),
        IpAddr::V6(a) => u128::from(a).checked_sub(1).map(|a| IpAddr::V6(a.into())),
    };
    let mut at = below(range.broadcast())?;
    while range.contains(&at) {
        if !used.contains(&at) {
            return Some(at);
        }
        at = below(at)?;
    }
    None
}

/// The node of pods that are on none. Its address is of a network for documentation that no other node uses.
fn nowhere(cluster: &Cluster, config: &Config) -> Node {
    let taken: BTreeSet<IpAddr> = cluster.nodes.values().flat_map(|node| node.internal_ips.iter().copied()).collect();
    let free =
        |net: [u8; 3]| (1..255).map(|last| IpAddr::from([net[0], net[1], net[2], last])).find(|a| !taken.contains(a));
    Node {
        name: NOWHERE.to_owned(),
        labels: Default::default(),
        annotations: Default::default(),
        internal_ips: free([203, 0, 113]).into_iter().collect(),
        external_ips: Vec::new(),
        pod_cidrs: config.cidrs.pods.clone(),
        vtep_mac: None,
        ready: None,
        leaving: false,
    }
}
