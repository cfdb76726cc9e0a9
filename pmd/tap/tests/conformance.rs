//! The drivers' conformance suite over a TAP: a bridge in a namespace of its own joins the queue's TAP with one that
//! asked for no offloads, where the kernel therefore completes checksums and cuts segments. Needs root; skips without.

use rustix::fs::{CWD, Mode, OFlags, openat};
use sluice_port::conformance::{Laws, Pair, Peer, Rig, assert_conforms};
use sluice_port::{FramePool, PoolCache};
use sluice_tap::{TapOptions, TapQueue};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

const NEAR: &str = "sg-near";
const FAR: &str = "sg-far";
const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Moves the calling thread into a new network namespace without IPv6 chatter, which goes when the thread and its
/// sockets are gone; `false`, with the reason printed, if that needs root.
fn enter() -> bool {
    // SAFETY: changes only the calling thread's network namespace.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        println!("skipped: a network namespace needs root: {}", std::io::Error::last_os_error());
        return false;
    }
    for scope in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
    }
    true
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A TAP without virtio header and offloads.
struct FarEnd(OwnedFd);

impl FarEnd {
    fn open(name: &str) -> FarEnd {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(CWD, "/dev/net/tun", flags, Mode::empty()).unwrap();
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short },
        };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: TUNSETIFF reads and writes one `ifreq`.
        let status = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
        FarEnd(fd)
    }
}

impl Peer for FarEnd {
    fn inject(&mut self, _cache: &mut PoolCache, bytes: &[u8]) -> bool {
        rustix::io::write(&self.0, bytes).is_ok()
    }

    fn collect(&mut self, _cache: &mut PoolCache, out: &mut Vec<Vec<u8>>) {
        let mut buffer = [0u8; 1 << 17];
        while let Ok(n) = rustix::io::read(&self.0, &mut buffer) {
            out.push(buffer[..n].to_vec());
        }
    }

    fn close(self: Box<Self>, _cache: &mut PoolCache) {}
}

struct Bridged {
    mtu: usize,
}

impl Rig for Bridged {
    fn laws(&self) -> Laws {
        Laws {
            longest: self.mtu + 14,
            stress_frames: 3000,
            addresses: [NEAR_MAC, FAR_MAC],
            // No ring ever fills: the kernel takes what is written, and drops what the far socket does not fetch.
            fills_after: None,
            ..Laws::default()
        }
    }

    fn open(&mut self, _pool: &Arc<FramePool>, _recorded: &[Vec<u8>]) -> Result<Pair, String> {
        let options = TapOptions { persist: false, ..TapOptions::new(NEAR) };
        let queue = TapQueue::open(&options).map_err(|error| error.to_string())?;
        let peer = FarEnd::open(FAR);
        let mtu = self.mtu;
        let _ = Command::new("ip").args(["link", "del", "sg-bridge"]).output();
        ip("link add sg-bridge type bridge stp_state 0 forward_delay 0 mcast_snooping 0");
        for name in [NEAR, FAR] {
            ip(&format!("link set {name} mtu {mtu} master sg-bridge up"));
        }
        ip("link set sg-bridge up");
        Ok(Pair { queue: Box::new(queue), peer: Box::new(peer) })
    }
}

/// One at a time: a process that a test beside this one is just starting holds our descriptors for a moment, and a device
/// is free only when the last of them is closed.
static ONE: Mutex<()> = Mutex::new(());

fn conforms(mtu: usize) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::spawn(move || {
        if enter() {
            println!("{}", assert_conforms(&mut Bridged { mtu }));
        }
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn at_mtu_1500() {
    conforms(1500);
}

#[test]
fn at_mtu_9000() {
    conforms(9000);
}

#[test]
fn at_the_longest_mtu_a_tap_has() {
    conforms(65_521);
}
