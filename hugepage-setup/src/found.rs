//! What the host has: NUMA nodes with memory, CPUs and huge pages; mounts, kernel command line, kernel features.
//!
//! Source: sysfs `devices/system/node` and `devices/system/cpu`, procfs `meminfo`, `mounts`, `cmdline`, `<pid>/numa_maps`.
//! Reads only. A file that is not there means that the kernel lacks the feature; one that cannot be read is an error.

use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The page size that `sluiced` maps, in KiB.
pub const PAGE_KIB: u64 = 2048;

/// Why the host could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    /// A file is there and cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A file does not say what its documentation promises.
    #[error("{}: expected {expected}, got {got:?}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What it holds.
        got: String,
    },
}

/// The 2 MB pages of one NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// The `nr_hugepages` file, as an absolute path on the host.
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
    /// Its 2 MB pages; `None` where the kernel has none of this size.
    pub pages: Option<Pages>,
    /// Its 1 GB pages, in use or not; `None` where the kernel has none of this size.
    pub gigantic: Option<u64>,
}

/// A mounted hugetlbfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where.
    pub target: String,
    /// The `pagesize=` option; `None`: the kernel's default size.
    pub page_size: Option<String>,
}

/// The host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// NUMA nodes, by number; one, made from `/proc/meminfo`, where the kernel knows no NUMA.
    pub nodes: Vec<Node>,
    /// CPUs that run.
    pub online: Vec<u32>,
    /// CPUs the scheduler leaves alone (`isolcpus`).
    pub isolated: Vec<u32>,
    /// Size of the pages that an unqualified `MAP_HUGETLB` takes, in KiB; `None`: no huge pages in this kernel.
    pub default_page_kib: Option<u64>,
    /// The kernel's command line.
    pub command_line: String,
    /// Mounted hugetlbfs.
    pub mounts: Vec<Mount>,
    /// IOMMU groups; 0: no IOMMU in use.
    pub iommu_groups: usize,
    /// Whether `/dev/net/tun` is there.
    pub tun: bool,
    /// `net.core.bpf_jit_enable`, where it can be read.
    pub bpf_jit: Option<u64>,
    /// Whether systemd runs the host.
    pub systemd: bool,
    /// The kernel's name of this boot.
    pub boot: Option<String>,
}

/// Reads the host whose root folder is `root`.
pub fn read(root: &Path) -> Result<Found, FoundError> {
    let host = Host { root };
    let meminfo = host.text("proc/meminfo")?.unwrap_or_default();
    let online = match host.cpus("sys/devices/system/cpu/online")? {
        list if list.is_empty() => vec![0],
        list => list,
    };
    let default_page_kib = meminfo_kib(&meminfo, "Hugepagesize");
    let mut nodes = Vec::new();
    for id in host.numbered("sys/devices/system/node", "node")? {
        nodes.push(host.node(id, &online)?);
    }
    if nodes.is_empty() {
        nodes.push(Node {
            id: 0,
            cpus: online.clone(),
            memory_kib: meminfo_kib(&meminfo, "MemTotal").unwrap_or(0),
            available_kib: meminfo_kib(&meminfo, "MemAvailable").unwrap_or(0),
            pages: host.pages("sys/kernel/mm/hugepages", PAGE_KIB)?,
            gigantic: host.pages("sys/kernel/mm/hugepages", 1 << 20)?.map(|p| p.total),
        });
    }
    let held = host.held_by_sluiced()?;
    for node in &mut nodes {
        if let Some(pages) = &mut node.pages {
            pages.sluiced = held.get(&node.id).copied().unwrap_or(0).min(pages.total.saturating_sub(pages.free));
        }
    }
    Ok(Found {
        nodes,
        online,
        isolated: host.cpus("sys/devices/system/cpu/isolated")?,
        default_page_kib,
        command_line: host.text("proc/cmdline")?.unwrap_or_default().trim().to_owned(),
        mounts: host.text("proc/mounts")?.unwrap_or_default().lines().filter_map(hugetlbfs).collect(),
        iommu_groups: host.names("sys/kernel/iommu_groups")?.len(),
        tun: root.join("dev/net/tun").exists(),
        // Only root may read it.
        bpf_jit: host.text("proc/sys/net/core/bpf_jit_enable").ok().flatten().and_then(|t| t.trim().parse().ok()),
        systemd: root.join("run/systemd/system").is_dir(),
        boot: host.text("proc/sys/kernel/random/boot_id")?.map(|t| t.trim().to_owned()),
    })
}

struct Host<'a> {
    root: &'a Path,
}

impl Host<'_> {
    fn text(&self, file: &str) -> Result<Option<String>, FoundError> {
        let path = self.root.join(file);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FoundError::Read { path, source }),
        }
    }

    fn number(&self, file: &str) -> Result<Option<u64>, FoundError> {
        let Some(text) = self.text(file)? else { return Ok(None) };
        let parsed = text.trim().parse();
        parsed.map(Some).map_err(|_| FoundError::Parse { path: self.root.join(file), expected: "a number", got: text })
    }

    fn cpus(&self, file: &str) -> Result<Vec<u32>, FoundError> {
        let text = self.text(file)?.unwrap_or_default();
        cpu_list(&text).ok_or_else(|| FoundError::Parse {
            path: self.root.join(file),
            expected: "a CPU list",
            got: text,
        })
    }

    fn names(&self, folder: &str) -> Result<Vec<String>, FoundError> {
        let path = self.root.join(folder);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(FoundError::Read { path, source }),
        };
        Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
    }

    fn numbered(&self, folder: &str, prefix: &str) -> Result<Vec<u32>, FoundError> {
        let names = self.names(folder)?;
        let mut all: Vec<u32> = names.iter().filter_map(|n| n.strip_prefix(prefix)?.parse().ok()).collect();
        all.sort_unstable();
        Ok(all)
    }

    fn node(&self, id: u32, online: &[u32]) -> Result<Node, FoundError> {
        let folder = format!("sys/devices/system/node/node{id}");
        let meminfo = self.text(&format!("{folder}/meminfo"))?.unwrap_or_default();
        let kib = |field| meminfo_kib(&meminfo, field).unwrap_or(0);
        let mut cpus = self.cpus(&format!("{folder}/cpulist"))?;
        cpus.retain(|cpu| online.contains(cpu));
        Ok(Node {
            id,
            cpus,
            memory_kib: kib("MemTotal"),
            available_kib: kib("MemFree") + kib("Active(file)") + kib("Inactive(file)") + kib("SReclaimable"),
            pages: self.pages(&format!("{folder}/hugepages"), PAGE_KIB)?,
            gigantic: self.pages(&format!("{folder}/hugepages"), 1 << 20)?.map(|p| p.total),
        })
    }

    fn pages(&self, folder: &str, kib: u64) -> Result<Option<Pages>, FoundError> {
        let file = format!("{folder}/hugepages-{kib}kB/nr_hugepages");
        let Some(total) = self.number(&file)? else { return Ok(None) };
        let free = self.number(&format!("{folder}/hugepages-{kib}kB/free_hugepages"))?.unwrap_or(0);
        Ok(Some(Pages { file: format!("/{file}"), total, free, sluiced: 0 }))
    }

    /// 2 MB pages that `sluiced` has by node. A process may end while it is looked at: what cannot be read holds nothing.
    fn held_by_sluiced(&self) -> Result<BTreeMap<u32, u64>, FoundError> {
        let mut held = BTreeMap::new();
        for pid in self.numbered("proc", "")? {
            let read = |file: &str| self.text(&format!("proc/{pid}/{file}")).ok().flatten().unwrap_or_default();
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
}

/// A field of `/proc/meminfo` or of a node's `meminfo` (which puts `Node N` in front), in KiB.
fn meminfo_kib(text: &str, field: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.split_whitespace().last()? == field).then(|| value.split_whitespace().next()?.parse().ok())?
    })
}

/// CPUs of a kernel list (`0-3,8`), ascending; `None` if it is none.
fn cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // The kernel's own limit is 8192 CPUs.
        if last > 65_535 {
            return None;
        }
        all.extend(first..=last);
    }
    all.sort_unstable();
    all.dedup();
    Some(all)
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

    #[test]
    fn a_cpu_list_is_read_as_the_kernel_writes_it() {
        assert_eq!(cpu_list("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(cpu_list("\n"), Some(vec![]));
        for bad in ["x", "1-", "0-4294967295"] {
            assert_eq!(cpu_list(bad), None);
        }
    }

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
}
