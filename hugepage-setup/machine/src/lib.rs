//! What a machine has: NUMA nodes with memory and huge pages, CPUs and cores, kernel, PCI network devices, and what of it
//! this process may use. Reads only.
//!
//! [`machine::read`] reads all of it; [`pci`], [`limits`] and [`kubelet`] read parts. [`devices`] knows how a userspace driver
//! takes a network device, [`placement`] where workers go. The machine's root folder is a parameter: an init container sees
//! the host at `/host`, a test a folder. Sources: the kernel's `Documentation/ABI/testing/sysfs-bus-pci`,
//! `sysfs-devices-node`, `Documentation/admin-guide/cputopology.rst`, `mm/hugetlbpage.rst`, `cgroup-v2.rst`, proc(5).

pub mod devices;
#[cfg(feature = "fixtures")]
pub mod fixture;
pub mod kubelet;
pub mod limits;
pub mod list;
pub mod machine;
pub mod pci;
pub mod placement;
pub mod root;

pub use machine::Machine;
pub use root::{ReadError, Root};
