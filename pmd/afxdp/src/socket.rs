//! One AF_XDP socket: made, its rings mapped, bound to a queue of a device.
//!
//! Runs on the control thread in the device's network namespace; afterwards the socket belongs to a worker, whatever
//! namespace that is in. Source: Documentation/networking/af_xdp.rst.
//! Order matters to the kernel: ring sizes, then mappings, then bind; a bound socket can no longer be mapped.

use crate::abi::Desc;
use crate::device::Device;
use crate::ring::{Consumer, Producer};
use crate::umem::Umem;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_send_buffer_size, set_socket_send_buffer_size_force, set_xdp_rx_ring_size, set_xdp_tx_ring_size,
    set_xdp_umem_completion_ring_size, set_xdp_umem_fill_ring_size, xdp_mmap_offsets,
};
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use std::sync::Arc;
use std::time::Duration;

/// A queue whose last owner has just gone is still taken for a moment: the kernel tears sockets down later.
const BUSY_RETRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Why a socket could not be opened. Every message names what would mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The kernel has no AF_XDP.
    #[error("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS); use a kernel that has, or driver: tap or dpdk")]
    NoAfXdp,
    /// CAP_NET_RAW is missing.
    #[error(
        "no permission for AF_XDP sockets; run as root or grant CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF and CAP_IPC_LOCK"
    )]
    Permission,
    /// The packet memory may not be locked.
    #[error(
        "the {mib} MiB of packet memory exceed the limit for locked memory; grant CAP_IPC_LOCK, or raise the limit \
         (`ulimit -l unlimited`, LimitMEMLOCK=infinity)"
    )]
    LockedMemory {
        /// Size of the pool.
        mib: usize,
    },
    /// Another socket owns the queue.
    #[error("queue {queue} of {device} is in use by another AF_XDP socket; `ss -f xdp -p` shows whose it is")]
    Busy {
        /// Interface name.
        device: String,
        /// Queue number.
        queue: u32,
    },
    /// No such queue.
    #[error("{device} has no queue {queue}; `ethtool -l {device}` shows how many there are")]
    NoQueue {
        /// Interface name.
        device: String,
        /// Queue number.
        queue: u32,
    },
    /// The ring size is no power of two between 64 and 65,536.
    #[error("a ring has a power of two of slots between 64 and 65536, not {0}")]
    RingSize(u32),
    /// More than 65,535 sockets, or as many whose memory never came back.
    #[error("too many AF_XDP sockets in one process")]
    TooMany,
    /// The mode asked for does not work on this device.
    #[error("{device} refuses {mode}: {source}; use mode: auto")]
    Mode {
        /// Interface name.
        device: String,
        /// What was asked for.
        mode: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// A step failed that normally does not.
    #[error("AF_XDP socket on queue {queue} of {device}: {step}: {source}")]
    Step {
        /// Interface name.
        device: String,
        /// Queue number.
        queue: u32,
        /// Which step.
        step: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// The queue could not be entered in the steering program's map.
    #[error("queue {queue} of {device} cannot be registered with its XDP program: {why}")]
    Register {
        /// Interface name.
        device: String,
        /// Queue number.
        queue: u32,
        /// What went wrong.
        why: String,
    },
}

/// A bound socket and its rings.
pub(crate) struct Socket {
    pub rx: Consumer<Desc>,
    pub tx: Producer<Desc>,
    pub fill: Producer<u64>,
    pub completion: Consumer<u64>,
    /// Our mark in the ledger of chunks.
    pub slot: u16,
    /// The flags it is bound with.
    pub flags: SocketAddrXdpFlags,
    /// Whether TX metadata may be used.
    pub metadata: bool,
    umem: Arc<Umem>,
    fd: OwnedFd,
}

impl Socket {
    /// Opens a socket on `queue` of `device`, bound with exactly `flags`. Sleeps and retries for up to a second while
    /// the queue is busy.
    pub(crate) fn open(
        umem: &Arc<Umem>,
        device: &Device,
        queue: u32,
        ring_size: u32,
        flags: SocketAddrXdpFlags,
    ) -> Result<Socket, OpenError> {
        if !(64..=65536).contains(&ring_size) || !ring_size.is_power_of_two() {
            return Err(OpenError::RingSize(ring_size));
        }
        let step = |step| {
            let device = device.name.clone();
            move |source| OpenError::Step { device, queue, step, source }
        };
        let fd = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
            .map_err(|e| match e {
            Errno::AFNOSUPPORT => OpenError::NoAfXdp,
            Errno::PERM | Errno::ACCESS => OpenError::Permission,
            source => step("socket")(source),
        })?;
        // In copy mode each packet under way is charged to the send buffer; the default holds three of 64 KB.
        let buffer = ring_size as usize * 8192;
        if set_socket_send_buffer_size_force(&fd, buffer).is_err() {
            let _ = set_socket_send_buffer_size(&fd, buffer);
        }
        set_xdp_umem_fill_ring_size(&fd, ring_size).map_err(step("fill ring"))?;
        set_xdp_umem_completion_ring_size(&fd, ring_size).map_err(step("completion ring"))?;
        set_xdp_rx_ring_size(&fd, ring_size).map_err(step("rx ring"))?;
        set_xdp_tx_ring_size(&fd, ring_size).map_err(step("tx ring"))?;
        let at = xdp_mmap_offsets(&fd).map_err(step("ring offsets"))?;
        let rx = Consumer::map(fd.as_fd(), XDP_PGOFF_RX_RING, &at.rx, ring_size).map_err(step("map rx ring"))?;
        let tx = Producer::map(fd.as_fd(), XDP_PGOFF_TX_RING, &at.tx, ring_size).map_err(step("map tx ring"))?;
        let fill =
            Producer::map(fd.as_fd(), XDP_UMEM_PGOFF_FILL_RING, &at.fr, ring_size).map_err(step("map fill ring"))?;
        let completion = Consumer::map(fd.as_fd(), XDP_UMEM_PGOFF_COMPLETION_RING, &at.cr, ring_size)
            .map_err(step("map completion ring"))?;

        let (slot, metadata) = bind_to(umem, device, queue, &fd, flags).map_err(|e| match e {
            BindError::Kernel(Errno::BUSY) => OpenError::Busy { device: device.name.clone(), queue },
            BindError::Kernel(Errno::INVAL) if queue >= device.rx_queues => {
                OpenError::NoQueue { device: device.name.clone(), queue }
            }
            BindError::Kernel(Errno::PERM) => OpenError::Permission,
            BindError::Kernel(source) => step("bind")(source),
            BindError::Memory(Errno::NOBUFS | Errno::PERM) => {
                OpenError::LockedMemory { mib: umem.pool().region().1 >> 20 }
            }
            BindError::Memory(source) => step("register packet memory")(source),
            BindError::TooMany => OpenError::TooMany,
        })?;
        Ok(Socket { rx, tx, fill, completion, slot, flags, metadata, umem: Arc::clone(umem), fd })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.umem.members().remove(self.slot);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

enum BindError {
    Memory(Errno),
    Kernel(Errno),
    TooMany,
}

/// Binds the socket and enters it in the ledger; retries while the queue is busy, without holding the lock meanwhile.
fn bind_to(
    umem: &Umem,
    device: &Device,
    queue: u32,
    fd: &OwnedFd,
    flags: SocketAddrXdpFlags,
) -> Result<(u16, bool), BindError> {
    let mut own_registration = None;
    let mut retries = 0;
    loop {
        let error = {
            let mut members = umem.members();
            let result = match own_registration {
                Some(metadata) => bind_own(device, queue, fd, flags).map(|()| metadata),
                None => match bind_shared(&members, device, queue, fd, flags) {
                    Some(result) => result,
                    None => {
                        let metadata = umem.register(fd.as_fd()).map_err(BindError::Memory)?;
                        own_registration = Some(metadata);
                        bind_own(device, queue, fd, flags).map(|()| metadata)
                    }
                },
            };
            match result {
                Ok(metadata) => {
                    let slot = members.reserve().ok_or(BindError::TooMany)?;
                    members.add(slot, flags.bits(), metadata, fd.as_fd());
                    return Ok((slot, metadata));
                }
                Err(error) => error,
            }
        };
        retries += 1;
        if error != Errno::BUSY || retries > BUSY_RETRIES {
            return Err(BindError::Kernel(error));
        }
        std::thread::sleep(BUSY_PAUSE);
    }
}

fn bind_own(device: &Device, queue: u32, fd: &OwnedFd, flags: SocketAddrXdpFlags) -> Result<(), Errno> {
    bind(fd, &SocketAddrXdp::new(flags, device.index, queue))
}

/// Binds through a socket that already has the region with these flags, which the kernel then takes over from it;
/// `None` if there is none.
fn bind_shared(
    members: &crate::umem::Members,
    device: &Device,
    queue: u32,
    fd: &OwnedFd,
    flags: SocketAddrXdpFlags,
) -> Option<Result<bool, Errno>> {
    for (member, shared_umem_fd) in members.sharing(flags.bits()) {
        let addr = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, device.index, queue);
        match bind(fd, &SocketAddrXdpWithSharedUmem { addr, shared_umem_fd }) {
            // Its device has been removed, so it is no longer bound: ask the next one.
            Err(Errno::BADF) => continue,
            // The socket we ask is on this very queue, which it would share under other rules: the queue is taken.
            Err(Errno::INVAL) if queue < device.rx_queues => return Some(Err(Errno::BUSY)),
            result => return Some(result.map(|()| member.metadata)),
        }
    }
    None
}
