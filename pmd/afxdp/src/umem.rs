//! The frame pool as AF_XDP memory (UMEM), and who holds each of its chunks.
//!
//! One region serves all sockets of the process, so that a frame received on one is sent on another as it lies. The
//! kernel wants a registered UMEM per set of bind flags (zero-copy or copy, chains or not): the first socket of a set
//! registers the region, later ones share it by naming a bound socket of that set (`XDP_SHARED_UMEM`).
//!
//! ```text
//!   pool region   | chunk 0 | chunk 1 | chunk 2 | ...        registered once per set of flags
//!   owners        |    0    |    3    |    3    | ...        slot of the socket whose kernel side holds the chunk
//! ```
//! Why the owners: the kernel may keep a chunk where no ring shows it (taken from the fill ring for a packet that was
//! then dropped; a descriptor it refused). When a socket is gone, everything under its slot is free, exactly. It also
//! means that an address the kernel returns twice, or never had, is noticed instead of becoming two frames.
//!
//! Threads: `lend` and `take_back` from the worker that owns the slot, relaxed atomics (one writer per chunk at a time,
//! ordering comes with the frame itself); the member list under a lock, on open and close only.
//! Invariant: a chunk is free, in one `Frame`, or has an owner. Cost: two bytes a chunk, one store each way. The kernel's
//! own book-keeping is larger: some 200 bytes a chunk of the pool for every socket (6.6 MB with 32,768 chunks, measured
//! on Linux 6.18), so a node with hundreds of pods wants a pool that is no larger than it needs.

use crate::abi::{TX_METADATA_LEN, XDP_UMEM_TX_METADATA_LEN};
use core::sync::atomic::{AtomicU16, Ordering};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::net::sockopt::set_xdp_umem_reg;
use rustix::net::xdp::{XdpUmemReg, XdpUmemRegFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sluice_port::{CHUNK, FramePool};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A bound socket that others can share the region through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    /// Its place in the ledger, from 1.
    pub slot: u16,
    /// The flags it was bound with.
    pub flags: u16,
    /// Whether the region was registered with room for TX metadata.
    pub metadata: bool,
    fd: RawFd,
}

#[derive(Default)]
pub(crate) struct Members {
    bound: Vec<Member>,
    /// `taken[slot]`: in use, or quarantined because its chunks never came back. Slot 0 is nobody.
    taken: Vec<bool>,
}

/// The process's packet memory as the kernel's AF_XDP sees it.
pub struct Umem {
    pool: Arc<FramePool>,
    owners: Box<[AtomicU16]>,
    members: Mutex<Members>,
}

impl Umem {
    /// Prepares `pool` for AF_XDP sockets. Make one per pool and process; sockets of different `Umem`s over one pool
    /// could not tell each other's chunks apart.
    ///
    /// Tries to lift RLIMIT_MEMLOCK and goes on if it may not: with CAP_IPC_LOCK the limit does not count, and
    /// without, the socket's open says what is missing.
    pub fn new(pool: &Arc<FramePool>) -> Arc<Umem> {
        let unlimited = Rlimit { current: None, maximum: None };
        if setrlimit(Resource::Memlock, unlimited).is_err() {
            let maximum = getrlimit(Resource::Memlock).maximum;
            let _ = setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum });
        }
        Arc::new(Umem {
            pool: Arc::clone(pool),
            owners: (0..pool.frames()).map(|_| AtomicU16::new(0)).collect(),
            members: Mutex::new(Members::default()),
        })
    }

    /// The pool behind it.
    pub fn pool(&self) -> &Arc<FramePool> {
        &self.pool
    }

    /// The list of bound sockets, for opening and closing one. It stays consistent when a holder panics.
    pub(crate) fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the region with `socket`; `true` if the kernel took it with room for TX metadata (Linux 6.11).
    pub(crate) fn register(&self, socket: BorrowedFd<'_>) -> Result<bool, Errno> {
        let (base, bytes) = self.pool.region();
        let plain = XdpUmemReg {
            addr: base.as_ptr() as u64,
            len: bytes as u64,
            chunk_size: CHUNK as u32,
            // The kernel's own 256 bytes are all we want: data then begins at sluice_port::HEADROOM.
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        let with_metadata = XdpUmemReg {
            flags: XdpUmemRegFlags::from_bits_retain(XDP_UMEM_TX_METADATA_LEN),
            tx_metadata_len: TX_METADATA_LEN as u32,
            ..plain
        };
        match set_xdp_umem_reg(socket, with_metadata) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL) => set_xdp_umem_reg(socket, plain).map(|()| false),
            Err(error) => Err(error),
        }
    }

    /// Notes that the kernel side of socket `slot` now holds chunk `index`.
    #[inline]
    pub(crate) fn lend(&self, index: u32, slot: u16) {
        let owner = &self.owners[index as usize];
        debug_assert_eq!(owner.load(Ordering::Relaxed), 0, "chunk {index} given to the kernel twice");
        owner.store(slot, Ordering::Relaxed);
    }

    /// Notes that chunk `index` came back from socket `slot`; `false` if it was not there.
    #[inline]
    pub(crate) fn take_back(&self, index: u32, slot: u16) -> bool {
        let Some(owner) = self.owners.get(index as usize) else { return false };
        if owner.load(Ordering::Relaxed) != slot {
            return false;
        }
        owner.store(0, Ordering::Relaxed);
        true
    }

    /// Takes back every chunk of a closed socket and frees its slot.
    pub(crate) fn reclaim(&self, slot: u16, mut free: impl FnMut(u32)) {
        for (index, owner) in self.owners.iter().enumerate() {
            if owner.load(Ordering::Relaxed) == slot {
                owner.store(0, Ordering::Relaxed);
                free(index as u32);
            }
        }
        self.members().taken[usize::from(slot)] = false;
    }
}

impl Members {
    /// A slot for a new socket; `None` after 65,535 of them.
    pub(crate) fn reserve(&mut self) -> Option<u16> {
        let at = self.taken.iter().skip(1).position(|taken| !taken).map_or(self.taken.len().max(1), |at| at + 1);
        let slot = u16::try_from(at).ok()?;
        self.taken.resize(self.taken.len().max(at + 1), false);
        self.taken[at] = true;
        Some(slot)
    }

    /// Bound sockets with these flags, the newest first (it is the least likely to have lost its device).
    pub(crate) fn sharing(&self, flags: u16) -> impl Iterator<Item = (Member, BorrowedFd<'_>)> {
        self.bound.iter().rev().filter(move |m| m.flags == flags).map(|m| {
            // SAFETY: a member is removed, under the lock that lent us `self`, before its socket is closed.
            (*m, unsafe { BorrowedFd::borrow_raw(m.fd) })
        })
    }

    /// Adds a socket that was just bound.
    pub(crate) fn add(&mut self, slot: u16, flags: u16, metadata: bool, fd: BorrowedFd<'_>) {
        self.bound.push(Member { slot, flags, metadata, fd: fd.as_raw_fd() });
    }

    /// Removes a socket that is about to be closed. Its slot stays taken until its chunks are reclaimed.
    pub(crate) fn remove(&mut self, slot: u16) {
        self.bound.retain(|m| m.slot != slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_port::PoolOptions;
    use std::os::fd::AsFd;

    fn umem() -> Arc<Umem> {
        Umem::new(&FramePool::new(PoolOptions { frames: 64, huge_pages: false }).unwrap())
    }

    #[test]
    fn a_chunk_comes_back_once_and_only_from_its_socket() {
        let umem = umem();
        umem.lend(5, 1);
        assert!(!umem.take_back(5, 2));
        assert!(umem.take_back(5, 1));
        assert!(!umem.take_back(5, 1));
        assert!(!umem.take_back(64, 1), "no such chunk");
    }

    #[test]
    fn reclaiming_a_slot_gives_exactly_its_chunks_and_frees_it() {
        let umem = umem();
        let a = umem.members().reserve().unwrap();
        let b = umem.members().reserve().unwrap();
        assert_eq!((a, b), (1, 2));
        umem.lend(3, a);
        umem.lend(4, b);
        umem.lend(9, a);
        let mut back = vec![];
        umem.reclaim(a, |i| back.push(i));
        assert_eq!(back, [3, 9]);
        assert_eq!(umem.members().reserve(), Some(a), "the slot is free again");
        assert!(umem.take_back(4, b));
    }

    #[test]
    fn the_newest_socket_with_the_same_flags_is_shared_first() {
        let umem = umem();
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut members = umem.members();
        for (slot, flags) in [(1, 10), (2, 20), (3, 10)] {
            members.add(slot, flags, true, file.as_fd());
        }
        assert_eq!(members.sharing(10).map(|(m, _)| m.slot).collect::<Vec<_>>(), [3, 1]);
        members.remove(3);
        assert_eq!(members.sharing(10).map(|(m, _)| m.slot).collect::<Vec<_>>(), [1]);
    }
}
