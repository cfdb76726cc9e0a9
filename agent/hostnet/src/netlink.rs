//! One conversation with the kernel over rtnetlink: a request and its answers, blocking.
//!
//! The kernel answers route netlink requests within the `send` itself, so there is nothing to wait for and no runtime is
//! needed. The socket is made inside the namespace it speaks for. Source: `netlink(7)`, `rtnetlink(7)`, and the kernel's
//! `Documentation/userspace-api/netlink/intro.rst` (strict checks, extended acknowledgements, interrupted dumps).

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

use crate::{HostError, Netns};

/// A dump that the tables' changes kept interrupting is asked for again this many times.
const DUMP_ATTEMPTS: u32 = 16;

/// `NLMSGERR_ATTR_MSG`: the kernel's explanation, as text.
const ERROR_TEXT: u16 = 1;

/// `struct nlmsghdr`, which an acknowledgement repeats before its attributes.
const HEADER_BYTES: usize = 16;

/// A route netlink socket of one namespace.
pub(crate) struct Netlink {
    socket: Socket,
    namespace: String,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread, which messages call `namespace`.
    fn open(namespace: &str) -> Result<Self, HostError> {
        let connect = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Filters in dump requests are honoured only under strict checking (Linux 4.20); both make answers shorter.
            socket.set_netlink_get_strict_chk(true)?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = connect().map_err(|source| HostError::Kernel {
            operation: "open a netlink socket".to_owned(),
            namespace: namespace.to_owned(),
            source,
            detail: String::new(),
        })?;
        Ok(Self { socket, namespace: namespace.to_owned(), sequence: 0 })
    }

    /// Runs `f` inside `ns` with a socket of that namespace.
    pub(crate) fn within<T: Send>(
        ns: &Netns,
        f: impl FnOnce(&mut Self) -> Result<T, HostError> + Send,
    ) -> Result<T, HostError> {
        ns.run(|| f(&mut Self::open(ns.label())?))?
    }

    /// How messages call the namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Sends a request that changes or gets one thing; returns what came before the acknowledgement.
    pub(crate) fn request(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, HostError> {
        self.send(operation, message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        Ok(self.receive(operation)?.0)
    }

    /// Sends a request for a whole table; a family the kernel does not have counts as empty.
    pub(crate) fn dump(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, HostError> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(operation, message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            match self.receive(operation) {
                Ok((messages, false)) => return Ok(messages),
                Ok((_, true)) => {}
                Err(e) if e.is(Errno::OPNOTSUPP) || e.is(Errno::AFNOSUPPORT) => return Ok(Vec::new()),
                Err(e) => return Err(e),
            }
        }
        Err(self.refused(operation, Errno::AGAIN.into(), "the table kept changing while it was read".to_owned()))
    }

    fn send(&mut self, operation: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), HostError> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(|source| self.refused(operation, source, String::new()))?;
        Ok(())
    }

    /// Reads up to the acknowledgement or the end of the dump; true when the dump was interrupted by a change.
    fn receive(&mut self, operation: &str) -> Result<(Vec<RouteNetlinkMessage>, bool), HostError> {
        let mut messages = Vec::new();
        let mut interrupted = false;
        loop {
            let (bytes, _) =
                self.socket.recv_from_full().map_err(|source| self.refused(operation, source, String::new()))?;
            for part in split(&bytes) {
                let message =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(part).map_err(|e| HostError::Malformed {
                        operation: operation.to_owned(),
                        namespace: self.namespace.clone(),
                        cause: e.to_string(),
                    })?;
                if message.header.sequence_number != self.sequence {
                    continue; // the rest of an answer that an earlier error cut short
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => messages.push(inner),
                    NetlinkPayload::Error(e) if e.code.is_some() => {
                        return Err(self.refused(operation, e.to_io(), explanation(&e.header)));
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(self.refused(operation, io::Error::from_raw_os_error(-done.code), String::new()));
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok((messages, interrupted)),
                    _ => {}
                }
            }
        }
    }

    fn refused(&self, operation: &str, source: io::Error, detail: String) -> HostError {
        HostError::Kernel { operation: operation.to_owned(), namespace: self.namespace.clone(), source, detail }
    }
}

impl HostError {
    /// True when the kernel refused a request with this error number.
    pub(crate) fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Kernel { source, .. } if source.raw_os_error() == Some(errno.raw_os_error()))
    }
}

/// The messages of one datagram, each with its header; what is cut short ends the walk.
pub(crate) fn split(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = NetlinkBuffer::new_checked(bytes).ok()?.length() as usize;
        let message = bytes.get(..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The kernel's own words in a refusal's attributes, or nothing.
fn explanation(payload: &[u8]) -> String {
    let attributes = payload.get(HEADER_BYTES..).unwrap_or_default();
    NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|a| a.kind() == ERROR_TEXT)
        .map(|a| String::from_utf8_lossy(a.value()).trim_end_matches('\0').to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_explanation_is_read_from_the_attributes_after_the_header() {
        let mut payload = vec![0; HEADER_BYTES];
        payload.extend_from_slice(&[8, 0, 1, 0, b'n', b'o', b'!', 0]);
        assert_eq!(explanation(&payload), "no!");
        assert_eq!(explanation(&payload[..10]), "");
    }

    #[test]
    fn two_messages_in_one_datagram_come_apart() {
        let mut bytes = Vec::new();
        for length in [17u32, 16] {
            let start = bytes.len();
            bytes.extend_from_slice(&length.to_ne_bytes());
            bytes.resize(start + (length as usize).next_multiple_of(4), 0);
        }
        assert_eq!(split(&bytes).map(<[u8]>::len).collect::<Vec<_>>(), [17, 16]);
    }

    proptest! {
        #[test]
        fn any_bytes_split_without_panic_and_without_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(split(&bytes).count() <= bytes.len() / HEADER_BYTES);
        }
    }
}
