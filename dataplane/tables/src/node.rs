//! This node as the packet path sees it.

use crate::address::{Address, Family};

/// Own addresses, MACs and ports.
#[derive(Clone, Debug)]
pub struct LocalNode {
    /// Node name.
    pub name: String,
    /// InternalIP, IPv4 then IPv6.
    pub internal: [Option<Address>; 2],
    /// Overlay address: podCIDR's network + 1, IPv4 then IPv6.
    pub overlay: [Option<Address>; 2],
    /// Own addresses at which NodePorts answer, sorted.
    pub node_port_addresses: Vec<Address>,
    /// MAC of the uplink device.
    pub uplink_mac: [u8; 6],
    /// Port number of the uplink.
    pub uplink: u16,
    /// Port number of the host port.
    pub host: u16,
    /// MAC of the host's end of the host port.
    pub host_mac: [u8; 6],
    /// Layer-3 MTU of the uplink.
    pub uplink_mtu: u16,
    /// Layer-3 MTU of pods: the uplink's less the encapsulation.
    pub pod_mtu: u16,
}

impl LocalNode {
    /// InternalIP of a family.
    #[inline]
    pub fn internal(&self, family: Family) -> Option<Address> {
        self.internal[family as usize]
    }

    /// Overlay address of a family.
    #[inline]
    pub fn overlay(&self, family: Family) -> Option<Address> {
        self.overlay[family as usize]
    }

    /// Whether `address` is this node itself.
    #[inline]
    pub fn owns(&self, address: Address) -> bool {
        self.internal.contains(&Some(address)) || self.overlay.contains(&Some(address))
    }
}

/// Our end of every pod and host port.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x00, 0xa9, 0xfe, 0x01, 0x01];
/// The pods' IPv4 gateway.
pub const GATEWAY_V4: Address = Address::v4([169, 254, 1, 1]);
/// The pods' IPv6 gateway, fe80::1.
pub const GATEWAY_V6: Address = Address::v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
