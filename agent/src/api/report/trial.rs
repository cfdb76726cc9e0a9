//! A candidate set of policies beside the enforced one: `POST /v1/policy/try`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The body of `POST /v1/policy/try`: policies to be judged beside the enforced ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TryRequest {
    /// Kubernetes objects; others than policies are ignored.
    pub objects: Vec<serde_json::Value>,
    /// The policies are the whole set; else they stand in for enforced ones of the same name.
    #[serde(default)]
    pub replace_all: bool,
    /// How long, at most a day.
    pub seconds: u64,
    /// Addresses of domain names that pods are taken to know, besides those they have learned.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dns: BTreeMap<String, Vec<IpAddr>>,
}

/// A line of the answer to `POST /v1/policy/try`: what has been found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TryReport {
    /// Seconds that have passed.
    pub elapsed_seconds: u64,
    /// Seconds in all.
    pub seconds: u64,
    /// This is the last line.
    pub done: bool,
    /// The candidate's policies, as `NetworkPolicy/ns/name`.
    pub policies: Vec<String>,
    /// What of the candidate was not understood, and what it costs.
    pub problems: Vec<String>,
    /// Flows that were judged, each at each pod's border it crosses.
    pub flows: u64,
    /// Packets that policy denied meanwhile and that were judged.
    pub denied_packets: u64,
    /// Decisions that would change.
    pub changes: Vec<TryChange>,
    /// More would change than is listed.
    pub truncated: bool,
}

/// A decision that a candidate would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TryChange {
    /// Source: a pod, `node/NAME` or an address.
    pub from: String,
    /// Destination, after Service translation.
    pub to: String,
    /// Protocol, in small letters; a number where it has no name.
    pub proto: String,
    /// Destination port; none for protocols without.
    pub port: Option<u16>,
    /// Whose rules: `egress` of the source, `ingress` of the destination.
    pub direction: String,
    /// `allow` or `deny`, enforced.
    pub now: String,
    /// The same by the candidate.
    pub then: String,
    /// What decides now; none where no policy selects the pod.
    pub now_decided_by: Option<String>,
    /// What would decide.
    pub then_decided_by: Option<String>,
    /// Flows that it would meet.
    pub flows: u64,
    /// Denied packets that it would meet.
    pub packets: u64,
}
