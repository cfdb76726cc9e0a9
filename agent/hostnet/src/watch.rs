//! A thread that tells when the kernel's view of an interface's surroundings changed.
//!
//! It says only *that* something changed: the caller reads again what it needs, so a lost message costs nothing (the
//! kernel's "buffer overrun" counts as a change). Bursts become one call: after the first message the thread waits 20 ms
//! and takes all that came meanwhile. The socket belongs to the watched namespace, the thread stays in the caller's.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::RouteAttribute;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::netlink::{Netlink, split};
use crate::{HostError, Netns, link};

/// How long a burst of changes is collected before the caller hears of it.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// `RTNLGRP_LINK`, `_NEIGH`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE` of linux/rtnetlink.h.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];

/// A running watch; dropping it ends its thread, after a call that is under way.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Calls `on_change` from a thread of its own after each change of the neighbours, link, addresses or routes of
/// `interface`, at most once in 20 ms. The interface need not exist yet. Changes made before this returns may go unreported:
/// read once afterwards.
///
/// # Errors
/// When the namespace cannot be entered, or the socket or thread cannot be made.
pub fn watch_neighbours(
    ns: &Netns,
    interface: &str,
    mut on_change: impl FnMut() + Send + 'static,
) -> Result<Watch, HostError> {
    link::check_name(interface)?;
    let failed = |source| HostError::Kernel {
        operation: format!("watch {interface}"),
        namespace: ns.label().to_owned(),
        source,
        detail: String::new(),
    };
    let subscribe = || {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(socket)
    };
    let socket = ns.run(subscribe)?.map_err(failed)?;
    let index = Netlink::within(ns, |netlink| link::find(netlink, interface))?.map(|link| link.index);
    let mut scope = Scope { interface: interface.to_owned(), index };
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?);
    let stopped = Arc::clone(&stop);
    let body = move || {
        while wait(Some(&socket), &stopped, None) {
            if !scope.drain(&socket) {
                continue;
            }
            // Collect the burst: nothing but the end of the watch wakes this wait.
            if !wait(None, &stopped, Some(DEBOUNCE)) {
                return;
            }
            scope.drain(&socket);
            on_change();
        }
    };
    let thread = thread::Builder::new().name("neighbours".to_owned()).spawn(body).map_err(failed)?;
    Ok(Watch { stop, thread: Some(thread) })
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Cannot fail: one write of one to a fresh eventfd.
        let _ = rustix::io::write(self.stop.as_fd(), &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic of `on_change` was printed when it happened and ended the watch; there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// Waits for a message or the time; false when the watch is to end.
fn wait(socket: Option<&Socket>, stop: &OwnedFd, time: Option<Duration>) -> bool {
    let time = time.map(|time| Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() });
    let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
    fds.extend(socket.map(|socket| PollFd::new(socket, PollFlags::IN)));
    loop {
        match poll(&mut fds, time.as_ref()) {
            Ok(_) => return fds[0].revents().is_empty(),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Which messages are about the watched interface.
struct Scope {
    interface: String,
    index: Option<u32>,
}

impl Scope {
    /// Empties the socket; true when anything in it was about the interface.
    fn drain(&mut self, socket: &Socket) -> bool {
        let mut changed = false;
        loop {
            match socket.recv_from_full() {
                Ok((bytes, _)) => {
                    for part in split(&bytes) {
                        changed |= self.concerns(part);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return changed,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => changed = true,
                Err(_) => return true,
            }
        }
    }

    /// What cannot be read counts: one call too many is harmless, one too few is not.
    fn concerns(&mut self, bytes: &[u8]) -> bool {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else { return true };
        let NetlinkPayload::InnerMessage(message) = message.payload else { return false };
        match message {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                let named = |a: &LinkAttribute| matches!(a, LinkAttribute::IfName(name) if *name == self.interface);
                let ours = link.attributes.iter().any(named);
                let was = self.index == Some(link.header.index);
                if ours {
                    self.index = Some(link.header.index);
                }
                ours || was
            }
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
                Some(address.header.index) == self.index
            }
            RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry) => {
                Some(entry.header.ifindex) == self.index
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                // Several ways, or none: leave it to the caller.
                let elsewhere = |a: &RouteAttribute| matches!(a, RouteAttribute::Oif(oif) if Some(*oif) != self.index);
                !route.attributes.iter().any(elsewhere)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::link::LinkMessage;
    use netlink_packet_route::neighbour::NeighbourMessage;

    use super::*;

    fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn neighbour_on(index: u32) -> Vec<u8> {
        let mut entry = NeighbourMessage::default();
        entry.header.ifindex = index;
        bytes(RouteNetlinkMessage::NewNeighbour(entry))
    }

    #[test]
    fn another_interfaces_neighbours_are_not_news() {
        let mut scope = Scope { interface: "eth0".to_owned(), index: Some(3) };
        assert!(scope.concerns(&neighbour_on(3)));
        assert!(!scope.concerns(&neighbour_on(4)));
    }

    #[test]
    fn an_interface_that_comes_back_with_another_index_is_followed() {
        let mut scope = Scope { interface: "eth0".to_owned(), index: Some(3) };
        let mut link = LinkMessage::default();
        link.header.index = 9;
        link.attributes.push(LinkAttribute::IfName("eth0".to_owned()));
        assert!(scope.concerns(&bytes(RouteNetlinkMessage::NewLink(link))));
        assert!(scope.concerns(&neighbour_on(9)) && !scope.concerns(&neighbour_on(3)));
    }

    #[test]
    fn a_message_that_does_not_parse_counts_as_a_change() {
        assert!(Scope { interface: "eth0".to_owned(), index: None }.concerns(&[1, 2, 3]));
    }
}
