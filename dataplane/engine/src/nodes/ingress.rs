//! The ingress half: a flow's first packet to a local pod, whatever translated it before.

use super::egress::Judged;
use super::plan::{Directly, Plan, Way};
use crate::flow::{Next, Side, Tuple};
use crate::item::{Fate, Item};
use crate::pipeline::Pipeline;
use crate::reason::Reason;
use sluice_tables::direct::Tag;
use sluice_tables::{Address, Direction, HopId, Pod, Route};

impl Pipeline {
    pub(crate) fn walk_ingress(&mut self, item: &mut Item, tuple: Tuple) -> Option<Plan> {
        let Some(pod) = self.tables.pods.by_port(item.meta.zone).cloned() else {
            item.refuse(Reason::NoRoute);
            return None;
        };
        if !self.came_honestly(item, tuple.source) || self.cannot_begin(item) {
            return None;
        }
        // The node itself (kubelet's probes above all) always reaches its pods.
        let judged = if self.tables.node.owns(tuple.source) {
            Judged::UNASKED
        } else {
            self.judge(item, &pod, Direction::Ingress, &tuple, &tuple, false)?
        };
        if let Some((address, port)) = self.asked_at(item) {
            return self.answer_directly(item, tuple, &pod, judged, Directly::Answers(address, port));
        }
        let back = self.way_back(item, tuple.source)?;
        Some(Plan {
            original: tuple,
            translated: tuple,
            reply_zone: pod.port,
            reply_side: Side::From,
            forward: Way::send(pod.hop),
            back: Way { hop: if back.next == Next::Send { back.hop } else { pod.hop }, ..back },
            pod: pod.port,
            slot: 0,
            rule: judged.rule,
            marks: judged.marks,
            space: 0,
            direct: None,
        })
    }

    /// The address and port that a client outside asked at, if another node chose a backend here for it and leaves the
    /// answers to us: the inner Ethernet source says so.
    fn asked_at(&self, item: &Item) -> Option<(Address, u16)> {
        let hop = item.meta.peer.checked_sub(1)?;
        let at = usize::from(item.meta.l3).checked_sub(8)?;
        let mac = item.frame.head().get(at..)?.first_chunk::<6>()?;
        let key = self.tables.direct.frontend(Tag::from_mac(*mac)?)?;
        if key.address.bits() & !0xffff_0000_0000 != 0 {
            return Some((key.address, key.port));
        }
        // A NodePort: at the node that sent it to us.
        let peer = self.tables.routes.peers.values().find(|p| p.hop.0 == hop)?;
        Some((peer.internal[key.address.family() as usize]?, key.port))
    }

    /// A flow whose answers leave here, from the address the client asked at.
    fn answer_directly(
        &mut self,
        item: &mut Item,
        tuple: Tuple,
        pod: &Pod,
        judged: Judged,
        direct: Directly,
    ) -> Option<Plan> {
        let back = match self.tables.routes.external(tuple.source) {
            Some(Route::External(hop)) => hop,
            Some(_) => {
                self.shared.wanted.ask(tuple.source);
                item.meta.fate = Fate::AwaitNeighbour;
                return None;
            }
            None => {
                item.refuse(Reason::NoRoute);
                return None;
            }
        };
        Some(Plan {
            original: tuple,
            translated: tuple,
            reply_zone: pod.port,
            reply_side: Side::From,
            forward: Way::send(pod.hop),
            back: Way::send(back),
            pod: pod.port,
            slot: 0,
            rule: judged.rule,
            marks: judged.marks,
            space: 0,
            direct: Some(direct),
        })
    }

    /// Whether a packet's source may be behind the tunnel it came through. Only a flow's first packet is asked.
    pub(crate) fn came_honestly(&self, item: &mut Item, source: Address) -> bool {
        let Some(hop) = item.meta.peer.checked_sub(1) else {
            let inside = item.meta.port == self.tables.node.uplink && self.is_inside(source);
            if inside {
                item.refuse(Reason::SourceSpoofed);
            }
            return !inside;
        };
        let peer = self.tables.routes.peers.values().find(|p| p.hop.0 == hop);
        let Some(peer) = peer else {
            item.refuse(Reason::UnknownTunnelPeer);
            return false;
        };
        if peer.sources.iter().any(|prefix| prefix.contains(source)) {
            return true;
        }
        let outside = matches!(self.tables.routes.lookup(source), Some(Route::External(_) | Route::Unresolved) | None);
        if outside && self.asked_at(item).is_some() {
            return true;
        }
        // A gateway relays outside addresses, but only as replies, which have a flow.
        item.refuse(if peer.gateway && outside { Reason::InvalidState } else { Reason::SourceSpoofed });
        false
    }

    /// Whether an address is one that never comes in from the uplink outside the overlay: a pod's, a Service's, our own.
    fn is_inside(&self, source: Address) -> bool {
        self.tables.pods.by_address(source).is_some()
            || self.tables.node.owns(source)
            || matches!(self.tables.routes.lookup(source), Some(Route::Tunnel(_) | Route::Nowhere | Route::Node))
    }

    /// Where replies to `client` go from here.
    fn way_back(&self, item: &mut Item, client: Address) -> Option<Way> {
        let nowhere = HopId(0);
        if let Some(worker) = item.meta.transit.checked_sub(1) {
            return Some(Way { next: Next::Transit, hop: nowhere, aux: worker });
        }
        if let Some(hop) = item.meta.peer.checked_sub(1) {
            return Some(Way::send(HopId(hop)));
        }
        if self.tables.node.owns(client) {
            return Some(Way { next: Next::Node, hop: nowhere, aux: 0 });
        }
        if let Some(pod) = self.tables.pods.by_address(client) {
            return Some(Way { next: Next::Pod, hop: pod.hop, aux: pod.port });
        }
        match self.tables.routes.lookup(client) {
            Some(Route::Tunnel(hop) | Route::External(hop) | Route::PeerNode { tunnel: hop, .. }) => {
                Some(Way::send(hop))
            }
            _ => {
                item.refuse(Reason::NoRoute);
                None
            }
        }
    }
}
