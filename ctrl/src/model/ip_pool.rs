//! An address pool: networks that addresses are given from, and to whom.
//!
//! Owner: the control thread. Source: sluicegate.dev/v1alpha1 `IPPool`.

use ipnet::IpNet;

use super::Selector;

/// What a pool's addresses are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolUse {
    /// Pods of the selected namespaces.
    Pods,
    /// Cluster addresses of Services.
    Services,
    /// Egress addresses.
    Egress,
}

/// An address pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IpPool {
    /// `metadata.name`.
    pub name: String,
    /// `spec.use`.
    pub usage: PoolUse,
    /// `spec.cidrs`, host bits cleared.
    pub cidrs: Vec<IpNet>,
    /// `spec.namespaceSelector`: who gets addresses from here unasked, and who may ask for them. Left out: nobody unasked,
    /// and everybody may ask.
    pub namespaces: Option<Selector>,
}
