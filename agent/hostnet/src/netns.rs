//! A network namespace held open, and work done inside it on a thread of its own.
//!
//! `setns(2)` changes one thread for good, so the caller's thread never moves: each piece of work gets a short-lived thread
//! (some tens of microseconds; the control thread calls this, never a worker). `/proc/sys/net` and new sockets follow
//! the namespace of the thread that opens them; a socket keeps the namespace it was made in.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::fs::{fstat, fstatfs};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::HostError;

/// `NSFS_MAGIC` of linux/magic.h: the file system of `/proc/PID/ns/*` and of what `ip netns` mounts.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The calling thread's own network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// An opened network namespace: lives on while this value does, even if its name is removed.
#[derive(Debug)]
pub struct Netns {
    file: OwnedFd,
    inode: u64,
    label: String,
}

impl Netns {
    /// Opens the namespace mounted at `path`, such as `/run/netns/NAME`, `/proc/PID/ns/net` or a `CNI_NETNS`.
    ///
    /// # Errors
    /// When the file cannot be opened or is no namespace.
    pub fn open(path: &Path) -> Result<Self, HostError> {
        let failed = |source| HostError::OpenNamespace { path: path.to_owned(), source };
        let file = OwnedFd::from(File::open(path).map_err(failed)?);
        if fstatfs(&file).map_err(|e| failed(e.into()))?.f_type as i64 != NSFS_MAGIC {
            return Err(HostError::NotANamespace { path: path.to_owned() });
        }
        let inode = fstat(&file).map_err(|e| failed(e.into()))?.st_ino;
        Ok(Self { file, inode, label: path.display().to_string() })
    }

    /// Opens the namespace that the calling thread is in.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, HostError> {
        let mut own = Self::open(Path::new(OWN))?;
        own.label = format!("net:[{}]", own.inode);
        Ok(own)
    }

    /// The namespace's identity: two values with the same inode are one namespace (`stat -L -c %i PATH`).
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// How messages call this namespace: the path it was opened by.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The open file, for requests that hand a namespace to the kernel (`IFLA_NET_NS_FD`).
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `f` inside the namespace on its own thread and waits for it; a panic of `f` is the caller's panic.
    ///
    /// # Errors
    /// When the thread cannot start, or may not enter the namespace (needs `CAP_SYS_ADMIN`, unless the caller is in it already).
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, HostError> {
        let failed = |source: io::Error| HostError::EnterNamespace { namespace: self.label.clone(), source };
        let inside = || {
            self.enter().map_err(failed)?;
            Ok(f())
        };
        thread::scope(|scope| {
            let worker = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, inside).map_err(failed)?;
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread here; a thread that is here already needs no privilege.
    fn enter(&self) -> io::Result<()> {
        if rustix::fs::stat(OWN)?.st_ino == self.inode {
            return Ok(());
        }
        Ok(move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network))?)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_namespace_needs_no_privilege_and_is_itself() {
        let ns = Netns::current().unwrap();
        assert_eq!(ns.inode(), rustix::fs::stat("/proc/self/ns/net").unwrap().st_ino);
        assert_eq!(ns.run(|| 41 + 1).unwrap(), 42);
    }

    #[test]
    fn an_ordinary_file_is_no_namespace() {
        let error = Netns::open(Path::new("/proc/self/status")).unwrap_err();
        assert!(matches!(error, HostError::NotANamespace { .. }), "{error}");
    }

    #[test]
    fn a_namespace_of_another_kind_is_refused_on_entry() {
        let other = Netns::open(Path::new("/proc/self/ns/uts")).unwrap();
        assert!(matches!(other.run(|| ()), Err(HostError::EnterNamespace { .. })));
    }

    #[test]
    fn an_absent_file_is_named_in_the_error() {
        let error = Netns::open(Path::new("/run/netns/sg-hn-absent")).unwrap_err();
        assert!(error.to_string().contains("/run/netns/sg-hn-absent"), "{error}");
    }

    #[test]
    #[should_panic(expected = "inside")]
    fn a_panic_inside_reaches_the_caller() {
        let _ = Netns::current().unwrap().run(|| panic!("inside"));
    }
}
