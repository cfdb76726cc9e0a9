//! Who carries what now: whoever says that it does and is up; where nobody does, the best node that may.
//!
//! An address stays where it is as long as that node is up: a node that joins, or comes back, takes nothing away from
//! another (established flows rest on it). Where two nodes claim one address, the higher term wins, the better place in the
//! ranking where terms are equal; the other lets go at once. A node without a quorum carries nothing, and where there are
//! Leases ([`super::fence`]) a node carries what they let it.
//! Nodes may differ on who has only just come back, and each then waits for another: an address that nobody has claimed for
//! a while goes to the best node that is up, calm or not.
//! Every node runs this, those that may carry nothing too: they learn where to send.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_tables::stable_hash::stable_hash;

use super::fence::Fence;
use super::liveness::{Liveness, Standing};
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
    /// Addresses that would be ours, but for their Leases.
    pub waits: BTreeSet<IpAddr>,
    /// Why Leases cannot be used; not the election's to know.
    pub denied: Option<String>,
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
    wanted: BTreeSet<IpAddr>,
    /// Since when we are in touch with most.
    together: Option<Instant>,
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
            wanted: BTreeSet::new(),
            together: None,
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

    /// What we carry, and what would be ours if the Leases let us.
    pub fn wanted(&self) -> &BTreeSet<IpAddr> {
        &self.wanted
    }

    /// Decides every address anew.
    pub fn decide(&mut self, liveness: &mut Liveness, fence: &Fence, now: Instant) -> Outcome {
        let standing = liveness.standing(now);
        let quorum = standing != Standing::CutOff;
        let may_carry = quorum && liveness.is_settled(now);
        if !quorum {
            self.ours.clear();
        }
        self.together = (standing == Standing::Majority).then(|| self.together.unwrap_or(now));
        self.wanted.clear();
        let mut waits = BTreeSet::new();
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
            let mut node = node.map(str::to_owned);
            if node.as_deref() == Some(self.own.as_str()) {
                self.wanted.insert(address);
                let may = match self.ours.contains_key(&address) {
                    true => fence.may_keep(address, standing, now),
                    false => fence.may_take(address, standing, self.together, placement.is_urgent(address), now),
                };
                if !may {
                    node = None;
                    waits.insert(address);
                }
            }
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
        Outcome {
            carried,
            down: liveness.down(now).map(str::to_owned).collect(),
            cut_off: !quorum,
            waits,
            denied: None,
        }
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
mod tests;
