//! Reads a capture packet by packet, whatever its format.
//!
//! Owner: the thread that opened the file. Source: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng. Cost: an 8 MB buffer
//! per open file and a copy per packet.

use super::{NS_PER_SECOND, Packet, PcapError, Resolution, SNAPLEN};
use pcap_file::pcap;
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, TsResolution};
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

/// The first four bytes were read to tell the formats apart.
type Source = io::Chain<Cursor<[u8; 4]>, File>;

enum Format {
    Classic(pcap::PcapReader<Source>),
    Ng(PcapNgReader<Source>),
}

/// Reads a capture packet by packet; an iterator that ends after the first error.
pub struct PcapReader {
    path: PathBuf,
    format: Format,
    resolution: Resolution,
    packets: u64,
    failed: bool,
}

impl PcapReader {
    /// Opens a capture and checks its header.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PcapError> {
        let path = path.as_ref().to_path_buf();
        let open = |source| PcapError::Open { path: path.clone(), source };
        let not_a_capture = |why: String| PcapError::NotACapture { path: path.clone(), why };
        let mut file = File::open(&path).map_err(open)?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => not_a_capture("shorter than a file header".into()),
            _ => open(error),
        })?;
        let source = Cursor::new(magic).chain(file);
        let (format, resolution) = match u32::from_be_bytes(magic) {
            0x0a0d_0d0a => {
                let reader = PcapNgReader::new(source).map_err(|error| not_a_capture(explain(&error)))?;
                (Format::Ng(reader), Resolution::Microseconds)
            }
            0xa1b2_c3d4 | 0xa1b2_3c4d | 0xd4c3_b2a1 | 0x4d3c_b2a1 => {
                let reader = pcap::PcapReader::new(source).map_err(|error| not_a_capture(explain(&error)))?;
                let header = reader.header();
                check_link(&path, header.datalink)?;
                let resolution = match header.ts_resolution {
                    TsResolution::MicroSecond => Resolution::Microseconds,
                    TsResolution::NanoSecond => Resolution::Nanoseconds,
                };
                (Format::Classic(reader), resolution)
            }
            other => return Err(not_a_capture(format!("unknown magic number {other:#010x}"))),
        };
        Ok(PcapReader { path, format, resolution, packets: 0, failed: false })
    }

    /// The finest resolution met so far; final once the last packet was read (pcapng says it per interface).
    pub fn resolution(&self) -> Resolution {
        self.resolution
    }

    fn read(&mut self) -> Result<Option<Packet>, PcapError> {
        let number = self.packets + 1;
        let bad = |why: String| PcapError::Packet { path: self.path.clone(), packet: number, why };
        match &mut self.format {
            Format::Classic(reader) => {
                let resolution = reader.header().ts_resolution;
                let Some(raw) = reader.next_raw_packet() else { return Ok(None) };
                let raw = raw.map_err(|error| bad(explain(&error)))?;
                let fraction = match resolution {
                    TsResolution::MicroSecond => u64::from(raw.ts_frac) * 1000,
                    TsResolution::NanoSecond => u64::from(raw.ts_frac),
                };
                if u128::from(fraction) >= NS_PER_SECOND {
                    return Err(bad(format!("its timestamp has {} fractions of a second", raw.ts_frac)));
                }
                check_length(raw.data.len(), raw.orig_len).map_err(bad)?;
                Ok(Some((u64::from(raw.ts_sec) * NS_PER_SECOND as u64 + fraction, raw.data.into_owned())))
            }
            Format::Ng(reader) => loop {
                let Some(block) = reader.next_block() else { return Ok(None) };
                let packet = match block.map_err(|error| bad(explain(&error)))? {
                    Block::EnhancedPacket(packet) => packet.into_owned(),
                    Block::SimplePacket(_) => return Err(bad("a simple packet block, which has no timestamp".into())),
                    Block::Packet(_) => return Err(bad("an obsolete packet block".into())),
                    Block::InterfaceDescription(interface) => {
                        check_link(&self.path, interface.linktype)?;
                        continue;
                    }
                    _ => continue,
                };
                let interface = usize::try_from(packet.interface_id).ok().and_then(|id| reader.interfaces().get(id));
                let interface = interface
                    .ok_or_else(|| bad(format!("names interface {}, which is not described", packet.interface_id)))?;
                let clock = Clock::of(interface);
                // The parser keeps the block's 64-bit count as if it were nanoseconds; its unit is the interface's.
                let ticks = packet.timestamp.as_nanos();
                let ns = clock.to_ns(ticks).ok_or_else(|| bad("its timestamp is out of range".into()))?;
                self.resolution = self.resolution.max(clock.resolution());
                check_length(packet.data.len(), packet.original_len).map_err(bad)?;
                return Ok(Some((ns, packet.data.into_owned())));
            },
        }
    }
}

impl Iterator for PcapReader {
    type Item = Result<Packet, PcapError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.read().transpose();
        match &item {
            Some(Ok(_)) => self.packets += 1,
            Some(Err(_)) => self.failed = true,
            None => {}
        }
        item
    }
}

/// Unit and origin of a pcapng interface's timestamps.
struct Clock {
    ticks_per_second: u128,
    offset_seconds: i64,
}

impl Clock {
    fn of(interface: &InterfaceDescriptionBlock<'_>) -> Self {
        let mut clock = Clock { ticks_per_second: 1_000_000, offset_seconds: 0 };
        for option in &interface.options {
            match *option {
                // Top bit: a negative power of two, else of ten. Powers beyond 64-bit counts leave no whole second.
                InterfaceDescriptionOption::IfTsResol(n) if n & 0x80 != 0 => {
                    clock.ticks_per_second = 1 << (n & 0x7f).min(64);
                }
                InterfaceDescriptionOption::IfTsResol(n) => clock.ticks_per_second = 10u128.pow(u32::from(n).min(19)),
                InterfaceDescriptionOption::IfTsOffset(seconds) => clock.offset_seconds = seconds as i64,
                _ => {}
            }
        }
        clock
    }

    fn to_ns(&self, ticks: u128) -> Option<u64> {
        let ns = i128::try_from(ticks * NS_PER_SECOND / self.ticks_per_second).ok()?;
        u64::try_from(ns + i128::from(self.offset_seconds) * NS_PER_SECOND as i128).ok()
    }

    fn resolution(&self) -> Resolution {
        if 1_000_000 % self.ticks_per_second == 0 { Resolution::Microseconds } else { Resolution::Nanoseconds }
    }
}

fn check_link(path: &Path, link: DataLink) -> Result<(), PcapError> {
    match link {
        DataLink::ETHERNET => Ok(()),
        other => Err(PcapError::LinkType { path: path.to_path_buf(), link: other.into() }),
    }
}

fn check_length(captured: usize, original: u32) -> Result<(), String> {
    if captured > SNAPLEN as usize {
        return Err(format!("{captured} bytes, more than {SNAPLEN}"));
    }
    if captured < original as usize {
        return Err(format!(
            "only {captured} of its {original} bytes were captured; capture with snap length {SNAPLEN}"
        ));
    }
    Ok(())
}

fn explain(error: &pcap_file::PcapError) -> String {
    match error {
        pcap_file::PcapError::IncompleteBuffer => "the file ends within it".into(),
        pcap_file::PcapError::IoError(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            "the file ends within it".into()
        }
        pcap_file::PcapError::IoError(e) => e.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Capture;
    use pcap_file::pcapng::PcapNgWriter;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
    use proptest::prelude::*;
    use std::time::Duration;
    use tempfile::TempDir;

    /// A file with these bytes, and the folder that keeps it alive.
    fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.pcap");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    /// A classic capture; `word` and `half` set the byte order.
    fn classic(magic: u32, link: u32, packets: &[(u32, u32, u32, &[u8])], word: fn(u32) -> [u8; 4]) -> Vec<u8> {
        let mut out = word(magic).to_vec();
        let version: &[u8] = if word(1)[0] == 1 { &[2, 0, 4, 0] } else { &[0, 2, 0, 4] };
        out.extend_from_slice(version);
        for field in [0, 0, 65535, link] {
            out.extend_from_slice(&word(field));
        }
        for &(seconds, fraction, original, data) in packets {
            for field in [seconds, fraction, data.len() as u32, original] {
                out.extend_from_slice(&word(field));
            }
            out.extend_from_slice(data);
        }
        out
    }

    fn ng(
        interfaces: &[(DataLink, Vec<InterfaceDescriptionOption<'static>>)],
        packets: &[(u32, u64, Packet)],
    ) -> Vec<u8> {
        let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
        for (linktype, options) in interfaces {
            let interface = InterfaceDescriptionBlock { linktype: *linktype, snaplen: 0, options: options.clone() };
            writer.write_pcapng_block(interface).unwrap();
        }
        for (interface_id, ticks, (_, data)) in packets {
            let block = EnhancedPacketBlock {
                interface_id: *interface_id,
                timestamp: Duration::from_nanos(*ticks),
                original_len: data.len() as u32,
                data: data.as_slice().into(),
                options: Vec::new(),
            };
            writer.write_pcapng_block(block).unwrap();
        }
        writer.into_inner()
    }

    #[test]
    fn both_magics_and_both_byte_orders_are_read() {
        for word in [u32::to_le_bytes, u32::to_be_bytes] {
            let (_dir, path) = file(&classic(0xa1b2_c3d4, 1, &[(5, 7, 3, &[1, 2, 3])], word));
            let capture = Capture::read(&path).unwrap();
            assert_eq!(
                capture,
                Capture { resolution: Resolution::Microseconds, packets: vec![(5_000_007_000, vec![1, 2, 3])] }
            );
            let (_dir, path) = file(&classic(0xa1b2_3c4d, 1, &[(5, 7, 3, &[1, 2, 3])], word));
            let capture = Capture::read(&path).unwrap();
            assert_eq!(
                capture,
                Capture { resolution: Resolution::Nanoseconds, packets: vec![(5_000_000_007, vec![1, 2, 3])] }
            );
        }
    }

    #[test]
    fn each_pcapng_interface_has_its_own_clock() {
        use InterfaceDescriptionOption::{IfTsOffset, IfTsResol};
        let interfaces = [
            (DataLink::ETHERNET, vec![]),
            (DataLink::ETHERNET, vec![IfTsResol(9)]),
            (DataLink::ETHERNET, vec![IfTsResol(0x80 | 10), IfTsOffset(-2i64 as u64)]),
            (DataLink::ETHERNET, vec![IfTsResol(3)]),
        ];
        let packet = |ns| (ns, vec![9; 5]);
        let packets = [
            (0, 1_500_000, packet(1_500_000_000)),
            (1, 1_500_000_001, packet(1_500_000_001)),
            (2, 5 * 1024 + 512, packet(3_500_000_000)),
            (3, 4_250, packet(4_250_000_000)),
        ];
        let (_dir, path) = file(&ng(&interfaces, &packets));
        let capture = Capture::read(&path).unwrap();
        assert_eq!(capture.packets, packets.clone().map(|p| p.2));
        assert_eq!(capture.resolution, Resolution::Nanoseconds);
        let (_dir, path) = file(&ng(&interfaces[..1], &packets[..1]));
        assert_eq!(Capture::read(&path).unwrap().resolution, Resolution::Microseconds);
    }

    #[track_caller]
    fn refused(bytes: &[u8], what: &str) {
        let (_dir, path) = file(bytes);
        let message = Capture::read(&path).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}: ", path.display())) && message.contains(what), "{message}");
    }

    #[test]
    fn an_unusable_file_is_named_with_the_reason() {
        refused(b"", "shorter than a file header");
        refused(b"hello, world", "unknown magic number 0x68656c6c");
        refused(&classic(0xa1b2_c3d4, 1, &[], u32::to_le_bytes)[..20], "the file ends within it");
        refused(&classic(0xa1b2_c3d4, 113, &[], u32::to_le_bytes), "link type 113 is not supported, only Ethernet (1)");
        refused(&ng(&[(DataLink::RAW, vec![])], &[]), "link type 101");
        let missing = Capture::read("/nonexistent/in.pcap").unwrap_err().to_string();
        assert!(missing.starts_with("/nonexistent/in.pcap: No such file"), "{missing}");
    }

    #[test]
    fn an_unusable_packet_is_named_by_its_number() {
        let good: (u32, u32, u32, &[u8]) = (1, 0, 4, &[1; 4]);
        let with = |bad| classic(0xa1b2_c3d4, 1, &[good, good, bad], u32::to_le_bytes);
        let cut = with(good);
        refused(&cut[..cut.len() - 1], "packet 3: the file ends within it");
        refused(&cut[..cut.len() - 19], "packet 3: the file ends within it");
        refused(&with((1, 0, 1514, &[1; 4])), "packet 3: only 4 of its 1514 bytes were captured");
        refused(&with((1, 1_000_000, 4, &[1; 4])), "packet 3: its timestamp");
        let huge = vec![0; SNAPLEN as usize + 1];
        refused(&with((1, 0, SNAPLEN + 1, &huge)), "packet 3: 262145 bytes, more than 262144");
        let packet = (0, 0, (0, vec![1; 4]));
        // The interface number stands 8 bytes into the last block, which is 36 long.
        let mut stray = ng(&[(DataLink::ETHERNET, vec![])], std::slice::from_ref(&packet));
        let at = stray.len() - 28;
        stray[at..at + 4].copy_from_slice(&7u32.to_ne_bytes());
        refused(&stray, "packet 1: names interface 7");
        let bytes = ng(&[(DataLink::ETHERNET, vec![])], &[packet.clone(), packet]);
        refused(&bytes[..bytes.len() - 3], "packet 2: the file ends within it");
    }

    #[test]
    fn reading_stops_at_the_first_error() {
        let bytes = classic(0xa1b2_c3d4, 1, &[(1, 0, 9, &[1; 4]), (1, 0, 4, &[1; 4])], u32::to_le_bytes);
        let (_dir, path) = file(&bytes);
        let mut reader = PcapReader::open(&path).unwrap();
        assert!(reader.next().unwrap().is_err());
        assert!(reader.next().is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(
            magic in prop::sample::select(vec![0xa1b2_c3d4u32, 0xa1b2_3c4d, 0xd4c3_b2a1, 0x0a0d_0d0a]),
            rest in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(28), any::<u8>()], 0..300),
        ) {
            let (_dir, path) = file(&[&magic.to_be_bytes()[..], &rest].concat());
            let _ = Capture::read(&path);
        }
    }
}
