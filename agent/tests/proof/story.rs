//! One story: a cluster and flows through it, then changes and the flows' next packets; and how a story that fails is made
//! small and told.

use crate::chance::Chance;
use crate::flow::{Flow, Part};
use crate::node::{Control, Node, Outcome};
use crate::world::World;
use serde_json::Value;
use sluice_engine::Reason;
use sluice_port::{FramePool, PoolOptions};
use sluice_tables::{Direction, Tables};
use sluice_testkit::policy::{Objects, Said, Way};
use std::fmt;

/// Changes of a cluster in one story.
const CHANGES: usize = 2;

/// What was counted.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub clusters: usize,
    pub cases: usize,
    pub allowed: usize,
    pub denied: usize,
    /// Packets of flows that had begun under other objects.
    pub later: usize,
    /// Those among them whose verdict had turned.
    pub turned: usize,
    /// Sides decided by the Admin and Baseline tier, and by NetworkPolicies.
    pub by_cluster: usize,
    pub by_namespace: usize,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.clusters += other.clusters;
        self.cases += other.cases;
        self.allowed += other.allowed;
        self.denied += other.denied;
        self.later += other.later;
        self.turned += other.turned;
        self.by_cluster += other.by_cluster;
        self.by_namespace += other.by_namespace;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cases in {} clusters ({} allowed, {} denied; {} of flows that had begun before a change, {} of them \
             turned by it; sides decided by ClusterNetworkPolicies {}, by NetworkPolicies {})",
            self.cases,
            self.clusters,
            self.allowed,
            self.denied,
            self.later,
            self.turned,
            self.by_cluster,
            self.by_namespace
        )
    }
}

/// Where two opinions differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Index of the flow.
    pub flow: usize,
    /// How many changes the cluster had seen.
    pub round: usize,
    pub what: String,
}

/// Everything of a story that is not policy.
struct Script {
    worlds: Vec<World>,
    flows: Vec<Flow>,
    /// Flows of each round that are not left out.
    told: Vec<bool>,
    seed: u64,
    workers: u16,
    liar: bool,
}

impl Script {
    fn new(seed: u64, packets: usize, liar: bool) -> Script {
        let mut chance = Chance::new(seed);
        let mut worlds = vec![World::new(&mut chance)];
        for _ in 0..CHANGES {
            worlds.push(worlds[worlds.len() - 1].changed(&mut chance));
        }
        let workers = 1 + chance.below(3) as u16;
        let flows: Vec<Flow> = (0..packets).map(|n| Flow::new(&worlds[0], &mut chance, n)).collect();
        Script { told: vec![true; flows.len()], worlds, flows, seed, workers, liar }
    }

    /// Two thirds of the flows begin before the first change, the others after one.
    fn begins(&self, flow: usize) -> usize {
        (flow % 6).saturating_sub(3)
    }

    fn run(&self, tally: &mut Tally) -> Result<(), Difference> {
        let mut control = Control::new(self.workers);
        let pool = FramePool::new(PoolOptions { frames: 2048, huge_pages: false }).expect("memory");
        let mut node: Option<Node> = None;
        // What each flow's last packet met, and whether the other side has answered.
        let mut last: Vec<Option<bool>> = vec![None; self.flows.len()];
        let mut answered = vec![false; self.flows.len()];
        let mut came_out: Vec<Option<Vec<u8>>> = vec![None; self.flows.len()];
        for (round, world) in self.worlds.iter().enumerate() {
            let (tables, view) = control.compile(world);
            match &mut node {
                Some(node) => node.adopt(&tables),
                None => node = Some(Node::new(&tables, &view, self.workers, 2048, &pool)),
            }
            let node = node.as_mut().expect("made above");
            let objects = Objects { list: world.objects.clone() };
            for (at, flow) in self.flows.iter().enumerate() {
                if !self.told[at] || self.begins(at) > round {
                    continue;
                }
                let mut chance = Chance::new(self.seed ^ ((at as u64) << 20) ^ ((round as u64) << 50));
                let differ = |what: String| Difference { flow: at, round, what };
                let said = asked(flow, objects.both(&flow.seen));
                agree_with_tables(flow, &said, &tables).map_err(differ)?;
                for side in said.iter().flatten() {
                    match side.by.as_deref() {
                        Some(by) if by.starts_with('C') => tally.by_cluster += 1,
                        Some(_) => tally.by_namespace += 1,
                        None => {}
                    }
                }
                let mut allow = said.iter().flatten().all(|said| said.allow);
                allow |= self.liar && at % 7 == 0;
                let begun = last[at].is_some();
                let back = last[at] == Some(true) && answered[at] && chance.one_in(2);
                let outcome = match (&came_out[at], back) {
                    (Some(bytes), true) => node.send(flow.leaves, flow.answer(bytes), at),
                    _ => {
                        let part = if last[at] == Some(true) && answered[at] { Part::Follows } else { Part::Opens };
                        node.send(flow.enters, flow.packet(part), at)
                    }
                };
                judge(flow, allow, back, begun, &said, &outcome).map_err(differ)?;
                tally.cases += 1;
                tally.allowed += usize::from(allow);
                tally.denied += usize::from(!allow);
                tally.later += usize::from(begun);
                tally.turned += usize::from(last[at].is_some_and(|last| last != allow));
                last[at] = Some(allow);
                answered[at] &= allow;
                if !back && let Some((_, bytes)) = outcome.out {
                    // Replies of an allowed flow pass whatever policies say of the other way.
                    if chance.one_in(2) {
                        let outcome = node.send(flow.leaves, flow.answer(&bytes), at);
                        judge(flow, true, true, true, &said, &outcome)
                            .map_err(|what| differ(format!("the reply to it: {what}")))?;
                        answered[at] = true;
                        tally.cases += 1;
                        tally.allowed += 1;
                    }
                    came_out[at] = Some(bytes);
                }
            }
        }
        tally.clusters += self.worlds.len();
        Ok(())
    }

    /// Leaves out what the difference does not need.
    fn shrink(&mut self, mut difference: Difference) -> Difference {
        let fails = |script: &Script| script.run(&mut Tally::default()).err();
        let alone: Vec<bool> = (0..self.flows.len()).map(|at| at == difference.flow).collect();
        let all = std::mem::replace(&mut self.told, alone);
        match fails(self) {
            Some(smaller) => difference = smaller,
            None => self.told = all,
        }
        let names: Vec<(String, String, String)> = self.worlds.iter().flat_map(|w| &w.objects).map(key).collect();
        for name in names {
            if !["NetworkPolicy", "ClusterNetworkPolicy"].contains(&name.0.as_str()) {
                continue;
            }
            let before = self.worlds.clone();
            self.worlds.iter_mut().for_each(|world| world.objects.retain(|object| key(object) != name));
            match fails(self) {
                Some(smaller) => difference = smaller,
                None => self.worlds = before,
            }
        }
        difference
    }

    fn told(&self, difference: &Difference) -> String {
        let flow = &self.flows[difference.flow];
        let mut text = format!(
            "POLICY_PROOF_SEED={} POLICY_PROOF_CASES=1, after {} changes, {} workers: {}\n{flow:?}\n",
            self.seed, difference.round, self.workers, difference.what
        );
        for world in &self.worlds[difference.round.saturating_sub(1)..=difference.round] {
            text.push_str("\n# the cluster, before and after the last change\n");
            for object in world.objects.iter().filter(|object| object["kind"] != "Service") {
                text.push_str(&format!("---\n{object}\n"));
            }
        }
        text
    }
}

fn key(object: &Value) -> (String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

/// The sides that this node asks.
fn asked(flow: &Flow, both: [Option<Said>; 2]) -> [Option<Said>; 2] {
    let [egress, ingress] = both;
    [egress.filter(|_| flow.asked[0]), ingress.filter(|_| flow.asked[1])]
}

fn agree_with_tables(flow: &Flow, said: &[Option<Said>; 2], tables: &Tables) -> Result<(), String> {
    let sides = [(Way::Egress, flow.seen.from, flow.seen.to), (Way::Ingress, flow.seen.to, flow.seen.from)];
    for (said, (way, own, peer)) in said.iter().zip(sides) {
        let Some(said) = said else { continue };
        let pod = tables.pods.by_address(own.into()).ok_or("the pod has no port")?;
        let (direction, set) = match way {
            Way::Egress => (Direction::Egress, pod.egress),
            Way::Ingress => (Direction::Ingress, pod.ingress),
        };
        let protocol = match (flow.seen.protocol, own.is_ipv6()) {
            ("TCP", _) => 6,
            ("UDP", _) => 17,
            ("SCTP", _) => 132,
            (_, false) => 1,
            (_, true) => 58,
        };
        let decision = tables.policy.decide(set, tables.identities.of(peer.into()), protocol, flow.seen.port);
        let by = tables.policy.name(decision.rule).map(|name| name.to_string());
        if decision.allow != said.allow || (!said.audited && (by != said.by || decision.audit)) {
            return Err(format!("{direction:?}: the objects say {said:?}, the tables {decision:?} by {by:?}"));
        }
    }
    Ok(())
}

fn judge(
    flow: &Flow,
    allow: bool,
    back: bool,
    begun: bool,
    said: &[Option<Said>; 2],
    outcome: &Outcome,
) -> Result<(), String> {
    let wanted = if back { flow.enters } else { flow.leaves };
    match (&outcome.out, allow) {
        (Some((gate, _)), true) if *gate == wanted => Ok(()),
        (None, false) if outcome.reason == Some(Reason::PolicyDeny) => {
            let deny = said.iter().flatten().find(|said| !said.allow);
            match deny {
                Some(deny) if !begun && outcome.rule != deny.by => {
                    Err(format!("denied by {:?}, but its record names {:?}", deny.by, outcome.rule))
                }
                _ => Ok(()),
            }
        }
        _ => Err(format!(
            "the objects say {said:?}, so allow={allow}, back={back}, begun={begun}; the pipeline did {outcome:?}"
        )),
    }
}

/// Tells the story of a seed.
pub fn tell(seed: u64, packets: usize, tally: &mut Tally) -> Result<(), Difference> {
    Script::new(seed, packets, false).run(tally)
}

/// The same where every seventh flow is expected to pass, whatever the objects say.
pub fn tell_to_a_liar(seed: u64, packets: usize) -> Result<(), Difference> {
    Script::new(seed, packets, true).run(&mut Tally::default())
}

/// The smallest form of a story that fails, with its objects.
pub fn smallest(seed: u64, packets: usize, difference: Difference) -> String {
    let mut script = Script::new(seed, packets, false);
    let difference = script.shrink(difference);
    script.told(&difference)
}

/// The same for [`tell_to_a_liar`].
pub fn smallest_of_a_liar(seed: u64, packets: usize, difference: Difference) -> String {
    let mut script = Script::new(seed, packets, true);
    let difference = script.shrink(difference);
    script.told(&difference)
}
