//! Routes of the main table: the default gateways that a node already has, and the routes that we add.
//!
//! Ours carry a protocol number of their own: what we find with it and no longer want, we remove; a route that anyone else
//! made is never replaced or removed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use crate::address::family;
use crate::link::{self, Interface};
use crate::netlink::Netlink;
use crate::{HostError, Netns};

/// The routing protocol number of our routes (`ip route show proto 83`), free in iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 83;

/// A route over one interface that we want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// Where to; host bits cleared.
    pub(crate) destination: IpNet,
    /// Through whom; none for what is on the link itself.
    pub(crate) gateway: Option<IpAddr>,
    /// The node's own address in packets that it starts itself.
    pub(crate) source: Option<IpAddr>,
}

/// The gateways of the default routes over `interface`, IPv4 then IPv6: of several the one with the lowest metric. An IPv4
/// default route may have an IPv6 gateway (RFC 5549). A default route without a gateway counts as none.
///
/// # Errors
/// When there is no such interface, or the kernel refuses.
pub fn default_gateways(ns: &Netns, interface: &str) -> Result<[Option<IpAddr>; 2], HostError> {
    link::check_name(interface)?;
    Netlink::within(ns, |netlink| {
        let link = link::existing(netlink, "read the default gateways", interface)?;
        let mut gateways = [None; 2];
        for (gateway, family) in gateways.iter_mut().zip([AddressFamily::Inet, AddressFamily::Inet6]) {
            let routes = over(netlink, &link, family)?;
            let defaults = routes.iter().filter(|route| route.header.destination_prefix_length == 0);
            let found = defaults.filter_map(|route| Some((metric(route), next_hop(route, link.index)?)));
            *gateway = found.min_by_key(|(metric, _)| *metric).map(|(_, address)| address);
        }
        Ok(gateways)
    })
}

/// Names of the interfaces that a default route of the main table goes over.
///
/// # Errors
/// When the kernel refuses.
pub fn default_route_interfaces(ns: &Netns) -> Result<BTreeSet<String>, HostError> {
    Netlink::within(ns, |netlink| {
        let mut indices = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            for answer in netlink.dump("read the default routes", RouteNetlinkMessage::GetRoute(request))? {
                let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
                let ours = route.header.table == RouteHeader::RT_TABLE_MAIN && route.header.kind == RouteType::Unicast;
                if ours && route.header.destination_prefix_length == 0 {
                    indices.extend(outputs(&route));
                }
            }
        }
        link::names_of(netlink, &indices)
    })
}

/// Indices of the interfaces that a route goes over.
fn outputs(route: &RouteMessage) -> Vec<u32> {
    let of = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    };
    route.attributes.iter().flat_map(of).collect()
}

/// Makes `wanted` our only routes over the interface.
pub(crate) fn reconcile(netlink: &mut Netlink, link: &Interface, wanted: &[Route]) -> Result<(), HostError> {
    let mut missing = wanted.to_vec();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for message in over(netlink, link, family)? {
            if message.header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL) {
                continue;
            }
            let Some(held) = read(&message) else { continue };
            if let Some(known) = missing.iter().position(|route| *route == held) {
                missing.remove(known);
                continue;
            }
            let operation = format!("remove route {} over {}", held.destination, link.name);
            match netlink.request(&operation, RouteNetlinkMessage::DelRoute(message), 0) {
                Err(e) if !e.is(Errno::SRCH) => return Err(e),
                _ => {} // gone meanwhile is gone
            }
        }
    }
    // In the order given: routes to gateways come before the routes through them.
    for route in missing {
        let operation = format!("add route {} over {}", route.destination, link.name);
        let message = RouteNetlinkMessage::NewRoute(written(link.index, &route));
        netlink.request(&operation, message, NLM_F_CREATE | NLM_F_EXCL).map_err(|e| {
            if !e.is(Errno::EXIST) {
                return e;
            }
            let (interface, namespace) = (link.name.clone(), netlink.namespace().to_owned());
            HostError::RouteTaken { destination: route.destination, interface, namespace }
        })?;
    }
    Ok(())
}

/// The unicast routes of the main table that go over the interface.
fn over(netlink: &mut Netlink, link: &Interface, family: AddressFamily) -> Result<Vec<RouteMessage>, HostError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.attributes.push(RouteAttribute::Oif(link.index));
    let operation = format!("read the routes over {}", link.name);
    let answers = netlink.dump(&operation, RouteNetlinkMessage::GetRoute(request))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route)
                if route.header.table == RouteHeader::RT_TABLE_MAIN
                    && route.header.kind == RouteType::Unicast
                    && goes_over(&route, link.index) =>
            {
                Some(route)
            }
            _ => None,
        })
        .collect())
}

fn goes_over(route: &RouteMessage, index: u32) -> bool {
    outputs(route).contains(&index)
}

fn metric(route: &RouteMessage) -> u32 {
    let given = |attribute: &RouteAttribute| {
        if let RouteAttribute::Priority(metric) = attribute { Some(*metric) } else { None }
    };
    route.attributes.iter().find_map(given).unwrap_or(0)
}

fn next_hop(route: &RouteMessage, index: u32) -> Option<IpAddr> {
    gateway(&route.attributes).or_else(|| {
        let hops = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops),
            _ => None,
        })?;
        hops.iter().filter(|hop| hop.interface_index == index).find_map(|hop| gateway(&hop.attributes))
    })
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(gateway) => address(gateway),
        RouteAttribute::Via(RouteVia::Inet(gateway)) => Some((*gateway).into()),
        RouteAttribute::Via(RouteVia::Inet6(gateway)) => Some((*gateway).into()),
        _ => None,
    })
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn read(message: &RouteMessage) -> Option<Route> {
    let mut destination: IpAddr = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut source = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = address(to)?,
            RouteAttribute::PrefSource(from) => source = address(from),
            _ => {}
        }
    }
    let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, gateway: gateway(&message.attributes), source })
}

fn written(index: u32, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.destination.addr());
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::Universe;
    message.attributes.push(RouteAttribute::Oif(index));
    if route.destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.addr().into()));
    }
    match route.gateway {
        Some(gateway) => {
            // The gateway is no neighbour by any prefix of ours: take our word that it is on the link.
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        None if route.destination.addr().is_ipv4() => message.header.scope = RouteScope::Link,
        None => {} // IPv6 routes have no scope
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    message
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteNextHop;

    use super::*;

    #[test]
    fn a_route_reads_back_as_it_was_written() {
        let routes = [
            ("0.0.0.0/0", Some("169.254.1.1"), None),
            ("169.254.1.1/32", None, None),
            ("fd00::/56", Some("fe80::1"), Some("fd00::2")),
            ("::/0", Some("fe80::1"), None),
        ];
        for (destination, gateway, source) in routes {
            let address = |text: Option<&str>| text.map(|text| text.parse().unwrap());
            let destination = destination.parse().unwrap();
            let route = Route { destination, gateway: address(gateway), source: address(source) };
            assert_eq!(read(&written(3, &route)), Some(route));
        }
    }

    #[test]
    fn the_gateway_of_a_multipath_route_is_that_of_our_interface() {
        let hop = |index, gateway: &str| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.attributes.push(RouteAttribute::Gateway(gateway.parse::<IpAddr>().unwrap().into()));
            hop
        };
        let mut message = RouteMessage::default();
        message.attributes.push(RouteAttribute::MultiPath(vec![hop(2, "10.0.0.1"), hop(3, "10.1.0.1")]));
        assert_eq!(next_hop(&message, 3), Some("10.1.0.1".parse().unwrap()));
        assert!(goes_over(&message, 2) && !goes_over(&message, 4));
    }

    #[test]
    fn an_ipv4_route_may_have_an_ipv6_gateway() {
        let attributes = [RouteAttribute::Via(RouteVia::Inet6("fe80::9".parse().unwrap()))];
        assert_eq!(gateway(&attributes), Some("fe80::9".parse().unwrap()));
    }
}
