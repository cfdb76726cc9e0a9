//! The control thread: everything of the node that is not a packet. It alone owns the cluster, the view of this machine, the
//! publisher and the list of pods; others send it work and wait for the answer.

use super::announce::{self, Announcer};
use super::attachments::Attachments;
use super::carriers::Carriers;
use super::cores::Cores;
use super::driven::Driven;
use super::health_ports::HealthPorts;
use super::host::Notes;
use super::machine::HostPlan;
use super::observe::Observers;
use super::refusals::Refusals;
use super::snat::SnatWatch;
use super::vfs::Vfs;
use super::workers::Handle;
use crate::api::problem::Problem;
use crate::metrics::Histogram;
use anyhow::Result;
use crossbeam::channel::{Receiver, RecvTimeoutError};
use sluice_afxdp::{Program, Umem};
use sluice_ctrl::carriers::Outcome;
use sluice_ctrl::compile::{Knobs, LocalView, Redirect, Steering};
use sluice_ctrl::config::Config;
use sluice_ctrl::import::{Importer, Invalid};
use sluice_ctrl::ipam::Ipam;
use sluice_ctrl::model::Cluster;
use sluice_ctrl::publish::Publisher;
use sluice_ctrl::source::{Kind, ObjectKey, Snapshot};
use sluice_engine::nat::{Mapping, owner_of};
use sluice_engine::{Rate, Shared};
use sluice_hostnet::Netns;
use sluice_kube::writer::Note;
use sluice_port::{FramePool, PoolCache};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use super::inbox::{CniCall, Link, Message};

/// How often the control thread looks after what nobody tells it of.
const TICK: Duration = Duration::from_millis(100);
/// For how long the uplink's program drops what is ours when no agent renews it: long enough for an upgrade, and then the
/// kernel has the node to itself.
const GUARD: Duration = Duration::from_secs(300);
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(1);
/// How often leases and ports are compared with the pods that exist.
const RECONCILE: Duration = Duration::from_secs(60);

/// The state of the node.
pub struct Control {
    /// The configuration.
    pub config: Config,
    /// The agent's own network namespace.
    pub netns: Netns,
    /// What the manifests gave last.
    pub snapshot: Snapshot,
    /// What was not understood in it.
    pub invalid: Vec<Invalid>,
    /// The cluster.
    pub cluster: Cluster,
    pub(super) importer: Importer,
    /// What is known of the API server; none where a folder is the source.
    pub following: Option<super::cluster::Following>,
    /// This machine.
    pub view: LocalView,
    /// What the configuration asks of the compiler.
    pub knobs: Knobs,
    /// Compiled and published tables.
    pub publisher: Publisher,
    /// Why the last compilation failed; the last good tables stand.
    pub compile_problem: Option<String>,
    /// Problems of the machine.
    pub machine_problems: Vec<String>,
    /// The liveness thread; none before the agent runs.
    pub carriers: Option<Carriers>,
    announcer: Announcer,
    /// Blocks of SNAT ports, and who is short of them.
    pub snat: SnatWatch,
    /// The workers.
    pub workers: Vec<Handle>,
    /// CPUs the workers are pinned to.
    pub cpus: Vec<Option<usize>>,
    /// Where workers run, and whether they are left there.
    pub cores: Cores,
    /// Virtual functions.
    pub vfs: Vfs,
    /// What workers share.
    pub shared: Arc<Shared>,
    /// The frame pool.
    pub pool: Arc<FramePool>,
    /// For closing queues on this thread.
    pub cache: PoolCache,
    /// What drives the uplink; an XDP program stays on the interface.
    pub uplink: Option<Driven>,
    /// XDP programs of pods on veth pairs, by port number.
    pub pod_programs: BTreeMap<u16, Program>,
    /// The pool as AF_XDP knows it.
    pub umem: Arc<Umem>,
    /// Name of the uplink's interface.
    pub uplink_name: String,
    /// Pods attached here.
    pub attachments: Attachments,
    /// Address leases.
    pub ipam: Ipam,
    /// What to put back on the host.
    pub notes: Notes,
    /// Who listens to packets.
    pub observers: Observers,
    /// Ports on which load balancers ask after Services.
    pub health_ports: HealthPorts,
    /// What the uplink's program was told last.
    pub(super) steered: Option<Steering>,
    /// From a change to every worker running on it.
    pub programming: Histogram,
    /// Since the API object changed.
    pub network_programming: Histogram,
    /// When tables were last published.
    pub last_sync: f64,
    /// When the agent started.
    pub started: Instant,
    /// The node's own Node object was seen and its host port is up.
    pub host_ready: bool,
    /// What was written down of domain names.
    pub(crate) domains: super::domains::Kept,
    /// What the host was told to send to us.
    pub(super) redirects: BTreeSet<Redirect>,
    /// Why the uplink was put back; it is not ours for now.
    pub put_back: Option<String>,
    /// The container runtime was given our configuration, or cannot be.
    pub cni_installed: bool,
    /// Rates that workers hold ports to, towards the pod and from it.
    pub limits: BTreeMap<u16, [Option<Rate>; 2]>,
    /// What could not be read of the rates that pods ask for.
    pub limit_problems: Vec<Problem>,
    /// ADDs that were refused.
    pub refusals: Refusals,
    reconciled: Instant,
    /// Most other nodes cannot be reached.
    pub cut_off: bool,
    /// What the Leases of addresses keep from us.
    pub fence_problems: Vec<String>,
    pub(super) solicited: Instant,
    guarded: Option<Instant>,
    /// Tables have just come to want neighbours.
    pub(super) solicit_now: bool,
    /// What the host port was made to be, and when that was looked at last.
    pub(super) host_plan: Option<HostPlan>,
    pub(super) host_checked: Instant,
}

/// What is needed to make a [`Control`].
pub struct Parts {
    pub(crate) config: Config,
    pub(crate) netns: Netns,
    pub(crate) snapshot: Snapshot,
    pub(crate) following: Option<super::cluster::Following>,
    pub(crate) view: LocalView,
    pub(crate) publisher: Publisher,
    pub(crate) workers: Vec<Handle>,
    pub(crate) cores: Cores,
    pub(crate) vfs: Vfs,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Arc<FramePool>,
    pub(crate) uplink: Option<Driven>,
    pub(crate) umem: Arc<Umem>,
    pub(crate) uplink_name: String,
    pub(crate) attachments: Attachments,
    pub(crate) ipam: Ipam,
    pub(crate) notes: Notes,
    pub(crate) health_ports: HealthPorts,
    pub(crate) started: Instant,
}

impl Control {
    /// The control thread's state at start.
    pub fn new(parts: Parts) -> Self {
        let knobs = Knobs::from(&parts.config);
        Control {
            cache: parts.pool.cache(),
            config: parts.config,
            netns: parts.netns,
            snapshot: parts.snapshot,
            invalid: Vec::new(),
            cluster: Cluster::default(),
            importer: Importer::default(),
            following: parts.following,
            view: parts.view,
            knobs,
            publisher: parts.publisher,
            compile_problem: None,
            machine_problems: Vec::new(),
            carriers: None,
            announcer: Announcer::default(),
            snat: SnatWatch::default(),
            workers: parts.workers,
            cpus: parts.cores.cpus(),
            cores: parts.cores,
            vfs: parts.vfs,
            shared: parts.shared,
            pool: parts.pool,
            uplink: parts.uplink,
            pod_programs: BTreeMap::new(),
            umem: parts.umem,
            uplink_name: parts.uplink_name,
            attachments: parts.attachments,
            ipam: parts.ipam,
            notes: parts.notes,
            observers: Observers::default(),
            health_ports: parts.health_ports,
            steered: None,
            programming: Histogram::programming(),
            network_programming: Histogram::network_programming(),
            last_sync: 0.0,
            started: parts.started,
            host_ready: false,
            domains: super::domains::Kept::default(),
            redirects: BTreeSet::new(),
            put_back: None,
            cni_installed: false,
            limits: BTreeMap::new(),
            limit_problems: Vec::new(),
            refusals: Refusals::default(),
            reconciled: parts.started,
            cut_off: false,
            fence_problems: Vec::new(),
            solicited: parts.started,
            guarded: None,
            solicit_now: false,
            host_plan: None,
            host_checked: parts.started,
        }
    }

    /// Runs until told to stop.
    pub fn run(&mut self, inbox: &Receiver<Message>) {
        self.run_while(inbox, |_| true);
    }

    /// Runs for as long as `on` holds; `false` if told to stop.
    pub fn run_while(&mut self, inbox: &Receiver<Message>, on: impl Fn(&Control) -> bool) -> bool {
        let mut next = None;
        // What was taken from the inbox is dealt with before leaving.
        while next.is_some() || on(self) {
            match next.take().map_or_else(|| inbox.recv_timeout(TICK), Ok) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Ok(Message::Objects(snapshot, since)) => {
                    self.snapshot = snapshot;
                    self.import();
                    self.apply(since);
                    self.limit_pods();
                }
                Ok(Message::Cluster(update)) => next = self.follow(update, inbox),
                Ok(Message::Machine) => self.look_at_machine(),
                Ok(Message::Cni(first)) => {
                    let mut calls = vec![first];
                    while let Ok(message) = inbox.try_recv() {
                        match message {
                            Message::Cni(call) => calls.push(call),
                            other => {
                                next = Some(other);
                                break;
                            }
                        }
                    }
                    self.cni_all(calls);
                }
                Ok(Message::Carriers(outcome, heirs)) => self.take_carriers(outcome, heirs),
                Ok(Message::Do(work)) => work(self),
                Err(RecvTimeoutError::Timeout) => self.judge(),
            }
            self.look_after_pods();
            self.look_after_host();
            self.install_cni();
            self.resolve_wanted();
            self.look_at_snat();
            self.announce();
            self.keep_domains();
            self.show_health();
            self.renew_guard();
            self.look_at_cores();
            self.look_at_vfs();
            self.publisher.collect();
            self.observers.prune(&self.workers);
        }
        true
    }

    /// Now and then gives back what pods left that went without a DEL.
    fn look_after_pods(&mut self) {
        if self.reconciled.elapsed() < RECONCILE {
            return;
        }
        self.reconciled = Instant::now();
        if let Err(error) = self.reconcile() {
            tracing::error!("cannot give back what a lost pod left: {error:#}");
        }
    }

    /// Renews the time for which the uplink's program drops what is ours when this process is gone.
    pub fn renew_guard(&mut self) {
        if self.guarded.is_some_and(|at| at.elapsed() < RENEW) {
            return;
        }
        self.guarded = Some(Instant::now());
        if let Some(Err(error)) = self.uplink.as_mut().map(|uplink| uplink.guard(GUARD)) {
            tracing::error!("{error:#}: cannot guard the uplink for the next start");
        }
    }

    fn take_carriers(&mut self, outcome: Outcome, heirs: Vec<Mapping>) {
        let nodes = |outcome: Option<&Outcome>| {
            let carried = outcome.map(|o| o.carried.iter().map(|(a, c)| (*a, c.node.clone())).collect::<Vec<_>>());
            carried.unwrap_or_default()
        };
        let before = nodes(self.view.carriers.as_ref());
        let cut_off = std::mem::replace(&mut self.cut_off, outcome.cut_off);
        if outcome.cut_off && !cut_off {
            tracing::warn!("cut off from most other nodes: this one carries no address until it reaches them again");
        }
        self.fence_problems = fence_problems(&outcome);
        self.view.carriers = Some(outcome);
        self.inherit(heirs);
        if nodes(self.view.carriers.as_ref()) != before {
            self.apply(Instant::now());
        }
    }

    /// Hands flows of an address that comes here to the workers that will own them, before the tables that bring it.
    fn inherit(&mut self, heirs: Vec<Mapping>) {
        let count = self.workers.len() as u16;
        let mut shares: BTreeMap<u16, Vec<Mapping>> = BTreeMap::new();
        for mapping in heirs {
            shares.entry(owner_of(mapping.source, count)).or_default().push(mapping);
        }
        for (worker, share) in shares {
            tracing::info!(worker, flows = share.len(), "flows of an address that comes here");
            if !self.workers.get(usize::from(worker)).is_some_and(|w| w.inherit(share)) {
                tracing::error!(worker, "flows of an address that comes here are lost: the worker does not answer");
            }
        }
    }

    /// Tells the segment of addresses that have come to this node.
    pub(super) fn announce(&mut self) {
        let egress = &self.publisher.current().tables.egress;
        let ours: BTreeSet<IpAddr> = egress.announced.iter().map(|a| IpAddr::from(*a)).collect();
        let now = Instant::now();
        let (come, gone) = self.announcer.set(&ours, now);
        come.iter().for_each(|address| tracing::info!(%address, "address carried by this node now"));
        gone.iter().for_each(|address| tracing::info!(%address, "address no longer carried by this node"));
        let mac = self.view.uplink.mac;
        let frames: Vec<Vec<u8>> =
            self.announcer.take_due(now).into_iter().filter_map(|address| announce::frame(address, mac)).collect();
        if let Some(worker) = self.workers.first().filter(|_| !frames.is_empty()) {
            worker.originate(self.view.uplink.port, frames);
        }
    }

    fn look_at_snat(&mut self) {
        // When the workers' clock began.
        let started = SystemTime::now() - Duration::from_nanos(super::workers::clock());
        let named = |address: IpAddr| {
            let pod = self.cluster.pods.values().find(|pod| pod.addresses.contains(&address));
            pod.map(|pod| pod.name.to_string())
        };
        self.snat.look(&self.shared, started, named);
        for (address, message) in self.snat.take_news() {
            // Its gateway's business, or else this node's: what is masqueraded bears the node's own address.
            let gateway = self.cluster.egress_gateways.values().find(|gateway| gateway.egress_ips.contains(&address));
            let (kind, name) = match gateway {
                Some(gateway) => (Kind::EgressGateway, gateway.name.clone()),
                None => (Kind::Node, self.config.node.clone()),
            };
            let key = ObjectKey { kind, namespace: String::new(), name };
            self.note_event(Note { key, reason: "SnatPortsLow", message });
        }
    }

    /// Seconds since 1970.
    pub fn wall_seconds() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }

    /// Ends the workers. Pods keep their interfaces, flows their tables, and the uplink its program, which drops what is ours
    /// until the next start.
    pub fn shut_down(&mut self) -> Result<()> {
        let keeper = self.carriers.as_mut().and_then(Carriers::stop);
        if let Err(error) = self.write_domains_at_end() {
            tracing::warn!("cannot write down what was learned of domain names: {error:#}");
        }
        self.guarded = None;
        self.renew_guard();
        for worker in &mut self.workers {
            worker.stop();
        }
        if let Some(keeper) = keeper {
            keeper.leave();
        }
        self.uplink = None;
        self.pod_programs.clear();
        Ok(())
    }
}

/// What an operator is told of Leases.
fn fence_problems(outcome: &Outcome) -> Vec<String> {
    let denied = outcome.denied.iter().map(|why| {
        format!(
            "Leases cannot be used, so addresses that move are fenced by the majority of nodes alone: {why}. The agent's Role needs \
             get, list, create, update and delete on coordination.k8s.io leases in its own namespace"
        )
    });
    let waits = outcome.waits.iter().map(|address| {
        format!(
            "{address} is not answered for here: its Lease names another node, or the API server is out of reach and so are too \
             many nodes to do without"
        )
    });
    denied.chain(waits).collect()
}
