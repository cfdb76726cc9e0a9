//! The flows of a story: who begins them, what policy sees of them, where they come out, and the packets they are made of.

use crate::chance::Chance;
use crate::node::Gate;
use crate::world::{
    OUTSIDE, PROTOCOLS, PodAt, SERVICE_PORTS, World, cluster_ip, node_address, node_port, overlay_address,
};
use sluice_testkit::Packet;
use sluice_testkit::policy::Seen;
use sluice_wire::TcpFlags;
use std::net::IpAddr;

/// A flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Where its packets come in, and where they must come out.
    pub enters: Gate,
    pub leaves: Gate,
    /// Destination as the sender writes it.
    pub to: IpAddr,
    pub to_port: u16,
    /// Unique in the story; also the ICMP identifier.
    pub from_port: u16,
    /// What policy sees.
    pub seen: Seen,
    /// Whether the source's egress and the destination's ingress are asked on this node.
    pub asked: [bool; 2],
}

/// Which packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// That which begins it.
    Opens,
    /// One from the same side once the other has answered.
    Follows,
}

impl Flow {
    /// A flow of this cluster.
    pub fn new(world: &World, chance: &mut Chance, number: usize) -> Flow {
        let v6 = chance.one_in(2);
        let local: Vec<&PodAt> = world.local().collect();
        let remote: Vec<&PodAt> = world.pods.iter().filter(|pod| pod.node != 0).collect();
        let protocol = *chance.pick(&["TCP", "TCP", "UDP", "SCTP", "ICMP"]);
        let port = if chance.one_in(12) { *chance.pick(&[0, 7, 1000, 65_535]) } else { 1 + chance.below(6) as u16 };
        let at = |pod: &PodAt| pod.addresses[usize::from(v6)];
        let pod_gate = |pod: &PodAt| Gate::Pod(pod.addresses[0]);
        let me = *chance.pick(&local);
        let from_port = 2000 + number as u16;
        let direct = |enters, from, leaves, to, asked| Flow {
            enters,
            leaves,
            to,
            to_port: port,
            from_port,
            seen: Seen { from, to, protocol, port },
            asked,
        };
        let serves = |pod: &PodAt| pod.service.filter(|_| protocol != "ICMP" && (1..=SERVICE_PORTS).contains(&port));
        let transport = PROTOCOLS.iter().position(|p| *p == protocol).unwrap_or(0);
        match chance.below(10) {
            0..=2 if local.len() > 1 => {
                let others: Vec<_> = local.iter().filter(|pod| pod.name != me.name).collect();
                let other = *chance.pick(&others);
                let flow = direct(pod_gate(me), at(me), pod_gate(other), at(other), [true, true]);
                match serves(other) {
                    Some(service) if chance.one_in(2) => Flow { to: cluster_ip(service, v6), ..flow },
                    _ => flow,
                }
            }
            3 if !remote.is_empty() => {
                let other = *chance.pick(&remote);
                // A pod on its node's network has the node's address: reached as the node, outside the overlay.
                let leaves = if other.host_network { Gate::Outside } else { Gate::Tunnel(other.node) };
                direct(pod_gate(me), at(me), leaves, at(other), [true, false])
            }
            4 => {
                let to = chance.pick(&OUTSIDE[usize::from(v6)]).parse().expect("an address");
                direct(pod_gate(me), at(me), Gate::Outside, to, [true, false])
            }
            5 => match chance.below(3) {
                0 => direct(pod_gate(me), at(me), Gate::Host, node_address(0, v6), [true, false]),
                n => direct(pod_gate(me), at(me), Gate::Outside, node_address(n, v6), [true, false]),
            },
            6 if serves(me).is_some() => {
                let from = chance.pick(&OUTSIDE[usize::from(v6)]).parse().expect("an address");
                let flow = direct(Gate::Outside, from, pod_gate(me), at(me), [false, true]);
                let to_port = node_port(me.service.unwrap_or(0), transport, port);
                Flow { to: node_address(0, v6), to_port, ..flow }
            }
            7 => {
                let node = 1 + chance.below(2);
                let from = if chance.one_in(2) { node_address(node, v6) } else { overlay_address(node, v6) };
                direct(Gate::Tunnel(node), from, pod_gate(me), at(me), [false, true])
            }
            // The node reaches its own pods whatever policies say.
            8 if chance.one_in(4) => direct(Gate::Host, overlay_address(0, v6), pod_gate(me), at(me), [false, false]),
            _ => match remote.iter().filter(|pod| !pod.host_network).collect::<Vec<_>>()[..] {
                [] => direct(Gate::Host, overlay_address(0, v6), pod_gate(me), at(me), [false, false]),
                ref peers => {
                    let other = *chance.pick(peers);
                    direct(Gate::Tunnel(other.node), at(other), pod_gate(me), at(me), [false, true])
                }
            },
        }
    }

    /// A packet of the side that began.
    pub fn packet(&self, part: Part) -> Packet {
        let packet = Packet::eth().addresses(self.seen.from, self.to);
        transport(packet, self.seen.protocol, (self.from_port, self.to_port), part == Part::Follows, false)
    }

    /// The answer to a packet that came out: back where it came out, to whom it came from.
    pub fn answer(&self, came_out: &[u8]) -> Packet {
        let v6 = came_out[0] >> 4 == 6;
        let (from, to, l4) = if v6 {
            let address = |at: usize| <[u8; 16]>::try_from(&came_out[at..at + 16]).map(IpAddr::from).expect("a header");
            (address(8), address(24), 40)
        } else {
            let address = |at: usize| <[u8; 4]>::try_from(&came_out[at..at + 4]).map(IpAddr::from).expect("a header");
            (address(12), address(16), 20)
        };
        let word = |at: usize| u16::from_be_bytes([came_out[l4 + at], came_out[l4 + at + 1]]);
        let ports = if self.seen.protocol == "ICMP" { (word(4), 0) } else { (word(2), word(0)) };
        transport(Packet::eth().addresses(to, from), self.seen.protocol, ports, false, true)
    }
}

/// The transport part: ports, or the identifier for ICMP.
fn transport(packet: Packet, protocol: &str, (from, to): (u16, u16), follows: bool, answers: bool) -> Packet {
    match protocol {
        "TCP" => {
            let flags = match (answers, follows) {
                (true, _) => TcpFlags::SYN | TcpFlags::ACK,
                (false, true) => TcpFlags::ACK,
                (false, false) => TcpFlags::SYN,
            };
            packet.tcp(from, to).flags(flags).seq(if answers { 9000 } else { 1000 }).ack(1001)
        }
        "UDP" => packet.udp(from, to).payload(b"x"),
        "SCTP" => {
            let (tag, kind) = match (answers, follows) {
                (true, _) => (7, 2),
                (false, true) => (8, 0),
                (false, false) => (0, 1),
            };
            packet.sctp(from, to).vtag(tag).chunk(
                kind,
                if kind == 0 { 3 } else { 0 },
                &[0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1],
            )
        }
        _ if answers => packet.echo_reply(from, 1),
        _ => packet.echo_request(from, 1),
    }
}
