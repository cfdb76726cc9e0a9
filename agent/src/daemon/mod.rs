//! `sluiced run`: ports, workers and control of one node in one process.
//!
//! ```text
//! manifests ─▶ ┐                        ┌─▶ worker 0 (uplink queue, host port, pods)
//! kernel's   ─▶├─ control thread ─tables┤
//! neighbours   │   (owns everything     └─▶ worker 1 (pods)
//! CNI, CLI   ─▶┘    that is not a packet)
//! ```

pub mod announce;
pub mod attachments;
pub mod capabilities;
pub mod carriers;
pub mod cluster;
pub mod control;
pub mod cores;
mod domains;
pub mod driven;
pub mod fast;
pub mod flow_files;
pub mod guard;
pub mod health_ports;
pub mod host;
pub mod inbox;
pub mod install;
pub mod limits;
mod machine;
pub mod mirror;
pub mod observe;
pub mod plug;
pub mod pods;
mod programming;
pub mod refusals;
pub mod reports;
pub mod resume;
pub mod shadow;
pub mod snat;
pub mod start;
pub mod uplink;
pub mod vfs;
pub mod workers;
