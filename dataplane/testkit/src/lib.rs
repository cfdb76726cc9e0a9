//! Development only: packets to test with, and second opinions about packets.
//!
//! Nothing here shares code with what it tests: [`packet`] writes bytes one by one and sums them the slow way, and
//! [`describe()`] reads through `etherparse`.

pub mod describe;
pub mod packet;
pub mod strategy;

pub use describe::describe;
pub use packet::Packet;
