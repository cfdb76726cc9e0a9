//! The kernel's neighbour table: whom it knows on a link, and asking it to find someone.
//!
//! The uplink's neighbours are resolved by the kernel, which owns ARP and ND there; we read its answers.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use socket2::{Domain, Socket, Type};

use crate::address::family;
use crate::link::{self, Interface};
use crate::netlink::Netlink;
use crate::{HostError, Netns, address};

/// The port whose packets nobody answers.
const DISCARD: u16 = 9;

/// An address on a link and the MAC that answers for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: [u8; 6],
}

/// The neighbours on `interface` that the kernel would send to at once: reachable, stale, being probed, or permanent.
///
/// # Errors
/// When there is no such interface, or the kernel refuses.
pub fn neighbours(ns: &Netns, interface: &str) -> Result<Vec<Neighbour>, HostError> {
    link::check_name(interface)?;
    Netlink::within(ns, |netlink| {
        let link = link::existing(netlink, "read the neighbours", interface)?;
        let mut request = NeighbourMessage::default();
        request.attributes.push(NeighbourAttribute::IfIndex(link.index));
        let operation = format!("read the neighbours on {interface}");
        let answers = netlink.dump(&operation, RouteNetlinkMessage::GetNeighbour(request))?;
        let entries = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(entry) if entry.header.ifindex == link.index => usable(&entry),
            _ => None,
        });
        Ok(entries.collect())
    })
}

/// Has the kernel find out the MAC of `address` on `interface` and returns at once; the answer shows in [`neighbours`].
/// An entry that is known already is kept, and checked if it is stale.
///
/// # Errors
/// When there is no such interface, or the kernel refuses: its table is full, or the address cannot be a neighbour's.
pub fn solicit(ns: &Netns, interface: &str, address: IpAddr) -> Result<(), HostError> {
    link::check_name(interface)?;
    Netlink::within(ns, |netlink| {
        let link = link::existing(netlink, "ask for a neighbour", interface)?;
        // With NTF_USE the kernel behaves as if it had a packet to send there, and sends none but its own question.
        let mut entry = entry(&link, address);
        entry.header.flags = NeighbourFlags::Use;
        let operation = format!("ask for neighbour {address} on {interface}");
        netlink.request(&operation, RouteNetlinkMessage::NewNeighbour(entry), NLM_F_CREATE | NLM_F_REPLACE)?;
        if address.is_ipv4() || has_link_local(netlink, &link)? {
            return Ok(());
        }
        // Without a packet to take the source from, the kernel asks with its link-local address only (ndisc_solicit) and
        // there is none: give it a packet.
        nudge(&link, address).map_err(|source| HostError::Kernel {
            operation,
            namespace: netlink.namespace().to_owned(),
            source,
            detail: "no link-local address, and no route to it over this interface".to_owned(),
        })
    })
}

/// Makes `address` a neighbour that needs no question and never ages.
pub(crate) fn fix(netlink: &mut Netlink, link: &Interface, address: IpAddr, mac: [u8; 6]) -> Result<(), HostError> {
    let mut entry = entry(link, address);
    entry.header.state = NeighbourState::Permanent;
    entry.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    let operation = format!("add permanent neighbour {address} on {}", link.name);
    netlink.request(&operation, RouteNetlinkMessage::NewNeighbour(entry), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
}

fn has_link_local(netlink: &mut Netlink, link: &Interface) -> Result<bool, HostError> {
    let held = address::held(netlink, link)?;
    Ok(held.iter().any(|held| matches!(held.network.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local())))
}

/// Sends one empty datagram to the discard port (RFC 863) over the interface.
fn nudge(link: &Interface, address: IpAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address((address, DISCARD).into()), Type::DGRAM, None)?;
    socket.bind_device(Some(link.name.as_bytes()))?;
    let to = match address {
        IpAddr::V4(v4) => SocketAddr::from((v4, DISCARD)),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, DISCARD, 0, link.index).into(),
    };
    socket.send_to(&[], &to.into()).map(drop)
}

fn entry(link: &Interface, address: IpAddr) -> NeighbourMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = family(address);
    entry.header.ifindex = link.index;
    entry.header.kind = RouteType::Unicast;
    entry.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }));
    entry
}

fn usable(entry: &NeighbourMessage) -> Option<Neighbour> {
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    if !matches!(entry.header.state, Reachable | Stale | Delay | Probe | Permanent) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::from(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::from(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbour { address: address?, mac: mac? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_states_that_the_kernel_sends_in_are_usable() {
        let mut message = NeighbourMessage::default();
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, 1].into())));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![2, 0, 10, 0, 0, 1]));
        let known = Some(Neighbour { address: [10, 0, 0, 1].into(), mac: [2, 0, 10, 0, 0, 1] });
        use NeighbourState::{Delay, Failed, Incomplete, Noarp, Permanent, Probe, Reachable, Stale};
        let states = [
            (Reachable, known),
            (Stale, known),
            (Delay, known),
            (Probe, known),
            (Permanent, known),
            (Incomplete, None),
            (Failed, None),
            (Noarp, None),
        ];
        for (state, expected) in states {
            message.header.state = state;
            assert_eq!(usable(&message), expected, "{state}");
        }
    }
}
