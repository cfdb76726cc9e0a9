//! How the node is: `GET /v1/status` and `/v1/generation`.

use crate::api::problem::Problem;
use serde::{Deserialize, Serialize};
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
    /// Periods since the start in which the kernel stopped the agent for its CPU quota; none where there is no quota.
    pub cpu_throttled_periods: Option<u64>,
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
    /// The NUMA node of its CPU; none where the machine could not be read.
    pub numa_node: Option<u32>,
    /// Whether the uplink's device is on another NUMA node.
    pub cross_numa: bool,
    /// How often its thread was found moved to other CPUs by another program.
    pub moved: u64,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_understands_an_answer_with_fields_missing_or_added() {
        let status: StatusReport = serde_json::from_str(r#"{"node":"a","state":"Ready","tomorrow":1}"#).unwrap();
        assert_eq!((status.node.as_str(), status.state, status.flows), ("a", State::Ready, 0));
    }
}
