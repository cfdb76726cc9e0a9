//! The two programs: `sluiced` wires ports, workers and control; `sluice` is the operator's command line.

pub mod replay;
pub mod settings;
