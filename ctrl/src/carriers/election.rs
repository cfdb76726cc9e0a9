//! Who carries what now: whoever says that it does and is up; where nobody does, the best node that may.
//!
//! An address stays where it is as long as that node is up: a node that joins, or comes back, takes nothing away from
//! another (established flows rest on it). Where two nodes claim one address, the higher term wins, the better place in the
//! ranking where terms are equal; the other lets go at once. A node without a quorum carries nothing.
//! Nodes may differ on who has only just come back, and each then waits for another: an address that nobody has claimed for
//! a while goes to the best node that is up, calm or not.
//! Every node runs this, those that may carry nothing too: they learn where to send.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_tables::stable_hash::stable_hash;

use super::liveness::Liveness;
use super::message::{Claim, Message};
use super::{Instant, Placement};

/// Where one address is, and where it would go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// The node that carries it; none: nobody does.
    pub node: Option<String>,
    /// The node that would take it over.
    pub next: Option<String>,
}

/// Where every address is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// By address.
    pub carried: BTreeMap<IpAddr, Carried>,
    /// Peers that are down.
    pub down: BTreeSet<String>,
    /// We are cut off from most other nodes and carry nothing.
    pub cut_off: bool,
}

/// What a peer tells, put together from its parts.
#[derive(Clone, Debug, Default)]
struct Telling {
    version: u64,
    parts: BTreeMap<u16, Vec<Claim>>,
    whole: BTreeMap<IpAddr, u64>,
}

/// The election as one node sees it.
#[derive(Clone, Debug)]
pub struct Election {
    own: String,
    placement: Placement,
    unready: BTreeSet<String>,
    ours: BTreeMap<IpAddr, u64>,
    told: BTreeMap<String, Telling>,
    highest: BTreeMap<IpAddr, u64>,
    /// Since when nobody says that it carries an address.
    unclaimed: BTreeMap<IpAddr, Instant>,
}

impl Election {
    /// An address unclaimed for so long goes to the best node, calm or not: three messages were missed, so nobody thinks
    /// that it is his.
    const PATIENCE: std::time::Duration = std::time::Duration::from_millis(300);

    /// Carries nothing yet.
    pub fn new(own: &str) -> Self {
        Election {
            own: own.to_owned(),
            placement: Placement::default(),
            unready: BTreeSet::new(),
            ours: BTreeMap::new(),
            told: BTreeMap::new(),
            highest: BTreeMap::new(),
            unclaimed: BTreeMap::new(),
        }
    }

    /// The addresses there are and who may carry them, and nodes that the cluster says are not ready.
    pub fn place(&mut self, placement: Placement, unready: BTreeSet<String>) {
        self.highest.retain(|address, _| !placement.nodes(*address).is_empty());
        self.unclaimed.retain(|address, _| !placement.nodes(*address).is_empty());
        (self.placement, self.unready) = (placement, unready);
    }

    /// A peer has told what it carries, or a part of it.
    pub fn told(&mut self, peer: &str, message: &Message) {
        let telling = self.told.entry(peer.to_owned()).or_default();
        if message.leaving {
            *telling = Telling::default();
            return;
        }
        if telling.version != message.version {
            telling.version = message.version;
            telling.parts.clear();
        }
        telling.parts.insert(message.part.0, message.claims.clone());
        if telling.parts.len() == usize::from(message.part.1) {
            telling.whole = telling.parts.values().flatten().map(|claim| (claim.address, claim.term)).collect();
        }
        for claim in &message.claims {
            let highest = self.highest.entry(claim.address).or_default();
            *highest = claim.term.max(*highest);
        }
    }

    /// What we tell: everything we carry, in as many messages as it takes.
    pub fn tell(&self) -> Vec<Message> {
        let all: Vec<Claim> =
            self.ours.iter().map(|(address, term)| Claim { address: *address, term: *term }).collect();
        let version = stable_hash(&all);
        let parts = all.len().div_ceil(Message::CLAIMS).max(1) as u16;
        let message = |(part, claims): (u16, &[Claim])| Message {
            part: (part, parts),
            version,
            claims: claims.to_vec(),
            ..Message::default()
        };
        if all.is_empty() {
            return vec![message((0, &[]))];
        }
        (0..).zip(all.chunks(Message::CLAIMS)).map(message).collect()
    }

    /// Whether we carry an address.
    pub fn carries(&self, address: IpAddr) -> bool {
        self.ours.contains_key(&address)
    }

    /// Decides every address anew.
    pub fn decide(&mut self, liveness: &mut Liveness, now: Instant) -> Outcome {
        let quorum = liveness.has_quorum(now);
        let may_carry = quorum && liveness.is_settled(now);
        if !quorum {
            self.ours.clear();
        }
        let mut carried = BTreeMap::new();
        let placement = std::mem::take(&mut self.placement);
        self.ours.retain(|address, _| placement.nodes(*address).contains(&self.own));
        for (address, nodes) in placement.iter() {
            let claimant = self.claimant(address, nodes, liveness, now);
            let since = match claimant {
                Some(_) => self.unclaimed.remove(&address).unwrap_or(now),
                None => *self.unclaimed.entry(address).or_insert(now),
            };
            let patient = now.saturating_sub(since) < Self::PATIENCE;
            let choices: Vec<&str> = self.choices(nodes, liveness, now, may_carry, patient);
            let node = match claimant {
                Some(claimant) if self.unready.contains(claimant) => choices.first().copied().or(Some(claimant)),
                Some(claimant) => Some(claimant),
                None => choices.first().copied(),
            };
            let node = node.map(str::to_owned);
            if node.as_deref() == Some(self.own.as_str()) {
                let highest = self.highest.entry(address).or_default();
                let term = *self.ours.entry(address).or_insert_with(|| *highest + 1);
                *highest = term.max(*highest);
            } else {
                self.ours.remove(&address);
            }
            let next = choices.iter().copied().find(|n| Some(*n) != node.as_deref()).map(str::to_owned);
            carried.insert(address, Carried { node, next });
        }
        self.placement = placement;
        Outcome { carried, down: liveness.down(now).map(str::to_owned).collect(), cut_off: !quorum }
    }

    /// The node that says it carries an address and is right.
    fn claimant<'a>(&self, address: IpAddr, nodes: &'a [String], liveness: &Liveness, now: Instant) -> Option<&'a str> {
        let term = |node: &str| match node == self.own {
            true => self.ours.get(&address),
            false => self.told.get(node).and_then(|t| t.whole.get(&address)),
        };
        let claims = nodes.iter().enumerate().filter_map(|(rank, node)| Some((*term(node)?, rank, node.as_str())));
        let alive = claims.filter(|(.., node)| *node == self.own || liveness.is_up(node, now));
        alive.max_by_key(|(term, rank, _)| (*term, std::cmp::Reverse(*rank))).map(|(.., node)| node)
    }

    /// The nodes that could take an address, best first: ready ones before others, ones that have not just come back before
    /// others (while `patient`). Where all are down, the best all the same: it may be us who hears nobody.
    fn choices<'a>(
        &self,
        nodes: &'a [String],
        liveness: &Liveness,
        now: Instant,
        may_carry: bool,
        patient: bool,
    ) -> Vec<&'a str> {
        let able = |node: &&str| *node != self.own || may_carry;
        let able: Vec<&str> = nodes.iter().map(String::as_str).filter(able).collect();
        let trust = |node: &str| {
            let (up, calm) = (liveness.is_up(node, now), !patient || liveness.is_choice(node, now));
            let ready = !self.unready.contains(node);
            (u8::from(!up), u8::from(!ready), u8::from(!calm))
        };
        let mut ranked: Vec<(_, usize, &str)> = able.iter().enumerate().map(|(at, n)| (trust(n), at, *n)).collect();
        ranked.sort_unstable();
        let any_up = ranked.first().is_some_and(|((down, ..), ..)| *down == 0);
        ranked.into_iter().filter(|((down, ..), ..)| *down == 0 || !any_up).map(|(.., node)| node).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::carriers::Pace;
    use proptest::prelude::*;
    use std::time::Duration;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    fn address(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, 50 + n])
    }

    struct Node {
        name: &'static str,
        liveness: Liveness,
        election: Election,
        outcome: Outcome,
        running: bool,
        echoes: BTreeMap<&'static str, u64>,
    }

    /// Nodes that talk over a network which can be parted, on a clock of their own.
    struct World {
        nodes: Vec<Node>,
        at: u64,
        sides: u8,
        addresses: u8,
        may: Vec<&'static str>,
    }

    impl World {
        fn new(nodes: usize, addresses: u8) -> World {
            let may = NAMES[..nodes].to_vec();
            let mut world = World { nodes: Vec::new(), at: 0, sides: 0, addresses, may };
            (0..nodes).for_each(|i| world.nodes.push(Self::fresh(NAMES[i], 0)));
            world.replace();
            world
        }

        fn fresh(name: &'static str, at: u64) -> Node {
            Node {
                name,
                liveness: Liveness::new(name, Pace::default(), MS(at)),
                election: Election::new(name),
                outcome: Outcome::default(),
                running: true,
                echoes: BTreeMap::new(),
            }
        }

        fn replace(&mut self) {
            let mut placement = Placement::default();
            placement.deal(&(0..self.addresses).map(address).collect::<Vec<_>>(), &self.may);
            let names: Vec<String> = self.nodes.iter().map(|n| n.name.to_owned()).collect();
            for node in &mut self.nodes {
                node.liveness.expect(names.iter().cloned());
                node.election.place(placement.clone(), BTreeSet::new());
            }
        }

        fn hears(&self, from: usize, to: usize) -> bool {
            self.nodes[from].running && self.nodes[to].running && (self.sides >> from & 1) == (self.sides >> to & 1)
        }

        fn run(&mut self, ms: u64) -> &mut Self {
            let until = self.at + ms;
            while self.at < until {
                self.at += 50;
                if self.at.is_multiple_of(100) {
                    for from in 0..self.nodes.len() {
                        for to in (0..self.nodes.len()).filter(|to| *to != from) {
                            if !self.hears(from, to) {
                                continue;
                            }
                            let (sender, name) = (&self.nodes[from], self.nodes[to].name);
                            let echo = sender.echoes.get(name).copied();
                            let told = sender.election.tell();
                            let (sender, at) = (sender.name, self.at);
                            let receiver = &mut self.nodes[to];
                            receiver.liveness.heard(sender, MS(at), echo.map(MS));
                            told.iter().for_each(|message| receiver.election.told(sender, message));
                            receiver.echoes.insert(sender, at);
                        }
                    }
                }
                let at = MS(self.at);
                for node in self.nodes.iter_mut().filter(|n| n.running) {
                    node.outcome = node.election.decide(&mut node.liveness, at);
                }
            }
            self
        }

        /// Nodes that answer for an address.
        fn holders(&self, n: u8) -> Vec<&'static str> {
            let holds = |node: &&Node| node.running && node.election.carries(address(n));
            self.nodes.iter().filter(holds).map(|node| node.name).collect()
        }

        fn all_holders(&self) -> Vec<Vec<&'static str>> {
            (0..self.addresses).map(|n| self.holders(n)).collect()
        }

        fn node(&mut self, name: &str) -> &mut Node {
            self.nodes.iter_mut().find(|n| n.name == name).unwrap()
        }
    }

    #[test]
    fn every_address_comes_to_one_node_and_all_nodes_know_which() {
        let mut world = World::new(3, 6);
        world.run(1000);
        for n in 0..6 {
            let holders = world.holders(n);
            assert_eq!(holders.len(), 1, "{n}: {holders:?}");
            for node in &world.nodes {
                assert_eq!(node.outcome.carried[&address(n)].node.as_deref(), Some(holders[0]));
                assert_ne!(node.outcome.carried[&address(n)].next.as_deref(), Some(holders[0]));
            }
        }
        let busy: BTreeSet<_> = world.all_holders().concat().into_iter().collect();
        assert_eq!(busy.len(), 3, "all of them have work");
    }

    #[test]
    fn a_node_that_dies_is_replaced_in_under_a_second_and_only_what_it_carried_moves() {
        let mut world = World::new(3, 6);
        world.run(2000);
        let before = world.all_holders();
        world.node("b").running = false;
        world.run(850);
        for (n, was) in before.iter().enumerate() {
            let is = world.holders(n as u8);
            assert_eq!(is.len(), 1);
            assert!(was == &["b"] || was == &is, "{was:?} {is:?}");
        }
    }

    #[test]
    fn whoever_comes_back_or_joins_takes_nothing_away() {
        let mut world = World::new(3, 6);
        world.run(2000);
        world.node("b").running = false;
        world.run(3000);
        let before = world.all_holders();
        *world.node("b") = World::fresh("b", 5000);
        world.may.push("d");
        world.nodes.push(World::fresh("d", 5000));
        world.replace();
        world.run(20_000);
        assert_eq!(world.all_holders(), before);
    }

    #[test]
    fn a_node_that_may_no_longer_carry_an_address_lets_go() {
        let mut world = World::new(3, 3);
        world.run(2000);
        world.may.retain(|name| *name != "b");
        world.replace();
        world.run(300);
        assert!(world.all_holders().iter().all(|holders| holders.len() == 1 && holders != &["b"]));
    }

    #[test]
    fn the_smaller_side_of_a_parting_lets_go_before_the_larger_one_takes_over() {
        let mut world = World::new(3, 6);
        world.run(2000);
        world.sides = 0b001;
        for _ in 0..40 {
            world.run(50);
            assert!(world.all_holders().iter().all(|holders| holders.len() <= 1), "at {}: two answer", world.at);
        }
        assert!(world.all_holders().iter().all(|holders| holders.len() == 1 && holders != &["a"]));
        assert!(world.node("a").outcome.cut_off);
        let parted = world.all_holders();
        world.sides = 0;
        world.run(10_000);
        assert_eq!(world.all_holders(), parted, "and takes nothing back when it is there again");
    }

    #[test]
    fn of_two_nodes_the_other_takes_over() {
        let mut world = World::new(2, 2);
        world.run(1000);
        world.node("a").running = false;
        world.run(900);
        assert_eq!(world.all_holders(), [["b"], ["b"]]);
    }

    #[test]
    fn after_a_parting_of_two_one_lets_go() {
        let mut world = World::new(2, 4);
        world.run(1000);
        world.sides = 1;
        world.run(3000);
        assert!(world.all_holders().iter().all(|h| h.len() == 2), "two nodes cannot tell whose fault it is");
        world.sides = 0;
        world.run(300);
        assert!(world.all_holders().iter().all(|h| h.len() == 1));
    }

    #[test]
    fn an_unready_node_is_passed_over_while_there_is_another() {
        let mut world = World::new(2, 1);
        world.run(1000);
        let was = world.holders(0)[0];
        for node in &mut world.nodes {
            let placement = node.election.placement.clone();
            node.election.place(placement, [was.to_owned()].into());
        }
        world.run(500);
        assert!(world.holders(0).len() == 1 && world.holders(0)[0] != was);
    }

    #[test]
    fn what_does_not_fit_one_message_is_told_in_parts() {
        let mut world = World::new(2, 120);
        world.run(1000);
        assert!(world.nodes[0].election.tell().len() > 1);
        assert!(world.all_holders().iter().all(|h| h.len() == 1));
    }

    /// Each of four nodes has seen others come and go, and takes somebody else for calmer than itself.
    #[test]
    fn an_address_that_each_leaves_to_another_is_taken_all_the_same() {
        let mut world = World::new(4, 5);
        world.run(1000);
        for (which, parted, ms) in [(1, true, 100), (0, false, 300), (3, true, 400), (2, true, 200), (1, false, 300)] {
            match parted {
                true => world.sides ^= 1 << which,
                false => world.nodes[which].running = false,
            }
            world.run(ms);
        }
        world.sides = 0;
        for which in [0, 1] {
            world.nodes[which] = World::fresh(NAMES[which], world.at);
        }
        world.replace();
        world.run(2000);
        assert!(world.all_holders().iter().all(|holders| holders.len() == 1), "{:?}", world.all_holders());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        /// Whatever dies, comes back and is parted: when three or more nodes are left in peace for a while, each address
        /// is on exactly one node and all agree; and at no time do two nodes with a quorum answer for one address longer
        /// than a message takes.
        #[test]
        fn peace_brings_exactly_one_holder(
            events in prop::collection::vec((0..4usize, 0..3u8, 100..3000u64), 0..12),
            nodes in 3..5usize,
        ) {
            let mut world = World::new(nodes, 5);
            world.run(1000);
            for (which, what, ms) in events {
                let which = which % nodes;
                match what {
                    0 => world.nodes[which].running = false,
                    1 => {
                        let (name, at) = (world.nodes[which].name, world.at);
                        world.nodes[which] = World::fresh(name, at);
                        world.replace();
                    }
                    _ => world.sides ^= 1 << which,
                }
                world.run(ms.next_multiple_of(50));
            }
            world.sides = 0;
            for i in 0..nodes {
                if !world.nodes[i].running {
                    let (name, at) = (world.nodes[i].name, world.at);
                    world.nodes[i] = World::fresh(name, at);
                }
            }
            world.replace();
            world.run(5000);
            for n in 0..5 {
                let holders = world.holders(n);
                prop_assert_eq!(holders.len(), 1);
                for node in &world.nodes {
                    prop_assert_eq!(node.outcome.carried[&address(n)].node.as_deref(), Some(holders[0]));
                }
            }
        }
    }
}
