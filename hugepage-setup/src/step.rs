//! One thing to do on a host, and the shell command that does the same.

use serde::Serialize;
use sluice_machine::machine::{GIGANTIC_KIB, Node, PAGE_KIB, Pages};

/// Where hugetlbfs is mounted if it is nowhere: 2 MB pages, 1 GB pages.
pub const MOUNTS: [&str; 2] = ["/dev/hugepages", "/dev/hugepages1G"];
/// The kernel's list of ports that sockets do not get by themselves.
pub const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// A size of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Size {
    /// 2 MB.
    #[serde(rename = "2M")]
    Small,
    /// 1 GB.
    #[serde(rename = "1G")]
    Gigantic,
}

impl Size {
    /// As `mount -o pagesize=` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Size::Small => "2M",
            Size::Gigantic => "1G",
        }
    }

    /// As people write it.
    pub const fn words(self) -> &'static str {
        match self {
            Size::Small => "2 MB",
            Size::Gigantic => "1 GB",
        }
    }

    /// In KiB.
    pub const fn kib(self) -> u64 {
        match self {
            Size::Small => PAGE_KIB,
            Size::Gigantic => GIGANTIC_KIB,
        }
    }

    /// A node's pages of this size.
    pub fn of(self, node: &Node) -> Option<&Pages> {
        match self {
            Size::Small => node.pages.as_ref(),
            Size::Gigantic => node.gigantic.as_ref(),
        }
    }

    /// The size of the pages that a `nr_hugepages` file counts.
    pub fn of_file(file: &str) -> Size {
        if file.contains("hugepages-1048576kB") { Size::Gigantic } else { Size::Small }
    }
}

/// One thing to do, in the order of doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Raise a node's number of pages of one size.
    SetPages {
        /// The node.
        node: u32,
        /// The pages' size.
        size: Size,
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
        /// The pages' size.
        size: Size,
        /// What that gives.
        gains: String,
    },
    /// Load a kernel module.
    LoadModule {
        /// Its name.
        module: String,
        /// What that gives.
        gains: String,
    },
    /// Make VFs of a PF that has none.
    MakeVfs {
        /// Address of the PF.
        pf: String,
        /// Its interface, for people.
        interface: Option<String>,
        /// How many.
        count: u32,
        /// What that gives.
        gains: String,
    },
    /// Keep the kernel from giving ports to sockets.
    ReservePorts {
        /// The list then.
        value: String,
        /// What is added to it.
        added: String,
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
    /// The shell command that does it; none for advice.
    pub fn command(&self) -> Option<String> {
        Some(match self {
            Step::SetPages { file, to, .. } => format!("echo {to} > {file}"),
            Step::Mount { target, size, .. } => {
                format!("mkdir -p {target} && mount -t hugetlbfs -o pagesize={} none {target}", size.name())
            }
            Step::LoadModule { module, .. } => format!("modprobe {module}"),
            Step::MakeVfs { pf, count, .. } => format!("echo {count} > {}", numvfs(pf)),
            Step::ReservePorts { value, .. } => format!("sysctl -w net.ipv4.ip_local_reserved_ports={value}"),
            Step::Advice { .. } => return None,
        })
    }

    /// What it gives.
    pub fn gains(&self) -> &str {
        match self {
            Step::SetPages { gains, .. }
            | Step::Mount { gains, .. }
            | Step::LoadModule { gains, .. }
            | Step::MakeVfs { gains, .. }
            | Step::ReservePorts { gains, .. }
            | Step::Advice { gains, .. } => gains,
        }
    }

    /// What is missing as long as it is not done; none for advice.
    pub fn missing(&self) -> Option<String> {
        Some(match self {
            Step::SetPages { node, size, from, to, .. } => {
                format!("{} {} pages on node {node}", to - from, size.words())
            }
            Step::Mount { target, size, .. } => format!("hugetlbfs of {} pages at {target}", size.words()),
            Step::LoadModule { module, .. } => format!("kernel module {module}"),
            Step::MakeVfs { pf, interface, count, .. } => {
                format!("{count} VFs of {}", interface.as_deref().unwrap_or(pf))
            }
            Step::ReservePorts { added, .. } => format!("ports {added} in net.ipv4.ip_local_reserved_ports"),
            Step::Advice { .. } => return None,
        })
    }
}

/// The file that makes VFs.
pub fn numvfs(pf: &str) -> String {
    format!("/sys/bus/pci/devices/{pf}/sriov_numvfs")
}

/// Something the host lacks, and what provides it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The thing.
    pub what: String,
    /// The command that provides it.
    pub command: String,
}
