//! Services: every address and port a client may connect to, with the backends this node sends it to.
//!
//! Owner: the control thread. Source: core/v1 `Service`. Invariants: what is compiled of a Service depends on that
//! Service, its slices and [`Surroundings`] alone, and is kept as long as these do not change; backend sets with equal
//! members are one. Headless, ExternalName and other proxies' Services give nothing. `spec.externalIPs` may be written by
//! whoever may create a Service (CVE-2020-8554): they never take an address of the cluster's own ranges.
//! Cost: a pointer comparison for each Service and slice, a compilation for those that changed.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;
use sluice_tables::services::{ClientAffinity, FrontendKind, VERSION_SLOTS};
use sluice_tables::stable_hash::{StableHasher, stable_hash};
use sluice_tables::{Address, Backend, BackendSet, Frontend, FrontendKey, Lpm, Prefix, Services, TableError};

use super::changes::Seen;
use super::endpoints::{Endpoints, Place};
use super::health::HealthCheck;
use super::shards::{Change, Entry, Shards};
use super::topology::Topology;
use super::{Context, Finding};
use crate::model::{EndpointSlice, Family, NamespacedName, Service, ServiceKind, TrafficPolicy};

/// What of the cluster, besides itself and its slices, the compiled form of a Service depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Surroundings {
    node: String,
    zone: Option<String>,
    /// Addresses of nodes: a Service that claims one gets its own ports there and nothing else.
    node_addresses: BTreeSet<IpAddr>,
    /// Networks of pods and Services, which no external address may lie in.
    inside: BTreeSet<IpNet>,
    /// Whether external addresses are programmed at all.
    external_ips: bool,
}

/// Addresses of pods, as far as Services have to know them.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodAddresses {
    /// At which this node's pods and the node itself answer.
    pub here: HashSet<IpAddr>,
    /// Of all pods.
    pub all: HashSet<IpAddr>,
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
    /// What of it could not be programmed.
    pub findings: Vec<Finding>,
    pub health: Option<HealthCheck>,
    /// How hints are used, by family and Service port.
    pub topology: Vec<(Family, Arc<str>, Topology)>,
    /// Endpoints that name no node, and whether they were found to be here.
    guesses: BTreeMap<IpAddr, bool>,
    /// Addresses it asks for, and whether a pod has them.
    claims: Vec<(IpAddr, bool)>,
}

/// What one compilation leaves for the next.
#[derive(Clone, Debug)]
pub(crate) struct ServiceState {
    surroundings: Arc<Surroundings>,
    pods: Arc<PodAddresses>,
    seen: Seen,
    /// By name.
    pub compiled: Vec<Entry>,
    shards: Shards,
}

impl ServiceState {
    /// Services with node ports, by name.
    pub fn with_node_ports<'a>(&'a self, cluster: &'a crate::model::Cluster) -> impl Iterator<Item = &'a Service> {
        let exposed = self.compiled.iter().filter(|entry| entry.has_node_ports);
        exposed.filter_map(|entry| cluster.services.get(&entry.service.name)).map(AsRef::as_ref)
    }

    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    pub fn findings(&self) -> impl Iterator<Item = Finding> + '_ {
        let own = self.compiled.iter().filter(|e| e.has_findings).flat_map(|e| &e.service.findings).cloned();
        own.chain(self.shards.findings())
    }
}

pub(crate) fn surroundings(context: &Context<'_>) -> Surroundings {
    Surroundings {
        node: context.node.name.clone(),
        zone: context.node.zone().map(str::to_owned),
        node_addresses: context.cluster.nodes.values().flat_map(|n| node_addresses(n)).collect(),
        inside: inside(context),
        external_ips: context.knobs.external_ips,
    }
}

/// Addresses of pods that Services ask about.
pub(crate) fn pod_addresses(context: &Context<'_>) -> PodAddresses {
    let pods = context.directory.local().flat_map(|(known, _)| known.addresses.iter().copied());
    PodAddresses {
        here: pods.chain(node_addresses(context.node)).collect(),
        all: context.directory.pods.values().flat_map(|known| known.addresses.iter().copied()).collect(),
    }
}

/// So many changed Services look for their slices one by one.
const FEW: usize = 8;

/// Services and slices that there are now, and what is new of them.
pub(crate) struct News {
    seen: Seen,
    changed: Option<HashSet<NamespacedName>>,
}

impl News {
    pub fn since(previous: Option<&ServiceState>, cluster: &crate::model::Cluster) -> News {
        let seen = Seen::of(cluster);
        News { changed: previous.map(|before| before.seen.changed(&seen)), seen }
    }

    /// Services that changed, or whose slices did; none where there is nothing to compare with.
    pub fn changed(&self) -> Option<&HashSet<NamespacedName>> {
        self.changed.as_ref()
    }
}

pub(crate) fn compile(
    cluster: &crate::model::Cluster,
    surroundings: &Arc<Surroundings>,
    pods: &Arc<PodAddresses>,
    previous: Option<&ServiceState>,
    News { seen, changed }: News,
) -> Result<(Services, ServiceState), TableError> {
    let previous = previous.filter(|p| p.surroundings == *surroundings);
    let mut names =
        changed.filter(|_| previous.is_some()).unwrap_or_else(|| cluster.services.keys().cloned().collect());
    if let Some(before) = previous.filter(|p| !Arc::ptr_eq(&p.pods, pods)) {
        let moved = before.compiled.iter().filter(|entry| !entry.service.still_stands(pods));
        names.extend(moved.map(|entry| entry.service.name.clone()));
    }
    let mut slices: HashMap<(&str, &str), Vec<&EndpointSlice>> =
        names.iter().map(|n| ((n.namespace.as_str(), n.name.as_str()), Vec::new())).collect();
    if names.len() <= FEW {
        for name in &names {
            let list = slices.entry((name.namespace.as_str(), name.name.as_str())).or_default();
            list.extend(cluster.slices_of(name).map(AsRef::as_ref));
        }
    } else {
        for slice in cluster.endpoint_slices.values() {
            let Some(service) = &slice.service else { continue };
            if let Some(list) = slices.get_mut(&(slice.name.namespace.as_str(), service.as_str())) {
                list.push(slice);
            }
        }
    }
    let mut compiled = previous.map(|p| p.compiled.clone()).unwrap_or_default();
    let mut changes = Vec::new();
    let mut ordered: Vec<&NamespacedName> = names.iter().collect();
    ordered.sort_unstable();
    for name in ordered {
        let slices = slices.get(&(name.namespace.as_str(), name.name.as_str())).map_or(&[][..], Vec::as_slice);
        let at = compiled.binary_search_by(|entry: &Entry| entry.service.name.cmp(name));
        let old = at.ok().and_then(|at| compiled.get(at)).cloned();
        let served = cluster.services.get(name).filter(|s| s.is_served());
        let new = match served {
            Some(service) => {
                let before = old.as_ref().map(|entry| entry.service.as_ref());
                Some(Entry::new(CompiledService::new(service, slices, surroundings, pods, before)?))
            }
            None => None,
        };
        match (at, &new) {
            (Ok(at), Some(entry)) => compiled[at] = entry.clone(),
            (Ok(at), None) => drop(compiled.remove(at)),
            (Err(at), Some(entry)) => compiled.insert(at, entry.clone()),
            (Err(_), None) => {}
        }
        changes.push(Change { old, new });
    }
    let shards = Shards::build(&compiled, &changes, previous.map(|p| &p.shards));
    let services = shards.services();
    let (surroundings, pods) = (surroundings.clone(), pods.clone());
    Ok((services, ServiceState { surroundings, pods, seen, compiled, shards }))
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

impl CompiledService {
    fn new(
        service: &Arc<Service>,
        slices: &[&EndpointSlice],
        around: &Surroundings,
        pods: &PodAddresses,
        old: Option<&CompiledService>,
    ) -> Result<CompiledService, TableError> {
        let is_here = |ip: IpAddr| pods.here.contains(&ip);
        let place = Place { node: &around.node, zone: around.zone.as_deref(), is_here: &is_here };
        let slot = 1 + (stable_hash(service.name.to_string().as_bytes()) % (VERSION_SLOTS as u64 - 1)) as u16;
        let mut sets = Sets::after(old);
        let (mut frontends, mut topology) = (Vec::new(), Vec::new());
        let mut findings = refused_external_ips(service, around);
        let mut claims: Vec<(IpAddr, bool)> = Vec::new();
        let mut free = |ip: IpAddr, field: &'static str| {
            let taken = pods.all.contains(&ip);
            if !claims.iter().any(|(known, _)| *known == ip) {
                claims.push((ip, taken));
                if taken {
                    let why = format!("{ip} is a pod's address; not programmed for this Service");
                    findings.push(Finding { kind: "Service", name: service.name.to_string(), field, why });
                }
            }
            !taken
        };
        for family in [Family::V4, Family::V6] {
            let Some(cluster_ip) = service.cluster_ip(family) else { continue };
            let ranges = source_ranges(service, family);
            for port in &service.ports {
                let endpoints =
                    Endpoints::collect(slices.iter().copied(), family, port, service.publish_not_ready, &place);
                let (cluster, hints) = endpoints.cluster(&place, service.distribution.is_some());
                let name: Arc<str> = format!("{}:{}/{}", service.name, port.port, port.protocol).into();
                topology.push((family, name.clone(), hints));
                let make = Make { service, slot, name, endpoints: &endpoints, cluster, local: endpoints.local() };
                let mut add = |address: Address, number: u16, frontend: Frontend| {
                    frontends.push((FrontendKey { address, protocol: port.protocol.number(), port: number }, frontend));
                };
                if free(cluster_ip, "spec.clusterIPs") {
                    add(cluster_ip.into(), port.port, make.cluster_ip(&mut sets)?);
                }
                if matches!(service.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer)
                    && let Some(number) = port.node_port
                {
                    add(unspecified(family), number, make.external(FrontendKind::NodePort, None, &mut sets)?);
                }
                for ip in service.external_ips.iter().filter(|ip| Family::of(ip) == family) {
                    if around.may_be_external(*ip) && free(*ip, "spec.externalIPs") {
                        add((*ip).into(), port.port, make.external(FrontendKind::ExternalIp, None, &mut sets)?);
                    }
                }
                if service.kind == ServiceKind::LoadBalancer {
                    let ours = service.load_balancer.iter().filter(|a| Family::of(&a.ip) == family && !a.proxied);
                    for address in ours {
                        if !free(address.ip, "status.loadBalancer.ingress") {
                            continue;
                        }
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
        let guesses = unplaced.filter_map(|e| e.addresses.first()).map(|ip| (*ip, is_here(*ip))).collect();
        Ok(CompiledService {
            content: content(&frontends),
            health: HealthCheck::of(service, slices, &place),
            name: service.name.clone(),
            frontends,
            addresses,
            slot,
            findings,
            topology,
            guesses,
            claims,
        })
    }

    /// Whether what was assumed of pods' addresses still holds.
    fn still_stands(&self, pods: &PodAddresses) -> bool {
        self.guesses.iter().all(|(ip, is)| pods.here.contains(ip) == *is)
            && self.claims.iter().all(|(ip, taken)| pods.all.contains(ip) == *taken)
    }
}

fn refused_external_ips(service: &Service, around: &Surroundings) -> Vec<Finding> {
    let refused = service.external_ips.iter().filter(|ip| !around.may_be_external(**ip));
    let finding = |ip: &IpAddr| {
        let why = match around.external_ips {
            true => format!("{ip} is an address of the cluster's own; not programmed"),
            false => format!("{ip} is not programmed: services.external_ips is off"),
        };
        Finding { kind: "Service", name: service.name.to_string(), field: "spec.externalIPs", why }
    };
    refused.map(finding).collect()
}

/// Everything that makes one Service port's frontends.
struct Make<'a> {
    service: &'a Service,
    slot: u16,
    name: Arc<str>,
    endpoints: &'a Endpoints<'a>,
    cluster: Vec<Backend>,
    local: Vec<Backend>,
}

impl Make<'_> {
    /// The cluster address: internalTrafficPolicy counts for every client.
    fn cluster_ip(&self, sets: &mut Sets) -> Result<Frontend, TableError> {
        let only_local = self.service.internal_traffic == TrafficPolicy::Local;
        let local_empty = only_local && self.local.is_empty() && !self.cluster.is_empty();
        let set = sets.get(if only_local { &self.local } else { &self.cluster })?;
        Ok(self.frontend(FrontendKind::ClusterIp, set.clone(), set, [local_empty; 2], None))
    }

    /// An address for clients outside: externalTrafficPolicy counts for them, pods and nodes may use all endpoints.
    fn external(
        &self,
        kind: FrontendKind,
        ranges: Option<Arc<Lpm<()>>>,
        sets: &mut Sets,
    ) -> Result<Frontend, TableError> {
        let only_local = self.service.external_traffic == TrafficPolicy::Local;
        let local_empty = only_local && self.local.is_empty() && !self.cluster.is_empty();
        let internal = sets.get(&self.cluster)?;
        let external = sets.get(if only_local { &self.local } else { &self.cluster })?;
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
            name: self.name.clone(),
            slot: self.slot,
            kind,
            internal,
            external,
            alive: self.endpoints.alive(),
            internal_local_empty,
            external_local_empty,
            external_local: outside && self.service.external_traffic == TrafficPolicy::Local,
            affinity: self.service.affinity_seconds.map(|seconds| ClientAffinity {
                seconds,
                service: stable_hash(self.service.name.to_string().as_bytes()),
            }),
            direct: outside && self.service.direct_return,
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
    fn get(&mut self, backends: &[Backend]) -> Result<Arc<BackendSet>, TableError> {
        if let Some(set) = self.0.get(backends) {
            return Ok(set.clone());
        }
        let set = Arc::new(BackendSet::new(backends.to_vec())?);
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
    // Frontends of one Service share their sets, which are hashed once.
    let mut known: HashMap<*const (), u64> = HashMap::new();
    let mut once = |at: *const (), hash: &dyn Fn() -> u64| *known.entry(at).or_insert_with(hash);
    for (key, f) in frontends {
        key.hash(&mut hasher);
        f.name.hash(&mut hasher);
        f.kind.hash(&mut hasher);
        for set in [&f.internal, &f.external] {
            once(Arc::as_ptr(set).cast(), &|| stable_hash(&set.backends)).hash(&mut hasher);
        }
        let alive = || {
            let mut all: Vec<_> = f.alive.iter().collect();
            all.sort_unstable();
            stable_hash(&all)
        };
        once(Arc::as_ptr(&f.alive).cast(), &alive).hash(&mut hasher);
        (f.internal_local_empty, f.external_local_empty, f.external_local, f.affinity, f.direct).hash(&mut hasher);
        let ranges = f.source_ranges.as_ref().map(|r| r.entries());
        ranges.hash(&mut hasher);
    }
    hasher.finish()
}
