//! A TAP device: made or attached in a chosen network namespace, set up for virtio headers, deleted when asked.
//!
//! Owner: the control thread; all calls here are slow (a thread and some ioctls each).
//! Source: `Documentation/networking/tuntap.rst`, `linux/if_tun.h`.
//! Invariants: the caller's network namespace is never changed (`setns` happens on a thread that ends with the call).
//! A descriptor keeps the namespace it was opened in alive: whoever holds a [`TapDevice`] of a pod must drop it when
//! the pod is gone.

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Bytes of the virtio header in front of every frame: `virtio_net_hdr_v1`, little-endian.
pub const HEADER_BYTES: usize = 12;
/// Longest interface name, without the final zero (IFNAMSIZ - 1).
const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// What could not be done to a TAP device.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Linux does not take this as an interface name.
    #[error("`{0}` is no interface name: 1 to {NAME_MAX} bytes, no `/`, no white space")]
    Name(String),
    /// The network namespace cannot be opened.
    #[error("cannot open network namespace {path}: {source}", path = path.display())]
    OpenNamespace {
        /// Path as given.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// The network namespace cannot be entered.
    #[error("cannot enter the network namespace for {name}: {source}; this needs CAP_SYS_ADMIN")]
    EnterNamespace {
        /// Interface wanted there.
        name: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// The TAP driver's control file cannot be opened.
    #[error("cannot open /dev/net/tun: {0}; the kernel needs CONFIG_TUN and the process the device file")]
    Control(Errno),
    /// The device exists and another descriptor is attached to it.
    #[error("interface {0} is in use by another process")]
    Busy(String),
    /// An interface of this name exists and is no TAP.
    #[error("interface {0} exists and is no single-queue TAP device")]
    NotTap(String),
    /// An ioctl failed for another cause.
    #[error("{request} on {name}: {source}")]
    Ioctl {
        /// Name of the ioctl.
        request: &'static str,
        /// Interface.
        name: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// The thread that enters the namespace could not be started or died.
    #[error("no thread to enter the network namespace for {0}")]
    Thread(String),
}

/// Where a device is to be.
#[derive(Clone, Copy, Debug)]
pub enum Namespace<'a> {
    /// The caller's own network namespace.
    Current,
    /// A namespace held open by descriptor.
    Fd(BorrowedFd<'a>),
    /// A namespace by path: `/run/netns/NAME`, `/proc/PID/ns/net`, what `CNI_NETNS` says.
    Path(&'a Path),
}

/// Which device is wanted.
#[derive(Clone, Copy, Debug)]
pub struct TapOptions<'a> {
    /// Interface name in its namespace.
    pub name: &'a str,
    /// Where it is to be.
    pub namespace: Namespace<'a>,
    /// Keep the device, its addresses and routes when the descriptor is closed (TUNSETPERSIST), so that a restarted
    /// process attaches to what pods never lost.
    pub persist: bool,
    /// Take UDP datagrams segmented by the socket (UDP_SEGMENT) whole, where the kernel can.
    pub udp_segmentation: bool,
    /// Take nothing unfinished: the kernel completes checksums and cuts segments, for frames that leave by a port which
    /// cannot.
    pub finished: bool,
}

impl<'a> TapOptions<'a> {
    /// A persistent device that takes all the kernel offers, in the caller's namespace.
    pub fn new(name: &'a str) -> Self {
        TapOptions { name, namespace: Namespace::Current, persist: true, udp_segmentation: true, finished: false }
    }

    /// The same in another namespace.
    pub fn within(self, namespace: Namespace<'a>) -> Self {
        TapOptions { namespace, ..self }
    }
}

/// What the kernel agreed to hand us unfinished (TUNSETOFFLOAD).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames may come with partial checksums.
    pub checksum: bool,
    /// TCP segments longer than the MTU, both families.
    pub tso: bool,
    /// UDP datagrams longer than the MTU, both families.
    pub uso: bool,
}

impl Offloads {
    fn bits(self) -> libc::c_uint {
        let mut bits = 0;
        if self.checksum {
            bits |= libc::TUN_F_CSUM;
        }
        if self.tso {
            bits |= libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        }
        if self.uso {
            bits |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
        }
        bits
    }
}

/// An attached TAP device, non-blocking.
#[derive(Debug)]
pub struct TapDevice {
    pub(crate) fd: OwnedFd,
    name: String,
    created: bool,
    offloads: Offloads,
    reason: &'static str,
}

impl TapDevice {
    /// Makes the device, or attaches to a persistent one of that name, and negotiates offloads.
    pub fn open(options: &TapOptions<'_>) -> Result<Self, TapError> {
        check_name(options.name)?;
        within(options.namespace, options.name, || attach(options))
    }

    /// Interface name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether this call made the device; `false` if it was there already.
    pub fn created(&self) -> bool {
        self.created
    }

    /// What was negotiated.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Why not more was negotiated; empty if all was.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

/// Deletes a persistent device that nobody is attached to. `false` if there was none.
pub fn delete(name: &str, namespace: Namespace<'_>) -> Result<bool, TapError> {
    check_name(name)?;
    within(namespace, name, || {
        if !exists(name)? {
            return Ok(false);
        }
        let fd = control()?;
        set_iff(&fd, name, 0)?;
        ioctl_int(&fd, libc::TUNSETPERSIST, 0).map_err(|source| TapError::Ioctl {
            request: "TUNSETPERSIST",
            name: name.to_owned(),
            source,
        })?;
        Ok(true)
    })
}

fn check_name(name: &str) -> Result<(), TapError> {
    let bad = name.is_empty()
        || name.len() > NAME_MAX
        || name == "."
        || name == ".."
        || name.contains(|c: char| c == '/' || c == ':' || c == '%' || c == '\0' || c.is_whitespace());
    if bad { Err(TapError::Name(name.to_owned())) } else { Ok(()) }
}

/// Runs `work` in `namespace`, on a thread of its own unless that is the caller's.
fn within<T: Send>(
    namespace: Namespace<'_>,
    name: &str,
    work: impl FnOnce() -> Result<T, TapError> + Send,
) -> Result<T, TapError> {
    let opened;
    let fd = match namespace {
        Namespace::Current => return work(),
        Namespace::Fd(fd) => fd,
        Namespace::Path(path) => {
            opened = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|source| TapError::OpenNamespace { path: path.to_owned(), source })?;
            opened.as_fd()
        }
    };
    let visitor = || {
        move_into_link_name_space(fd, Some(LinkNameSpaceType::Network))
            .map_err(|source| TapError::EnterNamespace { name: name.to_owned(), source })?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("tap-setns".into()).spawn_scoped(scope, visitor);
        thread.ok().and_then(|t| t.join().ok()).unwrap_or_else(|| Err(TapError::Thread(name.to_owned())))
    })
}

fn control() -> Result<OwnedFd, TapError> {
    openat(CWD, "/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(TapError::Control)
}

fn exists(name: &str) -> Result<bool, TapError> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with};
    let error = |source| TapError::Ioctl { request: "SIOCGIFINDEX", name: name.to_owned(), source };
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(error)?;
    match name_to_index(&socket, name) {
        Ok(_) => Ok(true),
        Err(Errno::NODEV) => Ok(false),
        Err(source) => Err(error(source)),
    }
}

fn attach(options: &TapOptions<'_>) -> Result<TapDevice, TapError> {
    let name = options.name;
    let fd = control()?;
    // With IFF_TUN_EXCL an existing device is EBUSY whoever holds it; only the second try tells whether it is free.
    let created = match set_iff(&fd, name, libc::IFF_TUN_EXCL) {
        Ok(()) => true,
        Err(TapError::Busy(_)) => {
            set_iff(&fd, name, 0)?;
            false
        }
        Err(error) => return Err(error),
    };
    let set = |request, label, value| {
        ioctl_int(&fd, request, value).map_err(|source| TapError::Ioctl {
            request: label,
            name: name.to_owned(),
            source,
        })
    };
    set(libc::TUNSETVNETHDRSZ, "TUNSETVNETHDRSZ", HEADER_BYTES as libc::c_int)?;
    set(libc::TUNSETVNETLE, "TUNSETVNETLE", 1)?;
    let (offloads, reason) = negotiate(&fd, options).map_err(|source| TapError::Ioctl {
        request: "TUNSETOFFLOAD",
        name: name.to_owned(),
        source,
    })?;
    // Last, so that a half-made device disappears with its descriptor. A non-persistent request also clears the mark
    // that an earlier process may have left.
    set(libc::TUNSETPERSIST, "TUNSETPERSIST", libc::c_int::from(options.persist))?;
    Ok(TapDevice { fd, name: name.to_owned(), created, offloads, reason })
}

/// Asks for the most first: a refused request leaves *all* offloads as they were, so each step names its whole set.
fn negotiate(fd: &OwnedFd, options: &TapOptions<'_>) -> Result<(Offloads, &'static str), Errno> {
    if options.finished {
        ioctl_value(fd, libc::TUNSETOFFLOAD, 0)?;
        return Ok((Offloads::default(), "offloads switched off"));
    }
    let udp = options.udp_segmentation;
    let full = Offloads { checksum: true, tso: true, uso: true };
    let no_uso = Offloads { uso: false, ..full };
    let steps = [
        (full, ""),
        (no_uso, if udp { "kernel without UDP segmentation on TAP (USO)" } else { "UDP segmentation switched off" }),
        (Offloads { tso: false, ..no_uso }, "kernel refused TCP segmentation on TAP (TSO4, TSO6)"),
        (Offloads::default(), "kernel refused checksum and segmentation offloads on TAP"),
    ];
    let mut refused = Errno::INVAL;
    for (offloads, reason) in steps.into_iter().skip(usize::from(!udp)) {
        match ioctl_value(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads.bits())) {
            Ok(()) => return Ok((offloads, reason)),
            Err(errno) => refused = errno,
        }
    }
    Err(refused)
}

fn set_iff(fd: &OwnedFd, name: &str, extra: libc::c_int) -> Result<(), TapError> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            // The flags fill 16 bits by definition of the ABI; IFF_TUN_EXCL is bit 15.
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | extra) as u16 as libc::c_short,
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is; the name was checked to leave room for the
    // final zero; the descriptor is open for the length of the call.
    let status = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    match outcome(status) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(TapError::Busy(name.to_owned())),
        Err(Errno::INVAL) => Err(TapError::NotTap(name.to_owned())),
        Err(source) => Err(TapError::Ioctl { request: "TUNSETIFF", name: name.to_owned(), source }),
    }
}

/// An ioctl whose argument is a pointer to an `int`.
fn ioctl_int(fd: &OwnedFd, request: libc::Ioctl, value: libc::c_int) -> Result<(), Errno> {
    // TUNSETPERSIST takes the value itself, the others a pointer to it.
    if request == libc::TUNSETPERSIST {
        return ioctl_value(fd, request, value as libc::c_ulong);
    }
    // SAFETY: the requests passed here (TUNSETVNETHDRSZ, TUNSETVNETLE) read one `int` through the pointer; `value`
    // outlives the call.
    outcome(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const value) })
}

/// An ioctl whose argument is a plain number.
fn ioctl_value(fd: &OwnedFd, request: libc::Ioctl, value: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: the requests passed here (TUNSETOFFLOAD, TUNSETPERSIST) take a number; no memory is involved.
    outcome(unsafe { libc::ioctl(fd.as_raw_fd(), request, value) })
}

fn outcome(status: libc::c_int) -> Result<(), Errno> {
    if status >= 0 { Ok(()) } else { Err(last_errno()) }
}

/// What the last libc call of this thread failed with.
pub(crate) fn last_errno() -> Errno {
    let error = std::io::Error::last_os_error();
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_the_kernel_would_refuse_is_refused_before_any_system_call() {
        for name in ["", ".", "..", "a/b", "a b", "a:1", "tap%d", "sixteen-letters!"] {
            assert!(matches!(check_name(name), Err(TapError::Name(_))), "{name:?}");
        }
        for name in ["eth0", "sluice0", "fifteen-letters"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn the_offload_bits_are_those_of_if_tun_h() {
        assert_eq!(Offloads { checksum: true, tso: true, uso: true }.bits(), 0x67);
        assert_eq!(Offloads { checksum: true, tso: true, uso: false }.bits(), 0x07);
        assert_eq!(Offloads::default().bits(), 0);
    }

    #[test]
    fn a_missing_namespace_is_named_in_the_error() {
        let path = Path::new("/run/netns/sg-tap-never-made");
        let error = TapDevice::open(&TapOptions::new("eth0").within(Namespace::Path(path))).unwrap_err();
        assert!(error.to_string().contains("sg-tap-never-made"), "{error}");
    }
}
