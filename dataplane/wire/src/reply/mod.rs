//! The packets we answer ourselves: complete Ethernet frames, checksums filled, written into a buffer of the caller's.
//!
//! Source: RFC 792, 1122, 1812 and 4443 (errors and echoes), RFC 9293 §3.5.2 (resets), RFC 826, 5227 and 4861 (neighbours).
//! Owner thread: any. Invariant: `None` means that nothing may or can be said (the reason is with each function) and that `out`
//! holds nothing of use. What we send has identification 0 and DF set, so it is never a fragment (RFC 6864), TTL 64, or 255 between
//! neighbours. Rate limits are the caller's. Cost: one pass over what is sent.

mod echo;
mod icmp_error;
mod neighbour;
mod tcp_reset;

pub use echo::echo_reply;
pub use icmp_error::{IcmpError, icmp_error, may_send_error};
pub use neighbour::{
    arp_announcement, arp_reply, arp_request, neighbor_advertisement, neighbor_solicitation, router_advertisement,
    unsolicited_neighbor_advertisement,
};
pub use tcp_reset::tcp_reset;

use crate::checksum::Sum;
use crate::ethernet::{EtherType, EthernetHeader, Mac};
use crate::header::Header;
use crate::ipv4::Ipv4Header;
use crate::ipv6::Ipv6Header;
use crate::protocol::Protocol;
use core::net::IpAddr;

/// TTL and hop limit of errors, echo replies and resets.
pub const TTL: u8 = 64;

/// Ethernet addresses of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Ours.
    pub source: Mac,
    /// The next hop's.
    pub destination: Mac,
}

/// A frame in the making: link and network header are written, `l4..end` is still to be filled.
struct Draft<'a> {
    out: &'a mut [u8],
    l4: usize,
    pseudo: Sum,
}

/// What the network header of an answer says.
struct Envelope {
    link: Link,
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    ttl: u8,
    tos: u8,
}

impl Envelope {
    /// Writes both headers in front of `length` transport bytes. `None` if the addresses are of two families or the frame
    /// does not fit.
    fn open(self, length: usize, out: &mut [u8]) -> Option<Draft<'_>> {
        let ethernet =
            |ether_type| EthernetHeader { destination: self.link.destination, source: self.link.source, ether_type };
        let (l4, pseudo) = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = Ipv4Header::new(source, destination, self.protocol, self.ttl, length)?;
                ip.tos = self.tos;
                ip.fill_checksum();
                let l3 = ethernet(EtherType::IPV4).put(out, 0)?;
                // ICMP for IPv4 has no pseudo-header.
                let pseudo = if self.protocol == Protocol::ICMP { Sum::ZERO } else { ip.pseudo_header(length as u32) };
                (ip.put(out, l3)?, pseudo)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut ip = Ipv6Header::new(source, destination, self.protocol, self.ttl, length)?;
                ip.set_traffic_class(self.tos);
                let l3 = ethernet(EtherType::IPV6).put(out, 0)?;
                (ip.put(out, l3)?, ip.pseudo_header(self.protocol, length as u32))
            }
            _ => return None,
        };
        let out = out.get_mut(..l4 + length)?;
        Some(Draft { out, l4, pseudo })
    }
}

impl Draft<'_> {
    /// Copies `bytes` to `offset` behind the network header.
    fn copy(&mut self, offset: usize, bytes: &[u8]) -> Option<()> {
        self.out.get_mut(self.l4 + offset..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(())
    }

    /// Fills the checksum at `offset` behind the network header, where there are zeros yet; returns the frame's length.
    fn close(self, offset: u16) -> Option<usize> {
        let sum = self.pseudo.combine(Sum::bytes(self.out.get(self.l4..)?));
        let at = self.l4 + usize::from(offset);
        self.out.get_mut(at..)?.first_chunk_mut::<2>()?.copy_from_slice(&sum.finish().to_be_bytes());
        Some(self.out.len())
    }
}

#[cfg(test)]
mod tests;
