//! The agent's addresses: its Unix socket and its metrics address, bound so that two agents never share one.
//!
//! Source: unix(7), flock(2). Invariants: the socket appears with its permissions set, by a rename; a socket that somebody
//! answers on is left alone; of two agents that start at once one gets it (the folder is locked meanwhile); a socket is
//! removed by the agent that made it only.

use rustix::fs::{FlockOperation, Mode, OFlags};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Who may connect: the owner and the group.
const SOCKET_MODE: u32 = 0o660;

/// Why the agent cannot be reached where it was told to be.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Another agent is there.
    #[error("another sluiced answers on {0}: end it first, or give this one another `socket`")]
    InUse(PathBuf),
    /// Something that is no socket has the name.
    #[error("{0} exists and is no socket; move it away, or give the agent another `socket`")]
    NotASocket(PathBuf),
    /// The kernel refused the socket.
    #[error("cannot listen on the socket {path}: {source}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused the metrics address.
    #[error("cannot listen on the metrics address {address}: {source}; `metrics` in the configuration names another")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A listening socket that is removed when this value goes.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of what was made.
    identity: (u64, u64),
}

impl Socket {
    /// Listens on `path`; the folder is made if it is absent, a socket that nobody answers on is replaced.
    pub fn bind(path: &Path) -> Result<Socket, EndpointError> {
        let failed = |source| EndpointError::Socket { path: path.to_owned(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(failed)?;
        // The lock goes with the descriptor, at the end of this function.
        let lock = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let lock = lock.map_err(|errno| failed(errno.into()))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;

        if let Ok(there) = std::fs::symlink_metadata(path) {
            use std::os::unix::fs::FileTypeExt;
            if !there.file_type().is_socket() {
                return Err(EndpointError::NotASocket(path.to_owned()));
            }
            match UnixStream::connect(path) {
                Ok(_) => return Err(EndpointError::InUse(path.to_owned())),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let new = path.with_file_name(name);
        let _ = std::fs::remove_file(&new);
        let made = || {
            let listener = UnixListener::bind(&new)?;
            std::fs::set_permissions(&new, PermissionsExt::from_mode(SOCKET_MODE))?;
            let identity = identity(&new)?;
            listener.set_nonblocking(true)?;
            std::fs::rename(&new, path)?;
            Ok(Socket { listener, path: path.to_owned(), identity })
        };
        made().map_err(|source| {
            let _ = std::fs::remove_file(&new);
            failed(source)
        })
    }

    /// A second handle to the listener, for the runtime that accepts on it.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|there| there == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|there| (there.dev(), there.ino()))
}

/// Listens on the metrics address.
pub fn bind_metrics(address: SocketAddr) -> Result<TcpListener, EndpointError> {
    let bound = TcpListener::bind(address).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    bound.map_err(|source| EndpointError::Metrics { address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_nobody_answers_on_is_replaced_and_the_last_one_removes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/agent.sock");
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, SOCKET_MODE);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(dir.path().join("deep")).unwrap().count(), 0, "nothing is left beside it");
    }

    #[test]
    fn a_socket_that_somebody_answers_on_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let first = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, EndpointError::InUse(_)) && error.to_string().contains("agent.sock"));
        UnixStream::connect(first.path()).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        std::fs::write(&path, "keep").unwrap();
        assert!(matches!(Socket::bind(&path), Err(EndpointError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"keep");
    }

    #[test]
    fn a_socket_of_a_later_agent_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let first = Socket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = Socket::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn of_many_agents_that_start_at_once_one_gets_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let bound: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| Socket::bind(&path))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(bound.iter().filter(|result| result.is_ok()).count(), 1);
    }

    #[test]
    fn a_taken_metrics_address_is_named() {
        let taken = bind_metrics("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind_metrics(address).unwrap_err();
        assert!(error.to_string().contains(&address.to_string()));
    }
}
