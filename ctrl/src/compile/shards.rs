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
use crate::model::NamespacedName;

type Compiled = BTreeMap<NamespacedName, Arc<CompiledService>>;

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
}

impl Shards {
    pub fn build(compiled: &Compiled, previous: Option<(&Compiled, &Shards)>) -> Shards {
        let dirty = dirty(compiled, previous.map(|(old, _)| old));
        let empty = Arc::new(Shard::default());
        let (mut shards, mut lost) = match previous {
            Some((_, old)) => (old.shards.clone(), old.lost.clone()),
            None => (vec![empty; SHARDS], vec![Vec::new(); SHARDS]),
        };
        if dirty.is_empty() {
            let versions = previous.map_or_else(|| Arc::new(vec![0; VERSION_SLOTS]), |(_, old)| old.versions.clone());
            return Shards { shards, lost, versions };
        }
        let mut fresh: BTreeMap<usize, (Shard, Vec<Lost>)> = dirty.iter().map(|at| (*at, Default::default())).collect();
        let mut owners: BTreeMap<FrontendKey, &NamespacedName> = BTreeMap::new();
        let all = || compiled.values().flat_map(|service| service.frontends.iter().map(move |f| (service, f)));
        for own_address in [true, false] {
            for (service, (key, frontend)) in all() {
                if (frontend.kind == FrontendKind::ClusterIp) != own_address {
                    continue;
                }
                let Some((shard, lost)) = fresh.get_mut(&shard_of(key)) else { continue };
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
        for (address, kind) in compiled.values().flat_map(|service| &service.addresses) {
            if let Some((shard, _)) = fresh.get_mut(&shard_of_address(*address)) {
                shard.addresses.entry(*address).or_insert(*kind);
            }
        }
        for (at, (shard, claims)) in fresh {
            shards[at] = Arc::new(shard);
            lost[at] = claims;
        }
        let versions = versions(compiled, &lost);
        Shards { shards, lost, versions: Arc::new(versions) }
    }

    pub fn services(&self) -> Services {
        Services { shards: self.shards.clone(), versions: self.versions.clone() }
    }

    pub fn findings(&self) -> impl Iterator<Item = Finding> + '_ {
        self.lost.iter().flatten().map(|lost| {
            let (address, port) = (lost.key.address, lost.key.port);
            let why = format!(
                "{address} port {port} belongs to Service {} already; not programmed for this one",
                lost.winner
            );
            Finding { kind: "Service", name: lost.loser.to_string(), field: "spec.ports", why }
        })
    }
}

/// Shards that hold something of a Service that came, went or changed.
fn dirty(compiled: &Compiled, previous: Option<&Compiled>) -> BTreeSet<usize> {
    let none = Compiled::new();
    let previous = previous.unwrap_or(&none);
    let changed = |a: &Compiled, b: &Compiled| -> Vec<Arc<CompiledService>> {
        let differs = |s: &&Arc<CompiledService>| b.get(&s.name).is_none_or(|other| !Arc::ptr_eq(s, other));
        a.values().filter(differs).cloned().collect()
    };
    let both = [changed(compiled, previous), changed(previous, compiled)].concat();
    let frontends = both.iter().flat_map(|s| s.frontends.iter().map(|(key, _)| shard_of(key)));
    let addresses = both.iter().flat_map(|s| s.addresses.keys().map(|address| shard_of_address(*address)));
    frontends.chain(addresses).collect()
}

fn shard_of_address(address: Address) -> usize {
    shard_of(&FrontendKey { address, protocol: 0, port: 0 })
}

fn versions(compiled: &Compiled, lost: &[Vec<Lost>]) -> Vec<u32> {
    let mut losses: BTreeMap<&NamespacedName, Vec<FrontendKey>> = BTreeMap::new();
    for lost in lost.iter().flatten() {
        losses.entry(&lost.loser).or_default().push(lost.key);
    }
    let mut versions = vec![0; VERSION_SLOTS];
    for service in compiled.values() {
        if let Some(version) = versions.get_mut(usize::from(service.slot)) {
            *version = stamp(&(*version, &service.name, service.content, losses.get(&service.name)));
        }
    }
    versions
}
