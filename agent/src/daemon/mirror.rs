//! Mappings of egress flows, told to the node that would take an address over: so that connections outlive their gateway.
//!
//! Owner: the liveness thread, on its socket. Told are beginnings and ends, at once, and everything again in a round every
//! 20 seconds, which mends what was lost; when another node becomes the next in line it is told everything without delay.
//! A mapping that is not told again for two minutes is forgotten.
//!
//! ```text
//! "SLM1"  ( lives 1, family 1, protocol 1, port 2, source port 2, destination port 2, three addresses 4 or 16 each )*
//! ```

use sluice_engine::nat::Mapping;
use sluice_tables::Address;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::Duration;

const MAGIC: &[u8; 4] = b"SLM1";
/// Longest datagram: fits every overlay.
const MOST: usize = 1200;
/// Ticks of 100 ms in which everything is told once.
const ROUND: usize = 200;
/// Mappings told in one tick, besides beginnings and ends.
const PACE: usize = 600;
/// Mappings kept for each side.
const ROOM: usize = 262_144;
const FORGET: Duration = Duration::from_secs(120);

/// Ours to tell, and others' to keep.
#[derive(Debug, Default)]
pub struct Mirror {
    ours: BTreeSet<Mapping>,
    cursor: Option<Mapping>,
    fresh: VecDeque<(Mapping, bool)>,
    kept: BTreeMap<Mapping, Duration>,
    swept: Duration,
}

impl Mirror {
    /// A flow of ours has begun or ended.
    pub fn note(&mut self, mapping: Mapping, lives: bool) {
        if lives {
            if self.ours.len() < ROOM {
                self.ours.insert(mapping);
            }
        } else {
            self.ours.remove(&mapping);
        }
        self.fresh.push_back((mapping, lives));
    }

    /// Another node is the next in line for an address: it is told everything.
    pub fn tell_all(&mut self, address: IpAddr) {
        let address = Address::from(address);
        self.fresh.extend(self.ours.iter().filter(|m| m.address == address).map(|m| (*m, true)));
    }

    /// An address has gone.
    pub fn lose(&mut self, address: IpAddr) {
        let address = Address::from(address);
        self.ours.retain(|mapping| mapping.address != address);
        self.fresh.retain(|(mapping, _)| mapping.address != address);
    }

    /// An address has come: what is known of its flows.
    pub fn inherit(&mut self, address: IpAddr) -> Vec<Mapping> {
        let address = Address::from(address);
        let mut heirs = Vec::new();
        self.kept.retain(|mapping, _| {
            let ours = mapping.address == address;
            if ours {
                heirs.push(*mapping);
            }
            !ours
        });
        heirs
    }

    /// What it is time to tell, by whom it is for. `round`: a tick's share of everything is told again too.
    pub fn due(&mut self, next: impl Fn(IpAddr) -> Option<String>, round: bool) -> BTreeMap<String, Vec<Vec<u8>>> {
        let mut lines: Vec<(Mapping, bool)> = Vec::new();
        let fresh = self.fresh.len().min(PACE);
        lines.extend(self.fresh.drain(..fresh));
        if round {
            let share = (self.ours.len() / ROUND + 1).min(PACE);
            let from = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
            let again: Vec<Mapping> = self.ours.range((from, Bound::Unbounded)).take(share).copied().collect();
            self.cursor = again.last().copied().filter(|_| again.len() == share);
            lines.extend(again.into_iter().map(|mapping| (mapping, true)));
        }
        let mut datagrams: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for (mapping, lives) in lines {
            let Some(node) = next(mapping.address.into()) else { continue };
            let list = datagrams.entry(node).or_default();
            let line = write(&mapping, lives);
            match list.last_mut() {
                Some(last) if last.len() + line.len() <= MOST => last.extend(line),
                _ => list.push([MAGIC.as_slice(), &line].concat()),
            }
        }
        datagrams
    }

    /// A datagram of another node; `false`: it is none of these.
    pub fn heard(&mut self, bytes: &[u8], now: Duration) -> bool {
        let Some(mut rest) = bytes.strip_prefix(MAGIC) else { return false };
        while let Some((mapping, lives)) = read(&mut rest) {
            if !lives {
                self.kept.remove(&mapping);
            } else if self.kept.len() < ROOM || self.kept.contains_key(&mapping) {
                self.kept.insert(mapping, now);
            }
        }
        if now.saturating_sub(self.swept) > FORGET / 4 {
            self.swept = now;
            self.kept.retain(|_, told| now.saturating_sub(*told) < FORGET);
        }
        true
    }
}

fn write(m: &Mapping, lives: bool) -> Vec<u8> {
    let v4 = m.address.is_v4();
    let mut out = vec![u8::from(lives), if v4 { 4 } else { 6 }, m.protocol];
    for port in [m.port, m.source_port, m.destination_port] {
        out.extend(port.to_be_bytes());
    }
    for address in [m.address, m.source, m.destination] {
        match v4 {
            true => out.extend(address.last4()),
            false => out.extend(address.0),
        }
    }
    out
}

fn read(rest: &mut &[u8]) -> Option<(Mapping, bool)> {
    fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
        let (head, tail) = rest.split_first_chunk::<N>()?;
        *rest = tail;
        Some(*head)
    }
    let [lives, family, protocol] = take(rest)?;
    let mut port = || Some(u16::from_be_bytes(take(rest)?));
    let (port, source_port, destination_port) = (port()?, port()?, port()?);
    let mut address = || match family {
        4 => Some(Address::v4(take(rest)?)),
        6 => Some(Address::v6(take(rest)?)),
        _ => None,
    };
    let (address, source, destination) = (address()?, address()?, address()?);
    let mapping = Mapping { address, port, protocol, source, source_port, destination, destination_port };
    Some((mapping, lives == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn mapping(n: u16, v6: bool) -> Mapping {
        let at = |last: u8| match v6 {
            false => Address::v4([192, 0, 2, last]),
            true => Address::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]),
        };
        Mapping {
            address: at(50),
            port: 2000 + n,
            protocol: 6,
            source: at(1),
            source_port: 30_000 + n,
            destination: at(9),
            destination_port: 443,
        }
    }

    fn address(v6: bool) -> IpAddr {
        mapping(0, v6).address.into()
    }

    /// Carries everything due from one node to another; returns the number of datagrams.
    fn carry(from: &mut Mirror, to: &mut Mirror, at: Duration, round: bool) -> usize {
        let due = from.due(|_| Some("next".to_owned()), round);
        let datagrams = due.get("next").cloned().unwrap_or_default();
        for datagram in &datagrams {
            assert!(datagram.len() <= MOST && to.heard(datagram, at));
        }
        datagrams.len()
    }

    #[test]
    fn what_begins_is_inherited_and_what_ends_is_not() {
        for v6 in [false, true] {
            let (mut primary, mut standby) = (Mirror::default(), Mirror::default());
            (0..300).for_each(|n| primary.note(mapping(n, v6), true));
            primary.note(mapping(7, v6), false);
            assert!(carry(&mut primary, &mut standby, MS(1), false) > 1, "more than one datagram holds");
            let heirs = standby.inherit(address(v6));
            assert_eq!(heirs.len(), 299);
            assert!(!heirs.contains(&mapping(7, v6)) && heirs.contains(&mapping(8, v6)));
            assert!(standby.inherit(address(v6)).is_empty(), "once");
        }
    }

    #[test]
    fn a_round_mends_what_was_lost_and_silence_is_forgotten() {
        let (mut primary, mut standby) = (Mirror::default(), Mirror::default());
        (0..50).for_each(|n| primary.note(mapping(n, false), true));
        let _lost = primary.due(|_| Some("next".to_owned()), false);
        for tick in 0..60 {
            carry(&mut primary, &mut standby, MS(tick * 100), true);
        }
        assert_eq!(standby.kept.len(), 50);
        assert!(standby.heard(MAGIC, Duration::from_secs(200)));
        assert!(standby.kept.is_empty());
    }

    #[test]
    fn the_next_in_line_is_told_everything_and_a_lost_address_nothing() {
        let (mut primary, mut other) = (Mirror::default(), Mirror::default());
        (0..50).for_each(|n| primary.note(mapping(n, false), true));
        let _to_the_first = primary.due(|_| Some("first".to_owned()), false);
        primary.tell_all(address(false));
        carry(&mut primary, &mut other, MS(1), false);
        assert_eq!(other.kept.len(), 50);
        primary.lose(address(false));
        assert_eq!(carry(&mut primary, &mut other, MS(2), true), 0);
    }

    #[test]
    fn a_broken_datagram_does_no_harm() {
        let mut mirror = Mirror::default();
        let mut bytes = [MAGIC.as_slice(), &write(&mapping(1, true), true)].concat();
        bytes.truncate(bytes.len() - 3);
        assert!(mirror.heard(&bytes, MS(1)) && mirror.kept.is_empty());
        assert!(!mirror.heard(b"SLG1", MS(1)));
    }
}
