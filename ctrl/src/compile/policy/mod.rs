//! Policy: what every local pod may receive from and send to whom, as lookups.
//!
//! Owner: the control thread. Only pods with a port here get rule sets, and only the questions of policies that select
//! one of them make identities. Pods with equal rules share a set. Invariants: a pod's version is a stamp of what its
//! flows' verdicts depend on (its uid and addresses; for each direction, which addresses meet which decisions), so it
//! moves when a peer's labels change what the peer may do, and not when rules, pods or numbers change elsewhere.
//! Cost: (distinct sets) × (classes + listed addresses).

pub(crate) mod identities;
pub(crate) mod matchers;
pub(crate) mod rules;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use sluice_tables::policy::{PolicySet, PortMap};
use sluice_tables::stable_hash::{StableHasher, stamp};
use sluice_tables::{
    Address, Decision, Identities, IdentityId, Isolation, Lpm, Policy, PolicySetId, PortMapBuilder, PortMatcher,
    RuleId, Tier, TierRule,
};

use super::Context;
use super::directory::Known;
use crate::model::{Labels, NamespacedName};
use identities::{Class, Classes};
use rules::{Direction, Drafted, Ports, Rule};

/// The rules of one pod.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PodRules {
    pub ingress: Option<PolicySetId>,
    pub egress: Option<PolicySetId>,
    pub version: u32,
}

/// Everything policy that goes into the tables.
pub(crate) struct CompiledPolicy {
    pub policy: Policy,
    pub identities: Identities,
    pods: BTreeMap<NamespacedName, PodRules>,
}

impl CompiledPolicy {
    pub fn of(&self, pod: &NamespacedName) -> PodRules {
        self.pods.get(pod).copied().unwrap_or_default()
    }
}

/// The rules of one direction of a pod, before they are folded: equal ones become one set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SetRules {
    isolation: Isolated,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Isolated {
    Open,
    Enforced,
    Audited(Arc<str>),
}

pub(crate) fn compile(context: &Context<'_>) -> CompiledPolicy {
    let policies = drafted(context);
    let selected: Vec<(&Known<'_>, Vec<&Drafted>)> = {
        let of =
            |known: &Known<'_>| policies.iter().filter(|(s, _)| s.selects(context, known)).map(|(_, d)| d).collect();
        context.directory.local().map(|(known, _)| (known, of(known))).collect()
    };
    let in_use: BTreeMap<&str, &Drafted> = selected.iter().flat_map(|(_, list)| list).map(|d| (&*d.name, *d)).collect();
    let matchers = rules::matchers(in_use.values().copied());
    let classes = Classes::build(context, &matchers);

    let mut builder = Builder::new(in_use.values().copied());
    let mut pods = BTreeMap::new();
    for (known, policies) in &selected {
        let mut set = |direction| {
            let rules = set_rules(policies, direction, known, &matchers)?;
            Some(builder.set(rules, &classes))
        };
        let (ingress, egress) = (set(Direction::Ingress), set(Direction::Egress));
        let uid = known.pod.map_or("", |p| p.uid.as_str());
        let content = (ingress.map(|(_, c)| c), egress.map(|(_, c)| c));
        let version = stamp(&(uid, &known.addresses, content));
        let of = |set: Option<(PolicySetId, u64)>| set.map(|(id, _)| id);
        pods.insert(known.name.clone(), PodRules { ingress: of(ingress), egress: of(egress), version });
    }
    CompiledPolicy { policy: builder.policy, identities: classes.identities, pods }
}

/// Whom a policy applies to.
enum Subject<'a> {
    Namespaced(&'a crate::model::NetworkPolicy),
    Cluster(&'a crate::model::ClusterNetworkPolicy),
}

impl Subject<'_> {
    fn selects(&self, context: &Context<'_>, known: &Known<'_>) -> bool {
        let none = Labels::new();
        let labels = known.pod.map_or(&none, |p| &p.labels);
        match self {
            Subject::Namespaced(policy) => policy.name.namespace == known.name.namespace && policy.pods.matches(labels),
            Subject::Cluster(policy) => {
                let namespace = context.cluster.namespace_labels(&known.name.namespace).unwrap_or(&none);
                policy.subject.namespaces.matches(namespace) && policy.subject.pods.matches(labels)
            }
        }
    }
}

/// All policies in the order of evaluation: cluster-wide ones by tier, priority and name, namespaced ones by name.
fn drafted<'a>(context: &Context<'a>) -> Vec<(Subject<'a>, Drafted)> {
    let mut cluster: Vec<_> = context.cluster.cluster_network_policies.values().collect();
    cluster.sort_by_key(|p| (p.tier, p.priority, p.name.clone()));
    let cluster = cluster.into_iter().map(|p| (Subject::Cluster(p), Drafted::of_cluster(p)));
    let namespaced = context.cluster.network_policies.values();
    cluster.chain(namespaced.map(|p| (Subject::Namespaced(p), Drafted::of(p)))).collect()
}

/// The rules of a direction; none where no policy speaks of it.
fn set_rules(
    policies: &[&Drafted],
    direction: Direction,
    known: &Known<'_>,
    matchers: &matchers::Matchers,
) -> Option<SetRules> {
    let speaking: Vec<_> = policies.iter().filter_map(|p| Some((*p, p.rules(direction)?))).collect();
    if speaking.is_empty() {
        return None;
    }
    let isolating: Vec<_> = speaking.iter().map(|(p, _)| p).filter(|p| p.tier == Tier::Namespaced).collect();
    let isolation = match isolating.first() {
        None => Isolated::Open,
        Some(first) if isolating.iter().all(|p| p.audit) => Isolated::Audited(first.name.clone()),
        Some(_) => Isolated::Enforced,
    };
    let rules = speaking.iter().flat_map(|(policy, drafts)| {
        drafts.iter().map(|draft| Rule::number(policy, draft, direction, known.pod, matchers))
    });
    Some(SetRules { isolation, rules: rules.collect() })
}

/// Folds sets and keeps equal ones once.
struct Builder {
    policy: Policy,
    rule_ids: BTreeMap<Arc<str>, RuleId>,
    sets: HashMap<SetRules, (PolicySetId, u64)>,
    maps: HashMap<PortMap, u32>,
    /// Hash of each map with the names of its rules.
    map_content: Vec<u64>,
}

impl Builder {
    fn new<'a>(policies: impl Iterator<Item = &'a Drafted>) -> Builder {
        let mut names: BTreeSet<Arc<str>> = BTreeSet::new();
        for policy in policies {
            names.extend(policy.ingress.iter().chain(&policy.egress).flatten().map(|draft| draft.name.clone()));
            names.extend(policy.audit.then(|| policy.name.clone()));
        }
        let rule_ids = names.iter().cloned().zip((2..).map(RuleId)).collect();
        let names = ["".into(), "isolation".into()].into_iter().chain(names).collect();
        let policy = Policy { names, ..Policy::default() };
        Builder { policy, rule_ids, sets: HashMap::new(), maps: HashMap::new(), map_content: Vec::new() }
    }

    fn set(&mut self, rules: SetRules, classes: &Classes) -> (PolicySetId, u64) {
        if let Some(known) = self.sets.get(&rules) {
            return *known;
        }
        // Most classes are told apart by other sets' rules only, so that few foldings serve all of them.
        let mut folded: HashMap<Vec<(usize, PortMatcher)>, u32> = HashMap::new();
        let mut maps = Vec::with_capacity(classes.list.len());
        for class in &classes.list {
            let matching = matching(&rules, class);
            let map = match folded.get(&matching) {
                Some(map) => *map,
                None => {
                    let map = self.map(&rules, &matching);
                    folded.insert(matching, map);
                    map
                }
            };
            maps.push(map);
        }
        let default = maps[0];
        let differing = maps.iter().zip(0..).filter(|(map, _)| **map != default);
        let by_identity = differing.map(|(map, id)| (IdentityId(id), *map)).collect();
        let id = PolicySetId(self.policy.sets.len() as u32);
        self.policy.sets.push(Arc::new(PolicySet { default, by_identity }));
        let content = self.content(&maps, classes);
        self.sets.insert(rules, (id, content));
        (id, content)
    }

    /// Folds the rules that match, each with what it asks of ports; the number of the port map.
    fn map(&mut self, set: &SetRules, matching: &[(usize, PortMatcher)]) -> u32 {
        let id = |name: &Arc<str>| self.rule_ids.get(name).copied().unwrap_or(RuleId::ISOLATION);
        let isolation = match &set.isolation {
            Isolated::Open => Isolation::Open,
            Isolated::Enforced => Isolation::Enforced,
            Isolated::Audited(name) => Isolation::Audited(id(name)),
        };
        let mut builder = PortMapBuilder::new(isolation);
        for (at, ports) in matching {
            let Rule { tier, action, audit, name, .. } = &set.rules[*at];
            builder.push(TierRule { tier: *tier, ports: *ports, action: *action, rule: id(name), audit: *audit });
        }
        let map = builder.build();
        if let Some(number) = self.maps.get(&map) {
            return *number;
        }
        let number = self.policy.maps.len() as u32;
        self.map_content.push(self.named_content(&map));
        self.policy.maps.push(Arc::new(map.clone()));
        self.maps.insert(map, number);
        number
    }

    /// A hash of a port map that does not depend on how rules are numbered.
    fn named_content(&self, map: &PortMap) -> u64 {
        let mut hasher = StableHasher::default();
        let decision = |d: &Decision, hasher: &mut StableHasher| {
            (d.allow, d.audit).hash(hasher);
            self.policy.names.get(d.rule.0 as usize).hash(hasher);
        };
        for intervals in [&map.tcp, &map.udp, &map.sctp] {
            intervals.len().hash(&mut hasher);
            for (from, d) in intervals {
                from.hash(&mut hasher);
                decision(d, &mut hasher);
            }
        }
        decision(&map.other, &mut hasher);
        hasher.finish()
    }

    /// A hash of the function from address to decisions: only addresses and prefixes where it changes are in it, so
    /// that other sets' rules leave it alone.
    fn content(&self, maps: &[u32], classes: &Classes) -> u64 {
        let of = |id: IdentityId| maps.get(id.0 as usize).and_then(|m| self.map_content.get(*m as usize)).copied();
        let default = of(IdentityId(0)).unwrap_or_default();
        let mut hasher = StableHasher::default();
        default.hash(&mut hasher);
        let mut around: Lpm<u64> = Lpm::default();
        for (prefix, id) in classes.identities.prefixes.entries() {
            let here = of(*id).unwrap_or(default);
            if here != around.lookup(prefix.address()).copied().unwrap_or(default) {
                around.insert(prefix, here);
                (prefix, here).hash(&mut hasher);
            }
        }
        let mut exact: Vec<(Address, u64)> = Vec::new();
        for (members, id) in classes.members.iter().zip(0..) {
            let here = of(IdentityId(id)).unwrap_or(default);
            if here == default && around.is_empty() {
                continue;
            }
            let told = |a: &&Address| here != around.lookup(**a).copied().unwrap_or(default);
            exact.extend(members.iter().filter(told).map(|a| (*a, here)));
        }
        exact.sort_unstable();
        exact.hash(&mut hasher);
        hasher.finish()
    }
}

/// The rules of a set that a class matches, by position, with the ports each asks for.
fn matching(set: &SetRules, class: &Class) -> Vec<(usize, PortMatcher)> {
    let mut out = Vec::new();
    for (at, rule) in set.rules.iter().enumerate() {
        if !rule.peers.as_ref().is_none_or(|peers| peers.iter().any(|m| class.answers(*m))) {
            continue;
        }
        for ports in &rule.ports {
            match ports {
                Ports::Fixed(matcher) => out.push((at, *matcher)),
                Ports::OfPeer(name) => {
                    let named = class.ports.iter().filter(|(n, ..)| n == name);
                    out.extend(named.map(|(_, t, port)| (at, PortMatcher::Range(*t, *port, *port))));
                }
            }
        }
    }
    out
}
