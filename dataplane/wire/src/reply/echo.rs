//! Echo replies.

use super::{Envelope, Link, TTL};
use crate::header::Header;
use crate::icmp::{self, IcmpHeader, v4, v6};
use crate::layers::{Layers, Transport};
use core::net::IpAddr;
use zerocopy::network_endian::U16;

/// The reply from `source` to the echo request in `frame`, with its identifier, sequence number, data and DSCP and ECN; returns the
/// bytes written. `None` if the packet is no echo request, is a fragment, is not all in `frame`, has a wrong checksum (RFC 1122
/// §3.2.2 leaves it unanswered), was sent to a group, or if `source` is of the other family or `out` shorter than the request.
pub fn echo_reply(frame: &[u8], layers: &Layers, link: Link, source: IpAddr, out: &mut [u8]) -> Option<usize> {
    let Transport::Icmp { kind, code: 0, .. } = layers.transport else { return None };
    if !icmp::is_echo_request(layers.protocol, kind) || layers.transport_checksum_ok(frame) != Some(true) {
        return None;
    }
    let to = layers.destination(frame)?;
    if to.is_multicast() || to == IpAddr::from([255, 255, 255, 255]) {
        return None;
    }
    let message = frame.get(usize::from(layers.l4)..layers.end())?;
    let destination = layers.source(frame)?;
    let envelope = Envelope { link, source, destination, protocol: layers.protocol, ttl: TTL, tos: layers.tos };
    let mut draft = envelope.open(message.len(), out)?;
    draft.copy(0, message)?;
    let header = IcmpHeader::at_mut(draft.out, draft.l4)?;
    header.kind = if source.is_ipv4() { v4::ECHO_REPLY } else { v6::ECHO_REPLY };
    header.checksum = U16::ZERO;
    draft.close(IcmpHeader::CHECKSUM_OFFSET)
}
