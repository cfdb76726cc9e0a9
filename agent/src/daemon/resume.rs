//! From what an earlier process left to workers that go on with it, in an order in which no packet meets half a node.
//!
//! ```text
//! pods known ─▶ tables compiled ─▶ flows taken up ─▶ pods' ports polled ─▶ uplink taken over
//!                    (one thread a worker)     (side by side)
//! ```
//! Until the last step the earlier process's XDP program drops what is ours (`pmd/afxdp/src/lasting.rs`), so the kernel
//! answers nobody in our name. Runs on the control thread.

use super::attachments::Attachment;
use super::control::Control;
use super::driven::Driven;
use super::flow_files::{self, Wanted};
use super::plug::side_by_side;
use super::workers::{self, Handle};
use crate::settings;
use anyhow::{Result, anyhow};
use sluice_engine::flow::Stored;
use sluice_engine::handoff::Handoff;
use sluice_engine::{Pipeline, Strays, Worker, WorkerOptions};
use sluice_hostnet::{Netns, PodInterface};
use sluice_port::Queue;
use sluice_tap::{Namespace, TapOptions, TapQueue};
use std::time::Instant;

/// What a start has made ready on the side.
pub struct Prepared {
    /// Pods to be taken up again.
    pub returning: Vec<Returning>,
    /// The host port.
    pub host: TapQueue,
    /// The uplink's driver, ready.
    pub uplink: Driven,
}

/// A pod that was attached before and is still there.
pub struct Returning {
    attachment: Attachment,
    ns: Netns,
}

/// How long the steps of a start took, for one line in the log.
pub struct Phases {
    last: Instant,
    text: String,
}

impl Phases {
    /// Begins with the first step.
    pub fn new(started: Instant) -> Self {
        Phases { last: started, text: String::new() }
    }

    /// A step is done.
    pub fn done(&mut self, step: &str) {
        use std::fmt::Write;
        let took = self.last.elapsed();
        self.last = Instant::now();
        let comma = if self.text.is_empty() { "" } else { ", " };
        let _ = write!(self.text, "{comma}{step} {:.1} ms", took.as_secs_f64() * 1e3);
    }

    /// All steps so far.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl Control {
    /// Puts pods that were attached before into the view; those whose namespace is gone are forgotten.
    pub fn recall_pods(&mut self) -> Vec<Returning> {
        let mut back = Vec::new();
        for attachment in self.attachments.iter().cloned().collect::<Vec<_>>() {
            let pod = format!("{}/{}", attachment.namespace, attachment.name);
            match Netns::open(&attachment.netns).ok().filter(|ns| ns.inode() == attachment.netns_inode) {
                Some(ns) => {
                    self.view.pods.insert(attachment.pod(), self.local_pod(&attachment));
                    self.hold_pod(&attachment.pod());
                    back.push(Returning { attachment, ns });
                }
                None => {
                    tracing::info!(pod, "the pod's network namespace is gone; its port and address are free again");
                    if let Err(error) = self.detach(&attachment) {
                        tracing::error!(pod, "cannot forget the pod: {error:#}");
                    }
                }
            }
        }
        back
    }

    /// From tables in force to packets: flows, ports of pods, workers, and last the uplink. What a start prepared on the side
    /// is handed in.
    pub fn go_live(&mut self, prepared: Prepared, phases: &mut Phases) -> Result<()> {
        let Prepared { returning, host, uplink } = prepared;
        let mut engines = self.engines()?;
        phases.done("flows");
        engines[0].attach(self.view.host.port, Box::new(host));
        let made = self.open_ports(&returning, &mut engines);
        phases.done("pods");
        self.open_uplink(uplink, &mut engines)?;
        for (id, engine) in engines.into_iter().enumerate() {
            self.workers.push(Handle::start(id as u16, engine, self.cpus[id], self.config.idle)?);
        }
        let wakers: Vec<_> = self.workers.iter().map(Handle::waker).collect();
        self.workers.iter().for_each(|w| w.introduce(wakers.clone()));
        self.take_up_domains();
        if let Some(uplink) = &mut self.uplink {
            uplink.take_over()?;
        }
        phases.done("uplink");
        tracing::info!(
            ms = self.started.elapsed().as_millis() as u64,
            pods = returning.len(),
            steps = phases.text(),
            "packets pass"
        );
        // Nobody was there to be told when tables were compiled.
        self.limits.clear();
        self.limit_pods();
        self.settle_pods(&returning, &made);
        Ok(())
    }

    /// Workers on the tables in force, with the flows that an earlier process left.
    fn engines(&mut self) -> Result<Vec<Worker>> {
        let count = self.cpus.len() as u16;
        let folder = flow_files::folder(self.config.flows.path.as_deref(), &self.config.socket);
        let noted = self.notes.found.flow_tables.replace(folder.clone());
        if noted.as_ref() != Some(&folder) {
            self.notes.save()?;
            noted.map_or(Ok(()), |old| flow_files::remove(&old))?;
        }
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u64);
        let flows = self.config.flows.max as usize;
        let wanted = Wanted { workers: count, pairs: flows, ports: self.attachments.id(), seed };
        let mut opened = flow_files::open(&folder, wanted)?;
        self.machine_problems.extend(opened.problem.take());
        let mut made = Vec::new();
        let tables = std::mem::take(&mut opened.tables);
        for ((id, handoff), flow_tables) in (0u16..).zip(Handoff::mesh(usize::from(count))).zip(tables) {
            let options = WorkerOptions { id, workers: count, flows, seed: opened.seed, huge_pages: true };
            let reader = self.publisher.reader();
            let (tables, shared, cache) = (reader.get().clone(), self.shared.clone(), self.pool.cache());
            made.push((Pipeline::with_flows(options, tables, shared, cache, handoff, flow_tables), reader));
        }
        settings::ensure_egress(&self.shared, &self.cluster);
        let mut found = Stored { torn: opened.torn, ..Stored::default() };
        let now = workers::clock();
        let take_up = |pipeline: &mut Pipeline| {
            let mut strays = Strays::default();
            (pipeline.resume_flows(now, &mut strays), strays)
        };
        std::thread::scope(|scope| {
            let take_up = &take_up;
            let threads: Vec<_> = made.iter_mut().map(|(pipeline, _)| scope.spawn(move || take_up(pipeline))).collect();
            for thread in threads {
                let (part, strays) = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                found = found.plus(part);
                opened.strays.append(strays);
            }
        });
        for (pipeline, _) in &mut made {
            found = found.plus(pipeline.take_strays(&mut opened.strays));
        }
        opened.forget_surplus();
        let lost = found.ended as usize + opened.strays.len();
        if found != Stored::default() {
            let (kept, torn) = (found.kept, found.torn);
            tracing::info!(kept, lost, torn, folder = %folder.display(), "flows of the last run");
        }
        Ok(made.into_iter().map(|(pipeline, reader)| Worker::new(pipeline, reader)).collect())
    }

    /// Opens the ports of pods that were attached before and gives them to their workers; for each, whether its interface
    /// had to be made anew.
    fn open_ports(&mut self, returning: &[Returning], engines: &mut [Worker]) -> Vec<bool> {
        let taps = side_by_side(returning, |pod| {
            let options = TapOptions::new(&pod.attachment.ifname);
            let of_tap = pod.attachment.veth.is_none() && pod.attachment.fast.is_none();
            let open = || TapQueue::open(&options.within(Namespace::Fd(pod.ns.as_fd())));
            Ok(of_tap.then(open).transpose()?)
        });
        let mut made = Vec::new();
        for (pod, tap) in returning.iter().zip(taps) {
            let (attachment, mut new) = (&pod.attachment, false);
            let queue: Result<Box<dyn Queue>> = match (tap, &attachment.veth) {
                _ if attachment.fast.is_some() => self.open_fast_of(attachment, &pod.ns),
                (Ok(Some(tap)), _) => {
                    new = tap.created();
                    Ok(Box::new(tap))
                }
                (Ok(None), Some(host)) => self.return_veth(attachment, &pod.ns, host),
                (Ok(None), None) => Err(anyhow!("the pod has neither a TAP device nor a veth pair")),
                (Err(error), _) => Err(error),
            };
            made.push(new);
            match queue {
                Ok(queue) => engines[usize::from(self.worker_of(attachment.port))].attach(attachment.port, queue),
                Err(error) => self.not_taken_up(attachment, &error),
            }
        }
        made
    }

    fn return_veth(&mut self, attachment: &Attachment, ns: &Netns, host: &str) -> Result<Box<dyn Queue>> {
        if sluice_hostnet::interface(&self.netns, host)?.is_none() {
            sluice_hostnet::veth_into(&self.netns, host, ns, &attachment.ifname, 1)?;
        }
        Ok(Box::new(self.open_veth(attachment.port, host)?))
    }

    /// Brings pods' interfaces into the state they should be in, should a kill have come in between or the MTU have changed.
    fn settle_pods(&mut self, returning: &[Returning], made: &[bool]) {
        let mtu = u32::from(self.pod_mtu());
        let mut pods: Vec<(&Returning, bool)> = returning.iter().zip(made.iter().copied()).collect();
        // Those that are new have nothing yet: first.
        pods.sort_by_key(|(_, new)| !new);
        pods.retain(|(pod, _)| pod.attachment.fast.is_none());
        let done = side_by_side(&pods, |(pod, _)| {
            let Attachment { ifname, mac, addresses, .. } = &pod.attachment;
            let wanted = PodInterface { name: ifname, mac: *mac, mtu, addresses };
            Ok(sluice_hostnet::configure_pod(&pod.ns, &wanted)?)
        });
        for ((pod, _), done) in pods.iter().zip(done) {
            if let Err(error) = done {
                self.not_taken_up(&pod.attachment, &error);
            }
        }
    }

    fn not_taken_up(&mut self, attachment: &Attachment, error: &anyhow::Error) {
        let (namespace, name) = (&attachment.namespace, &attachment.name);
        let problem = format!("pod {namespace}/{name}: its port cannot be taken up again: {error:#}");
        tracing::error!("{problem}");
        self.machine_problems.push(problem);
    }

    /// Opens the uplink's queues behind a driver that knows what is ours already.
    fn open_uplink(&mut self, uplink: Driven, engines: &mut [Worker]) -> Result<()> {
        self.uplink = Some(uplink);
        self.steered = None;
        self.renew_guard();
        self.steer(&self.publisher.current().steering.clone());
        let Some(uplink) = &mut self.uplink else { return Ok(()) };
        let queues = uplink.open(&self.config, &self.umem, &mut self.cache)?;
        let count = engines.len();
        for (at, queue) in queues.into_iter().enumerate() {
            engines[at % count].attach(self.view.uplink.port, queue);
        }
        Ok(())
    }
}
