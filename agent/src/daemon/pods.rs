//! Pods come and go: the CNI verbs on the control thread.
//!
//! Calls that wait are served together: one write of leases, one of attachments, interfaces made side by side, one
//! compilation, one publication. ADD: lease and note on disk ─▶ interface in the pod ─▶ rules published and applied by every
//! worker ─▶ queue attached ─▶ answer. No packet of a new pod passes unfiltered: its port is polled only after its rules are
//! in force. DEL is the reverse and may be repeated. Source: CNI specification 1.1.0.

use super::attachments::Attachment;
use super::capabilities::{self, Asked};
use super::control::{CniCall, Control};
use super::fast::{self, FastKind, FastPort};
use super::vfs::BareVf;
use serde_json::{Value, json};
use sluice_cni::prefix::Prefix;
use sluice_cni::protocol::{AddResult, CniRequest, ErrorBody, ErrorCode, Interface, IpConfig, Route, Verb};
use sluice_ctrl::compile::derived_mac;
use sluice_ctrl::config::PodDriver;
use sluice_ctrl::ipam::{self, Choice, IpamError, Request};
use sluice_ctrl::model::NamespacedName;
use sluice_hostnet::{GATEWAY_V4, GATEWAY_V6, Netns};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Annotation of a Pod: `tap` or `af_xdp`, in place of `ports.pods.driver`; `memif` or `vhost-user` for a fast port.
pub const DRIVER_ANNOTATION: &str = "sluicegate.dev/port-driver";
/// Port number of the first pod.
pub const FIRST_POD_PORT: u16 = 2;
/// Namespace of containers that a runtime gives no pod's name.
pub const BARE_NAMESPACE: &str = "cni";

/// A pod's labels, and so its policies, are not known before that.
const NOT_SHOWN: &str = "the API server has not shown it yet";

fn refuse(code: ErrorCode, message: impl Into<String>, details: impl ToString) -> ErrorBody {
    ErrorBody::new(code, message, details.to_string())
}

/// A pod that was let in and has no port yet.
struct Newcomer<'a> {
    at: usize,
    name: NamespacedName,
    request: &'a CniRequest,
    ns: Netns,
    asked: Asked,
    choice: Choice,
    fixed: Vec<IpAddr>,
    vf: Option<BareVf>,
}

/// Whether an answer says that the pod is not known yet, so that asking again soon makes sense.
pub fn is_not_shown(error: &ErrorBody) -> bool {
    error.code == ErrorCode::TRY_AGAIN_LATER && error.details == NOT_SHOWN
}

impl Control {
    /// Serves one CNI request.
    pub fn cni(&mut self, verb: Verb, request: &CniRequest) -> Result<Value, ErrorBody> {
        match verb {
            Verb::Add => self.cni_add(&[request]).pop().unwrap_or_else(|| Ok(json!({}))),
            Verb::Del => self.cni_del(&[request]).pop().unwrap_or_else(|| Ok(json!({}))),
            Verb::Check => self.cni_check(request),
            Verb::Gc => self.cni_gc(request),
            Verb::Status => self.cni_status(),
        }
    }

    /// Serves requests that wait, in their order; neighbours of one verb together.
    pub fn cni_all(&mut self, calls: Vec<CniCall>) {
        let mut calls = calls.into_iter().peekable();
        while let Some(first) = calls.next() {
            let mut pods = BTreeSet::from([key(&first.request)]);
            let mut run = vec![first];
            let together = |verb| matches!(verb, Verb::Add | Verb::Del);
            while let Some(next) =
                calls.next_if(|c| together(c.verb) && c.verb == run[0].verb && pods.insert(key(&c.request)))
            {
                run.push(next);
            }
            let requests: Vec<&CniRequest> = run.iter().map(|call| &call.request).collect();
            let answers = match run[0].verb {
                Verb::Add => self.cni_add(&requests),
                Verb::Del => self.cni_del(&requests),
                verb => requests.iter().map(|request| self.cni(verb, request)).collect(),
            };
            for (call, answer) in run.into_iter().zip(answers) {
                // Whoever asked may be gone.
                let _ = call.reply.send(answer);
            }
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
        if let Some(why) = &self.put_back {
            return Some(format!("the uplink is put back: {why}"));
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

    /// ADD for several pods, no two alike; one that fails costs only itself.
    fn cni_add(&mut self, requests: &[&CniRequest]) -> Vec<Result<Value, ErrorBody>> {
        let mut answers: Vec<Option<Result<Value, ErrorBody>>> = vec![None; requests.len()];
        let mut newcomers = Vec::new();
        for (at, request) in requests.iter().enumerate() {
            match self.admit(at, request) {
                Ok(Admitted::Known(attachment)) => answers[at] = Some(Ok(self.answer(&attachment))),
                Ok(Admitted::New(newcomer)) => newcomers.push(*newcomer),
                Err(error) => answers[at] = Some(Err(error)),
            }
        }
        self.make_room(&newcomers, &mut answers);
        newcomers.retain(|n| answers[n.at].is_none());
        let attachments = self.lease_and_note(&newcomers, &mut answers);
        let wanted: Vec<_> = newcomers.iter().filter_map(|n| Some((attachments.get(&n.at)?.clone(), &n.ns))).collect();
        let plugged = self.plug_all(&wanted);
        let mut failed = Vec::new();
        let at = newcomers.iter().filter(|n| attachments.contains_key(&n.at)).map(|n| n.at);
        for (at, ((attachment, _), done)) in at.zip(wanted.iter().zip(plugged)) {
            answers[at] = Some(match done {
                Ok(()) => Ok(self.answer(attachment)),
                Err(error) => {
                    let (pod, message) = (attachment.pod(), format!("{error:#}"));
                    tracing::error!(%pod, "cannot attach: {message}");
                    failed.push(attachment.clone());
                    Err(refuse(ErrorCode::IO, format!("cannot give {pod} its port"), message))
                }
            });
        }
        if !failed.is_empty() {
            for error in self.detach_all(&failed).into_iter().filter_map(Result::err) {
                tracing::error!("cannot undo a failed ADD: {error:#}");
            }
        }
        let answers = answers.into_iter().map(|a| a.unwrap_or_else(|| Ok(json!({}))));
        let answers: Vec<_> = answers.collect();
        for (request, answer) in requests.iter().zip(&answers) {
            self.remember(request, answer.as_ref().err());
        }
        answers
    }

    fn admit<'a>(&mut self, at: usize, request: &'a CniRequest) -> Result<Admitted<'a>, ErrorBody> {
        let Some(name) = self.name_of(request) else {
            return Err(refuse(
                ErrorCode::INVALID_ENVIRONMENT,
                "CNI_ARGS names no pod",
                "K8S_POD_NAMESPACE and K8S_POD_NAME are needed",
            ));
        };
        if request.container_id.is_empty() || request.netns.is_empty() || request.ifname.is_empty() {
            let message = "CNI_CONTAINERID, CNI_NETNS and CNI_IFNAME are needed";
            return Err(refuse(ErrorCode::INVALID_ENVIRONMENT, message, ""));
        }
        if let Some(why) = self.not_ready() {
            return Err(refuse(ErrorCode::TRY_AGAIN_LATER, "the node is not ready for pods", why));
        }
        let asked = capabilities::read(&request.config)
            .map_err(|why| refuse(ErrorCode::INVALID_CONFIG, "the network configuration does not hold", why))?;
        if !self.is_shown(&name, request.pod().and_then(|pod| pod.uid)) {
            return Err(refuse(ErrorCode::TRY_AGAIN_LATER, format!("pod {name} is not known"), NOT_SHOWN));
        }
        let vf = self
            .bare_vf(&name, &request.config)
            .map_err(|why| refuse(ErrorCode::INVALID_CONFIG, format!("no VF for {name}"), why))?;
        if vf.as_ref().is_some_and(|vf| vf.ifname == request.ifname) {
            let why = format!("{} is the pod's port already", request.ifname);
            return Err(refuse(ErrorCode::INVALID_CONFIG, format!("no VF for {name}"), why));
        }
        let ns = Netns::open(Path::new(&request.netns))
            .map_err(|e| refuse(ErrorCode::INVALID_ENVIRONMENT, "cannot open CNI_NETNS", e))?;
        if let Some(known) = self.attachments.get(&request.container_id)
            && known.netns_inode == ns.inode()
            && known.pod() == name
            && self.view.pods.contains_key(&name)
        {
            return Ok(Admitted::Known(Box::new(known.clone())));
        }
        let mut choice = ipam::choose(&self.cluster, &self.config.node, &name)
            .map_err(|why| refuse(ErrorCode::INVALID_CONFIG, format!("no address for {name}"), why))?;
        if !asked.addresses.is_empty() {
            choice.addresses.clone_from(&asked.addresses);
        }
        // Under an API server kubelet reports what IPAM gave: an address there is this pod's last one, not its next.
        let fixed = match &self.following {
            None => self.snapshot_addresses(&name).unwrap_or_default(),
            Some(_) => Vec::new(),
        };
        Ok(Admitted::New(Box::new(Newcomer { at, name, request, ns, asked, choice, fixed, vf })))
    }

    /// Takes away what newcomers replace: a container's port in another namespace, and a pod's older sandbox that was
    /// replaced without a DEL (the newest one is the pod).
    fn make_room(&mut self, newcomers: &[Newcomer<'_>], answers: &mut [Option<Result<Value, ErrorBody>>]) {
        let mut old: BTreeMap<String, (usize, Attachment)> = BTreeMap::new();
        for newcomer in newcomers {
            let of_container = self.attachments.get(&newcomer.request.container_id);
            let of_pod = self.attachments.of_pod(&newcomer.name.namespace, &newcomer.name.name);
            for known in of_container.into_iter().chain(of_pod) {
                tracing::info!(pod = %newcomer.name, old = known.container, "the pod has a new sandbox");
                old.insert(known.container.clone(), (newcomer.at, known.clone()));
            }
        }
        let (at, gone): (Vec<usize>, Vec<Attachment>) = old.into_values().unzip();
        for (at, done) in at.into_iter().zip(self.detach_all(&gone)) {
            if let Err(error) = done {
                answers[at] =
                    Some(Err(refuse(ErrorCode::IO, "cannot remove the pod's old port", format!("{error:#}"))));
            }
        }
    }

    /// Leases and attachments of newcomers, on disk before anything else is done; by the place of the request.
    fn lease_and_note(
        &mut self,
        newcomers: &[Newcomer<'_>],
        answers: &mut [Option<Result<Value, ErrorBody>>],
    ) -> BTreeMap<usize, Attachment> {
        let names: BTreeSet<&NamespacedName> = newcomers.iter().map(|n| &n.name).collect();
        let others = self.cluster.pods.values().filter(|p| !names.contains(&p.name) && !p.host_network);
        let mut reserved: BTreeSet<IpAddr> = others.flat_map(|p| p.addresses.iter().copied()).collect();
        reserved.extend(newcomers.iter().flat_map(|n| n.fixed.iter().copied()));
        let requests: Vec<Request<'_>> = newcomers
            .iter()
            .map(|n| Request {
                pod: &n.name,
                container: &n.request.container_id,
                fixed: &n.fixed,
                wanted: &n.choice.addresses,
                pools: &n.choice.pools,
                reserved: &reserved,
            })
            .collect();
        let mut made = BTreeMap::new();
        let given = match self.ipam.add_all(&requests, Self::wall_seconds()) {
            Ok(given) => given,
            Err(error) => {
                let message = error.to_string();
                for n in newcomers {
                    answers[n.at] = Some(Err(refuse(ErrorCode::IO, format!("no address for {}", n.name), &message)));
                }
                return made;
            }
        };
        let mut unused = Vec::new();
        for (newcomer, given) in newcomers.iter().zip(given) {
            let attachment = match given {
                Ok(addresses) => self.attachment(newcomer, addresses).inspect_err(|_| {
                    unused.push(newcomer.request.container_id.as_str());
                }),
                Err(error) => {
                    self.note_exhaustion(&newcomer.name, &newcomer.choice.pools, &error);
                    let code = match error {
                        IpamError::Unusable { .. } => ErrorCode::INVALID_CONFIG,
                        IpamError::File { .. } | IpamError::Unreadable { .. } | IpamError::OtherPod { .. } => {
                            ErrorCode::IO
                        }
                        _ => ErrorCode::TRY_AGAIN_LATER,
                    };
                    Err(refuse(code, format!("no address for {}", newcomer.name), error))
                }
            };
            match attachment {
                Ok(attachment) => drop(made.insert(newcomer.at, attachment)),
                Err(error) => answers[newcomer.at] = Some(Err(error)),
            }
        }
        // Noted before anything is made: whatever happens from here on, the next start or DEL finds it.
        if let Err(error) = self.attachments.insert_all(made.values().cloned()) {
            unused
                .extend(newcomers.iter().filter(|n| made.contains_key(&n.at)).map(|n| n.request.container_id.as_str()));
            for at in std::mem::take(&mut made).into_keys() {
                answers[at] = Some(Err(refuse(ErrorCode::IO, "cannot note the pod's port", format!("{error:#}"))));
            }
        }
        if let Err(error) = self.ipam.release_all(unused, Self::wall_seconds()) {
            tracing::error!(%error, "cannot give an address back");
        }
        made
    }

    fn attachment(&mut self, newcomer: &Newcomer<'_>, addresses: Vec<IpAddr>) -> Result<Attachment, ErrorBody> {
        let Newcomer { name, request, asked, .. } = newcomer;
        let mac = asked.mac.or_else(|| derived_mac(&addresses));
        let mac = mac.ok_or_else(|| refuse(ErrorCode::IO, format!("{name} has no address"), ""))?;
        let fast = self.fast_port(name, request)?;
        let port = self.attachments.free_port(FIRST_POD_PORT);
        let port = port.ok_or_else(|| refuse(ErrorCode::TRY_AGAIN_LATER, "no port number is free", ""))?;
        Ok(Attachment {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            container: request.container_id.clone(),
            ifname: request.ifname.clone(),
            netns: request.netns.clone().into(),
            netns_inode: newcomer.ns.inode(),
            port,
            addresses,
            mac,
            veth: (fast.is_none() && self.wants_veth(name)).then(|| format!("sluice-p{port}")),
            fast,
            mappings: asked.mappings.clone(),
            bandwidth: asked.bandwidth,
            vf: newcomer.vf.clone(),
        })
    }

    /// The pod that a request is about. A runtime that knows no pods names a container only: without an API server it is a
    /// pod without an object, by that name.
    fn name_of(&self, request: &CniRequest) -> Option<NamespacedName> {
        let named = request.args.keys().any(|key| key.starts_with("K8S_POD_NA"));
        match request.pod() {
            Some(pod) => Some(NamespacedName::new(pod.namespace, pod.name)),
            None if named || self.following.is_some() || request.container_id.is_empty() => None,
            None => Some(NamespacedName::new(BARE_NAMESPACE, &request.container_id)),
        }
    }

    /// `status.podIPs` of the pod's object, not counting what a lease has filled in.
    fn snapshot_addresses(&self, name: &NamespacedName) -> Option<Vec<IpAddr>> {
        let pod = self.cluster.pods.get(name)?;
        let leased = self.ipam.leases().any(|lease| lease.pod == *name && lease.addresses == pod.addresses);
        if leased { None } else { Some(pod.addresses.clone()) }
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

    /// The fast port that a pod's annotation asks for. A pod never runs with another kind of port than it asked for.
    fn fast_port(&self, name: &NamespacedName, request: &CniRequest) -> Result<Option<FastPort>, ErrorBody> {
        let annotation = self.cluster.pods.get(name).and_then(|p| p.annotations.get(DRIVER_ANNOTATION));
        let Some(kind) = annotation.and_then(|text| FastKind::named(text)) else { return Ok(None) };
        let refused = |why: &str| refuse(ErrorCode::INVALID_CONFIG, format!("{name} cannot have a fast port"), why);
        if let Some(why) = fast::impossible() {
            return Err(refused(why));
        }
        let run = self.config.socket.parent().unwrap_or(Path::new("/run"));
        let port = FastPort::new(kind, &name.namespace, &name.name, run, &request.config);
        port.map(Some).map_err(|why| refused(&why))
    }

    fn remember(&mut self, request: &CniRequest, error: Option<&ErrorBody>) {
        if let Some(name) = self.name_of(request) {
            self.refusals.remember(name, error);
        }
    }

    /// DEL of several containers, no two alike.
    fn cni_del(&mut self, requests: &[&CniRequest]) -> Vec<Result<Value, ErrorBody>> {
        let known: Vec<Attachment> =
            requests.iter().filter_map(|r| self.attachments.get(&r.container_id)).cloned().collect();
        let detached = self.detach_all(&known);
        let mut failed: BTreeMap<&str, String> = BTreeMap::new();
        for (attachment, done) in known.iter().zip(detached) {
            if let Err(error) = done {
                failed.insert(&attachment.container, format!("{error:#}"));
            }
        }
        // A lease may be there without a port: an ADD that was cut off.
        let rest = requests.iter().map(|r| r.container_id.as_str()).filter(|c| !failed.contains_key(c));
        let released = self.ipam.release_all(rest, Self::wall_seconds()).map_err(|error| error.to_string());
        requests
            .iter()
            .map(|request| {
                self.remember(request, None);
                if let Some(why) = failed.get(request.container_id.as_str()) {
                    return Err(refuse(ErrorCode::IO, "cannot remove the pod's port", why));
                }
                let release = released.clone().map(|()| json!({}));
                release.map_err(|why| refuse(ErrorCode::IO, "cannot release the pod's address", why))
            })
            .collect()
    }

    fn cni_check(&mut self, request: &CniRequest) -> Result<Value, ErrorBody> {
        let Some(known) = self.attachments.get(&request.container_id).cloned() else {
            return Err(refuse(ErrorCode::UNKNOWN_CONTAINER, "no ADD was made for this container", ""));
        };
        let ns = Netns::open(Path::new(&request.netns))
            .map_err(|e| refuse(ErrorCode::INVALID_ENVIRONMENT, "cannot open CNI_NETNS", e))?;
        let differs = |what: String, details: String| Err(refuse(ErrorCode::IO, what, details));
        let said: Option<AddResult> = serde_json::from_value(request.config["prevResult"].clone()).ok();
        let said = said.unwrap_or_default();
        let strange: Vec<String> = said
            .ips
            .iter()
            .filter(|ip| !known.addresses.iter().any(|a| Prefix::host(*a) == ip.address))
            .map(|ip| ip.address.to_string())
            .collect();
        if !strange.is_empty() {
            return differs("prevResult names addresses that the pod does not have".into(), strange.join(", "));
        }
        if known.fast.is_some() {
            let programmed = self.publisher.current().tables.pods.by_port(known.port).is_some();
            return if programmed {
                Ok(json!({}))
            } else {
                differs("the pod's rules are not in force".into(), String::new())
            };
        }
        let found = sluice_hostnet::interface(&ns, &known.ifname)
            .map_err(|e| refuse(ErrorCode::IO, "cannot look into the pod", e))?;
        let Some(interface) = found else {
            return differs(format!("interface {} is gone", known.ifname), String::new());
        };
        if let Some(vf) = &known.vf
            && sluice_hostnet::interface(&ns, &vf.ifname).ok().flatten().is_none()
        {
            return differs(
                format!("VF {} is gone", vf.ifname),
                "`sluice vfs` on the node shows its device".to_owned(),
            );
        }
        let missing: Vec<&IpAddr> =
            known.addresses.iter().filter(|a| !interface.addresses.iter().any(|net| net.addr() == **a)).collect();
        let programmed = self.publisher.current().tables.pods.by_port(known.port).is_some();
        if !interface.up || !missing.is_empty() || interface.mac != known.mac || !programmed {
            return differs(
                format!("interface {} is not as ADD left it", known.ifname),
                format!(
                    "up: {}, missing addresses: {missing:?}, MAC as given: {}, rules in force: {programmed}",
                    interface.up,
                    interface.mac == known.mac
                ),
            );
        }
        Ok(json!({}))
    }

    fn cni_gc(&mut self, request: &CniRequest) -> Result<Value, ErrorBody> {
        let Some(valid) = request.valid_attachments() else { return Ok(json!({})) };
        let keep: BTreeSet<String> = valid.into_iter().map(|a| a.container_id).collect();
        self.collect_garbage(|lease_or_port| keep.contains(lease_or_port))
            .map(|()| json!({}))
            .map_err(|error| refuse(ErrorCode::IO, "cannot remove a pod's port", format!("{error:#}")))
    }

    /// A GC that was asked for while no agent was there: what has come since then stays.
    pub fn collect_noted_garbage(&mut self, request: &CniRequest, asked: SystemTime) -> Result<Value, ErrorBody> {
        let asked = asked.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let later = self.ipam.leases().filter(|l| l.since > asked).map(|l| l.container.clone());
        let mut keep: BTreeSet<String> = later.collect();
        let Some(valid) = request.valid_attachments() else { return Ok(json!({})) };
        keep.extend(valid.into_iter().map(|a| a.container_id));
        self.collect_garbage(|container| keep.contains(container))
            .map(|()| json!({}))
            .map_err(|error| refuse(ErrorCode::IO, "cannot remove a pod's port", format!("{error:#}")))
    }

    /// The answer to ADD.
    fn answer(&self, attachment: &Attachment) -> Value {
        let text = |mac: [u8; 6]| mac.map(|b| format!("{b:02x}")).join(":");
        let gateway = |address: &IpAddr| match address {
            IpAddr::V4(_) => IpAddr::from(GATEWAY_V4),
            IpAddr::V6(_) => IpAddr::from(GATEWAY_V6),
        };
        let everything = |address: &IpAddr| match address {
            IpAddr::V4(_) => "0.0.0.0/0",
            IpAddr::V6(_) => "::/0",
        };
        let mtu = Some(u32::from(self.pod_mtu()));
        // A TAP device has one end, the pod's; the other one is a descriptor of the agent.
        let host = attachment.veth.as_ref().map(|name| Interface {
            name: name.clone(),
            mac: sluice_hostnet::interface(&self.netns, name).ok().flatten().map(|i| text(i.mac)),
            mtu,
            ..Interface::default()
        });
        let pod = Interface {
            name: attachment.ifname.clone(),
            mac: Some(text(attachment.mac)),
            mtu,
            sandbox: Some(attachment.netns.display().to_string()),
            socket_path: attachment.fast.as_ref().map(FastPort::socket_path),
            ..Interface::default()
        };
        let bare = attachment.vf.as_ref().map(|vf| Interface {
            name: vf.ifname.clone(),
            sandbox: Some(attachment.netns.display().to_string()),
            pci_id: self.vf_address(attachment),
            ..Interface::default()
        });
        let inside = Some(u32::from(host.is_some()));
        let result = AddResult {
            interfaces: host.into_iter().chain([pod]).chain(bare).collect(),
            ips: attachment
                .addresses
                .iter()
                .map(|a| IpConfig { interface: inside, address: Prefix::host(*a), gateway: Some(gateway(a)) })
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

/// What becomes of an ADD before anything is changed.
enum Admitted<'a> {
    /// It was done already.
    Known(Box<Attachment>),
    /// It is to be done.
    New(Box<Newcomer<'a>>),
}

/// What may stand once in a group of calls: a pod, or a container where no pod is named.
fn key(request: &CniRequest) -> (String, String) {
    match request.pod() {
        Some(pod) => (pod.namespace.to_owned(), pod.name.to_owned()),
        None => (String::new(), request.container_id.clone()),
    }
}
