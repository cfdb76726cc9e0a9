//! The node's own network stack, as far as the agent arranges it: namespaces, interfaces of pods and of the host,
//! routes, neighbours, and the settings that go with them.
//!
//! Control thread (and CNI requests) only: every call blocks for a few system calls, and none is on the packet path.
//! Each call enters the namespace on a short-lived thread ([`Netns::run`]), so the caller never moves. What is arranged is
//! arranged again by calling again: the functions compare with what the kernel has and change the difference, and keep
//! no state of their own. Sources: `rtnetlink(7)`, the kernel's `Documentation/networking/ip-sysctl.rst`.

mod address;
mod capability;
mod error;
mod layer3;
mod link;
mod neighbour;
mod netlink;
mod netns;
mod ports;
mod prefix;
mod redirect;
mod route;
mod sysctl;
mod watch;

pub use capability::capabilities_missing;
pub use error::HostError;
pub use layer3::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, HostInterface, PodInterface, configure_host, configure_pod};
pub use link::{Interface, delete_link, interface, move_link, raise_link, settle_link, veth_into};
pub use neighbour::{Neighbour, neighbours, solicit};
pub use netns::Netns;
pub use ports::{reserved_ports, set_reserved_ports, with_reserved};
pub use redirect::{Redirect, remove_redirects, set_redirects};
pub use route::{ROUTE_PROTOCOL, default_gateways, default_route_interfaces};
pub use sysctl::{set_sysctl, sysctl};
pub use watch::{Watch, watch_neighbours};
