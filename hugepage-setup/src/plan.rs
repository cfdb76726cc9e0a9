//! Wanted × found → steps: pure, so that every host that can be written down can be planned for.
//!
//! Invariants: no step lowers a number; no step takes a node's last memory (a twentieth of it stays); pages that others use
//! are never counted as ours; a PF that has VFs keeps them. What cannot be had is a shortfall with what is free elsewhere, not a
//! smaller wish.

use crate::advice;
use crate::step::{MOUNTS, Missing, Size, Step, numvfs};
use crate::wanted::{NodeWanted, VfsWanted, Wanted};
use serde::Serialize;
use sluice_machine::devices::VFIO;
use sluice_machine::machine::{GIGANTIC_KIB, Node};
use sluice_machine::pci::Function;
use sluice_machine::{Machine, list};

/// Pages that another node could give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Elsewhere {
    /// The node.
    pub node: u32,
    /// Its pages of this size that nobody uses and this plan does not need.
    pub free_pages: u64,
    /// Pages that its free memory could become, beyond this plan.
    pub possible_pages: u64,
}

/// A node that cannot hold what is wanted of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shortfall {
    /// The node.
    pub node: u32,
    /// The pages' size.
    pub size: Size,
    /// Pages wanted there.
    pub wanted: u64,
    /// Pages that it can give at most.
    pub possible: u64,
    /// What other nodes could give.
    pub elsewhere: Vec<Elsewhere>,
}

impl std::fmt::Display for Shortfall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shortfall { node, size, wanted, possible, elsewhere } = self;
        write!(f, "node {node} can give {possible} of {wanted} {} pages", size.words())?;
        for other in elsewhere {
            write!(f, "; node {} has {} free and memory for {}", other.node, other.free_pages, other.possible_pages)?;
        }
        Ok(())
    }
}

/// Steps, and what no step can reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// Nodes with too little memory.
    pub shortfalls: Vec<Shortfall>,
    /// What no step of this program provides.
    pub lacks: Vec<Missing>,
}

impl Plan {
    /// All that is missing now, for `--check`: what the kernel lacks, what steps would do, where memory is short.
    pub fn missing(&self) -> Vec<Missing> {
        let mut all = self.lacks.clone();
        for step in &self.steps {
            all.extend(step.missing().zip(step.command()).map(|(what, command)| Missing { what, command }));
        }
        for short in &self.shortfalls {
            let what = format!(
                "memory on node {} for {} of {} {} pages",
                short.node,
                short.wanted - short.possible,
                short.wanted,
                short.size.words()
            );
            let command = match short.size {
                Size::Small => {
                    "hugepage-setup --dry-run --flows N --workers N  # smaller N; then the same in sluiced's flows.max \
                     and workers"
                }
                Size::Gigantic => "reboot with `hugepagesz=1G hugepages=N` on the kernel's command line",
            };
            all.push(Missing { what, command: command.to_owned() });
        }
        all
    }
}

/// The steps from `found` to `wanted`.
pub fn plan(wanted: &Wanted, found: &Machine) -> Plan {
    let mut plan = Plan { lacks: advice::lacks(wanted, found), ..Plan::default() };
    // Larger pages first: small ones would break up the memory that they need.
    for size in [Size::Gigantic, Size::Small] {
        page_steps(&mut plan, size, wanted, found);
    }
    mount_steps(&mut plan, wanted, found);
    if wanted.vfio && !found.vfio {
        plan.steps.push(Step::LoadModule {
            module: VFIO.to_owned(),
            gains: "devices that are not bifurcated can be handed to userspace".to_owned(),
        });
    }
    for vfs in &wanted.vfs {
        vf_step(&mut plan, vfs, found);
    }
    if let (Some((first, last)), Some(current)) = (wanted.ports, &found.reserved_ports)
        && let Some(value) = with_ports(current, first, last)
    {
        plan.steps.push(Step::ReservePorts {
            value,
            added: format!("{first}-{last}"),
            gains: "no socket of the host gets a port that translated flows leave from, even before sluiced runs"
                .to_owned(),
        });
    }
    plan.steps.extend(advice::steps(wanted, found));
    plan
}

fn need(wanted: &Wanted, size: Size, id: u32) -> u64 {
    let node = wanted.nodes.iter().find(|w| w.node == id);
    node.map_or(0, |w| match size {
        Size::Small => w.pages(),
        Size::Gigantic => w.gigantic,
    })
}

/// Pages of a size that a node has for this plan: free ones, and those that `sluiced` holds already.
fn has(node: &Node, size: Size) -> u64 {
    size.of(node).map_or(0, |p| p.free + p.sluiced)
}

/// Pages that `node`'s memory could become, less what this plan's gigantic pages take of it.
fn growth(node: &Node, size: Size, wanted: &Wanted) -> u64 {
    let mut kib = node.available_kib.saturating_sub(node.memory_kib / 20);
    if size == Size::Small {
        kib = kib.saturating_sub(adds(node, Size::Gigantic, wanted) * GIGANTIC_KIB);
    }
    kib / size.kib()
}

fn adds(node: &Node, size: Size, wanted: &Wanted) -> u64 {
    if size.of(node).is_none() {
        return 0;
    }
    need(wanted, size, node.id).saturating_sub(has(node, size)).min(growth(node, size, wanted))
}

fn page_steps(plan: &mut Plan, size: Size, wanted: &Wanted, found: &Machine) {
    for node in &found.nodes {
        let Some(pages) = size.of(node) else { continue };
        let (wish, add) = (need(wanted, size, node.id), adds(node, size, wanted));
        let then = has(node, size) + add;
        if add > 0 {
            let gains = match size {
                Size::Small => format!("{then} of {wish} pages for frames and flow tables on node {}", node.id),
                Size::Gigantic => format!("{then} of {wish} pages for DPDK pods on node {}", node.id),
            };
            plan.steps.push(Step::SetPages {
                node: node.id,
                size,
                file: pages.file.clone(),
                from: pages.total,
                to: pages.total + add,
                gains,
            });
        }
        if then < wish {
            let others = found.nodes.iter().filter(|other| other.id != node.id);
            let elsewhere = others
                .filter_map(|other| {
                    let pages = size.of(other)?;
                    let spare = has(other, size).saturating_sub(need(wanted, size, other.id));
                    Some(Elsewhere {
                        node: other.id,
                        free_pages: pages.free.min(spare),
                        possible_pages: growth(other, size, wanted).saturating_sub(adds(other, size, wanted)),
                    })
                })
                .collect();
            plan.shortfalls.push(Shortfall { node: node.id, size, wanted: wish, possible: then, elsewhere });
        }
    }
}

fn mount_steps(plan: &mut Plan, wanted: &Wanted, found: &Machine) {
    let Some(default) = found.default_page_kib else { return };
    let mounted = |size: Size| {
        let names: &[&str] = match size {
            Size::Small => &["2M", "2048k", "2048K"],
            Size::Gigantic => &["1G", "1024M", "1048576k"],
        };
        found.mounts.iter().any(|m| match m.page_size.as_deref() {
            Some(name) => names.contains(&name),
            None => default == size.kib(),
        })
    };
    if found.nodes.iter().any(|n| n.pages.is_some()) && !mounted(Size::Small) {
        plan.steps.push(Step::Mount {
            target: MOUNTS[0].to_owned(),
            size: Size::Small,
            gains: "files on 2 MB pages, for DPDK processes; sluiced itself maps without files".to_owned(),
        });
    }
    if wanted.nodes.iter().any(|n: &NodeWanted| n.gigantic > 0) && !mounted(Size::Gigantic) {
        plan.steps.push(Step::Mount {
            target: MOUNTS[1].to_owned(),
            size: Size::Gigantic,
            gains: "files on 1 GB pages, for DPDK processes".to_owned(),
        });
    }
}

fn vf_step(plan: &mut Plan, wanted: &VfsWanted, found: &Machine) {
    let Some(pf) = found.device(&wanted.pf) else { return };
    let name = wanted.interface.as_deref().unwrap_or(&wanted.pf);
    let Function::Physical { total_vfs, vfs } = &pf.function else {
        plan.lacks.push(Missing {
            what: format!("a PF: {name} is a VF itself"),
            command: format!("hugepage-setup --vfs {}={}", pf.pf().unwrap_or_default(), wanted.count),
        });
        return;
    };
    let (there, most) = (vfs.len() as u32, *total_vfs);
    if wanted.count > most {
        let command = match most {
            0 => "choose another device, or enable SR-IOV in the firmware's settings of this one".to_owned(),
            _ => format!("hugepage-setup --vfs {name}={most}"),
        };
        plan.lacks.push(Missing { what: format!("{} VFs of {name}: it can have {most}", wanted.count), command });
    } else if there == 0 && wanted.count > 0 {
        plan.steps.push(Step::MakeVfs {
            pf: wanted.pf.clone(),
            interface: wanted.interface.clone(),
            count: wanted.count,
            gains: format!("VFs for DPDK and for pods, on node {}", pf.node.map_or("?".to_owned(), |n| n.to_string())),
        });
    } else if there < wanted.count {
        // The kernel goes from one number to another over 0 only, and these VFs may be somebody's.
        plan.lacks.push(Missing {
            what: format!(
                "{} more VFs of {name}: it has {there}, and all go before there can be more",
                wanted.count - there
            ),
            command: format!(
                "kubectl drain $NODE --ignore-daemonsets && echo 0 > {0} && echo {1} > {0}",
                numvfs(&wanted.pf),
                wanted.count
            ),
        });
    }
}

/// The kernel's list with a range in it; none where it holds the range already.
fn with_ports(current: &str, first: u16, last: u16) -> Option<String> {
    let mut all = list::parse(current)?;
    let before = all.len();
    all.extend(u32::from(first)..=u32::from(last));
    all.sort_unstable();
    all.dedup();
    (all.len() > before).then(|| list::ranges(&all))
}

/// The kernel's list without ports of a range that were added to it.
pub fn without_ports(current: &str, gone: &str) -> Option<String> {
    let gone = list::parse(gone)?;
    let mut all = list::parse(current)?;
    all.retain(|port| gone.binary_search(port).is_err());
    Some(list::ranges(&all))
}

/// Ports that are in one list and not in the other.
pub fn ports_added(before: &str, after: &str) -> Option<String> {
    without_ports(after, before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_added_once_and_only_what_was_added_is_taken_back() {
        assert_eq!(with_ports("8080,40000-40010", 40_000, 40_020).as_deref(), Some("8080,40000-40020"));
        assert_eq!(with_ports("40000-40020", 40_000, 40_020), None);
        let added = ports_added("8080,40000-40010", "8080,40000-40020").unwrap();
        assert_eq!(added, "40011-40020");
        assert_eq!(without_ports("443,8080,40000-40020", &added).as_deref(), Some("443,8080,40000-40010"));
    }
}
