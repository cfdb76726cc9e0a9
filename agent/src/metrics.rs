//! The agent's Prometheus metrics, made of its reports at every scrape.
//!
//! Source: OpenMetrics 1.0 text format; the list of metrics in the contract; kube-proxy's two metrics that existing alerts
//! watch. Invariants: every counter and label that is known beforehand is there from the first scrape, at 0; there are no
//! labels of unbounded content (ports are bounded by the node's pods). Runs on a thread of the API; workers are not asked.

use crate::api::report::{CounterReport, GenerationReport, StatusReport, VF_STATES, VfReport};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The `Content-Type` of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Observations counted by size. `counts` is not cumulative and one longer than `bounds`: the last is what lies beyond.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Upper bounds of the buckets, ascending.
    pub bounds: Vec<f64>,
    /// Observations in each bucket.
    pub counts: Vec<u64>,
    /// Sum of all observations.
    pub sum: f64,
}

impl Histogram {
    /// Empty, with these upper bounds.
    pub fn new(bounds: impl IntoIterator<Item = f64>) -> Histogram {
        let bounds: Vec<f64> = bounds.into_iter().collect();
        Histogram { counts: vec![0; bounds.len() + 1], bounds, sum: 0.0 }
    }

    /// Buckets for `programming_seconds`: 0.5 ms, doubled up to 16 s.
    pub fn programming() -> Histogram {
        Histogram::new((0..16).map(|power| 0.000_5 * f64::from(1u32 << power)))
    }

    /// The buckets of kube-proxy's network programming duration: 0.25 to 0.5 s, each second to a minute, every five
    /// seconds to two minutes, every half minute to five.
    pub fn network_programming() -> Histogram {
        let fine = [0.25, 0.5].into_iter();
        let seconds = (1..60).map(f64::from);
        let fives = (12..24).map(|n| f64::from(n) * 5.0);
        let halves = (4..=10).map(|n| f64::from(n) * 30.0);
        Histogram::new(fine.chain(seconds).chain(fives).chain(halves))
    }

    /// Counts one observation.
    pub fn observe(&mut self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
            self.sum += value;
        }
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn buckets(&self) -> Vec<(f64, u64)> {
        self.bounds.iter().copied().chain([f64::INFINITY]).zip(self.counts.iter().copied()).collect()
    }
}

/// The reports of one moment.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// State of the node.
    pub status: StatusReport,
    /// What was counted.
    pub counters: CounterReport,
    /// The tables in force.
    pub generation: GenerationReport,
    /// Virtual functions.
    pub vfs: Vec<VfReport>,
}

/// The text of `GET /metrics`. An error only if the encoder refuses a label, which none of ours can bring about.
pub fn render(sample: Sample) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(sample));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// One family of metrics on its way into the text.
struct Family<'a>(MetricEncoder<'a>);

impl Family<'_> {
    fn counter(&mut self, labels: Labels<'_>, value: u64) -> fmt::Result {
        if labels.is_empty() {
            return self.0.encode_counter::<NoLabelSet, _, f64>(&value, None);
        }
        self.0.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    fn gauge(&mut self, labels: Labels<'_>, value: f64) -> fmt::Result {
        if labels.is_empty() {
            return self.0.encode_gauge(&value);
        }
        self.0.encode_family(&labels)?.encode_gauge(&value)
    }

    fn histogram(&mut self, labels: Labels<'_>, value: &Histogram) -> fmt::Result {
        let (sum, count, buckets) = (value.sum, value.count(), value.buckets());
        if labels.is_empty() {
            return self.0.encode_histogram::<NoLabelSet>(sum, count, &buckets, None);
        }
        self.0.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// Starts a family; counters get their `_total` from the encoder.
fn family<'a>(
    to: &'a mut DescriptorEncoder<'_>,
    kind: MetricType,
    name: &'a str,
    help: &str,
) -> Result<Family<'a>, fmt::Error> {
    Ok(Family(to.encode_descriptor(name, help, None, kind)?))
}

impl Collector for Sample {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let to = &mut encoder;
        self.traffic(to)?;
        self.decisions(to)?;
        self.programming(to)?;
        self.workers(to)?;
        self.inventory(to)
    }
}

impl Sample {
    fn traffic(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ports = &self.counters.ports;
        let mut packets = family(to, MetricType::Counter, "sluicegate_packets", "Packets through a port")?;
        for port in ports {
            packets.counter(vec![("port", &port.port), ("direction", "rx")], port.rx_packets)?;
            packets.counter(vec![("port", &port.port), ("direction", "tx")], port.tx_packets)?;
        }
        let mut bytes = family(to, MetricType::Counter, "sluicegate_bytes", "Bytes through a port")?;
        for port in ports {
            bytes.counter(vec![("port", &port.port), ("direction", "rx")], port.rx_bytes)?;
            bytes.counter(vec![("port", &port.port), ("direction", "tx")], port.tx_bytes)?;
        }
        let help = "Packets through a port whose device has memory of its own";
        let mut copied = family(to, MetricType::Counter, "sluicegate_copied_packets", help)?;
        for port in &self.status.ports {
            copied.counter(vec![("port", &port.name), ("direction", "rx")], port.rx_copied)?;
            copied.counter(vec![("port", &port.name), ("direction", "tx")], port.tx_copied)?;
        }
        let help = "Counters of a DPDK device by its driver's names";
        let mut device = family(to, MetricType::Counter, "sluicegate_device", help)?;
        for port in &self.status.ports {
            for (counter, value) in &port.device {
                device.counter(vec![("port", &port.name), ("counter", counter)], *value)?;
            }
        }
        let mut drops = family(to, MetricType::Counter, "sluicegate_drops", "Packets that ended, by reason and stage")?;
        for (reason, stages) in &self.counters.drops {
            for (stage, count) in stages {
                drops.counter(vec![("reason", reason), ("stage", stage)], *count)?;
            }
        }
        Ok(())
    }

    fn decisions(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (status, counters) = (&self.status, &self.counters);
        let gauge = MetricType::Gauge;
        family(to, gauge, "sluicegate_flows", "Flows remembered now")?.gauge(vec![], status.flows as f64)?;
        family(to, gauge, "sluicegate_flows_capacity", "Flows that can be remembered")?
            .gauge(vec![], status.flows_capacity as f64)?;
        family(to, MetricType::Counter, "sluicegate_flows_created", "Flows made")?
            .counter(vec![], counters.flows_created)?;
        let mut snat = family(to, gauge, "sluicegate_snat_ports_in_use", "SNAT ports leased, by address")?;
        for (address, count) in &counters.snat_ports_in_use {
            snat.gauge(vec![("address", address)], *count as f64)?;
        }
        let help = "Policy verdicts on first packets of flows";
        let mut verdicts = family(to, MetricType::Counter, "sluicegate_policy_verdicts", help)?;
        for (verdict, directions) in &counters.policy_verdicts {
            for (direction, count) in directions {
                verdicts.counter(vec![("verdict", verdict), ("direction", direction)], *count)?;
            }
        }
        let help =
            "Answers of DNS to pods with rules about domain names: addresses learned, without room, not asked for";
        let mut answers = family(to, MetricType::Counter, "sluicegate_domain_answers", help)?;
        for (result, count) in &counters.domain_answers {
            answers.counter(vec![("result", result)], *count)?;
        }
        let help = "Addresses of domain names that are known";
        family(to, gauge, "sluicegate_domain_addresses", help)?.gauge(vec![], counters.domain_addresses as f64)?;
        let help = "Connections to Services";
        let mut services = family(to, MetricType::Counter, "sluicegate_service_connections", help)?;
        for (result, count) in &counters.service_connections {
            services.counter(vec![("result", result)], *count)?;
        }
        Ok(())
    }

    fn programming(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (gauge, histogram) = (MetricType::Gauge, MetricType::Histogram);
        let (generation, counters) = (&self.generation, &self.counters);
        family(to, gauge, "sluicegate_tables_generation", "Last published generation of tables")?
            .gauge(vec![], generation.published as f64)?;
        family(to, gauge, "sluicegate_tables_applied_generation", "Generation that every worker runs on")?
            .gauge(vec![], generation.applied as f64)?;
        let help = "Seconds from a watch event to its tables being applied by every worker";
        family(to, histogram, "sluicegate_programming_seconds", help)?.histogram(vec![], &counters.programming)?;
        let help = "Seconds from the change of a Service or its endpoints to its being programmed";
        family(to, histogram, "kubeproxy_network_programming_duration_seconds", help)?
            .histogram(vec![], &counters.network_programming)?;
        let help = "When rules were last synchronised, in seconds since 1970";
        family(to, gauge, "kubeproxy_sync_proxy_rules_last_timestamp_seconds", help)?
            .gauge(vec![], counters.last_sync_timestamp_seconds)
    }

    fn workers(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Part of a worker's turns that found work";
        let mut busy = family(to, MetricType::Gauge, "sluicegate_worker_busy_ratio", help)?;
        for worker in &self.status.workers {
            busy.gauge(vec![("worker", &worker.id.to_string())], worker.busy_ratio)?;
        }
        let help = "The CPU and NUMA node of a worker";
        let mut places = family(to, MetricType::Gauge, "sluicegate_worker_cpu_info", help)?;
        for worker in &self.status.workers {
            let word = |number: Option<String>| number.unwrap_or_default();
            let (cpu, numa) = (word(worker.cpu.map(|n| n.to_string())), word(worker.numa_node.map(|n| n.to_string())));
            places.gauge(vec![("worker", &worker.id.to_string()), ("cpu", &cpu), ("numa", &numa)], 1.0)?;
        }
        let help = "1 where a worker's CPU and the uplink's device are on different NUMA nodes";
        let mut cross = family(to, MetricType::Gauge, "sluicegate_worker_cross_numa", help)?;
        for worker in &self.status.workers {
            cross.gauge(vec![("worker", &worker.id.to_string())], f64::from(u8::from(worker.cross_numa)))?;
        }
        let help = "Times that a worker's thread was found moved to other CPUs by another program";
        let mut moved = family(to, MetricType::Counter, "sluicegate_worker_moved", help)?;
        for worker in &self.status.workers {
            moved.counter(vec![("worker", &worker.id.to_string())], worker.moved)?;
        }
        let help = "Periods in which the kernel stopped the agent because its CPU quota was used up";
        family(to, MetricType::Counter, "sluicegate_cpu_throttled_periods", help)?
            .counter(vec![], self.status.cpu_throttled_periods.unwrap_or_default())?;
        let mut sizes = family(to, MetricType::Histogram, "sluicegate_worker_batch_size", "Packets in a batch")?;
        for worker in &self.counters.workers {
            sizes.histogram(vec![("worker", &worker.id.to_string())], &worker.batches)?;
        }
        Ok(())
    }

    fn inventory(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = MetricType::Gauge;
        let help = "How a port runs, and why not better";
        let mut modes = family(to, gauge, "sluicegate_port_mode_info", help)?;
        for port in &self.status.ports {
            let labels =
                vec![("port", &*port.name), ("driver", &port.driver), ("mode", &port.mode), ("reason", &port.reason)];
            modes.gauge(labels, 1.0)?;
        }
        let mut vfs = family(to, gauge, "sluicegate_vfs", "Virtual functions by what has become of them")?;
        for &state in VF_STATES {
            let count = self.vfs.iter().filter(|vf| vf.state == state).count();
            vfs.gauge(vec![("state", state)], count as f64)?;
        }
        let mut addresses = family(to, gauge, "sluicegate_ipam_addresses", "Addresses that can be given to pods")?;
        for pool in &self.status.ipam {
            addresses.gauge(vec![("pool", &pool.pool), ("family", &pool.family)], pool.addresses as f64)?;
        }
        let mut in_use = family(to, gauge, "sluicegate_ipam_addresses_in_use", "Addresses given to pods")?;
        for pool in &self.status.ipam {
            in_use.gauge(vec![("pool", &pool.pool), ("family", &pool.family)], pool.in_use as f64)?;
        }
        let help = "Pods refused because no address was free";
        let mut exhausted = family(to, MetricType::Counter, "sluicegate_ipam_exhausted", help)?;
        for (family, count) in &self.counters.ipam_exhausted {
            exhausted.counter(vec![("family", family)], *count)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::report::{IpamReport, PortCounters, PortReport, WorkerReport};
    use sluice_engine::Counters;
    use sluice_engine::reason::{Reason, Stage};
    use std::collections::BTreeMap;

    /// The samples of a text, by `name{labels}`; every line must be one, or a comment.
    fn samples(text: &str) -> BTreeMap<String, f64> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').unwrap();
                (name.to_owned(), value.parse().unwrap())
            })
            .collect()
    }

    fn sample() -> Sample {
        let mut sample = Sample::default();
        sample.status.ports = vec![PortReport {
            name: "uplink0".into(),
            driver: "af_xdp".into(),
            mode: "copy".into(),
            reason: "the driver of \"eth0\" has no zero-copy\n".into(),
            rx_packets: 7,
            ..Default::default()
        }];
        sample.counters.ports = sample.status.ports.iter().map(PortCounters::from).collect();
        let places =
            WorkerReport { cpu: Some(3), numa_node: Some(1), cross_numa: true, moved: 2, ..Default::default() };
        sample.status.workers = vec![WorkerReport { id: 0, busy_ratio: 0.25, ..places }];
        sample.vfs = vec![VfReport { state: "pod".into(), ..Default::default() }];
        let pool = IpamReport { pool: "10.244.1.0/24".into(), family: "IPv4".into(), addresses: 253, in_use: 2 };
        sample.status.ipam = vec![pool];
        sample.counters.snat_ports_in_use.insert("192.0.2.1".into(), 64);
        sample.counters.add_worker(0, &Counters::default());
        sample
    }

    #[test]
    fn every_metric_of_the_contract_is_there_with_its_labels() {
        let text = render(sample()).unwrap();
        let found = samples(&text);
        let has = |name: &str| assert!(found.keys().any(|key| key.starts_with(name)), "{name} is not in\n{text}");
        for name in [
            "sluicegate_packets_total{port=\"uplink0\",direction=\"rx\"}",
            "sluicegate_bytes_total{port=\"uplink0\",direction=\"tx\"}",
            "sluicegate_flows_capacity",
            "sluicegate_flows_created_total",
            "sluicegate_snat_ports_in_use{address=\"192.0.2.1\"}",
            "sluicegate_policy_verdicts_total{verdict=\"audit-deny\",direction=\"ingress\"}",
            "sluicegate_service_connections_total{result=\"refused\"}",
            "sluicegate_tables_generation",
            "sluicegate_tables_applied_generation",
            "sluicegate_programming_seconds_bucket{le=\"0.0005\"}",
            "sluicegate_programming_seconds_bucket{le=\"+Inf\"}",
            "sluicegate_worker_busy_ratio{worker=\"0\"}",
            "sluicegate_worker_cpu_info{worker=\"0\",cpu=\"3\",numa=\"1\"}",
            "sluicegate_worker_cross_numa{worker=\"0\"}",
            "sluicegate_worker_moved_total{worker=\"0\"}",
            "sluicegate_cpu_throttled_periods_total",
            "sluicegate_vfs{state=\"pod\"}",
            "sluicegate_worker_batch_size_bucket{le=\"64.0\",worker=\"0\"}",
            "sluicegate_worker_batch_size_count{worker=\"0\"}",
            "sluicegate_port_mode_info{port=\"uplink0\",driver=\"af_xdp\",mode=\"copy\",reason=\"the driver of \\\"eth0\\\"",
            "sluicegate_ipam_addresses{pool=\"10.244.1.0/24\",family=\"IPv4\"}",
            "sluicegate_ipam_addresses_in_use{",
            "sluicegate_ipam_exhausted_total{family=\"IPv6\"}",
            "kubeproxy_network_programming_duration_seconds_bucket",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        ] {
            has(name);
        }
        assert_eq!(
            (found["sluicegate_worker_cross_numa{worker=\"0\"}"], found["sluicegate_vfs{state=\"pod\"}"]),
            (1.0, 1.0)
        );
        assert_eq!(found["sluicegate_worker_moved_total{worker=\"0\"}"], 2.0);
        assert_eq!(found["sluicegate_flows"], 0.0);
        assert_eq!(found["sluicegate_packets_total{port=\"uplink0\",direction=\"rx\"}"], 7.0);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn every_reason_at_every_stage_is_there_before_the_first_drop() {
        let found = samples(&render(Sample::default()).unwrap());
        for reason in Reason::ALL {
            for stage in Stage::ALL {
                let key = format!("sluicegate_drops_total{{reason=\"{}\",stage=\"{}\"}}", reason.name(), stage.name());
                assert_eq!(found.get(&key), Some(&0.0), "{key}");
            }
        }
    }

    #[test]
    fn a_histogram_counts_a_value_on_a_bound_below_it() {
        let mut histogram = Histogram::new([1.0, 2.0]);
        [0.5, 1.0, 1.5, 9.0].into_iter().for_each(|value| histogram.observe(value));
        assert_eq!(histogram.counts, [2, 1, 1]);
        assert_eq!((histogram.count(), histogram.sum), (4, 12.0));
    }

    #[test]
    fn the_buckets_of_kube_proxy_ascend_from_a_quarter_second_to_five_minutes() {
        let bounds = Histogram::network_programming().bounds;
        assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((bounds[0], bounds[bounds.len() - 1]), (0.25, 300.0));
    }
}
