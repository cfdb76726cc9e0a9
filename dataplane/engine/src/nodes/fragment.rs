//! Fragments follow their first: it carries the ports, the rest is sent the same way; those that come early wait.
//!
//! Source: RFC 791 §3.2, RFC 8200 §4.5, RFC 5722 (overlaps). Bounds: 1,024 held fragments a node, 30 s each, 64 ranges a
//! datagram.

use crate::item::{Item, Role};
use hashbrown::HashMap;
use sluice_tables::Address;
use sluice_wire::packet::FragmentInfo;

/// Fragments a node holds.
pub const HELD_LIMIT: u32 = 1024;
/// Nanoseconds a datagram's fragments may take to arrive.
pub const TIMEOUT: u64 = 30_000_000_000;
/// Datagrams remembered at a time by one worker.
const DATAGRAMS: usize = 4096;
/// Ranges remembered of one datagram.
const RANGES: usize = 64;

/// What makes fragments one datagram, in one half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DatagramKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Identification.
    pub id: u32,
    /// Protocol.
    pub protocol: u8,
    /// Half's role.
    pub role: u8,
    /// Half's zone.
    pub zone: u16,
}

#[derive(Debug)]
struct Datagram {
    ports: Option<([u8; 2], [u8; 2])>,
    ranges: Vec<(u32, u32)>,
    deadline: u64,
}

/// What to do with a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The ports are known: go on.
    Pass([u8; 2], [u8; 2]),
    /// Its first has not come.
    Wait,
    /// It covers bytes another fragment has brought.
    Overlap,
    /// Too many datagrams or ranges at a time.
    Limit,
}

/// One worker's datagrams and waiting fragments.
#[derive(Debug, Default)]
pub struct Fragments {
    datagrams: HashMap<DatagramKey, Datagram>,
    held: Vec<(u64, Item)>,
}

impl Fragments {
    /// Notes a fragment; `ports` are those of a first fragment.
    pub fn note(&mut self, key: DatagramKey, info: FragmentInfo, ports: Option<([u8; 2], [u8; 2])>, now: u64) -> Step {
        if self.datagrams.get(&key).is_some_and(|d| d.deadline <= now) {
            self.datagrams.remove(&key);
        }
        if self.datagrams.len() >= DATAGRAMS && !self.datagrams.contains_key(&key) {
            return Step::Limit;
        }
        let datagram = self.datagrams.entry(key).or_insert_with(|| Datagram {
            ports: None,
            ranges: Vec::with_capacity(4),
            deadline: now + TIMEOUT,
        });
        let (from, to) = (info.offset, info.offset + info.len);
        if datagram.ranges.iter().any(|(a, b)| from < *b && to > *a) {
            return Step::Overlap;
        }
        if datagram.ranges.len() >= RANGES {
            return Step::Limit;
        }
        datagram.ranges.push((from, to));
        if ports.is_some() {
            datagram.ports = ports;
        }
        match datagram.ports {
            Some((source, destination)) => Step::Pass(source, destination),
            None => Step::Wait,
        }
    }

    /// Keeps a fragment until its first comes.
    pub fn hold(&mut self, item: Item) {
        let deadline = key_of(&item).and_then(|(key, _)| self.datagrams.get(&key)).map_or(0, |d| d.deadline);
        self.held.push((deadline, item));
    }

    /// Fragments waiting.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes everything that waits.
    pub fn let_go(&mut self) -> impl Iterator<Item = Item> + use<> {
        std::mem::take(&mut self.held).into_iter().map(|(_, item)| item)
    }

    /// Takes the waiting fragments of a datagram, in order of arrival.
    pub fn release(&mut self, key: &DatagramKey, out: &mut Vec<Item>) -> u32 {
        let before = out.len();
        if self.held.iter().any(|(_, item)| key_of(item).is_some_and(|(k, _)| k == *key)) {
            let mut rest = Vec::with_capacity(self.held.capacity());
            for (deadline, item) in self.held.drain(..) {
                if key_of(&item).is_some_and(|(k, _)| k == *key) { out.push(item) } else { rest.push((deadline, item)) }
            }
            self.held = rest;
        }
        (out.len() - before) as u32
    }

    /// Takes fragments that have waited too long, and forgets old datagrams.
    pub fn expire(&mut self, now: u64, out: &mut Vec<Item>) {
        if self.datagrams.is_empty() {
            return;
        }
        self.datagrams.retain(|_, d| d.deadline > now);
        let mut at = 0;
        while at < self.held.len() {
            if self.held[at].0 <= now { out.push(self.held.remove(at).1) } else { at += 1 }
        }
    }
}

/// Key and fragment fields of a fragment.
pub fn key_of(item: &Item) -> Option<(DatagramKey, FragmentInfo)> {
    let info = item.meta.packet.fragment_info(item.l3())?;
    let (source, destination) = super::classify::addresses(item)?;
    let role: Role = item.meta.role;
    let key = DatagramKey {
        source,
        destination,
        id: info.id,
        protocol: item.meta.packet.protocol,
        role: role as u8,
        zone: item.meta.zone,
    };
    Some((key, info))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> DatagramKey {
        let a = Address::v4([10, 0, 0, 1]);
        DatagramKey { source: a, destination: a, id: 7, protocol: 17, role: 0, zone: 3 }
    }

    fn info(offset: u32, len: u32) -> FragmentInfo {
        FragmentInfo { id: 7, offset, len, more: true }
    }

    #[test]
    fn a_later_fragment_waits_for_the_first_and_then_has_its_ports() {
        let mut f = Fragments::default();
        assert_eq!(f.note(key(), info(1480, 1480), None, 0), Step::Wait);
        let ports = Some(([1, 2], [3, 4]));
        assert_eq!(f.note(key(), info(0, 1480), ports, 1), Step::Pass([1, 2], [3, 4]));
        assert_eq!(f.note(key(), info(2960, 100), None, 2), Step::Pass([1, 2], [3, 4]));
    }

    #[test]
    fn an_overlapping_fragment_is_refused() {
        let mut f = Fragments::default();
        f.note(key(), info(0, 1480), Some(([1, 2], [3, 4])), 0);
        assert_eq!(f.note(key(), info(1472, 80), None, 0), Step::Overlap);
        assert_eq!(f.note(key(), info(0, 1480), Some(([1, 2], [3, 4])), 0), Step::Overlap);
    }

    #[test]
    fn a_datagram_is_forgotten_after_its_time() {
        let mut f = Fragments::default();
        f.note(key(), info(0, 1480), Some(([1, 2], [3, 4])), 0);
        assert_eq!(f.note(key(), info(1480, 80), None, TIMEOUT), Step::Wait);
    }
}
