//! Wanted × found → steps: pure, so that every host that can be written down can be planned for.
//!
//! Invariants: no step lowers a number; no step takes a node's last memory (a twentieth of it stays); pages that others use
//! are never counted as ours. What cannot be had is a shortfall with what is free elsewhere, not a smaller wish.

use crate::found::{Found, Node, PAGE_KIB};
use crate::wanted::NodeWanted;
use serde::Serialize;

/// Where hugetlbfs is mounted if it is nowhere.
pub const MOUNT: &str = "/dev/hugepages";

/// One thing to do, in the order of doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Raise a node's number of 2 MB pages.
    SetPages {
        /// The node.
        node: u32,
        /// Its `nr_hugepages` file.
        file: String,
        /// Pages now.
        from: u64,
        /// Pages then.
        to: u64,
        /// What that gives.
        gains: String,
    },
    /// Mount hugetlbfs.
    Mount {
        /// The folder.
        target: String,
        /// What that gives.
        gains: String,
    },
    /// Something only the operator can do.
    Advice {
        /// What to do.
        what: String,
        /// What that gives.
        gains: String,
    },
}

impl Step {
    /// The shell command that does it; `None` for advice.
    pub fn command(&self) -> Option<String> {
        match self {
            Step::SetPages { file, to, .. } => Some(format!("echo {to} > {file}")),
            Step::Mount { target, .. } => {
                Some(format!("mkdir -p {target} && mount -t hugetlbfs -o pagesize=2M none {target}"))
            }
            Step::Advice { .. } => None,
        }
    }
}

/// Pages that another node could give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Elsewhere {
    /// The node.
    pub node: u32,
    /// Its 2 MB pages that nobody uses and this plan does not need.
    pub free_pages: u64,
    /// 2 MB pages that its free memory could become, beyond this plan.
    pub possible_pages: u64,
}

/// A node that cannot hold what is wanted of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shortfall {
    /// The node.
    pub node: u32,
    /// 2 MB pages wanted there.
    pub wanted: u64,
    /// 2 MB pages that it can give at most.
    pub possible: u64,
    /// What other nodes could give.
    pub elsewhere: Vec<Elsewhere>,
}

/// Something the host lacks, and what provides it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The thing.
    pub what: String,
    /// The command that provides it.
    pub command: String,
}

/// Steps, and what no step can reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// Nodes with too little memory.
    pub shortfalls: Vec<Shortfall>,
    /// What the kernel lacks.
    pub lacks: Vec<Missing>,
}

impl Plan {
    /// All that is missing now, for `--check`: what the kernel lacks, what steps would do, where memory is short.
    pub fn missing(&self) -> Vec<Missing> {
        let mut all = self.lacks.clone();
        for step in &self.steps {
            let what = match step {
                Step::SetPages { node, from, to, .. } => format!("{} 2 MB pages on node {node}", to - from),
                Step::Mount { target, .. } => format!("hugetlbfs at {target}"),
                Step::Advice { .. } => continue,
            };
            all.extend(step.command().map(|command| Missing { what, command }));
        }
        for short in &self.shortfalls {
            all.push(Missing {
                what: format!(
                    "memory on node {} for {} of {} 2 MB pages",
                    short.node,
                    short.wanted - short.possible,
                    short.wanted
                ),
                command: "hugepage-setup --dry-run --flows N --workers N  # smaller N; then the same in sluiced's \
                          flows.max and workers"
                    .to_owned(),
            });
        }
        all
    }
}

/// 2 MB pages that `node`'s memory could become.
fn growth(node: &Node) -> u64 {
    node.available_kib.saturating_sub(node.memory_kib / 20) / PAGE_KIB
}

/// The steps from `found` to `wanted`.
pub fn plan(wanted: &[NodeWanted], found: &Found) -> Plan {
    let mut plan = Plan { steps: Vec::new(), shortfalls: Vec::new(), lacks: lacks(found) };
    // The need of each node, what it has for it, and what it can add.
    let has = |node: &Node| node.pages.as_ref().map_or(0, |p| p.free + p.sluiced);
    let adds = |node: &Node| need(wanted, node.id).saturating_sub(has(node)).min(growth(node));
    for node in &found.nodes {
        let Some(pages) = &node.pages else { continue };
        let wish = need(wanted, node.id);
        let add = adds(node);
        if add > 0 {
            plan.steps.push(Step::SetPages {
                node: node.id,
                file: pages.file.clone(),
                from: pages.total,
                to: pages.total + add,
                gains: format!("{} of {wish} pages for frames and flow tables on node {}", has(node) + add, node.id),
            });
        }
        if has(node) + add < wish {
            let others = found.nodes.iter().filter(|other| other.id != node.id && other.pages.is_some());
            plan.shortfalls.push(Shortfall {
                node: node.id,
                wanted: wish,
                possible: has(node) + add,
                elsewhere: others
                    .map(|other| Elsewhere {
                        node: other.id,
                        free_pages: other
                            .pages
                            .as_ref()
                            .map_or(0, |p| p.free.min(has(other).saturating_sub(need(wanted, other.id)))),
                        possible_pages: growth(other).saturating_sub(adds(other)),
                    })
                    .collect(),
            });
        }
    }
    let small = |m: &crate::found::Mount| m.page_size.as_deref().is_none_or(|s| s == "2M" || s == "2048k");
    if found.default_page_kib.is_some() && !found.mounts.iter().any(small) {
        plan.steps.push(Step::Mount {
            target: MOUNT.to_owned(),
            gains: "files on 2 MB pages, for DPDK processes; sluiced itself maps without files".to_owned(),
        });
    }
    plan.steps.extend(advice(wanted, found));
    plan
}

fn need(wanted: &[NodeWanted], id: u32) -> u64 {
    wanted.iter().find(|w| w.node == id).map_or(0, NodeWanted::pages)
}

fn lacks(found: &Found) -> Vec<Missing> {
    let mut lacks = Vec::new();
    let mut lack = |what: &str, command: &str| {
        lacks.push(Missing { what: what.to_owned(), command: command.to_owned() });
    };
    if found.default_page_kib.is_none() || found.nodes.iter().all(|n| n.pages.is_none()) {
        lack(
            "2 MB pages in this kernel (CONFIG_HUGETLBFS)",
            "grep HUGETLB /boot/config-$(uname -r)  # boot one with =y",
        );
    } else if let Some(kib) = found.default_page_kib.filter(|&kib| kib != PAGE_KIB) {
        lack(
            &format!("2 MB as the default huge page size: it is {kib} KiB, and sluiced maps the default size"),
            "sed -i 's/default_hugepagesz=[^ \"]*/default_hugepagesz=2M/' /etc/default/grub && update-grub && reboot",
        );
    }
    if !found.tun {
        lack("/dev/net/tun, for pods on TAP ports", "modprobe tun");
    }
    lacks
}

fn advice(wanted: &[NodeWanted], found: &Found) -> Vec<Step> {
    let mut all = Vec::new();
    let mut advise = |what: String, gains: &str| all.push(Step::Advice { what, gains: gains.to_owned() });
    if found.bpf_jit == Some(0) {
        advise("sysctl -w net.core.bpf_jit_enable=1".to_owned(), "the uplink's XDP program runs compiled");
    }
    let mut cpus: Vec<u32> = wanted.iter().flat_map(|w| w.workers.iter().copied()).collect();
    cpus.sort_unstable();
    if cpus.iter().any(|cpu| !found.isolated.contains(cpu)) && found.online.len() > 1 {
        let list = ranges(&cpus);
        advise(
            format!("kernel command line: isolcpus={list} nohz_full={list} rcu_nocbs={list}"),
            "workers are not preempted; nothing else can use these CPUs, so only with `idle: busy`",
        );
    }
    if found.nodes.iter().any(|n| n.gigantic == Some(0)) {
        advise(
            "kernel command line: hugepagesz=1G hugepages=N".to_owned(),
            "1 GB pages for DPDK pods, which only boot finds reliably; sluiced uses 2 MB pages",
        );
    }
    all
}

/// An ascending list as the kernel writes it.
pub fn ranges(cpus: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let words = runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_list_is_written_as_the_kernel_writes_it() {
        assert_eq!(ranges(&[1, 2, 3, 7]), "1-3,7");
        assert_eq!(ranges(&[]), "");
    }
}
