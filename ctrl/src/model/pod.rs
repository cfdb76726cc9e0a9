//! A pod: who it is, where it runs, which addresses it owns, and the ports its containers name.
//!
//! Owner: the control thread. Source: core/v1 `Pod`. Invariant: a finished pod owns no address.

use std::net::IpAddr;

use super::{Family, Labels, NamespacedName, Protocol};

/// `status.phase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not said, as in hand-written manifests; treated like a pod that runs.
    #[default]
    Unset,
    /// Accepted, containers not all up yet.
    Pending,
    /// Running.
    Running,
    /// All containers ended well: owns no address.
    Succeeded,
    /// All containers ended, at least one badly: owns no address.
    Failed,
    /// The node cannot be asked.
    Unknown,
}

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerPort {
    /// The name by which Services and policies refer to it.
    pub name: Option<String>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port inside the pod.
    pub port: u16,
    /// The port on the node, where asked for.
    pub host_port: Option<u16>,
    /// The node's address [`ContainerPort::host_port`] is bound to; none means all.
    pub host_ip: Option<IpAddr>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.uid`; empty in hand-written manifests.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `metadata.annotations` of the group `sluicegate.dev`, and the bandwidth ones of `kubernetes.io`.
    pub annotations: Labels,
    /// `spec.nodeName`, once scheduled.
    pub node: Option<String>,
    /// `status.phase`.
    pub phase: Phase,
    /// `spec.hostNetwork`: shares the node's addresses, and no network policy selects it.
    pub host_network: bool,
    /// `status.podIPs`, else `status.podIP`; empty for finished pods.
    pub addresses: Vec<IpAddr>,
    /// Ports of the containers, of long-running init containers after them.
    pub ports: Vec<ContainerPort>,
    /// The condition `Ready`; none where it is not there.
    pub ready: Option<bool>,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
}

impl Pod {
    /// The pod has ended and owns neither address nor port.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Ready to serve: the condition says so; without a condition, a pod that has an address and has not finished.
    pub fn is_ready(&self) -> bool {
        !self.is_finished() && self.ready.unwrap_or(!self.addresses.is_empty())
    }

    /// The first address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| Family::of(a) == family)
    }

    /// The number behind a port's name for a protocol; the first declaration wins.
    pub fn named_port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports.iter().find(|p| p.protocol == protocol && p.name.as_deref() == Some(name)).map(|p| p.port)
    }
}
