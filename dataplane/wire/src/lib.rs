//! Bytes with a layout: the headers of the packets we forward, how they are checked, changed and answered.
//!
//! Everything here is a pure function of byte slices: no state, no I/O, no clock, no allocation, and no panic on any
//! input (`no_std` keeps the first four honest, the property tests the last). Owner thread: any; nothing is shared.
//!
//! A header is a `#[repr(C)]` struct of bytes and network-endian integers that is read in place
//! ([`Header::at`]); [`Layers`] is the value that says where the headers of one frame are and that they are sound.
//! Numbers that live in different spaces have different types: [`Protocol`] is never an [`EtherType`].
#![cfg_attr(not(test), no_std)]

pub mod arp;
pub mod checksum;
pub mod crc32c;
pub mod dns;
pub mod ecn;
pub mod ethernet;
pub mod flow_key;
pub mod fragment;
pub mod header;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod layers;
pub mod malformed;
pub mod ndp;
pub mod packet;
pub mod protocol;
pub mod reply;
pub mod sctp;
pub mod segment;
pub mod tcp;
pub mod udp;
pub mod vxlan;

pub use ethernet::{EtherType, Mac};
pub use flow_key::{FlowTuple, FlowTuple4, FlowTuple6};
pub use header::Header;
pub use layers::{Layers, Network, Transport};
pub use malformed::Malformed;
pub use protocol::Protocol;
pub use tcp::TcpFlags;
