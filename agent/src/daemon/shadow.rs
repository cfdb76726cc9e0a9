//! Shadow: a candidate set of policies judged beside the enforced one, on the node's own flows; packets are not touched.
//!
//! A thread for each trial. It compiles the candidate for this node as the control thread compiles the enforced set (and
//! again when the cluster has changed), and asks both tables about every flow that workers remember, in slices, once a
//! second; packets that policy denies come from the workers' trace. So a flow is seen unless it is over within a second and
//! forgotten. Invariants: nothing of a trial is published; flows that are counted and decisions that are listed are bounded;
//! the trial ends with its time, with its reader or with the agent.

use super::control::{Control, Link};
use super::observe::{Listener, Told, Wanted};
use crate::api::report::{TryChange, TryReport, TryRequest};
use crate::domain_names::Known;
use sluice_ctrl::compile::{Knobs, LocalView, compile};
use sluice_ctrl::import::{Defaults, Importer};
use sluice_ctrl::model::{Cluster, Family};
use sluice_ctrl::source::{Identified, Kind, ObjectKey, ObjectSet, Origin, RawObject, identify};
use sluice_engine::flow::{Entry, Side, Tuple};
use sluice_engine::reason::{Reason, Stage};
use sluice_engine::trace::Event;
use sluice_tables::stable_hash::StableHasher;
use sluice_tables::{Address, Decision, Direction, DomainId, Tables};
use sluice_wire::layers::{Layers, Transport};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Between two looks at the flows.
const EVERY: Duration = Duration::from_secs(1);
/// Flows that a worker tells of between two batches of packets.
pub const SLICE: usize = 4096;
/// Longest trial.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Decisions that are listed.
const MOST_CHANGES: usize = 10_000;
/// Flows that are told apart; more are counted again each time they are seen.
const MOST_FLOWS: usize = 1 << 20;

/// A flow as a worker remembers it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its first packet as it came in.
    pub came: Tuple,
    /// The same as it leaves.
    pub left: Tuple,
    /// Port of the pod whose border it crosses; 0 for none.
    pub zone: u16,
    /// Which way.
    pub side: Side,
}

impl Seen {
    /// From the entry of its first packet.
    pub fn of<E: Entry>(original: &E) -> Seen {
        let (came, zone, side) = original.parts();
        Seen { came, left: original.to(), zone, side }
    }
}

/// What a compilation needs.
struct Ground {
    objects: ObjectSet,
    defaults: Defaults,
    view: LocalView,
    knobs: Knobs,
    enforced: Tables,
    generation: u64,
    workers: usize,
}

impl Control {
    fn ground(&self) -> Ground {
        Ground {
            objects: ObjectSet::clone(&self.snapshot.objects),
            defaults: self.defaults(),
            view: self.view.clone(),
            knobs: self.knobs.clone(),
            enforced: self.publisher.current().tables.clone(),
            generation: self.publisher.generation(),
            workers: self.workers.len(),
        }
    }
}

/// The candidate's policies by name, and what pods are taken to know with it.
struct Candidate {
    objects: BTreeMap<ObjectKey, Arc<RawObject>>,
    replace_all: bool,
    said: Known,
}

impl Candidate {
    fn read(request: TryRequest) -> Result<Candidate, String> {
        let mut objects = BTreeMap::new();
        for (line, value) in (1..).zip(request.objects) {
            let key = match identify(&value) {
                Ok(Identified::Key(key)) => key,
                Ok(Identified::Other(_)) => continue,
                Err(error) => return Err(format!("object {line}: {error}")),
            };
            if is_policy(key.kind) {
                let origin = Origin::File { path: Path::new("candidate").into(), line };
                objects.insert(key, Arc::new(RawObject { value, origin }));
            }
        }
        if objects.is_empty() && !request.replace_all {
            return Err("there is no NetworkPolicy and no ClusterNetworkPolicy among the objects".to_owned());
        }
        let mut said = Known::default();
        for (name, addresses) in request.dns {
            said.add(&name, addresses)?;
        }
        Ok(Candidate { objects, replace_all: request.replace_all, said })
    }

    /// The cluster's objects with the candidate's policies in place of those of the same name, or of all.
    fn beside(&self, enforced: &ObjectSet) -> ObjectSet {
        let mut set = enforced.clone();
        if self.replace_all {
            set.objects.retain(|key, _| !is_policy(key.kind));
        }
        set.objects.extend(self.objects.iter().map(|(key, object)| (key.clone(), object.clone())));
        set
    }
}

fn is_policy(kind: Kind) -> bool {
    matches!(kind, Kind::NetworkPolicy | Kind::ClusterNetworkPolicy)
}

/// Both sets of tables, and who has which address.
struct Stand {
    enforced: Tables,
    candidate: Tables,
    names: HashMap<IpAddr, String>,
    generation: u64,
    workers: usize,
    problems: Vec<String>,
    said: Known,
    /// What pods were told of domain names, by port and address.
    learned: HashMap<(u16, Address), Vec<DomainId>>,
}

impl Stand {
    fn new(ground: Ground, candidate: &Candidate) -> Result<Stand, String> {
        let set = candidate.beside(&ground.objects);
        let (cluster, invalid) = Importer::default().build(&set, &ground.defaults);
        let compiled = compile(&cluster, &ground.view, &ground.knobs, None).map_err(|error| error.to_string())?;
        let of_candidate = |key: &ObjectKey| candidate.objects.contains_key(key);
        let told = invalid.iter().filter(|invalid| {
            let (namespace, name) = invalid.name.split_once('/').unwrap_or(("", &invalid.name));
            of_candidate(&ObjectKey { kind: invalid.kind, namespace: namespace.into(), name: name.into() })
        });
        let mut problems: Vec<String> = told.map(ToString::to_string).collect();
        problems.extend(unheard(&ground.enforced, &compiled.tables, &candidate.said));
        Ok(Stand {
            enforced: ground.enforced,
            candidate: compiled.tables,
            names: names(&cluster),
            generation: ground.generation,
            workers: ground.workers,
            problems,
            said: candidate.said.clone(),
            learned: HashMap::new(),
        })
    }

    /// Whether any rule of either side speaks of domain names.
    fn asks_for_domains(&self) -> bool {
        !(self.enforced.policy.domains.is_empty() && self.candidate.policy.domains.is_empty())
    }

    fn name(&self, address: Address) -> String {
        let ip = IpAddr::from(address);
        self.names.get(&ip).cloned().unwrap_or_else(|| ip.to_string())
    }

    /// What both sets say of a flow's first packet at a pod's border, sent to `asked` before Service translation; none where
    /// no policy is asked.
    fn judge(&self, zone: u16, direction: Direction, tuple: &Tuple, asked: Address) -> Option<[Decision; 2]> {
        let own = match direction {
            Direction::Ingress => tuple.source,
            Direction::Egress => tuple.destination,
        };
        if direction == Direction::Ingress && self.enforced.node.owns(own) {
            return None;
        }
        let port = if matches!(tuple.protocol, 6 | 17 | 132) { tuple.destination_port } else { 0 };
        let learned = |names: &[DomainId]| {
            let told = [own, asked].into_iter().filter_map(|address| self.learned.get(&(zone, address)));
            told.flatten().any(|id| names.binary_search(id).is_ok())
        };
        let ask = |tables: &Tables, said: Option<&Known>| {
            let pod = tables.pods.by_port(zone)?;
            let (policy, identity) = (&tables.policy, tables.identities.of(own));
            if direction == Direction::Ingress {
                return Some(policy.decide(pod.ingress, identity, tuple.protocol, port));
            }
            let knows = |names: &[DomainId]| {
                let is_said = |known: &Known| {
                    [own, asked].into_iter().any(|address| known.knows(&policy.domains, address.into(), names))
                };
                learned(names) || said.is_some_and(is_said)
            };
            Some(policy.decide_learned(pod.egress, identity, tuple.protocol, port, knows).0)
        };
        Some([ask(&self.enforced, None)?, ask(&self.candidate, Some(&self.said))?])
    }
}

/// What to say of domain names that pods cannot have learned, because no enforced rule speaks of them.
fn unheard(enforced: &Tables, candidate: &Tables, said: &Known) -> Option<String> {
    let heard = enforced.policy.domains.texts();
    let mut new = candidate.policy.domains.texts();
    new.retain(|name| !heard.contains(name) && !said.speaks_of(name));
    (!new.is_empty()).then(|| {
        format!(
            "nothing is learned of {} as long as no enforced rule speaks of it: the candidate's rules match nothing there; \
             --dns NAME=ADDRESS says an address",
            new.join(", ")
        )
    })
}

/// Who has which address: pods, then nodes.
fn names(cluster: &Cluster) -> HashMap<IpAddr, String> {
    let mut names = HashMap::new();
    for node in cluster.nodes.values() {
        let overlay = [Family::V4, Family::V6].into_iter().filter_map(|family| node.overlay_address(family));
        names.extend(node.internal_ips.iter().copied().chain(overlay).map(|ip| (ip, format!("node/{}", node.name))));
    }
    for pod in cluster.pods.values().filter(|pod| !pod.host_network && !pod.is_finished()) {
        names.extend(pod.addresses.iter().map(|ip| (*ip, pod.name.to_string())));
    }
    names
}

/// What changes are told apart by.
type Place = (Direction, u16, Address, Address, u8, u16);

/// How often a change was met.
struct Met {
    change: TryChange,
}

/// A trial under way.
struct Trial {
    link: Link,
    candidate: Candidate,
    stand: Stand,
    met: BTreeMap<Place, Met>,
    flows: HashSet<u64>,
    report: TryReport,
}

/// Begins a trial; reports come once a second and at its end. The error says what is wrong with the candidate.
pub fn start(link: Link, request: TryRequest) -> Result<mpsc::Receiver<TryReport>, String> {
    let length = Duration::from_secs(request.seconds.max(1)).min(LONGEST);
    let candidate = Candidate::read(request)?;
    let stopping = || "the agent is stopping".to_owned();
    let ground = link.ask(|control| control.ground()).ok_or_else(stopping)?;
    let stand = Stand::new(ground, &candidate)?;
    let (sender, receiver) = mpsc::channel(16);
    let (told, denied) = crossbeam::channel::bounded(4096);
    let (listening, asked) = (sender.clone(), sender.clone());
    let sink = move |packet: &Told| {
        let stage = match packet.event {
            Event::Dropped(Reason::PolicyDeny, stage) => Some(stage),
            Event::Replied(Some(Reason::PolicyDeny)) => None,
            _ => return !listening.is_closed(),
        };
        // A full channel loses the packet: workers never wait.
        let _ = told.try_send((stage, packet.clone()));
        !listening.is_closed()
    };
    let listener = Listener { wanted: Wanted::Denied, sink: Box::new(sink), gone: Box::new(move || asked.is_closed()) };
    link.ask(move |control| control.observers.add(listener, &control.workers)).ok_or_else(stopping)?;
    let report = TryReport {
        seconds: length.as_secs(),
        policies: candidate.objects.keys().map(ToString::to_string).collect(),
        problems: stand.problems.clone(),
        ..TryReport::default()
    };
    let mut trial = Trial { link, candidate, stand, met: BTreeMap::new(), flows: HashSet::new(), report };
    std::thread::Builder::new()
        .name("shadow".to_owned())
        .spawn(move || trial.run(length, &denied, &sender))
        .map_err(|error| format!("cannot start the trial: {error}"))?;
    Ok(receiver)
}

impl Trial {
    fn run(
        &mut self,
        length: Duration,
        denied: &crossbeam::channel::Receiver<(Option<Stage>, Told)>,
        sender: &mpsc::Sender<TryReport>,
    ) {
        let start = Instant::now();
        loop {
            if !self.sweep() {
                return;
            }
            // Packets are taken until the next look is due.
            let due = (Instant::now() + EVERY).min(start + length);
            while let Ok((stage, packet)) = denied.recv_deadline(due) {
                self.denied(stage, &packet);
                if Instant::now() >= due {
                    break;
                }
            }
            let done = start.elapsed() >= length;
            self.report.done = done;
            self.report.elapsed_seconds = start.elapsed().as_secs();
            self.report.changes = self.met.values().map(|met| met.change.clone()).collect();
            if sender.blocking_send(self.report.clone()).is_err() || done {
                return;
            }
        }
    }

    /// Asks about every flow that is remembered; `false` when the agent stops.
    fn sweep(&mut self) -> bool {
        let generation = self.stand.generation;
        let Some(ground) =
            self.link.ask(move |control| (control.publisher.generation() != generation).then(|| control.ground()))
        else {
            return false;
        };
        if let Some(ground) = ground {
            match Stand::new(ground, &self.candidate) {
                Ok(stand) => {
                    self.report.problems = stand.problems.clone();
                    self.stand = stand;
                }
                Err(error) => self.report.problems = vec![format!("not compiled anew after a change: {error}")],
            }
        }
        if self.stand.asks_for_domains() {
            let asked = self.link.ask(|control| control.workers.iter().flat_map(|w| w.lessons()).collect::<Vec<_>>());
            let Some(lessons) = asked else { return false };
            self.stand.learned.clear();
            for lesson in lessons {
                self.stand.learned.entry((lesson.zone, lesson.address)).or_default().push(lesson.name);
            }
        }
        for worker in 0..self.stand.workers {
            let mut next = Some([0, 0]);
            while let Some(from) = next {
                let asked = self.link.ask(move |control| control.workers.get(worker).map(|w| w.seen(from, SLICE)));
                let Some(Some((flows, then))) = asked else { return self.link.ask(|_| ()).is_some() };
                flows.iter().for_each(|flow| self.flow(flow));
                next = then;
            }
        }
        true
    }

    fn flow(&mut self, flow: &Seen) {
        if flow.zone == 0 {
            return;
        }
        let (direction, tuple) = match flow.side {
            // Egress sees what Service translation made of the destination, and the source before masquerade.
            Side::From => {
                let (destination, destination_port) = (flow.left.destination, flow.left.destination_port);
                (Direction::Egress, Tuple { destination, destination_port, ..flow.came })
            }
            Side::To => (Direction::Ingress, flow.came),
        };
        let Some(decisions) = self.stand.judge(flow.zone, direction, &tuple, flow.came.destination) else { return };
        let mut hasher = StableHasher::default();
        (flow.zone, flow.side as u8, tuple.source, tuple.destination).hash(&mut hasher);
        (tuple.source_port, tuple.destination_port, tuple.protocol).hash(&mut hasher);
        let new = if self.flows.len() < MOST_FLOWS { self.flows.insert(hasher.finish()) } else { true };
        if new {
            self.report.flows += 1;
            self.note(flow.zone, direction, &tuple, decisions, |change| change.flows += 1);
        }
    }

    fn denied(&mut self, stage: Option<Stage>, packet: &Told) {
        let Some(mut tuple) = tuple_of(&packet.frame) else { return };
        self.report.denied_packets += 1;
        let asked = tuple.destination;
        let from_pod = self.stand.enforced.pods.by_port(packet.port).map(|pod| pod.port);
        let to_pod = self.stand.enforced.pods.by_address(tuple.destination).map(|pod| pod.port);
        let (zone, direction) = match (stage, from_pod, to_pod) {
            (Some(Stage::Ingress), _, Some(zone)) => (zone, Direction::Ingress),
            (Some(Stage::Ingress), ..) => return,
            (_, Some(zone), _) => {
                if let Some((address, port)) = packet.note.backend {
                    (tuple.destination, tuple.destination_port) = (address, port);
                }
                (zone, Direction::Egress)
            }
            (_, None, Some(zone)) => (zone, Direction::Ingress),
            _ => return,
        };
        if let Some(decisions) = self.stand.judge(zone, direction, &tuple, asked) {
            self.note(zone, direction, &tuple, decisions, |change| change.packets += 1);
        }
    }

    /// Counts a decision that would change.
    fn note(
        &mut self,
        zone: u16,
        direction: Direction,
        tuple: &Tuple,
        [now, then]: [Decision; 2],
        count: impl FnOnce(&mut TryChange),
    ) {
        if now.allow == then.allow {
            return;
        }
        let port = if matches!(tuple.protocol, 6 | 17 | 132) { tuple.destination_port } else { 0 };
        let place = (direction, zone, tuple.source, tuple.destination, tuple.protocol, port);
        if !self.met.contains_key(&place) && self.met.len() >= MOST_CHANGES {
            self.report.truncated = true;
            return;
        }
        let stand = &self.stand;
        let by = |tables: &Tables, decision: Decision| tables.policy.name(decision.rule).map(|name| name.to_string());
        let word = |allow| if allow { "allow" } else { "deny" }.to_owned();
        let met = self.met.entry(place).or_insert_with(|| Met {
            change: TryChange {
                from: stand.name(tuple.source),
                to: stand.name(tuple.destination),
                proto: protocol_name(tuple.protocol),
                port: (port != 0).then_some(port),
                direction: if direction == Direction::Ingress { "ingress" } else { "egress" }.to_owned(),
                now: word(now.allow),
                then: word(then.allow),
                now_decided_by: by(&stand.enforced, now),
                then_decided_by: by(&stand.candidate, then),
                ..TryChange::default()
            },
        });
        count(&mut met.change);
    }
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        132 => "sctp".to_owned(),
        1 | 58 => "icmp".to_owned(),
        other => other.to_string(),
    }
}

/// Addresses and ports of a frame's (inner) packet.
fn tuple_of(frame: &[u8]) -> Option<Tuple> {
    let layers = Layers::parse(frame, 65_535).ok()?;
    let (source_port, destination_port) = match layers.transport {
        Transport::Tcp { source, destination, .. }
        | Transport::Udp { source, destination }
        | Transport::Sctp { source, destination, .. } => (source, destination),
        _ => (0, 0),
    };
    Some(Tuple {
        source: layers.source(frame)?.into(),
        destination: layers.destination(frame)?.into(),
        source_port,
        destination_port,
        protocol: layers.protocol.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(name: &str) -> serde_json::Value {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "shop"}, "spec": {"podSelector": {}}})
    }

    fn set(names: &[&str]) -> ObjectSet {
        let read =
            Candidate::read(TryRequest { objects: names.iter().map(|n| policy(n)).collect(), ..Default::default() });
        ObjectSet { objects: read.unwrap().objects }
    }

    #[test]
    fn a_candidate_stands_in_for_policies_of_its_names_or_for_all() {
        let candidate =
            |replace_all| Candidate { objects: set(&["b", "c"]).objects, replace_all, said: Known::default() };
        let names = |set: ObjectSet| set.objects.into_keys().map(|key| key.name).collect::<Vec<_>>();
        assert_eq!(names(candidate(false).beside(&set(&["a", "b"]))), ["a", "b", "c"]);
        assert_eq!(names(candidate(true).beside(&set(&["a", "b"]))), ["b", "c"]);
    }

    #[test]
    fn a_candidate_without_policies_is_refused_unless_it_is_to_replace_all() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
        let request =
            |replace_all| TryRequest { objects: vec![pod.clone()], replace_all, seconds: 1, ..Default::default() };
        assert!(Candidate::read(request(false)).is_err());
        assert!(Candidate::read(request(true)).is_ok_and(|candidate| candidate.objects.is_empty()));
        let nonsense = TryRequest { objects: vec![json!(7)], ..Default::default() };
        assert!(Candidate::read(nonsense).is_err_and(|error| error.starts_with("object 1: ")));
    }
}
