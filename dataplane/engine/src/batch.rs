//! A batch as columns: what stage one found of each packet, so that the stages behind it are plain loops over small arrays.
//!
//! ```text
//! position   0 … 63
//! facts       8 bytes each: where the packet lies, whose border it crosses
//! hashes      8 bytes each: its bucket is on the way
//! keys4/6    16 or 40 bytes each
//! slots       4 bytes each: its entry is on the way; NONE: no tag matched
//! outs        2 bytes each: rewritten and to be sent on this port; NO_PORT: not
//! ```
//! 38 bytes a packet for IPv4, where an [`Item`] has three times as many, which were moved three times. Packets that leave the
//! ordinary way become items, at the position they came at, so that no packet overtakes another of its flow.
//! Owner: one worker's pipeline.

use crate::flow::{Key4, Key6, Slot};
use crate::item::{BATCH, Fate, Item, Meta, Role};
use sluice_port::Frame;
use sluice_wire::packet::Packet;

/// How a packet of the batch goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// As an item of its own, which `classify` has seen.
    #[default]
    Other,
    /// Ordinary TCP or UDP over IPv4.
    V4,
    /// Over IPv6.
    V6,
    /// Ordinary, but another worker's.
    Foreign,
}

/// What stage one found of an ordinary packet and the bytes alone do not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Where the (inner) IP header begins in the frame.
    pub l3: u8,
    pub kind: Kind,
    /// Port of the pod whose border it crosses.
    pub zone: u16,
    /// Tunnel hop it came through, plus 1; 0: a pod sent it.
    pub peer: u16,
    /// Worker that owns it.
    pub worker: u16,
}
const _: () = assert!(size_of::<Facts>() == 8);

/// No way out yet.
pub(crate) const NO_PORT: u16 = u16::MAX;

/// The columns.
pub(crate) struct Columns {
    pub facts: [Facts; BATCH],
    pub hashes: [u64; BATCH],
    pub slots: [Slot; BATCH],
    pub outs: [u16; BATCH],
    pub keys4: [Key4; BATCH],
    pub keys6: [Key6; BATCH],
}

impl Columns {
    pub fn new() -> Box<Self> {
        Box::new(Columns {
            facts: [Facts::default(); BATCH],
            hashes: [0; BATCH],
            slots: [Slot::NONE; BATCH],
            outs: [NO_PORT; BATCH],
            keys4: [Key4::default(); BATCH],
            keys6: [Key6::default(); BATCH],
        })
    }

    /// The packet at a position as an item, as `classify` and `key_stage` would have left it.
    pub fn item(&self, at: usize, frame: Frame) -> Item {
        let mut item = Item::received(frame);
        let facts = &self.facts[at];
        item.meta = Meta {
            l3: facts.l3.into(),
            role: if facts.peer == 0 { Role::Pod } else { Role::Ingress },
            zone: facts.zone,
            peer: facts.peer,
            hash: self.hashes[at],
            fate: if facts.kind == Kind::Foreign { Fate::Handoff(facts.worker) } else { Fate::Pending },
            ..item.meta
        };
        // Parsed once more: it is the first packet of a flow, or an odd one.
        let l3 = item.l3();
        if let Some(packet) = Packet::plain4(l3, l3.len()).or_else(|| Packet::plain6(l3, l3.len())) {
            item.meta.packet = packet;
        }
        item
    }
}
