//! A packet generator that makes frames where the kernel sends them: an XDP program under `BPF_PROG_TEST_RUN` with live
//! frames. One core makes between two and three million packets a second on veth, where a copying socket makes one.
//!
//! Owner: one thread, inside the sender's network namespace from [`Generator::new`] to the last [`Generator::run`].
//! Source: Documentation/bpf/bpf_prog_run.rst (Linux 5.18); the program is `bpf/livegen.bpf.c`. Needs CAP_BPF and
//! CAP_NET_ADMIN. What is sent into a veth arrives only if its peer has XDP or GRO on.

use aya::maps::{Array, MapData};
use aya::programs::Xdp;
use aya::{Ebpf, include_bytes_aligned};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/livegen.bpf.o"));

/// Header bytes that the program writes for each packet; frames are no shorter.
pub const HEAD: usize = 64;
/// Destinations a stream may have.
pub const DESTINATIONS: usize = 1024;
const STREAM: usize = 16 + HEAD;
/// Frames the kernel keeps in flight (its limit is 256).
const BATCH: u32 = 64;

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The stream cannot be generated.
    #[error("{0}")]
    Stream(String),
    /// The program or a map was refused.
    #[error("the kernel refuses the generator's program: {0}; it needs CAP_BPF and CAP_NET_ADMIN")]
    Load(String),
    /// The kernel does not run it.
    #[error("BPF_PROG_TEST_RUN with live frames: {0}; Linux 5.18 or newer is needed")]
    Run(io::Error),
}

/// One stream of UDP packets.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Interface index of the way out, in the namespace of the calling thread.
    pub ifindex: u32,
    /// Frame length in bytes, without FCS: [`HEAD`] to 3,000.
    pub length: usize,
    /// Source ports used in turn.
    pub flows: u16,
    /// First of them.
    pub first_port: u16,
    /// Ethernet, IP and UDP header; ports, IPv4 destination and IPv4 header checksum are filled in. The UDP checksum must be
    /// right for source port 0 followed by the payload word `0xffff`, or zero.
    pub head: [u8; HEAD],
    /// IPv4 destinations used in turn; empty: the one in `head`.
    pub destinations: Vec<Ipv4Addr>,
}

/// The loaded program.
pub struct Generator {
    ebpf: Ebpf,
    frame: Vec<u8>,
}

fn load(error: impl std::fmt::Display) -> LiveError {
    LiveError::Load(error.to_string())
}

impl Generator {
    /// Loads the program for a stream.
    ///
    /// # Errors
    /// When the stream is out of bounds, or the kernel refuses the program.
    pub fn new(stream: &Stream) -> Result<Self, LiveError> {
        if !(HEAD..=3000).contains(&stream.length) {
            return Err(LiveError::Stream(format!("frames are {HEAD} to 3000 bytes long, not {}", stream.length)));
        }
        if stream.flows == 0 || u32::from(stream.first_port) + u32::from(stream.flows) > 65_536 {
            return Err(LiveError::Stream("source ports end at 65535, and there is at least one".into()));
        }
        if stream.destinations.len() > DESTINATIONS {
            return Err(LiveError::Stream(format!("at most {DESTINATIONS} destinations")));
        }
        let v6 = stream.head[12..14] == [0x86, 0xdd];
        let mut ebpf = Ebpf::load(OBJECT).map_err(load)?;
        let count = stream.destinations.len().max(1) as u32;
        let mut bytes = [0; STREAM];
        bytes[0..4].copy_from_slice(&stream.ifindex.to_ne_bytes());
        bytes[4..8].copy_from_slice(&u32::from(stream.flows).to_ne_bytes());
        bytes[8..12].copy_from_slice(&count.to_ne_bytes());
        bytes[12..14].copy_from_slice(&stream.first_port.to_ne_bytes());
        bytes[14..16].copy_from_slice(&u16::from(v6).to_ne_bytes());
        bytes[16..].copy_from_slice(&stream.head);
        let mut table: Array<&mut MapData, [u8; STREAM]> =
            Array::try_from(ebpf.map_mut("stream").ok_or_else(|| load("no map `stream`"))?).map_err(load)?;
        table.set(0, bytes, 0).map_err(load)?;
        let own = [Ipv4Addr::new(stream.head[30], stream.head[31], stream.head[32], stream.head[33])];
        let all: &[Ipv4Addr] = if stream.destinations.is_empty() { &own } else { &stream.destinations };
        let mut table: Array<&mut MapData, [u8; 4]> =
            Array::try_from(ebpf.map_mut("destinations").ok_or_else(|| load("no map `destinations`"))?)
                .map_err(load)?;
        for (at, address) in (0u32..).zip(all) {
            table.set(at, address.octets(), 0).map_err(load)?;
        }
        let program: &mut Xdp =
            ebpf.program_mut("livegen").ok_or_else(|| load("no program"))?.try_into().map_err(load)?;
        program.load().map_err(load)?;
        let mut frame = vec![0; stream.length];
        frame[..HEAD].copy_from_slice(&stream.head);
        Ok(Generator { ebpf, frame })
    }

    /// Makes `packets` packets on the calling CPU and returns when they are sent or were refused by the interface.
    ///
    /// # Errors
    /// When the kernel does not know live frames.
    pub fn run(&mut self, packets: u32) -> Result<(), LiveError> {
        let program: &mut Xdp =
            self.ebpf.program_mut("livegen").ok_or_else(|| load("no program"))?.try_into().map_err(load)?;
        let fd = program.fd().map_err(load)?.as_fd().as_raw_fd();
        match test_run(fd, &self.frame, packets) {
            // A signal ends a run early; what is missing is not made up for.
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(LiveError::Run(error)),
            _ => Ok(()),
        }
    }
}

/// `union bpf_attr`, the part of BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

fn test_run(fd: i32, frame: &[u8], repeat: u32) -> io::Result<()> {
    let mut attr = TestRun {
        prog_fd: fd as u32,
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size: BATCH,
        ..TestRun::default()
    };
    // SAFETY: the kernel reads `size` bytes of `attr` and `data_size_in` bytes at `data_in`, both of which are borrowed for
    // the call; no output buffer is given, and it keeps no pointer. It may write `retval` and `duration` into `attr`,
    // which is not shared.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &mut attr as *mut TestRun, size_of::<TestRun>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Stream {
        Stream { ifindex: 1, length: 64, flows: 1, first_port: 1024, head: [0; HEAD], destinations: Vec::new() }
    }

    #[test]
    fn what_cannot_be_generated_is_refused_before_anything_is_loaded() {
        for wrong in [
            Stream { length: 63, ..stream() },
            Stream { length: 3001, ..stream() },
            Stream { flows: 0, ..stream() },
            Stream { first_port: 65_535, flows: 2, ..stream() },
            Stream { destinations: vec![Ipv4Addr::LOCALHOST; 1025], ..stream() },
        ] {
            assert!(matches!(Generator::new(&wrong), Err(LiveError::Stream(_))));
        }
    }

    #[test]
    fn the_committed_object_was_made_from_these_sources() {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for byte in [include_bytes!("../bpf/kernel.h").as_slice(), include_bytes!("../bpf/livegen.bpf.c")].concat() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        assert_eq!(include_str!("../bpf/livegen.bpf.digest").trim(), format!("{hash:016x}"));
    }
}
