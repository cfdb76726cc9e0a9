//! Where workers run, whether they are left there, and whether they are let run: places by NUMA node and core
//! (`sluice_machine::placement`), threads that others have moved, CPU quotas that hold the process back.
//!
//! Control thread; looked at once a second. Source: sched_setaffinity(2), `cpuset.cpus.effective` and `cpu.stat` of cgroup-v2.rst, the
//! kubelet's CPU manager.

use super::control::Control;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use sluice_ctrl::config::{Config, Workers};
use sluice_machine::limits::{self, Limits};
use sluice_machine::list::ranges;
use sluice_machine::machine;
use sluice_machine::placement::{Placement, PlacementError, Seat, Wish, place};
use sluice_machine::{Machine, Root};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often threads and quotas are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long throttling is told of after it was last seen.
const REMEMBERED: Duration = Duration::from_secs(300);

/// Places of workers and what became of them.
#[derive(Debug)]
pub struct Cores {
    /// Places, by worker; empty where the machine could not be read.
    pub seats: Vec<Seat>,
    /// NUMA node of the uplink's device.
    pub uplink_node: Option<u32>,
    /// How often each worker was found on other CPUs than its own.
    pub moved: Vec<u64>,
    /// Throttled periods since the agent's start; none where nothing counts them.
    pub throttled: Option<u64>,
    placed: Vec<String>,
    found: Vec<String>,
    throttled_at_start: Option<u64>,
    throttled_last: Option<Instant>,
    /// A CPU of the uplink's node for whatever makes memory there; none where it does not matter.
    home: Option<usize>,
    looked: Instant,
}

impl Cores {
    /// Places the workers that a configuration asks for.
    pub fn plan(config: &Config) -> Result<Cores, PlacementError> {
        let root = Root::new(Path::new("/"));
        let limits = limits::read(root, "self").unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read this process's cgroup");
            Limits::default()
        });
        let mut cores = Cores {
            seats: Vec::new(),
            uplink_node: None,
            moved: Vec::new(),
            throttled: limits.throttled.map(|_| 0),
            placed: Vec::new(),
            found: Vec::new(),
            throttled_at_start: limits.throttled,
            throttled_last: None,
            home: None,
            looked: Instant::now(),
        };
        match machine::outline(Path::new("/")) {
            Ok(machine) => cores.place(config, &machine, affinity(None).or(limits.cpuset))?,
            Err(error) => cores.placed.push(format!("workers are placed without regard to nodes and cores: {error}")),
        }
        cores.moved = vec![0; cores.seats.len().max(1)];
        Ok(cores)
    }

    fn place(&mut self, config: &Config, machine: &Machine, cpuset: Option<Vec<u32>>) -> Result<(), PlacementError> {
        let uplink = &config.ports.uplink;
        let device = machine.device(uplink.device.as_deref().unwrap_or(&uplink.interface));
        self.uplink_node = device.and_then(|d| d.node).filter(|_| machine.nodes.len() > 1);
        let cpus = match &config.workers {
            Workers::Cpus(list) => list.iter().copied().map(u32::from).collect(),
            Workers::Auto => Vec::new(),
        };
        let Placement { seats, problems } =
            place(machine, &Wish { cpus, count: None, node: self.uplink_node, cpuset })?;
        self.home = self.uplink_node.and_then(|node| seats.iter().find(|s| s.node == node)).map(|s| s.cpu as usize);
        self.seats = seats;
        self.placed.extend(problems);
        Ok(())
    }

    /// CPUs of the workers; none: wherever the scheduler likes.
    pub fn cpus(&self) -> Vec<Option<usize>> {
        match self.seats.is_empty() {
            true => vec![None],
            false => self.seats.iter().map(|s| Some(s.cpu as usize)).collect(),
        }
    }

    /// Runs on a CPU of the uplink's node from here on, so that memory that this thread touches first lies there.
    pub fn go_home(&self) {
        if let Some(id) = self.home {
            core_affinity::set_for_current(core_affinity::CoreId { id });
        }
    }

    /// What is wrong.
    pub fn problems(&self) -> impl Iterator<Item = String> + '_ {
        self.placed.iter().chain(&self.found).cloned()
    }

    /// Looks at the threads of workers: those that others have moved are told of and put back; and at the quota.
    fn look(&mut self, threads: &[Option<i32>]) {
        self.looked = Instant::now();
        self.found.clear();
        for (id, (seat, thread)) in self.seats.iter().zip(threads).enumerate() {
            let Some(thread) = thread.and_then(Pid::from_raw) else { continue };
            let Some(now) = affinity(Some(thread)) else { continue };
            if now == [seat.cpu] {
                continue;
            }
            self.moved[id] += 1;
            let back = pin(thread, seat.cpu);
            let (cpu, now) = (seat.cpu, ranges(&now));
            self.found.push(match back {
                true => format!(
                    "worker {id} was moved from CPU {cpu} to {now} by another program and is back; whoever does it (kubelet's CPU \
                     manager, tuned, a cpuset) must leave it: give the agent's container whole CPUs in a Guaranteed pod"
                ),
                false => format!(
                    "worker {id} was moved from CPU {cpu} to {now} and may not go back: CPU {cpu} is no longer in its cpuset; \
                     restart sluiced to place workers anew, or give its container whole CPUs in a Guaranteed pod"
                ),
            });
        }
        let throttled = limits::read(Root::new(Path::new("/")), "self").ok().and_then(|l| l.throttled);
        self.count(throttled);
    }

    fn count(&mut self, throttled: Option<u64>) {
        let before = self.throttled;
        self.throttled = throttled.map(|now| now.saturating_sub(*self.throttled_at_start.get_or_insert(now)));
        if self.throttled.unwrap_or(0) > before.unwrap_or(0) {
            self.throttled_last = Some(Instant::now());
        }
        if self.throttled_last.is_some_and(|at| at.elapsed() < REMEMBERED) {
            self.found.push(format!(
                "the kernel stops this process when its CPU quota is used up ({} periods since the start): packets wait; take \
                 `resources.limits.cpu` off the agent's container, or give it whole CPUs in a Guaranteed pod",
                self.throttled.unwrap_or(0)
            ));
        }
    }
}

/// CPUs that a thread may run on; of this one without a number.
fn affinity(thread: Option<Pid>) -> Option<Vec<u32>> {
    let set = sched_getaffinity(thread).ok()?;
    Some((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).map(|cpu| cpu as u32).collect())
}

fn pin(thread: Pid, cpu: u32) -> bool {
    let mut set = CpuSet::new();
    set.set(cpu as usize);
    sched_setaffinity(Some(thread), &set).is_ok()
}

impl Control {
    /// Looks at workers' places once a second.
    pub fn look_at_cores(&mut self) {
        if self.cores.looked.elapsed() < LOOK {
            return;
        }
        let threads: Vec<Option<i32>> = self.workers.iter().map(super::workers::Handle::thread_id).collect();
        let before = self.cores.found.clone();
        self.cores.look(&threads);
        for problem in self.cores.found.iter().filter(|p| !before.contains(p)) {
            tracing::warn!("{problem}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::gettid;
    use std::sync::mpsc;

    fn cores(seats: Vec<Seat>) -> Cores {
        let mut cores = Cores::plan(&Config::builtin("n")).unwrap();
        cores.placed.clear();
        cores.moved = vec![0; seats.len()];
        cores.seats = seats;
        cores
    }

    #[test]
    fn a_worker_that_was_moved_is_told_of_and_put_back() {
        let own: Vec<u32> = affinity(None).unwrap();
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(gettid().as_raw_nonzero().get()).unwrap();
            let _ = ended.recv();
        });
        let thread_id = told.recv().unwrap();
        let mut cores = cores(vec![Seat { cpu: own[0], node: 0, cross_numa: false }]);
        let pid = Pid::from_raw(thread_id).unwrap();
        assert!(pin(pid, own[0]));
        cores.look(&[Some(thread_id)]);
        assert_eq!((cores.problems().count(), cores.moved[0]), (0, 0));
        // On a machine of one CPU there is nowhere to move to: then its own is what it is moved to.
        let elsewhere = *own.last().unwrap();
        assert!(pin(pid, elsewhere));
        cores.look(&[Some(thread_id)]);
        let moved = elsewhere != own[0];
        assert_eq!((cores.problems().any(|p| p.contains("worker 0 was moved")), cores.moved[0] == 1), (moved, moved));
        assert_eq!(affinity(Some(pid)).unwrap(), [own[0]]);
        cores.look(&[Some(thread_id)]);
        assert_eq!(cores.problems().count(), 0);
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn a_quota_that_is_used_up_is_told_of_for_a_while() {
        let mut cores = cores(Vec::new());
        (cores.throttled, cores.throttled_at_start) = (None, None);
        cores.count(Some(7));
        assert_eq!((cores.throttled, cores.problems().count()), (Some(0), 0));
        cores.found.clear();
        cores.count(Some(9));
        let told: Vec<String> = cores.problems().collect();
        assert!(
            cores.throttled == Some(2) && told[0].contains("2 periods") && told[0].contains("limits.cpu"),
            "{told:?}"
        );
    }

    #[test]
    fn workers_are_placed_on_cpus_of_this_process() {
        let own = affinity(None).unwrap();
        let cores = Cores::plan(&Config::builtin("n")).unwrap();
        assert!(!cores.seats.is_empty() && cores.seats.iter().all(|s| own.contains(&s.cpu)), "{cores:?}");
    }
}
