//! Development only: packets to test with, and second opinions about packets.
//!
//! Nothing here shares code with what it tests: [`packet`] writes bytes one by one and sums them the slow way,
//! [`describe()`] reads through `etherparse`, and [`policy`] judges packets by the text of the objects.

pub mod describe;
pub mod packet;
pub mod policy;
pub mod strategy;

pub use describe::describe;
pub use packet::Packet;
