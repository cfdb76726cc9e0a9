//! The API server: cluster state in, status, events and leases out.
//!
//! A crate of its own, so that the offline tools do not carry a TLS stack. Nothing here decides what an object means: raw
//! objects go to `sluice_ctrl::import`, through the same types as those of the manifests.
//!
//! ```text
//! follow ─▶ store ─▶ feed ─▶ control thread (sluice_ctrl::import::live)
//!  list,     what      nothing before                │ refusals, programmed
//!  watch     changed   every kind is in sync         ▼
//!                        └─▶ last good state      writer ─▶ status, events, node condition (one node writes: lease)
//! ```

pub mod connection;
pub mod feed;
pub mod follow;
pub mod keeper;
pub mod lease;
pub mod state;
pub mod store;
pub mod strip;
pub mod writer;

pub use connection::{ApiError, Connection, server_of};
pub use keeper::{Held, Keeper, Wish};
pub use lease::{Elector, LeaseChange, LeaseRecord, Leases};
