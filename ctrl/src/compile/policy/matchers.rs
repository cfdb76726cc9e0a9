//! What rules ask of a peer, each distinct question once.
//!
//! Owner: the control thread. Invariant: numbers follow the content of the questions, not the order of policies.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;
use sluice_tables::stable_hash::stable_hash;
use sluice_tables::{Address, Prefix};

use super::label_index::LabelIndex;
use crate::model::{ClusterPeer, Labels, NamespaceScope, Peer, Protocol, Selector};

/// Namespaces a pod may live in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Where {
    /// This one.
    Namespace(String),
    /// Those with these labels.
    Labelled(Selector),
}

/// One question about a peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Matcher {
    /// Is it a pod (not on the host's network) of these namespaces and labels?
    Pods(Where, Selector),
    /// Is it an address of a node with these labels?
    Nodes(Selector),
    /// Is its address in this network, and in none of those?
    Block(Prefix, Vec<Prefix>),
}

impl Matcher {
    /// A NetworkPolicy peer; `own` is the policy's namespace.
    pub fn of_peer(peer: &Peer, own: &str) -> Matcher {
        match peer {
            Peer::Pods { namespaces: NamespaceScope::Own, pods } => {
                Matcher::Pods(Where::Namespace(own.to_owned()), pods.clone())
            }
            Peer::Pods { namespaces: NamespaceScope::Selected(selector), pods } => {
                Matcher::Pods(Where::Labelled(selector.clone()), pods.clone())
            }
            Peer::Block(block) => {
                let mut except: Vec<Prefix> = block.except.iter().map(|net| (*net).into()).collect();
                except.sort_unstable();
                except.dedup();
                Matcher::Block(block.cidr.into(), except)
            }
        }
    }

    /// A ClusterNetworkPolicy peer: one question per network.
    pub fn of_cluster_peer(peer: &ClusterPeer) -> Vec<Matcher> {
        match peer {
            ClusterPeer::Pods { namespaces, pods } => {
                vec![Matcher::Pods(Where::Labelled(namespaces.clone()), pods.clone())]
            }
            ClusterPeer::Nodes(selector) => vec![Matcher::Nodes(selector.clone())],
            ClusterPeer::Networks(nets) => {
                nets.iter().map(|net: &IpNet| Matcher::Block((*net).into(), vec![])).collect()
            }
            // Who they are is learned on the packet path.
            ClusterPeer::Domains(_) => vec![],
        }
    }
}

/// Number of a [`Matcher`].
pub(crate) type MatcherId = u32;

/// A named port that egress rules look up on the peer.
pub(crate) type PortName = (Option<Protocol>, String);

/// All distinct questions of the rules in use.
#[derive(Debug, Default)]
pub(crate) struct Matchers {
    list: Vec<Matcher>,
    /// A hash of each question.
    pub content: Vec<u64>,
    numbers: HashMap<Matcher, MatcherId>,
    /// Names that egress rules ask of peers.
    pub names: Vec<PortName>,
    of_namespace: HashMap<String, LabelIndex<MatcherId>>,
    labelled: Vec<(Selector, LabelIndex<MatcherId>)>,
}

impl Matchers {
    pub fn new(matchers: BTreeSet<Matcher>, names: BTreeSet<PortName>) -> Matchers {
        let list: Vec<Matcher> = matchers.into_iter().collect();
        let mut of_namespace: HashMap<String, LabelIndex<MatcherId>> = HashMap::new();
        let mut labelled: BTreeMap<Selector, LabelIndex<MatcherId>> = BTreeMap::new();
        for (matcher, id) in list.iter().zip(0..) {
            match matcher {
                Matcher::Pods(Where::Namespace(name), pods) => {
                    of_namespace.entry(name.clone()).or_default().insert(pods, id);
                }
                Matcher::Pods(Where::Labelled(namespaces), pods) => {
                    labelled.entry(namespaces.clone()).or_default().insert(pods, id);
                }
                _ => {}
            }
        }
        Matchers {
            content: list.iter().map(stable_hash).collect(),
            numbers: list.iter().cloned().zip(0..).collect(),
            names: names.into_iter().collect(),
            list,
            of_namespace,
            labelled: labelled.into_iter().collect(),
        }
    }

    /// Number of questions.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn number(&self, matcher: &Matcher) -> Option<MatcherId> {
        self.numbers.get(matcher).copied()
    }

    /// Whether a question is about the address alone.
    pub fn is_block(&self, id: MatcherId) -> bool {
        matches!(self.list.get(id as usize), Some(Matcher::Block(..)))
    }

    /// The questions a pod answers with yes, addresses aside; sorted.
    pub fn of_pod(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> Vec<MatcherId> {
        let mut yes = Vec::new();
        if let Some(index) = self.of_namespace.get(namespace) {
            index.matching(labels, |id| yes.push(id));
        }
        for (_, index) in self.labelled.iter().filter(|(selector, _)| selector.matches(namespace_labels)) {
            index.matching(labels, |id| yes.push(id));
        }
        yes.sort_unstable();
        yes
    }

    /// The questions a node's address answers with yes, blocks aside.
    pub fn of_node(&self, labels: &Labels) -> Vec<MatcherId> {
        let yes = |matcher: &Matcher| matches!(matcher, Matcher::Nodes(selector) if selector.matches(labels));
        self.list.iter().zip(0..).filter(|(m, _)| yes(m)).map(|(_, id)| id).collect()
    }

    /// Every network that some rule speaks of, the ones around first, each with the questions that all addresses answer
    /// with yes whose most specific network it is.
    pub fn networks(&self) -> Vec<(Prefix, Vec<MatcherId>)> {
        let place = |p: &Prefix| (p.is_v4(), p.bits(), p.len128());
        let mut begin: BTreeMap<(bool, u128, u8), (Prefix, Vec<MatcherId>)> = BTreeMap::new();
        let mut end: HashMap<Prefix, Vec<MatcherId>> = HashMap::new();
        for (matcher, id) in self.list.iter().zip(0..) {
            if let Matcher::Block(cidr, except) = matcher {
                begin.entry(place(cidr)).or_insert((*cidr, vec![])).1.push(id);
                for hole in except {
                    begin.entry(place(hole)).or_insert((*hole, vec![]));
                    end.entry(*hole).or_default().push(id);
                }
            }
        }
        // In the order of families, bits and lengths a network comes right after the networks around it.
        let mut around: Vec<usize> = Vec::new();
        let mut all: Vec<(Prefix, Vec<MatcherId>)> = Vec::with_capacity(begin.len());
        for (prefix, starts) in begin.into_values() {
            while around.last().is_some_and(|at| !all[*at].0.covers(&prefix)) {
                around.pop();
            }
            let holes = end.get(&prefix).map_or(&[][..], Vec::as_slice);
            let mut yes = around.last().map_or_else(Vec::new, |at| all[*at].1.clone());
            yes.extend(starts);
            yes.retain(|id| !holes.contains(id));
            yes.sort_unstable();
            yes.dedup();
            around.push(all.len());
            all.push((prefix, yes));
        }
        all
    }

    /// Whether any rule asks for nodes, so that their addresses need identities.
    pub fn ask_for_nodes(&self) -> bool {
        self.list.iter().any(|m| matches!(m, Matcher::Nodes(_)))
    }
}

/// A hash of an address, for sums over members.
pub(crate) fn address_hash(address: Address) -> u64 {
    stable_hash(&address.bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix() -> impl Strategy<Value = Prefix> {
        let byte = prop::sample::select(vec![0u8, 0x40, 0x80, 0xff]);
        let v4 = (prop::array::uniform4(byte.clone()), 0..=32u8).prop_map(|(a, len)| Prefix::new(Address::v4(a), len));
        let v6 = (byte, 0..=16u8).prop_map(|(a, len)| {
            let mut bytes = [0; 16];
            bytes[0] = a;
            Prefix::new(Address::v6(bytes), len)
        });
        prop_oneof![v4, v6].prop_map(|p| p.unwrap())
    }

    proptest! {
        #[test]
        fn a_network_answers_as_asking_every_block_does(
            blocks in prop::collection::vec((prefix(), prop::collection::vec(prefix(), 0..3)), 0..10),
        ) {
            let blocks = blocks.into_iter().map(|(cidr, except)| {
                let inside: BTreeSet<Prefix> = except.into_iter().filter(|e| cidr.covers(e) && *e != cidr).collect();
                Matcher::Block(cidr, inside.into_iter().collect())
            });
            let matchers = Matchers::new(blocks.collect(), BTreeSet::new());
            for (prefix, yes) in matchers.networks() {
                let asked = |m: &Matcher| match m {
                    Matcher::Block(cidr, except) => cidr.covers(&prefix) && !except.iter().any(|e| e.covers(&prefix)),
                    _ => false,
                };
                let expected: Vec<MatcherId> =
                    matchers.list.iter().zip(0..).filter(|(m, _)| asked(m)).map(|(_, id)| id).collect();
                prop_assert_eq!(yes, expected, "{}", prefix);
            }
        }
    }
}
