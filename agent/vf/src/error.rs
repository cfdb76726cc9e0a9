//! What can be wrong with a device, each with the command that mends it.

use sluice_machine::ReadError;
use std::path::PathBuf;

/// Why a device cannot be taken or given back.
#[derive(Debug, thiserror::Error)]
pub enum VfError {
    /// It is not on the bus: pulled, or its PF's VFs were removed.
    #[error("device {address} is gone; `lspci -D -s {address}` shows whether it is back, {mend}")]
    Gone {
        /// The device.
        address: String,
        /// How it comes back.
        mend: String,
    },
    /// A name that is nothing on this host.
    #[error("{name:?} is no network device of this host; `hugepage-setup` lists them")]
    Unknown {
        /// As it was asked for.
        name: String,
    },
    /// Nobody allowed it.
    #[error("device {address} is not ours to take; name it, its PF or its resource in `vfs.devices`")]
    NotAllowed {
        /// The device.
        address: String,
    },
    /// All that is allowed is taken or unfit.
    #[error(
        "no VF is free{of}: {why}; `sluice vfs` shows who has them, `hugepage-setup --vfs PF=N --apply` makes them on a PF without"
    )]
    NoneFree {
        /// Of which PF.
        of: String,
        /// What is with each.
        why: String,
    },
    /// It is a PF where a VF is needed.
    #[error(
        "{address} is no VF; make some with `echo N > /sys/bus/pci/devices/{address}/sriov_numvfs` and take one of them"
    )]
    NotVf {
        /// The device.
        address: String,
    },
    /// A PF with VFs would take them with it.
    #[error("{address} has VFs, which would go with it; take one of them: {vfs}")]
    HasVfs {
        /// The PF.
        address: String,
        /// Its VFs.
        vfs: String,
    },
    /// It is bound to a driver that does not fit.
    #[error(
        "{address} is bound to {found}, not to {expected}; `echo {address} > /sys/bus/pci/devices/{address}/driver/unbind; \
         echo > /sys/bus/pci/devices/{address}/driver_override; echo {address} > /sys/bus/pci/drivers/{expected}/bind`"
    )]
    WrongDriver {
        /// The device.
        address: String,
        /// Its driver, or `no driver`.
        found: String,
        /// The one it should have.
        expected: String,
    },
    /// The table does not know it.
    #[error("{address} ({id}) is not in the table of userspace drivers; use `driver: af_xdp` on its interface")]
    NotInTable {
        /// The device.
        address: String,
        /// Vendor and device.
        id: String,
    },
    /// VFIO needs an IOMMU.
    #[error(
        "{address} has no IOMMU group, and VFIO needs one; enable VT-d or AMD-Vi in the firmware and boot with \
         `intel_iommu=on iommu=pt` (Intel) or `iommu=pt` (AMD)"
    )]
    NoIommu {
        /// The device.
        address: String,
    },
    /// Others of its IOMMU group are with kernel drivers.
    #[error(
        "{address} shares IOMMU group {group} with {other} ({driver}); `echo {other} > /sys/bus/pci/devices/{other}/driver/unbind`"
    )]
    SharedGroup {
        /// The device.
        address: String,
        /// The group.
        group: u32,
        /// The other device.
        other: String,
        /// Its driver.
        driver: String,
    },
    /// The driver `vfio-pci` is not there.
    #[error("the kernel has no driver vfio-pci; `modprobe vfio-pci`")]
    NoVfio,
    /// The node would be lost.
    #[error("{address} is {interface}, which carries the default route: it is never taken; use a VF or another port")]
    DefaultRoute {
        /// The device.
        address: String,
        /// The interface with the route.
        interface: String,
    },
    /// Somebody uses it.
    #[error("{address} is in use: {why}; `{mend}`")]
    Busy {
        /// The device.
        address: String,
        /// By what.
        why: String,
        /// What frees it.
        mend: String,
    },
    /// Somebody has claimed it.
    #[error("{address} belongs to {owner} since {since}; `sluice vfs` shows all")]
    Claimed {
        /// The device.
        address: String,
        /// Who has it.
        owner: String,
        /// Seconds since 1970.
        since: u64,
    },
    /// It did not come back as it went.
    #[error("{address} did not come back clean and is given to nobody: {why}; {mend}")]
    Dirty {
        /// The device.
        address: String,
        /// What differs.
        why: String,
        /// What cleans it.
        mend: String,
    },
    /// The kernel refuses.
    #[error("{what} {}: {source}", path.display())]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it refuses.
        source: std::io::Error,
    },
    /// Sysfs cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file of claims holds something else.
    #[error("{} cannot be read ({source}); remove it if no VF is in use", path.display())]
    Ledger {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
}
