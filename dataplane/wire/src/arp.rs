//! ARP for IPv4 over Ethernet.
//!
//! Source: RFC 826; announcements by RFC 5227 §3. Owner thread: any. Invariant: a packet that [`ArpPacket::of`] hands
//! out resolves IPv4 to Ethernet addresses, nothing else. Cost: 28 bytes read in place.

use crate::ethernet::{EtherType, EthernetHeader, Mac};
use crate::header::Header;
use core::net::Ipv4Addr;
use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The 28 bytes behind the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ArpPacket {
    hardware: U16,
    protocol: EtherType,
    hardware_len: u8,
    protocol_len: u8,
    /// [`ArpPacket::REQUEST`] or [`ArpPacket::REPLY`].
    pub operation: U16,
    /// Hardware address of the sender.
    pub sender_mac: Mac,
    /// Address of the sender; unspecified in a probe.
    pub sender_ip: [u8; 4],
    /// Hardware address of the target; of no meaning in a request.
    pub target_mac: Mac,
    /// Address of the target.
    pub target_ip: [u8; 4],
}

impl Header for ArpPacket {}
const _: () = assert!(ArpPacket::LEN == 28);

impl ArpPacket {
    /// Operation: who has it?
    pub const REQUEST: U16 = U16::from_bytes([0, 1]);
    /// Operation: I have it.
    pub const REPLY: U16 = U16::from_bytes([0, 2]);

    /// A packet from `sender` to `target`.
    #[inline]
    pub const fn new(operation: U16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Self {
        Self {
            hardware: U16::from_bytes([0, 1]),
            protocol: EtherType::IPV4,
            hardware_len: 6,
            protocol_len: 4,
            operation,
            sender_mac: sender.0,
            sender_ip: sender.1.octets(),
            target_mac: target.0,
            target_ip: target.1.octets(),
        }
    }

    /// The packet in an Ethernet frame; `None` if the frame ends early or resolves other kinds of addresses.
    #[inline]
    pub fn of(frame: &[u8]) -> Option<&Self> {
        let packet = Self::at(frame, EthernetHeader::LEN)?;
        let fixed = (packet.hardware.get(), packet.protocol, packet.hardware_len, packet.protocol_len);
        (fixed == (1, EtherType::IPV4, 6, 4)).then_some(packet)
    }

    /// Whether it asks for the target's hardware address.
    #[inline]
    pub fn is_request(&self) -> bool {
        self.operation == Self::REQUEST
    }

    /// Address of the sender.
    #[inline]
    pub const fn sender(&self) -> Ipv4Addr {
        Ipv4Addr::from_octets(self.sender_ip)
    }

    /// Address of the target.
    #[inline]
    pub const fn target(&self) -> Ipv4Addr {
        Ipv4Addr::from_octets(self.target_ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: [u8; 42] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 10, 0, 0, 1, 0x08, 0x06, // Ethernet
        0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 10, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 169, 254, 1, 1,
    ];

    #[test]
    fn a_request_tells_who_asks_for_whom() {
        let packet = ArpPacket::of(&REQUEST).unwrap();
        assert!(packet.is_request());
        assert_eq!(packet.sender_mac, Mac::from_ipv4(packet.sender()));
        assert_eq!((packet.sender(), packet.target()), (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(169, 254, 1, 1)));
        let sender = (packet.sender_mac, packet.sender());
        assert_eq!(ArpPacket::new(ArpPacket::REQUEST, sender, (Mac::ZERO, packet.target())), *packet);
    }

    #[test]
    fn what_resolves_other_addresses_is_none() {
        for (at, byte) in [(15, 6), (16, 0x86), (18, 8), (19, 16)] {
            let mut frame = REQUEST;
            frame[at] = byte;
            assert_eq!(ArpPacket::of(&frame), None);
        }
        assert_eq!(ArpPacket::of(&REQUEST[..41]), None);
    }
}
