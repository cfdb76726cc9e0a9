//! What `net_memif` forgets: it never closes the socket it listened on, so an abstract socket's name stays taken, the network
//! namespace it lies in stays alive, and whoever connects finds a handler of freed memory. Found when the device is opened,
//! ended when it is gone.
//!
//! Owner: the thread that opens and the one that closes the device. The descriptor's number stays with DPDK's event thread,
//! which ends the process if it cannot wait on it; so another file takes its place, one that never becomes readable.
//! Cost: a walk over this process's descriptors at each; a descriptor for each device that was.

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, getsockname, sockopt};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// A descriptor and the socket it names: a number alone may come to name something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    fd: RawFd,
    socket: String,
}

/// The name of the abstract socket that a device of this description listens on.
pub fn abstract_name(devargs: &str) -> Option<&str> {
    let argument = |key: &str| devargs.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
    let server = devargs.starts_with("net_memif") && matches!(argument("role"), None | Some("server" | "master"));
    let named = argument("socket").filter(|_| server && argument("socket-abstract") != Some("no"))?;
    Some(named)
}

/// This process's listening abstract sockets of that name.
pub fn listening(name: &str) -> Vec<Listener> {
    let Ok(all) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let look = |entry: std::fs::DirEntry| {
        let fd: RawFd = entry.file_name().to_str()?.parse().ok()?;
        let socket = std::fs::read_link(entry.path()).ok()?.to_str()?.to_owned();
        // SAFETY: borrowed for the questions below; a descriptor that was closed meanwhile makes them errors.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let unix = socket.starts_with("socket:") && sockopt::socket_domain(borrowed).ok()? == AddressFamily::UNIX;
        let ours = || {
            let address = getsockname(borrowed).ok()?;
            let address = rustix::net::SocketAddrUnix::try_from(address).ok()?;
            // The name's length is the driver's; zeros may follow it.
            let bytes = address.abstract_name()?;
            Some(bytes.strip_prefix(name.as_bytes())?.iter().all(|b| *b == 0))
        };
        (unix && sockopt::socket_acceptconn(borrowed).ok()? && ours()?).then_some(Listener { fd, socket })
    };
    all.filter_map(|entry| look(entry.ok()?)).collect()
}

impl Listener {
    /// Ends it, if it is still the one that was found: its number names a file that never becomes readable.
    pub fn close(&self) {
        let now = std::fs::read_link(format!("/proc/self/fd/{}", self.fd));
        if now.is_ok_and(|now| now.to_str() == Some(&self.socket))
            && let Ok(quiet) = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        {
            // SAFETY: the device that made this descriptor is gone; who still knows its number only waits on it.
            unsafe { libc::dup3(quiet.as_raw_fd(), self.fd, libc::O_CLOEXEC) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    #[test]
    fn a_servers_abstract_socket_is_read_from_its_description() {
        let base = "net_memif3,role=server,id=0,socket=sluicegate/a/b";
        assert_eq!(abstract_name(&format!("{base},socket-abstract=yes")), Some("sluicegate/a/b"));
        assert_eq!(abstract_name(base), Some("sluicegate/a/b"));
        assert_eq!(abstract_name(&format!("{base},socket-abstract=no")), None);
        assert_eq!(abstract_name("net_memif3,role=client,socket=x"), None);
        assert_eq!(abstract_name("net_vhost3,iface=/run/x"), None);
    }

    #[test]
    fn only_the_listening_socket_of_that_name_is_found_and_ended() {
        let name = format!("sg-listener-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let _client = UnixStream::connect_addr(&address).unwrap();
        let _other = UnixListener::bind_addr(&SocketAddr::from_abstract_name(format!("{name}-2")).unwrap()).unwrap();
        let found = listening(&name);
        assert_eq!(found.iter().map(|l| l.fd).collect::<Vec<_>>(), [listener.as_raw_fd()]);
        let gone = Listener { socket: "socket:[0]".to_owned(), ..found[0].clone() };
        gone.close();
        assert_eq!(listening(&name), found, "another socket's number is left alone");
        found[0].close();
        assert!(listening(&name).is_empty());
        assert!(listener.accept().is_err(), "its number is no socket's any more");
        assert!(UnixListener::bind_addr(&address).is_ok(), "the name is free");
    }
}
