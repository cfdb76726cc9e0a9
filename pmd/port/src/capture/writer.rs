//! Writes classic pcap, the same bytes on every machine.
//!
//! Owner: the thread that created the file. Source: draft-ietf-opsawg-pcap. Cost: a buffered write per packet.

use super::{NS_PER_SECOND, PcapError, Resolution, SNAPLEN};
use pcap_file::pcap::PcapHeader;
use pcap_file::{DataLink, Endianness, TsResolution};
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// Writes a classic pcap file of Ethernet packets.
pub struct PcapWriter {
    path: PathBuf,
    out: BufWriter<File>,
    resolution: Resolution,
    packets: u64,
}

impl PcapWriter {
    /// Creates the file (an existing one is replaced) and writes its header.
    pub fn create(path: impl AsRef<Path>, resolution: Resolution) -> Result<Self, PcapError> {
        let path = path.as_ref().to_path_buf();
        let header = PcapHeader {
            snaplen: SNAPLEN,
            datalink: DataLink::ETHERNET,
            ts_resolution: match resolution {
                Resolution::Microseconds => TsResolution::MicroSecond,
                Resolution::Nanoseconds => TsResolution::NanoSecond,
            },
            endianness: Endianness::Little,
            ..PcapHeader::default()
        };
        let mut bytes = Vec::with_capacity(24);
        let opened = header.write_to(&mut bytes).map_err(io::Error::other).and_then(|_| {
            let mut out = BufWriter::new(File::create(&path)?);
            out.write_all(&bytes)?;
            Ok(out)
        });
        match opened {
            Ok(out) => Ok(PcapWriter { path, out, resolution, packets: 0 }),
            Err(source) => Err(PcapError::Open { path, source }),
        }
    }

    /// Appends a packet sent `ns` nanoseconds after 1970; a microsecond file rounds down. Errors: more than
    /// [`SNAPLEN`] bytes, a time after 2106, the file system's.
    pub fn write(&mut self, ns: u64, packet: &[u8]) -> Result<(), PcapError> {
        let second = NS_PER_SECOND as u64;
        let Ok(seconds) = u32::try_from(ns / second) else {
            return Err(self.failed(format!("{ns} ns do not fit a pcap timestamp")));
        };
        let length = match u32::try_from(packet.len()) {
            Ok(length) if length <= SNAPLEN => length,
            _ => return Err(self.failed(format!("{} bytes, more than {SNAPLEN}", packet.len()))),
        };
        let fraction = match self.resolution {
            Resolution::Microseconds => (ns % second) / 1000,
            Resolution::Nanoseconds => ns % second,
        };
        // The record header of pcap: seconds, fraction, captured and original length.
        let mut header = [0; 16];
        for (field, value) in header.chunks_exact_mut(4).zip([seconds, fraction as u32, length, length]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        let written = self.out.write_all(&header).and_then(|()| self.out.write_all(packet));
        written.map_err(|error| self.failed(error.to_string()))?;
        self.packets += 1;
        Ok(())
    }

    /// Packets written so far.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Hands what is buffered to the system, so that the file ends with a whole packet.
    pub fn flush(&mut self) -> Result<(), PcapError> {
        self.out.flush().map_err(|error| self.failed(error.to_string()))
    }

    /// Flushes and closes. A writer that is only dropped flushes too, but cannot say that it failed.
    pub fn finish(mut self) -> Result<(), PcapError> {
        self.flush()
    }

    fn failed(&self, why: String) -> PcapError {
        PcapError::Write { path: self.path.clone(), packet: self.packets + 1, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{Capture, read_all};
    use proptest::prelude::*;

    #[test]
    fn a_written_file_is_these_bytes_on_any_machine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.pcap");
        let mut writer = PcapWriter::create(&path, Resolution::Microseconds).unwrap();
        writer.write(1_000_002_999, &[0xaa, 0xbb]).unwrap();
        writer.finish().unwrap();
        #[rustfmt::skip]
        let expected = [
            0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0,
            1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0xaa, 0xbb,
        ];
        assert_eq!(std::fs::read(&path).unwrap(), expected);
        PcapWriter::create(&path, Resolution::Nanoseconds).unwrap().finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[..4], [0x4d, 0x3c, 0xb2, 0xa1]);
    }

    #[test]
    fn what_a_pcap_cannot_hold_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.pcap");
        let mut writer = PcapWriter::create(&path, Resolution::Nanoseconds).unwrap();
        writer.write(0, &[1]).unwrap();
        let late = writer.write(u64::from(u32::MAX) * 1_000_000_000 + 1_000_000_000, &[2]).unwrap_err().to_string();
        assert!(late.contains("cannot write packet 2: 4294967296000000000 ns"), "{late}");
        assert!(writer.write(0, &vec![0; SNAPLEN as usize + 1]).is_err());
        writer.finish().unwrap();
        assert_eq!(read_all(&path).unwrap(), [(0, vec![1])]);
        assert!(matches!(
            PcapWriter::create("/nonexistent/out.pcap", Resolution::Microseconds),
            Err(PcapError::Open { .. })
        ));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(
            packets in prop::collection::vec((0u64..4_000_000_000_000_000_000, prop::collection::vec(any::<u8>(), 0..2000)), 0..20),
            nano in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("out.pcap");
            let resolution = if nano { Resolution::Nanoseconds } else { Resolution::Microseconds };
            let mut writer = PcapWriter::create(&path, resolution).unwrap();
            for (ns, bytes) in &packets {
                writer.write(*ns, bytes).unwrap();
            }
            prop_assert_eq!(writer.packets(), packets.len() as u64);
            writer.finish().unwrap();
            let unit = if nano { 1 } else { 1000 };
            let packets = packets.into_iter().map(|(ns, bytes)| (ns / unit * unit, bytes)).collect();
            prop_assert_eq!(Capture::read(&path).unwrap(), Capture { resolution, packets });
        }
    }
}
