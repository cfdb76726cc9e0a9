//! A port made of files: it receives the packets of a capture and writes what is sent to another.
//!
//! Owner: one worker, like any queue. The input is read whole when the port opens, so that a bad file is an error then
//! and not in the middle of a run. Time is the packets' own: a port that receives sets the run's [`PcapClock`] to the
//! packet's timestamp, a port that sends stamps with it; nothing here reads a clock or sleeps. Invariants: the same
//! calls give the same bytes. Cost: a copy per packet and a buffered write; not a driver for speed.

pub use crate::capture::{Capture, Packet, PcapError, PcapReader, PcapWriter, Resolution, SNAPLEN, read_all};
use crate::offload::complete_checksum;
use crate::pool::PoolCache;
use crate::port::{Burst, Capabilities, PortMode, PortStats, Queue};
use core::sync::atomic::{AtomicU64, Ordering};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The time of a run: nanoseconds since 1970 of the packet received last by any port that shares it.
#[derive(Clone, Debug, Default)]
pub struct PcapClock(Arc<AtomicU64>);

impl PcapClock {
    /// Nanoseconds since 1970.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Moves the time to `ns`; a replay that merges several inputs sets it for each packet.
    pub fn set(&self, ns: u64) {
        self.0.store(ns, Ordering::Relaxed);
    }
}

/// What a [`PcapQueue`] reads and writes.
#[derive(Clone, Debug)]
pub struct PcapConfig {
    /// The capture to receive; none receives nothing.
    pub rx: Option<PathBuf>,
    /// The file to write; none takes frames and forgets them.
    pub tx: Option<PathBuf>,
    /// Of the written file; default: that of the input, microseconds without one.
    pub resolution: Option<Resolution>,
    /// The time of the run.
    pub clock: PcapClock,
    /// What the port says it can do; enforced.
    pub capabilities: Capabilities,
}

impl Default for PcapConfig {
    /// No files; completes checksums and takes chains up to [`SNAPLEN`], but no segmentation requests, which a capture
    /// cannot express.
    fn default() -> Self {
        let capabilities =
            Capabilities { tx_checksum: true, chained: true, max_frame: SNAPLEN, ..Capabilities::default() };
        PcapConfig { rx: None, tx: None, resolution: None, clock: PcapClock::default(), capabilities }
    }
}

/// A queue over capture files; see the module.
pub struct PcapQueue {
    input: std::vec::IntoIter<Packet>,
    output: Option<PcapWriter>,
    /// The first write that failed; from then on sent frames are errors.
    error: Option<PcapError>,
    /// Something is buffered: the file's header, to begin with.
    dirty: bool,
    clock: PcapClock,
    capabilities: Capabilities,
    scratch: Vec<u8>,
    stats: PortStats,
}

impl PcapQueue {
    /// Reads the input and creates the output.
    pub fn open(config: PcapConfig) -> Result<Self, PcapError> {
        let input = config.rx.map(Capture::read).transpose()?.unwrap_or_default();
        let resolution = config.resolution.unwrap_or(input.resolution);
        let output = config.tx.map(|path| PcapWriter::create(path, resolution)).transpose()?;
        let capabilities =
            Capabilities { max_frame: config.capabilities.max_frame.min(SNAPLEN), ..config.capabilities };
        Ok(PcapQueue {
            input: input.packets.into_iter(),
            output,
            error: None,
            dirty: true,
            clock: config.clock,
            capabilities,
            scratch: Vec::new(),
            stats: PortStats::default(),
        })
    }

    /// Packets not received yet; 0 when the capture is at its end.
    pub fn remaining(&self) -> usize {
        self.input.len()
    }

    /// Writes what is buffered and says whether everything sent is in the file; `close` cannot.
    pub fn finish(mut self) -> Result<(), PcapError> {
        self.write_out();
        self.error.map_or(Ok(()), Err)
    }

    fn write_out(&mut self) {
        if core::mem::take(&mut self.dirty)
            && let Some(Err(error)) = self.output.as_mut().map(PcapWriter::flush)
        {
            self.error.get_or_insert(error);
        }
    }
}

impl Queue for PcapQueue {
    fn rx(&mut self, cache: &mut PoolCache, out: &mut Burst, max: usize) -> usize {
        let mut n = 0;
        while n < max
            && let Some((ns, bytes)) = self.input.as_slice().first()
        {
            // No chunk free: the packet stays where it is until there is.
            let Some(frame) = cache.alloc_copy(bytes) else { break };
            self.clock.set(*ns);
            self.stats.rx_bytes += bytes.len() as u64;
            out.push(frame);
            self.input.next();
            n += 1;
        }
        self.stats.rx_packets += n as u64;
        n
    }

    fn tx(&mut self, cache: &mut PoolCache, frames: &mut Burst) -> usize {
        let taken = frames.len();
        for mut frame in frames.drain(..) {
            let mut sent = self.error.is_none() && self.capabilities.accepts(&frame) && complete_checksum(&mut frame);
            if sent && let Some(writer) = &mut self.output {
                self.scratch.clear();
                frame.for_each_segment(|bytes| self.scratch.extend_from_slice(bytes));
                self.dirty = true;
                if let Err(error) = writer.write(self.clock.now(), &self.scratch) {
                    self.error = Some(error);
                    sent = false;
                }
            }
            if sent {
                self.stats.tx_packets += 1;
                self.stats.tx_bytes += frame.len() as u64;
            } else {
                self.stats.tx_errors += 1;
            }
            cache.free(frame);
        }
        taken
    }

    fn flush(&mut self, _cache: &mut PoolCache) {
        self.write_out();
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn stats(&self) -> PortStats {
        self.stats
    }

    fn mode(&self) -> PortMode {
        let reason = self.error.as_ref().map(ToString::to_string).unwrap_or_default();
        PortMode { driver: "pcap", mode: "file".into(), reason }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn close(mut self: Box<Self>, _cache: &mut PoolCache) {
        self.write_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Laws, Pair, Peer, Rig};
    use crate::pool::{FramePool, PoolOptions};
    use tempfile::TempDir;

    struct FileRig(TempDir);

    /// The far end: the written file, read again from the packet after the last one seen.
    struct FilePeer(PathBuf, usize);

    impl Peer for FilePeer {
        fn inject(&mut self, _cache: &mut PoolCache, _bytes: &[u8]) -> bool {
            false
        }

        fn collect(&mut self, _cache: &mut PoolCache, out: &mut Vec<Vec<u8>>) {
            let packets = read_all(&self.0).unwrap();
            out.extend(packets[self.1..].iter().map(|(_, bytes)| bytes.clone()));
            self.1 = packets.len();
        }

        fn close(self: Box<Self>, _cache: &mut PoolCache) {}
    }

    impl Rig for FileRig {
        fn laws(&self) -> Laws {
            // Every collect reads the whole file again, hence the fewer frames.
            Laws { live: false, stress_frames: 500, ..Laws::default() }
        }

        fn open(&mut self, _pool: &Arc<FramePool>, recorded: &[Vec<u8>]) -> Result<Pair, String> {
            let (rx, tx) = (self.0.path().join("in.pcap"), self.0.path().join("out.pcap"));
            let mut writer = PcapWriter::create(&rx, Resolution::Nanoseconds).unwrap();
            for (n, bytes) in recorded.iter().enumerate() {
                writer.write(n as u64, bytes).unwrap();
            }
            writer.finish().unwrap();
            let config = PcapConfig { rx: Some(rx), tx: Some(tx.clone()), ..PcapConfig::default() };
            let queue = PcapQueue::open(config).map_err(|e| e.to_string())?;
            Ok(Pair { queue: Box::new(queue), peer: Box::new(FilePeer(tx, 0)) })
        }
    }

    #[test]
    fn conforms_as_far_as_a_file_can() {
        conformance::assert_conforms(&mut FileRig(tempfile::tempdir().unwrap()));
    }

    fn pool() -> Arc<FramePool> {
        FramePool::new(PoolOptions { frames: 64, huge_pages: false }).unwrap()
    }

    #[test]
    fn sent_frames_carry_the_time_and_resolution_of_what_was_received() {
        let dir = tempfile::tempdir().unwrap();
        let (rx, tx) = (dir.path().join("in.pcap"), dir.path().join("out.pcap"));
        for (resolution, times) in [
            (Resolution::Nanoseconds, [1_700_000_000_123_456_789, 5]),
            (Resolution::Microseconds, [1_700_000_000_123_456_000, 5000]),
        ] {
            let mut writer = PcapWriter::create(&rx, resolution).unwrap();
            times.iter().for_each(|&ns| writer.write(ns, &[1; 60]).unwrap());
            writer.finish().unwrap();
            let pool = pool();
            let mut cache = pool.cache();
            let clock = PcapClock::default();
            let config = PcapConfig {
                rx: Some(rx.clone()),
                tx: Some(tx.clone()),
                clock: clock.clone(),
                ..PcapConfig::default()
            };
            let mut queue = PcapQueue::open(config).unwrap();
            let mut burst = Burst::new();
            for ns in times {
                assert_eq!(queue.rx(&mut cache, &mut burst, 1), 1);
                assert_eq!(clock.now(), ns);
                assert_eq!(queue.tx(&mut cache, &mut burst), 1);
            }
            assert_eq!((queue.remaining(), queue.rx(&mut cache, &mut burst, 1)), (0, 0));
            queue.finish().unwrap();
            let capture = Capture::read(&tx).unwrap();
            assert_eq!(capture, Capture { resolution, packets: times.map(|ns| (ns, vec![1; 60])).to_vec() });
            assert_eq!(std::fs::read(&tx).unwrap(), std::fs::read(&rx).unwrap());
            cache.account();
            assert_eq!(pool.outstanding(), 0);
        }
    }

    #[test]
    fn an_empty_pool_delays_packets_and_loses_none() {
        let dir = tempfile::tempdir().unwrap();
        let rx = dir.path().join("in.pcap");
        let mut writer = PcapWriter::create(&rx, Resolution::Microseconds).unwrap();
        (0..70u8).for_each(|n| writer.write(0, &[n; 60]).unwrap());
        writer.finish().unwrap();
        let pool = pool();
        let mut cache = pool.cache();
        let mut queue = PcapQueue::open(PcapConfig { rx: Some(rx), ..PcapConfig::default() }).unwrap();
        let mut burst = Burst::new();
        assert_eq!(queue.rx(&mut cache, &mut burst, 100), 64);
        assert_eq!(queue.tx(&mut cache, &mut burst), 64);
        assert_eq!(queue.rx(&mut cache, &mut burst, 100), 6);
        assert_eq!(burst[5].head(), [69; 60]);
        assert_eq!((queue.stats().rx_packets, queue.stats().tx_packets), (70, 64));
        burst.drain(..).for_each(|f| cache.free(f));
    }

    #[test]
    fn a_failed_write_counts_errors_and_shows_in_the_mode() {
        // A device that opens, and is full.
        let config = PcapConfig { tx: Some("/dev/full".into()), ..PcapConfig::default() };
        let mut queue = PcapQueue::open(config).unwrap();
        let pool = pool();
        let mut cache = pool.cache();
        let mut burst = vec![cache.alloc_copy(&[1; 60]).unwrap()];
        queue.tx(&mut cache, &mut burst);
        queue.flush(&mut cache);
        assert!(queue.mode().reason.starts_with("/dev/full: cannot write"), "{}", queue.mode().reason);
        burst.push(cache.alloc_copy(&[2; 60]).unwrap());
        assert_eq!((queue.tx(&mut cache, &mut burst), queue.stats().tx_errors), (1, 1));
        assert!(queue.finish().is_err());
        cache.account();
        assert_eq!(pool.outstanding(), 0);
    }
}
