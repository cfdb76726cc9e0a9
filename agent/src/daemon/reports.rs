//! What the node tells of itself: the API's questions answered on the control thread.

use super::control::{Control, Link};
use super::driven::Driven;
use super::observe::{Listener, Told, Wanted};
use super::pods::is_not_shown;
use super::shadow;
use super::workers::Handle;
use crate::api::Agent;
use crate::api::problem::Problem;
use crate::api::report::{
    BackendReport, CounterReport, FlowFilter, FlowReport, FlowsReport, FrontendReport, GenerationReport,
    HealthCheckReport, IpamReport, ObserveEvent, ObserveFilter, PodReport, PolicyReport, PoolReport, PortCounters,
    PortReport, ServiceReport, State, StatusReport, TryReport, TryRequest, VERDICTS, VfReport, WorkerReport,
};
use crate::replay::verdict::policy_verdict;
use serde_json::Value;
use sluice_cni::protocol::{CniRequest, ErrorBody, ErrorCode, Verb};
use sluice_ctrl::model::{Family, Labels};
use sluice_engine::Reason;
use sluice_engine::trace::Event;
use sluice_tables::services::FrontendKind;
use sluice_tables::{Address, RuleId};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// How long an ADD waits for the API server to show its pod.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);
/// Time between two looks.
const SHOWN_POLL: Duration = Duration::from_millis(20);

/// The API's view of the node: every question becomes work for the control thread.
pub struct Node {
    link: Link,
}

impl Node {
    /// Around the way to the control thread.
    pub fn new(link: Link) -> Self {
        Node { link }
    }
}

impl Agent for Node {
    fn status(&self) -> StatusReport {
        self.link.ask(|control| control.status()).unwrap_or_default()
    }

    fn services(&self) -> Vec<ServiceReport> {
        self.link.ask(|control| control.services()).unwrap_or_default()
    }

    fn pods(&self) -> Vec<PodReport> {
        self.link.ask(|control| control.pod_reports()).unwrap_or_default()
    }

    fn policies(&self) -> Vec<PolicyReport> {
        self.link.ask(|control| control.policies()).unwrap_or_default()
    }

    fn vfs(&self) -> Vec<VfReport> {
        self.link.ask(|control| control.vf_reports()).unwrap_or_default()
    }

    fn flows(&self, filter: &FlowFilter, limit: usize) -> FlowsReport {
        let filter = filter.clone();
        self.link.ask(move |control| control.flows(&filter, limit)).unwrap_or_default()
    }

    fn counters(&self) -> CounterReport {
        self.link.ask(|control| control.counters()).unwrap_or_default()
    }

    fn generation(&self) -> GenerationReport {
        self.link.ask(|control| control.generation()).unwrap_or_default()
    }

    fn observe(&self, filter: ObserveFilter) -> mpsc::Receiver<ObserveEvent> {
        let (sender, receiver) = mpsc::channel(1024);
        self.link.ask(move |control| control.observe(filter, sender));
        receiver
    }

    fn policy_try(&self, request: TryRequest) -> Result<mpsc::Receiver<TryReport>, String> {
        shadow::start(self.link.clone(), request)
    }

    fn cni(&self, verb: Verb, request: CniRequest) -> Result<Value, ErrorBody> {
        let gone = || Err(ErrorBody::new(ErrorCode::TRY_AGAIN_LATER, "the agent is stopping", ""));
        let until = Instant::now() + SHOWN_WITHIN;
        loop {
            let answer = self.link.cni(verb, request.clone()).unwrap_or_else(gone);
            match &answer {
                // kubelet often knows of a pod a moment before we do.
                Err(error) if is_not_shown(error) && Instant::now() < until => std::thread::sleep(SHOWN_POLL),
                _ => return answer,
            }
        }
    }
}

impl Control {
    /// Name of a port.
    fn port_name(&self, port: u16) -> String {
        if port == self.view.uplink.port {
            return "uplink0".to_owned();
        }
        if port == self.view.host.port {
            return "host".to_owned();
        }
        let pod = self.view.pods.iter().find(|(_, pod)| pod.port == port);
        pod.map_or_else(|| format!("port:{port}"), |(name, _)| format!("pod:{name}"))
    }

    pub(crate) fn pod_of(&self, port: u16) -> Option<String> {
        self.view.pods.iter().find(|(_, pod)| pod.port == port).map(|(name, _)| name.to_string())
    }

    fn problems(&self) -> Vec<Problem> {
        let mut all: Vec<Problem> = self.snapshot.problems.iter().map(Problem::from).collect();
        all.extend(self.invalid.iter().map(Problem::from));
        all.extend(self.publisher.current().invalid.iter().map(Problem::from));
        all.extend(self.compile_problem.iter().map(|p| Problem::plain(format!("{p}; the last good tables stand"))));
        all.extend(self.machine_problems.iter().map(Problem::plain));
        all.extend(self.source_problems().into_iter().map(Problem::plain));
        all.extend(self.put_back.iter().map(|why| Problem::plain(format!("the uplink is put back: {why}"))));
        all.extend(self.uplink.as_ref().and_then(Driven::problem).map(Problem::plain));
        all.extend(self.refusals.problems());
        all.extend(self.limit_problems.iter().cloned());
        all.extend(self.snat.problems().iter().map(Problem::plain));
        all.extend(self.cores.problems().map(Problem::plain));
        all.extend(self.vfs.problems().map(Problem::plain));
        if self.cut_off {
            all.push(Problem::plain(
                "cut off from most other nodes: no egress or load-balancer address is carried here",
            ));
        }
        all.extend(self.unfilled().map(Problem::plain));
        all.extend(self.fence_problems.iter().map(Problem::plain));
        all.extend(self.health_ports.problems());
        for (at, worker) in self.workers.iter().enumerate() {
            if !worker.is_alive() {
                all.push(Problem::plain(format!("worker {at} has ended; restart sluiced")));
            }
        }
        all.sort();
        all.dedup();
        all
    }

    /// Egress and load-balancer addresses that are on this node now.
    fn carried_addresses(&self) -> Vec<IpAddr> {
        let egress = &self.publisher.current().tables.egress;
        let mut all: Vec<IpAddr> =
            egress.addresses.iter().chain(&egress.announced).map(|address| IpAddr::from(*address)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn port_reports(&self) -> Vec<PortReport> {
        let mut all: BTreeMap<u16, PortReport> = BTreeMap::new();
        for worker in &self.workers {
            for port in worker.ports() {
                let report = all.entry(port.port).or_insert_with(|| PortReport {
                    name: self.port_name(port.port),
                    number: port.port,
                    interface: self.interface_of(port.port),
                    driver: port.mode.driver.to_owned(),
                    mode: port.mode.mode.clone(),
                    reason: port.mode.reason.clone(),
                    ..PortReport::default()
                });
                report.rx_packets += port.stats.rx_packets;
                report.rx_bytes += port.stats.rx_bytes;
                report.rx_missed += port.stats.rx_missed;
                report.tx_packets += port.stats.tx_packets;
                report.tx_bytes += port.stats.tx_bytes;
                report.tx_full += port.stats.tx_full;
                report.tx_errors += port.stats.tx_errors;
                report.rx_copied += port.stats.rx_copied;
                report.tx_copied += port.stats.tx_copied;
            }
        }
        if let (Some(uplink), Some(report)) = (&self.uplink, all.get_mut(&self.view.uplink.port)) {
            report.device = uplink.device_counters().into_iter().collect();
        }
        all.into_values().collect()
    }

    fn interface_of(&self, port: u16) -> String {
        if port == self.view.uplink.port {
            return self.uplink_name.clone();
        }
        if port == self.view.host.port {
            return self.config.ports.host.interface.clone();
        }
        self.attachments.iter().find(|a| a.port == port).map(|a| a.ifname.clone()).unwrap_or_default()
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> StatusReport {
        let problems = self.problems();
        // New pods are refused meanwhile, but packets pass by the last good tables.
        let stands = self.compile_problem.is_some() && !self.workers.is_empty();
        let state = match (self.not_ready(), problems.is_empty()) {
            (Some(_), _) if !stands => State::Starting,
            (_, true) => State::Ready,
            (_, false) => State::Degraded,
        };
        let workers = self.workers.iter().zip(&self.cpus).enumerate();
        StatusReport {
            node: self.config.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state,
            problems,
            uptime_seconds: self.started.elapsed().as_secs(),
            generation: self.publisher.generation(),
            applied_generation: self.publisher.applied(),
            workers: workers
                .map(|(id, (worker, cpu))| {
                    let (busy, all) = (worker.counters.busy_turns.get(), worker.counters.turns.get());
                    WorkerReport {
                        id: id as u16,
                        cpu: *cpu,
                        alive: worker.is_alive(),
                        busy_ratio: if all == 0 { 0.0 } else { busy as f64 / all as f64 },
                        numa_node: self.cores.seats.get(id).map(|s| s.node),
                        cross_numa: self.cores.seats.get(id).is_some_and(|s| s.cross_numa),
                        moved: self.cores.moved.get(id).copied().unwrap_or_default(),
                    }
                })
                .collect(),
            ports: self.port_reports(),
            pods: self.view.pods.len(),
            services: self.cluster.services.values().filter(|s| s.is_served()).count(),
            policies: self.cluster.network_policies.len() + self.cluster.cluster_network_policies.len(),
            flows: u64::from(self.shared.flows.load(Ordering::Relaxed)),
            flows_capacity: u64::from(self.shared.max_flows.load(Ordering::Relaxed)),
            pool: PoolReport {
                frames: self.pool.frames() as u64,
                free: self.pool.frames().saturating_sub(self.pool.outstanding()) as u64,
                huge_pages: self.pool.huge_pages(),
            },
            wanted_neighbours: self.publisher.current().wanted_neighbours.iter().copied().collect(),
            carried_addresses: self.carried_addresses(),
            ignored_objects: self.snapshot.ignored.clone(),
            ipam: self.ipam_reports(),
            unready: self.why_unready(),
            notes: [self.source_notes(), self.unenforced()].concat(),
            cpu_throttled_periods: self.cores.throttled,
        }
    }

    fn ipam_reports(&self) -> Vec<IpamReport> {
        let mut all: BTreeMap<(String, &str), IpamReport> = BTreeMap::new();
        for usage in self.ipam.usage() {
            let family = if Family::of_net(&usage.net) == Family::V4 { "IPv4" } else { "IPv6" };
            // podCIDRs are told apart by their network; the networks of a pool are one.
            let pool = if usage.pool == "node" { usage.net.to_string() } else { usage.pool };
            let report = all.entry((pool.clone(), family)).or_insert_with(|| IpamReport {
                pool,
                family: family.to_owned(),
                ..IpamReport::default()
            });
            let size = u64::try_from(usage.size).unwrap_or(u64::MAX);
            report.addresses = report.addresses.saturating_add(size);
            report.in_use += usage.in_use as u64;
        }
        all.into_values().collect()
    }

    /// `GET /v1/services`.
    pub fn services(&self) -> Vec<ServiceReport> {
        let mut by_service: BTreeMap<String, Vec<FrontendReport>> = BTreeMap::new();
        let node = &self.publisher.current().tables.services;
        let topology: BTreeMap<(Family, &str), String> =
            self.publisher.current().topology().map(|(family, port, how)| ((family, port), how.to_string())).collect();
        for shard in &node.shards {
            for (key, frontend) in &shard.frontends {
                let (service, _) = frontend.name.rsplit_once(':').unwrap_or((&frontend.name, ""));
                let address = match IpAddr::from(key.address).is_unspecified() {
                    true => format!("*:{}", key.port),
                    false => SocketAddr::new(key.address.into(), key.port).to_string(),
                };
                let chosen: Vec<_> = frontend.internal.backends.iter().chain(&frontend.external.backends).collect();
                let mut backends: Vec<BackendReport> = frontend
                    .alive
                    .iter()
                    .map(|(address, port)| BackendReport {
                        address: SocketAddr::new((*address).into(), *port).to_string(),
                        local: self.publisher.current().tables.pods.by_address(*address).is_some(),
                        ready: chosen.iter().any(|b| b.address == *address && b.port == *port),
                    })
                    .collect();
                backends.sort_by(|a, b| a.address.cmp(&b.address));
                let family = Family::of(&IpAddr::from(key.address));
                by_service.entry(service.to_owned()).or_default().push(FrontendReport {
                    port_name: String::new(),
                    topology: topology.get(&(family, &*frontend.name)).cloned().unwrap_or_default(),
                    kind: kind_name(frontend.kind).to_owned(),
                    address,
                    protocol: protocol_name(key.protocol).to_owned(),
                    backends,
                });
            }
        }
        by_service
            .into_iter()
            .map(|(name, mut frontends)| {
                frontends.sort_by(|a, b| (&a.kind, &a.address, &a.protocol).cmp(&(&b.kind, &b.address, &b.protocol)));
                let kind = self
                    .cluster
                    .services
                    .values()
                    .find(|s| s.name.to_string() == name)
                    .map_or_else(String::new, |s| format!("{:?}", s.kind));
                let check = self.publisher.current().health_checks.iter().find(|c| c.service.to_string() == name);
                let health_check =
                    check.map(|c| HealthCheckReport { port: c.port, local_endpoints: c.local_endpoints });
                ServiceReport { name, kind, frontends, health_check }
            })
            .collect()
    }

    /// `GET /v1/pods`.
    pub fn pod_reports(&self) -> Vec<PodReport> {
        let tables = &self.publisher.current().tables;
        self.view
            .pods
            .iter()
            .map(|(name, pod)| {
                let attachment = self.attachments.iter().find(|a| a.port == pod.port);
                let programmed = tables.pods.by_port(pod.port);
                PodReport {
                    name: name.to_string(),
                    addresses: pod.addresses.clone(),
                    port: pod.port,
                    worker: pod.worker,
                    mac: pod.mac.map(|b| format!("{b:02x}")).join(":"),
                    netns: attachment.map(|a| a.netns.display().to_string()).unwrap_or_default(),
                    ifname: attachment.map(|a| a.ifname.clone()).unwrap_or_default(),
                    ingress_isolated: programmed.is_some_and(|p| p.ingress.is_some()),
                    egress_isolated: programmed.is_some_and(|p| p.egress.is_some()),
                    unenforced: attachment.and_then(|a| a.vf.as_ref()).map(|vf| vf.ifname.clone()),
                }
            })
            .collect()
    }

    /// `GET /v1/policies`.
    pub fn policies(&self) -> Vec<PolicyReport> {
        let problems = self.problems();
        let count = |(verdict, count): (&&str, u64)| ((*verdict).to_owned(), count);
        let tally = self.tally_by_policy();
        let report = |kind: &str, name: String, failed: bool, directions: Vec<String>, selected: Vec<String>| {
            let object = format!("{kind}/{name}");
            PolicyReport {
                kind: kind.to_owned(),
                accepted: !failed,
                problems: problems.iter().filter(|p| p.object.as_ref() == Some(&object)).cloned().collect(),
                verdicts: VERDICTS.iter().zip(tally.get(&object).copied().unwrap_or_default()).map(count).collect(),
                name,
                directions,
                selected_pods: selected,
            }
        };
        let mut all = Vec::new();
        for policy in self.cluster.network_policies.values() {
            let mut directions = Vec::new();
            if policy.ingress.is_some() {
                directions.push("ingress".to_owned());
            }
            if policy.egress.is_some() {
                directions.push("egress".to_owned());
            }
            let here = self.view.pods.keys().filter(|name| {
                name.namespace == policy.name.namespace
                    && self.cluster.pods.get(*name).is_some_and(|pod| policy.pods.matches(&pod.labels))
            });
            let selected = here.map(ToString::to_string).collect();
            all.push(report("NetworkPolicy", policy.name.to_string(), policy.fail_closed.any(), directions, selected));
        }
        for policy in self.cluster.cluster_network_policies.values() {
            let mut directions = Vec::new();
            if !policy.ingress.is_empty() {
                directions.push("ingress".to_owned());
            }
            if !policy.egress.is_empty() {
                directions.push("egress".to_owned());
            }
            let failed = policy.fail_closed.any();
            let none = Labels::new();
            let here = self.view.pods.keys().filter(|name| {
                let namespace = self.cluster.namespace_labels(&name.namespace).unwrap_or(&none);
                let labels = self.cluster.pods.get(*name).map_or(&none, |pod| &pod.labels);
                policy.subject.namespaces.matches(namespace) && policy.subject.pods.matches(labels)
            });
            let selected = here.map(ToString::to_string).collect();
            all.push(report("ClusterNetworkPolicy", policy.name.clone(), failed, directions, selected));
        }
        all
    }

    /// Verdicts by policy, of all workers and rules: allowed, denied, audited.
    fn tally_by_policy(&self) -> BTreeMap<String, [u64; 3]> {
        let names = &self.publisher.current().tables.policy;
        let mut all: BTreeMap<String, [u64; 3]> = BTreeMap::new();
        for (rule, counts) in self.workers.iter().flat_map(Handle::tally) {
            let Some(name) = names.name(rule) else { continue };
            let policy = name.split_once('#').map_or(&**name, |(policy, _)| policy);
            let sums = all.entry(policy.to_owned()).or_default();
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        all
    }

    /// `GET /v1/flows`.
    pub fn flows(&self, filter: &FlowFilter, limit: usize) -> FlowsReport {
        let zone = match &filter.pod {
            None => None,
            Some(name) => match self.view.pods.iter().find(|(n, _)| n.to_string() == *name) {
                Some((_, pod)) => Some(pod.port),
                None => return FlowsReport::default(),
            },
        };
        // A zone's flows may stand anywhere in a table, so a filtered answer looks at more than it gives.
        let look = if zone.is_some() { crate::api::report::MAX_FLOWS } else { limit + 1 };
        let mut flows: Vec<FlowReport> = Vec::new();
        for worker in &self.workers {
            flows.extend(worker.flows(look).into_iter().filter(|f| zone.is_none_or(|z| f.zone == z)));
        }
        let truncated = flows.len() > limit;
        flows.truncate(limit);
        for flow in &mut flows {
            flow.pod = self.pod_of(flow.zone);
        }
        FlowsReport { flows, truncated }
    }

    /// `GET /v1/counters`.
    pub fn counters(&self) -> CounterReport {
        let mut report = CounterReport::default();
        for (id, worker) in self.workers.iter().enumerate() {
            report.add_worker(id as u16, &worker.counters);
        }
        report.ports = self.port_reports().iter().map(PortCounters::from).collect();
        for space in self.shared.spaces.all() {
            report.snat_ports_in_use.insert(IpAddr::from(space.address).to_string(), space.leased_ports() as u64);
        }
        report.programming = self.programming.clone();
        report.network_programming = self.network_programming.clone();
        report.last_sync_timestamp_seconds = self.last_sync;
        report.ipam_exhausted = self.refusals.exhausted();
        report
    }

    /// `GET /v1/generation`.
    pub fn generation(&self) -> GenerationReport {
        let applied = self.publisher.applied();
        GenerationReport { published: self.publisher.generation(), applied, workers: vec![applied; self.workers.len()] }
    }

    /// `GET /v1/observe`.
    pub fn observe(&mut self, filter: ObserveFilter, sender: mpsc::Sender<ObserveEvent>) {
        let mut ports: BTreeMap<u16, (String, Option<String>)> = BTreeMap::new();
        for port in
            [self.view.uplink.port, self.view.host.port].into_iter().chain(self.view.pods.values().map(|p| p.port))
        {
            ports.insert(port, (self.port_name(port), self.pod_of(port)));
        }
        let names = self.publisher.current().tables.policy.clone();
        let mut lost = 0;
        let asked = sender.clone();
        let sink = move |told: &Told| {
            if sender.is_closed() {
                return false;
            }
            let (port, pod) = ports.get(&told.port).cloned().unwrap_or_else(|| (format!("port:{}", told.port), None));
            let policy = |rule: RuleId| names.name(rule).map(|n| n.to_string());
            let mut event = event_of(told, port, pod, policy);
            event.lost = lost;
            if filter.wants(&event) {
                match sender.try_send(event) {
                    Ok(()) => lost = 0,
                    Err(_) => lost += 1,
                }
            }
            true
        };
        let gone = Box::new(move || asked.is_closed());
        self.observers.add(Listener { wanted: Wanted::All, sink: Box::new(sink), gone }, &self.workers);
    }
}

fn event_of(told: &Told, port: String, pod: Option<String>, policy: impl Fn(RuleId) -> Option<String>) -> ObserveEvent {
    let (verdict, reason, stage) = match told.event {
        Event::Sent(_) => ("forwarded", None, None),
        Event::Punted(_) => ("punted", None, None),
        Event::Dropped(reason, stage) => ("dropped", Some(reason), Some(stage)),
        Event::Replied(reason) => ("replied", reason, None),
        Event::Held => ("held", None, None),
    };
    let end = |(address, port): (Address, u16)| SocketAddr::new(address.into(), port).to_string();
    ObserveEvent {
        time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64()),
        port,
        pod,
        verdict: verdict.to_owned(),
        reason: reason.map(|r| r.name().to_owned()),
        stage: stage.map(|s| s.name().to_owned()),
        policy_verdict: policy_verdict(told.note.rule.is_some(), told.note.audited, reason == Some(Reason::PolicyDeny))
            .map(str::to_owned),
        policy: told.note.rule.and_then(policy),
        service: told.note.service.as_ref().map(ToString::to_string),
        backend: told.note.backend.map(end),
        packet: describe(&told.frame),
        lost: 0,
    }
}

/// One line about a frame: `TCP 10.244.1.5:40000 > 10.96.0.10:80`.
fn describe(frame: &[u8]) -> String {
    use sluice_wire::layers::{Layers, Transport};
    let Ok(layers) = Layers::parse(frame, 65_535) else { return "?".to_owned() };
    let (Some(source), Some(destination)) = (layers.source(frame), layers.destination(frame)) else {
        return "ARP or other".to_owned();
    };
    match layers.transport {
        Transport::Tcp { source: a, destination: b, .. }
        | Transport::Udp { source: a, destination: b }
        | Transport::Sctp { source: a, destination: b, .. } => format!(
            "{} {} > {}",
            protocol_name(layers.protocol.0),
            SocketAddr::new(source, a),
            SocketAddr::new(destination, b)
        ),
        Transport::Icmp { kind, code, .. } => format!("ICMP {kind}/{code} {source} > {destination}"),
        _ => format!("protocol {} {source} > {destination}", layers.protocol.0),
    }
}

fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        6 => "TCP",
        17 => "UDP",
        132 => "SCTP",
        1 | 58 => "ICMP",
        _ => "other",
    }
}

fn kind_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::NodePort => "NodePort",
        FrontendKind::HostPort => "HostPort",
        FrontendKind::LoadBalancer => "LoadBalancer",
        FrontendKind::ExternalIp => "ExternalIP",
    }
}
