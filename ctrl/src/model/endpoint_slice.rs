//! An endpoint slice: some of the endpoints of a Service, of one address family, and the ports they serve.
//!
//! Owner: the control thread. Source: discovery.k8s.io/v1 `EndpointSlice`. The union over a Service's slices, and what
//! happens where two of them speak of one endpoint, is the compiler's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Family, NamespacedName, Protocol};

/// The label that names the Service of a slice.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The label that marks slices of headless Services: nothing to program.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// One endpoint with its state; what the API leaves out is filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Addresses of the slice's family; the first is used.
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`; a missing one counts as true.
    pub ready: bool,
    /// `conditions.serving`; a missing one follows `ready`.
    pub serving: bool,
    /// `conditions.terminating`; a missing one counts as false.
    pub terminating: bool,
    /// The node the endpoint runs on.
    pub node: Option<String>,
    /// The zone the endpoint runs in.
    pub zone: Option<String>,
    /// `hints.forZones`; empty where there is no such hint.
    pub zone_hints: BTreeSet<String>,
    /// `hints.forNodes`; empty where there is no such hint.
    pub node_hints: BTreeSet<String>,
    /// The pod behind the endpoint, where `targetRef` names one.
    pub pod: Option<NamespacedName>,
}

/// One port of the slice's endpoints; ports without a number are left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointPort {
    /// The Service port's name; empty for an unnamed one.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port on the endpoint.
    pub port: u16,
}

/// An endpoint slice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSlice {
    /// Namespace and name of the slice itself.
    pub name: NamespacedName,
    /// Name of the Service, of the same namespace.
    pub service: Option<String>,
    /// `addressType`; none for FQDN and types we do not know, which serve nothing.
    pub family: Option<Family>,
    /// [`HEADLESS_LABEL`] is present: ignored.
    pub headless: bool,
    /// The endpoints, in their order.
    pub endpoints: Vec<Endpoint>,
    /// The ports, in their order.
    pub ports: Vec<EndpointPort>,
}

impl EndpointSlice {
    /// True when the slice can give endpoints to a Service's virtual addresses.
    pub fn is_served(&self) -> bool {
        self.service.is_some() && self.family.is_some() && !self.headless
    }
}
