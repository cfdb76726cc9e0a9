//! TCP segments as a benchmark sends them: headers with right checksums, in front of a payload of zeros.
//!
//! The segment's sequence number carries the flow's number, so that an output can be told apart from its neighbours.

use sluice_tables::node::GATEWAY_MAC;
use sluice_wire::Protocol;
use sluice_wire::checksum::Sum;
use std::net::IpAddr;

/// Bytes of the longest stack of headers: Ethernet, IPv4, UDP, VXLAN, Ethernet, IPv6, TCP.
pub const HEADERS: usize = 64 + 40 + 20;
/// TCP flags.
pub const SYN: u8 = 0x02;
/// SYN and ACK.
pub const SYN_ACK: u8 = 0x12;
/// ACK.
pub const ACK: u8 = 0x10;
const VXLAN_PORT: u16 = 4789;
const OUTER: usize = 50;

/// One direction of a flow, and a packet's place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Number of the flow.
    pub flow: u32,
}

impl Segment {
    /// The answer's direction.
    pub fn reverse(self) -> Self {
        Segment {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            flow: self.flow,
        }
    }

    /// Bytes of its network and transport header.
    fn header_len(&self) -> usize {
        if self.source.is_ipv4() { 40 } else { 60 }
    }
}

/// Headers of a frame and its whole length.
#[derive(Clone, Copy, Debug)]
pub struct Shot {
    /// Header bytes, `head_len` of them.
    pub head: [u8; HEADERS],
    /// Valid bytes of `head`.
    pub head_len: u8,
    /// Port it arrives on.
    pub port: u16,
    /// Length of the frame, payload included.
    pub len: u16,
}

impl Shot {
    /// The same from another MAC: a pod may bear only its own.
    pub fn sent_by(mut self, mac: [u8; 6]) -> Shot {
        self.head[6..12].copy_from_slice(&mac);
        self
    }
}

/// The overlay's ends, for frames that arrive through it.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    /// The other node.
    pub from: [u8; 4],
    /// This node.
    pub to: [u8; 4],
    /// Network identifier.
    pub vni: u32,
}

fn octets(address: IpAddr) -> ([u8; 16], usize) {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(a) => bytes[..4].copy_from_slice(&a.octets()),
        IpAddr::V6(a) => bytes = a.octets(),
    }
    (bytes, if address.is_ipv4() { 4 } else { 16 })
}

/// A frame of `size` bytes (Ethernet header to the end of the payload, without the overlay's 50) that arrives on `port`.
pub fn shot(segment: &Segment, flags: u8, size: usize, port: u16, tunnel: Option<Tunnel>) -> Shot {
    let mut head = [0; HEADERS];
    let at = if tunnel.is_some() { OUTER } else { 0 };
    let l3_len = (size - 14).max(segment.header_len());
    head[at..at + 6].copy_from_slice(&GATEWAY_MAC);
    head[at + 6..at + 12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    let v4 = segment.source.is_ipv4();
    head[at + 12..at + 14].copy_from_slice(if v4 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
    let l3 = at + 14;
    let ((source, n), (destination, _)) = (octets(segment.source), octets(segment.destination));
    let tcp_len = l3_len - (segment.header_len() - 20);
    let l4 = if v4 {
        ipv4(&mut head[l3..l3 + 20], l3_len as u16, 6, &source[..4], &destination[..4]);
        l3 + 20
    } else {
        head[l3] = 0x60;
        head[l3 + 4..l3 + 6].copy_from_slice(&(tcp_len as u16).to_be_bytes());
        head[l3 + 6] = 6;
        head[l3 + 7] = 64;
        head[l3 + 8..l3 + 24].copy_from_slice(&source);
        head[l3 + 24..l3 + 40].copy_from_slice(&destination);
        l3 + 40
    };
    let tcp = &mut head[l4..l4 + 20];
    tcp[..2].copy_from_slice(&segment.source_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&segment.destination_port.to_be_bytes());
    tcp[4..8].copy_from_slice(&segment.flow.to_be_bytes());
    tcp[12] = 0x50;
    tcp[13] = flags;
    tcp[14..16].copy_from_slice(&0xffff_u16.to_be_bytes());
    let sum = Sum::bytes(&source[..n])
        .combine(Sum::bytes(&destination[..n]))
        .add_u16(u16::from(Protocol::TCP.0))
        .add_u32(tcp_len as u32)
        .combine(Sum::bytes(tcp));
    tcp[16..18].copy_from_slice(&sum.finish().to_be_bytes());
    if let Some(tunnel) = tunnel {
        wrap(&mut head, 14 + l3_len, &tunnel, segment.flow as u16);
    }
    Shot { head, head_len: (l4 + 20) as u8, port, len: (l3 + l3_len) as u16 }
}

fn ipv4(h: &mut [u8], total: u16, protocol: u8, source: &[u8], destination: &[u8]) {
    h[0] = 0x45;
    h[2..4].copy_from_slice(&total.to_be_bytes());
    h[6] = 0x40;
    h[8] = 64;
    h[9] = protocol;
    h[12..16].copy_from_slice(source);
    h[16..20].copy_from_slice(destination);
    let sum = Sum::bytes(h).finish();
    h[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn wrap(head: &mut [u8; HEADERS], inner: usize, tunnel: &Tunnel, entropy: u16) {
    head[..12].copy_from_slice(&[2, 0, 192, 0, 2, 11, 2, 0, 192, 0, 2, 12]);
    head[12..14].copy_from_slice(&[0x08, 0x00]);
    ipv4(&mut head[14..34], (inner + 36) as u16, 17, &tunnel.from, &tunnel.to);
    head[34..36].copy_from_slice(&(entropy | 0xc000).to_be_bytes());
    head[36..38].copy_from_slice(&VXLAN_PORT.to_be_bytes());
    head[38..40].copy_from_slice(&((inner + 16) as u16).to_be_bytes());
    head[42] = 0x08;
    head[46..49].copy_from_slice(&tunnel.vni.to_be_bytes()[1..]);
}

/// The TCP segment in a frame that left through the uplink or a pod's port, and whether the overlay's wrapping was
/// around it; `None` for anything else.
pub fn read(frame: &[u8]) -> Option<(Segment, bool)> {
    let wrapped = frame.get(12..14)? == [0x08, 0x00]
        && frame.get(23) == Some(&17)
        && frame.get(36..38)? == VXLAN_PORT.to_be_bytes();
    let l3 = frame.get(if wrapped { OUTER + 14 } else { 14 }..)?;
    let (source, destination, l4): (IpAddr, IpAddr, _) = if l3.first()? >> 4 == 4 {
        (l3.get(12..16)?.first_chunk::<4>().copied()?.into(), l3.get(16..20)?.first_chunk::<4>().copied()?.into(), 20)
    } else {
        (l3.get(8..24)?.first_chunk::<16>().copied()?.into(), l3.get(24..40)?.first_chunk::<16>().copied()?.into(), 40)
    };
    let tcp = l3.get(l4..)?.first_chunk::<20>()?;
    let segment = Segment {
        source,
        destination,
        source_port: u16::from_be_bytes([tcp[0], tcp[1]]),
        destination_port: u16::from_be_bytes([tcp[2], tcp[3]]),
        flow: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
    };
    Some((segment, wrapped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_wire::packet::Packet;

    fn segment(v6: bool) -> Segment {
        let (source, destination) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Segment { source, destination, source_port: 1025, destination_port: 80, flow: 77 }
    }

    #[test]
    fn a_frame_is_read_back_as_it_was_made() {
        let tunnel = Tunnel { from: [192, 0, 2, 12], to: [192, 0, 2, 11], vni: 4096 };
        for v6 in [false, true] {
            for tunnel in [None, Some(tunnel)] {
                let shot = shot(&segment(v6), ACK, 100, 3, tunnel);
                let mut frame = shot.head[..usize::from(shot.head_len)].to_vec();
                frame.resize(usize::from(shot.len), 0);
                assert_eq!(read(&frame), Some((segment(v6), tunnel.is_some())));
                let l3 = &frame[if tunnel.is_some() { 64 } else { 14 }..];
                let packet = Packet::parse(l3, l3.len()).unwrap();
                assert_eq!((usize::from(packet.total), packet.tcp_flags), (86, ACK));
            }
        }
    }
}
