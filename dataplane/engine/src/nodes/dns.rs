//! Questions and answers of DNS as they pass: what a pod with rules about domain names is told, its worker remembers.
//!
//! Source: policy.networking.k8s.io/v1alpha2 `domainNames`. Flows that such a pod begins to port 53 bear
//! [`Common::OBSERVE`], which keeps them off the fast path. The packet itself is never held, changed or dropped here: what
//! is not understood teaches nothing, so that the rule goes on matching nothing.

use crate::dns_stream::{Of, Streams};
use crate::flow::Common;
use crate::item::Item;
use crate::learned::Outcome;
use crate::pipeline::Pipeline;
use sluice_tables::{Address, DomainId, Pod, PolicySetId};
use sluice_wire::dns::{self, Answered, Question};
use sluice_wire::packet::Shape;

/// The port DNS is asked on.
const DNS: u16 = 53;
const TCP: u8 = 6;
const UDP: u8 = 17;

impl Pipeline {
    /// Whether the answers to a flow that a pod begins are to be looked at.
    pub(crate) fn observes(&self, pod: &Pod, protocol: u8, port: u16) -> bool {
        port == DNS && matches!(protocol, TCP | UDP) && !self.tables.policy.domain_rules(pod.egress).is_empty()
    }

    /// Looks at a packet of an observed flow, before its rewrite; `ports` are those after it.
    #[cold]
    #[inline(never)]
    pub(crate) fn observe(&mut self, item: &Item, c: &Common, ports: &[u8; 4]) {
        let packet = &item.meta.packet;
        if packet.shape != Shape::Ports {
            return;
        }
        let Some(set) = self.tables.pods.by_port(c.pod).and_then(|pod| pod.egress) else { return };
        if packet.protocol == TCP {
            return self.observe_segment(item, c, set, ports);
        }
        // What the IP header says is there, and lies in the first chunk.
        let bytes = item.l3();
        let bytes = &bytes[..bytes.len().min(usize::from(packet.total))];
        let l4 = usize::from(packet.l4);
        let (zone, source, destination) =
            (c.pod, u16::from_be_bytes(packet.source_port), u16::from_be_bytes([ports[2], ports[3]]));
        match bytes.get(l4 + 8..) {
            Some(message) if c.is_reply() => self.hear_answer(zone, set, destination, message),
            Some(message) => self.hear_question(zone, set, source, message),
            None => {}
        }
    }

    /// Looks at a segment of an observed connection: messages may lie in several.
    fn observe_segment(&mut self, item: &Item, c: &Common, set: PolicySetId, ports: &[u8; 4]) {
        let packet = &item.meta.packet;
        let (l3, l4, total) = (usize::from(item.meta.l3), usize::from(packet.l4), usize::from(packet.total));
        let Some(header) = item.l3().get(l4..).and_then(|b| b.first_chunk::<20>()) else { return };
        let payload = l3 + l4 + usize::from(header[12] >> 4) * 4;
        let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let reply = c.is_reply();
        let port = if reply { [ports[2], ports[3]] } else { packet.source_port };
        let of = Of { zone: c.pod, port: u16::from_be_bytes(port), reply };
        let pieces = |each: &mut dyn FnMut(&[u8])| {
            let mut at = 0;
            item.frame.for_each_segment(|bytes| {
                // Behind the headers, and not past what the IP header says is there.
                let (from, to) = (payload.saturating_sub(at), (l3 + total).saturating_sub(at));
                if let Some(bytes) = bytes.get(from..to.min(bytes.len())) {
                    each(bytes);
                }
                at += bytes.len();
            });
        };
        let mut streams = std::mem::replace(&mut self.streams, Streams::nothing());
        streams.segment(of, sequence, self.now, pieces, |message| {
            if reply {
                self.hear_answer(of.zone, set, of.port, message);
            } else {
                self.hear_question(of.zone, set, of.port, message);
            }
        });
        self.streams = streams;
    }

    fn hear_question(&mut self, zone: u16, set: PolicySetId, port: u16, message: &[u8]) {
        let Some(question) = Question::of_query(message) else { return };
        let mut wanted = false;
        self.each_name(set, question.name.as_bytes(), |_| wanted = true);
        if wanted {
            self.learned.ask(zone, port, question.id, question.kind, question.name.as_bytes(), self.now);
        }
    }

    fn hear_answer(&mut self, zone: u16, set: PolicySetId, port: u16, message: &[u8]) {
        let Some(question) = Question::of_response(message) else { return };
        let name = question.name.as_bytes();
        let mut names = [DomainId(0); 16];
        let mut count = 0;
        self.each_name(set, name, |id| {
            if let Some(place) = names.get_mut(count) {
                *place = id;
                count += 1;
            }
        });
        if count == 0 {
            return;
        }
        if !self.learned.is_answer(zone, port, question.id, question.kind, name, self.now) {
            return self.counters.domains[2].add(1);
        }
        let (now, counters, learned) = (self.now, &self.counters, &mut self.learned);
        dns::addresses(message, &question, |address, ttl| {
            let address = match address {
                Answered::V4(bytes) => Address::v4(bytes),
                Answered::V6(bytes) => Address::v6(bytes),
            };
            for id in &names[..count] {
                match learned.learn(zone, address, *id, ttl, now) {
                    Outcome::Learned | Outcome::Renewed => counters.domains[0].add(1),
                    Outcome::Full => counters.domains[1].add(1),
                }
            }
        });
        self.counters.domain_addresses.set(self.learned.len() as u64);
    }

    /// Calls `each` with the names of a set's rules that a name on the wire belongs to.
    fn each_name(&self, set: PolicySetId, wire: &[u8], mut each: impl FnMut(DomainId)) {
        let rules = self.tables.policy.domain_rules(Some(set));
        self.tables.policy.domains.matching(wire, |id| {
            if rules.iter().any(|rule| rule.names.binary_search(&id).is_ok()) {
                each(id);
            }
        });
    }
}
