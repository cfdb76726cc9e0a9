//! Policy: what every local pod may receive from and send to whom, as lookups.
//!
//! Owner: the control thread. Only pods with a port here get rule sets, and only the questions of policies that speak of
//! one of their namespaces make identities. Pods with equal rules share a set. Invariants: a pod's version is a stamp of
//! what its flows' verdicts depend on (its uid and addresses; for each direction, which addresses meet which decisions), so
//! it moves when a peer's labels change what the peer may do, and not when rules, pods or numbers change elsewhere. What
//! the last compilation left ([`PolicyState`]) saves work and never changes the result: while the pods here live in the
//! same namespaces, a change of pods costs what depends on these pods.
//! Cost: rules + networks + pods + members of peers per set; a change of pods or labels: a few pointers and numbers for
//! each pod.

pub(crate) mod identities;
mod label_index;
pub(crate) mod matchers;
pub(crate) mod rules;
mod sets;
mod state;

use std::sync::Arc;

use hashbrown::HashMap;

use sluice_tables::policy::RuleNames;
use sluice_tables::stable_hash::stamp;
use sluice_tables::{Domains, Identities, Policy, PolicySetId};

use super::{CompileError, Context, Knobs};
use crate::model::{Cluster, NamespacedName, Pod};
use identities::Moved;
use sets::{Asked, Entry, SetKey, Workshop};
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
    /// In the order of [`PolicyState::facts`].
    rules: Vec<PodRules>,
}

impl CompiledPolicy {
    pub fn of(&self, pod: &NamespacedName) -> PodRules {
        let at = self.state.facts.binary_search_by(|facts| facts.name().cmp(pod));
        at.ok().and_then(|at| self.rules.get(at)).copied().unwrap_or_default()
    }

    /// The rules of every pod with a port here, by port.
    pub fn by_port(&self) -> impl Iterator<Item = (u16, PodRules)> + '_ {
        self.state.facts.iter().zip(&self.rules).filter_map(|(facts, rules)| Some((facts.port?, *rules)))
    }
}

pub(crate) fn compile(context: &Context<'_>, last: Option<&PolicyState>) -> Result<CompiledPolicy, CompileError> {
    let (state, moved) = PolicyState::of(context, last);
    let kept = last.and_then(|last| Some((last, moved?)));
    fold(state, kept, context.knobs.listed_peers)
}

/// After changes of these pods that leave addresses and ports as they were, in a cluster that is else the same; `None`
/// where only [`compile`] gives the right numbers.
pub(crate) fn relabelled(
    cluster: &Cluster,
    knobs: &Knobs,
    pods: &[Arc<Pod>],
    last: &PolicyState,
) -> Option<Result<CompiledPolicy, CompileError>> {
    let (state, moved) = last.relabelled(cluster, pods)?;
    Some(fold(state, Some((last, moved)), knobs.listed_peers))
}

/// Every set that a pod here needs, numbered in the order of pods; those that are as before are taken from `kept`. All of
/// them together list no more than `limit` classes of peers.
fn fold(
    mut state: PolicyState,
    kept: Option<(&PolicyState, Moved)>,
    limit: usize,
) -> Result<CompiledPolicy, CompileError> {
    let matchers = &state.plan.matchers;
    let asked = kept.as_ref().map(|(_, moved)| Asked::of(moved, matchers.len() + matchers.names.len()));
    let workshop = Workshop {
        drafts: &state.selection.drafts,
        rules: &state.plan.rules,
        matchers,
        classes: &state.classes,
        names: &state.plan.names,
    };
    let mut numbers: HashMap<usize, (PolicySetId, u64)> = HashMap::new();
    let mut sets: HashMap<usize, Arc<Entry>> = HashMap::new();
    let mut policy =
        Policy { sets: Vec::new(), names: Arc::clone(&state.plan.names), domains: Arc::clone(&state.plan.domains) };
    let mut rules = Vec::with_capacity(state.facts.len());
    let (mut listed, mut widest) = (0, (0, 0));
    for facts in &state.facts {
        if facts.port.is_none() {
            rules.push(PodRules::default());
            continue;
        }
        let mut set = |key: &Option<Arc<SetKey>>| {
            let key = key.as_ref()?;
            let place = Arc::as_ptr(key) as usize;
            if let Some(known) = numbers.get(&place) {
                return Some(*known);
            }
            let before = kept.as_ref().and_then(|(last, _)| last.sets.get(&place));
            let known = before.zip(asked.as_ref()).and_then(|(entry, asked)| entry.after(asked, &state.classes));
            let entry = known.unwrap_or_else(|| Arc::new(workshop.entry(key)));
            let known = (PolicySetId(policy.sets.len() as u32), entry.content);
            policy.sets.push(Arc::clone(&entry.set));
            listed += entry.set.by_identity.len();
            if entry.widest.1 > widest.1 {
                widest = entry.widest;
            }
            numbers.insert(place, known);
            sets.insert(place, entry);
            Some(known)
        };
        let [ingress, egress] = &facts.keys;
        let (ingress, egress) = (set(ingress), set(egress));
        let uid = facts.pod.as_ref().map_or("", |p| p.uid.as_str());
        let content = (ingress.map(|(_, c)| c), egress.map(|(_, c)| c));
        let version = stamp(&(uid, &facts.addresses, content));
        let of = |set: Option<(PolicySetId, u64)>| set.map(|(id, _)| id);
        rules.push(PodRules { ingress: of(ingress), egress: of(egress), version });
    }
    if listed > limit {
        let culprit = state.selection.drafts[widest.0 as usize].name.to_string();
        return Err(CompileError::PolicyTooWide { listed, limit, culprit });
    }
    state.sets = sets;
    let identities = state.classes.identities();
    Ok(CompiledPolicy { policy, identities, state: Arc::new(state), rules })
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
