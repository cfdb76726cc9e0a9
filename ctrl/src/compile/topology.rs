//! How the hints of endpoints are used for a Service port on this node, and why not where they are not.
//!
//! Owner: the control thread. Source: discovery.k8s.io/v1 `Endpoint.hints`; the rule is all or nothing.

use std::fmt;

/// What became of the hints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Nobody asks for them: no endpoint has hints, and the Service wants no distribution.
    Unasked,
    /// Only endpoints hinted for this node are used.
    Node,
    /// Only endpoints hinted for this zone are used.
    Zone(String),
    /// All endpoints are used, and why.
    All(WhyAll),
}

/// Why hints are not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyAll {
    /// No endpoint is ready, and those that terminate are used wherever they are.
    NoneReady,
    /// This ready endpoint has no hint.
    Without(String),
    /// The node has no zone.
    NoZone,
    /// Nothing is hinted for this node's zone.
    NotNamed(String),
    /// Nothing is hinted for this node, and there are no zone hints.
    NodeNotNamed,
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Topology::Unasked => f.write_str("no hints"),
            Topology::Node => f.write_str("only endpoints hinted for this node"),
            Topology::Zone(zone) => write!(f, "only endpoints hinted for zone {zone}"),
            Topology::All(why) => write!(f, "all endpoints: {why}"),
        }
    }
}

impl fmt::Display for WhyAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WhyAll::NoneReady => f.write_str("none is ready"),
            WhyAll::Without(endpoint) => write!(f, "{endpoint} has no hint"),
            WhyAll::NoZone => f.write_str("this node has no label topology.kubernetes.io/zone"),
            WhyAll::NotNamed(zone) => write!(f, "none is hinted for zone {zone}"),
            WhyAll::NodeNotNamed => f.write_str("none is hinted for this node, and not all have zone hints"),
        }
    }
}
