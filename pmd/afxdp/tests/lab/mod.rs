//! A network namespace of one test thread, with a veth pair in it and a packet socket as the far end.
//!
//! The namespace is anonymous: it goes when the thread and the sockets made in it are gone, however the test ends.
#![allow(dead_code, reason = "each test binary uses its part")]

use sluice_afxdp::{AttachMode, Program, QueueOptions, Umem, XskQueue};
use sluice_port::{Burst, FramePool, PoolCache, PoolOptions, Queue};
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Moves the calling thread into a new network namespace; `false`, with the reason printed, if that needs root.
pub fn enter() -> bool {
    // SAFETY: changes only the calling thread's network namespace.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        println!("skipped: a network namespace needs root: {}", io::Error::last_os_error());
        return false;
    }
    for scope in ["all", "default"] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"), "0");
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/router_solicitations"), "0");
    }
    ip("link set lo up");
    true
}

/// Runs `ip ARGS` in the calling thread's namespace.
pub fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub const NEAR: &str = "sg-near";
pub const FAR: &str = "sg-far";
pub const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A veth pair, both ends up, silent (no addresses, no IPv6 chatter).
pub fn veth_pair(near: &str, far: &str, mtu: u32) {
    ip(&format!(
        "link add {near} address 02:00:00:00:00:01 mtu {mtu} numrxqueues 1 numtxqueues 1 type veth peer name {far} \
         address 02:00:00:00:00:02 mtu {mtu} numrxqueues 1 numtxqueues 1"
    ));
    for name in [near, far] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
        ip(&format!("link set {name} up"));
    }
}

/// `virtio_net_hdr` in front of each packet: what the kernel knows of its checksum and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    pub needs_checksum: bool,
    pub start: u16,
    pub offset: u16,
}

/// A packet socket on one interface.
pub struct Raw {
    fd: OwnedFd,
}

const VNET: usize = 10;

impl Raw {
    pub fn open(interface: &str) -> Raw {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain system calls on values of this function.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol));
            assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
            let fd = OwnedFd::from_raw_fd(fd);
            let one: libc::c_int = 1;
            let set = libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const one).cast(),
                size_of::<libc::c_int>() as u32,
            );
            assert_eq!(set, 0);
            let room: libc::c_int = 8 << 20;
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const room).cast(), 4);
            let name = std::ffi::CString::new(interface).unwrap();
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let bound = libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32);
            assert_eq!(bound, 0);
            Raw { fd }
        }
    }

    /// Sends a frame, with the kernel to believe its checksum is `offloads`.
    pub fn send_with(&self, frame: &[u8], offloads: Option<Offloads>) {
        let mut bytes = vec![0u8; VNET];
        if let Some(o) = offloads {
            bytes[0] = u8::from(o.needs_checksum);
            bytes[6..8].copy_from_slice(&o.start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&o.offset.to_ne_bytes());
        }
        bytes.extend_from_slice(frame);
        // SAFETY: the buffer is as long as said.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
    }

    pub fn send(&self, frame: &[u8]) {
        self.send_with(frame, None);
    }

    /// The next frame that came in (not one sent from here), within `wait`.
    pub fn recv(&self, wait: Duration) -> Option<(Vec<u8>, Offloads)> {
        let deadline = Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let mut buffer = vec![0u8; 70_000];
            // SAFETY: all pointers lead to values of this function, with their sizes.
            let (n, kind) = unsafe {
                if libc::poll(&raw mut poll, 1, left.as_millis() as i32) <= 0 {
                    return None;
                }
                let mut from: libc::sockaddr_ll = std::mem::zeroed();
                let mut len = size_of::<libc::sockaddr_ll>() as u32;
                let n = libc::recvfrom(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut len,
                );
                (n, from.sll_pkttype)
            };
            if n < VNET as isize || kind == libc::PACKET_OUTGOING {
                continue;
            }
            let offloads = Offloads {
                needs_checksum: buffer[0] & 1 != 0,
                start: u16::from_ne_bytes([buffer[6], buffer[7]]),
                offset: u16::from_ne_bytes([buffer[8], buffer[9]]),
            };
            return Some((buffer[VNET..n as usize].to_vec(), offloads));
        }
    }

    /// The first frame within a second for which `wanted` holds.
    pub fn expect(&self, wanted: impl Fn(&[u8]) -> bool) -> Option<(Vec<u8>, Offloads)> {
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            let got = self.recv(deadline.saturating_duration_since(Instant::now()))?;
            if wanted(&got.0) {
                return Some(got);
            }
        }
        None
    }
}

/// Completes a checksum that a veth passed on as a request, as the receiving stack would.
pub fn complete(bytes: &mut [u8], offloads: Offloads) {
    if !offloads.needs_checksum {
        return;
    }
    let (start, field) = (usize::from(offloads.start), usize::from(offloads.start + offloads.offset));
    let mut sum: u32 =
        bytes[start..].chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let value = if !(sum as u16) == 0 { 0xffff } else { !(sum as u16) };
    bytes[field..field + 2].copy_from_slice(&value.to_be_bytes());
}

/// A pool, its UMEM and a cache.
pub struct Memory {
    pub pool: Arc<FramePool>,
    pub umem: Arc<Umem>,
    pub cache: PoolCache,
}

impl Memory {
    pub fn new(frames: usize) -> Memory {
        let pool = FramePool::new(PoolOptions { frames, huge_pages: false }).unwrap();
        Memory { umem: Umem::new(&pool), cache: pool.cache(), pool }
    }

    pub fn open(&mut self, program: &mut Program, options: &QueueOptions) -> XskQueue {
        XskQueue::open(&self.umem, program, 0, options, &mut self.cache).unwrap()
    }

    /// Every chunk is back.
    pub fn assert_whole(mut self) {
        self.cache.account();
        assert_eq!(self.pool.outstanding(), 0, "chunks lost");
    }
}

/// A queue with everything steered to it.
pub fn open_all(interface: &str, mode: AttachMode, memory: &mut Memory) -> (Program, XskQueue) {
    let mut program = Program::attach_all(interface, mode).unwrap();
    let queue = memory.open(&mut program, &QueueOptions::default());
    (program, queue)
}

/// Receives until `count` frames are there or half a second has gone.
pub fn receive(queue: &mut XskQueue, cache: &mut PoolCache, count: usize) -> Burst {
    let mut out = Burst::new();
    let deadline = Instant::now() + Duration::from_millis(500);
    while out.len() < count && Instant::now() < deadline {
        if queue.rx(cache, &mut out, count) == 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
        queue.flush(cache);
    }
    out
}

/// What arrives in a short while, as bytes.
pub fn received(queue: &mut XskQueue, cache: &mut PoolCache, count: usize) -> Vec<Vec<u8>> {
    let frames = receive(queue, cache, count);
    frames
        .into_iter()
        .map(|frame| {
            let bytes = frame.to_vec();
            cache.free(frame);
            bytes
        })
        .collect()
}

/// Sends all frames, waiting for room.
pub fn transmit(queue: &mut XskQueue, cache: &mut PoolCache, mut frames: Burst) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while !frames.is_empty() {
        queue.tx(cache, &mut frames);
        queue.flush(cache);
        assert!(Instant::now() < deadline, "{} frames could not be sent", frames.len());
    }
}

/// A frame of an unassigned EtherType that no kernel answers: `len` bytes with a pattern that starts at `seed`.
pub fn test_frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = [NEAR_MAC, FAR_MAC].concat();
    frame.extend_from_slice(&[0x88, 0xb5]);
    frame.extend((0..len - 14).map(|i| seed.wrapping_add((i % 251) as u8)));
    frame
}
