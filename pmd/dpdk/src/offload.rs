//! What a frame asks of a card, in DPDK's words, and what a card says of a frame, in ours.
//!
//! DPDK wants the lengths of the headers and a pseudo-header's sum in the checksum field, as a partial checksum has it; for
//! segmentation the sum without the length, and an IPv4 header checksum of zero. Only plain packets are described: what a
//! tunnel wraps is completed in software. Source: DPDK Programmer's Guide, "Mbuf Library", Meta Information.

use sluice_dpdk_sys as sys;
use sluice_port::{Checksum, Frame, GsoKind};

/// Where a plain packet's headers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plain {
    v6: bool,
    l2: usize,
    l3: usize,
    protocol: u8,
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Reads Ethernet, at most one VLAN tag, and IPv4 or IPv6 without extension headers.
fn plain(head: &[u8]) -> Option<Plain> {
    let kind = |at: usize| Some(u16::from_be_bytes([*head.get(at)?, *head.get(at + 1)?]));
    let (l2, ethertype) = match kind(12)? {
        0x8100 => (18, kind(16)?),
        other => (14, other),
    };
    match ethertype {
        0x0800 => {
            let l3 = usize::from(head.get(l2)? & 15) * 4;
            Some(Plain { v6: false, l2, l3, protocol: *head.get(l2 + 9)? })
        }
        0x86dd => Some(Plain { v6: true, l2, l3: 40, protocol: *head.get(l2 + 6)? }),
        _ => None,
    }
}

/// Flags and header lengths of an mbuf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `ol_flags`.
    pub flags: u64,
    /// `tx_offload`.
    pub lengths: u64,
}

/// Turns a partial checksum or a segmentation request into a card's request; `None` if it cannot be put that way. For
/// segmentation the frame's headers are changed to what the card expects.
pub fn request(frame: &mut Frame) -> Option<Request> {
    let Checksum::Partial { start, offset } = frame.checksum else { return None };
    let packet = plain(frame.head())?;
    if usize::from(start) != packet.l2 + packet.l3 {
        return None;
    }
    let l4 = match (packet.protocol, offset) {
        (TCP, 16) => sys::SG_TX_TCP_CKSUM,
        (UDP, 6) => sys::SG_TX_UDP_CKSUM,
        _ => return None,
    };
    let family = if packet.v6 { sys::SG_TX_IPV6 } else { sys::SG_TX_IPV4 };
    let mut request = Request { flags: family | l4, lengths: packet.l2 as u64 | (packet.l3 as u64) << 7 };
    match frame.gso.kind {
        GsoKind::None => {}
        GsoKind::Tcp4 | GsoKind::Tcp6 => {
            let size = frame.gso.size;
            let length = frame.len() - usize::from(start);
            let field = usize::from(start + offset);
            let head = frame.head_mut();
            let header = usize::from(*head.get(usize::from(start) + 12)? >> 4) * 4;
            // The sum without the length: one's complement subtraction, for lengths beyond 65,535 folded first.
            let sum = u16::from_be_bytes([*head.get(field)?, *head.get(field + 1)?]);
            let less = !(((length & 0xffff) + (length >> 16)) as u16);
            let (added, carry) = sum.overflowing_add(less);
            head[field..field + 2].copy_from_slice(&(added + u16::from(carry)).to_be_bytes());
            request.flags |= sys::SG_TX_TCP_SEG;
            if !packet.v6 {
                request.flags |= sys::SG_TX_IP_CKSUM;
                head[packet.l2 + 10..packet.l2 + 12].fill(0);
            }
            request.lengths |= (header as u64) << 16 | u64::from(size) << 24;
        }
        GsoKind::Udp => return None,
    }
    Some(request)
}

/// Puts back what [`request`] changed for segmentation, for a frame that was not sent.
#[cold]
pub fn restore(frame: &mut Frame) {
    let Checksum::Partial { start, offset } = frame.checksum else { return };
    let (length, field) = (frame.len() - usize::from(start), usize::from(start + offset));
    let Some(packet) = plain(frame.head()) else { return };
    let head = frame.head_mut();
    let sum = u16::from_be_bytes([head[field], head[field + 1]]);
    let (added, carry) = sum.overflowing_add(((length & 0xffff) + (length >> 16)) as u16);
    head[field..field + 2].copy_from_slice(&(added + u16::from(carry)).to_be_bytes());
    if !packet.v6 {
        let header = &mut head[packet.l2..packet.l2 + packet.l3];
        let words = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
}

/// What a card, or a guest behind a virtual one, says of the checksum of a frame whose first bytes are `head`.
pub fn received(flags: u64, head: &[u8]) -> Checksum {
    let told = flags & sys::SG_RX_L4_MASK;
    if told == sys::SG_RX_L4_GOOD {
        Checksum::Verified
    } else if told == sys::SG_RX_L4_NONE {
        // Not complete, but not to be doubted either: a guest left it to the device.
        match plain(head).map(|p| (p.l2 + p.l3, p.protocol)) {
            Some((start, TCP)) => Checksum::Partial { start: start as u16, offset: 16 },
            Some((start, UDP)) => Checksum::Partial { start: start as u16, offset: 6 },
            _ => Checksum::None,
        }
    } else {
        Checksum::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_port::{FramePool, Gso, PoolOptions};

    fn packet(v6: bool, protocol: u8, tagged: bool) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        if tagged {
            bytes.extend_from_slice(&[0x81, 0, 0, 5]);
        }
        if v6 {
            bytes.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 100, protocol, 64]);
            bytes.extend_from_slice(&[1; 32]);
        } else {
            bytes.extend_from_slice(&[
                8, 0, 0x45, 0, 0, 120, 0, 0, 0, 0, 64, protocol, 0x12, 0x34, 1, 1, 1, 1, 2, 2, 2, 2,
            ]);
        }
        bytes.extend_from_slice(&[0; 100]);
        bytes
    }

    #[test]
    fn lengths_and_flags_say_where_the_checksum_lies() {
        let pool = FramePool::new(PoolOptions { frames: 64, huge_pages: false }).unwrap();
        let mut cache = pool.cache();
        for (v6, protocol, tagged) in [(false, TCP, false), (true, TCP, true), (false, UDP, true), (true, UDP, false)] {
            let l2 = if tagged { 18 } else { 14 };
            let l3 = if v6 { 40 } else { 20 };
            let mut frame = cache.alloc_copy(&packet(v6, protocol, tagged)).unwrap();
            let offset = if protocol == TCP { 16 } else { 6 };
            frame.checksum = Checksum::Partial { start: l2 + l3, offset };
            let request = request(&mut frame).unwrap();
            assert_eq!(request.lengths, u64::from(l2) | u64::from(l3) << 7);
            let family = if v6 { sys::SG_TX_IPV6 } else { sys::SG_TX_IPV4 };
            let l4 = if protocol == TCP { sys::SG_TX_TCP_CKSUM } else { sys::SG_TX_UDP_CKSUM };
            assert_eq!(request.flags, family | l4);
            // In a tunnel the sum begins further in.
            frame.checksum = Checksum::Partial { start: l2 + l3 + 50, offset };
            assert_eq!(super::request(&mut frame), None);
            cache.free(frame);
        }
    }

    #[test]
    fn segmentation_takes_the_length_out_of_the_sum_and_the_headers_checksum_away() {
        let pool = FramePool::new(PoolOptions { frames: 64, huge_pages: false }).unwrap();
        let mut cache = pool.cache();
        let mut bytes = packet(false, TCP, false);
        bytes[34 + 12] = 0x50;
        // 86 + 14 = 100 bytes of TCP in the sum 0x0070: without them it is 0x000c.
        bytes[34 + 16..34 + 18].copy_from_slice(&[0, 0x70]);
        let mut frame = cache.alloc_copy(&bytes).unwrap();
        frame.checksum = Checksum::Partial { start: 34, offset: 16 };
        frame.gso = Gso { kind: GsoKind::Tcp4, size: 40 };
        let request = request(&mut frame).unwrap();
        assert_eq!(request.flags & sys::SG_TX_TCP_SEG, sys::SG_TX_TCP_SEG);
        assert_eq!(request.flags & sys::SG_TX_IP_CKSUM, sys::SG_TX_IP_CKSUM);
        assert_eq!(request.lengths, 14 | 20 << 7 | 20 << 16 | 40 << 24);
        assert_eq!(frame.head()[50..52], [0, 0x0c]);
        assert_eq!(frame.head()[24..26], [0, 0]);
        // Not sent after all: as it was, with the header's checksum that belongs to it.
        restore(&mut frame);
        assert_eq!(frame.head()[50..52], [0, 0x70]);
        let words = frame.head()[14..34].chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let sum: u32 = words.sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        cache.free(frame);
    }

    #[test]
    fn a_checksum_that_a_guest_left_open_is_partial() {
        assert_eq!(received(sys::SG_RX_L4_GOOD, &packet(false, TCP, false)), Checksum::Verified);
        assert_eq!(received(sys::SG_RX_L4_BAD, &packet(false, TCP, false)), Checksum::None);
        let open = received(sys::SG_RX_L4_NONE, &packet(true, UDP, false));
        assert_eq!(open, Checksum::Partial { start: 54, offset: 6 });
        assert_eq!(received(sys::SG_RX_L4_NONE, &packet(false, 132, false)), Checksum::None);
    }
}
