//! The rules of one direction of a pod, folded into a set.
//!
//! Owner: the control thread. A rule is taken apart into atoms: what it asks of protocol and port, for everyone, for
//! classes one by one, or for the members of a peer that many classes answer to. Classes are folded together where the
//! same atoms apply, so that few foldings serve all of them. Invariant: the content of a set is a stamp of which addresses
//! meet which decisions, and does not depend on numbers.
//! Cost: what the set's peers have as members; for broad peers, 2 to the power of their number.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use sluice_tables::policy::{DomainRule, MAX_BROAD, Members, PolicySet, PortMap, RuleNames};
use sluice_tables::stable_hash::stable_hash;
use sluice_tables::{IdentityId, Isolation, PortMapBuilder, PortMatcher, Tier, TierRule, Transport};

use super::identities::{Classes, Moved, name_id};
use super::matchers::{MatcherId, Matchers, PortName};
use super::rules::{Direction, Drafted, Ports, Rule};

/// Classes of a peer from which on sets ask its table instead of listing them.
const BROAD: usize = 64;

/// Which rules a set is made of: policies by number, and the numbers behind the port names that they ask of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SetKey {
    pub direction: Direction,
    pub policies: Vec<u32>,
    pub named: BTreeMap<PortName, Vec<(Transport, u16)>>,
}

/// A set with what it was made of.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: Arc<SetKey>,
    pub set: Arc<PolicySet>,
    /// Every question, sorted: the set is another when their classes are.
    asks: Arc<[MatcherId]>,
    /// Those that are not about addresses alone.
    dynamic: Arc<[MatcherId]>,
    fixed: u64,
    /// A stamp of the function from address to decisions.
    pub content: u64,
    /// The policy whose peers take most room in it, and how many classes these are.
    pub widest: (u32, usize),
}

/// Which questions have moved, to be asked of every set.
pub(crate) struct Asked {
    classes: Vec<bool>,
    sums: Vec<bool>,
}

impl Asked {
    /// `questions` is how many there are.
    pub fn of(moved: &Moved, questions: usize) -> Asked {
        let marked = |which: &HashSet<MatcherId>| {
            let mut marks = vec![false; if which.is_empty() { 0 } else { questions }];
            which.iter().for_each(|question| marks[*question as usize] = true);
            marks
        };
        Asked { classes: marked(&moved.classes), sums: marked(&moved.sums) }
    }
}

impl Entry {
    /// The entry as it is after a move; `None` where the set must be made anew.
    pub fn after(self: &Arc<Self>, asked: &Asked, classes: &Classes) -> Option<Arc<Entry>> {
        let any = |marks: &[bool], of: &[MatcherId]| {
            !marks.is_empty() && of.iter().any(|question| marks.get(*question as usize).is_some_and(|moved| *moved))
        };
        if any(&asked.classes, &self.asks) {
            return None;
        }
        if !any(&asked.sums, &self.dynamic) {
            return Some(Arc::clone(self));
        }
        Some(Arc::new(Entry { content: content(self.fixed, &self.dynamic, classes), ..(**self).clone() }))
    }
}

fn content(fixed: u64, dynamic: &[MatcherId], classes: &Classes) -> u64 {
    let sums: Vec<u64> = dynamic.iter().map(|m| classes.membership(*m).sum).collect();
    stable_hash(&(fixed, sums))
}

/// What sets are made with.
pub(crate) struct Workshop<'a> {
    pub drafts: &'a [Drafted],
    /// Rules of each policy, ingress and egress.
    pub rules: &'a [[Option<Vec<Rule>>; 2]],
    pub matchers: &'a Matchers,
    pub classes: &'a Classes,
    pub names: &'a RuleNames,
}

enum Who {
    Everyone,
    Listed(Vec<IdentityId>),
    Broad(Arc<Members>),
}

struct Atom {
    /// Position in the order of evaluation.
    rule: usize,
    ports: Vec<PortMatcher>,
    who: Who,
}

type Applies = Vec<(usize, PortMatcher)>;

impl Workshop<'_> {
    pub fn entry(&self, key: &Arc<SetKey>) -> Entry {
        let column = usize::from(key.direction == Direction::Egress);
        let rules: Vec<(u32, &Rule)> = key
            .policies
            .iter()
            .flat_map(|at| self.rules[*at as usize][column].iter().flatten().map(|rule| (*at, rule)))
            .collect();
        let isolation = self.isolation(key);
        let (asks, dynamic) = self.asks(&rules);
        let fixed = self.fixed(key, &isolation, &rules, &dynamic);
        let mut widest = (key.policies.first().copied().unwrap_or_default(), 0);
        let atoms = self.atoms(key, &rules, &mut widest);
        let mut set = self.fold(&rules, &atoms, isolation, None);
        for (position, (_, rule)) in rules.iter().enumerate().filter(|(_, (_, rule))| !rule.domains.is_empty()) {
            let mut atoms = self.atoms(key, &rules, &mut (0, 0));
            atoms.push(Atom { rule: position, ports: self.fixed_ports(key, rule), who: Who::Everyone });
            let own = self.fold(&rules, &atoms, isolation, Some(position));
            set.domains.push(DomainRule { names: rule.domains.clone(), set: Arc::new(own) });
        }
        let content = content(fixed, &dynamic, self.classes);
        let (key, set) = (Arc::clone(key), Arc::new(set));
        Entry { key, set, asks: asks.into(), dynamic: dynamic.into(), fixed, content, widest }
    }

    fn isolation(&self, key: &SetKey) -> Isolation {
        let drafts = key.policies.iter().map(|at| &self.drafts[*at as usize]);
        let isolating: Vec<_> = drafts.filter(|p| p.tier == Tier::Namespaced).collect();
        match isolating.first() {
            None => Isolation::Open,
            Some(first) if isolating.iter().all(|p| p.audit) => Isolation::Audited(self.names.number(&first.name)),
            Some(_) => Isolation::Enforced,
        }
    }

    fn asks(&self, rules: &[(u32, &Rule)]) -> (Vec<MatcherId>, Vec<MatcherId>) {
        let names = |rule: &Rule| {
            let of_peer = rule.ports.iter().filter_map(|p| match p {
                Ports::OfPeer(name) => Some(name_id(self.matchers, *name)),
                _ => None,
            });
            of_peer.collect::<Vec<_>>()
        };
        let mut asks: Vec<MatcherId> =
            rules.iter().flat_map(|(_, r)| r.peers.iter().flatten().copied().chain(names(r))).collect();
        asks.sort_unstable();
        asks.dedup();
        let dynamic = asks.iter().copied().filter(|m| !self.matchers.is_block(*m)).collect();
        (asks, dynamic)
    }

    /// What of the content does not move with pods and nodes.
    fn fixed(&self, key: &SetKey, isolation: &Isolation, rules: &[(u32, &Rule)], dynamic: &[MatcherId]) -> u64 {
        let peer = |m: &MatcherId| match dynamic.binary_search(m) {
            Ok(at) => (false, at as u64),
            Err(_) => (true, self.matchers.content[*m as usize]),
        };
        let each: Vec<u64> = rules
            .iter()
            .map(|(_, rule)| {
                let peers: Option<Vec<_>> = rule.peers.as_ref().map(|peers| peers.iter().map(peer).collect());
                let ports: Vec<_> = rule
                    .ports
                    .iter()
                    .map(|ports| match ports {
                        Ports::OfPeer(name) => {
                            (None, Some((&self.matchers.names[*name], peer(&name_id(self.matchers, *name)))))
                        }
                        fixed => (Some(fixed), None),
                    })
                    .collect();
                stable_hash(&(rule.tier, rule.action, rule.audit, &rule.name, peers, &rule.domains, ports))
            })
            .collect();
        let isolation = match isolation {
            Isolation::Audited(rule) => (true, rule.0),
            other => (*other == Isolation::Enforced, 0),
        };
        stable_hash(&(isolation, &key.named, each))
    }

    /// A rule's ports without those of peers.
    fn fixed_ports(&self, key: &SetKey, rule: &Rule) -> Vec<PortMatcher> {
        let mut all = Vec::new();
        for ports in &rule.ports {
            match ports {
                Ports::Fixed(ports) => all.push(*ports),
                Ports::OfPod(name) => {
                    let numbers = key.named.get(name).into_iter().flatten();
                    all.extend(numbers.map(|(t, port)| PortMatcher::Range(*t, *port, *port)));
                }
                Ports::OfPeer(_) => {}
            }
        }
        all
    }

    fn atoms(&self, key: &SetKey, rules: &[(u32, &Rule)], widest: &mut (u32, usize)) -> Vec<Atom> {
        let mut atoms = Vec::new();
        let mut broad = 0;
        for (position, (policy, rule)) in rules.iter().enumerate() {
            let mut listed = 0;
            let mut members = |ids: Vec<IdentityId>, table: Option<Arc<Members>>| {
                if ids.len() > BROAD && broad < MAX_BROAD {
                    broad += 1;
                    return Who::Broad(table.unwrap_or_else(|| Arc::new(ids.iter().copied().collect())));
                }
                listed += ids.len();
                Who::Listed(ids)
            };
            let mut push = |ports: Vec<PortMatcher>, who: Who| atoms.push(Atom { rule: position, ports, who });
            let ports = self.fixed_ports(key, rule);
            match &rule.peers {
                _ if ports.is_empty() => {}
                None => push(ports, Who::Everyone),
                Some(peers) => {
                    // Peers that are broad alone share their tables; the rest of the rule is listed.
                    let of = |m: &&MatcherId| self.classes.membership(**m).classes.len() > BROAD;
                    let (wide, narrow): (Vec<&MatcherId>, Vec<&MatcherId>) = peers.iter().partition(of);
                    if let [one] = wide[..] {
                        let one = self.classes.membership(*one);
                        push(ports.clone(), members(one.classes.clone(), Some(one.table())));
                    } else if !wide.is_empty() {
                        push(ports.clone(), members(self.union(&wide), None));
                    }
                    if !narrow.is_empty() {
                        push(ports, members(self.union(&narrow), None));
                    }
                }
            }
            for name in rule.ports.iter().filter_map(|p| if let Ports::OfPeer(name) = p { Some(*name) } else { None }) {
                let mut by_port: BTreeMap<(Transport, u16), Vec<IdentityId>> = BTreeMap::new();
                for id in &self.classes.membership(name_id(self.matchers, name)).classes {
                    let Some(class) = self.classes.class(*id) else { continue };
                    if rule.peers.as_ref().is_none_or(|peers| peers.iter().any(|m| class.answers(*m))) {
                        for (_, t, port) in class.ports.iter().filter(|(n, ..)| *n == name) {
                            by_port.entry((*t, *port)).or_default().push(*id);
                        }
                    }
                }
                for ((t, port), ids) in by_port {
                    push(vec![PortMatcher::Range(t, port, port)], members(ids, None));
                }
            }
            if listed > widest.1 {
                *widest = (*policy, listed);
            }
        }
        atoms
    }

    fn union(&self, peers: &[&MatcherId]) -> Vec<IdentityId> {
        let mut ids: Vec<IdentityId> =
            peers.iter().flat_map(|m| &self.classes.membership(**m).classes).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Folds atoms for every class; with `kept`, what the rule at that position decides.
    fn fold(&self, rules: &[(u32, &Rule)], atoms: &[Atom], isolation: Isolation, kept: Option<usize>) -> PolicySet {
        let broad: Vec<(&Atom, &Arc<Members>)> = atoms
            .iter()
            .filter_map(|atom| if let Who::Broad(members) = &atom.who { Some((atom, members)) } else { None })
            .collect();
        let everyone: Applies = atoms.iter().filter(|a| matches!(a.who, Who::Everyone)).flat_map(applies).collect();
        let mut listed: BTreeMap<IdentityId, Applies> = BTreeMap::new();
        for atom in atoms {
            if let Who::Listed(ids) = &atom.who {
                for id in ids {
                    listed.entry(*id).or_default().extend(applies(atom));
                }
            }
        }
        let mut set = PolicySet { broad: broad.iter().map(|(_, m)| Arc::clone(m)).collect(), ..PolicySet::default() };
        let (mut maps, mut places): (Vec<PortMap>, HashMap<PortMap, u32>) = Default::default();
        let mut folded: HashMap<Applies, u32> = HashMap::new();
        let mut map_of = |mut applying: Applies| {
            applying.sort_unstable();
            applying.dedup();
            if let Some(at) = folded.get(&applying) {
                return *at;
            }
            let map = self.map(rules, &applying, isolation, kept);
            let at = *places.entry(map).or_insert_with_key(|map| {
                maps.push(map.clone());
                maps.len() as u32 - 1
            });
            folded.insert(applying, at);
            at
        };
        for bits in 0..1usize << broad.len() {
            let chosen = broad.iter().enumerate().filter(|(n, _)| bits >> n & 1 != 0);
            let applying = everyone.iter().copied().chain(chosen.flat_map(|(_, (atom, _))| applies(atom))).collect();
            set.by_breadth.push(map_of(applying));
        }
        for (id, mut applying) in listed {
            let mut bits = 0;
            for (n, (atom, members)) in broad.iter().enumerate() {
                if members.contains(&id) {
                    bits |= 1 << n;
                    applying.extend(applies(atom));
                }
            }
            applying.extend(&everyone);
            let at = map_of(applying);
            if at != set.by_breadth[bits] {
                set.by_identity.insert(id, at);
            }
        }
        set.maps = maps.iter().collect();
        set
    }

    fn map(&self, rules: &[(u32, &Rule)], applying: &Applies, isolation: Isolation, kept: Option<usize>) -> PortMap {
        let mut builder = PortMapBuilder::new(isolation);
        for (position, ports) in applying {
            let Rule { tier, action, audit, name, .. } = rules[*position].1;
            let rule = self.names.number(name);
            builder.push(TierRule { tier: *tier, ports: *ports, action: *action, rule, audit: *audit });
        }
        match kept {
            None => builder.build(),
            Some(position) => builder.build_of(|at| applying[at].0 == position),
        }
    }
}

fn applies(atom: &Atom) -> impl Iterator<Item = (usize, PortMatcher)> + '_ {
    atom.ports.iter().map(|ports| (atom.rule, *ports))
}
