//! Network devices that leave the kernel's network stack: VFs for pods, devices for userspace drivers. Who has which, how it
//! is taken, and how it comes back as it was.
//!
//! ```text
//! allowed (configuration, device plugin, DRA) ─▶ fit (checks) ─▶ claim on disk ─▶ taken ─▶ … ─▶ given back ─▶ proved clean ─▶ claim off
//! ```
//! [`Keeper`] does it; [`ledger`] is the file of claims; [`binding`] writes to sysfs; [`naming`] reads what device plugins and DRA
//! drivers tell. Interfaces are moved between network namespaces by whoever calls (`sluice-hostnet`).
//! Invariants (ADR 27): a claim is on disk before anything is changed; a device whose state could not be proved clean is given to
//! nobody; only the owner that a claim names gives it back; a device that carries the default route is never taken.

pub mod binding;
pub mod bus;
mod error;
mod keeper;
pub mod ledger;
pub mod naming;

pub use bus::{Bus, Sysfs};
pub use error::VfError;
pub use keeper::{Allowed, Keeper, Links, Listed, Use};
pub use ledger::{Before, Claim, Owner, State};
