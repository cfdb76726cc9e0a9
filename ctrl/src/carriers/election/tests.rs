//! Nodes that talk over a network which can be parted, with and without Leases, on a clock of their own.

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
    fence: Fence,
    /// Sessions as this node saw them, and since when.
    seen: BTreeMap<&'static str, (u64, u64)>,
}

/// The API server's Leases: when each session was renewed last, and which node each address names.
#[derive(Default)]
struct Api {
    sessions: BTreeMap<&'static str, u64>,
    /// With the beginning of the session in which it was taken.
    addresses: BTreeMap<IpAddr, (&'static str, u64)>,
    begun: BTreeMap<&'static str, u64>,
    /// Nodes that do not reach it, as bits.
    cut: u8,
}

/// Nodes that talk over a network which can be parted, on a clock of their own.
struct World {
    nodes: Vec<Node>,
    at: u64,
    sides: u8,
    addresses: u8,
    may: Vec<&'static str>,
    api: Option<Api>,
    urgent: bool,
}

impl World {
    fn with_leases(nodes: usize, addresses: u8) -> World {
        World { api: Some(Api::default()), ..World::new(nodes, addresses) }
    }

    /// What the keeper of Leases does (`ctrl/kube/src/keeper.rs`), as obviously as it can be said.
    fn keep(&mut self) {
        let (Some(api), at) = (&mut self.api, self.at) else { return };
        for (n, node) in self.nodes.iter_mut().enumerate().filter(|(_, node)| node.running) {
            let (name, wanted) = (node.name, node.election.wanted().clone());
            node.fence.used = true;
            if api.cut >> n & 1 != 0 {
                node.fence.heard.get_or_insert(MS(at));
                continue;
            }
            node.fence.heard = Some(MS(at));
            if node.fence.until.is_none_or(|until| until <= MS(at)) {
                node.fence.ours.clear();
                api.begun.insert(name, at);
            }
            for gone in node.fence.ours.difference(&wanted) {
                api.addresses.remove(gone);
            }
            node.fence.ours.retain(|address| wanted.contains(address));
            node.fence.others.retain(|address, _| wanted.contains(address));
            match wanted.is_empty() {
                true => drop(api.sessions.remove(name)),
                false => drop(api.sessions.insert(name, at)),
            }
            node.fence.until = (!wanted.is_empty()).then_some(MS(at + 800));
            for (other, renewed) in &api.sessions {
                let seen = node.seen.entry(other).or_insert((*renewed, at));
                if seen.0 != *renewed {
                    *seen = (*renewed, at);
                }
            }
            for address in wanted {
                let holder = api.addresses.get(&address).copied().filter(|(holder, _)| *holder != name);
                let lives = |(holder, begun)| {
                    let same = api.begun.get(holder) == Some(&begun);
                    same && api.sessions.contains_key(holder) && at - node.seen[holder].1 < 1000
                };
                if holder.is_some_and(lives) {
                    node.fence.others.entry(address).or_insert(MS(at));
                    continue;
                }
                node.fence.others.remove(&address);
                node.fence.ours.insert(address);
                api.addresses.insert(address, (name, api.begun[name]));
            }
        }
    }

    fn new(nodes: usize, addresses: u8) -> World {
        let may = NAMES[..nodes].to_vec();
        let mut world = World { nodes: Vec::new(), at: 0, sides: 0, addresses, may, api: None, urgent: false };
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
            fence: Fence { patience: MS(2000), ..Fence::default() },
            seen: BTreeMap::new(),
        }
    }

    fn replace(&mut self) {
        let mut placement = Placement::default();
        placement.deal(&(0..self.addresses).map(address).collect::<Vec<_>>(), &self.may);
        if self.urgent {
            placement.hurry(&(0..self.addresses).map(address).collect::<Vec<_>>());
        }
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
                node.outcome = node.election.decide(&mut node.liveness, &node.fence, at);
            }
            if self.at.is_multiple_of(100) {
                self.keep();
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
fn of_two_with_leases_one_alone_answers_however_they_are_parted() {
    for cut in [0b00, 0b01, 0b10, 0b11] {
        let mut world = World::with_leases(2, 4);
        world.run(2000);
        assert!(world.all_holders().iter().all(|h| h.len() == 1), "{:?}", world.all_holders());
        let before = world.all_holders();
        (world.sides, world.api.as_mut().unwrap().cut) = (1, cut);
        for _ in 0..60 {
            world.run(50);
            assert!(world.all_holders().iter().all(|h| h.len() <= 1), "{cut:b} at {}: two answer", world.at);
        }
        let after = world.all_holders();
        match cut {
            0b00 => assert_eq!(after, before, "both reach the API server: nothing moves"),
            0b11 => assert!(after.iter().all(Vec::is_empty), "nobody can tell whose fault it is"),
            _ => {
                let other = if cut == 1 { "b" } else { "a" };
                assert!(after.iter().all(|h| h == &[other]), "{cut:b}: {after:?}");
            }
        }
    }
}

#[test]
fn with_leases_too_the_other_of_two_takes_over_in_under_two_seconds() {
    let mut world = World::with_leases(2, 2);
    world.run(2000);
    world.node("a").running = false;
    world.run(1900);
    assert_eq!(world.all_holders(), [["b"], ["b"]]);
    assert!(world.nodes[1].outcome.waits.is_empty());
}

#[test]
fn in_touch_with_each_other_nodes_outlive_the_api_server_and_a_majority_replaces_a_dead_one_without_it() {
    for nodes in [2, 3] {
        let mut world = World::with_leases(nodes, 6);
        world.run(2000);
        let before = world.all_holders();
        world.api.as_mut().unwrap().cut = 0b111;
        world.run(20_000);
        assert_eq!(world.all_holders(), before, "{nodes} nodes");
        world.node("b").running = false;
        world.run(1900);
        let after = world.all_holders();
        match nodes {
            3 => assert!(after.iter().all(|h| h.len() == 1 && h != &["b"]), "{after:?}"),
            _ => assert!(after.concat().is_empty(), "one of two without an API server is no majority"),
        }
        // It comes back, and so does the Lease of whoever has taken over meanwhile.
        world.api.as_mut().unwrap().cut = 0;
        world.run(3000);
        let after = world.all_holders();
        assert!(after.iter().all(|h| h.len() == 1 && h != &["b"]), "{after:?}");
        let named = &world.api.as_ref().unwrap().addresses;
        assert!((0..6).all(|n| after[usize::from(n)] == [named[&address(n)].0]), "{named:?} {after:?}");
    }
}

#[test]
fn an_urgent_address_does_not_wait_for_the_lease_where_a_majority_says_that_its_node_is_dead() {
    let mut world = World::with_leases(3, 6);
    world.urgent = true;
    world.replace();
    world.run(2000);
    world.node("b").running = false;
    world.run(850);
    assert!(world.all_holders().iter().all(|h| h.len() == 1 && h != &["b"]), "{:?}", world.all_holders());
    world.run(2000);
    let named = &world.api.as_ref().unwrap().addresses;
    assert!((0..6).all(|n| world.holders(n) == [named[&address(n)].0]), "and the Leases follow: {named:?}");
}

#[test]
fn a_node_that_starts_while_it_is_cut_off_carries_nothing_without_a_lease() {
    let mut world = World::with_leases(3, 3);
    world.run(2000);
    world.sides = 0b001;
    world.run(2000);
    *world.node("a") = World::fresh("a", world.at);
    world.replace();
    for _ in 0..100 {
        world.run(50);
        assert!(world.all_holders().iter().all(|h| h.len() == 1 && h != &["a"]), "{:?}", world.all_holders());
    }
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
    /// Two nodes with Leases, parted and met again, cut off from the API server while they are parted, killed and
    /// started: never do both answer for one address, and peace brings exactly one.
    #[test]
    fn two_nodes_with_leases_never_answer_both(
        events in prop::collection::vec((0..5u8, 0..4u8, 100..3000u64), 0..12),
    ) {
        let mut world = World::with_leases(2, 3);
        world.run(2000);
        let steps = events.into_iter().chain([(0, 0, 1000), (3, 0, 50), (4, 0, 12_000)]);
        for (what, cut, ms) in steps {
            match what {
                0 => (world.sides, world.api.as_mut().unwrap().cut) = (0, 0),
                1 => (world.sides, world.api.as_mut().unwrap().cut) = (1, cut),
                2 => world.nodes[usize::from(cut & 1)].running = false,
                n => {
                    let which = usize::from(n - 3);
                    if !world.nodes[which].running {
                        world.nodes[which] = World::fresh(NAMES[which], world.at);
                        world.replace();
                    }
                }
            }
            for _ in 0..ms / 50 {
                world.run(50);
                let holders = world.all_holders();
                prop_assert!(holders.iter().all(|h| h.len() <= 1), "at {}: {:?}", world.at, holders);
            }
        }
        prop_assert!(world.all_holders().iter().all(|h| h.len() == 1), "{:?}", world.all_holders());
    }

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
