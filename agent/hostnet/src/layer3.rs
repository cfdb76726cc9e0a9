//! An interface that is a router's only neighbour: a pod's, and the host's own towards the overlay.
//!
//! Both have addresses without a network (/32, /128) and one gateway that is always there: 169.254.1.1 and fe80::1, one
//! fixed MAC, both permanent neighbours, so that no packet waits for ARP or ND. A pod sends everything to it; the host only
//! what belongs to pods and Services. Order matters: settings before up (no router solicitation, no link-local address
//! of the kernel's making), neighbours before routes (no ARP for the gateway).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::netlink::Netlink;
use crate::route::{self, Route};
use crate::{HostError, Netns, address, link, neighbour, prefix, sysctl};

/// The gateway that every pod and the host port has for IPv4.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The gateway that every pod and the host port has for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The MAC of both gateways, on every port.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x00, 0xa9, 0xfe, 0x01, 0x01];

/// The least MTU of a link with IPv6, in bytes (RFC 8200 section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// What a pod's interface should be.
#[derive(Debug, Clone, Copy)]
pub struct PodInterface<'a> {
    /// Its name in the pod, such as `eth0`; the device exists already.
    pub name: &'a str,
    /// Its MAC.
    pub mac: [u8; 6],
    /// The largest layer 3 packet, in bytes.
    pub mtu: u32,
    /// The pod's addresses; a family without one is left unrouted.
    pub addresses: &'a [IpAddr],
}

/// What the host's interface towards pods and Services should be.
#[derive(Debug, Clone, Copy)]
pub struct HostInterface<'a> {
    /// Its name, such as `sluice0`; the device exists already.
    pub name: &'a str,
    /// Its MAC.
    pub mac: [u8; 6],
    /// The largest layer 3 packet, in bytes.
    pub mtu: u32,
    /// The node's overlay addresses, which packets that the node starts carry.
    pub addresses: &'a [IpAddr],
    /// The prefixes of pods and Services.
    pub routes: &'a [IpNet],
    /// Prefixes within `routes` that must keep going elsewhere: they are routed around.
    pub exclude: &'a [IpNet],
}

/// Makes the pod's namespace ready: `lo` up; the interface with this MAC, MTU and exactly these addresses, up, with default
/// routes through the gateways. May be repeated; on return the addresses are usable.
///
/// # Errors
/// When the interface is not there, something else holds a default route, or the kernel refuses; what was done before
/// the error stays, and a repeat goes on from there.
pub fn configure_pod(ns: &Netns, wanted: &PodInterface<'_>) -> Result<(), HostError> {
    let defaults = [IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())];
    let plan = Plan {
        operation: "configure the pod's interface",
        name: wanted.name,
        mac: wanted.mac,
        mtu: wanted.mtu,
        addresses: wanted.addresses,
        routes: routes(wanted.addresses, &defaults, false),
    };
    plan.check()?;
    Netlink::within(ns, |netlink| {
        let lo = link::existing(netlink, "set the loopback up", "lo")?;
        link::set(netlink, &lo, None, None)?;
        plan.apply(netlink)
    })
}

/// Makes the host's interface ready in the agent's namespace: as a pod's, but with routes to `routes` less `exclude` only,
/// never a default route, and with reverse-path filtering loose: replies may come back by the uplink. May be repeated.
///
/// # Errors
/// As [`configure_pod`]; a route to one of the prefixes that another program made is an error, not replaced.
pub fn configure_host(ns: &Netns, wanted: &HostInterface<'_>) -> Result<(), HostError> {
    let mut prefixes = prefix::without(wanted.routes, wanted.exclude);
    prefixes.retain(|prefix| prefix.prefix_len() > 0);
    let plan = Plan {
        operation: "configure the host's interface",
        name: wanted.name,
        mac: wanted.mac,
        mtu: wanted.mtu,
        addresses: wanted.addresses,
        routes: routes(wanted.addresses, &prefixes, true),
    };
    plan.check()?;
    Netlink::within(ns, |netlink| {
        link::existing(netlink, plan.operation, plan.name)?;
        sysctl::write(netlink.namespace(), &format!("net/ipv4/conf/{}/rp_filter", wanted.name), "2")?;
        plan.apply(netlink)
    })
}

/// Keeps the kernel from speaking IPv6 on the interface of its own accord: no link-local address, no duplicate-address
/// detection, no router solicitation. Without IPv6 in the kernel there is nothing to keep quiet.
pub(crate) fn silence_ipv6(namespace: &str, name: &str) -> Result<(), HostError> {
    let conf = format!("net/ipv6/conf/{name}");
    if !sysctl::exists(&conf) {
        return Ok(());
    }
    let settings = [("accept_dad", "0"), ("accept_ra", "0"), ("autoconf", "0"), ("router_solicitations", "0")];
    // addr_gen_mode 1: no address from the MAC (ip-sysctl.rst).
    for (setting, value) in settings.into_iter().chain([("addr_gen_mode", "1")]) {
        sysctl::write(namespace, &format!("{conf}/{setting}"), value)?;
    }
    Ok(())
}

struct Plan<'a> {
    operation: &'static str,
    name: &'a str,
    mac: [u8; 6],
    mtu: u32,
    addresses: &'a [IpAddr],
    routes: Vec<Route>,
}

impl Plan<'_> {
    fn check(&self) -> Result<(), HostError> {
        link::check_name(self.name)?;
        if self.mtu < IPV6_MIN_MTU && self.addresses.iter().any(IpAddr::is_ipv6) {
            return Err(HostError::MtuTooSmall { interface: self.name.to_owned(), mtu: self.mtu });
        }
        Ok(())
    }

    fn apply(&self, netlink: &mut Netlink) -> Result<(), HostError> {
        let link = link::existing(netlink, self.operation, self.name)?;
        if self.addresses.iter().any(IpAddr::is_ipv6) {
            // Some runtimes start a sandbox with IPv6 off.
            sysctl::write(netlink.namespace(), &format!("net/ipv6/conf/{}/disable_ipv6", self.name), "0")?;
        }
        silence_ipv6(netlink.namespace(), self.name)?;
        link::set(netlink, &link, Some(self.mac), Some(self.mtu))?;
        address::reconcile(netlink, &link, self.addresses)?;
        for gateway in gateways(self.addresses) {
            neighbour::fix(netlink, &link, gateway, GATEWAY_MAC)?;
        }
        route::reconcile(netlink, &link, &self.routes)?;
        address::settle(netlink, &link, self.addresses)
    }
}

/// The gateways of the families that have an address.
fn gateways(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let known = [IpAddr::from(GATEWAY_V4), IpAddr::from(GATEWAY_V6)];
    known.into_iter().filter(|gateway| addresses.iter().any(|address| address.is_ipv4() == gateway.is_ipv4()))
}

/// The way to each gateway, then `prefixes` through it; with `sourced`, from the family's first address.
fn routes(addresses: &[IpAddr], prefixes: &[IpNet], sourced: bool) -> Vec<Route> {
    let mut routes = Vec::new();
    for gateway in gateways(addresses) {
        let alike = |address: &IpAddr| address.is_ipv4() == gateway.is_ipv4();
        let source = addresses.iter().copied().find(alike).filter(|_| sourced);
        routes.push(Route { destination: gateway.into(), gateway: None, source: None });
        let through = prefixes.iter().filter(|prefix| alike(&prefix.addr()));
        routes.extend(through.map(|&destination| Route { destination, gateway: Some(gateway), source }));
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_without_an_address_gets_no_route() {
        let prefixes = ["10.244.0.0/16".parse().unwrap(), "fd00::/56".parse().unwrap()];
        let routes = routes(&["10.244.0.1".parse().unwrap()], &prefixes, true);
        let destinations: Vec<String> = routes.iter().map(|route| route.destination.to_string()).collect();
        assert_eq!(destinations, ["169.254.1.1/32", "10.244.0.0/16"]);
        assert_eq!(routes[1].source, Some("10.244.0.1".parse().unwrap()));
    }

    #[test]
    fn ipv6_on_a_link_too_small_for_it_is_refused_before_anything_changes() {
        let address = ["fd00::1".parse().unwrap()];
        let wanted = PodInterface { name: "lo", mac: [2; 6], mtu: 1279, addresses: &address };
        let refused = configure_pod(&Netns::current().unwrap(), &wanted);
        assert!(matches!(refused, Err(HostError::MtuTooSmall { mtu: 1279, .. })));
    }
}
