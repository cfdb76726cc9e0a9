//! An API server for tests: real HTTP or HTTPS on loopback, the semantics that controllers rely on, and faults on request.
//!
//! It stores any object of any collection. What it keeps to: lists with `limit` and `continue`, watches from a version with
//! bookmarks and time-outs, 410 for versions that are forgotten, optimistic locking, the status subresource, merge patches and
//! apply, events and leases like any other object. What it does not: validation, defaulting, conflicts between field managers.

pub mod cluster;
pub mod managed;
pub mod server;
pub mod tls;
pub mod world;

pub use server::Fake;
pub use tls::Identity;
pub use world::{Faults, World};
