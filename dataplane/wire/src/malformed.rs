//! Why a packet is refused before anyone looks at what it wants.
//!
//! Source: RFC 1122 §3.2.1 (martians), RFC 791, RFC 8200 and the transports' own. Invariant: closed and `Copy`; a new
//! cause is a new variant. Cost: one byte.

use core::fmt;

macro_rules! causes {
    ($($(#[doc = $doc:literal])* $name:ident => $text:literal,)*) => {
        /// The precise cause of a refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Malformed {
            $($(#[doc = $doc])* $name,)*
        }

        impl Malformed {
            /// Every cause, in the order of declaration.
            pub const ALL: &'static [Malformed] = &[$(Malformed::$name),*];

            /// The cause as a sentence part for operators.
            pub const fn as_str(self) -> &'static str {
                match self { $(Malformed::$name => $text,)* }
            }
        }
    };
}

causes! {
    /// Fewer than 14 bytes.
    EthernetTruncated => "frame shorter than an Ethernet header",
    /// The frame ends inside the IP header or its options, or the header is not in the first chunk.
    NetworkTruncated => "frame ends inside the IP header",
    /// The version field is not that of the EtherType.
    Version => "IP version does not match the EtherType",
    /// IPv4 header length below 20.
    HeaderLength => "IPv4 header length below 20",
    /// IPv4 total length below the header length, or more than the frame holds.
    TotalLength => "IPv4 total length does not fit the frame",
    /// IPv6 payload length more than the frame holds.
    PayloadLength => "IPv6 payload length does not fit the frame",
    /// An IPv4 option with an impossible length.
    Options => "IPv4 option with an impossible length",
    /// A source route: IPv4 option (RFC 7126 §4.3) or IPv6 routing type 0 (RFC 5095).
    SourceRoute => "source-routed packet",
    /// The packet ends inside an IPv6 extension header.
    ExtensionTruncated => "packet ends inside an IPv6 extension header",
    /// Hop-by-hop options not first, or two fragment headers.
    ExtensionOrder => "IPv6 extension header in an impossible place",
    /// More extension headers than we walk.
    TooManyExtensions => "more than 8 IPv6 extension headers",
    /// A fragment without payload, or not the last one and not a multiple of 8 bytes.
    FragmentLength => "fragment of an impossible length",
    /// A fragment that ends behind byte 65535 of the whole.
    FragmentBeyondEnd => "fragment ends behind the largest packet",
    /// The packet, or its first fragment, ends inside the transport header (RFC 7112), or the header is not in the
    /// first chunk.
    TransportTruncated => "packet ends inside the transport header",
    /// TCP data offset below 20 or behind the packet's end.
    TcpDataOffset => "TCP data offset does not fit the segment",
    /// UDP length below 8 or more than the packet holds.
    UdpLength => "UDP length does not fit the packet",
    /// An ICMP error that quotes too little to tell what it is about.
    InnerTruncated => "ICMP error quotes too little of its packet",
    /// An ICMP error that quotes something that is no packet of its family.
    InnerHeader => "ICMP error quotes no IP packet of its family",
    /// Source address unspecified: 0.0.0.0/8, or `::` in anything but ICMPv6 to a group.
    SourceUnspecified => "unspecified source address",
    /// Source address is a group.
    SourceMulticast => "multicast source address",
    /// Source address 255.255.255.255.
    SourceBroadcast => "broadcast source address",
    /// Source address 127.0.0.0/8 or `::1`.
    SourceLoopback => "loopback source address",
    /// Source address `::ffff:0:0/96`, which is for sockets, not for wires.
    SourceMapped => "IPv4-mapped source address",
    /// Destination address 0.0.0.0/8 or `::`.
    DestinationUnspecified => "unspecified destination address",
    /// Destination address 127.0.0.0/8 or `::1`.
    DestinationLoopback => "loopback destination address",
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl core::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_causes_read_the_same() {
        let mut texts: Vec<_> = Malformed::ALL.iter().map(|cause| cause.as_str()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Malformed::ALL.len());
        assert_eq!(size_of::<Result<(), Malformed>>(), 1);
    }
}
