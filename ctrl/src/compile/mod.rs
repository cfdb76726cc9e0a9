//! Compile: the cluster as one node must see it, turned into the tables its workers read.
//!
//! Owner: the control thread. Invariants: pure and deterministic (no clock, no I/O, no randomness; equal objects in any
//! order of events give byte-identical [`Tables::dump`]s); every limit of the tables is checked here, and what does not
//! fit is an error of the whole generation, so that the last good one stands; what cannot be programmed is reported as a
//! [`Finding`], never left out silently. Cost: one walk over the cluster; Services that did not change keep their
//! compiled form, so that Maglev tables are built for changed Services only, and where nothing but Services and their
//! endpoints changed nothing else is compiled at all.

pub mod carriers;
mod changes;
mod direct;
pub mod directory;
pub mod egress;
pub mod endpoints;
pub mod health;
pub mod hops;
pub mod host_ports;
mod inputs;
pub mod local;
pub mod policy;
pub mod redirects;
pub mod routes;
pub mod services;
pub mod settings;
pub mod shards;
pub mod sources;
mod stakes;
pub mod steering;
pub mod topology;

pub use health::HealthCheck;
pub use local::{HostPort, LocalPod, LocalView, PortMapping, Replay, Uplink, derived_mac};
pub use redirects::Redirect;
pub use settings::Knobs;
pub use steering::Steering;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_tables::{Egress, HopId, Hops, Identities, LocalNode, Pods, Policy, Routes, TableError, Tables};

use crate::carriers::Placement;
use crate::model::{Cluster, Family, Node};
use directory::Directory;

/// Why no tables came out; the last good generation stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The cluster has no Node object of this node's name (yet).
    #[error("node {0:?} is not in the cluster")]
    UnknownNode(String),
    /// Something does not fit into a table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Policies list more peers than memory is meant for.
    #[error(
        "the policies list {listed} classes of peers, the limit policy.listed_peers is {limit}; most of them {culprit}"
    )]
    PolicyTooWide {
        /// How many there are.
        listed: usize,
        /// The limit.
        limit: usize,
        /// The policy with the most.
        culprit: String,
    },
}

/// Something of the cluster that could not be programmed as it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Finding {
    /// Kind of the object, as `Service`.
    pub kind: &'static str,
    /// `ns/name`, or `name` for kinds without a namespace.
    pub name: String,
    /// Path of the field, as `spec.externalIPs`.
    pub field: &'static str,
    /// What is wrong and what happens instead.
    pub why: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}: {}: {}", self.kind, self.name, self.field, self.why)
    }
}

/// The result of one compilation.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What workers read; `generation` is 0 until the publisher stamps it.
    pub tables: Tables,
    /// What could not be programmed, sorted.
    pub invalid: Vec<Finding>,
    /// Neighbours on the uplink whose MAC is needed and not known.
    pub wanted_neighbours: BTreeSet<IpAddr>,
    /// What the uplink's XDP program takes for us.
    pub steering: Steering,
    /// Ports of the node's addresses whose connections the host itself must send to us.
    pub redirects: BTreeSet<Redirect>,
    /// Addresses that move between nodes, and the nodes that may carry each.
    pub placement: Placement,
    /// Health-check ports, by port; one Service each.
    pub health_checks: Vec<HealthCheck>,
    rest: Option<Arc<Rest>>,
    services: Option<services::ServiceState>,
    policy: Option<Arc<policy::PolicyState>>,
}

impl Compiled {
    /// How the hints of endpoints are used: Service, family, `ns/name:port/PROTO`, and what became of them.
    pub fn topology(&self) -> impl Iterator<Item = (Family, &str, &topology::Topology)> {
        let services = self.services.iter().flat_map(|state| &state.compiled);
        services.flat_map(|entry| &entry.service.topology).map(|(family, port, how)| (*family, port.as_ref(), how))
    }
}

/// Everything but Services, and what it was made of.
#[derive(Clone, Debug)]
pub(crate) struct Rest {
    inputs: inputs::Inputs,
    stakes: stakes::Stakes,
    node: Arc<LocalNode>,
    pods: Arc<Pods>,
    routes: Arc<Routes>,
    hops: Arc<Hops>,
    /// Ways to nodes that read our tags, by name.
    tunnels: Vec<HopId>,
    identities: Arc<Identities>,
    policy: Arc<Policy>,
    policy_state: Arc<policy::PolicyState>,
    egress: Arc<Egress>,
    wanted: BTreeSet<IpAddr>,
    invalid: BTreeSet<Finding>,
    placement: Placement,
    host_ports: Vec<host_ports::HostPort>,
    surroundings: Arc<services::Surroundings>,
    pod_addresses: Arc<services::PodAddresses>,
}

impl Rest {
    /// The same for a cluster in which at most labels of pods are others; `None` where that is not so, or a gateway picks
    /// pods by their labels.
    fn after(
        self: &Arc<Self>,
        cluster: &Cluster,
        local: &LocalView,
        knobs: &Knobs,
    ) -> Option<Result<Arc<Rest>, CompileError>> {
        let pods = match self.inputs.difference(cluster, local, knobs) {
            inputs::Difference::None => return Some(Ok(Arc::clone(self))),
            inputs::Difference::Labels(pods) if cluster.egress_gateways.is_empty() => pods,
            _ => return None,
        };
        let policy = match policy::relabelled(cluster, knobs, &pods, &self.policy_state)? {
            Ok(policy) => policy,
            Err(error) => return Some(Err(error)),
        };
        let rules = policy.by_port().map(|(port, rules)| {
            let extra_sources = self.pods.by_port(port).map_or(&[][..], |pod| &pod.extra_sources);
            (port, [rules.ingress, rules.egress], directory::version(rules.version, extra_sources))
        });
        Some(Ok(Arc::new(Rest {
            inputs: self.inputs.with_pods_of(cluster),
            pods: Arc::new(self.pods.under(rules)),
            identities: Arc::new(policy.identities),
            policy: Arc::new(policy.policy),
            policy_state: policy.state,
            ..(**self).clone()
        })))
    }
}

/// What every part of the compiler reads.
pub(crate) struct Context<'a> {
    pub cluster: &'a Cluster,
    pub local: &'a LocalView,
    pub knobs: &'a Knobs,
    pub node: &'a Node,
    pub directory: Directory<'a>,
}

impl Context<'_> {
    /// Every other node, by name.
    pub fn peers(&self) -> impl Iterator<Item = &Node> {
        self.cluster.nodes.values().map(Arc::as_ref).filter(|n| n.name != self.node.name)
    }
}

/// Compiles the cluster for the node of `local`. `previous` only saves work: the result is the same without it.
pub fn compile(
    cluster: &Cluster,
    local: &LocalView,
    knobs: &Knobs,
    previous: Option<&Compiled>,
) -> Result<Compiled, CompileError> {
    let node = cluster.nodes.get(&local.node).ok_or_else(|| CompileError::UnknownNode(local.node.clone()))?;
    let before = previous.and_then(|p| p.services.as_ref());
    let news = services::News::since(before, cluster);
    let known = previous
        .and_then(|p| p.rest.as_ref())
        .filter(|rest| news.changed().is_some_and(|changed| rest.stakes.stand(cluster, changed)));
    let rest = match known {
        Some(rest) => match rest.after(cluster, local, knobs) {
            Some(rest) => rest?,
            None => Arc::new(compile_rest(cluster, local, knobs, node, previous)?),
        },
        None => Arc::new(compile_rest(cluster, local, knobs, node, previous)?),
    };
    let (mut services, state) = services::compile(cluster, &rest.surroundings, &rest.pod_addresses, before, news)?;
    let reach = &state.shards().reach;
    let mut invalid = rest.invalid.clone();
    invalid.extend(state.findings());
    let (hops, direct) = direct::compile(&state.compiled, &services, &rest.hops, &rest.tunnels, &mut invalid);
    let host_ports = host_ports::program(knobs, node, &rest.host_ports, &mut services, &mut invalid)?;
    let steering = Steering::of(node, knobs, &rest, &host_ports, reach, previous.map(|p| &p.steering));
    let redirects = redirects::of(state.with_node_ports(cluster), node, &host_ports);
    let health_checks = health::ports(
        state.compiled.iter().filter(|e| e.has_health_check).filter_map(|e| e.service.health.as_ref()),
        &mut invalid,
    );
    let tables = Tables {
        generation: 0,
        settings: Arc::new(knobs.settings.clone()),
        node: rest.node.clone(),
        pods: rest.pods.clone(),
        routes: rest.routes.clone(),
        hops,
        services,
        direct,
        identities: rest.identities.clone(),
        policy: rest.policy.clone(),
        egress: rest.egress.clone(),
    };
    let policy_state = rest.policy_state.clone();
    Ok(Compiled {
        tables,
        invalid: invalid.into_iter().collect(),
        wanted_neighbours: rest.wanted.clone(),
        steering,
        redirects,
        placement: rest.placement.clone(),
        health_checks,
        rest: Some(rest),
        services: Some(state),
        policy: Some(policy_state),
    })
}

fn compile_rest(
    cluster: &Cluster,
    local: &LocalView,
    knobs: &Knobs,
    node: &Node,
    previous: Option<&Compiled>,
) -> Result<Rest, CompileError> {
    let mut invalid = BTreeSet::new();
    let directory = Directory::new(cluster, local, &knobs.pod_ranges, &mut invalid);
    let context = Context { cluster, local, knobs, node, directory };
    let stakes = stakes::Stakes::of(cluster);
    let moving = carriers::compile(&context, &stakes, &mut invalid);
    let plan = hops::plan(&context, &moving, &mut invalid)?;
    let (egress, gateways_used) = egress::compile(&context, &plan, &moving, &mut invalid);
    let routes = routes::compile(&context, &plan, &gateways_used, &mut invalid);
    let policy = policy::compile(&context, previous.and_then(|p| p.policy.as_deref()))?;
    let extra_sources = |known: &directory::Known<'_>| sources::of(&context, known, &mut invalid);
    let pods = context.directory.local_pods(&plan, &policy, extra_sources)?;
    Ok(Rest {
        inputs: inputs::Inputs::of(cluster, local, knobs),
        stakes,
        placement: moving.placement,
        host_ports: host_ports::of(&context),
        surroundings: Arc::new(services::surroundings(&context)),
        pod_addresses: Arc::new(services::pod_addresses(&context)),
        node: Arc::new(local_node(&context, plan.pod_mtu)),
        pods: Arc::new(pods),
        routes: Arc::new(routes),
        tunnels: own_tunnels(&context, &plan),
        hops: Arc::new(plan.hops),
        identities: Arc::new(policy.identities),
        policy: Arc::new(policy.policy),
        policy_state: policy.state,
        egress: Arc::new(egress),
        wanted: plan.wanted,
        invalid,
    })
}

/// Tables that know nobody: what workers run on until the cluster is known. Every packet is dropped or punted.
pub fn empty(local: &LocalView, knobs: &Knobs) -> Compiled {
    let node = LocalNode {
        name: local.node.clone(),
        internal: [None, None],
        overlay: [None, None],
        node_port_addresses: Vec::new(),
        uplink_mac: local.uplink.mac,
        uplink: local.uplink.port,
        host: local.host.port,
        host_mac: local.host.mac,
        uplink_mtu: local.uplink.mtu,
        pod_mtu: 0,
    };
    Compiled {
        tables: Tables {
            generation: 0,
            settings: Arc::new(knobs.settings.clone()),
            node: Arc::new(node),
            pods: Arc::default(),
            routes: Arc::default(),
            hops: Arc::default(),
            services: Default::default(),
            direct: Arc::default(),
            identities: Arc::default(),
            policy: Arc::default(),
            egress: Arc::default(),
        },
        invalid: Vec::new(),
        wanted_neighbours: BTreeSet::new(),
        steering: Steering::default(),
        redirects: BTreeSet::new(),
        placement: Placement::default(),
        health_checks: Vec::new(),
        rest: None,
        services: None,
        policy: None,
    }
}

fn local_node(context: &Context<'_>, pod_mtu: u16) -> LocalNode {
    let both = |of: &dyn Fn(Family) -> Option<IpAddr>| [Family::V4, Family::V6].map(|f| of(f).map(Into::into));
    LocalNode {
        name: context.node.name.clone(),
        internal: both(&|f| context.node.internal_ip(f)),
        overlay: both(&|f| context.node.overlay_address(f)),
        node_port_addresses: node_port_addresses(context),
        uplink_mac: context.local.uplink.mac,
        uplink: context.local.uplink.port,
        host: context.local.host.port,
        host_mac: context.local.host.mac,
        uplink_mtu: context.local.uplink.mtu,
        pod_mtu,
    }
}

/// The node's addresses at which NodePorts answer: the first InternalIP of each family, or those of its InternalIPs and
/// ExternalIPs that lie in the networks asked for.
fn node_port_addresses(context: &Context<'_>) -> Vec<sluice_tables::Address> {
    let node = context.node;
    let networks = &context.knobs.node_port_networks;
    let mut all: Vec<_> = match networks.is_empty() {
        true => [Family::V4, Family::V6].iter().filter_map(|f| node.internal_ip(*f)).collect(),
        false => {
            let own = node.internal_ips.iter().chain(&node.external_ips).copied();
            own.filter(|ip| networks.iter().any(|net| net.contains(ip))).collect()
        }
    };
    all.sort_unstable();
    all.dedup();
    all.into_iter().map(Into::into).collect()
}

/// Ways through the overlay to nodes that are ours, not a foreign tunnel's.
fn own_tunnels(context: &Context<'_>, plan: &hops::HopPlan) -> Vec<HopId> {
    let own = plan
        .tunnels
        .iter()
        .filter(|(name, _)| context.cluster.nodes.get(*name).is_some_and(|node| node.vtep_mac.is_none()));
    own.map(|(_, hop)| *hop).collect()
}
