//! The answers of the agent's API, as JSON and as what the command line reads back.
//!
//! Invariants: a field, once there, keeps its name and meaning; a reader takes missing fields for their defaults, so that
//! programs of different versions understand each other. Units stand in the names. Lists are ordered by name.

use super::problem::Problem;
use crate::metrics::Histogram;
use serde::{Deserialize, Serialize};
use sluice_engine::Counters;
use sluice_engine::counters::{BATCH_BUCKETS, Counter};
use sluice_engine::reason::{Reason, Stage};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// How the node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Packets are not handled yet: first synchronisation, first tables, ports being opened.
    #[default]
    Starting,
    /// All that was asked for is in force.
    Ready,
    /// Packets are handled, but something that was asked for could not be done; the problems say what.
    Degraded,
}

impl State {
    /// The word of `sluice status`.
    pub const fn name(self) -> &'static str {
        match self {
            State::Starting => "Starting",
            State::Ready => "Ready",
            State::Degraded => "Degraded",
        }
    }

    /// Whether packets are handled.
    pub const fn is_up(self) -> bool {
        !matches!(self, State::Starting)
    }
}

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// Name of this node's Node object.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// How the node is.
    pub state: State,
    /// What is wrong, in order of file and object.
    pub problems: Vec<Problem>,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// The last published generation of tables; 0: none yet.
    pub generation: u64,
    /// The generation that every worker runs on.
    pub applied_generation: u64,
    /// The workers.
    pub workers: Vec<WorkerReport>,
    /// The ports: uplink, host, then pods by name.
    pub ports: Vec<PortReport>,
    /// Number of pods with a port here.
    pub pods: usize,
    /// Number of Services programmed.
    pub services: usize,
    /// Number of policies in the cluster, both kinds.
    pub policies: usize,
    /// Flows remembered now; both directions of a connection are one.
    pub flows: u64,
    /// Flows that can be remembered.
    pub flows_capacity: u64,
    /// The frame pool.
    pub pool: PoolReport,
    /// Next hops on the uplink whose MAC address is still being asked for.
    pub wanted_neighbours: Vec<IpAddr>,
    /// Egress and load-balancer addresses that this node carries: it answers ARP and ND for them.
    #[serde(default)]
    pub carried_addresses: Vec<IpAddr>,
    /// Objects of kinds that are not read, by `kind.group`.
    pub ignored_objects: BTreeMap<String, u64>,
    /// Address pools of this node.
    pub ipam: Vec<IpamReport>,
    /// Why `/readyz` refuses; none where it does not.
    pub unready: Option<String>,
    /// What is worth knowing and not wrong.
    pub notes: Vec<String>,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerReport {
    /// Number of the worker.
    pub id: u16,
    /// The CPU it is pinned to; none where the scheduler places it.
    pub cpu: Option<usize>,
    /// Whether its thread runs and turns.
    pub alive: bool,
    /// Part of its turns that found work, 0 to 1.
    pub busy_ratio: f64,
}

/// One port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortReport {
    /// `uplink0`, `host` or `pod:NAMESPACE/NAME`.
    pub name: String,
    /// Port number.
    pub number: u16,
    /// The kernel's interface or the device behind it; empty where there is none.
    pub interface: String,
    /// `af_xdp`, `tap`, `dpdk`, `pcap` or `mem`.
    pub driver: String,
    /// How the driver runs, as `zero-copy`.
    pub mode: String,
    /// Why it does not run in a better mode; empty in the best.
    pub reason: String,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets that the device lost before they were seen.
    pub rx_missed: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Times that a packet found the device's ring full.
    pub tx_full: u64,
    /// Packets that the device refused.
    pub tx_errors: u64,
    /// Packets received by a copy, since the device has memory of its own.
    pub rx_copied: u64,
    /// Packets sent by such a copy.
    pub tx_copied: u64,
    /// Counters of a DPDK device by its driver's names, and of its exception path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub device: BTreeMap<String, u64>,
}

/// The frame pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolReport {
    /// Frames in all.
    pub frames: u64,
    /// Frames that nobody holds.
    pub free: u64,
    /// Whether they lie on huge pages.
    pub huge_pages: bool,
}

/// One pool of addresses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamReport {
    /// Name of the IPPool, or the podCIDR.
    pub pool: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Addresses that can be given.
    pub addresses: u64,
    /// Addresses that are given.
    pub in_use: u64,
}

/// One Service; `GET /v1/services` gives a list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceReport {
    /// `namespace/name`.
    pub name: String,
    /// `ClusterIP`, `NodePort` or `LoadBalancer`.
    pub kind: String,
    /// What clients connect to.
    pub frontends: Vec<FrontendReport>,
    /// The port on which load balancers ask after it, where it has one.
    pub health_check: Option<HealthCheckReport>,
}

/// The health-check node port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthCheckReport {
    /// The port, on the node's addresses.
    pub port: u16,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

/// One address, protocol and port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrontendReport {
    /// Name of the Service port; empty for an unnamed one.
    pub port_name: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalIP`.
    pub kind: String,
    /// `10.96.0.10:80` or `[fd00::1]:80`; the node's addresses are written `*` for a NodePort.
    pub address: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// How topology hints are used, and why not where they are not.
    pub topology: String,
    /// Where connections may go.
    pub backends: Vec<BackendReport>,
}

/// One backend of a frontend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendReport {
    /// `10.244.1.5:8080` or `[fd00::5]:8080`.
    pub address: String,
    /// Whether it runs on this node.
    pub local: bool,
    /// Whether new connections go to it; else it only finishes those it has.
    pub ready: bool,
}

/// One pod with a port here; `GET /v1/pods` gives a list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodReport {
    /// `namespace/name`.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its port's number.
    pub port: u16,
    /// Worker that owns its flows.
    pub worker: u16,
    /// MAC address of its interface.
    pub mac: String,
    /// Path of its network namespace.
    pub netns: String,
    /// Its interface inside the namespace.
    pub ifname: String,
    /// Whether a policy selects it for ingress.
    pub ingress_isolated: bool,
    /// Whether a policy selects it for egress.
    pub egress_isolated: bool,
}

/// One policy; `GET /v1/policies` gives a list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyReport {
    /// `NetworkPolicy` or `ClusterNetworkPolicy`.
    pub kind: String,
    /// `namespace/name` or `name`.
    pub name: String,
    /// False where something in it was not understood; it then denies what it selects.
    pub accepted: bool,
    /// What was not understood.
    pub problems: Vec<Problem>,
    /// `ingress`, `egress`: the directions it speaks of.
    pub directions: Vec<String>,
    /// Pods of this node that it selects.
    pub selected_pods: Vec<String>,
    /// First packets of flows that its rules have decided here, by `allow`, `deny` and `audit-deny`. What isolation denies
    /// is no single policy's: see [`CounterReport::policy_verdicts`].
    pub verdicts: BTreeMap<String, u64>,
}

/// `GET /v1/flows`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowsReport {
    /// The flows.
    pub flows: Vec<FlowReport>,
    /// Whether there are more than were asked for.
    pub truncated: bool,
}

/// One flow, as its worker sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowReport {
    /// IP protocol number.
    pub protocol: u8,
    /// Source of the first packet, as it came.
    pub source: String,
    /// Destination of the first packet, as it came.
    pub destination: String,
    /// Source as it left.
    pub translated_source: String,
    /// Destination as it left.
    pub translated_destination: String,
    /// State of the connection.
    pub state: String,
    /// Seconds since the last packet of either direction.
    pub idle_seconds: u64,
    /// Zone: the pod's port number, 0 for the node.
    pub zone: u16,
    /// The pod whose zone it is, as `namespace/name`; none for the node.
    pub pod: Option<String>,
    /// Worker that owns it.
    pub worker: u16,
}

/// Most flows that one answer holds.
pub const MAX_FLOWS: usize = 100_000;
/// Flows of an answer where the request names no limit.
pub const DEFAULT_FLOWS: usize = 1_000;

/// The query of `GET /v1/flows`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowFilter {
    /// Only flows of this pod, `namespace/name`.
    pub pod: Option<String>,
    /// At most so many; [`DEFAULT_FLOWS`] where it is left out, never more than [`MAX_FLOWS`].
    pub limit: Option<usize>,
}

/// The body of `POST /v1/policy/try`: policies to be judged beside the enforced ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TryRequest {
    /// Kubernetes objects; others than policies are ignored.
    pub objects: Vec<serde_json::Value>,
    /// The policies are the whole set; else they stand in for enforced ones of the same name.
    #[serde(default)]
    pub replace_all: bool,
    /// How long, at most a day.
    pub seconds: u64,
}

/// A line of the answer to `POST /v1/policy/try`: what has been found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TryReport {
    /// Seconds that have passed.
    pub elapsed_seconds: u64,
    /// Seconds in all.
    pub seconds: u64,
    /// This is the last line.
    pub done: bool,
    /// The candidate's policies, as `NetworkPolicy/ns/name`.
    pub policies: Vec<String>,
    /// What of the candidate was not understood, and what it costs.
    pub problems: Vec<String>,
    /// Flows that were judged, each at each pod's border it crosses.
    pub flows: u64,
    /// Packets that policy denied meanwhile and that were judged.
    pub denied_packets: u64,
    /// Decisions that would change.
    pub changes: Vec<TryChange>,
    /// More would change than is listed.
    pub truncated: bool,
}

/// A decision that a candidate would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TryChange {
    /// Source: a pod, `node/NAME` or an address.
    pub from: String,
    /// Destination, after Service translation.
    pub to: String,
    /// Protocol, in small letters; a number where it has no name.
    pub proto: String,
    /// Destination port; none for protocols without.
    pub port: Option<u16>,
    /// Whose rules: `egress` of the source, `ingress` of the destination.
    pub direction: String,
    /// `allow` or `deny`, enforced.
    pub now: String,
    /// The same by the candidate.
    pub then: String,
    /// What decides now; none where no policy selects the pod.
    pub now_decided_by: Option<String>,
    /// What would decide.
    pub then_decided_by: Option<String>,
    /// Flows that it would meet.
    pub flows: u64,
    /// Denied packets that it would meet.
    pub packets: u64,
}

/// `GET /v1/counters`: everything since the agent's start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CounterReport {
    /// Drops by reason, then by stage; every reason and stage is there, at 0 if nothing was dropped.
    pub drops: BTreeMap<String, BTreeMap<String, u64>>,
    /// Packets and bytes by port.
    pub ports: Vec<PortCounters>,
    /// Packets taken from ports.
    pub received: u64,
    /// Packets sent to pods and the uplink.
    pub sent: u64,
    /// Packets given to the host.
    pub punted: u64,
    /// Packets dropped, all reasons.
    pub dropped: u64,
    /// Packets answered with a refusal.
    pub replies: u64,
    /// Packets passed from one worker to another.
    pub handed_over: u64,
    /// Packets that wait for fragments or a neighbour now.
    pub held: u64,
    /// Flows made.
    pub flows_created: u64,
    /// Policy verdicts, by `allow`, `deny` and `audit-deny`, then by direction.
    pub policy_verdicts: BTreeMap<String, BTreeMap<String, u64>>,
    /// Answers of DNS that pods with rules about domain names got: addresses `learned`, addresses without room (`full`),
    /// answers that nobody had asked for (`unasked`).
    pub domain_answers: BTreeMap<String, u64>,
    /// Addresses of domain names that are known now.
    pub domain_addresses: u64,
    /// Connections to Services, by `forwarded`, `refused` and `dropped`.
    pub service_connections: BTreeMap<String, u64>,
    /// SNAT ports in use, by the address they belong to.
    pub snat_ports_in_use: BTreeMap<String, u64>,
    /// What each worker counted of its batches.
    pub workers: Vec<WorkerCounters>,
    /// Seconds from a watch event to every worker running on it.
    pub programming: Histogram,
    /// The same since the API object changed, in kube-proxy's buckets.
    pub network_programming: Histogram,
    /// When tables were last published, in seconds since 1970; 0: never.
    pub last_sync_timestamp_seconds: f64,
}

/// Packets and bytes of one port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortCounters {
    /// `uplink0`, `host` or `pod:NAMESPACE/NAME`.
    pub port: String,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

impl From<&PortReport> for PortCounters {
    fn from(port: &PortReport) -> Self {
        PortCounters {
            port: port.name.clone(),
            rx_packets: port.rx_packets,
            rx_bytes: port.rx_bytes,
            tx_packets: port.tx_packets,
            tx_bytes: port.tx_bytes,
        }
    }
}

/// Batches of one worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerCounters {
    /// Number of the worker.
    pub id: u16,
    /// Sizes of the batches it took.
    pub batches: Histogram,
}

/// Labels of the policy verdicts, in the order of [`Counters::verdicts`].
const DOMAINS: [&str; 3] = ["learned", "full", "unasked"];
/// Policy verdicts, in the order of the workers' counters.
pub const VERDICTS: [&str; 3] = ["allow", "deny", "audit-deny"];
/// Labels of directions, in the order of [`Counters::verdicts`].
const DIRECTIONS: [&str; 2] = ["ingress", "egress"];
/// Labels of Service connections, in the order of [`Counters::services`].
const RESULTS: [&str; 3] = ["forwarded", "refused", "dropped"];

impl Default for CounterReport {
    /// Everything there is to count, at 0.
    fn default() -> Self {
        let stages = || Stage::ALL.iter().map(|stage| (stage.name().to_owned(), 0)).collect();
        let directions = || DIRECTIONS.iter().map(|direction| ((*direction).to_owned(), 0)).collect();
        CounterReport {
            drops: Reason::ALL.iter().map(|reason| (reason.name().to_owned(), stages())).collect(),
            ports: Vec::new(),
            received: 0,
            sent: 0,
            punted: 0,
            dropped: 0,
            replies: 0,
            handed_over: 0,
            held: 0,
            flows_created: 0,
            domain_answers: DOMAINS.iter().map(|result| ((*result).to_owned(), 0)).collect(),
            domain_addresses: 0,
            policy_verdicts: VERDICTS.iter().map(|verdict| ((*verdict).to_owned(), directions())).collect(),
            service_connections: RESULTS.iter().map(|result| ((*result).to_owned(), 0)).collect(),
            snat_ports_in_use: BTreeMap::new(),
            workers: Vec::new(),
            programming: Histogram::programming(),
            network_programming: Histogram::network_programming(),
            last_sync_timestamp_seconds: 0.0,
        }
    }
}

impl CounterReport {
    /// Adds what one worker counted.
    pub fn add_worker(&mut self, id: u16, counters: &Counters) {
        let add = |sum: &mut u64, counter: &Counter| *sum += counter.get();
        for (reason, by_stage) in Reason::ALL.iter().zip(&counters.drops) {
            let sums = self.drops.entry(reason.name().to_owned()).or_default();
            for (stage, counter) in Stage::ALL.iter().zip(by_stage) {
                add(sums.entry(stage.name().to_owned()).or_default(), counter);
            }
        }
        for (verdict, by_direction) in VERDICTS.iter().zip(&counters.verdicts) {
            let sums = self.policy_verdicts.entry((*verdict).to_owned()).or_default();
            for (direction, counter) in DIRECTIONS.iter().zip(by_direction) {
                add(sums.entry((*direction).to_owned()).or_default(), counter);
            }
        }
        for (result, counter) in DOMAINS.iter().zip(&counters.domains) {
            add(self.domain_answers.entry((*result).to_owned()).or_default(), counter);
        }
        self.domain_addresses += counters.domain_addresses.get();
        for (result, counter) in RESULTS.iter().zip(&counters.services) {
            add(self.service_connections.entry((*result).to_owned()).or_default(), counter);
        }
        add(&mut self.received, &counters.received);
        add(&mut self.sent, &counters.sent);
        add(&mut self.punted, &counters.punted);
        add(&mut self.dropped, &counters.dropped);
        add(&mut self.replies, &counters.replies);
        add(&mut self.handed_over, &counters.handed_out);
        add(&mut self.held, &counters.held);
        add(&mut self.flows_created, &counters.flows_created);
        // The last bucket's bound is the largest batch there is, so nothing lies beyond.
        let bounds = BATCH_BUCKETS.iter().map(|size| *size as f64).collect();
        let counts = counters.batches.iter().map(Counter::get).chain([0]).collect();
        let batches = Histogram { bounds, counts, sum: counters.batch_frames.get() as f64 };
        self.workers.push(WorkerCounters { id, batches });
    }
}

/// `GET /v1/generation`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationReport {
    /// The last published generation; 0: none yet.
    pub published: u64,
    /// The generation that every worker runs on.
    pub applied: u64,
    /// The generation of each worker, by number.
    pub workers: Vec<u64>,
}

/// One line of `GET /v1/observe`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObserveEvent {
    /// When, in seconds since 1970.
    pub time: f64,
    /// The port it came in on: `uplink0`, `host` or `pod:NAMESPACE/NAME`.
    pub port: String,
    /// The pod behind that port, as `namespace/name`.
    pub pod: Option<String>,
    /// `forwarded`, `dropped`, `replied`, `punted` or `held`.
    pub verdict: String,
    /// Why, for what was dropped or refused.
    pub reason: Option<String>,
    /// Where it was dropped.
    pub stage: Option<String>,
    /// The rule that decided.
    pub policy: Option<String>,
    /// `allow`, `deny` or `audit-deny`, where a rule decided.
    pub policy_verdict: Option<String>,
    /// `namespace/name:port/PROTO` of the Service.
    pub service: Option<String>,
    /// Address and port of the backend.
    pub backend: Option<String>,
    /// The packet in one line; empty where its bytes were gone.
    pub packet: String,
    /// Events that this reader lost since the one before, because it was too slow.
    pub lost: u64,
}

/// The query of `GET /v1/observe`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObserveFilter {
    /// Only this verdict.
    pub verdict: Option<String>,
    /// Only packets from this pod, `namespace/name`.
    pub pod: Option<String>,
    /// Only this reason.
    pub reason: Option<String>,
}

impl ObserveFilter {
    /// Whether an event is wanted; names are compared without regard to case.
    pub fn wants(&self, event: &ObserveEvent) -> bool {
        let same = |wanted: &Option<String>, is: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| is.is_some_and(|is| is.eq_ignore_ascii_case(wanted)))
        };
        same(&self.verdict, Some(&event.verdict))
            && same(&self.pod, event.pod.as_deref())
            && same(&self.reason, event.reason.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_there_before_anything_is_counted() {
        let report = CounterReport::default();
        assert_eq!(report.drops.len(), Reason::ALL.len());
        assert!(report.drops.values().all(|stages| stages.len() == Stage::ALL.len()));
        assert_eq!(report.policy_verdicts["audit-deny"]["egress"], 0);
        assert_eq!(report.service_connections["refused"], 0);
    }

    #[test]
    fn workers_add_up() {
        let counters = Counters::default();
        counters.lost(Reason::PolicyDeny, Stage::Ingress);
        counters.verdicts[1][0].add(2);
        counters.services[0].add(3);
        counters.batch(3);
        let mut report = CounterReport::default();
        report.add_worker(0, &counters);
        report.add_worker(1, &counters);
        assert_eq!(report.drops["PolicyDeny"]["ingress"], 2);
        assert_eq!(report.policy_verdicts["deny"]["ingress"], 4);
        assert_eq!(report.service_connections["forwarded"], 6);
        assert_eq!(report.workers.len(), 2);
        assert_eq!((report.workers[1].batches.count(), report.workers[1].batches.sum), (1, 3.0));
    }

    #[test]
    fn a_reader_understands_an_answer_with_fields_missing_or_added() {
        let status: StatusReport = serde_json::from_str(r#"{"node":"a","state":"Ready","tomorrow":1}"#).unwrap();
        assert_eq!((status.node.as_str(), status.state, status.flows), ("a", State::Ready, 0));
    }

    #[test]
    fn a_filter_that_says_nothing_wants_everything() {
        let event = ObserveEvent { verdict: "dropped".into(), pod: Some("shop/web".into()), ..Default::default() };
        assert!(ObserveFilter::default().wants(&event));
        let only = |verdict: &str| ObserveFilter { verdict: Some(verdict.into()), ..Default::default() };
        assert!(only("DROPPED").wants(&event) && !only("forwarded").wants(&event));
        assert!(!ObserveFilter { reason: Some("NoRoute".into()), ..Default::default() }.wants(&event));
    }
}
