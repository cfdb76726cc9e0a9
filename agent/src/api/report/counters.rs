//! What was counted: `GET /v1/counters`.

use super::PortReport;
use crate::metrics::Histogram;
use serde::{Deserialize, Serialize};
use sluice_engine::Counters;
use sluice_engine::counters::{BATCH_BUCKETS, Counter};
use sluice_engine::reason::{Reason, Stage};
use std::collections::BTreeMap;

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
    /// ADDs refused because no address was free, by `IPv4` and `IPv6`.
    pub ipam_exhausted: BTreeMap<String, u64>,
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
            ipam_exhausted: ["IPv4", "IPv6"].map(|family| (family.to_owned(), 0)).into(),
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
}
