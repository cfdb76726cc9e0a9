//! Source NAT: ports of an address leased in blocks to sources.

pub mod ports;

pub use ports::{Leases, SnatSpace, SnatSpaces};
