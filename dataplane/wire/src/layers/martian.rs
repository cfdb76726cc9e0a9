//! Addresses that no packet on a wire may bear.
//!
//! Source: RFC 1122 §3.2.1.3, RFC 6890, RFC 4291 §2.5. Owner thread: any. Cost: one compare per address; which rule was broken is found
//! out of line.

use crate::ipv4::Ipv4Header;
use crate::ipv6::Ipv6Header;
use crate::malformed::Malformed;
use crate::protocol::Protocol;

#[inline]
pub(super) fn check_ipv4(ip: &Ipv4Header) -> Result<(), Malformed> {
    let (source, destination) = (ip.source[0], ip.destination[0]);
    if matches!(source, 0 | 127 | 224..) || matches!(destination, 0 | 127) {
        return martian_ipv4(ip);
    }
    Ok(())
}

#[cold]
fn martian_ipv4(ip: &Ipv4Header) -> Result<(), Malformed> {
    match (ip.source, ip.destination) {
        ([0, ..], _) => Err(Malformed::SourceUnspecified),
        ([127, ..], _) => Err(Malformed::SourceLoopback),
        ([224..240, ..], _) => Err(Malformed::SourceMulticast),
        ([255, 255, 255, 255], _) => Err(Malformed::SourceBroadcast),
        (_, [0, ..]) => Err(Malformed::DestinationUnspecified),
        (_, [127, ..]) => Err(Malformed::DestinationLoopback),
        _ => Ok(()),
    }
}

#[inline]
pub(super) fn check_ipv6(ip: &Ipv6Header, protocol: Protocol) -> Result<(), Malformed> {
    let upper = |address: &[u8; 16]| (u128::from_be_bytes(*address) >> 64) as u64;
    if ip.source[0] == 0xff || upper(&ip.source) == 0 || upper(&ip.destination) == 0 {
        return martian_ipv6(ip, protocol);
    }
    Ok(())
}

#[cold]
fn martian_ipv6(ip: &Ipv6Header, protocol: Protocol) -> Result<(), Malformed> {
    let (source, destination) = (ip.source_addr(), ip.destination_addr());
    if source.is_multicast() {
        Err(Malformed::SourceMulticast)
    } else if source.is_loopback() {
        Err(Malformed::SourceLoopback)
    } else if source.to_ipv4_mapped().is_some() {
        Err(Malformed::SourceMapped)
    } else if source.is_unspecified() && !(protocol == Protocol::ICMPV6 && destination.is_multicast()) {
        // A host without an address yet probes, solicits and reports to groups (RFC 4861 §4, RFC 3590).
        Err(Malformed::SourceUnspecified)
    } else if destination.is_unspecified() {
        Err(Malformed::DestinationUnspecified)
    } else if destination.is_loopback() {
        Err(Malformed::DestinationLoopback)
    } else {
        Ok(())
    }
}
