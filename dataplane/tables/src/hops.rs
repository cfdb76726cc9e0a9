//! The ways out of this node, each as the exact bytes that go in front of the layer-3 packet.
//!
//! A flow entry names its hop by number and remembers the hop's version; numbers may shift between generations (they
//! follow content order), versions tell when they did, and the flow then asks the routes again.

use crate::limits::{MAX_HOPS, TableError, at_most};

/// Number of a hop in [`Hops`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HopId(pub u16);

/// Kind of a way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HopKind {
    /// A local pod's port: Ethernet header.
    Pod,
    /// The host port: Ethernet header; TTL is left alone.
    Host,
    /// Another node through the overlay: Ethernet, IP, UDP, VXLAN, inner Ethernet.
    Tunnel,
    /// A neighbour on the uplink: Ethernet header.
    Uplink,
    /// No way: the neighbour's MAC is not known yet.
    Unresolved,
}

/// Longest header: Ethernet 14 + IPv6 40 + UDP 8 + VXLAN 8 + Ethernet 14.
pub const MAX_HOP_HEADER: usize = 84;

/// One way out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[repr(C, align(64))]
pub struct Hop {
    /// Changes with the content below; never 0.
    pub version: u32,
    /// Port number to send on.
    pub port: u16,
    /// Longest layer-3 packet (before encapsulation) that fits.
    pub mtu: u16,
    /// What kind of way.
    pub kind: HopKind,
    /// Valid bytes of `header`: 14, an overlay's 64 or 84, or 0 for a way that is unresolved.
    pub header_len: u8,
    /// Whether this is a tunnel that pods leave the cluster through: it is there as long as that gateway carries something,
    /// so that flows through it look for another way when it no longer does, and the node's other flows do not.
    pub gateway: bool,
    /// Tunnel over IPv4: one's-complement sum of the outer IPv4 header with length, TOS and checksum zero (host order).
    pub outer_sum: u16,
    /// The last two bytes (EtherType of the innermost Ethernet header) are set per packet family; the outer length,
    /// TOS, UDP source port and checksums are zero here and set per packet.
    pub header: [u8; MAX_HOP_HEADER],
}

/// All ways out, by [`HopId`].
#[derive(Clone, Debug, Default)]
pub struct Hops {
    list: Vec<Hop>,
    gateways: hashbrown::HashMap<u32, HopId>,
}

impl Hops {
    /// From hops in the order their ids were given.
    pub fn new(list: Vec<Hop>) -> Self {
        let gateways = (0u16..).zip(&list).filter(|(_, hop)| hop.gateway).map(|(id, hop)| (hop.version, HopId(id)));
        Hops { gateways: gateways.collect(), list }
    }

    /// Like [`Hops::new`], but refuses more than [`MAX_HOPS`].
    pub fn try_new(list: Vec<Hop>) -> Result<Self, TableError> {
        at_most("hops", MAX_HOPS, list.len())?;
        Ok(Hops::new(list))
    }

    /// The gateway tunnel of a version: where a flow of another generation leaves the cluster, if that gateway is still one.
    pub fn gateway_of_version(&self, version: u32) -> Option<HopId> {
        self.gateways.get(&version).copied()
    }

    /// The hop with a number; `None` for a number of another generation.
    #[inline]
    pub fn get(&self, id: HopId) -> Option<&Hop> {
        self.list.get(usize::from(id.0))
    }

    /// Every hop, by number.
    #[inline]
    pub fn list(&self) -> &[Hop] {
        &self.list
    }

    /// Number of hops.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All hops in order.
    pub fn iter(&self) -> impl Iterator<Item = &Hop> {
        self.list.iter()
    }
}

/// Builds hops.
impl Hop {
    /// A plain Ethernet hop: a pod, the host or a neighbour.
    pub fn ethernet(kind: HopKind, port: u16, mtu: u16, destination: [u8; 6], source: [u8; 6]) -> Self {
        let mut header = [0; MAX_HOP_HEADER];
        header[..6].copy_from_slice(&destination);
        header[6..12].copy_from_slice(&source);
        Hop { version: 0, port, mtu, kind, header_len: 14, gateway: false, outer_sum: 0, header }.stamped()
    }

    /// Whether nothing but the ordinary per-packet fields is left to fill in: no outer header, or one over IPv4.
    #[inline(always)]
    pub fn outer_is_v4(&self) -> bool {
        self.header_len <= 64
    }

    /// Sets the version from the content.
    pub fn stamped(mut self) -> Self {
        self.version = 0;
        // FNV-1a over everything but the version: content decides, whatever the order of events.
        let mut h: u32 = 0x811c_9dc5;
        let mut eat = |b: u8| h = (h ^ u32::from(b)).wrapping_mul(0x0100_0193);
        self.port.to_be_bytes().into_iter().for_each(&mut eat);
        self.mtu.to_be_bytes().into_iter().for_each(&mut eat);
        eat(self.kind as u8);
        eat(self.header_len);
        eat(u8::from(self.gateway));
        self.header.into_iter().for_each(&mut eat);
        self.version = h.max(1);
        self
    }
}

/// What a tunnel hop is made of.
#[derive(Clone, Copy, Debug)]
pub struct TunnelSpec {
    /// Uplink port number.
    pub port: u16,
    /// Longest inner layer-3 packet.
    pub mtu: u16,
    /// Outer Ethernet: next hop's MAC and ours.
    pub outer_macs: ([u8; 6], [u8; 6]),
    /// Outer IP: the peer node and us, both of one family.
    pub outer_addresses: (crate::Address, crate::Address),
    /// UDP port of the overlay.
    pub vxlan_port: u16,
    /// Network identifier.
    pub vni: u32,
    /// Inner Ethernet: the peer's tunnel MAC and ours.
    pub inner_macs: ([u8; 6], [u8; 6]),
}

impl Hop {
    /// A way through the overlay (RFC 7348): outer TTL 64, DF set, identification 0.
    pub fn tunnel(spec: &TunnelSpec) -> Self {
        let mut header = [0u8; MAX_HOP_HEADER];
        header[..6].copy_from_slice(&spec.outer_macs.0);
        header[6..12].copy_from_slice(&spec.outer_macs.1);
        let (peer, own) = spec.outer_addresses;
        let mut outer_sum = 0;
        let l4 = if peer.is_v4() {
            header[12..14].copy_from_slice(&0x0800u16.to_be_bytes());
            let ip = &mut header[14..34];
            ip[0] = 0x45;
            ip[6] = 0x40;
            ip[8] = 64;
            ip[9] = 17;
            ip[12..16].copy_from_slice(&own.last4());
            ip[16..20].copy_from_slice(&peer.last4());
            let mut sum: u32 = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
            sum = (sum & 0xffff) + (sum >> 16);
            outer_sum = ((sum & 0xffff) + (sum >> 16)) as u16;
            34
        } else {
            header[12..14].copy_from_slice(&0x86ddu16.to_be_bytes());
            let ip = &mut header[14..54];
            ip[0] = 0x60;
            ip[6] = 17;
            ip[7] = 64;
            ip[8..24].copy_from_slice(&own.0);
            ip[24..40].copy_from_slice(&peer.0);
            54
        };
        header[l4 + 2..l4 + 4].copy_from_slice(&spec.vxlan_port.to_be_bytes());
        header[l4 + 8] = 0x08;
        header[l4 + 12..l4 + 15].copy_from_slice(&spec.vni.to_be_bytes()[1..]);
        header[l4 + 16..l4 + 22].copy_from_slice(&spec.inner_macs.0);
        header[l4 + 22..l4 + 28].copy_from_slice(&spec.inner_macs.1);
        Hop {
            version: 0,
            port: spec.port,
            mtu: spec.mtu,
            kind: HopKind::Tunnel,
            header_len: (l4 + 30) as u8,
            gateway: false,
            outer_sum,
            header,
        }
        .stamped()
    }

    /// The same way, for pods that leave the cluster by it.
    pub fn as_gateway(&self) -> Self {
        Hop { gateway: true, ..self.clone() }.stamped()
    }

    /// The same way through the overlay with another inner source MAC.
    pub fn with_inner_source(&self, mac: [u8; 6]) -> Self {
        let mut hop = self.clone();
        let end = usize::from(hop.header_len);
        if hop.kind == HopKind::Tunnel
            && let Some(field) = end.checked_sub(8).and_then(|at| hop.header.get_mut(at..at + 6))
        {
            field.copy_from_slice(&mac);
        }
        hop.stamped()
    }

    /// A way whose neighbour is not known yet; packets for it are `NoNeighbour`.
    pub fn unresolved(port: u16, mtu: u16) -> Self {
        let hop = Hop {
            version: 0,
            port,
            mtu,
            kind: HopKind::Unresolved,
            header_len: 0,
            gateway: false,
            outer_sum: 0,
            header: [0; MAX_HOP_HEADER],
        };
        hop.stamped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Address;

    fn spec(peer: &str, own: &str) -> TunnelSpec {
        let ip = |text: &str| Address::from(text.parse::<std::net::IpAddr>().unwrap());
        TunnelSpec {
            port: 0,
            mtu: 1450,
            outer_macs: ([1; 6], [2; 6]),
            outer_addresses: (ip(peer), ip(own)),
            vxlan_port: 4789,
            vni: 0x0012_3456,
            inner_macs: ([3; 6], [4; 6]),
        }
    }

    #[test]
    fn a_tunnel_over_ipv4_is_the_bytes_of_rfc_7348() {
        let hop = Hop::tunnel(&spec("192.0.2.2", "192.0.2.1"));
        let header = &hop.header[..usize::from(hop.header_len)];
        assert_eq!(header.len(), 14 + 20 + 8 + 8 + 14);
        assert_eq!(header[12..14], [0x08, 0x00]);
        let outer = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        assert_eq!(header[14..34], outer, "DF, TTL 64, UDP, us to them");
        assert_eq!(header[34..42], [0, 0, 0x12, 0xb5, 0, 0, 0, 0], "UDP to 4789, no checksum");
        assert_eq!(header[42..50], [0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0], "VNI flag, VNI");
        assert_eq!(header[50..62], [3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4]);
        assert!(hop.outer_is_v4());
    }

    #[test]
    fn the_partial_sum_is_the_ones_complement_sum_of_the_outer_header() {
        for (peer, own) in [("192.0.2.2", "192.0.2.1"), ("255.255.255.254", "255.255.255.253"), ("0.0.0.1", "0.0.0.0")]
        {
            let hop = Hop::tunnel(&spec(peer, own));
            let mut sum = 0u64;
            for word in hop.header[14..34].chunks(2) {
                sum += u64::from(u16::from_be_bytes([word[0], word[1]]));
            }
            assert_eq!(u64::from(hop.outer_sum), sum % 0xffff, "{peer}");
        }
    }

    #[test]
    fn a_tunnel_over_ipv6_names_udp_and_hop_limit() {
        let hop = Hop::tunnel(&spec("2001:db8::2", "2001:db8::1"));
        assert_eq!((hop.header_len, hop.header[14], hop.header[20], hop.header[21]), (84, 0x60, 17, 64));
        assert!(!hop.outer_is_v4());
    }

    #[test]
    fn another_inner_source_changes_nothing_else() {
        for (peer, own) in [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")] {
            let spec = spec(peer, own);
            let expected = Hop::tunnel(&TunnelSpec { inner_macs: (spec.inner_macs.0, [6; 6]), ..spec });
            assert_eq!(Hop::tunnel(&spec).with_inner_source([6; 6]), expected);
        }
    }

    #[test]
    fn versions_follow_the_content_and_are_never_zero() {
        let hop = |port, mtu| Hop::ethernet(HopKind::Pod, port, mtu, [1; 6], [2; 6]);
        assert_eq!(hop(1, 1450).version, hop(1, 1450).version);
        assert_ne!(hop(1, 1450).version, hop(1, 1430).version);
        assert_ne!(hop(1, 1450).version, hop(2, 1450).version);
        assert_ne!(Hop::unresolved(0, 1500).version, 0);
    }

    #[test]
    fn a_gateway_tunnel_is_found_by_its_version_and_is_none_of_the_nodes_tunnel() {
        let tunnel = Hop::tunnel(&spec("192.0.2.2", "192.0.2.1"));
        let gateway = tunnel.as_gateway();
        assert_ne!(tunnel.version, gateway.version);
        let hops = Hops::new(vec![Hop::unresolved(0, 1500), tunnel.clone(), gateway.clone()]);
        assert_eq!(hops.gateway_of_version(gateway.version), Some(HopId(2)));
        assert_eq!(hops.gateway_of_version(tunnel.version), None);
    }

    #[test]
    fn more_hops_than_a_number_can_name_are_refused() {
        let list = vec![Hop::unresolved(0, 1500); MAX_HOPS + 1];
        assert!(matches!(Hops::try_new(list), Err(TableError::TooMany { what: "hops", .. })));
    }
}
