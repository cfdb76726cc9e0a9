//! Compile: the cluster as one node must see it, turned into the tables its workers read.
//!
//! Owner: the control thread. Invariants: pure and deterministic (no clock, no I/O, no randomness; equal objects in any
//! order of events give byte-identical [`Tables::dump`]s); every limit of the tables is checked here, and what does not
//! fit is an error of the whole generation, so that the last good one stands; what cannot be programmed is reported as a
//! [`Finding`], never left out silently. Cost: one walk over the cluster; Services that did not change keep their
//! compiled form, so that Maglev tables are built for changed Services only.

pub mod carriers;
pub mod directory;
pub mod egress;
pub mod endpoints;
pub mod hops;
pub mod host_ports;
pub mod local;
pub mod policy;
pub mod redirects;
pub mod routes;
pub mod services;
pub mod settings;
pub mod shards;
pub mod sources;
pub mod steering;

pub use local::{HostPort, LocalPod, LocalView, PortMapping, Replay, Uplink, derived_mac};
pub use redirects::Redirect;
pub use settings::Knobs;
pub use steering::Steering;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_tables::{LocalNode, TableError, Tables};

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
    #[error("the policies list {listed} classes of peers, the limit is {limit}; most of them {culprit}")]
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
    services: Option<services::ServiceState>,
    policy: Option<Arc<policy::PolicyState>>,
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
    let mut invalid = BTreeSet::new();
    let directory = Directory::new(cluster, local, &mut invalid);
    let context = Context { cluster, local, knobs, node, directory };

    let moving = carriers::compile(&context, &mut invalid);
    let plan = hops::plan(&context, &moving, &mut invalid)?;
    let (egress, gateways_used) = egress::compile(&context, &plan, &moving, &mut invalid);
    let routes = routes::compile(&context, &plan, &gateways_used, &mut invalid);
    let (mut services, state) = services::compile(&context, previous.and_then(|p| p.services.as_ref()), &mut invalid)?;
    let host_ports = host_ports::program(&context, host_ports::of(&context), &mut services, &mut invalid)?;
    let redirects = redirects::of(&context, &host_ports);
    let policy = policy::compile(&context, previous.and_then(|p| p.policy.as_deref()))?;
    let extra_sources = |known: &directory::Known<'_>| sources::of(&context, known, &mut invalid);
    let pods = context.directory.local_pods(&plan, &policy, extra_sources)?;
    let steering = Steering::of(&context, &services, &egress);
    let tables = Tables {
        generation: 0,
        settings: Arc::new(knobs.settings.clone()),
        node: Arc::new(local_node(&context, plan.pod_mtu)),
        pods: Arc::new(pods),
        routes: Arc::new(routes),
        hops: Arc::new(plan.hops),
        services,
        identities: Arc::new(policy.identities),
        policy: Arc::new(policy.policy),
        egress: Arc::new(egress),
    };
    Ok(Compiled {
        tables,
        invalid: invalid.into_iter().collect(),
        wanted_neighbours: plan.wanted,
        steering,
        redirects,
        placement: moving.placement,
        services: Some(state),
        policy: Some(policy.state),
    })
}

/// Tables that know nobody: what workers run on until the cluster is known. Every packet is dropped or punted.
pub fn empty(local: &LocalView, knobs: &Knobs) -> Compiled {
    let node = LocalNode {
        name: local.node.clone(),
        internal: [None, None],
        overlay: [None, None],
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
            identities: Arc::default(),
            policy: Arc::default(),
            egress: Arc::default(),
        },
        invalid: Vec::new(),
        wanted_neighbours: BTreeSet::new(),
        steering: Steering::default(),
        redirects: BTreeSet::new(),
        placement: Placement::default(),
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
        uplink_mac: context.local.uplink.mac,
        uplink: context.local.uplink.port,
        host: context.local.host.port,
        host_mac: context.local.host.mac,
        uplink_mtu: context.local.uplink.mtu,
        pod_mtu,
    }
}
