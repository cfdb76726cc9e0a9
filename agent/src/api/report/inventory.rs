//! What the node serves: Services, pods, policies.

use crate::api::problem::Problem;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One Service; `GET /v1/services` gives a list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceReport {
    /// `namespace/name`.
    pub name: String,
    /// `ClusterIP`, `NodePort` or `LoadBalancer`.
    pub kind: String,
    /// What clients connect to.
    pub frontends: Vec<FrontendReport>,
    /// The port on which load balancers ask after it, where it has one.
    pub health_check: Option<HealthCheckReport>,
}

/// The health-check node port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthCheckReport {
    /// The port, on the node's addresses.
    pub port: u16,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

/// One address, protocol and port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrontendReport {
    /// Name of the Service port; empty for an unnamed one.
    pub port_name: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalIP`.
    pub kind: String,
    /// `10.96.0.10:80` or `[fd00::1]:80`; the node's addresses are written `*` for a NodePort.
    pub address: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// How topology hints are used, and why not where they are not.
    pub topology: String,
    /// Where connections may go.
    pub backends: Vec<BackendReport>,
}

/// One backend of a frontend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendReport {
    /// `10.244.1.5:8080` or `[fd00::5]:8080`.
    pub address: String,
    /// Whether it runs on this node.
    pub local: bool,
    /// Whether new connections go to it; else it only finishes those it has.
    pub ready: bool,
}

/// One pod with a port here; `GET /v1/pods` gives a list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodReport {
    /// `namespace/name`.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its port's number.
    pub port: u16,
    /// Worker that owns its flows.
    pub worker: u16,
    /// MAC address of its interface.
    pub mac: String,
    /// Path of its network namespace.
    pub netns: String,
    /// Its interface inside the namespace.
    pub ifname: String,
    /// Whether a policy selects it for ingress.
    pub ingress_isolated: bool,
    /// Whether a policy selects it for egress.
    pub egress_isolated: bool,
    /// Its interface that is a bare VF: policy, Services and source checks do not see its packets. None for most pods.
    pub unenforced: Option<String>,
}

/// One policy; `GET /v1/policies` gives a list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyReport {
    /// `NetworkPolicy` or `ClusterNetworkPolicy`.
    pub kind: String,
    /// `namespace/name` or `name`.
    pub name: String,
    /// False where something in it was not understood; it then denies what it selects.
    pub accepted: bool,
    /// What was not understood.
    pub problems: Vec<Problem>,
    /// `ingress`, `egress`: the directions it speaks of.
    pub directions: Vec<String>,
    /// Pods of this node that it selects.
    pub selected_pods: Vec<String>,
    /// First packets of flows that its rules have decided here, by `allow`, `deny` and `audit-deny`. What isolation denies
    /// is no single policy's: see [`CounterReport::policy_verdicts`](super::CounterReport::policy_verdicts).
    pub verdicts: BTreeMap<String, u64>,
}
