//! The packets of a replay: read from captures, merged by time.

use super::verdict::Names;
use anyhow::{Result, bail};
use sluice_port::capture::{Capture, Resolution};
use sluice_wire::Layers;
use std::net::IpAddr;
use std::path::PathBuf;

/// One packet of an input.
#[derive(Clone, Debug)]
pub struct Input {
    /// Nanoseconds of the capture's clock.
    pub time: u64,
    /// Port number it comes in on.
    pub port: u16,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// Reads every `PORT=FILE`; the captures written have nanoseconds if one read had. Packets are merged by time, ties in order of the arguments, then of the file.
pub fn read(inputs: &[(String, PathBuf)], names: &Names) -> Result<(Vec<Input>, Resolution)> {
    let mut all = Vec::new();
    let mut resolution = Resolution::Microseconds;
    let mut seen = Vec::new();
    for (name, path) in inputs {
        let Some(port) = names.number(name) else {
            bail!("--rx {name}=…: no such port on this node; it has {}", names.list());
        };
        if seen.contains(&port) {
            bail!("--rx {name}=…: the port is named twice");
        }
        seen.push(port);
        let capture = Capture::read(path)?;
        if capture.resolution == Resolution::Nanoseconds {
            resolution = Resolution::Nanoseconds;
        }
        for (time, bytes) in capture.packets {
            all.push(Input { time, port, bytes });
        }
    }
    all.sort_by_key(|input| input.time);
    Ok((all, resolution))
}

/// Calls `f` with the addresses of a frame, and of the packet inside if it is an overlay packet.
pub fn for_each_address(frame: &[u8], mut f: impl FnMut(IpAddr)) {
    let mut from = frame;
    for _ in 0..2 {
        let Ok(layers) = Layers::parse(from, from.len()) else { return };
        [layers.source(from), layers.destination(from)].into_iter().flatten().for_each(&mut f);
        match from.get(usize::from(layers.l4) + 16..) {
            Some(inner) if layers.protocol.0 == 17 => from = inner,
            _ => return,
        }
    }
}

/// What the queue of a frame from the uplink is chosen by: its source address, as a device does whose RSS looks at addresses
/// alone. So one worker has all of a client's flows, and the SNAT ports they lease do not depend on the number of workers.
pub fn spread(frame: &[u8]) -> usize {
    let Ok(layers) = Layers::parse(frame, frame.len()) else { return 0 };
    match layers.source(frame) {
        Some(IpAddr::V4(a)) => a.octets().iter().map(|b| usize::from(*b)).sum(),
        Some(IpAddr::V6(a)) => a.octets().iter().map(|b| usize::from(*b)).sum(),
        None => 0,
    }
}
