//! TCP resets.

use super::{Envelope, Link, TTL};
use crate::header::Header;
use crate::layers::{Layers, Transport};
use crate::protocol::Protocol;
use crate::tcp::{TcpFlags, TcpHeader};
use core::net::IpAddr;
use zerocopy::network_endian::{U16, U32};

/// The reset that a host without that connection sends from `source` (RFC 9293 §3.5.2, group 1): with the sequence number the segment
/// acknowledges, or acknowledging all of the segment. Returns the bytes written. `None` for a reset (never answered), a
/// fragment (its length in sequence numbers is not known), a packet sent to a group, a `source` of the other family, or an `out` of less
/// than 54 bytes for IPv4 and 74 for IPv6.
pub fn tcp_reset(frame: &[u8], layers: &Layers, link: Link, source: IpAddr, out: &mut [u8]) -> Option<usize> {
    let Transport::Tcp { flags, .. } = layers.transport else { return None };
    let to = layers.destination(frame)?;
    if flags.contains(TcpFlags::RST) || layers.is_fragment() || to.is_multicast() {
        return None;
    }
    let segment = TcpHeader::at(frame, usize::from(layers.l4))?;
    let (sequence, acknowledgment, flags) = if flags.contains(TcpFlags::ACK) {
        (segment.acknowledgment, U32::ZERO, TcpFlags::RST)
    } else {
        let control = u32::from(flags.contains(TcpFlags::SYN)) + u32::from(flags.contains(TcpFlags::FIN));
        let length = layers.payload_len() as u32 + control;
        let next = segment.sequence.get().wrapping_add(length);
        (U32::ZERO, U32::new(next), TcpFlags::RST | TcpFlags::ACK)
    };
    let reset = TcpHeader {
        source: segment.destination,
        destination: segment.source,
        sequence,
        acknowledgment,
        data_offset: 0x50,
        flags,
        window: U16::ZERO,
        checksum: U16::ZERO,
        urgent: U16::ZERO,
    };
    let destination = layers.source(frame)?;
    let envelope = Envelope { link, source, destination, protocol: Protocol::TCP, ttl: TTL, tos: 0 };
    let draft = envelope.open(TcpHeader::LEN, out)?;
    reset.put(draft.out, draft.l4)?;
    draft.close(TcpHeader::CHECKSUM_OFFSET)
}
