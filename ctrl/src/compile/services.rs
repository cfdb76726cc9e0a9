//! Services: every address and port a client may connect to, with the backends this node sends it to.
//!
//! Owner: the control thread. Source: core/v1 `Service`. Invariants: what is compiled of a Service depends on that
//! Service, its slices and [`Surroundings`] alone, and is kept as long as these do not change; backend sets with equal
//! members are one. Headless, ExternalName and other proxies' Services give nothing. `spec.externalIPs` may be written by
//! whoever may create a Service (CVE-2020-8554): they never take an address of the cluster's own ranges.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice_tables::services::{ClientAffinity, FrontendKind, VERSION_SLOTS};
use sluice_tables::stable_hash::{StableHasher, stable_hash};
use sluice_tables::{Address, Backend, BackendSet, Frontend, FrontendKey, Lpm, Prefix, Services, TableError};

use super::endpoints::{Endpoints, Place};
use super::shards::Shards;
use super::{Context, Finding};
use crate::model::{EndpointSlice, Family, NamespacedName, Service, ServiceKind, ServicePort, TrafficPolicy};

/// What of the cluster, besides itself and its slices, the compiled form of a Service depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Surroundings {
    node: String,
    zone: Option<String>,
    /// Addresses of nodes: a Service that claims one gets its own ports there and nothing else.
    node_addresses: BTreeSet<IpAddr>,
    /// Networks of pods and Services, which no external address may lie in.
    inside: BTreeSet<IpNet>,
    /// Whether external addresses are programmed at all.
    external_ips: bool,
}

/// A Service as frontends.
#[derive(Debug)]
pub(crate) struct CompiledService {
    pub name: NamespacedName,
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// Addresses of which every port is this Service's business.
    pub addresses: BTreeMap<Address, FrontendKind>,
    /// Changes with anything above.
    pub content: u64,
    pub slot: u16,
    service: Arc<Service>,
    slices: Vec<Arc<EndpointSlice>>,
    /// Endpoints that name no node, and whether they were found to be here.
    guesses: BTreeMap<IpAddr, bool>,
}

/// What one compilation leaves for the next.
#[derive(Clone, Debug)]
pub(crate) struct ServiceState {
    surroundings: Surroundings,
    compiled: BTreeMap<NamespacedName, Arc<CompiledService>>,
    shards: Shards,
}

pub(crate) fn compile(
    context: &Context<'_>,
    previous: Option<&ServiceState>,
    invalid: &mut BTreeSet<Finding>,
) -> Result<(Services, ServiceState), TableError> {
    let surroundings = Surroundings {
        node: context.node.name.clone(),
        zone: context.node.zone().map(str::to_owned),
        node_addresses: context.cluster.nodes.values().flat_map(|n| node_addresses(n)).collect(),
        inside: inside(context),
        external_ips: context.knobs.external_ips,
    };
    let previous = previous.filter(|p| p.surroundings == surroundings);
    let mut slices: BTreeMap<(&str, &str), Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in context.cluster.endpoint_slices.values() {
        if let Some(service) = &slice.service {
            slices.entry((&slice.name.namespace, service)).or_default().push(slice.clone());
        }
    }
    let here = local_addresses(context);
    let mut compiled = BTreeMap::new();
    for (name, service) in context.cluster.services.iter().filter(|(_, s)| s.is_served()) {
        let slices = slices.remove(&(name.namespace.as_str(), name.name.as_str())).unwrap_or_default();
        let kept = previous.and_then(|p| p.compiled.get(name)).filter(|old| {
            old.service == *service
                && old.slices == slices
                && old.guesses.iter().all(|(ip, is)| here.contains(ip) == *is)
        });
        let now = match kept {
            Some(kept) => kept.clone(),
            None => {
                let old = previous.and_then(|p| p.compiled.get(name));
                Arc::new(CompiledService::new(service, slices, &surroundings, &here, old.map(Arc::as_ref))?)
            }
        };
        for refused in service.external_ips.iter().filter(|ip| !surroundings.may_be_external(**ip)) {
            let why = match surroundings.external_ips {
                true => format!("{refused} is an address of the cluster's own; not programmed"),
                false => format!("{refused} is not programmed: external addresses are switched off"),
            };
            invalid.insert(Finding { kind: "Service", name: name.to_string(), field: "spec.externalIPs", why });
        }
        compiled.insert(name.clone(), now);
    }
    let shards = Shards::build(&compiled, previous.map(|p| (&p.compiled, &p.shards)));
    invalid.extend(shards.findings());
    let services = shards.services();
    Ok((services, ServiceState { surroundings, compiled, shards }))
}

/// Networks in which every address is a pod's or a Service's.
fn inside(context: &Context<'_>) -> BTreeSet<IpNet> {
    let knobs = context.knobs.pod_ranges.iter().chain(&context.knobs.service_ranges);
    knobs.chain(context.cluster.nodes.values().flat_map(|n| &n.pod_cidrs)).copied().collect()
}

impl Surroundings {
    fn may_be_external(&self, address: IpAddr) -> bool {
        self.external_ips && !self.inside.iter().any(|net| net.contains(&address))
    }
}

/// All addresses that mean a node, as far as Services may not swallow them.
fn node_addresses(node: &crate::model::Node) -> impl Iterator<Item = IpAddr> + '_ {
    let own = node.internal_ips.iter().chain(&node.external_ips).copied();
    own.chain(super::routes::overlay_addresses(node))
}

/// Addresses at which this node's pods and the node itself answer.
fn local_addresses(context: &Context<'_>) -> BTreeSet<IpAddr> {
    let pods = context.directory.local().flat_map(|(known, _)| known.addresses.iter().copied());
    pods.chain(node_addresses(context.node)).collect()
}

impl CompiledService {
    fn new(
        service: &Arc<Service>,
        slices: Vec<Arc<EndpointSlice>>,
        around: &Surroundings,
        here: &BTreeSet<IpAddr>,
        old: Option<&CompiledService>,
    ) -> Result<CompiledService, TableError> {
        let is_here = |ip: IpAddr| here.contains(&ip);
        let place = Place { node: &around.node, zone: around.zone.as_deref(), is_here: &is_here };
        let slot = 1 + (stable_hash(service.name.to_string().as_bytes()) % (VERSION_SLOTS as u64 - 1)) as u16;
        let mut sets = Sets::after(old);
        let mut frontends = Vec::new();
        for family in [Family::V4, Family::V6] {
            let Some(cluster_ip) = service.cluster_ip(family) else { continue };
            let ranges = source_ranges(service, family);
            for port in &service.ports {
                let served = slices.iter().map(Arc::as_ref);
                let endpoints = Endpoints::collect(served, family, port, service.publish_not_ready, &place);
                let make = Make { service, slot, port, endpoints: &endpoints, place: &place };
                let mut add = |address: Address, number: u16, frontend: Frontend| {
                    frontends.push((FrontendKey { address, protocol: port.protocol.number(), port: number }, frontend));
                };
                add(cluster_ip.into(), port.port, make.cluster_ip(&mut sets)?);
                if matches!(service.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer)
                    && let Some(number) = port.node_port
                {
                    add(unspecified(family), number, make.external(FrontendKind::NodePort, None, &mut sets)?);
                }
                for ip in service.external_ips.iter().filter(|ip| Family::of(ip) == family) {
                    if around.may_be_external(*ip) {
                        add((*ip).into(), port.port, make.external(FrontendKind::ExternalIp, None, &mut sets)?);
                    }
                }
                if service.kind == ServiceKind::LoadBalancer {
                    let ours = service.load_balancer.iter().filter(|a| Family::of(&a.ip) == family && !a.proxied);
                    for address in ours {
                        let frontend = make.external(FrontendKind::LoadBalancer, ranges.clone(), &mut sets)?;
                        add(address.ip.into(), port.port, frontend);
                    }
                }
            }
        }
        frontends.sort_by_key(|(key, _)| *key);
        frontends.dedup_by_key(|(key, _)| *key);
        let addresses = frontends.iter().filter(|(_, f)| f.kind != FrontendKind::NodePort);
        let addresses = addresses.map(|(key, f)| (key.address, f.kind));
        let addresses = addresses.filter(|(a, _)| !around.node_addresses.contains(&IpAddr::from(*a))).collect();
        let unplaced = slices.iter().flat_map(|s| &s.endpoints).filter(|e| e.node.is_none());
        let guesses = unplaced.filter_map(|e| e.addresses.first()).map(|ip| (*ip, here.contains(ip))).collect();
        let content = content(&frontends);
        let (name, service) = (service.name.clone(), service.clone());
        Ok(CompiledService { name, frontends, addresses, content, slot, service, slices, guesses })
    }
}

/// Everything that makes one Service port's frontends.
struct Make<'a> {
    service: &'a Service,
    slot: u16,
    port: &'a ServicePort,
    endpoints: &'a Endpoints<'a>,
    place: &'a Place<'a>,
}

impl Make<'_> {
    /// The cluster address: internalTrafficPolicy counts for every client.
    fn cluster_ip(&self, sets: &mut Sets) -> Result<Frontend, TableError> {
        let (cluster, local) = (self.endpoints.cluster(self.place), self.endpoints.local());
        let only_local = self.service.internal_traffic == TrafficPolicy::Local;
        let local_empty = only_local && local.is_empty() && !cluster.is_empty();
        let set = sets.get(if only_local { local } else { cluster })?;
        Ok(self.frontend(FrontendKind::ClusterIp, set.clone(), set, [local_empty; 2], None))
    }

    /// An address for clients outside: externalTrafficPolicy counts for them, pods and nodes may use all endpoints.
    fn external(
        &self,
        kind: FrontendKind,
        ranges: Option<Arc<Lpm<()>>>,
        sets: &mut Sets,
    ) -> Result<Frontend, TableError> {
        let (cluster, local) = (self.endpoints.cluster(self.place), self.endpoints.local());
        let only_local = self.service.external_traffic == TrafficPolicy::Local;
        let local_empty = only_local && local.is_empty() && !cluster.is_empty();
        let internal = sets.get(cluster.clone())?;
        let external = sets.get(if only_local { local } else { cluster })?;
        Ok(self.frontend(kind, internal, external, [false, local_empty], ranges))
    }

    fn frontend(
        &self,
        kind: FrontendKind,
        internal: Arc<BackendSet>,
        external: Arc<BackendSet>,
        [internal_local_empty, external_local_empty]: [bool; 2],
        source_ranges: Option<Arc<Lpm<()>>>,
    ) -> Frontend {
        let outside = kind != FrontendKind::ClusterIp;
        Frontend {
            name: format!("{}:{}/{}", self.service.name, self.port.port, self.port.protocol).into(),
            slot: self.slot,
            kind,
            internal,
            external,
            alive: Arc::new(self.endpoints.all().collect()),
            internal_local_empty,
            external_local_empty,
            external_local: outside && self.service.external_traffic == TrafficPolicy::Local,
            affinity: self.service.affinity_seconds.map(|seconds| ClientAffinity {
                seconds,
                service: stable_hash(self.service.name.to_string().as_bytes()),
            }),
            source_ranges,
        }
    }
}

/// Backend sets of one Service, one per distinct membership; those of its previous form are used again.
struct Sets(BTreeMap<Vec<Backend>, Arc<BackendSet>>);

impl Sets {
    fn after(old: Option<&CompiledService>) -> Sets {
        let known = old.into_iter().flat_map(|o| &o.frontends).flat_map(|(_, f)| [&f.internal, &f.external]);
        Sets(known.map(|set| (set.backends.clone(), set.clone())).collect())
    }

    /// `backends` are sorted and distinct.
    fn get(&mut self, backends: Vec<Backend>) -> Result<Arc<BackendSet>, TableError> {
        if let Some(set) = self.0.get(&backends) {
            return Ok(set.clone());
        }
        let set = Arc::new(BackendSet::new(backends)?);
        self.0.insert(set.backends.clone(), set.clone());
        Ok(set)
    }
}

/// loadBalancerSourceRanges of a family. Ranges of the other family alone let nobody of this one in.
fn source_ranges(service: &Service, family: Family) -> Option<Arc<Lpm<()>>> {
    let ranges = service.source_ranges.as_ref()?.iter().filter(|net| Family::of_net(net) == family);
    Some(Arc::new(Lpm::from_entries(ranges.map(|net| (Prefix::from(*net), ())))))
}

fn unspecified(family: Family) -> Address {
    match family {
        Family::V4 => Address::v4([0; 4]),
        Family::V6 => Address::v6([0; 16]),
    }
}

/// A hash of everything a flow's fate depends on.
fn content(frontends: &[(FrontendKey, Frontend)]) -> u64 {
    let mut hasher = StableHasher::default();
    for (key, f) in frontends {
        key.hash(&mut hasher);
        f.name.hash(&mut hasher);
        f.kind.hash(&mut hasher);
        f.internal.backends.hash(&mut hasher);
        f.external.backends.hash(&mut hasher);
        let alive: BTreeSet<_> = f.alive.iter().collect();
        alive.hash(&mut hasher);
        (f.internal_local_empty, f.external_local_empty, f.external_local, f.affinity).hash(&mut hasher);
        let ranges = f.source_ranges.as_ref().map(|r| r.entries());
        ranges.hash(&mut hasher);
    }
    hasher.finish()
}
