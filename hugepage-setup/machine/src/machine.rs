//! All of a machine that preparing and placing need, read at once.

use crate::kubelet::{self, KubeletCpus};
use crate::pci::{self, NetDevice};
use crate::root::{ReadError, Root};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The page size that `sluiced` maps, in KiB.
pub const PAGE_KIB: u64 = 2048;
/// The larger page size of the two that x86-64 and arm64 share, in KiB.
pub const GIGANTIC_KIB: u64 = 1 << 20;

/// Huge pages of one size on one NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// The `nr_hugepages` file, as an absolute path on the machine.
    pub file: String,
    /// Pages the kernel holds.
    pub total: u64,
    /// Pages of them that nobody uses.
    pub free: u64,
    /// Pages of them that running `sluiced` processes use.
    pub sluiced: u64,
}

/// One NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// The kernel's number.
    pub id: u32,
    /// Its CPUs.
    pub cpus: Vec<u32>,
    /// Its memory, in KiB.
    pub memory_kib: u64,
    /// Memory that is free or that the kernel can free at once (file pages, reclaimable slabs), in KiB.
    pub available_kib: u64,
    /// Its 2 MB pages; none where the kernel has none of this size.
    pub pages: Option<Pages>,
    /// Its 1 GB pages; none where the kernel has none of this size.
    pub gigantic: Option<Pages>,
}

/// A mounted hugetlbfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where.
    pub target: String,
    /// The `pagesize=` option; none: the kernel's default size.
    pub page_size: Option<String>,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// NUMA nodes, by number; one, made from `/proc/meminfo`, where the kernel knows no NUMA.
    pub nodes: Vec<Node>,
    /// CPUs that run.
    pub online: Vec<u32>,
    /// CPUs the scheduler leaves alone (`isolcpus`).
    pub isolated: Vec<u32>,
    /// CPUs that share a core (hyper-threads), a list for each core of several.
    pub cores: Vec<Vec<u32>>,
    /// CPUs that the kubelet has given to containers.
    pub kubelet: Option<KubeletCpus>,
    /// Size of the pages that an unqualified `MAP_HUGETLB` takes, in KiB; none: no huge pages in this kernel.
    pub default_page_kib: Option<u64>,
    /// The kernel's command line.
    pub command_line: String,
    /// Mounted hugetlbfs.
    pub mounts: Vec<Mount>,
    /// IOMMU groups; 0: no IOMMU in use.
    pub iommu_groups: usize,
    /// Whether the kernel has the driver `vfio-pci` loaded or built in.
    pub vfio: bool,
    /// PCI network devices.
    pub devices: Vec<NetDevice>,
    /// Whether `/dev/net/tun` is there.
    pub tun: bool,
    /// `net.core.bpf_jit_enable`, where it can be read.
    pub bpf_jit: Option<u64>,
    /// `net.ipv4.ip_local_reserved_ports`, where it can be read.
    pub reserved_ports: Option<String>,
    /// Whether systemd runs the machine.
    pub systemd: bool,
    /// The kernel's name of this boot.
    pub boot: Option<String>,
}

impl Machine {
    /// The node of a CPU; 0 where none has it.
    pub fn node_of(&self, cpu: u32) -> u32 {
        self.nodes.iter().find(|n| n.cpus.contains(&cpu)).map_or(0, |n| n.id)
    }

    /// The other hyper-threads of a CPU's core.
    pub fn siblings(&self, cpu: u32) -> impl Iterator<Item = u32> + '_ {
        let core = self.cores.iter().find(|core| core.contains(&cpu));
        core.into_iter().flatten().copied().filter(move |other| *other != cpu)
    }

    /// A network device by its PCI address or the name of its interface.
    pub fn device(&self, name: &str) -> Option<&NetDevice> {
        self.devices.iter().find(|d| d.address == name || d.interfaces.iter().any(|i| i.name == name))
    }
}

/// Reads the machine whose root folder is `folder`.
pub fn read(folder: &Path) -> Result<Machine, ReadError> {
    let mut machine = outline(folder)?;
    let held = held_by_sluiced(Root::new(folder))?;
    for node in &mut machine.nodes {
        if let Some(pages) = &mut node.pages {
            pages.sluiced = held.get(&node.id).copied().unwrap_or(0).min(pages.total.saturating_sub(pages.free));
        }
    }
    Ok(machine)
}

/// The same without a look at processes, which takes long where there are many: [`Pages::sluiced`] is 0.
pub fn outline(folder: &Path) -> Result<Machine, ReadError> {
    let root = Root::new(folder);
    let meminfo = root.text("proc/meminfo")?.unwrap_or_default();
    let online = match root.list("sys/devices/system/cpu/online")? {
        list if list.is_empty() => vec![0],
        list => list,
    };
    let mut nodes = Vec::new();
    for id in root.numbered("sys/devices/system/node", "node")? {
        nodes.push(node(root, id, &online)?);
    }
    if nodes.is_empty() {
        nodes.push(Node {
            id: 0,
            cpus: online.clone(),
            memory_kib: meminfo_kib(&meminfo, "MemTotal").unwrap_or(0),
            available_kib: meminfo_kib(&meminfo, "MemAvailable").unwrap_or(0),
            pages: pages(root, "sys/kernel/mm/hugepages", PAGE_KIB)?,
            gigantic: pages(root, "sys/kernel/mm/hugepages", GIGANTIC_KIB)?,
        });
    }
    let mut cores = Vec::new();
    for cpu in &online {
        let mut core = root.list(&format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))?;
        core.retain(|c| online.contains(c));
        if core.len() > 1 && !cores.contains(&core) {
            cores.push(core);
        }
    }
    Ok(Machine {
        nodes,
        isolated: root.list("sys/devices/system/cpu/isolated")?,
        cores,
        kubelet: kubelet::read(root)?,
        default_page_kib: meminfo_kib(&meminfo, "Hugepagesize"),
        command_line: root.word("proc/cmdline")?.unwrap_or_default(),
        mounts: root.text("proc/mounts")?.unwrap_or_default().lines().filter_map(hugetlbfs).collect(),
        iommu_groups: root.names("sys/kernel/iommu_groups")?.len(),
        vfio: root.has(&format!("{}/{}", pci::DRIVERS, crate::devices::VFIO)),
        devices: pci::read(root)?,
        tun: root.has("dev/net/tun"),
        // Only root may read it.
        bpf_jit: root.text("proc/sys/net/core/bpf_jit_enable").ok().flatten().and_then(|t| t.trim().parse().ok()),
        reserved_ports: root.text("proc/sys/net/ipv4/ip_local_reserved_ports")?.map(|t| t.trim().to_owned()),
        systemd: root.path("run/systemd/system").is_dir(),
        boot: root.word("proc/sys/kernel/random/boot_id")?,
        online,
    })
}

fn node(root: Root<'_>, id: u32, online: &[u32]) -> Result<Node, ReadError> {
    let folder = format!("sys/devices/system/node/node{id}");
    let meminfo = root.text(&format!("{folder}/meminfo"))?.unwrap_or_default();
    let kib = |field| meminfo_kib(&meminfo, field).unwrap_or(0);
    let mut cpus = root.list(&format!("{folder}/cpulist"))?;
    cpus.retain(|cpu| online.contains(cpu));
    Ok(Node {
        id,
        cpus,
        memory_kib: kib("MemTotal"),
        available_kib: kib("MemFree") + kib("Active(file)") + kib("Inactive(file)") + kib("SReclaimable"),
        pages: pages(root, &format!("{folder}/hugepages"), PAGE_KIB)?,
        gigantic: pages(root, &format!("{folder}/hugepages"), GIGANTIC_KIB)?,
    })
}

fn pages(root: Root<'_>, folder: &str, kib: u64) -> Result<Option<Pages>, ReadError> {
    let file = format!("{folder}/hugepages-{kib}kB/nr_hugepages");
    let Some(total) = root.number(&file)? else { return Ok(None) };
    let free = root.number(&format!("{folder}/hugepages-{kib}kB/free_hugepages"))?.unwrap_or(0);
    Ok(Some(Pages { file: format!("/{file}"), total, free, sluiced: 0 }))
}

/// 2 MB pages that `sluiced` has by node. A process may end while it is looked at: what cannot be read holds nothing.
fn held_by_sluiced(root: Root<'_>) -> Result<BTreeMap<u32, u64>, ReadError> {
    let mut held = BTreeMap::new();
    for pid in root.numbered("proc", "")? {
        let read = |file: &str| root.text(&format!("proc/{pid}/{file}")).ok().flatten().unwrap_or_default();
        if read("comm").trim() != "sluiced" {
            continue;
        }
        for line in read("numa_maps").lines().filter(|l| l.contains("kernelpagesize_kB=2048")) {
            for word in line.split_whitespace() {
                let node = word.strip_prefix('N').and_then(|w| w.split_once('='));
                if let Some((Ok(node), Ok(pages))) = node.map(|(n, p)| (n.parse::<u32>(), p.parse::<u64>())) {
                    *held.entry(node).or_default() += pages;
                }
            }
        }
    }
    Ok(held)
}

/// A field of `/proc/meminfo` or of a node's `meminfo` (which puts `Node N` in front), in KiB.
fn meminfo_kib(text: &str, field: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.split_whitespace().last()? == field).then(|| value.split_whitespace().next()?.parse().ok())?
    })
}

fn hugetlbfs(line: &str) -> Option<Mount> {
    let mut words = line.split(' ');
    let (_, target, kind, options) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let page_size = options.split(',').find_map(|o| o.strip_prefix("pagesize=")).map(str::to_owned);
    (kind == "hugetlbfs").then(|| Mount { target: target.to_owned(), page_size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::plant_named;

    #[test]
    fn a_field_of_meminfo_is_found_with_and_without_the_node_in_front() {
        assert_eq!(meminfo_kib("MemTotal:  7 kB\nHugepagesize:    2048 kB\n", "Hugepagesize"), Some(2048));
        assert_eq!(meminfo_kib("Node 1 MemFree:  12 kB\n", "MemFree"), Some(12));
        assert_eq!(meminfo_kib("Node 1 MemFree:  12 kB\n", "Free"), None);
    }

    #[test]
    fn only_hugetlbfs_counts_as_its_mount() {
        let mount = hugetlbfs("hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0").unwrap();
        assert_eq!((mount.target.as_str(), mount.page_size.as_deref()), ("/dev/hugepages", Some("2M")));
        assert_eq!(hugetlbfs("tmpfs /dev/shm tmpfs rw 0 0"), None);
    }

    #[test]
    fn a_machine_of_two_nodes_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        plant_named("two-nodes-mellanox", folder.path()).unwrap();
        let found = read(folder.path()).unwrap();
        assert_eq!(found.nodes.len(), 2);
        assert_eq!(found.nodes[1].cpus, [4, 5, 6, 7, 12, 13, 14, 15]);
        assert_eq!(found.nodes[0].gigantic.as_ref().map(|p| (p.total, p.free)), Some((2, 2)));
        assert_eq!(found.siblings(5).collect::<Vec<_>>(), [13]);
        assert_eq!((found.node_of(13), found.iommu_groups, found.vfio), (1, 5, true));
        assert_eq!(found.kubelet.as_ref().map(|k| k.exclusive[0].cpus.clone()), Some(vec![2, 3]));
        assert_eq!(found.device("ens1f0np0").map(|d| d.address.as_str()), Some("0000:3b:00.0"));
    }

    #[test]
    fn the_machine_that_runs_this_test_is_read() {
        let found = read(Path::new("/")).unwrap();
        assert!(!found.nodes.is_empty() && !found.online.is_empty());
    }
}
