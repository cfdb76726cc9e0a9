//! Addresses and prefixes of both families in one 128-bit form, so that every slow-path table exists once.
//!
//! IPv4 is kept v4-mapped (RFC 4291 §2.5.5.2), `::ffff:a.b.c.d`; a v4-mapped IPv6 address on the wire is refused by the
//! parser, so the two cannot be confused.

use core::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Address family of a packet or an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// An IPv4 or IPv6 address, network byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// From the four bytes of an IPv4 header.
    #[inline]
    pub const fn v4(b: [u8; 4]) -> Self {
        Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, b[0], b[1], b[2], b[3]])
    }

    /// From the sixteen bytes of an IPv6 header.
    #[inline]
    pub const fn v6(b: [u8; 16]) -> Self {
        Address(b)
    }

    /// Which family it belongs to.
    #[inline]
    pub fn family(&self) -> Family {
        if self.0[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] { Family::V4 } else { Family::V6 }
    }

    /// Whether it is IPv4.
    #[inline]
    pub fn is_v4(&self) -> bool {
        self.family() == Family::V4
    }

    /// The last four bytes: the whole address for IPv4.
    #[inline]
    pub fn last4(&self) -> [u8; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    /// As a number, for masks and hashing.
    #[inline]
    pub fn bits(&self) -> u128 {
        u128::from_be_bytes(self.0)
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(a) => Address::v4(a.octets()),
            IpAddr::V6(a) => Address::v6(a.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(a: Address) -> Self {
        match a.family() {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(a.last4())),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(a.0)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A network: address with host bits zero, and prefix length in the 128-bit form (an IPv4 /24 is 120).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Prefix {
    bits: u128,
    len: u8,
}

impl Prefix {
    /// `address/len`, `len` counted in the address's own family; host bits are cleared. `None` if `len` is too long.
    pub fn new(address: Address, len: u8) -> Option<Self> {
        let len = match address.family() {
            Family::V4 if len <= 32 => len + 96,
            Family::V6 if len <= 128 => len,
            _ => return None,
        };
        Some(Prefix { bits: address.bits() & mask(len), len })
    }

    /// The network of exactly one address.
    pub fn single(address: Address) -> Self {
        Prefix { bits: address.bits(), len: 128 }
    }

    /// From the 128-bit form; bits past `len` (at most 128) are cleared.
    pub(crate) fn from_bits(bits: u128, len: u8) -> Self {
        Prefix { bits: bits & mask(len), len }
    }

    /// Length in the 128-bit form.
    pub fn len128(&self) -> u8 {
        self.len
    }

    /// Network address as a number.
    pub fn bits(&self) -> u128 {
        self.bits
    }

    /// Network address.
    pub fn address(&self) -> Address {
        Address(self.bits.to_be_bytes())
    }

    /// Whether `address` lies inside. An IPv6 prefix never contains an IPv4 address, `::/0` included.
    #[inline]
    pub fn contains(&self, address: Address) -> bool {
        address.bits() & mask(self.len) == self.bits && (self.len >= 96 || !address.is_v4())
    }

    /// Whether every address of `other` lies inside.
    pub fn covers(&self, other: &Prefix) -> bool {
        self.len <= other.len && other.bits & mask(self.len) == self.bits && (self.len >= 96 || !other.is_v4())
    }

    /// Whether it is an IPv4 network.
    pub fn is_v4(&self) -> bool {
        self.len >= 96 && self.address().is_v4()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), if self.is_v4() { self.len - 96 } else { self.len })
    }
}

impl From<ipnet::IpNet> for Prefix {
    fn from(net: ipnet::IpNet) -> Self {
        let offset = if net.addr().is_ipv4() { 96 } else { 0 };
        Prefix::from_bits(Address::from(net.addr()).bits(), net.prefix_len() + offset)
    }
}

/// Network mask of a 128-bit prefix length.
pub fn mask(len: u8) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - u32::from(len)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_default_route_does_not_contain_ipv4() {
        let all6 = Prefix::new("::".parse::<IpAddr>().unwrap().into(), 0).unwrap();
        assert!(all6.contains("2001:db8::1".parse::<IpAddr>().unwrap().into()));
        assert!(!all6.contains(Address::v4([10, 0, 0, 1])));
    }

    #[test]
    fn an_ipv4_prefix_is_ninety_six_bits_longer() {
        let p = Prefix::new(Address::v4([10, 244, 1, 7]), 24).unwrap();
        assert_eq!(p.len128(), 120);
        assert_eq!(p.address(), Address::v4([10, 244, 1, 0]));
        assert!(p.contains(Address::v4([10, 244, 1, 255])) && !p.contains(Address::v4([10, 244, 2, 0])));
    }
}
