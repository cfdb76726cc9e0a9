//! Which node carries which address: egress addresses and announced Service addresses move between nodes, and each is on
//! one node at a time.
//!
//! ```text
//! objects ─▶ placement: address → nodes, best first         (pure, the same on every node)
//! probes  ─▶ liveness:  who is up, who is down, have we a quorum
//!            fence:     do the cluster's Leases let us
//!            election:  placement + liveness + fence + what peers say they carry → who carries what now
//! ```
//! Owner: the agent's liveness thread (placement: the control thread). No clock and no socket in here: time is a parameter,
//! messages come as values. `docs/adr` says why there is no fail-back and what fences a node.

pub mod election;
pub mod fence;
pub mod liveness;
pub mod message;
pub mod placement;

pub use election::{Carried, Election, Outcome};
pub use fence::Fence;
pub use liveness::{Liveness, Pace, Standing};
pub use message::{Claim, Message};
pub use placement::{Placement, rank};

use std::time::Duration;

/// Time since the process started: monotonic, whatever its clock.
pub type Instant = Duration;
