//! Capture files: reads classic pcap (either byte order, microseconds or nanoseconds) and pcapng, writes classic pcap.
//!
//! Owner: the thread that opened the file; not for the packet path. Source: draft-ietf-opsawg-pcap and
//! draft-ietf-opsawg-pcapng (if_tsresol, if_tsoffset). Invariants: timestamps are nanoseconds since 1970 and keep the
//! input's resolution; only whole Ethernet packets pass, since a packet cut by a snap length would be judged as
//! malformed; written files are little-endian whatever the machine, so equal packets give equal bytes. Packets are
//! numbered from 1 in errors, as tcpdump and Wireshark number them.

mod reader;
mod writer;

pub use reader::PcapReader;
pub use writer::PcapWriter;

use std::io;
use std::path::{Path, PathBuf};

/// Longest packet read or written, in bytes: tcpdump's default snap length.
pub const SNAPLEN: u32 = 262_144;

const NS_PER_SECOND: u128 = 1_000_000_000;

/// Why a capture cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// The file cannot be opened or created.
    #[error("{}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file does not begin as a capture does.
    #[error("{}: not a pcap or pcapng file: {why}", path.display())]
    NotACapture {
        /// The file.
        path: PathBuf,
        /// What is wrong with its beginning.
        why: String,
    },
    /// The packets are not Ethernet frames.
    #[error("{}: link type {link} is not supported, only Ethernet (1)", path.display())]
    LinkType {
        /// The file.
        path: PathBuf,
        /// The number the file has (LINKTYPE_ registry).
        link: u32,
    },
    /// A packet, or what stands between it and the one before, cannot be used.
    #[error("{}: packet {packet}: {why}", path.display())]
    Packet {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        packet: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A packet cannot be written.
    #[error("{}: cannot write packet {packet}: {why}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        packet: u64,
        /// What is wrong.
        why: String,
    },
}

/// Precision of a capture's timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Resolution {
    /// Whole microseconds.
    #[default]
    Microseconds,
    /// Nanoseconds.
    Nanoseconds,
}

/// One packet: nanoseconds since 1970 and the bytes of its frame.
pub type Packet = (u64, Vec<u8>);

/// A whole capture in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// The finest resolution found in the file; what a copy should be written with.
    pub resolution: Resolution,
    /// The packets, in file order.
    pub packets: Vec<Packet>,
}

impl Capture {
    /// Reads a file to its end.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, PcapError> {
        let mut reader = PcapReader::open(path)?;
        let packets = reader.by_ref().collect::<Result<_, _>>()?;
        Ok(Capture { resolution: reader.resolution(), packets })
    }
}

/// The packets of a capture file, in file order.
pub fn read_all(path: impl AsRef<Path>) -> Result<Vec<Packet>, PcapError> {
    Capture::read(path).map(|capture| capture.packets)
}
