//! How a queue is bound: the best mode that the device allows, and the reasons why it is not a better one.
//!
//! Runs on the control thread when a queue is opened. Source: Documentation/networking/af_xdp.rst, `xsk_bind`.
//! Order: zero-copy with chains, zero-copy, copy with chains, copy. Cost: a refused attempt registers the packet memory
//! in vain (milliseconds), so devices known to copy always are not asked for zero-copy.

use crate::attach::Attached;
use crate::program::Program;
use crate::socket::{OpenError, Socket};
use crate::umem::Umem;
use rustix::io::Errno;
use rustix::net::xdp::SocketAddrXdpFlags as Flags;
use sluice_port::{CHUNK, HEADROOM};
use std::sync::Arc;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_HEADER: u32 = 14;

/// Which way the kernel is to move packets between the device and our memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BindMode {
    /// Zero-copy where driver and XDP mode allow it, else copy.
    #[default]
    Auto,
    /// Zero-copy or fail.
    ZeroCopy,
    /// Copy.
    Copy,
}

/// How a queue is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Slots of each of the four rings: a power of two. 512 for pods, 2048 for the uplink.
    pub ring_size: u32,
    /// Zero-copy or copy.
    pub mode: BindMode,
    /// Chunks kept with the kernel for receiving while there is little traffic. Under load the reserve doubles up to
    /// `ring_size`, as long as half of the pool is free; so hundreds of idle pods do not eat the pool.
    pub fill_reserve: u32,
}

impl Default for QueueOptions {
    fn default() -> Self {
        QueueOptions { ring_size: 512, mode: BindMode::Auto, fill_reserve: 64 }
    }
}

impl QueueOptions {
    /// For the node's uplink: large rings, filled from the start.
    pub fn uplink() -> Self {
        QueueOptions { ring_size: 2048, mode: BindMode::Auto, fill_reserve: 1024 }
    }
}

/// Binds in the best way the device allows; with the reasons why not a better one.
pub(crate) fn bind_best(
    umem: &Arc<Umem>,
    program: &Program,
    queue: u32,
    options: &QueueOptions,
) -> Result<(Socket, Vec<String>), OpenError> {
    let device = program.device();
    let open = |flags| Socket::open(umem, device, queue, options.ring_size, flags | Flags::XDP_USE_NEED_WAKEUP);
    let mut reasons = Vec::new();
    let zero_copy_is_hopeless = match program.attached() {
        Attached::Generic => Some("no zero-copy: XDP runs in generic mode".to_owned()),
        Attached::Native if device.copies_always() => Some(format!("no zero-copy: {} has none", device.driver)),
        Attached::Native => None,
    };
    match (options.mode, zero_copy_is_hopeless) {
        (BindMode::Copy, _) => reasons.push("copy mode was asked for".to_owned()),
        (BindMode::Auto, Some(why)) => reasons.push(why),
        (mode, _) => {
            // Chains in zero-copy are newer than zero-copy; without them a frame must fit a chunk.
            let fits = device.mtu + ETHERNET_HEADER + 4 <= (CHUNK - HEADROOM) as u32;
            let mut error = match open(Flags::XDP_ZEROCOPY | Flags::XDP_USE_SG) {
                Ok(socket) => return Ok((socket, reasons)),
                Err(error) => error,
            };
            if fits && matches!(error, OpenError::Step { step: "bind", .. }) {
                error = match open(Flags::XDP_ZEROCOPY) {
                    Ok(socket) => {
                        reasons.push(format!("no chained frames: {} refuses them in zero-copy mode", device.name));
                        return Ok((socket, reasons));
                    }
                    Err(error) => error,
                };
            }
            match error {
                OpenError::Step { step: "bind", source, .. } if mode == BindMode::Auto => {
                    reasons.push(format!("no zero-copy: {} driver says: {source}", device.driver));
                }
                OpenError::Step { step: "bind", source, .. } => {
                    return Err(OpenError::Mode { device: device.name.clone(), mode: "zero-copy", source });
                }
                other => return Err(other),
            }
        }
    }
    match open(Flags::XDP_COPY | Flags::XDP_USE_SG) {
        Err(OpenError::Step { step: "bind", source: Errno::INVAL, .. }) => {
            reasons.push("no chained frames: this kernel has no XDP_USE_SG (Linux 6.6)".into());
            open(Flags::XDP_COPY).map(|socket| (socket, reasons))
        }
        result => result.map(|socket| (socket, reasons)),
    }
}
