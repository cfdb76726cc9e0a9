//! What rules ask of a peer, each distinct question once.
//!
//! Owner: the control thread. Invariant: numbers follow the content of the questions, not the order of policies.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use sluice_tables::Prefix;

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
    numbers: BTreeMap<Matcher, MatcherId>,
    /// Names that egress rules ask of peers.
    pub names: Vec<PortName>,
}

impl Matchers {
    pub fn new(matchers: BTreeSet<Matcher>, names: BTreeSet<PortName>) -> Matchers {
        let list: Vec<Matcher> = matchers.into_iter().collect();
        let numbers = list.iter().cloned().zip(0..).collect();
        Matchers { list, numbers, names: names.into_iter().collect() }
    }

    pub fn number(&self, matcher: &Matcher) -> Option<MatcherId> {
        self.numbers.get(matcher).copied()
    }

    /// The questions a pod answers with yes, addresses aside.
    pub fn of_pod(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> Vec<MatcherId> {
        self.select(|matcher| match matcher {
            Matcher::Pods(Where::Namespace(name), pods) => name == namespace && pods.matches(labels),
            Matcher::Pods(Where::Labelled(selector), pods) => {
                selector.matches(namespace_labels) && pods.matches(labels)
            }
            _ => false,
        })
    }

    /// The questions a node's address answers with yes, blocks aside.
    pub fn of_node(&self, labels: &Labels) -> Vec<MatcherId> {
        self.select(|matcher| matches!(matcher, Matcher::Nodes(selector) if selector.matches(labels)))
    }

    /// The questions that all addresses answer with yes whose most specific prefix (of [`Matchers::prefixes`]) is this.
    pub fn of_prefix(&self, prefix: &Prefix) -> Vec<MatcherId> {
        self.select(|matcher| match matcher {
            Matcher::Block(cidr, except) => cidr.covers(prefix) && !except.iter().any(|hole| hole.covers(prefix)),
            _ => false,
        })
    }

    /// Every network that some rule speaks of, the shortest first.
    pub fn prefixes(&self) -> Vec<Prefix> {
        let mut all: Vec<Prefix> = Vec::new();
        for matcher in &self.list {
            if let Matcher::Block(cidr, except) = matcher {
                all.push(*cidr);
                all.extend(except);
            }
        }
        all.sort_unstable_by_key(|p| (p.len128(), p.bits()));
        all.dedup();
        all
    }

    /// Whether any rule asks for nodes, so that their addresses need identities.
    pub fn ask_for_nodes(&self) -> bool {
        self.list.iter().any(|m| matches!(m, Matcher::Nodes(_)))
    }

    fn select(&self, yes: impl Fn(&Matcher) -> bool) -> Vec<MatcherId> {
        self.list.iter().zip(0..).filter(|(m, _)| yes(m)).map(|(_, id)| id).collect()
    }
}
