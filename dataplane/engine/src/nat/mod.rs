//! Source NAT: ports of an address leased in blocks to sources.

pub mod log;
pub mod mirror;
pub mod ports;
pub mod secret;

pub use log::{BlockEvent, BlockLine, SnatLog};
pub use mirror::{Mapping, Mirror};
pub use ports::{Leases, SnatSpace, SnatSpaces, Wish, owner_of};
pub use secret::Secret;
