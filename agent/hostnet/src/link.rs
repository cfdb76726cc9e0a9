//! Interfaces: what the kernel says of one, and making, changing and removing them.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rustix::io::Errno;

use crate::netlink::Netlink;
use crate::{HostError, Netns, address, layer3};

/// `IFNAMSIZ` less the end mark.
const NAME_BYTES: usize = 15;

/// An interface as the kernel has it at the moment of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it, unique within the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC; zero where the device has none of six bytes (`lo` has zeros, a tunnel none).
    pub mac: [u8; 6],
    /// The largest layer 3 packet, in bytes.
    pub mtu: u32,
    /// Its addresses with their prefix lengths, IPv4 first, each family in the kernel's order.
    pub addresses: Vec<IpNet>,
    /// True when it is set up (`IFF_UP`), whether or not it has a carrier.
    pub up: bool,
    /// The driver kind of a virtual device (`veth`, `tun`, `vxlan`); none for hardware and `lo`.
    pub kind: Option<String>,
}

/// Looks up an interface with its addresses; none when the namespace has no such name.
///
/// # Errors
/// When the namespace cannot be entered or the kernel refuses.
pub fn interface(ns: &Netns, name: &str) -> Result<Option<Interface>, HostError> {
    check_name(name)?;
    Netlink::within(ns, |netlink| {
        let Some(mut found) = find(netlink, name)? else { return Ok(None) };
        let held = address::held(netlink, &found)?;
        found.addresses = held.iter().map(|held| held.network).collect();
        found.addresses.sort_by_key(|network| matches!(network, IpNet::V6(_)));
        Ok(Some(found))
    })
}

/// Removes an interface; false when there is none of that name.
///
/// # Errors
/// When the kernel refuses: hardware cannot be removed.
pub fn delete_link(ns: &Netns, name: &str) -> Result<bool, HostError> {
    check_name(name)?;
    Netlink::within(ns, |netlink| {
        let operation = format!("delete interface {name}");
        match netlink.request(&operation, RouteNetlinkMessage::DelLink(named(name)), 0) {
            Ok(_) => Ok(true),
            Err(e) if e.is(Errno::NODEV) => Ok(false),
            Err(e) => Err(e),
        }
    })
}

/// Sets an interface up with this MAC and MTU; its addresses and routes are left alone.
///
/// # Errors
/// When there is none of that name, or the kernel refuses.
pub fn raise_link(ns: &Netns, name: &str, mac: [u8; 6], mtu: u32) -> Result<(), HostError> {
    check_name(name)?;
    Netlink::within(ns, |netlink| {
        let link = existing(netlink, "set the interface up", name)?;
        set(netlink, &link, Some(mac), Some(mtu))
    })
}

/// Makes a veth pair: `host_name` in `ns`, set up and silent (no IPv6 address of its own), and `pod_name` in `pod`, still
/// down. Both ends have `queues` queues each way: native XDP needs as many receive queues as the peer has transmit queues.
///
/// # Errors
/// When either name is taken, or the kernel refuses.
pub fn veth_into(ns: &Netns, host_name: &str, pod: &Netns, pod_name: &str, queues: u32) -> Result<(), HostError> {
    check_name(host_name)?;
    check_name(pod_name)?;
    let queued = |name: &str| {
        let mut message = named(name);
        message
            .attributes
            .extend([LinkAttribute::NumTxQueues(queues.max(1)), LinkAttribute::NumRxQueues(queues.max(1))]);
        message
    };
    let mut peer = queued(pod_name);
    peer.attributes.push(LinkAttribute::NetNsFd(pod.as_fd().as_raw_fd()));
    let mut pair = queued(host_name);
    pair.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Netlink::within(ns, |netlink| {
        let operation = format!("make veth pair {host_name} and {pod_name} (the latter in {})", pod.label());
        netlink.request(&operation, RouteNetlinkMessage::NewLink(pair), NLM_F_CREATE | NLM_F_EXCL)?;
        let raise = |netlink: &mut Netlink| {
            layer3::silence_ipv6(netlink.namespace(), host_name)?;
            let host = existing(netlink, "set up the veth pair", host_name)?;
            set(netlink, &host, None, None)
        };
        raise(netlink).inspect_err(|_| {
            // Half a pair is worse than none: the caller's next attempt would find the name taken.
            let _ = netlink.request("delete half a veth pair", RouteNetlinkMessage::DelLink(named(host_name)), 0);
        })
    })
}

/// Moves an interface, hardware too, into another namespace under a name of its own there; it arrives down and without
/// addresses. The name must be free there.
///
/// # Errors
/// When there is no such interface, the name is taken, or the kernel refuses (a bond's member, a device of another kind).
pub fn move_link(from: &Netns, name: &str, to: &Netns, new_name: &str) -> Result<(), HostError> {
    check_name(name)?;
    check_name(new_name)?;
    let taken = Netlink::within(to, |netlink| find(netlink, new_name))?;
    if taken.is_some() {
        let operation = "move an interface";
        let (interface, namespace) = (new_name.to_owned(), to.label().to_owned());
        return Err(HostError::NameTaken { operation, interface, namespace });
    }
    Netlink::within(from, |netlink| {
        let link = existing(netlink, "move an interface", name)?;
        let operation = format!("move {name} to {} as {new_name}", to.label());
        // Down first: an interface that is up cannot be renamed.
        lower(netlink, &link)?;
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.attributes.push(LinkAttribute::NetNsFd(to.as_fd().as_raw_fd()));
        message.attributes.push(LinkAttribute::IfName(new_name.to_owned()));
        netlink.request(&operation, RouteNetlinkMessage::SetLink(message), 0).map(drop)
    })
}

/// Gives an interface a name, MAC and MTU, and sets it down.
///
/// # Errors
/// When there is no such interface, or the kernel refuses.
pub fn settle_link(ns: &Netns, name: &str, new_name: &str, mac: [u8; 6], mtu: u32) -> Result<(), HostError> {
    check_name(name)?;
    check_name(new_name)?;
    Netlink::within(ns, |netlink| {
        let link = existing(netlink, "settle an interface", name)?;
        lower(netlink, &link)?;
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        if link.mac != mac {
            message.attributes.push(LinkAttribute::Address(mac.to_vec()));
        }
        if link.mtu != mtu && mtu != 0 {
            message.attributes.push(LinkAttribute::Mtu(mtu));
        }
        if name != new_name {
            message.attributes.push(LinkAttribute::IfName(new_name.to_owned()));
        }
        if message.attributes.is_empty() {
            return Ok(());
        }
        let operation = format!("settle {name} as {new_name}");
        netlink.request(&operation, RouteNetlinkMessage::SetLink(message), 0).map(drop)
    })
}

fn lower(netlink: &mut Netlink, link: &Interface) -> Result<(), HostError> {
    if !link.up {
        return Ok(());
    }
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    message.header.change_mask = LinkFlags::Up;
    netlink.request(&format!("set {} down", link.name), RouteNetlinkMessage::SetLink(message), 0).map(drop)
}

/// Names of interfaces by their numbers.
pub(crate) fn names_of(netlink: &mut Netlink, indices: &BTreeSet<u32>) -> Result<BTreeSet<String>, HostError> {
    if indices.is_empty() {
        return Ok(BTreeSet::new());
    }
    let all = netlink.dump("read the interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let links = all.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(described(link)),
        _ => None,
    });
    Ok(links.filter(|link| indices.contains(&link.index)).map(|link| link.name).collect())
}

/// The interface without its addresses, or none.
pub(crate) fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Interface>, HostError> {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let operation = format!("read interface {name}");
    match netlink.request(&operation, RouteNetlinkMessage::GetLink(message), 0) {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(described(link)),
            _ => None,
        })),
        Err(e) if e.is(Errno::NODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

/// As [`find`], for an operation that cannot go on without it.
pub(crate) fn existing(netlink: &mut Netlink, operation: &'static str, name: &str) -> Result<Interface, HostError> {
    let found = find(netlink, name)?;
    found.ok_or_else(|| HostError::NoInterface {
        operation,
        interface: name.to_owned(),
        namespace: netlink.namespace().to_owned(),
    })
}

/// Sets the interface up, with another MAC and MTU where they are given and differ.
pub(crate) fn set(
    netlink: &mut Netlink,
    link: &Interface,
    mac: Option<[u8; 6]>,
    mtu: Option<u32>,
) -> Result<(), HostError> {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    let mut changes = Vec::new();
    if let Some(mac) = mac.filter(|mac| *mac != link.mac) {
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
        let [a, b, c, d, e, f] = mac;
        changes.push(format!("MAC {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"));
    }
    if let Some(mtu) = mtu.filter(|mtu| *mtu != link.mtu) {
        message.attributes.push(LinkAttribute::Mtu(mtu));
        changes.push(format!("MTU {mtu}"));
    }
    if !link.up {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        changes.push("up".to_owned());
    }
    if changes.is_empty() {
        return Ok(());
    }
    let operation = format!("set {} {}", link.name, changes.join(", "));
    netlink.request(&operation, RouteNetlinkMessage::SetLink(message), 0).map(drop)
}

/// Refuses a name that no interface can have (kernel `dev_valid_name`), before it becomes part of a path.
pub(crate) fn check_name(name: &str) -> Result<(), HostError> {
    let sound = !name.is_empty()
        && name.len() <= NAME_BYTES
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| c.is_whitespace() || matches!(c, '/' | ':' | '\0'));
    let what = "an interface name (1 to 15 bytes without spaces, `/` and `:`)";
    if sound { Ok(()) } else { Err(HostError::BadName { name: name.to_owned(), what }) }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn described(link: LinkMessage) -> Interface {
    let mut found = Interface {
        index: link.header.index,
        name: String::new(),
        mac: [0; 6],
        mtu: 0,
        addresses: Vec::new(),
        up: link.header.flags.contains(LinkFlags::Up),
        kind: None,
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Mtu(mtu) => found.mtu = mtu,
            LinkAttribute::Address(bytes) => found.mac = bytes.try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(infos) => {
                found.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_found_and_an_absent_name_is_not() {
        let ns = Netns::current().unwrap();
        let lo = interface(&ns, "lo").unwrap().unwrap();
        assert_eq!((lo.index, lo.name.as_str(), lo.mac, lo.kind), (1, "lo", [0; 6], None));
        assert_eq!(interface(&ns, "sg-hn-absent").unwrap(), None);
    }

    #[test]
    fn a_name_that_no_interface_can_have_is_refused_before_the_kernel_is_asked() {
        for name in ["", "a/b", "..", "sixteen-bytes-ab", "a b", "a:1"] {
            assert!(matches!(check_name(name), Err(HostError::BadName { .. })), "{name:?}");
        }
        assert!(check_name("eth0.100").is_ok());
    }
}
