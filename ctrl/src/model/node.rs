//! A node: its addresses, the networks its pods get addresses from, and where it stands.
//!
//! Owner: the control thread. Source: core/v1 `Node`. The node's overlay address is network + 1 of its first podCIDR
//! of a family.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Family, Labels};

/// The label that names a node's zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The annotation that gives a foreign tunnel endpoint's MAC.
pub const VTEP_MAC_ANNOTATION: &str = "sluicegate.dev/vtep-mac";

/// The taint by which the cluster autoscaler says that a node will be deleted.
pub const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `metadata.annotations` of the group `sluicegate.dev`.
    pub annotations: Labels,
    /// `status.addresses` of type InternalIP, in their order.
    pub internal_ips: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP, in their order.
    pub external_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`, else `spec.podCIDR`.
    pub pod_cidrs: Vec<IpNet>,
    /// The MAC of [`VTEP_MAC_ANNOTATION`], where the node's tunnel does not follow the rule of addresses.
    pub vtep_mac: Option<[u8; 6]>,
    /// The condition `Ready`, where there is one.
    pub ready: Option<bool>,
    /// It is being deleted, or bears [`LEAVING_TAINT`].
    pub leaving: bool,
}

impl Node {
    /// The first InternalIP of a family.
    pub fn internal_ip(&self, family: Family) -> Option<IpAddr> {
        self.internal_ips.iter().copied().find(|a| Family::of(a) == family)
    }

    /// The node's address on the overlay: network + 1 of its first podCIDR of the family.
    pub fn overlay_address(&self, family: Family) -> Option<IpAddr> {
        self.pod_cidrs.iter().find(|n| Family::of_net(n) == family).and_then(overlay_address)
    }

    /// The zone, where the label is there and not empty.
    pub fn zone(&self) -> Option<&str> {
        self.labels.get(ZONE_LABEL).map(String::as_str).filter(|z| !z.is_empty())
    }
}

/// Network + 1 of a podCIDR; none where the network holds a single address.
pub fn overlay_address(cidr: &IpNet) -> Option<IpAddr> {
    if cidr.prefix_len() == cidr.max_prefix_len() {
        return None;
    }
    Some(match cidr.network() {
        IpAddr::V4(a) => IpAddr::from((u32::from(a) + 1).to_be_bytes()),
        IpAddr::V6(a) => IpAddr::from((u128::from(a) + 1).to_be_bytes()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overlay_address_is_the_first_of_the_pod_network() {
        let of = |s: &str| overlay_address(&s.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(of("10.244.1.0/24").as_deref(), Some("10.244.1.1"));
        assert_eq!(of("fd00:10:244:1::/64").as_deref(), Some("fd00:10:244:1::1"));
        assert_eq!(of("255.255.255.254/31").as_deref(), Some("255.255.255.255"));
        assert_eq!(of("10.0.0.1/32"), None);
    }
}
