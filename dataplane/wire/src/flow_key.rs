//! The addresses, ports and protocol that name one direction of a flow, as flat bytes to hash and compare.
//!
//! ```text
//! FlowTuple4: source 4 │ destination 4 │ sport 2 │ dport 2 │ protocol 1 │ zero 3     = 16 bytes
//! FlowTuple6: source 16 │ destination 16 │ sport 2 │ dport 2 │ protocol 1 │ zero 3   = 40 bytes
//! ```
//! Source: RFC 5508 §3 (an ICMP echo's identifier stands for both ports). Owner thread: any. Invariant: the spare bytes are zero, so
//! equal tuples are equal bytes; `reverse` is its own inverse; the tuple of an echo reply is the reverse of its request's.
//! Cost: 16 or 40 bytes copied.

use crate::header::Header;
use crate::icmp;
use crate::ipv4::Ipv4Header;
use crate::ipv6::Ipv6Header;
use crate::layers::{Layers, Network, Transport};
use crate::protocol::Protocol;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

macro_rules! tuple {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $addr:ty, $len:literal, $header:ty, $network:pat) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            /// Source address.
            pub source: [u8; $bytes],
            /// Destination address.
            pub destination: [u8; $bytes],
            /// Source port; of an echo its identifier, 0 where there are no ports.
            pub source_port: U16,
            /// Destination port; of an echo its identifier, 0 where there are no ports.
            pub destination_port: U16,
            /// Upper-layer protocol.
            pub protocol: Protocol,
            /// Always zero.
            spare: [u8; 3],
        }

        const _: () = assert!(size_of::<$name>() == $len);

        impl $name {
            /// A tuple of its parts.
            #[inline]
            pub const fn new(
                source: $addr, destination: $addr, source_port: u16, destination_port: u16, protocol: Protocol,
            ) -> Self {
                Self {
                    source: source.octets(),
                    destination: destination.octets(),
                    source_port: U16::new(source_port),
                    destination_port: U16::new(destination_port),
                    protocol,
                    spare: [0; 3],
                }
            }

            /// The tuple of the other direction.
            #[inline]
            pub const fn reverse(&self) -> Self {
                Self {
                    source: self.destination,
                    destination: self.source,
                    source_port: self.destination_port,
                    destination_port: self.source_port,
                    ..*self
                }
            }

            /// Source address.
            #[inline]
            pub const fn source_addr(&self) -> $addr {
                <$addr>::from_octets(self.source)
            }

            /// Destination address.
            #[inline]
            pub const fn destination_addr(&self) -> $addr {
                <$addr>::from_octets(self.destination)
            }

            /// The tuple of a parsed frame. `None` if it is of another family, a later fragment, or an ICMP message
            /// that belongs to no flow of its own.
            #[inline]
            pub fn of(frame: &[u8], layers: &Layers) -> Option<Self> {
                if !matches!(layers.network, $network) {
                    return None;
                }
                Self::at(frame, usize::from(layers.l3), layers.protocol, &layers.transport)
            }

            /// The tuple of the packet that an ICMP error quotes, in the direction that packet went: the flow the error
            /// belongs to is found by it, the error itself goes the other way. `None` as for [`of`](Self::of).
            #[inline]
            pub fn of_inner(frame: &[u8], layers: &Layers) -> Option<Self> {
                let inner = layers.inner.as_ref()?;
                if !matches!(layers.network, $network) {
                    return None;
                }
                Self::at(frame, usize::from(inner.l3), inner.protocol, &inner.transport)
            }

            #[inline]
            fn at(frame: &[u8], l3: usize, protocol: Protocol, transport: &Transport) -> Option<Self> {
                let (source_port, destination_port) = flow_ports(protocol, transport)?;
                let ip = <$header>::at(frame, l3)?;
                Some(Self {
                    source: ip.source,
                    destination: ip.destination,
                    source_port: U16::new(source_port),
                    destination_port: U16::new(destination_port),
                    protocol,
                    spare: [0; 3],
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let source = SocketAddr::new(IpAddr::from(self.source_addr()), self.source_port.get());
                let destination = SocketAddr::new(IpAddr::from(self.destination_addr()), self.destination_port.get());
                write!(f, "{} {source} -> {destination}", self.protocol)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

/// What stands for the two ports of a flow; `None` where the packet names no flow.
#[inline]
fn flow_ports(protocol: Protocol, transport: &Transport) -> Option<(u16, u16)> {
    match *transport {
        Transport::Tcp { source, destination, .. }
        | Transport::Udp { source, destination }
        | Transport::Sctp { source, destination, .. } => Some((source, destination)),
        Transport::Icmp { kind, id, .. } if icmp::is_echo(protocol, kind) => Some((id, id)),
        Transport::Opaque => Some((0, 0)),
        Transport::Icmp { .. } | Transport::Fragment => None,
    }
}

tuple! {
    /// One direction of an IPv4 flow.
    FlowTuple4, 4, Ipv4Addr, 16, Ipv4Header, Network::Ipv4
}
tuple! {
    /// One direction of an IPv6 flow.
    FlowTuple6, 16, Ipv6Addr, 40, Ipv6Header, Network::Ipv6
}

/// One direction of a flow of either family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowTuple {
    /// IPv4.
    V4(FlowTuple4),
    /// IPv6.
    V6(FlowTuple6),
}

impl FlowTuple {
    /// A tuple of its parts; `None` if the addresses are of two families.
    #[inline]
    pub const fn new(
        source: IpAddr,
        destination: IpAddr,
        source_port: u16,
        destination_port: u16,
        protocol: Protocol,
    ) -> Option<Self> {
        match (source, destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                Some(Self::V4(FlowTuple4::new(from, to, source_port, destination_port, protocol)))
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                Some(Self::V6(FlowTuple6::new(from, to, source_port, destination_port, protocol)))
            }
            _ => None,
        }
    }

    /// The tuple of a parsed frame, as [`FlowTuple4::of`].
    #[inline]
    pub fn of(frame: &[u8], layers: &Layers) -> Option<Self> {
        match layers.network {
            Network::Ipv4 => FlowTuple4::of(frame, layers).map(Self::V4),
            _ => FlowTuple6::of(frame, layers).map(Self::V6),
        }
    }

    /// The tuple of the packet that an ICMP error quotes, as [`FlowTuple4::of_inner`].
    #[inline]
    pub fn of_inner(frame: &[u8], layers: &Layers) -> Option<Self> {
        match layers.network {
            Network::Ipv4 => FlowTuple4::of_inner(frame, layers).map(Self::V4),
            _ => FlowTuple6::of_inner(frame, layers).map(Self::V6),
        }
    }

    /// The tuple of the other direction.
    #[inline]
    pub const fn reverse(&self) -> Self {
        match self {
            Self::V4(tuple) => Self::V4(tuple.reverse()),
            Self::V6(tuple) => Self::V6(tuple.reverse()),
        }
    }

    /// Source address.
    #[inline]
    pub const fn source_addr(&self) -> IpAddr {
        match self {
            Self::V4(tuple) => IpAddr::V4(tuple.source_addr()),
            Self::V6(tuple) => IpAddr::V6(tuple.source_addr()),
        }
    }

    /// Destination address.
    #[inline]
    pub const fn destination_addr(&self) -> IpAddr {
        match self {
            Self::V4(tuple) => IpAddr::V4(tuple.destination_addr()),
            Self::V6(tuple) => IpAddr::V6(tuple.destination_addr()),
        }
    }

    /// Source port, as in the family's tuple.
    #[inline]
    pub fn source_port(&self) -> u16 {
        match self {
            Self::V4(tuple) => tuple.source_port.get(),
            Self::V6(tuple) => tuple.source_port.get(),
        }
    }

    /// Destination port, as in the family's tuple.
    #[inline]
    pub fn destination_port(&self) -> u16 {
        match self {
            Self::V4(tuple) => tuple.destination_port.get(),
            Self::V6(tuple) => tuple.destination_port.get(),
        }
    }

    /// Upper-layer protocol.
    #[inline]
    pub const fn protocol(&self) -> Protocol {
        match self {
            Self::V4(tuple) => tuple.protocol,
            Self::V6(tuple) => tuple.protocol,
        }
    }
}

impl fmt::Display for FlowTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(tuple) => fmt::Display::fmt(tuple, f),
            Self::V6(tuple) => fmt::Display::fmt(tuple, f),
        }
    }
}

impl fmt::Debug for FlowTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn echo(kind: u8, from: [u8; 4], to: [u8; 4]) -> [u8; 42] {
        let mut frame = [0u8; 42];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..26].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0]);
        frame[26..30].copy_from_slice(&from);
        frame[30..34].copy_from_slice(&to);
        frame[34..].copy_from_slice(&[kind, 0, 0, 0, 0x12, 0x34, 0, 1]);
        frame
    }

    #[test]
    fn the_bytes_lie_in_the_order_of_the_picture() {
        let tuple = FlowTuple4::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 40000, 80, Protocol::TCP);
        assert_eq!(tuple.as_bytes(), [10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 80, 6, 0, 0, 0]);
        assert_eq!(tuple.to_string(), "TCP 10.0.0.1:40000 -> 10.0.0.2:80");
    }

    #[test]
    fn an_echo_reply_is_the_reverse_of_its_request() {
        let (a, b) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let tuple = |frame: &[u8]| FlowTuple::of(frame, &Layers::parse(frame, frame.len()).unwrap()).unwrap();
        let (request, reply) = (tuple(&echo(icmp::v4::ECHO_REQUEST, a, b)), tuple(&echo(icmp::v4::ECHO_REPLY, b, a)));
        assert_eq!(request.reverse(), reply);
        assert_eq!((request.source_port(), request.destination_port()), (0x1234, 0x1234));
    }

    #[test]
    fn other_icmp_messages_name_no_flow() {
        let frame = echo(13, [10, 0, 0, 1], [10, 0, 0, 2]);
        assert_eq!(FlowTuple::of(&frame, &Layers::parse(&frame, frame.len()).unwrap()), None);
    }

    #[test]
    fn addresses_of_two_families_are_no_tuple() {
        let (v4, v6) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from(Ipv6Addr::LOCALHOST));
        assert_eq!(FlowTuple::new(v4, v6, 1, 2, Protocol::UDP), None);
        assert_eq!(FlowTuple::new(v6, v6, 1, 2, Protocol::UDP).unwrap().to_string(), "UDP [::1]:1 -> [::1]:2");
    }

    proptest! {
        #[test]
        fn reversing_twice_is_nothing(from in any::<[u8; 16]>(), to in any::<[u8; 16]>(), ports in any::<(u16, u16)>()) {
            let tuple = FlowTuple6::new(from.into(), to.into(), ports.0, ports.1, Protocol::SCTP);
            prop_assert_eq!(tuple.reverse().reverse(), tuple);
            prop_assert_eq!(tuple.reverse().source_addr(), tuple.destination_addr());
            prop_assert_eq!(tuple.reverse().source_port, tuple.destination_port);
        }
    }
}
