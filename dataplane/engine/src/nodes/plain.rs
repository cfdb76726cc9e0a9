//! The ordinary packet's way from the wire to its lookup: TCP or UDP without options, fragments or surprises, from a pod or
//! the uplink, in the overlay or not.
//!
//! It answers exactly what `classify` and `key_stage` would (a property test holds it to that) or nothing at all, and then
//! those two look. Why it exists: everything stays in registers from the header to the hash. Fields stored one by one and
//! read back as a whole wait for the stores, which measured 10 ns a packet.

use super::classify::resolve_checksum;
use crate::flow::{Key4, Key6};
use crate::item::{Fate, Item, Role};
use crate::pipeline::{Pipeline, side_of};
use sluice_port::Checksum;
use sluice_tables::Address;
use sluice_tables::node::GATEWAY_MAC;
use sluice_wire::packet::Packet;

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet, IPv4, UDP, VXLAN, Ethernet.
const OVERLAY: usize = 14 + 20 + 8 + 8 + 14;

/// What tells one half from another.
#[derive(Clone, Copy)]
struct Half {
    role: Role,
    zone: u16,
    /// Where the IP header begins.
    l3: usize,
}

impl Pipeline {
    /// Classifies an ordinary packet and asks for its flow's bucket. `false`: nothing was done, the general way must look.
    /// On `true` the item's fate may be set.
    #[inline(always)]
    pub(crate) fn plain(&mut self, at: usize, item: &mut Item) -> bool {
        let (port, node) = (item.meta.port, &*self.tables.node);
        if port == node.uplink {
            return self.plain_uplink(at, item);
        }
        let Some(ethernet) = item.frame.head().first_chunk::<ETHERNET>() else { return false };
        if port == node.host || !is_gateway(ethernet) {
            return false;
        }
        let kind = [ethernet[12], ethernet[13]];
        // Most of what a pod sends leaves through the overlay, whose header goes into the line in front.
        sluice_port::prefetch::prefetch(item.frame.data_ptr().wrapping_sub(64));
        let half = Half { role: Role::Pod, zone: port, l3: ETHERNET };
        let (l3, held) = (item.frame.head().get(ETHERNET..).unwrap_or(&[]), item.frame.len() - ETHERNET);
        if kind == IPV4 {
            let Some(packet) = Packet::plain4(l3, held) else { return false };
            self.enter4(at, item, packet, half);
        } else if kind == IPV6 {
            let Some(packet) = Packet::plain6(l3, held) else { return false };
            self.enter6(at, item, packet, half);
        } else {
            return false;
        }
        true
    }

    #[inline(always)]
    fn plain_uplink(&mut self, at: usize, item: &mut Item) -> bool {
        let Some((hop, room)) = self.overlay_peer(item) else { return false };
        let Some(l3) = item.frame.head().get(OVERLAY..) else { return false };
        let held = item.frame.len() - OVERLAY;
        let kind = [item.frame.head()[OVERLAY - 2], item.frame.head()[OVERLAY - 1]];
        if kind == IPV4 {
            let Some(packet) = Packet::plain4(l3, held) else { return false };
            let Some(h) = l3.first_chunk::<20>() else { return false };
            let destination = Address::v4([h[16], h[17], h[18], h[19]]);
            let Some((zone, worker)) = self.local_pod(destination).filter(|_| packet.total <= room) else {
                return false;
            };
            self.enter4(at, item, packet, Half { role: Role::Ingress, zone, l3: OVERLAY });
            self.arrive(item, hop, worker);
        } else if kind == IPV6 {
            let Some(packet) = Packet::plain6(l3, held) else { return false };
            let Some(h) = l3.first_chunk::<40>() else { return false };
            let Some(destination) = h[24..].first_chunk().copied().map(Address::v6) else { return false };
            let Some((zone, worker)) = self.local_pod(destination).filter(|_| packet.total <= room) else {
                return false;
            };
            self.enter6(at, item, packet, Half { role: Role::Ingress, zone, l3: OVERLAY });
            self.arrive(item, hop, worker);
        } else {
            return false;
        }
        true
    }

    /// Notes the tunnel a packet came through, and its worker if that is another one.
    #[inline(always)]
    fn arrive(&self, item: &mut Item, hop: u16, worker: u16) {
        item.meta.peer = hop + 1;
        if worker != self.options.id {
            item.meta.fate = Fate::Handoff(worker);
        }
    }

    /// Port and worker of the local pod with an address.
    #[inline(always)]
    fn local_pod(&mut self, address: Address) -> Option<(u16, u16)> {
        let tables = &self.tables;
        self.pod_memo.get(address, || tables.pods.by_address(address).map(|pod| (pod.port, pod.worker)))
    }

    /// The tunnel hop of the node that sent an ordinary overlay packet, and the longest inner packet that its outer datagram
    /// has room for: IPv4 without options or fragments, checksum right, UDP checksum zero, no congestion mark, our network.
    #[inline(always)]
    fn overlay_peer(&mut self, item: &Item) -> Option<(u16, u16)> {
        let head = item.frame.head().first_chunk::<OVERLAY>()?;
        let outer = item.frame.head().get(ETHERNET..)?;
        let packet = Packet::plain4(outer, item.frame.len() - ETHERNET)?;
        let settings = &*self.tables.settings;
        let destination = Address::v4([head[30], head[31], head[32], head[33]]);
        let ordinary = (head[12..14] == IPV4)
            & (packet.protocol == 17)
            & (packet.tos & 3 == 0)
            & (u16::from_be_bytes([head[36], head[37]]) == settings.vxlan_port)
            & (head[40..42] == [0, 0])
            & (head[42] & 0x08 != 0)
            & (u32::from_be_bytes([0, head[46], head[47], head[48]]) == settings.vni)
            & (self.tables.node.internal[0] == Some(destination))
            & !matches!(item.frame.checksum, Checksum::Partial { .. });
        if !ordinary {
            return None;
        }
        let room = packet.total.checked_sub((OVERLAY - ETHERNET) as u16)?;
        let peer = Address::v4([head[26], head[27], head[28], head[29]]);
        let tables = &self.tables;
        Some((self.peer_memo.get(peer, || tables.routes.peers.get(&peer).map(|p| p.hop.0))?, room))
    }

    /// Writes down what was seen of an IPv4 packet, makes the flow's key and asks for its bucket.
    #[inline(always)]
    fn enter4(&mut self, at: usize, item: &mut Item, packet: Packet, half: Half) {
        let l3 = item.frame.head().get(half.l3..).unwrap_or(&[]);
        let Some(headers) = l3.first_chunk::<24>() else { return };
        let key = Key4::plain(headers, half.zone, side_of(half.role));
        let hash = self.flows4.hash(&key);
        self.flows4.prefetch_bucket(hash);
        self.keys4[at] = key;
        item.meta.hash = hash;
        note(item, packet, half);
    }

    /// The same for IPv6.
    #[inline(always)]
    fn enter6(&mut self, at: usize, item: &mut Item, packet: Packet, half: Half) {
        let l3 = item.frame.head().get(half.l3..).unwrap_or(&[]);
        let Some(headers) = l3.first_chunk::<44>() else { return };
        let key = Key6::plain(headers, half.zone, side_of(half.role));
        let hash = self.flows6.hash(&key);
        self.flows6.prefetch_bucket(hash);
        self.keys6[at] = key;
        item.meta.hash = hash;
        note(item, packet, half);
    }
}

#[inline(always)]
fn note(item: &mut Item, packet: Packet, half: Half) {
    if item.frame.checksum == Checksum::Unknown {
        resolve_checksum(&mut item.frame, half.l3 as u16, &packet);
    }
    item.meta.packet = packet;
    item.meta.l3 = half.l3 as u16;
    item.meta.role = half.role;
    item.meta.zone = half.zone;
}

/// Whether an Ethernet header is addressed to our end of a pod's port: six bytes compared as one word.
#[inline(always)]
fn is_gateway(ethernet: &[u8; ETHERNET]) -> bool {
    let word = |b: &[u8]| u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) >> 16;
    let [a, b, c, d, e, f] = GATEWAY_MAC;
    word(ethernet) == word(&[a, b, c, d, e, f, 0, 0])
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
    use crate::pipeline::{Shared, WorkerOptions};
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
            (port, bytes) in arrival(), unknown in any::<bool>()
        ) {
            thread_local! {
                static PIPELINE: std::cell::RefCell<Pipeline> = std::cell::RefCell::new(pipeline());
            }
            PIPELINE.with_borrow_mut(|p| {
                let mut make = || {
                    let mut frame = p.cache_mut().alloc_copy(&bytes).unwrap();
                    frame.checksum = if unknown { Checksum::Unknown } else { Checksum::None };
                    Item::received(frame, port)
                };
                let (mut ordinary, mut general) = (make(), make());
                if p.plain(0, &mut ordinary) {
                    p.classify(&mut general);
                    let key = (p.keys4[0], p.keys6[0]);
                    if general.meta.fate == Fate::Pending {
                        p.key_stage(0, &mut general);
                        prop_assert_eq!(key, (p.keys4[0], p.keys6[0]));
                        prop_assert_eq!(ordinary.meta.hash, general.meta.hash);
                    }
                    // A packet for another worker has its hash made there.
                    general.meta.hash = ordinary.meta.hash;
                    prop_assert_eq!(format!("{:?}", ordinary.meta), format!("{:?}", general.meta));
                    prop_assert_eq!(ordinary.frame.checksum, general.frame.checksum);
                }
                prop_assert_eq!(ordinary.frame.to_vec(), bytes.clone());
                p.cache_mut().free(ordinary.frame);
                p.cache_mut().free(general.frame);
                Ok(())
            })?;
        }
    }

    #[test]
    fn what_a_pod_and_a_peer_ordinarily_send_goes_the_ordinary_way() {
        let mut p = pipeline();
        let inner = Build::eth().macs(Mac([2; 6]), Mac(GATEWAY_MAC)).ip("10.244.2.1", "10.244.1.5").tcp(1, 2).build();
        let outer = Build::eth().ip("192.0.2.12", "192.0.2.10").vxlan(50_000, 4096, &inner).no_checksum().build();
        for (port, bytes) in [(POD_A, inner), (UPLINK, outer)] {
            let mut item = Item::received(p.cache_mut().alloc_copy(&bytes).unwrap(), port);
            assert!(p.plain(0, &mut item), "port {port}");
            p.cache_mut().free(item.frame);
        }
    }
}
