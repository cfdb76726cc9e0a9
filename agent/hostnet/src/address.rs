//! Addresses of an interface: what it has, and making that what it should have.
//!
//! Ours are given as /32 or /128, without duplicate-address detection and without a route of their own. The kernel finishes
//! an IPv6 address on a work queue; [`settle`] waits for that, so that the address answers when the caller goes on.

use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use crate::HostError;
use crate::link::Interface;
use crate::netlink::Netlink;

/// How long an IPv6 address may take from accepted to usable; a few microseconds is usual.
const SETTLE: Duration = Duration::from_secs(2);

/// An address that an interface has.
pub(crate) struct Held {
    /// Address and prefix length.
    pub(crate) network: IpNet,
    /// False while duplicate-address detection runs, and when it failed.
    usable: bool,
    message: AddressMessage,
}

/// `AF_INET` or `AF_INET6`.
pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The interface's addresses, in the kernel's order.
pub(crate) fn held(netlink: &mut Netlink, link: &Interface) -> Result<Vec<Held>, HostError> {
    let mut request = AddressMessage::default();
    request.header.index = link.index;
    let operation = format!("read the addresses of {}", link.name);
    let answers = netlink.dump(&operation, RouteNetlinkMessage::GetAddress(request))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == link.index => read(message),
            _ => None,
        })
        .collect())
}

/// Makes `wanted` the only addresses of the interface: adds what is missing, removes the rest.
pub(crate) fn reconcile(netlink: &mut Netlink, link: &Interface, wanted: &[IpAddr]) -> Result<(), HostError> {
    let mut missing: Vec<IpAddr> = wanted.to_vec();
    for held in held(netlink, link)? {
        let known = missing.iter().position(|&address| IpNet::from(address) == held.network && held.usable);
        if let Some(known) = known {
            missing.remove(known);
            continue;
        }
        let operation = format!("remove address {} from {}", held.network, link.name);
        match netlink.request(&operation, RouteNetlinkMessage::DelAddress(held.message), 0) {
            Err(e) if !e.is(Errno::ADDRNOTAVAIL) => return Err(e),
            _ => {} // gone meanwhile is gone
        }
    }
    for address in missing {
        let operation = format!("add address {address} to {}", link.name);
        let message = RouteNetlinkMessage::NewAddress(permanent(link.index, address));
        match netlink.request(&operation, message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(e) if !e.is(Errno::EXIST) => return Err(e),
            _ => {} // the same address twice in `wanted`
        }
    }
    Ok(())
}

/// Waits until the kernel delivers packets for the IPv6 addresses (their local routes exist).
pub(crate) fn settle(netlink: &mut Netlink, link: &Interface, wanted: &[IpAddr]) -> Result<(), HostError> {
    let deadline = Instant::now() + SETTLE;
    let mut pause = Duration::from_micros(50);
    for &address in wanted.iter().filter(|address| address.is_ipv6()) {
        while !is_local(netlink, address) {
            if Instant::now() >= deadline {
                return Err(HostError::NotUsable {
                    address,
                    interface: link.name.clone(),
                    namespace: netlink.namespace().to_owned(),
                    waited_ms: SETTLE.as_millis() as u64,
                });
            }
            sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }
    Ok(())
}

fn is_local(netlink: &mut Netlink, address: IpAddr) -> bool {
    let mut request = RouteMessage::default();
    request.header.address_family = family(address);
    request.header.destination_prefix_length = 128;
    request.attributes.push(RouteAttribute::Destination(address.into()));
    // A refusal means that there is no route at all yet.
    let answers =
        netlink.request("look up an own address", RouteNetlinkMessage::GetRoute(request), 0).unwrap_or_default();
    answers.iter().any(|answer| matches!(answer, RouteNetlinkMessage::NewRoute(r) if r.header.kind == RouteType::Local))
}

fn permanent(index: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = IpNet::from(address).prefix_len();
    message.header.index = index;
    message.header.flags = AddressHeaderFlags::Permanent | AddressHeaderFlags::Nodad;
    let flags = AddressFlags::Permanent | AddressFlags::Nodad | AddressFlags::Noprefixroute;
    message.attributes.extend([
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Flags(flags),
    ]);
    message
}

fn read(message: AddressMessage) -> Option<Held> {
    let mut local = None;
    let mut address = None;
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(own) => local = Some(*own),
            AddressAttribute::Address(own_or_peer) => address = Some(*own_or_peer),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other side and IFA_LOCAL ours (rtnetlink(7)).
    let network = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    let usable = !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
    Some(Held { network, usable, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_side_that_is_ours_is_read_on_a_point_to_point_link() {
        let mut message = permanent(7, "10.0.0.1".parse().unwrap());
        message.attributes[1] = AddressAttribute::Address("10.0.0.2".parse().unwrap());
        assert_eq!(read(message).unwrap().network.to_string(), "10.0.0.1/32");
    }

    #[test]
    fn a_tentative_address_is_not_usable() {
        let mut message = permanent(7, "fd00::1".parse().unwrap());
        assert!(read(message.clone()).unwrap().usable);
        message.attributes[2] = AddressAttribute::Flags(AddressFlags::Tentative);
        assert!(!read(message).unwrap().usable);
    }

    #[test]
    fn the_loopback_has_its_addresses() {
        let ns = crate::Netns::current().unwrap();
        let lo = crate::interface(&ns, "lo").unwrap().unwrap();
        assert!(!lo.up || lo.addresses.contains(&"127.0.0.1/8".parse().unwrap()), "{lo:?}");
    }
}
