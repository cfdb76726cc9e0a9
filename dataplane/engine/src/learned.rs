//! What pods were told in DNS answers: addresses of the domain names that their rules speak of.
//!
//! Owner: one worker, for the pods it owns; a pod's questions, answers and new flows all pass this worker, so that an address
//! is known before the answer reaches the pod. Invariants: fixed room, reserved at start; at most [`PER_POD`] addresses of a
//! pod; only answers to a question that the pod has asked on the same flow within [`ASKED_FOR`] are learned, each once.
//! Times are nanoseconds of the worker's clock.
//! Cost: one or two hash look-ups per question, answer or first packet of a pod with such rules.

use hashbrown::HashMap;
use hashbrown::hash_map::Entry as Place;
use sluice_tables::stable_hash::mix;
use sluice_tables::{Address, DomainId};
use std::hash::BuildHasher;

/// Addresses of all pods of a worker.
const ROOM: usize = 32_768;
/// Addresses of one pod.
pub const PER_POD: u32 = 2_048;
/// Names that one address may have for one pod.
const NAMES: usize = 8;
/// Pods that are counted.
const PODS: usize = 4_096;
/// Questions without an answer.
const ASKED: usize = 4_096;
/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;
/// How long an answer is waited for.
const ASKED_FOR: u64 = 10 * SECOND;
/// Shortest and longest life of an address, whatever its answer says.
pub const LEAST: u64 = 30 * SECOND;
const MOST: u64 = 7 * 86_400 * SECOND;
/// How long an address outlives the last look at a flow to it; more than a sweep over all flows takes.
const HELD: u64 = 600 * SECOND;
/// Between two looks for what has ended.
const TIDY: u64 = 10 * SECOND;

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    names: [(u64, u64); NAMES],
    held: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    zone: u16,
    port: u16,
    id: u16,
    kind: u16,
    name: u64,
    at: u64,
}

/// One thing that was learned, for a file or a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lesson {
    /// Port number of the pod.
    pub zone: u16,
    /// The address.
    pub address: Address,
    /// The name.
    pub name: DomainId,
    /// Nanoseconds until new flows may no longer use it; 0: kept for flows alone.
    pub left: u64,
    /// Nanoseconds that flows keep it.
    pub held: u64,
}

/// What became of an address that was to be learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// New.
    Learned,
    /// Known before, now for longer.
    Renewed,
    /// No room.
    Full,
}

/// A worker's knowledge.
#[derive(Debug)]
pub struct Learned {
    known: HashMap<(u16, Address), Known>,
    of_pod: HashMap<u16, u32>,
    asked: Box<[Asked]>,
    tidied: u64,
}

impl Default for Learned {
    fn default() -> Self {
        Learned {
            known: HashMap::with_capacity(ROOM),
            of_pod: HashMap::with_capacity(PODS),
            asked: vec![Asked::default(); ASKED].into(),
            tidied: 0,
        }
    }
}

impl Learned {
    /// Without room, to stand in for one that is lent.
    pub(crate) fn nothing() -> Self {
        Learned { known: HashMap::new(), of_pod: HashMap::new(), asked: Box::new([]), tidied: 0 }
    }

    fn slot(&mut self, zone: u16, port: u16, id: u16) -> &mut Asked {
        let key = u64::from(zone) << 32 | u64::from(port) << 16 | u64::from(id);
        let at = mix(key) as usize % ASKED;
        &mut self.asked[at]
    }

    /// Notes a question: the pod, its port, and what it asks.
    pub fn ask(&mut self, zone: u16, port: u16, id: u16, kind: u16, name: &[u8], now: u64) {
        let name = self.known.hasher().hash_one(name);
        *self.slot(zone, port, id) = Asked { zone, port, id, kind, name, at: now.max(1) };
    }

    /// Whether an answer belongs to a question of the pod; the question is used up.
    pub fn is_answer(&mut self, zone: u16, port: u16, id: u16, kind: u16, name: &[u8], now: u64) -> bool {
        let name = self.known.hasher().hash_one(name);
        let asked = self.slot(zone, port, id);
        let same = asked.at != 0
            && (asked.zone, asked.port, asked.id, asked.kind, asked.name) == (zone, port, id, kind, name)
            && now.saturating_sub(asked.at) <= ASKED_FOR;
        if same {
            asked.at = 0;
        }
        same
    }

    /// Learns an address of a name for `ttl` seconds.
    pub fn learn(&mut self, zone: u16, address: Address, name: DomainId, ttl: u32, now: u64) -> Outcome {
        let life = (u64::from(ttl) * SECOND).clamp(LEAST, MOST);
        self.keep(zone, address, name, now + life, 0, now)
    }

    fn keep(&mut self, zone: u16, address: Address, name: DomainId, until: u64, held: u64, now: u64) -> Outcome {
        let full = self.known.len() >= ROOM || self.of_pod.get(&zone).copied().unwrap_or(0) >= PER_POD;
        let uncounted = self.of_pod.len() >= PODS && !self.of_pod.contains_key(&zone);
        let known = match self.known.entry((zone, address)) {
            Place::Occupied(place) => place.into_mut(),
            Place::Vacant(_) if full || uncounted => return Outcome::Full,
            Place::Vacant(place) => {
                *self.of_pod.entry(zone).or_insert(0) += 1;
                place.insert(Known::default())
            }
        };
        known.held = known.held.max(held);
        if let Some((_, end)) = known.names.iter_mut().find(|(id, end)| *id == name.0 && *end != 0) {
            *end = (*end).max(until);
            return Outcome::Renewed;
        }
        let over = |end: u64| end == 0 || end <= now;
        match known.names.iter_mut().find(|(_, end)| over(*end)) {
            Some(place) => {
                *place = (name.0, until);
                Outcome::Learned
            }
            None => Outcome::Full,
        }
    }

    /// Whether an address belongs to any of these names, for a new flow or (`of_flow`) one that it was learned for before.
    pub fn knows(&self, zone: u16, address: Address, names: &[DomainId], of_flow: bool, now: u64) -> bool {
        if self.known.is_empty() {
            return false;
        }
        let Some(known) = self.known.get(&(zone, address)) else { return false };
        let usable = |end: u64| end > now || of_flow && end != 0;
        known.names.iter().any(|(id, end)| usable(*end) && names.binary_search(&DomainId(*id)).is_ok())
    }

    /// A flow to this address lives: it is kept for the flow.
    pub fn hold(&mut self, zone: u16, address: Address, now: u64) {
        if let Some(known) = self.known.get_mut(&(zone, address)) {
            known.held = now + HELD;
        }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Number of addresses.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Forgets what has ended, now and then.
    pub fn tidy(&mut self, now: u64) {
        if self.known.is_empty() || now.saturating_sub(self.tidied) < TIDY {
            return;
        }
        self.tidied = now;
        self.retain(|_, known| known.held > now || known.names.iter().any(|(_, end)| *end > now));
    }

    /// Forgets everything of pods that are not `here`.
    pub fn forget(&mut self, here: impl Fn(u16) -> bool) {
        if !self.known.is_empty() && self.of_pod.keys().any(|zone| !here(*zone)) {
            self.retain(|zone, _| here(zone));
        }
    }

    fn retain(&mut self, stays: impl Fn(u16, &Known) -> bool) {
        let of_pod = &mut self.of_pod;
        self.known.retain(|(zone, _), known| {
            let stays = stays(*zone, known);
            if !stays && let Some(count) = of_pod.get_mut(zone) {
                *count = count.saturating_sub(1);
            }
            stays
        });
        of_pod.retain(|_, count| *count > 0);
    }

    /// Everything, for control.
    pub fn lessons(&self, now: u64) -> Vec<Lesson> {
        let each = self.known.iter().flat_map(|((zone, address), known)| {
            let names = known.names.iter().filter(|(_, end)| *end != 0);
            names.map(|(id, end)| Lesson {
                zone: *zone,
                address: *address,
                name: DomainId(*id),
                left: end.saturating_sub(now),
                held: known.held.saturating_sub(now),
            })
        });
        each.filter(|lesson| lesson.left > 0 || lesson.held > 0).collect()
    }

    /// Takes up what another process has learned.
    pub fn take_up(&mut self, lessons: &[Lesson], now: u64) {
        for l in lessons {
            // A name that is over stays for flows: its end lies in the past and is not zero.
            self.keep(l.zone, l.address, l.name, (now + l.left).max(1), now + l.held, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: DomainId = DomainId(5);
    const THERE: Address = Address::v4([192, 0, 2, 1]);

    fn knows(learned: &Learned, zone: u16, of_flow: bool, now: u64) -> bool {
        learned.knows(zone, THERE, &[DomainId(1), NAME], of_flow, now * SECOND)
    }

    #[test]
    fn an_address_lives_for_its_time_with_a_floor_and_for_its_own_pod() {
        let mut learned = Learned::default();
        assert_eq!(learned.learn(7, THERE, NAME, 0, SECOND), Outcome::Learned);
        assert!(knows(&learned, 7, false, 30) && !knows(&learned, 7, false, 31) && !knows(&learned, 8, false, 2));
        assert_eq!(learned.learn(7, THERE, NAME, 100, SECOND), Outcome::Renewed);
        assert!(knows(&learned, 7, false, 100) && !knows(&learned, 7, false, 102));
        assert!(!learned.knows(7, THERE, &[DomainId(9)], false, 2 * SECOND));
    }

    #[test]
    fn a_flow_keeps_its_address_and_nobody_else_may_use_it() {
        let mut learned = Learned::default();
        learned.learn(7, THERE, NAME, 0, SECOND);
        learned.hold(7, THERE, 20 * SECOND);
        learned.tidy(300 * SECOND);
        assert!(knows(&learned, 7, true, 300) && !knows(&learned, 7, false, 300));
        learned.tidy(700 * SECOND);
        assert!(!knows(&learned, 7, true, 700) && learned.is_empty() && learned.of_pod.is_empty());
    }

    #[test]
    fn only_the_answer_to_a_question_counts_and_only_once_and_in_time() {
        let mut learned = Learned::default();
        let name = b"\x01a\x00";
        learned.ask(7, 40_000, 1, 1, name, SECOND);
        assert!(!learned.is_answer(7, 40_000, 2, 1, name, SECOND), "another number");
        assert!(!learned.is_answer(7, 40_000, 1, 28, name, SECOND), "another type");
        assert!(!learned.is_answer(7, 40_000, 1, 1, b"\x01b\x00", SECOND), "another name");
        assert!(!learned.is_answer(8, 40_000, 1, 1, name, SECOND), "another pod");
        assert!(learned.is_answer(7, 40_000, 1, 1, name, SECOND));
        assert!(!learned.is_answer(7, 40_000, 1, 1, name, SECOND), "used up");
        learned.ask(7, 40_000, 1, 1, name, SECOND);
        assert!(!learned.is_answer(7, 40_000, 1, 1, name, 12 * SECOND), "too late");
    }

    #[test]
    fn one_pod_cannot_fill_the_room_of_others() {
        let mut learned = Learned::default();
        let address = |n: u32| Address::v4(n.to_be_bytes());
        for n in 0..PER_POD {
            assert_eq!(learned.learn(7, address(n), NAME, 60, 0), Outcome::Learned);
        }
        assert_eq!(learned.learn(7, address(PER_POD), NAME, 60, 0), Outcome::Full);
        assert_eq!(learned.learn(8, address(PER_POD), NAME, 60, 0), Outcome::Learned);
        for n in 1..NAMES as u64 {
            assert_eq!(learned.learn(7, address(0), DomainId(100 + n), 60, 0), Outcome::Learned);
        }
        assert_eq!(learned.learn(7, address(0), DomainId(99), 60, 0), Outcome::Full, "names of one address");
        learned.forget(|zone| zone != 7);
        assert_eq!(learned.len(), 1);
    }

    #[test]
    fn lessons_are_taken_up_with_the_time_they_have_left() {
        let mut old = Learned::default();
        old.learn(7, THERE, NAME, 100, 0);
        old.hold(7, THERE, 10 * SECOND);
        let lessons = old.lessons(60 * SECOND);
        let mut new = Learned::default();
        new.take_up(&lessons, 5 * SECOND);
        assert!(knows(&new, 7, false, 44) && !knows(&new, 7, false, 46) && knows(&new, 7, true, 46));
        let late = old.lessons(200 * SECOND);
        let mut later = Learned::default();
        later.take_up(&late, 5 * SECOND);
        assert!(knows(&later, 7, true, 5) && !knows(&later, 7, false, 6));
    }
}
