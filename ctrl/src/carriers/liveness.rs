//! Who is up: from messages heard and their echoes, with damping for nodes that come and go.
//!
//! A peer that was never heard is expected for a while after our own start, then taken for dead. A peer that was down and
//! is heard again counts as a choice only after it has been heard without a break for a while, twice as long each time.
//! We are in touch with a peer if it has echoed something that we sent lately, so a way that works in one direction alone
//! does not count. Quorum: of three nodes or more that were ever in touch, we must be in touch with more than half, ourselves
//! included, or with just half and the first by name. Two nodes cannot tell whose fault a silence is: both go on.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Instant;

/// How fast things are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between two messages to a peer.
    pub interval: Duration,
    /// Without an echo for so long: out of touch. Shorter than `down`, so that whoever is cut off stops first.
    pub touch: Duration,
    /// Unheard for so long: down.
    pub down: Duration,
    /// A peer never heard is expected for so long.
    pub expect: Duration,
    /// First time that a peer which has come back must be heard without a break; doubles each time.
    pub damp: Duration,
    /// The longest such time.
    pub damp_most: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            interval: Duration::from_millis(100),
            touch: Duration::from_millis(500),
            down: Duration::from_millis(700),
            expect: Duration::from_secs(3),
            damp: Duration::from_secs(2),
            damp_most: Duration::from_secs(64),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Peer {
    /// When it was last heard; none: never, or it took its leave.
    heard: Option<Instant>,
    /// When what it echoes was sent.
    echoed: Option<Instant>,
    /// Was ever heard.
    known: bool,
    /// Since when it is heard without a break.
    steady: Instant,
    /// Times it came back.
    returns: u32,
    was_up: bool,
}

/// How a node stands among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In touch with most, ourselves included; or there is nobody else.
    Majority,
    /// Nobody can tell whose fault a silence is: one of two, or one that has heard nobody yet.
    Alone,
    /// Out of touch with most.
    CutOff,
}

/// What is known of every peer.
#[derive(Clone, Debug)]
pub struct Liveness {
    own: String,
    pace: Pace,
    started: Instant,
    peers: BTreeMap<String, Peer>,
    /// Since when we have a quorum; the first time counts from the start.
    quorum_since: Option<Instant>,
    losses: u32,
}

impl Liveness {
    /// Knows nobody yet.
    pub fn new(own: &str, pace: Pace, now: Instant) -> Self {
        let peers = BTreeMap::new();
        Liveness { own: own.to_owned(), pace, started: now, peers, quorum_since: Some(now), losses: 0 }
    }

    /// The nodes there are; what is known of those that stay is kept.
    pub fn expect(&mut self, names: impl IntoIterator<Item = String>) {
        let mut old = std::mem::take(&mut self.peers);
        for name in names.into_iter().filter(|name| *name != self.own) {
            let peer = old.remove(&name).unwrap_or_default();
            self.peers.insert(name, peer);
        }
    }

    /// A message of a peer has come; `echoes`: when we sent what it echoes.
    pub fn heard(&mut self, name: &str, now: Instant, echoes: Option<Instant>) {
        let (down, pace) = (!self.is_up(name, now), self.pace);
        let Some(peer) = self.peers.get_mut(name) else { return };
        if down {
            peer.steady = now;
            if peer.was_up {
                peer.returns += 1;
            }
        } else if now.saturating_sub(peer.steady) > 8 * pace.damp_most {
            peer.returns = 0;
        }
        peer.was_up = true;
        (peer.heard, peer.known) = (Some(now), true);
        peer.echoed = peer.echoed.max(echoes);
    }

    /// A peer takes its leave: it need not be waited for.
    pub fn left(&mut self, name: &str) {
        if let Some(peer) = self.peers.get_mut(name) {
            (peer.heard, peer.echoed, peer.known) = (None, None, true);
        }
    }

    /// Whether a peer is heard; one that was never heard is expected for a while.
    pub fn is_up(&self, name: &str, now: Instant) -> bool {
        if name == self.own {
            return true;
        }
        let Some(peer) = self.peers.get(name) else { return false };
        match peer.heard {
            Some(heard) => now.saturating_sub(heard) < self.pace.down,
            None => !peer.known && now.saturating_sub(self.started) < self.pace.expect,
        }
    }

    /// Whether a node may be given something new to carry: up, and not just back. Ourselves: with a quorum.
    pub fn is_choice(&self, name: &str, now: Instant) -> bool {
        if name == self.own {
            return self.quorum_since.is_some_and(|since| self.is_calm(self.losses, since, now));
        }
        let Some(peer) = self.peers.get(name) else { return false };
        self.is_up(name, now) && self.is_calm(peer.returns, peer.steady, now)
    }

    fn is_calm(&self, returns: u32, since: Instant, now: Instant) -> bool {
        let Some(doublings) = returns.checked_sub(1) else { return true };
        let wait = self.pace.damp.saturating_mul(1 << doublings.min(10)).min(self.pace.damp_most);
        now.saturating_sub(since) >= wait
    }

    /// Whether we may carry anything: not cut off from most others. To be asked often; it remembers when it was lost.
    pub fn has_quorum(&mut self, now: Instant) -> bool {
        let members: Vec<(&String, bool)> = self
            .peers
            .iter()
            .filter(|(_, p)| p.echoed.is_some())
            .map(|(name, p)| (name, self.in_touch(p, now)))
            .collect();
        let (all, touched) = (members.len() + 1, members.iter().filter(|(_, touch)| *touch).count() + 1);
        let first = members.iter().map(|(name, _)| name.as_str()).min();
        let first_is_ours = first.is_none_or(|first| {
            self.own.as_str() < first || members.iter().any(|(name, touch)| name.as_str() == first && *touch)
        });
        let has = all < 3 || 2 * touched > all || 2 * touched == all && first_is_ours;
        match (has, self.quorum_since) {
            (true, None) => self.quorum_since = Some(now),
            (false, Some(_)) => {
                self.quorum_since = None;
                self.losses += 1;
            }
            _ => {}
        }
        has
    }

    /// How we stand; to be asked often, as [`Liveness::has_quorum`].
    pub fn standing(&mut self, now: Instant) -> Standing {
        if !self.has_quorum(now) {
            return Standing::CutOff;
        }
        let echoed = self.peers.values().filter(|peer| peer.echoed.is_some());
        let (members, touched) =
            echoed.fold((0, 0), |(all, touched), peer| (all + 1, touched + usize::from(self.in_touch(peer, now))));
        match (members, touched) {
            (0, _) if self.peers.values().any(|peer| !peer.known) => Standing::Alone,
            (1, 0) => Standing::Alone,
            _ => Standing::Majority,
        }
    }

    /// Peers that were heard, and last heard so long ago: they may be down soon, or are since a moment.
    pub fn silent(&self, for_: std::ops::Range<Duration>, now: Instant) -> impl Iterator<Item = &str> {
        let silent = move |peer: &Peer| peer.heard.is_some_and(|heard| for_.contains(&now.saturating_sub(heard)));
        self.peers.iter().filter(move |(_, peer)| silent(peer)).map(|(name, _)| name.as_str())
    }

    fn in_touch(&self, peer: &Peer, now: Instant) -> bool {
        peer.echoed.is_some_and(|sent| now.saturating_sub(sent) < self.pace.touch)
    }

    /// Whether there is nobody left to wait for before we know who carries what.
    pub fn is_settled(&self, now: Instant) -> bool {
        self.peers.values().all(|peer| peer.known) || now.saturating_sub(self.started) >= self.pace.touch
    }

    /// Peers that are down now.
    pub fn down(&self, now: Instant) -> impl Iterator<Item = &str> {
        self.peers.keys().map(String::as_str).filter(move |name| !self.is_up(name, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn among(names: &[&str]) -> Liveness {
        let mut liveness = Liveness::new("b", Pace::default(), MS(0));
        liveness.expect(names.iter().map(|n| (*n).to_owned()));
        liveness
    }

    /// Hears `names` every 100 ms from `from` to `to`; each echoes what was just sent.
    fn hear(liveness: &mut Liveness, names: &[&str], from: u64, to: u64) {
        for at in (from..=to).step_by(100) {
            names.iter().for_each(|name| liveness.heard(name, MS(at), Some(MS(at))));
            liveness.has_quorum(MS(at));
        }
    }

    #[test]
    fn a_silent_peer_is_down_in_well_under_a_second() {
        let mut liveness = among(&["a", "b"]);
        hear(&mut liveness, &["a"], 0, 5000);
        assert!(liveness.is_up("a", MS(5600)) && !liveness.is_up("a", MS(5700)));
        assert_eq!(liveness.down(MS(5700)).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn whoever_takes_its_leave_is_down_at_once() {
        let mut liveness = among(&["a", "b"]);
        hear(&mut liveness, &["a"], 0, 500);
        liveness.left("a");
        assert!(!liveness.is_up("a", MS(501)));
    }

    #[test]
    fn a_peer_never_heard_is_expected_for_a_while() {
        let liveness = among(&["a", "b"]);
        assert!(liveness.is_up("a", MS(2900)) && !liveness.is_up("a", MS(3000)));
        assert!(!liveness.is_up("stranger", MS(0)));
    }

    #[test]
    fn a_peer_that_comes_and_goes_is_no_choice_for_longer_each_time() {
        let mut liveness = among(&["a", "b"]);
        hear(&mut liveness, &["a"], 0, 1000);
        assert!(liveness.is_choice("a", MS(1000)), "the first time counts at once");
        let mut at = 1000;
        for wait in [2000, 4000, 8000] {
            at += 5000;
            hear(&mut liveness, &["a"], at, at + wait);
            assert!(!liveness.is_choice("a", MS(at + wait - 100)) && liveness.is_choice("a", MS(at + wait)), "{wait}");
            at += wait;
        }
    }

    #[test]
    fn the_smaller_side_of_a_parting_stops_before_the_larger_one_takes_over() {
        let mut liveness = among(&["a", "b", "c"]);
        hear(&mut liveness, &["a", "c"], 0, 1000);
        assert!(liveness.has_quorum(MS(1400)));
        assert!(!liveness.has_quorum(MS(1500)), "out of touch after 500 ms, down after 700");
        assert!(liveness.is_up("a", MS(1500)));
        hear(&mut liveness, &["a"], 1600, 1600);
        assert!(liveness.has_quorum(MS(1600)), "two of three are enough");
        assert!(!liveness.is_choice("b", MS(1600)), "and it waits before it takes something new");
    }

    #[test]
    fn hearing_without_being_heard_is_no_touch() {
        let mut liveness = among(&["a", "b", "c"]);
        for at in (0..3000).step_by(100) {
            ["a", "c"].iter().for_each(|name| liveness.heard(name, MS(at), Some(MS(0))));
        }
        assert!(liveness.is_up("a", MS(2900)) && !liveness.has_quorum(MS(2900)));
    }

    #[test]
    fn of_two_each_goes_on_and_of_four_only_one_half() {
        let mut two = among(&["a", "b"]);
        hear(&mut two, &["a"], 0, 100);
        assert!(two.has_quorum(MS(9000)));
        for (near, expected) in [(["a"], true), (["c"], false)] {
            let mut four = among(&["a", "b", "c", "d"]);
            hear(&mut four, &["a", "c", "d"], 0, 1000);
            hear(&mut four, &near, 1100, 3000);
            assert_eq!(four.has_quorum(MS(3000)), expected, "{near:?}");
        }
    }

    #[test]
    fn whoever_has_left_does_not_count_for_the_quorum() {
        let mut liveness = among(&["a", "b", "c"]);
        hear(&mut liveness, &["a", "c"], 0, 1000);
        liveness.left("a");
        liveness.left("c");
        assert!(liveness.has_quorum(MS(9000)));
    }

    #[test]
    fn one_of_two_is_alone_when_it_is_out_of_touch_and_so_is_whoever_has_heard_nobody() {
        let mut two = among(&["a", "b"]);
        assert_eq!(two.standing(MS(100)), Standing::Alone, "a was not heard yet");
        hear(&mut two, &["a"], 100, 1000);
        assert_eq!(two.standing(MS(1400)), Standing::Majority);
        assert_eq!(two.standing(MS(1500)), Standing::Alone);
        assert_eq!(two.silent(MS(300)..MS(5000), MS(1300)).collect::<Vec<_>>(), ["a"]);
        two.left("a");
        assert_eq!(two.standing(MS(1600)), Standing::Majority, "whoever has left is not missed");
        let mut three = among(&["a", "b", "c"]);
        hear(&mut three, &["a", "c"], 0, 1000);
        assert_eq!(three.standing(MS(1500)), Standing::CutOff);
        assert_eq!(among(&["b"]).standing(MS(0)), Standing::Majority, "there is nobody else");
    }

    proptest! {
        /// Any parting of nodes into two sides: at most one side keeps its quorum, of three nodes or more.
        #[test]
        fn no_parting_leaves_two_quorums(n in 3..8usize, sides in any::<u8>()) {
            let names: Vec<String> = (0..n).map(|i| format!("n{i}")).collect();
            let mut quorums = [false, false];
            for (i, own) in names.iter().enumerate() {
                let mut liveness = Liveness::new(own, Pace::default(), MS(0));
                liveness.expect(names.iter().cloned());
                for other in &names {
                    liveness.heard(other, MS(100), Some(MS(100)));
                }
                let side = sides >> i & 1;
                for (j, other) in names.iter().enumerate() {
                    if sides >> j & 1 == side {
                        liveness.heard(other, MS(5000), Some(MS(5000)));
                    }
                }
                quorums[usize::from(side)] |= liveness.has_quorum(MS(5000));
            }
            prop_assert!(quorums != [true, true]);
        }
    }
}
