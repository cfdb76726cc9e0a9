//! What a compilation leaves to the next one: which policies select whom, and what rules ask of whom.
//!
//! Owner: the control thread. Objects are compared by pointer: an object that is the same value behind another pointer is
//! looked at again, which costs time and changes nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use sluice_tables::Domains;
use sluice_tables::policy::RuleNames;

use super::super::Context;
use super::super::directory::Known;
use super::super::routes::overlay_addresses;
use super::identities::{Class, Classes, Owner};
use super::label_index::LabelIndex;
use super::matchers::{MatcherId, Matchers, PortName};
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
    namespaced: HashMap<String, LabelIndex<u32>>,
    cluster: Vec<(Subject, u32)>,
}

impl Selection {
    /// Cluster-wide policies by tier, priority and name, namespaced ones by name.
    fn of(cluster: &Cluster) -> Selection {
        let mut wide: Vec<_> = cluster.cluster_network_policies.values().collect();
        wide.sort_by(|a, b| (a.tier, a.priority, &a.name).cmp(&(b.tier, b.priority, &b.name)));
        let mut drafts: Vec<Drafted> = wide.iter().map(|p| Drafted::of_cluster(p)).collect();
        let wide = wide.into_iter().zip(0..).map(|(p, at)| (p.subject.clone(), at)).collect();
        let mut namespaced: HashMap<String, LabelIndex<u32>> = HashMap::new();
        for policy in cluster.network_policies.values() {
            let index = namespaced.entry(policy.name.namespace.clone()).or_default();
            index.insert(&policy.pods, drafts.len() as u32);
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
        if let Some(index) = self.namespaced.get(namespace) {
            index.matching(labels, |at| all.push(at));
        }
        all.sort_unstable();
        all
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
    fn key(&self, selected: &[u32], direction: Direction, pod: Option<&Pod>) -> Option<Arc<SetKey>> {
        let column = usize::from(direction == Direction::Egress);
        let speaks = |at: &u32| self.rules[*at as usize][column].is_some();
        let policies: Vec<u32> = selected.iter().copied().filter(speaks).collect();
        if policies.is_empty() {
            return None;
        }
        let asked = policies.iter().filter(|_| column == 0).flat_map(|at| &self.names_of_pod[*at as usize]);
        let ports = pod.map_or(&[][..], |p| &p.ports);
        let named = asked.map(|name| (name.clone(), rules::named(name, ports).collect())).collect();
        Some(Arc::new(SetKey { direction, policies, named }))
    }
}

/// What policy knows of a pod.
#[derive(Debug)]
pub(crate) struct Facts {
    /// None for a local pod that the API has not shown.
    pub pod: Option<Arc<Pod>>,
    unseen: NamespacedName,
    pub addresses: Vec<IpAddr>,
    /// It has a port here.
    pub local: bool,
    /// Policies that select it; none for pods elsewhere.
    selected: Vec<u32>,
    owner: Owner,
    /// Its sets, ingress and egress.
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
        same_pod && self.local == known.local.is_some() && self.addresses == known.addresses
    }

    fn of(known: &Known<'_>, selected: Vec<u32>, plan: &Plan, context: &Context<'_>) -> Facts {
        let none = Labels::new();
        let namespace = known.name.namespace.as_str();
        let namespace_labels = context.cluster.namespace_labels(namespace).unwrap_or(&none);
        let labels = known.pod.map_or(&none, |p| &p.labels);
        let pod = known.pod.map(Arc::as_ref);
        let ports = pod.map_or(&[][..], |p| &p.ports);
        let mut named: Vec<_> = plan
            .matchers
            .names
            .iter()
            .enumerate()
            .flat_map(|(at, name)| rules::named(name, ports).map(move |(t, port)| (at, t, port)))
            .collect();
        named.sort_unstable();
        named.dedup();
        let yes = plan.matchers.of_pod(namespace, namespace_labels, labels);
        let addresses = known.addresses.iter().map(|ip| (*ip).into()).collect();
        let keys = [Direction::Ingress, Direction::Egress]
            .map(|direction| if known.local.is_some() { plan.key(&selected, direction, pod) } else { None });
        Facts {
            unseen: if known.pod.is_none() { known.name.clone() } else { NamespacedName::default() },
            pod: known.pod.cloned(),
            addresses: known.addresses.clone(),
            local: known.local.is_some(),
            selected,
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
    pub sets: HashMap<Arc<SetKey>, Entry>,
}

impl PolicyState {
    /// The state of a cluster without sets; with `last`, if it could be taken further, the questions whose classes moved.
    pub fn of(context: &Context<'_>, last: Option<&PolicyState>) -> (PolicyState, Option<HashSet<MatcherId>>) {
        if let Some(last) = last.filter(|last| last.inputs.are(context.cluster))
            && let Some((state, moved)) = last.taken_further(context)
        {
            return (state, Some(moved));
        }
        let selection = Arc::new(Selection::of(context.cluster));
        let known: Vec<_> = context.directory.pods.values().collect();
        let selected: Vec<Vec<u32>> = known.iter().map(|known| select(&selection, known, context)).collect();
        let in_use = used(selection.drafts.len(), selected.iter().map(Vec::as_slice));
        let plan = Arc::new(Plan::of(&selection, in_use));
        let facts: Vec<_> = known
            .into_iter()
            .zip(selected)
            .map(|(known, selected)| Arc::new(Facts::of(known, selected, &plan, context)))
            .collect();
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
        let inputs = Arc::new(Inputs::of(context.cluster));
        (PolicyState { inputs, selection, plan, facts, classes, sets: HashMap::new() }, None)
    }

    /// The state after a change of pods; `None` where other policies than before select somebody here.
    fn taken_further(&self, context: &Context<'_>) -> Option<(PolicyState, HashSet<MatcherId>)> {
        let mut facts = Vec::with_capacity(context.directory.pods.len());
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        let mut before = self.facts.iter().peekable();
        for known in context.directory.pods.values() {
            while let Some(old) = before.next_if(|old| old.name() < known.name) {
                gone.push(Arc::clone(old));
            }
            let old = before.next_if(|old| old.name() == known.name);
            match old {
                Some(old) if old.still_holds(known) => facts.push(Arc::clone(old)),
                old => {
                    gone.extend(old.cloned());
                    let selected = select(&self.selection, known, context);
                    let new = Arc::new(Facts::of(known, selected, &self.plan, context));
                    come.push(Arc::clone(&new));
                    facts.push(new);
                }
            }
        }
        gone.extend(before.cloned());
        if used(self.selection.drafts.len(), facts.iter().map(|f| &f.selected[..])) != self.plan.in_use {
            return None;
        }
        let owners = |list: &[Arc<Facts>]| list.iter().map(|f| f.owner.clone()).collect::<Vec<_>>();
        let (gone, come) = (owners(&gone), owners(&come));
        let (classes, moved) = self.classes.changed(
            &self.plan.matchers,
            &gone.iter().collect::<Vec<_>>(),
            &come.iter().collect::<Vec<_>>(),
        )?;
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

fn select(selection: &Selection, known: &Known<'_>, context: &Context<'_>) -> Vec<u32> {
    if known.local.is_none() {
        return Vec::new();
    }
    let none = Labels::new();
    let namespace_labels = context.cluster.namespace_labels(&known.name.namespace).unwrap_or(&none);
    selection.of_pod(&known.name.namespace, namespace_labels, known.pod.map_or(&none, |p| &p.labels))
}

fn used<'a>(policies: usize, selected: impl Iterator<Item = &'a [u32]>) -> Vec<bool> {
    let mut used = vec![false; policies];
    selected.flatten().for_each(|at| used[*at as usize] = true);
    used
}
