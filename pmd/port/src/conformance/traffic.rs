//! The suite's frames: real IPv4 and IPv6, TCP and UDP packets whose every byte follows from an identity, and the
//! ledger that checks them on arrival.
//!
//! Real packets, because a device may steer, checksum or refuse what does not parse. Owner: the suite's thread.

use crate::conformance::Laws;
use crate::faulty::Xorshift;
use crate::offload::InternetSum;
use std::collections::{HashMap, VecDeque};

/// Flows per direction: each of IPv4 and IPv6 with each of UDP and TCP, twice.
pub(super) const FLOWS: u16 = 8;
/// Shortest frame: Ethernet, IPv6, TCP and the identity. Above 60, so that no device pads it.
pub(super) const SHORTEST: usize = 14 + 40 + 20 + IDENTITY;
/// Longest frame: what IPv4's length field can say.
pub(super) const LONGEST: usize = 14 + 65_535;
const IDENTITY: usize = 16;
const MAGIC: [u8; 4] = *b"slui";

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the far end to the queue.
    Rx,
    /// From the queue to the far end.
    Tx,
}

/// What a frame's bytes follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub direction: Direction,
    pub flow: u16,
    pub number: u32,
    pub len: usize,
}

/// A frame's bytes, and where its transport checksum lies.
pub(super) struct Built {
    pub bytes: Vec<u8>,
    /// Start of the transport header.
    pub start: usize,
    /// The checksum field, from there.
    pub offset: usize,
    /// The pseudo-header's sum, as the field of a partial checksum holds it.
    pub pseudo: u16,
}

/// Builds the frame with this identity.
pub(super) fn build(id: Identity, addresses: &[[u8; 6]; 2]) -> Built {
    let (v6, tcp) = (id.flow % 2 == 1, id.flow % 4 >= 2);
    let mut b = Vec::with_capacity(id.len);
    let (from, to): (u8, u8) = if id.direction == Direction::Rx { (1, 0) } else { (0, 1) };
    b.extend_from_slice(&addresses[usize::from(to)]);
    b.extend_from_slice(&addresses[usize::from(from)]);
    let protocol = if tcp { 6 } else { 17 };
    let start = if v6 { 54 } else { 34 };
    let payload = (id.len - start) as u16;
    let mut pseudo = InternetSum::default();
    if v6 {
        // 2001:2::/48 is the benchmarking prefix (RFC 5180).
        b.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        b.extend_from_slice(&payload.to_be_bytes());
        b.extend_from_slice(&[protocol, 64]);
        for host in [from, to] {
            b.extend_from_slice(&[0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host + 1]);
        }
        pseudo.add(&b[22..54]);
    } else {
        // 198.18.0.0/15 is the benchmarking range (RFC 2544).
        b.extend_from_slice(&[0x08, 0x00, 0x45, 0]);
        b.extend_from_slice(&((id.len - 14) as u16).to_be_bytes());
        b.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
        for host in [from, to] {
            b.extend_from_slice(&[198, 18, 0, host + 1]);
        }
        let mut header = InternetSum::default();
        header.add(&b[14..34]);
        let checksum = !header.folded();
        b[24..26].copy_from_slice(&checksum.to_be_bytes());
        pseudo.add(&b[26..34]);
    }
    pseudo.add(&u16::from(protocol).to_be_bytes());
    pseudo.add(&payload.to_be_bytes());
    let ports = [40_000 + id.flow, 9];
    ports.iter().for_each(|port| b.extend_from_slice(&port.to_be_bytes()));
    let offset = if tcp {
        b.extend_from_slice(&id.number.to_be_bytes());
        b.extend_from_slice(&[0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        16
    } else {
        b.extend_from_slice(&payload.to_be_bytes());
        b.extend_from_slice(&[0, 0]);
        6
    };
    b.extend_from_slice(&MAGIC);
    b.extend_from_slice(&(id.direction as u16).to_be_bytes());
    b.extend_from_slice(&id.flow.to_be_bytes());
    b.extend_from_slice(&id.number.to_be_bytes());
    b.extend_from_slice(&(id.len as u32).to_be_bytes());
    let mut random = Xorshift::new(u64::from(id.number) << 20 | u64::from(id.flow));
    while b.len() < id.len {
        let word = random.next_u64().to_be_bytes();
        b.extend_from_slice(&word[..word.len().min(id.len - b.len())]);
    }
    let pseudo = pseudo.folded();
    let mut sum = InternetSum::default();
    sum.add(&b[start..]);
    sum.add_word(pseudo);
    b[start + offset..start + offset + 2].copy_from_slice(&sum.finish().to_be_bytes());
    Built { bytes: b, start, offset, pseudo }
}

/// The identity that a frame claims, if it is one of the suite's.
fn claimed(bytes: &[u8]) -> Option<Identity> {
    let v6 = bytes.get(12..14)? == [0x86, 0xdd];
    let (start, protocol) = if v6 { (54, *bytes.get(20)?) } else { (34, *bytes.get(23)?) };
    let id = bytes.get(start + if protocol == 6 { 20 } else { 8 }..)?.get(..IDENTITY)?;
    let word = |at: usize| u32::from_be_bytes([id[at], id[at + 1], id[at + 2], id[at + 3]]);
    if id[..4] != MAGIC {
        return None;
    }
    let direction = if id[5] == Direction::Rx as u8 { Direction::Rx } else { Direction::Tx };
    Some(Identity { direction, flow: word(4) as u16, number: word(8), len: word(12) as usize })
}

/// Makes identities: flows in turn, each numbered upwards.
pub(super) struct Numbers {
    direction: Direction,
    next: u32,
}

impl Numbers {
    pub(super) fn new(direction: Direction) -> Self {
        Numbers { direction, next: 0 }
    }

    pub(super) fn next(&mut self, len: usize) -> Identity {
        let (flow, number) = ((self.next % u32::from(FLOWS)) as u16, self.next / u32::from(FLOWS));
        self.next += 1;
        Identity { direction: self.direction, flow, number, len: len.clamp(SHORTEST, LONGEST) }
    }
}

/// What is on its way in one direction, and what went wrong.
pub(super) struct Ledger {
    laws: Laws,
    expected: HashMap<u16, VecDeque<Identity>>,
    pub pending: usize,
    pub arrived: u64,
    pub problem: Option<String>,
}

impl Ledger {
    pub(super) fn new(laws: Laws) -> Self {
        Ledger { laws, expected: HashMap::new(), pending: 0, arrived: 0, problem: None }
    }

    pub(super) fn expect(&mut self, id: Identity) {
        self.expected.entry(id.flow).or_default().push_back(id);
        self.pending += 1;
    }

    /// Checks a frame that arrived; `false` if it is none of the suite's.
    pub(super) fn take(&mut self, bytes: &[u8]) -> bool {
        let Some(id) = claimed(bytes) else {
            if self.laws.quiet && self.laws.intact {
                self.note(format!("a frame of {} bytes that nobody sent", bytes.len()));
            }
            return false;
        };
        let queue = self.expected.entry(id.flow).or_default();
        let position = queue.iter().position(|e| (e.direction, e.number) == (id.direction, id.number));
        let want = position.map(|at| build(queue[at], &self.laws.addresses).bytes);
        if want.as_deref() != Some(bytes) && !self.laws.intact {
            return true;
        }
        match (position, want) {
            (Some(_), Some(want)) if want != bytes => {
                let at = want.iter().zip(bytes).position(|(a, b)| a != b).unwrap_or(want.len().min(bytes.len()));
                self.note(format!("{id:?} arrived altered: {} bytes, byte {at} differs", bytes.len()));
            }
            (Some(at), _) => {
                queue.drain(..=at);
                self.pending -= at + 1;
                self.arrived += 1;
                if at > 0 && self.laws.lossless {
                    self.note(format!("{id:?} arrived before {at} of its flow that were sent earlier"));
                }
            }
            (None, _) => self.note(format!("{id:?} arrived again, or late")),
        }
        true
    }

    /// Forgets what has not arrived: lost, for a link that loses.
    pub(super) fn give_up(&mut self) {
        if self.pending > 0 && self.laws.lossless {
            let missing: Vec<_> = self.expected.values().filter_map(VecDeque::front).collect();
            let first = missing.iter().min_by_key(|id| id.number);
            self.note(format!("{} frames did not arrive; the first is {first:?}", self.pending));
        }
        self.expected.clear();
        self.pending = 0;
    }

    fn note(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The receiver's check: the sum over pseudo-header and transport, checksum included, is all ones.
    fn verifies(built: &Built) -> bool {
        let mut sum = InternetSum::default();
        sum.add(&built.bytes[built.start..]);
        sum.add_word(built.pseudo);
        sum.folded() == 0xffff
    }

    #[test]
    fn every_flow_and_length_is_a_packet_that_verifies_and_names_itself() {
        let addresses = Laws::default().addresses;
        for direction in [Direction::Rx, Direction::Tx] {
            for flow in 0..FLOWS {
                for len in (SHORTEST..SHORTEST + 8).chain([1514, 3840, 3841, LONGEST]) {
                    let id = Identity { direction, flow, number: 77, len };
                    let built = build(id, &addresses);
                    assert_eq!((built.bytes.len(), claimed(&built.bytes)), (len, Some(id)));
                    assert!(verifies(&built), "{id:?}");
                }
            }
        }
    }

    #[test]
    fn the_first_ipv4_udp_frame_has_the_checksum_worked_out_by_hand() {
        // 4500 0050 0000 4000 4011 + c612 0001 c612 0002 = 0x0000..: the header's words, added on paper.
        let id = Identity { direction: Direction::Rx, flow: 0, number: 0, len: 94 };
        let built = build(id, &Laws::default().addresses);
        let words: u32 = [0x4500u32, 80, 0, 0x4000, 0x4011, 0xc612, 2, 0xc612, 1].iter().sum();
        let folded = !((words & 0xffff) + (words >> 16)) as u16;
        assert_eq!(built.bytes[24..26], folded.to_be_bytes());
    }

    #[test]
    fn the_ledger_tells_loss_reordering_repetition_and_alteration_apart() {
        let laws = Laws::default();
        let ids: Vec<_> =
            (0..3).map(|number| Identity { direction: Direction::Tx, flow: 1, number, len: 200 }).collect();
        let bytes: Vec<_> = ids.iter().map(|&id| build(id, &laws.addresses).bytes).collect();
        let arrive = |laws: Laws, order: &[usize], flip: Option<usize>| {
            let mut ledger = Ledger::new(laws);
            ids.iter().for_each(|&id| ledger.expect(id));
            for &n in order {
                let mut frame = bytes[n].clone();
                flip.into_iter().for_each(|at| frame[at] ^= 4);
                ledger.take(&frame);
            }
            ledger.give_up();
            ledger.problem.unwrap_or_default()
        };
        assert_eq!(arrive(laws, &[0, 1, 2], None), "");
        assert!(arrive(laws, &[0, 1], None).contains("1 frames did not arrive"));
        assert!(arrive(laws, &[1, 0, 2], None).contains("arrived before 1"));
        assert!(arrive(laws, &[0, 0, 1, 2], None).contains("again, or late"));
        assert!(arrive(laws, &[0, 1, 2], Some(150)).contains("byte 150 differs"));
        let lossy = Laws { lossless: false, ..laws };
        assert_eq!(arrive(lossy, &[1], None), "");
        assert!(arrive(lossy, &[1, 0], None).contains("again, or late"));
        assert_eq!(arrive(Laws { intact: false, ..lossy }, &[0, 1, 2], Some(150)), "");
        assert!(arrive(laws, &[0], Some(62)).contains("nobody sent"));
    }
}
