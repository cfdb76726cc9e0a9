//! The frontends of all Services, dealt out to shards; only shards that a change touches are built again.
//!
//! Owner: the control thread. Invariants: a frontend belongs to the Service whose cluster address it is, else to the
//! first one by name that claims it as a node port, a load balancer's or an external address (so that nobody takes a
//! cluster address by naming it); every other claim is a [`Finding`]; a shard whose Services did not change is the same `Arc`; a version slot's value follows the
//! content of its Services, and is 0 only where there are none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_tables::services::{FrontendKind, SHARDS, Shard, VERSION_SLOTS, shard_of};
use sluice_tables::stable_hash::stamp;
use sluice_tables::{Address, FrontendKey, Services};

use super::Finding;
use super::services::CompiledService;
use super::steering::Reach;
use crate::model::NamespacedName;

/// A compiled Service with what is asked of all of them at each change, side by side in memory.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub service: Arc<CompiledService>,
    shards: ShardSet,
    slot: u16,
    pub has_findings: bool,
    /// It asks for direct return.
    pub direct: bool,
    /// It has a health-check port.
    pub has_health_check: bool,
    /// It has node ports.
    pub has_node_ports: bool,
}

impl Entry {
    pub fn new(service: CompiledService) -> Entry {
        let mut shards = ShardSet::default();
        service.frontends.iter().for_each(|(key, _)| shards.insert(shard_of(key)));
        service.addresses.keys().for_each(|address| shards.insert(shard_of_address(*address)));
        let (slot, has_findings) = (service.slot, !service.findings.is_empty());
        let direct = service.frontends.iter().any(|(_, f)| f.direct);
        let has_health_check = service.health.is_some();
        let has_node_ports = service.frontends.iter().any(|(_, f)| f.kind == FrontendKind::NodePort);
        let service = Arc::new(service);
        Entry { service, shards, slot, has_findings, direct, has_health_check, has_node_ports }
    }
}

/// A Service that came, went or changed.
#[derive(Debug)]
pub(crate) struct Change {
    pub old: Option<Entry>,
    pub new: Option<Entry>,
}

/// A set of shard numbers.
#[derive(Clone, Copy, Debug, Default)]
struct ShardSet([u64; SHARDS / 64]);

impl ShardSet {
    fn insert(&mut self, shard: usize) {
        self.0[shard / 64 % (SHARDS / 64)] |= 1 << (shard % 64);
    }

    fn has(&self, shard: usize) -> bool {
        self.0[shard / 64 % (SHARDS / 64)] & 1 << (shard % 64) != 0
    }

    fn meets(&self, other: &ShardSet) -> bool {
        self.0.iter().zip(other.0).any(|(a, b)| a & b != 0)
    }

    fn add(&mut self, other: &ShardSet) {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a |= b);
    }
}

/// A claim on a frontend that another Service has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lost {
    key: FrontendKey,
    winner: NamespacedName,
    loser: NamespacedName,
}

/// Shards with what was decided about them.
#[derive(Clone, Debug)]
pub(crate) struct Shards {
    shards: Vec<Arc<Shard>>,
    lost: Vec<Vec<Lost>>,
    versions: Arc<Vec<u32>>,
    /// Addresses and ports at which any of them is reached.
    pub reach: Arc<Reach>,
}

impl Default for Shards {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Shards {
            shards: vec![empty; SHARDS],
            lost: vec![Vec::new(); SHARDS],
            versions: Arc::new(vec![0; VERSION_SLOTS]),
            reach: Arc::default(),
        }
    }
}

impl Shards {
    /// All shards, by name of the Services in `compiled`; those that `changes` do not touch are taken from `previous`.
    pub fn build(compiled: &[Entry], changes: &[Change], previous: Option<&Shards>) -> Shards {
        let mut all = previous.cloned().unwrap_or_default();
        let touched = || changes.iter().flat_map(|change| change.old.iter().chain(&change.new));
        let mut dirty = ShardSet::default();
        touched().for_each(|entry| dirty.add(&entry.shards));
        let mut slots: BTreeSet<u16> = touched().map(|entry| entry.slot).collect();
        if slots.is_empty() {
            return all;
        }
        let mut fresh: Vec<Option<(Shard, Vec<Lost>)>> =
            (0..SHARDS).map(|at| dirty.has(at).then(Default::default)).collect();
        fill(&mut fresh, compiled.iter().filter(|entry| entry.shards.meets(&dirty)));
        let mut same_reach = true;
        let mut losers = BTreeSet::new();
        for (at, (shard, lost)) in fresh.into_iter().enumerate().filter_map(|(at, made)| Some((at, made?))) {
            same_reach &= Reach::is_same(&all.shards[at], &shard);
            if all.lost[at] != lost {
                losers.extend(all.lost[at].iter().chain(&lost).map(|l| l.loser.clone()));
            }
            all.shards[at] = Arc::new(shard);
            all.lost[at] = lost;
        }
        for loser in losers {
            slots.extend(find(compiled, &loser).map(|entry| entry.slot));
        }
        all.versions = Arc::new(versions(&all, compiled, &slots));
        if !same_reach {
            all.reach = Arc::new(Reach::of(&all.shards));
        }
        all
    }

    pub fn services(&self) -> Services {
        Services { shards: self.shards.clone(), versions: self.versions.clone() }
    }

    pub fn findings(&self) -> impl Iterator<Item = Finding> + '_ {
        self.lost.iter().flatten().map(|lost| {
            let port = lost.key.port;
            let what = match lost.key.address.bits() {
                0 | 0xffff_0000_0000 => format!("node port {port}"),
                _ => format!("{} port {port}", lost.key.address),
            };
            let why = format!("{what} belongs to Service {} already; not programmed for this one", lost.winner);
            Finding { kind: "Service", name: lost.loser.to_string(), field: "spec.ports", why }
        })
    }
}

fn find<'a>(compiled: &'a [Entry], name: &NamespacedName) -> Option<&'a Entry> {
    compiled.get(compiled.binary_search_by(|entry| entry.service.name.cmp(name)).ok()?)
}

/// Deals the frontends out, own addresses first.
fn fill<'a>(fresh: &mut [Option<(Shard, Vec<Lost>)>], entries: impl Iterator<Item = &'a Entry> + Clone) {
    let mut owners: hashbrown::HashMap<FrontendKey, &NamespacedName> = hashbrown::HashMap::new();
    for own_address in [true, false] {
        for service in entries.clone().map(|entry| &entry.service) {
            for (key, frontend) in &service.frontends {
                if (frontend.kind == FrontendKind::ClusterIp) != own_address {
                    continue;
                }
                let Some(Some((shard, lost))) = fresh.get_mut(shard_of(key)) else { continue };
                match owners.get(key) {
                    None => {
                        owners.insert(*key, &service.name);
                        shard.frontends.insert(*key, frontend.clone());
                    }
                    Some(winner) => {
                        lost.push(Lost { key: *key, winner: (*winner).clone(), loser: service.name.clone() });
                    }
                }
            }
        }
    }
    for (address, kind) in entries.flat_map(|entry| &entry.service.addresses) {
        if let Some(Some((shard, _))) = fresh.get_mut(shard_of_address(*address)) {
            shard.addresses.entry(*address).or_insert(*kind);
        }
    }
}

fn shard_of_address(address: Address) -> usize {
    shard_of(&FrontendKey { address, protocol: 0, port: 0 })
}

/// The versions with those of `slots` made anew.
fn versions(all: &Shards, compiled: &[Entry], slots: &BTreeSet<u16>) -> Vec<u32> {
    let mut losses: BTreeMap<&NamespacedName, Vec<FrontendKey>> = BTreeMap::new();
    for lost in all.lost.iter().flatten() {
        losses.entry(&lost.loser).or_default().push(lost.key);
    }
    let mut versions = all.versions.to_vec();
    let mut wanted = vec![false; VERSION_SLOTS];
    for slot in slots {
        wanted[usize::from(*slot) % VERSION_SLOTS] = true;
        versions[usize::from(*slot) % VERSION_SLOTS] = 0;
    }
    for Entry { service, slot, .. } in compiled {
        let at = usize::from(*slot) % VERSION_SLOTS;
        if wanted[at] {
            versions[at] = stamp(&(versions[at], &service.name, service.content, losses.get(&service.name)));
        }
    }
    versions
}
