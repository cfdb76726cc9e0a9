//! Stage one of an ordinary packet, from the wire to its lookup: TCP or UDP without options, fragments or surprises, from a
//! pod or the uplink, in the overlay or not.
//!
//! It answers exactly what `classify` and `key_stage` would (a property test holds it to that) or nothing at all, and then
//! those two look. Why it exists: everything stays in registers from the header to the hash. Fields stored one by one and
//! read back as a whole wait for the stores, which measured 10 ns a packet.

use super::classify::resolve_checksum;
use crate::batch::{Columns, Facts, Kind};
use crate::flow::{Entry4, Entry6, FlowTable, Key4, Key6, Side};
use crate::memo::{Memo, Memo4};
use sluice_port::prefetch::prefetch;
use sluice_port::{Checksum, Frame};
use sluice_tables::node::GATEWAY_MAC;
use sluice_tables::pods::mac_word;
use sluice_tables::{Address, Tables};
use sluice_wire::packet::Packet;

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet, IPv4, UDP, VXLAN, Ethernet.
const OVERLAY: usize = 14 + 20 + 8 + 8 + 14;
/// The overlay's headers and as much of the packet inside as an ordinary IPv4 packet is asked for.
const OVERLAY_AND_IPV4: usize = OVERLAY + 40;

/// What stage one has to know of a generation of tables, put together when it is adopted.
pub(crate) struct Known {
    uplink: u16,
    host: u16,
    /// This worker.
    worker: u16,
    overlay: Pattern,
    /// Tunnel hop plus 1 by a peer's IPv4 address.
    peers: Memo4,
    /// Port and worker of local pods by address.
    pods4: Memo4,
    pods6: Memo<(u16, u16)>,
}

/// What an ordinary overlay packet's headers look like, compared word by word: 6 loads for a dozen fields. The Ethernet
/// addresses are not asked, here as in `classify`.
struct Pattern {
    value: [u64; 8],
    mask: [u64; 8],
    /// All ones if this node has no IPv4 underlay, so that nothing matches.
    never: u64,
}

impl Pattern {
    fn new(tables: &Tables) -> Self {
        let (mut value, mut mask) = ([0u8; OVERLAY], [0u8; OVERLAY]);
        let mut field = |at: usize, bytes: &[u8], bits: &[u8]| {
            value[at..at + bytes.len()].copy_from_slice(bytes);
            mask[at..at + bits.len()].copy_from_slice(bits);
        };
        field(12, &IPV4, &[0xff; 2]);
        // Version and header length; no congestion mark.
        field(14, &[0x45, 0], &[0xff, 3]);
        // Neither a fragment nor the first of several.
        field(20, &[0, 0], &[0x3f, 0xff]);
        field(23, &[17], &[0xff]);
        let own = tables.node.internal[0];
        field(30, &own.map_or([0; 4], |a| a.last4()), &[0xff; 4]);
        field(36, &tables.settings.vxlan_port.to_be_bytes(), &[0xff; 2]);
        // No UDP checksum.
        field(40, &[0, 0], &[0xff; 2]);
        // The flag that says a network identifier is there (RFC 7348 §5).
        field(42, &[0x08], &[0x08]);
        field(46, &tables.settings.vni.to_be_bytes()[1..], &[0xff; 3]);
        let never = if own.is_some() && tables.settings.vni >> 24 == 0 { 0 } else { u64::MAX };
        Pattern { value: words(&value), mask: words(&mask), never }
    }

    /// Zero if the headers are as described.
    #[inline(always)]
    fn differs(&self, head: &[u8; OVERLAY]) -> u64 {
        let words = words(head);
        let mut differs = self.never;
        // Bytes 8 to 55: the first and the last word hold nothing but Ethernet addresses and the type behind them.
        for ((word, value), mask) in words.iter().zip(&self.value).zip(&self.mask).skip(1).take(6) {
            differs |= (word ^ value) & mask;
        }
        differs
    }
}

#[inline(always)]
fn words(bytes: &[u8; OVERLAY]) -> [u64; 8] {
    let mut words = [0; 8];
    let (chunks, _) = bytes.as_chunks::<8>();
    for (word, chunk) in words.iter_mut().zip(chunks) {
        *word = u64::from_ne_bytes(*chunk);
    }
    words
}

impl Known {
    /// Of these tables.
    pub fn new(tables: &Tables, worker: u16) -> Self {
        Known {
            uplink: tables.node.uplink,
            host: tables.node.host,
            worker,
            overlay: Pattern::new(tables),
            peers: Memo4::default(),
            pods4: Memo4::default(),
            pods6: Memo::default(),
        }
    }

    /// Of other tables: what is remembered is forgotten, nothing is allocated.
    pub fn renew(&mut self, tables: &Tables) {
        (self.uplink, self.host) = (tables.node.uplink, tables.node.host);
        self.overlay = Pattern::new(tables);
        self.peers.forget();
        self.pods4.forget();
        self.pods6.forget();
    }

    #[inline(always)]
    fn peer(&mut self, address: [u8; 4], tables: &Tables) -> Option<u16> {
        let find = || tables.routes.peers.get(&Address::v4(address)).map(|p| u32::from(p.hop.0) + 1);
        self.peers.get(u32::from_ne_bytes(address), find).map(|hop| hop as u16)
    }

    /// Port and worker of the local pod with an address.
    #[inline(always)]
    fn pod4(&mut self, address: [u8; 4], tables: &Tables) -> Option<(u16, u16)> {
        let find = || {
            let pod = tables.pods.by_address(Address::v4(address))?;
            Some(u32::from(pod.port) << 16 | u32::from(pod.worker))
        };
        self.pods4.get(u32::from_ne_bytes(address), find).map(|pod| ((pod >> 16) as u16, pod as u16))
    }

    #[inline(always)]
    fn pod6(&mut self, address: [u8; 16], tables: &Tables) -> Option<(u16, u16)> {
        let address = Address::v6(address);
        self.pods6.get(address, || tables.pods.by_address(address).map(|pod| (pod.port, pod.worker)))
    }
}

/// Where stage one writes and whom it asks for buckets.
pub(crate) struct Entrance<'a> {
    pub known: &'a mut Known,
    pub tables: &'a Tables,
    pub flows4: &'a FlowTable<Entry4>,
    pub flows6: &'a FlowTable<Entry6>,
    pub columns: &'a mut Columns,
}

impl Entrance<'_> {
    /// Classifies an ordinary packet, writes its columns and asks for its flow's bucket. `false`: nothing was done, the
    /// general way must look.
    #[inline(always)]
    pub fn plain(&mut self, at: usize, frame: &mut Frame) -> bool {
        if frame.segments() != 1 {
            return false;
        }
        if frame.port == self.known.uplink {
            return self.overlay(at, frame);
        }
        let head = frame.head();
        let Some((ethernet, l3)) = head.split_first_chunk::<ETHERNET>() else { return false };
        if frame.port == self.known.host
            || !is_gateway(ethernet)
            || !self.tables.pods.is_sender(frame.port, sender(ethernet))
        {
            return false;
        }
        let kind = [ethernet[12], ethernet[13]];
        // Most of what a pod sends leaves through the overlay, whose header goes into the line in front.
        prefetch(frame.data_ptr().wrapping_sub(64));
        let zone = frame.port;
        if kind == IPV4 {
            let (Some(_), Some(h)) = (Packet::plain4(l3, l3.len()), l3.first_chunk::<24>()) else { return false };
            let key = Key4::plain(h, zone, Side::From);
            self.enter4(at, frame, key, Facts { l3: ETHERNET as u8, kind: Kind::V4, zone, ..Facts::default() });
        } else if kind == IPV6 {
            let (Some(_), Some(h)) = (Packet::plain6(l3, l3.len()), l3.first_chunk::<44>()) else { return false };
            let key = Key6::plain(h, zone, Side::From);
            self.enter6(at, frame, key, Facts { l3: ETHERNET as u8, kind: Kind::V6, zone, ..Facts::default() });
        } else {
            return false;
        }
        true
    }

    /// IPv4 underlay without options or fragments, checksum right, UDP checksum zero, no congestion mark, our network, and
    /// inside an ordinary packet for a local pod.
    #[inline(always)]
    fn overlay(&mut self, at: usize, frame: &mut Frame) -> bool {
        let head = frame.head();
        let Some(h) = head.first_chunk::<OVERLAY_AND_IPV4>() else { return false };
        let Some(outer) = h.first_chunk::<OVERLAY>() else { return false };
        let be16 = |at: usize| usize::from(u16::from_be_bytes([outer[at], outer[at + 1]]));
        let total = be16(16);
        // The datagram fills its packet: both lengths are looked at as one.
        let ordinary = (self.known.overlay.differs(outer) == 0)
            & outer_sum_is_right(outer)
            & (total + ETHERNET <= head.len())
            & (be16(38) + 20 == total)
            & !matches!(frame.checksum, Checksum::Partial { .. });
        if !ordinary {
            return false;
        }
        // What the outer datagram says it carries bounds the inner packet; anything behind is Ethernet padding.
        let Some(l3) = head.get(OVERLAY..total + ETHERNET) else { return false };
        let Some(peer) = self.known.peer([outer[26], outer[27], outer[28], outer[29]], self.tables) else {
            return false;
        };
        let kind = [outer[62], outer[63]];
        if kind == IPV4 {
            let (Some(_), Some(h)) = (Packet::plain4(l3, l3.len()), l3.first_chunk::<24>()) else { return false };
            let Some((zone, worker)) = self.known.pod4([h[16], h[17], h[18], h[19]], self.tables) else { return false };
            let key = Key4::plain(h, zone, Side::To);
            let kind = if worker == self.known.worker { Kind::V4 } else { Kind::Foreign };
            self.enter4(at, frame, key, Facts { l3: OVERLAY as u8, kind, zone, peer, worker });
        } else if kind == IPV6 {
            let (Some(_), Some(h)) = (Packet::plain6(l3, l3.len()), l3.first_chunk::<44>()) else { return false };
            let Some(destination) = h[24..].first_chunk().copied() else { return false };
            let Some((zone, worker)) = self.known.pod6(destination, self.tables) else { return false };
            let key = Key6::plain(h, zone, Side::To);
            let kind = if worker == self.known.worker { Kind::V6 } else { Kind::Foreign };
            self.enter6(at, frame, key, Facts { l3: OVERLAY as u8, kind, zone, peer, worker });
        } else {
            return false;
        }
        true
    }

    #[inline(always)]
    fn enter4(&mut self, at: usize, frame: &mut Frame, key: Key4, facts: Facts) {
        let hash = self.flows4.hash(&key);
        self.flows4.prefetch_bucket(hash);
        self.columns.hashes[at] = hash;
        self.columns.keys4[at] = key;
        self.columns.facts[at] = facts;
        if frame.checksum == Checksum::Unknown {
            resolve(frame, facts.l3.into());
        }
    }

    /// The same for IPv6.
    #[inline(always)]
    fn enter6(&mut self, at: usize, frame: &mut Frame, key: Key6, facts: Facts) {
        let hash = self.flows6.hash(&key);
        self.flows6.prefetch_bucket(hash);
        self.columns.hashes[at] = hash;
        self.columns.keys6[at] = key;
        self.columns.facts[at] = facts;
        if frame.checksum == Checksum::Unknown {
            resolve(frame, facts.l3.into());
        }
    }
}

/// Parses again, so that ordinary frames do not carry what only this needs.
#[cold]
#[inline(never)]
fn resolve(frame: &mut Frame, l3: u16) {
    let bytes = frame.head().get(usize::from(l3)..).unwrap_or(&[]);
    if let Some(packet) = Packet::plain4(bytes, bytes.len()).or_else(|| Packet::plain6(bytes, bytes.len())) {
        resolve_checksum(frame, l3, &packet);
    }
}

/// One's-complement sum of the outer IPv4 header, checksum included, is all ones.
#[inline(always)]
fn outer_sum_is_right(h: &[u8; OVERLAY]) -> bool {
    let word = |at: usize| u64::from(u32::from_ne_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]));
    sluice_wire::packet::is_all_ones(word(14) + word(18) + word(22) + word(26) + word(30))
}

/// Whether an Ethernet header is addressed to our end of a pod's port: six bytes compared as one word.
#[inline(always)]
fn is_gateway(ethernet: &[u8; ETHERNET]) -> bool {
    let [a, b, c, d, e, f] = GATEWAY_MAC;
    let to = ethernet;
    mac_word([to[0], to[1], to[2], to[3], to[4], to[5], to[6], to[7]]) == mac_word([a, b, c, d, e, f, 0, 0])
}

/// Its source MAC, to be compared with a pod's.
#[inline(always)]
pub(crate) fn sender(ethernet: &[u8; ETHERNET]) -> u64 {
    let b = ethernet;
    mac_word([b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13]])
}

#[cfg(test)]
#[allow(dead_code, reason = "the tables of the integration tests, of which this test uses a part")]
#[path = "../../tests/node/tables.rs"]
mod node;

#[cfg(test)]
mod tests {
    use super::node::{HOST, POD_A, POD_C, UPLINK, Wish, tables};
    use super::*;
    use crate::handoff::Handoff;
    use crate::item::{Fate, Item};
    use crate::pipeline::{Pipeline, Shared, WorkerOptions};
    use proptest::prelude::*;
    use proptest::sample::select;
    use sluice_port::{FramePool, PoolOptions};
    use sluice_testkit::{Packet as Build, strategy};
    use sluice_wire::Mac;
    use std::sync::Arc;

    fn pipeline() -> Pipeline {
        let options = WorkerOptions { id: 0, workers: 2, flows: 64, seed: 7, huge_pages: false };
        let pool = FramePool::new(PoolOptions { frames: 64, huge_pages: false }).unwrap();
        let tables = Arc::new(tables(&Wish { workers: 2, ..Wish::default() }));
        let handoff = Handoff::mesh(2).swap_remove(0);
        Pipeline::new(options, tables, Shared::new(64), pool.cache(), handoff).unwrap()
    }

    /// Stage one of a frame at position 0.
    fn enter(p: &mut Pipeline, frame: &mut Frame) -> bool {
        let Pipeline { known, tables, flows4, flows6, columns, .. } = p;
        Entrance { known, tables, flows4, flows6, columns }.plain(0, frame)
    }

    /// A frame that a pod sends to the gateway, from random addresses.
    fn inner() -> impl Strategy<Value = Vec<u8>> {
        let destinations =
            select(vec!["10.244.1.5", "10.244.1.6", "10.244.2.1", "fd00:1::5", "fd00:1::7", "fd00:9::1"]);
        let known = (destinations, any::<(bool, u16, u8)>(), 0usize..60).prop_map(|(to, (tcp, port, tos), size)| {
            let from = if to.contains(':') { "fd00:2::1" } else { "10.244.2.1" };
            let packet = Build::eth().ip(from, to).tos(tos);
            let packet = if tcp { packet.tcp(port, 80) } else { packet.udp(port, 53) };
            packet.payload(&vec![1; size]).build()
        });
        let to_gateway = |mut frame: Vec<u8>| {
            if let Some(mac) = frame.first_chunk_mut::<6>() {
                *mac = GATEWAY_MAC;
            }
            frame
        };
        prop_oneof![
            4 => known,
            2 => strategy::packet().prop_map(|p| p.build()),
            1 => strategy::mangled(),
        ]
        .prop_map(to_gateway)
    }

    fn arrival() -> impl Strategy<Value = (u16, Vec<u8>)> {
        let macs = (Mac([2, 0, 192, 0, 2, 12]), Mac([2, 0, 192, 0, 2, 10]));
        let peers = select(vec!["192.0.2.12", "192.0.2.13"]);
        let outer = (inner(), peers, select(vec![4096u32, 7]), any::<(bool, u8)>(), 0usize..3).prop_map(
            move |(inner, peer, vni, (checksum, tos), padding)| {
                let outer = Build::eth().macs(macs.0, macs.1).ip(peer, "192.0.2.10").tos(tos & 0xfc | tos >> 6 & 1);
                let outer = outer.vxlan(50_000, vni, &inner).padding(padding);
                (UPLINK, if checksum { outer.build() } else { outer.no_checksum().build() })
            },
        );
        prop_oneof![(POD_A..=POD_C, inner()), outer, (select(vec![UPLINK, HOST]), inner())]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn the_ordinary_way_comes_to_the_same_end_as_the_general_one(
            (port, mut bytes) in arrival(), unknown in any::<bool>(), honest in prop::bool::weighted(0.8),
        ) {
            thread_local! {
                static PIPELINE: std::cell::RefCell<Pipeline> = std::cell::RefCell::new(pipeline());
            }
            PIPELINE.with_borrow_mut(|p| {
                if let Some(pod) = p.tables.pods.by_port(port).filter(|_| honest) && bytes.len() >= ETHERNET {
                    bytes[6..12].copy_from_slice(&pod.mac);
                }
                let mut make = || {
                    let mut frame = p.cache_mut().alloc_copy(&bytes).unwrap();
                    frame.checksum = if unknown { Checksum::Unknown } else { Checksum::None };
                    frame.port = port;
                    frame
                };
                let (mut frame, mut general) = (make(), Item::received(make()));
                if enter(p, &mut frame) {
                    let ordinary = p.columns.item(0, frame);
                    p.classify(&mut general);
                    let key = (p.columns.keys4[0], p.columns.keys6[0]);
                    if general.meta.fate == Fate::Pending {
                        p.key_stage(0, &mut general);
                        prop_assert_eq!(key, (p.columns.keys4[0], p.columns.keys6[0]));
                        prop_assert_eq!(ordinary.meta.hash, general.meta.hash);
                    }
                    // A packet for another worker has its hash made there.
                    general.meta.hash = ordinary.meta.hash;
                    prop_assert_eq!(format!("{:?}", ordinary.meta), format!("{:?}", general.meta));
                    prop_assert_eq!(ordinary.frame.checksum, general.frame.checksum);
                    frame = ordinary.frame;
                }
                prop_assert_eq!(frame.to_vec(), bytes.clone());
                p.cache_mut().free(frame);
                p.cache_mut().free(general.frame);
                Ok(())
            })?;
        }
    }

    #[test]
    fn what_a_pod_and_a_peer_ordinarily_send_goes_the_ordinary_way() {
        let mut p = pipeline();
        let mac = Mac(p.tables.pods.by_port(POD_A).unwrap().mac);
        let from = |mac| Build::eth().macs(mac, Mac(GATEWAY_MAC)).ip("10.244.2.1", "10.244.1.5").tcp(1, 2).build();
        let outer = Build::eth().ip("192.0.2.12", "192.0.2.10").vxlan(50_000, 4096, &from(mac)).no_checksum().build();
        for (port, bytes, ordinary) in
            [(POD_A, from(mac), true), (UPLINK, outer, true), (POD_A, from(Mac([2; 6])), false)]
        {
            let mut frame = p.cache_mut().alloc_copy(&bytes).unwrap();
            frame.port = port;
            assert_eq!(enter(&mut p, &mut frame), ordinary, "port {port}");
            p.cache_mut().free(frame);
        }
    }
}
