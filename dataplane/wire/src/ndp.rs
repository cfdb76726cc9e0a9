//! Neighbor Discovery for IPv6: solicitations and advertisements of neighbors and routers.
//!
//! Source: RFC 4861 §4 (layouts), §6.1 and §7.1 (what a receiver must refuse), RFC 6980 (no fragments). Owner thread: any.
//! Invariant: a message that `parse` hands out passed every check the RFC asks of its receiver; hop limit 255 shows that
//! it was sent on this link. Cost: the checksum is verified, so every byte is read once; these are rare.

use crate::ethernet::Mac;
use crate::header::Header;
use crate::icmp::v6;
use crate::layers::{Layers, Network, Transport};
use core::net::Ipv6Addr;
use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Hop limit of every message (RFC 4861 §7.1.1): nobody off the link can reach it.
pub const HOP_LIMIT: u8 = 255;
/// All nodes of the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The group that solicitations for `target` go to (RFC 4291 §2.7.1).
#[inline]
pub const fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::from_octets([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// Why a message must be ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Invalid {
    /// Not a message of the asked kind.
    Kind,
    /// Hop limit below 255: it came from afar.
    HopLimit,
    /// Code other than 0.
    Code,
    /// Shorter than its kind, or not in the first chunk.
    Truncated,
    /// It came in fragments (RFC 6980).
    Fragment,
    /// Wrong checksum.
    Checksum,
    /// An option of length zero or reaching behind the end.
    Option,
    /// A target that is a group.
    Target,
    /// A source or destination that the kind forbids.
    Address,
}

/// Header and fixed part shared by both neighbor messages.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct NeighborMessage {
    kind: u8,
    code: u8,
    checksum: U16,
    flags: U32,
    target: [u8; 16],
}

impl Header for NeighborMessage {}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AdvertisementOfRouter {
    kind: u8,
    code: u8,
    checksum: U16,
    hop_limit: u8,
    flags: u8,
    lifetime: U16,
    reachable: U32,
    retransmit: U32,
}

impl Header for AdvertisementOfRouter {}

/// Link-layer address and MTU options.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LinkOption {
    kind: u8,
    units: u8,
    mac: Mac,
}

impl Header for LinkOption {}

const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
const MTU: u8 = 5;

/// What the options said; kinds we do not know are skipped, as RFC 4861 §9 asks.
#[derive(Default)]
struct Options {
    source_link: Option<Mac>,
    target_link: Option<Mac>,
    mtu: Option<u32>,
}

impl Options {
    fn parse(mut bytes: &[u8]) -> Result<Self, Invalid> {
        let mut found = Self::default();
        while let [kind, units, ..] = *bytes {
            let len = usize::from(units) * 8;
            let (option, rest) = bytes.split_at_checked(len).ok_or(Invalid::Option)?;
            let first = option.first_chunk::<8>().ok_or(Invalid::Option)?;
            let [_, _, a, b, c, d, e, f] = *first;
            match kind {
                SOURCE_LINK => found.source_link = Some(Mac([a, b, c, d, e, f])),
                TARGET_LINK => found.target_link = Some(Mac([a, b, c, d, e, f])),
                MTU => found.mtu = Some(u32::from_be_bytes([c, d, e, f])),
                _ => {}
            }
            bytes = rest;
        }
        if bytes.is_empty() { Ok(found) } else { Err(Invalid::Option) }
    }
}

/// The message's bytes, once all is checked that all kinds share.
fn message<'a>(frame: &'a [u8], layers: &Layers, kind: u8) -> Result<&'a [u8], Invalid> {
    let Transport::Icmp { kind: found, code, .. } = layers.transport else { return Err(Invalid::Kind) };
    if layers.network != Network::Ipv6 || found != kind {
        return Err(Invalid::Kind);
    }
    if layers.ttl != HOP_LIMIT {
        return Err(Invalid::HopLimit);
    }
    if code != 0 {
        return Err(Invalid::Code);
    }
    if layers.fragment.is_some() {
        return Err(Invalid::Fragment);
    }
    let bytes = frame.get(usize::from(layers.l4)..layers.end()).ok_or(Invalid::Truncated)?;
    if layers.transport_checksum_ok(frame) != Some(true) {
        return Err(Invalid::Checksum);
    }
    Ok(bytes)
}

fn split<T: Header>(bytes: &[u8]) -> Result<(&T, Options), Invalid> {
    let fixed = T::at(bytes, 0).ok_or(Invalid::Truncated)?;
    let options = Options::parse(bytes.get(T::LEN..).unwrap_or(&[]))?;
    Ok((fixed, options))
}

/// "Who has `target`?"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighborSolicitation {
    /// Who asks; unspecified while it checks that nobody else has the target (RFC 4862 §5.4).
    pub source: Ipv6Addr,
    /// The address asked for.
    pub target: Ipv6Addr,
    /// Hardware address of who asks.
    pub source_link: Option<Mac>,
}

impl NeighborSolicitation {
    /// Bytes that [`put`](Self::put) writes at most.
    pub const MAX_LEN: usize = NeighborMessage::LEN + LinkOption::LEN;

    /// The solicitation in a parsed frame.
    pub fn parse(frame: &[u8], layers: &Layers) -> Result<Self, Invalid> {
        let bytes = message(frame, layers, v6::NEIGHBOR_SOLICITATION)?;
        let (fixed, options) = split::<NeighborMessage>(bytes)?;
        let ip = layers.ipv6(frame).ok_or(Invalid::Kind)?;
        let (source, target) = (ip.source_addr(), Ipv6Addr::from_octets(fixed.target));
        if target.is_multicast() {
            return Err(Invalid::Target);
        }
        let to_group = ip.destination_addr() == solicited_node(target);
        if source.is_unspecified() && (!to_group || options.source_link.is_some()) {
            return Err(Invalid::Address);
        }
        Ok(Self { source, target, source_link: options.source_link })
    }

    /// Writes the ICMPv6 message, checksum zero, at `offset` of `out`; returns the offset behind it.
    pub fn put(&self, out: &mut [u8], offset: usize) -> Option<usize> {
        let target = self.target.octets();
        let fixed =
            NeighborMessage { kind: v6::NEIGHBOR_SOLICITATION, code: 0, checksum: U16::ZERO, flags: U32::ZERO, target };
        let at = fixed.put(out, offset)?;
        put_link(out, at, SOURCE_LINK, self.source_link)
    }
}

/// "I have `target`."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighborAdvertisement {
    /// The address advertised.
    pub target: Ipv6Addr,
    /// Whether the sender is a router.
    pub router: bool,
    /// Whether it answers a solicitation.
    pub solicited: bool,
    /// Whether it replaces what the receiver has cached.
    pub overrides: bool,
    /// Hardware address of the target.
    pub target_link: Option<Mac>,
}

impl NeighborAdvertisement {
    /// Bytes that [`put`](Self::put) writes at most.
    pub const MAX_LEN: usize = NeighborMessage::LEN + LinkOption::LEN;
    const ROUTER: u32 = 1 << 31;
    const SOLICITED: u32 = 1 << 30;
    const OVERRIDE: u32 = 1 << 29;

    /// The advertisement in a parsed frame.
    pub fn parse(frame: &[u8], layers: &Layers) -> Result<Self, Invalid> {
        let bytes = message(frame, layers, v6::NEIGHBOR_ADVERTISEMENT)?;
        let (fixed, options) = split::<NeighborMessage>(bytes)?;
        let target = Ipv6Addr::from_octets(fixed.target);
        if target.is_multicast() {
            return Err(Invalid::Target);
        }
        let flags = fixed.flags.get();
        let solicited = flags & Self::SOLICITED != 0;
        if solicited && layers.ipv6(frame).is_none_or(|ip| ip.destination_addr().is_multicast()) {
            return Err(Invalid::Address);
        }
        Ok(Self {
            target,
            router: flags & Self::ROUTER != 0,
            solicited,
            overrides: flags & Self::OVERRIDE != 0,
            target_link: options.target_link,
        })
    }

    /// Writes the ICMPv6 message, checksum zero, at `offset` of `out`; returns the offset behind it.
    pub fn put(&self, out: &mut [u8], offset: usize) -> Option<usize> {
        let flag = |set, bit| if set { bit } else { 0 };
        let flags = flag(self.router, Self::ROUTER)
            | flag(self.solicited, Self::SOLICITED)
            | flag(self.overrides, Self::OVERRIDE);
        let fixed = NeighborMessage {
            kind: v6::NEIGHBOR_ADVERTISEMENT,
            code: 0,
            checksum: U16::ZERO,
            flags: U32::new(flags),
            target: self.target.octets(),
        };
        let at = fixed.put(out, offset)?;
        put_link(out, at, TARGET_LINK, self.target_link)
    }
}

/// "Which routers are there?"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterSolicitation {
    /// Who asks; unspecified while it has no address.
    pub source: Ipv6Addr,
    /// Hardware address of who asks.
    pub source_link: Option<Mac>,
}

impl RouterSolicitation {
    /// The solicitation in a parsed frame.
    pub fn parse(frame: &[u8], layers: &Layers) -> Result<Self, Invalid> {
        let bytes = message(frame, layers, v6::ROUTER_SOLICITATION)?;
        let options = Options::parse(bytes.get(8..).ok_or(Invalid::Truncated)?)?;
        let source = layers.ipv6(frame).ok_or(Invalid::Kind)?.source_addr();
        if source.is_unspecified() && options.source_link.is_some() {
            return Err(Invalid::Address);
        }
        Ok(Self { source, source_link: options.source_link })
    }
}

/// "I am a router", without prefixes: our pods get their addresses from CNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterAdvertisement {
    /// Hop limit hosts should use; 0 says nothing.
    pub hop_limit: u8,
    /// Seconds the sender is a default router; 0: it is none.
    pub lifetime_s: u16,
    /// Hardware address of the sender.
    pub source_link: Option<Mac>,
    /// MTU of the link, bytes.
    pub mtu: Option<u32>,
}

impl RouterAdvertisement {
    /// Bytes that [`put`](Self::put) writes at most.
    pub const MAX_LEN: usize = AdvertisementOfRouter::LEN + 2 * LinkOption::LEN;

    /// The advertisement in a parsed frame. Prefixes and other options are skipped.
    pub fn parse(frame: &[u8], layers: &Layers) -> Result<Self, Invalid> {
        let bytes = message(frame, layers, v6::ROUTER_ADVERTISEMENT)?;
        let (fixed, options) = split::<AdvertisementOfRouter>(bytes)?;
        if !layers.ipv6(frame).is_some_and(|ip| ip.source_addr().is_unicast_link_local()) {
            return Err(Invalid::Address);
        }
        Ok(Self {
            hop_limit: fixed.hop_limit,
            lifetime_s: fixed.lifetime.get(),
            source_link: options.source_link,
            mtu: options.mtu,
        })
    }

    /// Writes the ICMPv6 message, checksum zero, at `offset` of `out`; returns the offset behind it.
    pub fn put(&self, out: &mut [u8], offset: usize) -> Option<usize> {
        let fixed = AdvertisementOfRouter {
            kind: v6::ROUTER_ADVERTISEMENT,
            code: 0,
            checksum: U16::ZERO,
            hop_limit: self.hop_limit,
            flags: 0,
            lifetime: U16::new(self.lifetime_s),
            reachable: U32::ZERO,
            retransmit: U32::ZERO,
        };
        let at = fixed.put(out, offset)?;
        let end = put_link(out, at, SOURCE_LINK, self.source_link)?;
        let Some(mtu) = self.mtu else { return Some(end) };
        let [a, b, c, d] = mtu.to_be_bytes();
        LinkOption { kind: MTU, units: 1, mac: Mac([0, 0, a, b, c, d]) }.put(out, end)
    }
}

fn put_link(out: &mut [u8], offset: usize, kind: u8, mac: Option<Mac>) -> Option<usize> {
    match mac {
        Some(mac) => LinkOption { kind, units: 1, mac }.put(out, offset),
        None => Some(offset),
    }
}
