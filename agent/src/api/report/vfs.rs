//! Virtual functions, and who has which.

use serde::{Deserialize, Serialize};

/// What may have become of a VF, as [`VfReport::state`] says it.
pub const VF_STATES: &[&str] = &["free", "unfit", "taking", "pod", "uplink", "dirty"];

/// A virtual function, or a device that is a userspace driver's; `GET /v1/vfs` gives a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VfReport {
    /// Its PCI address.
    pub address: String,
    /// `vendor:device`.
    pub id: String,
    /// Address of its PF; none for a device that is no VF.
    pub pf: Option<String>,
    /// Its index there.
    pub index: Option<u32>,
    /// Its NUMA node.
    pub numa_node: Option<u32>,
    /// Its driver; empty where it has none.
    pub driver: String,
    /// Its IOMMU group.
    pub iommu_group: Option<u32>,
    /// How a userspace driver takes it: `vfio-pci`, `bifurcated`; empty where it is not known.
    pub method: String,
    /// Its interface, here or in its pod; empty where it has none.
    pub interface: String,
    /// Whether the agent may take it.
    pub allowed: bool,
    /// `free`, `unfit`, `taking`, `pod`, `uplink` or `dirty`.
    pub state: String,
    /// Who has it; empty for nobody.
    pub owner: String,
    /// False where a pod has it bare.
    pub enforced: bool,
    /// Why it is unfit or dirty.
    pub reason: String,
}
