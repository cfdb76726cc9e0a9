//! Policy: what every local pod may receive from and send to whom, as lookups.
//!
//! Owner: the control thread. Only pods with a port here get rule sets, and only the questions of policies that select
//! one of them make identities. Pods with equal rules share a set. Invariants: a pod's version is a stamp of what its
//! flows' verdicts depend on (its uid and addresses; for each direction, which addresses meet which decisions), so it
//! moves when a peer's labels change what the peer may do, and not when rules, pods or numbers change elsewhere. What the
//! last compilation left ([`PolicyState`]) saves work and never changes the result: while the same policies select the
//! same way, a change of pods costs what depends on these pods.
//! Cost: rules + networks + pods + members of peers per set; a change of pods: one walk over the names of all pods.

pub(crate) mod identities;
mod label_index;
pub(crate) mod matchers;
pub(crate) mod rules;
mod sets;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_tables::policy::RuleNames;
use sluice_tables::stable_hash::stamp;
use sluice_tables::{Domains, Identities, Policy, PolicySetId};

use super::{CompileError, Context};
use crate::model::NamespacedName;
use sets::{Entry, SetKey, Workshop};
pub(crate) use state::PolicyState;

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
    pub state: Arc<PolicyState>,
    pods: BTreeMap<NamespacedName, PodRules>,
}

impl CompiledPolicy {
    pub fn of(&self, pod: &NamespacedName) -> PodRules {
        self.pods.get(pod).copied().unwrap_or_default()
    }
}

/// Most classes that all sets together may list; a set's share of memory is some 10 bytes for each.
const MOST_LISTED: usize = 1 << 26;

pub(crate) fn compile(context: &Context<'_>, last: Option<&PolicyState>) -> Result<CompiledPolicy, CompileError> {
    let (mut state, moved) = PolicyState::of(context, last);
    let kept = last.filter(|_| moved.is_some()).map(|last| &last.sets);
    let moved = moved.unwrap_or_default();
    let mut workshop = Workshop {
        drafts: &state.selection.drafts,
        rules: &state.plan.rules,
        matchers: &state.plan.matchers,
        classes: &state.classes,
        names: &state.plan.names,
        maps: Default::default(),
    };
    let mut made: std::collections::HashMap<Arc<SetKey>, (PolicySetId, Entry, u64)> = Default::default();
    let mut policy =
        Policy { sets: Vec::new(), names: Arc::clone(&state.plan.names), domains: Arc::clone(&state.plan.domains) };
    let mut pods = BTreeMap::new();
    let (mut listed, mut widest) = (0, (0, 0));
    for facts in state.facts.iter().filter(|facts| facts.local) {
        let mut set = |key: &Option<Arc<SetKey>>| {
            let key = key.as_ref()?;
            if let Some((id, _, content)) = made.get(key) {
                return Some((*id, *content));
            }
            let known = kept.and_then(|sets| sets.get(key)).filter(|entry| !sets::is_touched(&entry.asks, &moved));
            let entry = known.cloned().unwrap_or_else(|| workshop.entry(key));
            let id = PolicySetId(policy.sets.len() as u32);
            let content = entry.content(&state.classes);
            policy.sets.push(Arc::clone(&entry.set));
            listed += entry.set.by_identity.len();
            if entry.widest.1 > widest.1 {
                widest = entry.widest;
            }
            made.insert(Arc::clone(key), (id, entry, content));
            Some((id, content))
        };
        let (ingress, egress) = (set(&facts.keys[0]), set(&facts.keys[1]));
        let uid = facts.pod.as_ref().map_or("", |p| p.uid.as_str());
        let content = (ingress.map(|(_, c)| c), egress.map(|(_, c)| c));
        let version = stamp(&(uid, &facts.addresses, content));
        let of = |set: Option<(PolicySetId, u64)>| set.map(|(id, _)| id);
        pods.insert(facts.name().clone(), PodRules { ingress: of(ingress), egress: of(egress), version });
    }
    if listed > MOST_LISTED {
        let culprit = state.selection.drafts[widest.0 as usize].name.to_string();
        return Err(CompileError::PolicyTooWide { listed, limit: MOST_LISTED, culprit });
    }
    state.sets = made.into_iter().map(|(key, (_, entry, _))| (key, entry)).collect();
    let identities = state.classes.identities();
    Ok(CompiledPolicy { policy, identities, state: Arc::new(state), pods })
}

/// Names of the rules and policies that verdicts may name.
fn rule_names<'a>(drafts: impl Iterator<Item = &'a rules::Drafted>) -> RuleNames {
    let names = drafts.flat_map(|policy| {
        let rules = policy.ingress.iter().chain(&policy.egress).flatten().map(|draft| draft.name.clone());
        rules.chain(policy.audit.then(|| policy.name.clone()))
    });
    RuleNames::new(names)
}

/// Domain names that rules speak of.
fn domains<'a>(drafts: impl Iterator<Item = &'a rules::Drafted>) -> Domains {
    let rules = drafts.flat_map(|policy| policy.egress.iter().flatten());
    Domains::new(rules.flat_map(|draft| draft.domains.iter().map(String::as_str)))
}
