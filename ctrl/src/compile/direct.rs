//! Direct return for the Services that ask for it: their frontends' tags, and a way for each of them to every node.
//!
//! Owner: the control thread. Source: the annotation `sluicegate.dev/direct-return` of a Service; `docs/adr/0018`.
//! Invariants: ways are numbered behind all others, in the order of frontends and nodes; a node whose tunnel is foreign
//! (its own MAC by annotation) gets none, since it could not read the tag.

use std::collections::BTreeSet;
use std::sync::Arc;

use sluice_tables::direct::Tag;
use sluice_tables::limits::MAX_HOPS;
use sluice_tables::services::FrontendKind;
use sluice_tables::{Direct, FrontendKey, HopId, HopKind, Hops, Services};

use super::Finding;
use super::shards::Entry;

/// All hops, those of direct return included, and the table of it.
pub(crate) fn compile(
    compiled: &[Entry],
    services: &Services,
    plain: &Arc<Hops>,
    tunnels: &[HopId],
    invalid: &mut BTreeSet<Finding>,
) -> (Arc<Hops>, Arc<Direct>) {
    let asking = || compiled.iter().filter(|entry| entry.direct).map(|entry| &entry.service);
    let mut frontends: BTreeSet<FrontendKey> = BTreeSet::new();
    for service in asking() {
        let external = service.frontends.iter().filter(|(_, f)| f.kind != FrontendKind::ClusterIp);
        // A frontend that another Service has is that one's to decide about.
        let own = external.filter(|(key, f)| services.frontend(key).is_some_and(|has| has.name == f.name));
        frontends.extend(own.map(|(key, _)| *key));
    }
    if frontends.is_empty() {
        return (plain.clone(), Arc::default());
    }
    if plain.len() + frontends.len() * tunnels.len() > MAX_HOPS {
        for service in asking() {
            let why = format!(
                "{} ways are more than fit; answered through the node that was asked",
                frontends.len() * tunnels.len()
            );
            let (name, field) = (service.name.to_string(), "metadata.annotations[sluicegate.dev/direct-return]");
            invalid.insert(Finding { kind: "Service", name, field, why });
        }
        return (plain.clone(), Arc::default());
    }
    let mut list: Vec<_> = plain.iter().cloned().collect();
    let mut ways = Vec::new();
    let mut tags = BTreeSet::new();
    for key in &frontends {
        let tag = Tag::of(key);
        if !tags.insert(tag) {
            continue;
        }
        for tunnel in tunnels {
            let Some(hop) = plain.get(*tunnel).filter(|hop| hop.kind == HopKind::Tunnel) else { continue };
            ways.push(((tag, *tunnel), HopId(list.len() as u16)));
            list.push(hop.with_inner_source(tag.mac()));
        }
    }
    (Arc::new(Hops::new(list)), Arc::new(Direct::new(frontends, ways)))
}
