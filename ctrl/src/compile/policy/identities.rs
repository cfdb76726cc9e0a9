//! Addresses sorted into classes that every rule treats alike, and which classes answer which question.
//!
//! Owner: the control thread. A class is the set of questions its addresses answer with yes, with the numbers behind the
//! port names that egress rules look up on a peer; class 0 answers every question with no. Blocks are compared with pod
//! addresses too. Invariants: an id is made of the class's content (two that meet in one number are told apart in the
//! order of content, and then nothing is carried over to the next compilation); an address is listed only where its class
//! is not that of its most specific network, a network only where its class is not that of the network around it; what
//! [`Classes::changed`] gives is what [`Classes::build`] would.
//! Cost: one look-up per address and network; for a change, one per address that changed.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, OnceLock};

use hashbrown::HashMap;
use sluice_tables::policy::Members;
use sluice_tables::stable_hash::{stable_hash, stamp};
use sluice_tables::{Address, Identities, IdentityId, Lpm, Transport};

use super::matchers::{MatcherId, Matchers, address_hash};

/// What rules can tell of an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Class {
    /// Questions answered with yes, sorted.
    pub yes: Vec<MatcherId>,
    /// (index into [`Matchers::names`], protocol, number).
    pub ports: Vec<(usize, Transport, u16)>,
}

impl Class {
    pub fn answers(&self, matcher: MatcherId) -> bool {
        self.yes.binary_search(&matcher).is_ok()
    }

    fn is_empty(&self) -> bool {
        self.yes.is_empty() && self.ports.is_empty()
    }

    /// Questions answered with yes, and port names given, as numbers behind those of the questions.
    fn memberships(&self, matchers: &Matchers) -> Vec<MatcherId> {
        let mut all = self.yes.clone();
        all.extend(self.ports.iter().map(|(name, ..)| name_id(matchers, *name)));
        all.dedup();
        all
    }

    fn number(&self, matchers: &Matchers) -> IdentityId {
        if self.is_empty() {
            return IdentityId(0);
        }
        let yes: Vec<u64> = self.yes.iter().map(|m| matchers.content[*m as usize]).collect();
        let ports: Vec<_> = self.ports.iter().map(|(name, t, port)| (&matchers.names[*name], t, port)).collect();
        IdentityId(stamp(&(yes, ports)))
    }
}

/// A port name as a question: "does the peer give this name?".
pub(crate) fn name_id(matchers: &Matchers, name: usize) -> MatcherId {
    (matchers.len() + name) as MatcherId
}

/// An owner of addresses: a pod or a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub addresses: Vec<Address>,
    /// Questions it answers with yes, addresses aside.
    pub class: Class,
}

/// Who answers a question with yes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Membership {
    /// Sorted.
    pub classes: Vec<IdentityId>,
    /// A sum over the addresses (not of blocks), and for a port name over the numbers.
    pub sum: u64,
    table: OnceLock<Arc<Members>>,
}

impl Membership {
    /// The classes as a table that sets share.
    pub fn table(&self) -> Arc<Members> {
        self.table.get_or_init(|| Arc::new(self.classes.iter().copied().collect())).clone()
    }
}

/// Classes, and who belongs to which.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    blocks: Arc<Lpm<Vec<MatcherId>>>,
    prefixes: Arc<Lpm<IdentityId>>,
    of_networks: Arc<HashMap<IdentityId, Arc<Class>>>,
    exact: Arc<HashMap<Address, IdentityId>>,
    /// Classes of single addresses, with their number.
    held: HashMap<IdentityId, (Arc<Class>, u32)>,
    base: Arc<Vec<Membership>>,
    /// Newer than `base`.
    newer: HashMap<MatcherId, Membership>,
    nodes: Arc<HashSet<Address>>,
    /// Numbers that a class found taken when it was numbered.
    probed: Arc<HashSet<IdentityId>>,
}

/// Memberships kept beside the base before all are written down anew.
const NEWER: usize = 4096;

/// Questions that a change has moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Other classes answer them.
    pub classes: HashSet<MatcherId>,
    /// Other addresses do.
    pub sums: HashSet<MatcherId>,
}

impl Classes {
    pub fn build<'a>(matchers: &Matchers, pods: impl Iterator<Item = &'a Owner>, nodes: &'a [Owner]) -> Classes {
        let networks = matchers.networks();
        let blocks: Lpm<Vec<MatcherId>> = Lpm::from_entries(networks.iter().cloned());
        let mut of_address: BTreeMap<Address, Class> = BTreeMap::new();
        let mut base = vec![Membership::default(); matchers.len() + matchers.names.len()];
        for owner in pods.chain(nodes).filter(|owner| !owner.class.is_empty()) {
            for address in &owner.addresses {
                let std::collections::btree_map::Entry::Vacant(free) = of_address.entry(*address) else { continue };
                free.insert(with_blocks(&owner.class, blocks.lookup(*address)));
                for (question, sum) in sums(matchers, owner, *address) {
                    let sum_of = &mut base[question as usize].sum;
                    *sum_of = sum_of.wrapping_add(sum);
                }
            }
        }
        let of_prefix = |yes: &[MatcherId]| Class { yes: yes.to_vec(), ports: Vec::new() };
        let mut distinct: HashMap<Class, IdentityId> = HashMap::new();
        let all = of_address.values().cloned().chain(networks.iter().map(|(_, yes)| of_prefix(yes)));
        distinct.extend(all.map(|class| (class, IdentityId(0))));
        let probed = number(&mut distinct, matchers);

        let mut prefixes: Lpm<IdentityId> = Lpm::default();
        let mut of_networks: HashMap<IdentityId, Arc<Class>> = HashMap::new();
        for (prefix, yes) in &networks {
            let class = of_prefix(yes);
            let id = distinct[&class];
            of_networks.entry(id).or_insert_with(|| Arc::new(class));
            // Networks around are in already, those inside are not.
            if id != prefixes.lookup(prefix.address()).copied().unwrap_or_default() {
                prefixes.insert(*prefix, id);
            }
        }
        let mut exact = HashMap::with_capacity(of_address.len());
        let mut held: HashMap<IdentityId, (Arc<Class>, u32)> = HashMap::new();
        for (address, class) in of_address {
            let id = distinct[&class];
            held.entry(id).or_insert_with(|| (Arc::new(class), 0)).1 += 1;
            exact.insert(address, id);
        }
        for (class, id) in &distinct {
            for question in class.memberships(matchers) {
                base[question as usize].classes.push(*id);
            }
        }
        base.iter_mut().for_each(|m| m.classes.sort_unstable());
        Classes {
            blocks: Arc::new(blocks),
            prefixes: Arc::new(prefixes),
            of_networks: Arc::new(of_networks),
            exact: Arc::new(exact),
            held,
            base: Arc::new(base),
            newer: HashMap::new(),
            nodes: Arc::new(nodes.iter().flat_map(|n| &n.addresses).copied().collect()),
            probed: Arc::new(probed),
        }
    }

    /// The same with some owners gone and others come, and the questions whose classes are others now; `None` where only
    /// building all anew gives the right numbers.
    pub fn changed(&self, matchers: &Matchers, gone: &[Owner], come: &[Owner]) -> Option<(Classes, Moved)> {
        let touched = |owner: &Owner| owner.addresses.iter().any(|a| self.nodes.contains(a));
        if gone.iter().chain(come).any(touched) {
            return None;
        }
        let mut next = self.clone();
        let mut moved = Moved::default();
        if gone.iter().chain(come).all(|owner| owner.class.is_empty()) {
            return Some((next, moved));
        }
        let mut exact = (*self.exact).clone();
        for owner in gone.iter().filter(|owner| !owner.class.is_empty()) {
            for address in &owner.addresses {
                let id = exact.remove(address)?;
                for (question, sum) in sums(matchers, owner, *address) {
                    let of = next.membership_mut(question);
                    of.sum = of.sum.wrapping_sub(sum);
                    moved.sums.insert(question);
                }
                let (class, count) = next.held.get_mut(&id)?;
                *count -= 1;
                if *count == 0 {
                    // Somebody went past this number and would have it now.
                    if self.probed.contains(&id) {
                        return None;
                    }
                    let class = class.clone();
                    next.held.remove(&id);
                    next.link(matchers, id, &class, false, &mut moved.classes);
                }
            }
        }
        for owner in come.iter().filter(|owner| !owner.class.is_empty()) {
            for address in &owner.addresses {
                let class = with_blocks(&owner.class, self.blocks.lookup(*address));
                let id = class.number(matchers);
                for (question, sum) in sums(matchers, owner, *address) {
                    let of = next.membership_mut(question);
                    of.sum = of.sum.wrapping_add(sum);
                    moved.sums.insert(question);
                }
                let of_network = next.of_networks.get(&id);
                if of_network.is_some_and(|c| **c != class) || exact.insert(*address, id).is_some() {
                    return None;
                }
                match next.held.get_mut(&id) {
                    Some((known, _)) if **known != class => return None,
                    Some((_, count)) => *count += 1,
                    None => {
                        let class = Arc::new(class);
                        next.held.insert(id, (class.clone(), 1));
                        next.link(matchers, id, &class, true, &mut moved.classes);
                    }
                }
            }
        }
        next.exact = Arc::new(exact);
        if next.newer.len() > NEWER {
            let mut base = (*next.base).clone();
            next.newer.drain().for_each(|(id, membership)| base[id as usize] = membership);
            next.base = Arc::new(base);
        }
        Some((next, moved))
    }

    /// Notes that a class of single addresses has come or gone, unless a network is of the same class.
    fn link(&mut self, matchers: &Matchers, id: IdentityId, class: &Class, here: bool, moved: &mut HashSet<MatcherId>) {
        if self.of_networks.contains_key(&id) {
            return;
        }
        for question in class.memberships(matchers) {
            let of = self.membership_mut(question);
            of.table = OnceLock::new();
            match (of.classes.binary_search(&id), here) {
                (Err(at), true) => of.classes.insert(at, id),
                (Ok(at), false) => {
                    of.classes.remove(at);
                }
                _ => {}
            }
            moved.insert(question);
        }
    }

    fn membership_mut(&mut self, question: MatcherId) -> &mut Membership {
        let base = &self.base;
        self.newer.entry(question).or_insert_with(|| base[question as usize].clone())
    }

    /// Who answers a question (or gives a port name, see [`name_id`]).
    pub fn membership(&self, question: MatcherId) -> &Membership {
        self.newer.get(&question).unwrap_or_else(|| &self.base[question as usize])
    }

    /// A class by its number.
    pub fn class(&self, id: IdentityId) -> Option<&Arc<Class>> {
        self.held.get(&id).map(|(class, _)| class).or_else(|| self.of_networks.get(&id))
    }

    /// The look-ups for workers.
    pub fn identities(&self) -> Identities {
        Identities { exact: self.exact.clone(), prefixes: self.prefixes.clone() }
    }
}

/// What an address adds to the sums of the questions that are not about the address alone.
fn sums<'a>(matchers: &'a Matchers, owner: &'a Owner, address: Address) -> impl Iterator<Item = (MatcherId, u64)> + 'a {
    let hash = address_hash(address);
    let questions = owner.class.yes.iter().map(move |question| (*question, hash));
    let names = owner
        .class
        .ports
        .iter()
        .map(move |(name, transport, port)| (name_id(matchers, *name), stable_hash(&(hash, transport, port))));
    questions.chain(names)
}

fn with_blocks(class: &Class, blocks: Option<&Vec<MatcherId>>) -> Class {
    let mut yes = class.yes.clone();
    if let Some(blocks) = blocks {
        yes.extend(blocks);
        yes.sort_unstable();
        yes.dedup();
    }
    Class { yes, ports: class.ports.clone() }
}

/// Numbers classes by content. Where two meet in one number, the later by content takes the next that is free; gives the
/// numbers that were found taken. A class whose number is free takes nobody else's, whenever it comes.
fn number(classes: &mut HashMap<Class, IdentityId>, matchers: &Matchers) -> HashSet<IdentityId> {
    let mut taken: HashSet<IdentityId> = HashSet::with_capacity(classes.len());
    let (mut again, mut probed) = (false, HashSet::new());
    for (class, id) in classes.iter_mut() {
        *id = class.number(matchers);
        again |= !taken.insert(*id);
    }
    if again {
        taken.clear();
        let mut sorted: Vec<_> = classes.iter_mut().collect();
        sorted.sort_unstable_by(|a, b| a.0.cmp(b.0));
        for (class, id) in sorted {
            while !class.is_empty() && (id.0 == 0 || !taken.insert(*id)) {
                probed.insert(*id);
                id.0 = id.0.wrapping_add(1);
            }
        }
    }
    probed
}
