//! What a compilation leaves to the next one: which policies select whom, and what rules ask of whom.
//!
//! Owner: the control thread. Objects are compared by pointer: an object that is the same value behind another pointer is
//! looked at again, which costs time and changes nothing. A policy is *in use* where a pod lives here whose namespace it
//! speaks of, whether or not it selects that pod: so a change of labels never changes what rules ask.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use sluice_tables::Domains;
use sluice_tables::policy::RuleNames;

use super::super::Context;
use super::super::directory::Known;
use super::super::routes::overlay_addresses;
use super::identities::{Class, Classes, Moved, Owner};
use super::label_index::LabelIndex;
use super::matchers::{Matchers, PortName};
use super::rules::{self, Direction, Drafted, Ports, Rule};
use super::sets::{Entry, SetKey};
use crate::model::{
    Cluster, ClusterNetworkPolicy, Labels, Namespace, NamespacedName, NetworkPolicy, Node, Pod, Subject,
};

/// Objects that everything here rests on, pods aside.
#[derive(Debug)]
struct Inputs {
    policies: Vec<Arc<NetworkPolicy>>,
    cluster_policies: Vec<Arc<ClusterNetworkPolicy>>,
    namespaces: Vec<Arc<Namespace>>,
    nodes: Vec<Arc<Node>>,
}

impl Inputs {
    fn of(cluster: &Cluster) -> Inputs {
        Inputs {
            policies: cluster.network_policies.values().cloned().collect(),
            cluster_policies: cluster.cluster_network_policies.values().cloned().collect(),
            namespaces: cluster.namespaces.values().cloned().collect(),
            nodes: cluster.nodes.values().cloned().collect(),
        }
    }

    fn are(&self, cluster: &Cluster) -> bool {
        fn same<'a, T: 'a>(mine: &[Arc<T>], theirs: impl ExactSizeIterator<Item = &'a Arc<T>>) -> bool {
            mine.len() == theirs.len() && mine.iter().zip(theirs).all(|(a, b)| Arc::ptr_eq(a, b))
        }
        same(&self.policies, cluster.network_policies.values())
            && same(&self.cluster_policies, cluster.cluster_network_policies.values())
            && same(&self.namespaces, cluster.namespaces.values())
            && same(&self.nodes, cluster.nodes.values())
    }
}

/// All policies in the order of evaluation, and whom each selects.
#[derive(Debug)]
pub(crate) struct Selection {
    pub drafts: Vec<Drafted>,
    namespaced: HashMap<String, Namespaced>,
    cluster: Vec<(Subject, u32)>,
}

/// Policies of one namespace: by whom they select, and their numbers.
#[derive(Debug)]
struct Namespaced {
    index: LabelIndex<u32>,
    numbers: Range<u32>,
}

impl Selection {
    /// Cluster-wide policies by tier, priority and name, namespaced ones by name.
    fn of(cluster: &Cluster) -> Selection {
        let mut wide: Vec<_> = cluster.cluster_network_policies.values().collect();
        wide.sort_by(|a, b| (a.tier, a.priority, &a.name).cmp(&(b.tier, b.priority, &b.name)));
        let mut drafts: Vec<Drafted> = wide.iter().map(|p| Drafted::of_cluster(p)).collect();
        let wide = wide.into_iter().zip(0..).map(|(p, at)| (p.subject.clone(), at)).collect();
        let mut namespaced: HashMap<String, Namespaced> = HashMap::new();
        for policy in cluster.network_policies.values() {
            let number = drafts.len() as u32;
            let own = namespaced
                .entry(policy.name.namespace.clone())
                .or_insert_with(|| Namespaced { index: LabelIndex::default(), numbers: number..number });
            own.index.insert(&policy.pods, number);
            // In the order of names, policies of one namespace follow each other.
            own.numbers.end = number + 1;
            drafts.push(Drafted::of(policy));
        }
        Selection { drafts, namespaced, cluster: wide }
    }

    fn of_pod(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> Vec<u32> {
        let cluster = self.cluster.iter();
        let mut all: Vec<u32> = cluster
            .filter(|(s, _)| s.namespaces.matches(namespace_labels) && s.pods.matches(labels))
            .map(|(_, at)| *at)
            .collect();
        if let Some(own) = self.namespaced.get(namespace) {
            own.index.matching(labels, |at| all.push(at));
        }
        all.sort_unstable();
        all
    }

    /// Which policies speak of one of these namespaces.
    fn in_use<'a>(&self, namespaces: &BTreeSet<&'a str>, labels: impl Fn(&str) -> &'a Labels) -> Vec<bool> {
        let mut used = vec![false; self.drafts.len()];
        for (subject, at) in &self.cluster {
            used[*at as usize] = namespaces.iter().any(|name| subject.namespaces.matches(labels(name)));
        }
        for own in namespaces.iter().filter_map(|name| self.namespaced.get(*name)) {
            used[own.numbers.start as usize..own.numbers.end as usize].fill(true);
        }
        used
    }
}

/// What the policies in use ask.
#[derive(Debug)]
pub(crate) struct Plan {
    in_use: Vec<bool>,
    pub matchers: Matchers,
    /// Rules of each policy, ingress and egress; none for policies that are not in use.
    pub rules: Vec<[Option<Vec<Rule>>; 2]>,
    /// Port names that each policy's ingress rules ask of the pods they are for.
    names_of_pod: Vec<BTreeSet<PortName>>,
    pub names: Arc<RuleNames>,
    pub domains: Arc<Domains>,
}

impl Plan {
    fn of(selection: &Selection, in_use: Vec<bool>) -> Plan {
        let used = || selection.drafts.iter().zip(&in_use).filter(|(_, used)| **used).map(|(draft, _)| draft);
        let matchers = rules::matchers(used());
        let numbered = selection.drafts.iter().zip(&in_use).map(|(draft, used)| {
            [Direction::Ingress, Direction::Egress].map(|direction| {
                let rules = draft.rules(direction).filter(|_| *used)?;
                Some(rules.iter().map(|rule| Rule::number(draft, rule, direction, &matchers)).collect())
            })
        });
        let rules: Vec<[Option<Vec<Rule>>; 2]> = numbered.collect();
        let of_pod = |ports: &Ports| if let Ports::OfPod(name) = ports { Some(name.clone()) } else { None };
        let names_of_pod = rules
            .iter()
            .map(|[ingress, _]| {
                ingress.iter().flatten().flat_map(|rule| rule.ports.iter().filter_map(of_pod)).collect()
            })
            .collect();
        let (names, domains) = (Arc::new(super::rule_names(used())), Arc::new(super::domains(used())));
        Plan { matchers, rules, names_of_pod, names, domains, in_use }
    }

    /// What selects a pod, as a set's key; none where no policy speaks of the direction.
    fn key(&self, selected: &[u32], direction: Direction, pod: Option<&Pod>) -> Option<SetKey> {
        let column = usize::from(direction == Direction::Egress);
        let speaks = |at: &u32| self.rules[*at as usize][column].is_some();
        let policies: Vec<u32> = selected.iter().copied().filter(speaks).collect();
        if policies.is_empty() {
            return None;
        }
        let asked = policies.iter().filter(|_| column == 0).flat_map(|at| &self.names_of_pod[*at as usize]);
        let ports = pod.map_or(&[][..], |p| &p.ports);
        let named = asked.map(|name| (name.clone(), rules::named(name, ports).collect())).collect();
        Some(SetKey { direction, policies, named })
    }
}

/// What policy knows of a pod.
#[derive(Debug)]
pub(crate) struct Facts {
    /// None for a local pod that the API has not shown.
    pub pod: Option<Arc<Pod>>,
    unseen: NamespacedName,
    pub addresses: Vec<IpAddr>,
    /// Its port here.
    pub port: Option<u16>,
    owner: Owner,
    /// Its sets, ingress and egress; equal keys are one allocation.
    pub keys: [Option<Arc<SetKey>>; 2],
}

impl Facts {
    pub fn name(&self) -> &NamespacedName {
        self.pod.as_ref().map_or(&self.unseen, |pod| &pod.name)
    }

    fn still_holds(&self, known: &Known<'_>) -> bool {
        let same_pod = match (&self.pod, known.pod) {
            (Some(mine), Some(theirs)) => Arc::ptr_eq(mine, theirs),
            (None, None) => self.unseen == *known.name,
            _ => false,
        };
        same_pod && self.port == known.local.map(|pod| pod.port) && self.addresses == known.addresses
    }
}

/// What is known of a pod before policy looks at it.
struct Seen<'a> {
    name: &'a NamespacedName,
    pod: Option<&'a Arc<Pod>>,
    addresses: &'a [IpAddr],
    port: Option<u16>,
}

impl<'a> Seen<'a> {
    fn of(known: &'a Known<'_>) -> Seen<'a> {
        let port = known.local.map(|pod| pod.port);
        Seen { name: known.name, pod: known.pod, addresses: &known.addresses, port }
    }
}

/// Makes facts.
struct Clerk<'a> {
    cluster: &'a Cluster,
    selection: &'a Selection,
    plan: &'a Plan,
    keys: HashSet<Arc<SetKey>>,
}

impl Clerk<'_> {
    fn facts(&mut self, seen: &Seen<'_>) -> Facts {
        let none = Labels::new();
        let namespace = seen.name.namespace.as_str();
        let namespace_labels = self.cluster.namespace_labels(namespace).unwrap_or(&none);
        let labels = seen.pod.map_or(&none, |p| &p.labels);
        let pod = seen.pod.map(Arc::as_ref);
        let ports = pod.map_or(&[][..], |p| &p.ports);
        let names = self.plan.matchers.names.iter().enumerate();
        let mut named: Vec<_> =
            names.flat_map(|(at, name)| rules::named(name, ports).map(move |(t, port)| (at, t, port))).collect();
        named.sort_unstable();
        named.dedup();
        let yes = self.plan.matchers.of_pod(namespace, namespace_labels, labels);
        let addresses = seen.addresses.iter().map(|ip| (*ip).into()).collect();
        let mut keys = [None, None];
        if seen.port.is_some() {
            let selected = self.selection.of_pod(namespace, namespace_labels, labels);
            keys = [Direction::Ingress, Direction::Egress].map(|direction| {
                let key = self.plan.key(&selected, direction, pod)?;
                Some(self.keys.get_or_insert_with(&key, |key| Arc::new(key.clone())).clone())
            });
        }
        Facts {
            unseen: if seen.pod.is_none() { seen.name.clone() } else { NamespacedName::default() },
            pod: seen.pod.cloned(),
            addresses: seen.addresses.to_vec(),
            port: seen.port,
            owner: Owner { addresses, class: Class { yes, ports: named } },
            keys,
        }
    }
}

/// Everything that is kept.
#[derive(Debug)]
pub(crate) struct PolicyState {
    inputs: Arc<Inputs>,
    pub selection: Arc<Selection>,
    pub plan: Arc<Plan>,
    /// All pods, by name.
    pub facts: Vec<Arc<Facts>>,
    pub classes: Classes,
    /// By the address of their key, which they hold.
    pub sets: HashMap<usize, Arc<Entry>>,
}

impl PolicyState {
    /// The state of a cluster without sets; with `last`, if it could be taken further, what has moved.
    pub fn of(context: &Context<'_>, last: Option<&PolicyState>) -> (PolicyState, Option<Moved>) {
        let last = last.filter(|last| last.inputs.are(context.cluster));
        if let Some((state, moved)) = last.and_then(|last| last.taken_further(context)) {
            return (state, Some(moved));
        }
        let (inputs, selection) = match last {
            Some(last) => (Arc::clone(&last.inputs), Arc::clone(&last.selection)),
            None => (Arc::new(Inputs::of(context.cluster)), Arc::new(Selection::of(context.cluster))),
        };
        let plan = Arc::new(Plan::of(&selection, in_use(&selection, context)));
        let mut clerk = Clerk { cluster: context.cluster, selection: &selection, plan: &plan, keys: HashSet::new() };
        let facts: Vec<_> =
            context.directory.pods.values().map(|known| Arc::new(clerk.facts(&Seen::of(known)))).collect();
        let mut nodes = Vec::new();
        if plan.matchers.ask_for_nodes() {
            for node in context.cluster.nodes.values() {
                let class = Class { yes: plan.matchers.of_node(&node.labels), ports: Vec::new() };
                let own = node.internal_ips.iter().chain(&node.external_ips).copied();
                let addresses = own.chain(overlay_addresses(node)).map(Into::into).collect();
                nodes.push(Owner { addresses, class });
            }
        }
        let classes = Classes::build(&plan.matchers, facts.iter().map(|f| &f.owner), &nodes);
        (PolicyState { inputs, selection, plan, facts, classes, sets: HashMap::new() }, None)
    }

    /// The state after a change of pods; `None` where other policies than before are in use.
    fn taken_further(&self, context: &Context<'_>) -> Option<(PolicyState, Moved)> {
        if in_use(&self.selection, context) != self.plan.in_use {
            return None;
        }
        let mut facts = Vec::with_capacity(context.directory.pods.len());
        let mut change = Change::default();
        let mut clerk = self.clerk(context.cluster);
        let mut before = self.facts.iter().peekable();
        for known in context.directory.pods.values() {
            while let Some(old) = before.next_if(|old| old.name() < known.name) {
                change.gone.push(Arc::clone(old));
            }
            let old = before.next_if(|old| old.name() == known.name);
            match old {
                Some(old) if old.still_holds(known) => facts.push(Arc::clone(old)),
                old => {
                    let new = Arc::new(clerk.facts(&Seen::of(known)));
                    change.note(old, &new);
                    facts.push(new);
                }
            }
        }
        change.gone.extend(before.cloned());
        self.with(facts, &change)
    }

    /// The state after changes of these pods that leave addresses and ports as they were, in a cluster that is else the
    /// same; `None` where only building all anew gives the right numbers.
    pub fn relabelled(&self, cluster: &Cluster, pods: &[Arc<Pod>]) -> Option<(PolicyState, Moved)> {
        let mut facts = self.facts.clone();
        let mut change = Change::default();
        let mut clerk = self.clerk(cluster);
        for pod in pods {
            // Who is not there has no address, or shares its node's.
            let Ok(at) = facts.binary_search_by(|facts| facts.name().cmp(&pod.name)) else { continue };
            let old = Arc::clone(&facts[at]);
            let seen = Seen { name: &pod.name, pod: Some(pod), addresses: &old.addresses, port: old.port };
            facts[at] = Arc::new(clerk.facts(&seen));
            change.note(Some(&old), &facts[at]);
        }
        self.with(facts, &change)
    }

    fn clerk<'a>(&'a self, cluster: &'a Cluster) -> Clerk<'a> {
        let keys = self.sets.values().map(|entry| Arc::clone(&entry.key)).collect();
        Clerk { cluster, selection: &self.selection, plan: &self.plan, keys }
    }

    fn with(&self, facts: Vec<Arc<Facts>>, change: &Change) -> Option<(PolicyState, Moved)> {
        let owners = |list: &[Arc<Facts>]| list.iter().map(|f| f.owner.clone()).collect::<Vec<_>>();
        let (gone, come) = (owners(&change.gone), owners(&change.come));
        let (classes, moved) = self.classes.changed(&self.plan.matchers, &gone, &come)?;
        let state = PolicyState {
            inputs: Arc::clone(&self.inputs),
            selection: Arc::clone(&self.selection),
            plan: Arc::clone(&self.plan),
            facts,
            classes,
            sets: HashMap::new(),
        };
        Some((state, moved))
    }
}

/// Pods whose addresses leave their classes, and come into others.
#[derive(Default)]
struct Change {
    gone: Vec<Arc<Facts>>,
    come: Vec<Arc<Facts>>,
}

impl Change {
    fn note(&mut self, old: Option<&Arc<Facts>>, new: &Arc<Facts>) {
        if old.is_none_or(|old| old.owner != new.owner) {
            self.gone.extend(old.cloned());
            self.come.push(Arc::clone(new));
        }
    }
}

/// Policies that speak of a namespace which a pod here lives in.
fn in_use(selection: &Selection, context: &Context<'_>) -> Vec<bool> {
    let here = context.directory.local().map(|(known, _)| known.name.namespace.as_str()).collect();
    static NONE: Labels = Labels::new();
    selection.in_use(&here, |name| context.cluster.namespace_labels(name).unwrap_or(&NONE))
}
