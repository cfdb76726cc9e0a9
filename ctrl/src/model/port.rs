//! Transport protocols, address families and port ranges as types.
//!
//! Owner: any thread (plain values). Source: core/v1 `Protocol`, IANA protocol numbers.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A transport protocol that Services and policies can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, the default wherever Kubernetes lets the field out.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP; never read as TCP.
    Sctp,
}

impl Protocol {
    /// All three, in the order of their names here.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// The IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// As Kubernetes writes it: `TCP`, `UDP`, `SCTP`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }

    /// Reads the API's spelling, which is upper case only.
    pub fn from_api(text: &str) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|p| p.as_str() == text)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An IP address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: &IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The family of a network.
    pub fn of_net(net: &IpNet) -> Family {
        if matches!(net, IpNet::V4(_)) { Family::V4 } else { Family::V6 }
    }

    /// `ipv4` or `ipv6`, as in names of derived objects and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An inclusive range of transport ports; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// None where `first` is above `last`.
    pub const fn new(first: u16, last: u16) -> Option<PortRange> {
        if first <= last { Some(PortRange { first, last }) } else { None }
    }

    /// The lowest port in the range.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port in the range.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// How many ports there are, 1 to 65,536.
    pub const fn count(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }

    /// True for both ends and what lies between.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// True when some port is in both.
    pub const fn overlaps(self, other: PortRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// What of a packet's destination port a policy rule asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// Every port of a protocol.
    Protocol(Protocol),
    /// A port (both ends equal) or a range of ports of a protocol.
    Range(Protocol, PortRange),
    /// The container port of that name on the destination pod: of this protocol, or of any where none is given.
    Named(Option<Protocol>, String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_both_ends_and_nothing_past_them() {
        let range = PortRange::new(8000, 8010).unwrap();
        assert!(range.contains(8000) && range.contains(8010));
        assert!(!range.contains(7999) && !range.contains(8011));
        assert_eq!(range.count(), 11);
        assert_eq!(PortRange::new(2, 1), None);
        assert_eq!(PortRange::new(0, u16::MAX).unwrap().count(), 65_536);
    }

    #[test]
    fn protocols_are_read_in_upper_case_only_as_the_api_does() {
        assert_eq!(Protocol::from_api("SCTP"), Some(Protocol::Sctp));
        assert_eq!(Protocol::from_api("tcp"), None);
        assert_eq!(Protocol::Sctp.number(), 132);
    }
}
