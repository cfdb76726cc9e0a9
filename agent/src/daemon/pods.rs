//! Pods come and go: the CNI verbs on the control thread.
//!
//! ADD: interface in the pod ─▶ rules published and applied by every worker ─▶ queue attached ─▶ noted on disk ─▶ answer. No
//! packet of a new pod passes unfiltered: its port is polled only after its rules are in force. DEL is the reverse and may be
//! repeated. Source: CNI specification 1.1.0.

use super::attachments::Attachment;
use super::control::Control;
use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use sluice_afxdp::{AttachMode, Program, QueueOptions, XskQueue};
use sluice_cni::prefix::Prefix;
use sluice_cni::protocol::{AddResult, CniRequest, ErrorBody, ErrorCode, Interface, IpConfig, Route, Verb};
use sluice_ctrl::compile::{LocalPod, derived_mac};
use sluice_ctrl::config::PodDriver;
use sluice_ctrl::ipam::{IpamError, Request};
use sluice_ctrl::model::NamespacedName;
use sluice_hostnet::{Netns, PodInterface};
use sluice_port::Queue;
use sluice_tap::{Namespace, TapOptions, TapQueue};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Instant;

/// Annotation of a Pod: `tap` or `af_xdp`, in place of `ports.pods.driver`.
pub const DRIVER_ANNOTATION: &str = "sluicegate.dev/port-driver";
/// Port number of the first pod.
pub const FIRST_POD_PORT: u16 = 2;
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

fn refuse(code: ErrorCode, message: impl Into<String>, details: impl ToString) -> ErrorBody {
    ErrorBody::new(code, message, details.to_string())
}

impl Control {
    /// Serves one CNI request.
    pub fn cni(&mut self, verb: Verb, request: &CniRequest) -> Result<Value, ErrorBody> {
        match verb {
            Verb::Add => self.cni_add(request),
            Verb::Del => self.cni_del(request),
            Verb::Check => self.cni_check(request),
            Verb::Gc => self.cni_gc(request),
            Verb::Status => self.cni_status(),
        }
    }

    fn cni_status(&self) -> Result<Value, ErrorBody> {
        if let Some(why) = self.not_ready() {
            return Err(refuse(ErrorCode::NOT_AVAILABLE, "the node is not ready for pods", why));
        }
        Ok(json!({}))
    }

    /// Why no pod can be added now; `None` if one can.
    pub fn not_ready(&self) -> Option<String> {
        if let Some(problem) = &self.compile_problem {
            return Some(problem.clone());
        }
        if !self.cluster.nodes.contains_key(&self.config.node) {
            return Some(format!("node {:?} is not in the cluster yet", self.config.node));
        }
        if !self.host_ready {
            return Some("the host port is not up".to_owned());
        }
        if let Some(dead) = self.workers.iter().position(|w| !w.is_alive()) {
            return Some(format!("worker {dead} has ended"));
        }
        None
    }

    fn cni_add(&mut self, request: &CniRequest) -> Result<Value, ErrorBody> {
        let Some(pod) = request.pod() else {
            return Err(refuse(
                ErrorCode::INVALID_ENVIRONMENT,
                "CNI_ARGS names no pod",
                "K8S_POD_NAMESPACE and K8S_POD_NAME are needed",
            ));
        };
        if request.container_id.is_empty() || request.netns.is_empty() || request.ifname.is_empty() {
            return Err(refuse(
                ErrorCode::INVALID_ENVIRONMENT,
                "CNI_CONTAINERID, CNI_NETNS and CNI_IFNAME are needed",
                "",
            ));
        }
        if let Some(why) = self.not_ready() {
            return Err(refuse(ErrorCode::TRY_AGAIN_LATER, "the node is not ready for pods", why));
        }
        let name = NamespacedName::new(pod.namespace, pod.name);
        let ns = Netns::open(Path::new(&request.netns))
            .map_err(|e| refuse(ErrorCode::INVALID_ENVIRONMENT, "cannot open CNI_NETNS", e))?;
        if let Some(known) = self.attachments.get(&request.container_id).cloned() {
            if known.netns_inode == ns.inode() && self.view.pods.contains_key(&name) {
                return Ok(self.answer(&known));
            }
            self.detach(&known)
                .map_err(|e| refuse(ErrorCode::IO, "cannot replace the pod's port", format!("{e:#}")))?;
        }
        // A sandbox that was replaced without a DEL: the newest one is the pod.
        if let Some(old) = self.attachments.of_pod(pod.namespace, pod.name).cloned() {
            tracing::info!(pod = %name, old = old.container, "the pod has a new sandbox");
            self.detach(&old)
                .map_err(|e| refuse(ErrorCode::IO, "cannot remove the pod's old port", format!("{e:#}")))?;
        }
        let addresses = self.lease(&name, &request.container_id)?;
        match self.attach(&name, request, &ns, addresses) {
            Ok(attachment) => Ok(self.answer(&attachment)),
            Err(error) => {
                let message = format!("{error:#}");
                tracing::error!(pod = %name, "cannot attach: {message}");
                if let Err(error) = self.ipam.release(&request.container_id, Self::wall_seconds()) {
                    tracing::error!(%error, "cannot give the address back");
                }
                Err(refuse(ErrorCode::IO, format!("cannot give {name} its port"), message))
            }
        }
    }

    /// Addresses for a pod: those its object carries, else leased ones.
    fn lease(&mut self, name: &NamespacedName, container: &str) -> Result<Vec<IpAddr>, ErrorBody> {
        let fixed: Vec<IpAddr> = self.snapshot_addresses(name).unwrap_or_default();
        let reserved: BTreeSet<IpAddr> = self
            .cluster
            .pods
            .values()
            .filter(|p| p.name != *name && !p.host_network)
            .flat_map(|p| p.addresses.iter().copied())
            .collect();
        let request = Request { pod: name, container, fixed: &fixed, reserved: &reserved };
        self.ipam.add(&request, Self::wall_seconds()).map_err(|error| {
            let code = match error {
                IpamError::Exhausted { .. } | IpamError::NoPools => ErrorCode::TRY_AGAIN_LATER,
                _ => ErrorCode::IO,
            };
            refuse(code, format!("no address for {name}"), error)
        })
    }

    /// `status.podIPs` of the pod's object, not counting what a lease has filled in.
    fn snapshot_addresses(&self, name: &NamespacedName) -> Option<Vec<IpAddr>> {
        let pod = self.cluster.pods.get(name)?;
        let leased = self.ipam.addresses_by_pod();
        if leased.get(name) == Some(&pod.addresses) { None } else { Some(pod.addresses.clone()) }
    }

    fn attach(
        &mut self,
        name: &NamespacedName,
        request: &CniRequest,
        ns: &Netns,
        addresses: Vec<IpAddr>,
    ) -> Result<Attachment> {
        let mac = derived_mac(&addresses).ok_or_else(|| anyhow!("the pod has no address"))?;
        let port = self.attachments.free_port(FIRST_POD_PORT).ok_or_else(|| anyhow!("no port number is free"))?;
        let attachment = Attachment {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            container: request.container_id.clone(),
            ifname: request.ifname.clone(),
            netns: request.netns.clone().into(),
            netns_inode: ns.inode(),
            port,
            addresses,
            mac,
            veth: self.wants_veth(name).then(|| format!("sluice-p{port}")),
        };
        // Noted first: whatever happens from here on, the next start or DEL finds what was made.
        self.attachments.insert(attachment.clone())?;
        match self.plug(&attachment, ns) {
            Ok(()) => Ok(attachment),
            Err(error) => {
                if let Err(error) = self.detach(&attachment) {
                    tracing::error!("cannot undo a failed ADD: {error:#}");
                }
                Err(error)
            }
        }
    }

    /// Makes (or finds again) a pod's interface, publishes its rules, and begins to poll its port.
    pub fn plug(&mut self, attachment: &Attachment, ns: &Netns) -> Result<()> {
        let name = NamespacedName::new(&attachment.namespace, &attachment.name);
        let tap = match &attachment.veth {
            None => Some(TapQueue::open(&TapOptions::new(&attachment.ifname).within(Namespace::Fd(ns.as_fd())))?),
            Some(host) => {
                if sluice_hostnet::interface(&self.netns, host)?.is_none() {
                    sluice_hostnet::veth_into(&self.netns, host, ns, &attachment.ifname, 1)?;
                }
                None
            }
        };
        let wanted = PodInterface {
            name: &attachment.ifname,
            mac: attachment.mac,
            mtu: u32::from(self.pod_mtu()),
            addresses: &attachment.addresses,
        };
        sluice_hostnet::configure_pod(ns, &wanted)?;
        let queue: Box<dyn Queue> = match (tap, &attachment.veth) {
            (Some(tap), _) => Box::new(tap),
            (None, Some(host)) => Box::new(self.open_veth(attachment.port, host)?),
            (None, None) => return Err(anyhow!("the pod has neither a TAP device nor a veth pair")),
        };
        let worker = self.quietest_worker();
        self.view.pods.insert(
            name,
            LocalPod {
                port: attachment.port,
                worker,
                mac: attachment.mac,
                addresses: attachment.addresses.clone(),
                extra_sources: Vec::new(),
            },
        );
        self.import();
        if !self.apply(Instant::now()) {
            let why = self.compile_problem.clone().unwrap_or_else(|| "a worker does not take up tables".to_owned());
            return Err(anyhow!("the pod's rules are not in force: {why}"));
        }
        let handle = self.workers.get(usize::from(worker)).context("no such worker")?;
        if !handle.attach(attachment.port, queue) {
            return Err(anyhow!("worker {worker} does not answer"));
        }
        Ok(())
    }

    /// Whether a pod gets a veth pair with an AF_XDP socket: by configuration, or by its annotation.
    fn wants_veth(&self, name: &NamespacedName) -> bool {
        let annotation = self.cluster.pods.get(name).and_then(|p| p.annotations.get(DRIVER_ANNOTATION));
        match annotation.map(String::as_str) {
            Some("af_xdp") => true,
            Some("tap") => false,
            _ => self.config.ports.pods.driver == PodDriver::AfXdp,
        }
    }

    /// Opens our end of a pod's veth pair.
    fn open_veth(&mut self, port: u16, host: &str) -> Result<XskQueue> {
        let mut program = Program::attach_all(host, AttachMode::Auto)?;
        let umem = self.umem.clone();
        let queue = XskQueue::open(&umem, &mut program, 0, &QueueOptions::default(), &mut self.cache)?;
        self.pod_programs.insert(port, program);
        Ok(queue)
    }

    /// The worker with the fewest pods.
    fn quietest_worker(&self) -> u16 {
        let load = |id: u16| self.view.pods.values().filter(|p| p.worker == id).count();
        (0..self.workers.len() as u16).min_by_key(|id| load(*id)).unwrap_or(0)
    }

    fn cni_del(&mut self, request: &CniRequest) -> Result<Value, ErrorBody> {
        if let Some(known) = self.attachments.get(&request.container_id).cloned() {
            self.detach(&known).map_err(|e| refuse(ErrorCode::IO, "cannot remove the pod's port", format!("{e:#}")))?;
        }
        self.ipam
            .release(&request.container_id, Self::wall_seconds())
            .map_err(|e| refuse(ErrorCode::IO, "cannot release the pod's address", e))?;
        Ok(json!({}))
    }

    /// Takes a pod's port, rules and interface away. What is gone already is fine.
    pub fn detach(&mut self, attachment: &Attachment) -> Result<()> {
        let name = NamespacedName::new(&attachment.namespace, &attachment.name);
        let current = self.view.pods.get(&name).is_some_and(|p| p.port == attachment.port);
        if current && let Some(pod) = self.view.pods.remove(&name) {
            if let Some(worker) = self.workers.get(usize::from(pod.worker)) {
                worker.detach(pod.port);
            }
            self.ipam.release(&attachment.container, Self::wall_seconds())?;
            self.import();
            self.apply(Instant::now());
        }
        self.pod_programs.remove(&attachment.port);
        if let Some(host) = &attachment.veth {
            sluice_hostnet::delete_link(&self.netns, host)?;
        }
        // The namespace may be gone with its interface, or its path may name another one.
        if let Ok(ns) = Netns::open(&attachment.netns)
            && ns.inode() == attachment.netns_inode
        {
            sluice_hostnet::delete_link(&ns, &attachment.ifname)?;
        }
        self.attachments.remove(&attachment.container)?;
        Ok(())
    }

    fn cni_check(&mut self, request: &CniRequest) -> Result<Value, ErrorBody> {
        let Some(known) = self.attachments.get(&request.container_id).cloned() else {
            return Err(refuse(ErrorCode::UNKNOWN_CONTAINER, "no ADD was made for this container", ""));
        };
        let ns = Netns::open(Path::new(&request.netns))
            .map_err(|e| refuse(ErrorCode::INVALID_ENVIRONMENT, "cannot open CNI_NETNS", e))?;
        let found = sluice_hostnet::interface(&ns, &known.ifname)
            .map_err(|e| refuse(ErrorCode::IO, "cannot look into the pod", e))?;
        let Some(interface) = found else {
            return Err(refuse(ErrorCode::IO, format!("interface {} is gone", known.ifname), ""));
        };
        let missing: Vec<&IpAddr> =
            known.addresses.iter().filter(|a| !interface.addresses.iter().any(|net| net.addr() == **a)).collect();
        if !interface.up || !missing.is_empty() {
            return Err(refuse(
                ErrorCode::IO,
                format!("interface {} is not as ADD left it", known.ifname),
                format!("up: {}, missing addresses: {missing:?}", interface.up),
            ));
        }
        Ok(json!({}))
    }

    fn cni_gc(&mut self, request: &CniRequest) -> Result<Value, ErrorBody> {
        let Some(valid) = request.valid_attachments() else { return Ok(json!({})) };
        let keep: BTreeSet<&str> = valid.iter().map(|a| a.container_id.as_str()).collect();
        let gone: Vec<Attachment> =
            self.attachments.iter().filter(|a| !keep.contains(a.container.as_str())).cloned().collect();
        for attachment in gone {
            self.detach(&attachment)
                .map_err(|e| refuse(ErrorCode::IO, "cannot remove a pod's port", format!("{e:#}")))?;
        }
        Ok(json!({}))
    }

    /// The answer to ADD.
    fn answer(&self, attachment: &Attachment) -> Value {
        let mac = attachment.mac.map(|b| format!("{b:02x}")).join(":");
        let gateway = |address: &IpAddr| match address {
            IpAddr::V4(_) => IpAddr::from(GATEWAY_V4),
            IpAddr::V6(_) => IpAddr::from(GATEWAY_V6),
        };
        let everything = |address: &IpAddr| match address {
            IpAddr::V4(_) => "0.0.0.0/0",
            IpAddr::V6(_) => "::/0",
        };
        let result = AddResult {
            interfaces: vec![Interface {
                name: attachment.ifname.clone(),
                mac: Some(mac),
                mtu: Some(u32::from(self.pod_mtu())),
                sandbox: Some(attachment.netns.display().to_string()),
                ..Interface::default()
            }],
            ips: attachment
                .addresses
                .iter()
                .map(|a| IpConfig { interface: Some(0), address: Prefix::host(*a), gateway: Some(gateway(a)) })
                .collect(),
            routes: attachment
                .addresses
                .iter()
                .filter_map(|a| Some(Route { dst: everything(a).parse().ok()?, gw: Some(gateway(a)), mtu: None }))
                .collect(),
            ..AddResult::default()
        };
        serde_json::to_value(result).unwrap_or_else(|_| json!({}))
    }
}
