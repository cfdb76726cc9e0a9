//! What the agent tells the world: reports, the HTTP server on its Unix socket, and the metrics address.
//!
//! [`report`] holds the answers, [`Agent`] is what the running node implements, [`server`] serves it.
//! Contract: `docs` on the agent's socket. Off the packet path; workers are only asked through their channels.

pub mod endpoint;
pub mod problem;
pub mod report;
pub mod routes;
pub(crate) mod seat;
pub mod server;

use report::{
    CounterReport, FlowFilter, FlowsReport, GenerationReport, ObserveEvent, ObserveFilter, PodReport, PolicyReport,
    ServiceReport, StatusReport, TryReport, TryRequest, VfReport,
};
use sluice_cni::protocol::{CniRequest, ErrorBody, Verb};
use tokio::sync::mpsc;

/// The running node, as the API sees it.
///
/// Every method may block (on a lock, on a worker's answer, on the kernel): the server calls each on a thread of its own
/// and never more than a few at a time. None may block for ever.
pub trait Agent: Send + Sync + 'static {
    /// How the node is, and what is wrong with its configuration or its cluster objects.
    fn status(&self) -> StatusReport;
    /// The Services as programmed here, by name.
    fn services(&self) -> Vec<ServiceReport>;
    /// The pods with a port here, by name.
    fn pods(&self) -> Vec<PodReport>;
    /// Every policy of the cluster, by kind and name.
    fn policies(&self) -> Vec<PolicyReport>;
    /// Virtual functions of this machine, by address.
    fn vfs(&self) -> Vec<VfReport>;
    /// Flows that the filter wants, at most `limit`.
    fn flows(&self, filter: &FlowFilter, limit: usize) -> FlowsReport;
    /// Everything counted since the start.
    fn counters(&self) -> CounterReport;
    /// Which tables are published and which every worker runs on.
    fn generation(&self) -> GenerationReport;
    /// Subscribes to what becomes of packets. Only events that the filter wants are sent, with `try_send`: a slow
    /// reader loses events (counted in [`ObserveEvent::lost`]) and slows nobody. Dropping the receiver unsubscribes.
    fn observe(&self, filter: ObserveFilter) -> mpsc::Receiver<ObserveEvent>;
    /// Judges policies beside the enforced ones on the node's flows for a time; reports come once a second and end with the
    /// time. Dropping the receiver ends it early. The error says what is wrong with the policies.
    fn policy_try(&self, request: TryRequest) -> Result<mpsc::Receiver<TryReport>, String>;
    /// Serves the CNI plugin: ADD gives an [`sluice_cni::protocol::AddResult`] as JSON, the other verbs `{}`.
    fn cni(&self, verb: Verb, request: CniRequest) -> Result<serde_json::Value, ErrorBody>;
}
