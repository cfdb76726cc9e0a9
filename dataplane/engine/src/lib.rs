//! The packet path: one straight corridor from a port's receive queue to another's transmit queue.
//!
//! A [`Worker`] owns everything it touches: its queues, its flow tables, its SNAT leases. It reads
//! [`Tables`](sluice_tables::Tables), which control publishes, and never waits for anybody. See `docs/architecture.md` for
//! the packet's walk.

pub mod affinity;
mod batch;
pub mod counters;
mod dns_stream;
pub mod flow;
pub mod gro;
pub mod handoff;
pub mod item;
pub mod learned;
mod memo;
pub mod meter;
pub mod nat;
pub mod nodes;
pub mod outbox;
pub mod pipeline;
pub mod reason;
pub mod resume;
pub mod tally;
pub mod trace;
pub mod wanted;
pub mod worker;

pub use counters::Counters;
pub use meter::Rate;
pub use pipeline::{Pipeline, Shared, WorkerOptions};
pub use reason::{Reason, Stage};
pub use resume::Strays;
pub use worker::Worker;
