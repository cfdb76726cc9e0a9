//! What stands in front of a flow table's entries in their file, so that a later process knows whether it may use them.
//!
//! ```text
//! 0                        2 MB
//! ├─ Header ─┼── (hole) ──┼── entries: pairs 0, 1, 2, … ───────▶ grows
//! ```
//! The layout is a fingerprint: a sample entry whose every field has a value of its own is made by the code that makes real
//! ones, and its bytes are hashed with what gives numbers their meaning. Moving a field, changing its width or renumbering
//! a state changes the fingerprint without anybody having to think of it; a change of meaning that leaves the bytes alone
//! must raise [`REVISION`].

use super::entry::{Common, Entry, Next};
use super::key::{Side, Tuple};
use super::state::State;
use sluice_tables::{Address, Family};
use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Raise it when an entry's bytes stay and their meaning changes.
pub const REVISION: u64 = 1;
/// Where entries begin: on a page boundary of any size that a file system has here.
pub const ENTRIES_AT: u64 = 2 << 20;
const MAGIC: [u8; 8] = *b"SLUICEFL";

/// The first bytes of a flow table's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    magic: [u8; 8],
    /// Fingerprint of the entries.
    pub layout: u64,
    /// The kernel's run: ticks are counted from its start, and no flow outlives it.
    pub boot: [u8; 16],
    /// Whose port numbers the zones are: the list of attachments they were given out by.
    pub ports: u64,
    /// Seed of the flow hash.
    pub seed: u64,
    /// Worker whose table this is.
    pub worker: u16,
    /// Number of workers.
    pub workers: u16,
    /// 4 or 6.
    pub family: u32,
}

/// Why the flows of a file cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not begin like a flow table.
    NoTable,
    /// Another version of the program laid it out.
    Layout {
        /// Its fingerprint.
        found: u64,
        /// This program's.
        wanted: u64,
    },
    /// It is from before the machine was started.
    Boot,
    /// The zones are port numbers of another list of attachments.
    Ports,
    /// It says to be another worker's or family's than its name.
    Name,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NoTable => f.write_str("it is no flow table"),
            Refused::Layout { found, wanted } => write!(
                f,
                "another version of sluiced wrote it: its layout is {found:016x}, this program's is {wanted:016x}"
            ),
            Refused::Boot => f.write_str("it is from before this machine was last started"),
            Refused::Ports => f.write_str("its port numbers belong to another state_dir"),
            Refused::Name => f.write_str("it is the table of another worker or family"),
        }
    }
}

impl Header {
    /// The header of a table of this program.
    pub fn new<E: Entry>(worker: u16, workers: u16, boot: [u8; 16], ports: u64, seed: u64) -> Self {
        let family = match sample::<E>().parts().0.source.family() {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        Header { magic: MAGIC, layout: fingerprint::<E>(), boot, ports, seed, worker, workers, family }
    }

    /// Whether the table behind this header is one that `wanted` may go on with; seed and number of workers may differ.
    pub fn check(&self, wanted: &Header) -> Result<(), Refused> {
        if self.magic != MAGIC {
            return Err(Refused::NoTable);
        }
        if (self.worker, self.family) != (wanted.worker, wanted.family) {
            return Err(Refused::Name);
        }
        if self.layout != wanted.layout {
            return Err(Refused::Layout { found: self.layout, wanted: wanted.layout });
        }
        if self.boot != wanted.boot {
            return Err(Refused::Boot);
        }
        if self.ports != wanted.ports {
            return Err(Refused::Ports);
        }
        Ok(())
    }
}

/// An entry in which no two fields are alike.
fn sample<E: Entry>() -> E {
    let six = |first: u8| core::array::from_fn(|at| first + at as u8);
    let four = |first: u8| [first, first + 1, first + 2, first + 3];
    // Only one of the families fits the key; the other's addresses are never looked at.
    let tuple = |v6: bool, a: u8, b: u8| Tuple {
        source: if v6 { Address::v6(six(a)) } else { Address::v4(four(a)) },
        destination: if v6 { Address::v6(six(b)) } else { Address::v4(four(b)) },
        source_port: 0x1122 + u16::from(a),
        destination_port: 0x3344 + u16::from(b),
        protocol: 17,
    };
    let mut common = Common {
        hop: 0x5152,
        pod: 0x5354,
        slot: 0x5556,
        aux: 0x5758,
        state: State::Stream as u8,
        bits: Common::REPLY | Common::KEEP_TTL,
        space: 0x595a,
        hop_version: 0x6162_6364,
        policy_version: 0x6566_6768,
        service_version: 0x696a_6b6c,
        last_seen: 0x6d6e_6f70,
        rule: 0x7172_7374,
    };
    common.set_next(Next::Transit);
    let v6 = size_of::<E::Key>() > 16;
    let (from, to) = (tuple(v6, 0x81, 0x92), tuple(v6, 0xa3, 0xb4));
    E::make(E::key_of(&from, 0x7576, Side::To), &from, &to, common)
}

/// What an entry's bytes mean to this program.
pub fn fingerprint<E: Entry>() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    eat(&REVISION.to_le_bytes());
    eat(&ENTRIES_AT.to_le_bytes());
    eat(&[crate::pipeline::TICK_SHIFT as u8]);
    eat(sample::<E>().as_bytes());
    for byte in 0..=u8::MAX {
        eat(State::from_byte(byte).name().as_bytes());
    }
    for next in [Next::Send, Next::Pod, Next::Node, Next::Transit] {
        let mut common = Common::default();
        common.set_next(next);
        eat(&[common.bits]);
    }
    eat(&[Common::REPLY, Common::PLAIN, Common::KEEP_TTL, Side::From as u8, Side::To as u8]);
    hash
}

#[cfg(test)]
mod tests {
    use super::super::{Entry4, Entry6};
    use super::*;

    fn header() -> Header {
        Header::new::<Entry4>(1, 2, [7; 16], 9, 11)
    }

    #[test]
    fn no_two_fields_of_the_sample_are_alike_so_that_none_can_move_unseen() {
        for bytes in [sample::<Entry4>().as_bytes(), &sample::<Entry6>().as_bytes()[..112]] {
            let words: std::collections::BTreeSet<_> = bytes.chunks(2).collect();
            assert_eq!(words.len(), bytes.len() / 2, "{bytes:02x?}");
        }
    }

    #[test]
    fn a_table_is_refused_for_each_thing_that_its_numbers_rest_on() {
        let mine = header();
        assert_eq!(Header { seed: 1, workers: 9, ..mine }.check(&mine), Ok(()));
        let layout = Refused::Layout { found: 0, wanted: mine.layout };
        for (other, why) in [
            (Header { magic: *b"12345678", ..mine }, Refused::NoTable),
            (Header { layout: 0, ..mine }, layout),
            (Header { boot: [0; 16], ..mine }, Refused::Boot),
            (Header { ports: 0, ..mine }, Refused::Ports),
            (Header { worker: 0, ..mine }, Refused::Name),
            (Header { family: 6, ..mine }, Refused::Name),
        ] {
            assert_eq!(other.check(&mine), Err(why));
        }
        assert!(layout.to_string().contains("another version"), "{layout}");
    }

    #[test]
    fn the_families_have_layouts_of_their_own() {
        assert_ne!(fingerprint::<Entry4>(), fingerprint::<Entry6>());
        assert_eq!((header().family, Header::new::<Entry6>(0, 1, [0; 16], 0, 0).family), (4, 6));
    }
}
