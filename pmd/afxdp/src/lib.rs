//! AF_XDP ports: the kernel's fast path into user space, on any interface, without taking the interface away.
//!
//! ```text
//!   NIC or veth --> XDP program (bpf/sluice.bpf.c) --ours--> XskQueue --> worker
//!                                  `--all else--> kernel
//! ```
//! [`Umem`] lends the frame pool to the kernel, [`Program`] decides on one interface what is ours, [`XskQueue`] is the
//! driver on one of its queues. Control opens all three; a worker polls the queue.

mod abi;
pub mod attach;
pub mod bind;
pub mod device;
mod gather;
mod lasting;
pub mod program;
pub mod queue;
mod ring;
mod socket;
pub mod umem;
pub mod watchdog;

pub use attach::{AttachMode, Attached};
pub use bind::{BindMode, QueueOptions};
pub use device::{Device, DeviceError, Interface};
pub use program::{Program, ProgramError, Steering, Verdicts};
pub use queue::XskQueue;
pub use socket::OpenError;
pub use umem::Umem;
pub use watchdog::{Stall, Watchdog};
