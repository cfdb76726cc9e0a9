//! What workers look up and never change: one immutable [`Tables`] value per generation.
//!
//! Control builds it ([`Tables`] fields are public values; clever structures have builders that validate), publishes it
//! as one `Arc`, and frees the old one when every worker has moved on. Unchanged parts are shared between generations.
//! Everything here is plain data: no clock, no I/O, no Kubernetes, no randomness.

pub mod address;
pub mod direct;
pub mod domains;
mod dump;
pub mod egress;
pub mod hops;
pub mod identity;
pub mod limits;
pub mod lpm;
pub mod maglev;
pub mod node;
pub mod pods;
pub mod policy;
pub mod port_map;
pub mod port_maps;
pub mod routes;
pub mod services;
pub mod settings;
pub mod stable_hash;

pub use address::{Address, Family, Prefix};
pub use direct::Direct;
pub use domains::{DomainId, Domains};
pub use egress::{Egress, EgressPath, EgressRule};
pub use hops::{Hop, HopId, HopKind, Hops};
pub use identity::{Identities, IdentityId};
pub use limits::TableError;
pub use lpm::Lpm;
pub use node::LocalNode;
pub use pods::{Pod, Pods};
pub use policy::{Decision, Direction, Policy, PolicySetId, RuleId};
pub use port_map::{Action, Isolation, PortMapBuilder, PortMatcher, Tier, TierRule, Transport};
pub use routes::{Route, Routes};
pub use services::{Backend, BackendSet, Frontend, FrontendKey, Services};
pub use settings::{Settings, Timeouts};

use std::sync::Arc;

/// One generation of everything a decision may read.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Counts publications of this process, from 1.
    pub generation: u64,
    /// Knobs of the packet path.
    pub settings: Arc<Settings>,
    /// This node's own addresses and ports.
    pub node: Arc<LocalNode>,
    /// Local pods by port and by address.
    pub pods: Arc<Pods>,
    /// Where a destination lies.
    pub routes: Arc<Routes>,
    /// Prebuilt headers for each way out.
    pub hops: Arc<Hops>,
    /// Service frontends, sharded.
    pub services: Services,
    /// Frontends whose backends answer clients outside by themselves.
    pub direct: Arc<Direct>,
    /// Address to identity.
    pub identities: Arc<Identities>,
    /// Rules by identity.
    pub policy: Arc<Policy>,
    /// Egress gateways.
    pub egress: Arc<Egress>,
}
