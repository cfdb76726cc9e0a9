//! Flows, and packets as they pass: `GET /v1/flows` and `/v1/observe`.

use serde::{Deserialize, Serialize};

/// `GET /v1/flows`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowsReport {
    /// The flows.
    pub flows: Vec<FlowReport>,
    /// Whether there are more than were asked for.
    pub truncated: bool,
}

/// One flow, as its worker sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowReport {
    /// IP protocol number.
    pub protocol: u8,
    /// Source of the first packet, as it came.
    pub source: String,
    /// Destination of the first packet, as it came.
    pub destination: String,
    /// Source as it left.
    pub translated_source: String,
    /// Destination as it left.
    pub translated_destination: String,
    /// State of the connection.
    pub state: String,
    /// Seconds since the last packet of either direction.
    pub idle_seconds: u64,
    /// Zone: the pod's port number, 0 for the node.
    pub zone: u16,
    /// The pod whose zone it is, as `namespace/name`; none for the node.
    pub pod: Option<String>,
    /// Worker that owns it.
    pub worker: u16,
}

/// Most flows that one answer holds.
pub const MAX_FLOWS: usize = 100_000;
/// Flows of an answer where the request names no limit.
pub const DEFAULT_FLOWS: usize = 1_000;

/// The query of `GET /v1/flows`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowFilter {
    /// Only flows of this pod, `namespace/name`.
    pub pod: Option<String>,
    /// At most so many; [`DEFAULT_FLOWS`] where it is left out, never more than [`MAX_FLOWS`].
    pub limit: Option<usize>,
}

/// One line of `GET /v1/observe`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObserveEvent {
    /// When, in seconds since 1970.
    pub time: f64,
    /// The port it came in on: `uplink0`, `host` or `pod:NAMESPACE/NAME`.
    pub port: String,
    /// The pod behind that port, as `namespace/name`.
    pub pod: Option<String>,
    /// `forwarded`, `dropped`, `replied`, `punted` or `held`.
    pub verdict: String,
    /// Why, for what was dropped or refused.
    pub reason: Option<String>,
    /// Where it was dropped.
    pub stage: Option<String>,
    /// The rule that decided.
    pub policy: Option<String>,
    /// `allow`, `deny` or `audit-deny`, where a rule decided.
    pub policy_verdict: Option<String>,
    /// `namespace/name:port/PROTO` of the Service.
    pub service: Option<String>,
    /// Address and port of the backend.
    pub backend: Option<String>,
    /// The packet in one line; empty where its bytes were gone.
    pub packet: String,
    /// Events that this reader lost since the one before, because it was too slow.
    pub lost: u64,
}

/// The query of `GET /v1/observe`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObserveFilter {
    /// Only this verdict.
    pub verdict: Option<String>,
    /// Only packets from this pod, `namespace/name`.
    pub pod: Option<String>,
    /// Only this reason.
    pub reason: Option<String>,
}

impl ObserveFilter {
    /// Whether an event is wanted; names are compared without regard to case.
    pub fn wants(&self, event: &ObserveEvent) -> bool {
        let same = |wanted: &Option<String>, is: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| is.is_some_and(|is| is.eq_ignore_ascii_case(wanted)))
        };
        same(&self.verdict, Some(&event.verdict))
            && same(&self.pod, event.pod.as_deref())
            && same(&self.reason, event.reason.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_says_nothing_wants_everything() {
        let event = ObserveEvent { verdict: "dropped".into(), pod: Some("shop/web".into()), ..Default::default() };
        assert!(ObserveFilter::default().wants(&event));
        let only = |verdict: &str| ObserveFilter { verdict: Some(verdict.into()), ..Default::default() };
        assert!(only("DROPPED").wants(&event) && !only("forwarded").wants(&event));
        assert!(!ObserveFilter { reason: Some("NoRoute".into()), ..Default::default() }.wants(&event));
    }
}
