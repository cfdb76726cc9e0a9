//! One packet on its way through a turn: the frame, what is known of it, and what shall become of it.

use crate::reason::{Reason, Stage};
use crate::trace::Note;
use sluice_port::Frame;
use sluice_wire::packet::{Packet, Shape};

/// Packets a batch holds: enough lookups in flight to hide memory latency (16 → 64 halves the cost at a million flows).
pub const BATCH: usize = 64;

/// Which half of a flow a packet is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// From a local pod's port: its egress half.
    Pod,
    /// To a local pod: its ingress half.
    Ingress,
    /// To an address of this node: SNAT replies, NodePorts, the host.
    Node,
    /// Neither from nor to this node: VIPs from outside, egress gateway.
    Transit,
    /// From the host port.
    Host,
}

impl Role {
    /// Stage label of drops decided in this half.
    pub fn stage(self) -> Stage {
        match self {
            Role::Pod => Stage::Egress,
            Role::Ingress => Stage::Ingress,
            Role::Node | Role::Transit | Role::Host => Stage::Transit,
        }
    }
}

/// What becomes of a packet at the end of a pass; `settle` carries it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Still to be decided.
    Pending,
    /// Header pushed: out through this port.
    Send(u16),
    /// Ended.
    Drop(Reason, Stage),
    /// Another half on this node follows; role, zone and side say which.
    Again,
    /// That half belongs to another worker.
    Handoff(u16),
    /// Waits for other fragments.
    Hold,
    /// Waits until control knows the neighbour it goes to.
    AwaitNeighbour,
    /// Its bytes went out in other frames.
    Consumed,
}

/// What is known of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// The (inner) IP packet.
    pub packet: Packet,
    /// Offset of its header in the frame's first chunk.
    pub l3: u16,
    /// Half.
    pub role: Role,
    /// Zone of the flow key: port of the pod, 0 for the node.
    pub zone: u16,
    /// Port it came in on.
    pub port: u16,
    /// Tunnel hop it came through, plus 1; 0: none.
    pub peer: u16,
    /// Worker of the transit half it comes from, plus 1; 0: none.
    pub transit: u16,
    /// TTL was lowered already, or must not be (a reply of our own).
    pub forwarded: bool,
    /// Made by us: no reply may be made about it.
    pub own: bool,
    /// From the host, and the worker of the pod it goes to was asked for its flow.
    pub asked: bool,
    /// Ports of a later fragment are known (from its first).
    pub fragment_known: bool,
    /// Flow hash, also the entropy of the outer source port.
    pub hash: u64,
    /// What becomes of it.
    pub fate: Fate,
}

impl Default for Meta {
    fn default() -> Self {
        Meta {
            packet: Packet {
                family: 0,
                protocol: 0,
                shape: Shape::Portless,
                tcp_flags: 0,
                l4: 0,
                total: 0,
                ttl: 0,
                tos: 0,
                fragment: false,
                dont_fragment: false,
                source_port: [0; 2],
                destination_port: [0; 2],
            },
            l3: 0,
            role: Role::Transit,
            zone: 0,
            port: 0,
            peer: 0,
            transit: 0,
            forwarded: false,
            own: false,
            asked: false,
            fragment_known: false,
            hash: 0,
            fate: Fate::Pending,
        }
    }
}

/// A packet in a batch.
#[derive(Debug)]
pub struct Item {
    /// The frame.
    pub frame: Frame,
    /// What is known.
    pub meta: Meta,
    /// What a trace shall say; only while somebody traces.
    pub note: Option<Box<Note>>,
}

impl Item {
    /// A frame just received on the port that it names.
    pub fn received(frame: Frame) -> Self {
        let port = frame.port;
        Item { frame, meta: Meta { port, ..Meta::default() }, note: None }
    }

    /// Bytes from the IP header on, in the first chunk.
    #[inline(always)]
    pub fn l3(&self) -> &[u8] {
        self.frame.head().get(usize::from(self.meta.l3)..).unwrap_or(&[])
    }

    /// The same, writable.
    #[inline(always)]
    pub fn l3_mut(&mut self) -> &mut [u8] {
        let at = usize::from(self.meta.l3);
        self.frame.head_mut().get_mut(at..).unwrap_or(&mut [])
    }

    /// Ends the packet with a reason.
    #[inline]
    pub fn drop(&mut self, reason: Reason, stage: Stage) {
        self.meta.fate = Fate::Drop(reason, stage);
    }

    /// Ends the packet with a reason, in its half's stage.
    #[inline]
    pub fn refuse(&mut self, reason: Reason) {
        self.meta.fate = Fate::Drop(reason, self.meta.role.stage());
    }
}
