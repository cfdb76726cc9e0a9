//! An egress gateway: which pods leave the cluster, towards where, with which addresses, through which nodes.
//!
//! Owner: the control thread. Source: sluicegate.dev/v1alpha1 `EgressGateway`. One that could not be understood has no
//! node and no address: what it selects does not leave (and never leaves with another source).

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Family, Selector};

/// An egress gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EgressGateway {
    /// `metadata.name`.
    pub name: String,
    /// `spec.podSelector`; both selectors must match.
    pub pods: Selector,
    /// `spec.namespaceSelector`; both selectors must match.
    pub namespaces: Selector,
    /// `spec.destinationCIDRs`; none means everything outside the cluster.
    pub destinations: Option<Vec<IpNet>>,
    /// `spec.excludedCIDRs`.
    pub excluded: Vec<IpNet>,
    /// `spec.egressIPs`, in their order.
    pub egress_ips: Vec<IpAddr>,
    /// `spec.gatewayNodes`: which nodes carry the addresses.
    pub gateway_nodes: Selector,
    /// Something was not understood; node selector and addresses select nothing already.
    pub fail_closed: bool,
}

impl EgressGateway {
    /// The egress addresses of a family, in their order.
    pub fn addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        self.egress_ips.iter().copied().filter(move |a| Family::of(a) == family)
    }
}
