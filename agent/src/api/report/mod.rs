//! The answers of the agent's API, as JSON and as what the command line reads back.
//!
//! Invariants: a field, once there, keeps its name and meaning; a reader takes missing fields for their defaults, so that
//! programs of different versions understand each other. Units stand in the names. Lists are ordered by name.

mod counters;
mod flows;
mod inventory;
mod status;
mod trial;
mod vfs;

pub use counters::{CounterReport, PortCounters, VERDICTS, WorkerCounters};
pub use flows::{DEFAULT_FLOWS, FlowFilter, FlowReport, FlowsReport, MAX_FLOWS, ObserveEvent, ObserveFilter};
pub use inventory::{BackendReport, FrontendReport, HealthCheckReport, PodReport, PolicyReport, ServiceReport};
pub use status::{GenerationReport, IpamReport, PoolReport, PortReport, State, StatusReport, WorkerReport};
pub use trial::{TryChange, TryReport, TryRequest};
pub use vfs::{VF_STATES, VfReport};
