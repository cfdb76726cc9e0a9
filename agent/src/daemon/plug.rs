//! Ports of pods: interfaces made and removed, queues given to workers and taken back.
//!
//! What one pod needs of the kernel is independent of every other's, so it is done side by side; tables are published once
//! for all. Order for each port: interface, rules in force, polled; and backwards.

use super::attachments::Attachment;
use super::control::Control;
use super::pods::FIRST_POD_PORT;
use super::workers::Queues;
use anyhow::{Context, Result, anyhow};
use sluice_afxdp::{AttachMode, Program, QueueOptions, XskQueue};
use sluice_ctrl::compile::LocalPod;
use sluice_hostnet::{Netns, PodInterface};
use sluice_port::Queue;
use sluice_tap::{Namespace, TapOptions, TapQueue};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Threads that arrange interfaces side by side.
const SIDE_BY_SIDE: usize = 8;

impl Control {
    /// Makes (or finds again) a pod's interface, publishes its rules, and begins to poll its port.
    pub fn plug(&mut self, attachment: &Attachment, ns: &Netns) -> Result<()> {
        let one = [(attachment.clone(), ns)];
        self.plug_all(&one).pop().unwrap_or_else(|| Err(anyhow!("nothing was done")))
    }

    /// [`plug`](Self::plug) for several pods, with one publication; one that fails costs only itself.
    pub fn plug_all(&mut self, wanted: &[(Attachment, &Netns)]) -> Vec<Result<()>> {
        let (own, mtu) = (&self.netns, u32::from(self.pod_mtu()));
        let taps = side_by_side(wanted, |(attachment, ns)| make_interface(own, attachment, ns, mtu));
        let mut queues: Vec<Result<Box<dyn Queue>>> = Vec::new();
        for ((attachment, ns), tap) in wanted.iter().zip(taps) {
            queues.push(tap.and_then(|tap| match (tap, &attachment.veth) {
                _ if attachment.fast.is_some() => self.open_fast_of(attachment, ns),
                (Some(tap), _) => Ok(Box::new(tap) as Box<dyn Queue>),
                (None, Some(host)) => Ok(Box::new(self.open_veth(attachment.port, host)?) as Box<dyn Queue>),
                (None, None) => Err(anyhow!("the pod has neither a TAP device nor a veth pair")),
            }));
        }
        for ((attachment, ns), queue) in wanted.iter().zip(&mut queues) {
            if queue.is_ok()
                && let Err(error) = self.hand_vf(attachment, ns)
            {
                *queue = Err(error);
            }
        }
        let ready: Vec<&Attachment> =
            wanted.iter().zip(&queues).filter(|(_, queue)| queue.is_ok()).map(|((a, _), _)| a).collect();
        let refused = self.let_in(&ready);
        // One turn of each worker for all of its ports.
        let mut shares: BTreeMap<u16, Queues> = BTreeMap::new();
        let mut done: Vec<Result<u16>> = Vec::new();
        for ((attachment, _), queue) in wanted.iter().zip(queues) {
            done.push(queue.and_then(|queue| match (self.view.pods.get(&attachment.pod()), &refused) {
                (Some(pod), _) => {
                    shares.entry(pod.worker).or_default().push((attachment.port, queue));
                    Ok(pod.worker)
                }
                (None, Some(why)) => Err(anyhow!("the pod's rules are not in force: {why}")),
                (None, None) => Err(anyhow!("the pod is not in the view")),
            }));
        }
        let polled = |(worker, queues)| {
            let handle = self.workers.get(usize::from(worker));
            (worker, handle.is_some_and(|handle| handle.attach_all(queues)))
        };
        let polled: BTreeMap<u16, bool> = shares.into_iter().map(polled).collect();
        self.limit_pods();
        let answered = |worker: u16| match polled.get(&worker) {
            Some(true) => Ok(()),
            _ => Err(anyhow!("worker {worker} does not answer")),
        };
        done.into_iter().map(|worker| worker.and_then(answered)).collect()
    }

    /// Pods into the view and their rules into force. Where that fails for all together, each is tried by itself; those
    /// that are refused are not in the view afterwards, and the reason of the last one is given back.
    fn let_in(&mut self, pods: &[&Attachment]) -> Option<String> {
        if pods.is_empty() {
            return None;
        }
        for attachment in pods {
            let pod = self.local_pod(attachment);
            self.hold_pod(&attachment.pod());
            self.view.pods.insert(attachment.pod(), pod);
        }
        self.import();
        if self.apply(Instant::now()) {
            return None;
        }
        let why = self.compile_problem.clone().unwrap_or_else(|| "a worker does not take up tables".to_owned());
        for attachment in pods {
            self.view.pods.remove(&attachment.pod());
            self.release_pod(&attachment.pod());
        }
        self.import();
        self.apply(Instant::now());
        if let [_] = pods {
            return Some(why);
        }
        pods.iter().fold(None, |refused, pod| self.let_in(&[*pod]).or(refused))
    }

    /// Opens our end of a pod's veth pair.
    pub(super) fn open_veth(&mut self, port: u16, host: &str) -> Result<XskQueue> {
        let mut program = Program::attach_all(host, AttachMode::Auto)?;
        let umem = self.umem.clone();
        let queue = XskQueue::open(&umem, &mut program, 0, &QueueOptions::default(), &mut self.cache)?;
        self.pod_programs.insert(port, program);
        Ok(queue)
    }

    /// Opens a pod's fast port.
    pub(super) fn open_fast_of(&self, attachment: &Attachment, ns: &Netns) -> Result<Box<dyn Queue>> {
        let port = attachment.fast.as_ref().context("the pod has no fast port")?;
        self.open_fast(attachment, port, ns)
    }

    /// A pod as the tables are to have it.
    pub fn local_pod(&self, attachment: &Attachment) -> LocalPod {
        LocalPod {
            port: attachment.port,
            worker: self.worker_of(attachment.port),
            mac: attachment.mac,
            addresses: attachment.addresses.clone(),
            extra_sources: Vec::new(),
            mappings: attachment.mappings.clone(),
        }
    }

    /// The worker of a pod's port. It follows from the number, which is on disk: a later process finds the pod's flows in
    /// the table of the same worker. Numbers are given out in turn, so workers get as many pods each.
    pub fn worker_of(&self, port: u16) -> u16 {
        port.saturating_sub(FIRST_POD_PORT) % (self.cpus.len() as u16).max(1)
    }

    /// Takes a pod's port, rules and interface away. What is gone already is fine.
    pub fn detach(&mut self, attachment: &Attachment) -> Result<()> {
        self.detach_all(std::slice::from_ref(attachment)).pop().unwrap_or(Ok(()))
    }

    /// [`detach`](Self::detach) for several pods, with one publication.
    pub fn detach_all(&mut self, gone: &[Attachment]) -> Vec<Result<()>> {
        if gone.is_empty() {
            return Vec::new();
        }
        let mut changed = false;
        for attachment in gone {
            let name = attachment.pod();
            let current = self.view.pods.get(&name).is_some_and(|p| p.port == attachment.port);
            if current && let Some(pod) = self.view.pods.remove(&name) {
                changed = true;
                self.release_pod(&name);
                if let Some(worker) = self.workers.get(usize::from(pod.worker)) {
                    worker.detach(pod.port);
                }
            }
            self.pod_programs.remove(&attachment.port);
            self.take_vf_back(attachment);
        }
        let containers = || gone.iter().map(|a| a.container.as_str());
        if let Err(error) = self.ipam.release_all(containers(), Self::wall_seconds()) {
            let why = error.to_string();
            return gone.iter().map(|_| Err(anyhow!("{why}"))).collect();
        }
        if changed {
            self.import();
            self.apply(Instant::now());
        }
        let own = &self.netns;
        let removed = side_by_side(gone, |attachment| remove_interface(own, attachment));
        let done = gone.iter().zip(&removed).filter(|(_, r)| r.is_ok()).map(|(a, _)| a.container.as_str());
        match self.attachments.remove_all(done) {
            Ok(()) => removed,
            Err(error) => {
                let why = format!("{error:#}");
                gone.iter().map(|_| Err(anyhow!("{why}"))).collect()
            }
        }
    }

    /// Takes away every port and every lease whose container is not to be kept.
    pub fn collect_garbage(&mut self, keep: impl Fn(&str) -> bool) -> Result<()> {
        let gone: Vec<Attachment> = self.attachments.iter().filter(|a| !keep(&a.container)).cloned().collect();
        let removed = self.detach_all(&gone);
        let kept = self.ipam.leases().map(|l| l.container.clone()).filter(|c| keep(c)).collect();
        self.ipam.retain(&kept, Self::wall_seconds())?;
        removed.into_iter().collect()
    }

    /// Gives back what no DEL will ask for: ports of pods whose network namespace is gone, and leases without a port.
    pub fn reconcile(&mut self) -> Result<()> {
        let alive = |a: &&Attachment| Netns::open(&a.netns).is_ok_and(|ns| ns.inode() == a.netns_inode);
        let alive: std::collections::BTreeSet<String> =
            self.attachments.iter().filter(alive).map(|a| a.container.clone()).collect();
        let all = self.ipam.leases().map(|l| &l.container).chain(self.attachments.iter().map(|a| &a.container));
        let gone = all.filter(|c| !alive.contains(*c)).count();
        if gone == 0 {
            return Ok(());
        }
        tracing::info!(gone, "pods went without a DEL; their ports and addresses are free again");
        self.collect_garbage(|container| alive.contains(container))
    }
}

/// The pod's interface as it should be; the TAP device's queue, or none for a veth pair.
fn make_interface(own: &Netns, attachment: &Attachment, ns: &Netns, mtu: u32) -> Result<Option<TapQueue>> {
    if attachment.fast.is_some() {
        return Ok(None);
    }
    let tap = match &attachment.veth {
        None => Some(TapQueue::open(&TapOptions::new(&attachment.ifname).within(Namespace::Fd(ns.as_fd())))?),
        Some(host) => {
            if sluice_hostnet::interface(own, host)?.is_none() {
                sluice_hostnet::veth_into(own, host, ns, &attachment.ifname, 1)?;
            }
            None
        }
    };
    let wanted = PodInterface { name: &attachment.ifname, mac: attachment.mac, mtu, addresses: &attachment.addresses };
    sluice_hostnet::configure_pod(ns, &wanted)?;
    Ok(tap)
}

fn remove_interface(own: &Netns, attachment: &Attachment) -> Result<()> {
    if let Some(host) = &attachment.veth {
        sluice_hostnet::delete_link(own, host)?;
    }
    if let Some(fast) = &attachment.fast {
        return fast.remove();
    }
    // The namespace may be gone with its interface, or its path may name another one.
    if let Ok(ns) = Netns::open(&attachment.netns)
        && ns.inode() == attachment.netns_inode
    {
        sluice_hostnet::delete_link(&ns, &attachment.ifname)?;
    }
    Ok(())
}

/// Does `work` for each item on a few threads; results in the items' order. One item needs no thread.
pub(super) fn side_by_side<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Vec<Result<R>> {
    if let [only] = items {
        return vec![work(only)];
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<Result<R>>>> = Mutex::new(items.iter().map(|_| None).collect());
    let turn = || {
        while let Some((at, item)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, items.get(at)?)))
        {
            let result = work(item);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done[at] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE.min(items.len()) {
            scope.spawn(turn);
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.into_iter().map(|result| result.unwrap_or_else(|| Err(anyhow!("nothing was done")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_in_the_order_of_the_items_and_an_error_costs_one() {
        let items: Vec<u32> = (0..100).collect();
        let results = side_by_side(&items, |n| if n % 7 == 3 { Err(anyhow!("seven")) } else { Ok(n * 2) });
        for (n, result) in items.iter().zip(results) {
            assert_eq!(result.ok(), (n % 7 != 3).then_some(n * 2));
        }
        assert_eq!(side_by_side(&[5], |n| Ok(n + 1)).pop().unwrap().unwrap(), 6);
        assert!(side_by_side::<u32, ()>(&[], |_| Ok(())).is_empty());
    }
}
