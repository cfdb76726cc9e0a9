//! DPDK as a driver: network cards on user-space drivers, and DPDK's virtual devices, as ports like any other.
//!
//! Needs the feature `dpdk` (off by default; `apt install libdpdk-dev libclang-dev`); without it only the exception path is
//! here. Nothing of DPDK's command line is to be learned: `Eal::start` takes what the configuration says, leaves no files
//! behind, and `open` opens devices as they are asked for.
//!
//! ```text
//!   worker's PoolCache ◀──alloc, free──  mempool "sluicegate"  ◀── driver (RX refill, TX completion)
//!          │ chunk k                          │ mbuf k
//!          ▼                                  ▼
//!   frame pool: chunk 0 │ chunk 1 │ …   one header per chunk, pinned to it for life
//! ```
//! Frames are not copied: every chunk of the pool has an mbuf header whose buffer is that chunk, and the mempool that the
//! drivers take mbufs from takes the chunks from the worker's own cache (`docs/adr/0025`). So a frame received here leaves by
//! AF_XDP or TAP as it is, and theirs by DPDK. Devices that insist on memory of their own copy, and count it.
//!
//! [`Divided`] shares a port with the kernel: what is not ours goes to a TAP, and what the kernel sends there to the port.

mod divided;
mod steering;

pub use divided::{Divided, Exceptions, Orders};
pub use steering::{Rules, Steering};

#[cfg(feature = "dpdk")]
mod device;
#[cfg(feature = "dpdk")]
mod eal;
#[cfg(feature = "dpdk")]
mod error;
#[cfg(feature = "dpdk")]
mod listener;
#[cfg(feature = "dpdk")]
mod mempool;
#[cfg(feature = "dpdk")]
mod offload;
#[cfg(feature = "dpdk")]
mod pci;
#[cfg(feature = "dpdk")]
mod queue;

#[cfg(feature = "dpdk")]
pub use device::{Link, Port, PortOptions, open};
#[cfg(feature = "dpdk")]
pub use eal::{Eal, EalOptions, Pages};
#[cfg(feature = "dpdk")]
pub use error::DpdkError;
#[cfg(feature = "dpdk")]
pub use pci::{PciAddress, check};
#[cfg(feature = "dpdk")]
pub use queue::DpdkQueue;
