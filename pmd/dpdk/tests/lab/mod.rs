//! A network namespace of one test thread, and far ends in it. The namespace is anonymous: it goes when the thread and the
//! sockets made in it are gone, however the test ends.

use rustix::fs::{CWD, Mode, OFlags, openat};
use sluice_port::PoolCache;
use sluice_port::conformance::Peer;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

pub const NEAR: &str = "sg-near";
pub const FAR: &str = "sg-far";
pub const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Moves the calling thread into a new network namespace without IPv6 chatter; `false`, with the reason printed, if that
/// needs root.
pub fn enter() -> bool {
    // SAFETY: changes only the calling thread's network namespace.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        println!("skipped: a network namespace needs root: {}", io::Error::last_os_error());
        return false;
    }
    for scope in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
    }
    true
}

/// Runs `ip ARGS` in the calling thread's namespace.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A veth pair, both ends up.
pub fn veth_pair() {
    ip(&format!(
        "link add {NEAR} address 02:00:00:00:00:01 numrxqueues 1 numtxqueues 1 type veth peer name {FAR} address \
         02:00:00:00:00:02 numrxqueues 1 numtxqueues 1"
    ));
    ip(&format!("link set {NEAR} up"));
    ip(&format!("link set {FAR} up"));
}

/// A TAP without virtio header and offloads: the kernel completes checksums and cuts segments in front of it.
pub fn tap_end(name: &str) -> FarEnd {
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
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
    FarEnd(fd)
}

/// A packet socket on an interface that sees what comes in and sends what goes out.
pub fn packet_end(interface: &str) -> FarEnd {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain system calls on values of this function.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, kind, i32::from(protocol));
        assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let (room, one): (libc::c_int, libc::c_int) = (8 << 20, 1);
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const room).cast(), 4);
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, (&raw const one).cast(), 4);
        let name = std::ffi::CString::new(interface).unwrap();
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let bound = libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32);
        assert_eq!(bound, 0);
        FarEnd(fd)
    }
}

/// A descriptor that a write sends a frame through and a read receives one.
pub struct FarEnd(OwnedFd);

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
