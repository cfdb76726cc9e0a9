//! The TAP driver: a pod's or the host's interface as a file descriptor that carries whole TCP segments.
//!
//! A TAP device lives in the network namespace where its kernel side is seen (a pod's `eth0`, the host's `sluice0`);
//! its descriptor lives in this process. Every frame crosses with a virtio-net header in front, so partial checksums
//! and segments of up to 64 KB pass unchanged in both directions. That is why pods get a TAP by default: over AF_XDP
//! on veth a segment is cut to the MTU first, which costs five sixths of the throughput.
//!
//! | Module | What it holds |
//! |---|---|
//! | [`device`] | making, attaching, deleting the device (ioctls of `linux/if_tun.h`) |
//! | [`vnet_header`] | `virtio_net_hdr_v1` ⇄ [`Checksum`](sluice_port::Checksum) and [`Gso`](sluice_port::Gso) |
//! | [`queue`] | [`TapQueue`], the [`Queue`](sluice_port::Queue) that a worker polls |
//!
//! Cost: one system call and one copy a frame in each direction; none of it batched by the kernel.

pub mod device;
pub mod queue;
pub mod vnet_header;

pub use device::{Namespace, Offloads, TapDevice, TapError, TapOptions, delete};
pub use queue::TapQueue;
