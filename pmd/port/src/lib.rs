//! Frames, the pool they come from, and the port interface that every driver implements.
//!
//! A [`Frame`] is an owned packet buffer; exactly one place holds it at any time. A worker takes frames from
//! its [`PoolCache`], drivers fill and empty them, and whoever ends a packet's life gives the frame back.

#[cfg(feature = "count-alloc")]
pub mod alloc;
pub mod capture;
pub mod conformance;
pub mod dealer;
pub mod faulty;
pub mod frame;
pub mod lanes;
pub mod mem;
pub mod memory;
pub mod offload;
pub mod pcap;
pub mod pool;
pub mod port;
pub mod prefetch;
pub mod ticks;

pub use dealer::Dealer;
pub use faulty::{Faults, Faulty};
pub use frame::{CHUNK, Frame, HEADROOM, staggered};
pub use memory::Mapped;
pub use offload::{Checksum, Gso, GsoKind, complete_checksum};
pub use pool::{FramePool, PoolCache, PoolError, PoolOptions};
pub use port::{Burst, Capabilities, PortId, PortMode, PortStats, Queue};
