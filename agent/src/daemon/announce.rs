//! Tells the segment that addresses have come to this node, unasked: gratuitous ARP (RFC 5227 §3) and unsolicited neighbour
//! advertisements (RFC 4861 §7.2.6).
//!
//! Owner: the control thread; a worker sends the frames. Several times, for one may be lost and Linux ignores a second change
//! within a second; then every half minute, for switches that forget.

use sluice_wire::Mac;
use sluice_wire::reply::{arp_announcement, unsolicited_neighbor_advertisement};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// After an address has come.
const BURST: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(500), Duration::from_millis(1500)];
/// From then on.
const PERIOD: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
struct Due {
    came: Instant,
    told: usize,
}

impl Due {
    fn at(&self) -> Instant {
        match BURST.get(self.told) {
            Some(after) => self.came + *after,
            None => self.came + BURST[BURST.len() - 1] + PERIOD * (self.told - BURST.len() + 1) as u32,
        }
    }
}

/// Addresses that are announced from here.
#[derive(Debug, Default)]
pub struct Announcer {
    due: BTreeMap<IpAddr, Due>,
}

impl Announcer {
    /// These addresses are ours now; gives back what has come and what has gone.
    pub fn set(&mut self, ours: &BTreeSet<IpAddr>, now: Instant) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let gone: Vec<IpAddr> = self.due.keys().copied().filter(|a| !ours.contains(a)).collect();
        self.due.retain(|address, _| ours.contains(address));
        let come: Vec<IpAddr> = ours.iter().copied().filter(|a| !self.due.contains_key(a)).collect();
        self.due.extend(come.iter().map(|address| (*address, Due { came: now, told: 0 })));
        (come, gone)
    }

    /// Addresses that it is time to tell of.
    pub fn take_due(&mut self, now: Instant) -> Vec<IpAddr> {
        let mut due = Vec::new();
        for (address, state) in &mut self.due {
            if state.at() <= now {
                state.told += 1;
                due.push(*address);
            }
        }
        due
    }
}

/// The frame that tells of an address.
pub fn frame(address: IpAddr, mac: [u8; 6]) -> Option<Vec<u8>> {
    let mut room = [0u8; 128];
    let length = match address {
        IpAddr::V4(address) => arp_announcement(Mac(mac), address, &mut room),
        IpAddr::V6(address) => unsolicited_neighbor_advertisement(Mac(mac), address, false, &mut room),
    }?;
    Some(room[..length].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_came_is_told_of_in_a_burst_and_then_now_and_again() {
        let (start, address) = (Instant::now(), IpAddr::from([192, 0, 2, 50]));
        let mut announcer = Announcer::default();
        assert_eq!(announcer.set(&[address].into(), start), (vec![address], vec![]));
        let times = (0..62_000u64).step_by(100);
        let told: Vec<u64> =
            times.filter(|ms| !announcer.take_due(start + Duration::from_millis(*ms)).is_empty()).collect();
        assert_eq!(told, [0, 100, 500, 1500, 31_500, 61_500]);
        assert_eq!(announcer.set(&[address].into(), start), (vec![], vec![]), "nothing has come");
        assert_eq!(announcer.set(&[].into(), start), (vec![], vec![address]));
        assert!(announcer.take_due(start + PERIOD * 9).is_empty());
    }

    #[test]
    fn both_families_have_their_frame() {
        let mac = [2, 0, 192, 0, 2, 11];
        let arp = frame("192.0.2.50".parse().unwrap(), mac).unwrap();
        assert_eq!((&arp[..6], &arp[12..14]), (&[0xff; 6][..], &[0x08, 0x06][..]));
        assert_eq!(arp[28..32], arp[38..42], "sender and target are the address");
        let na = frame("2001:db8::50".parse().unwrap(), mac).unwrap();
        assert_eq!((na[54], na[58] & 0x60), (136, 0x20), "an advertisement that overrides and answers nobody");
    }
}
