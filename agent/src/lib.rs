//! The two programs: `sluiced` wires ports, workers and control; `sluice` is the operator's command line.

pub mod api;
pub mod bench;
pub mod cli;
pub mod daemon;
pub mod domain_names;
pub mod metrics;
pub mod replay;
pub mod settings;
