//! What can go wrong, each with the command that mends it.

/// Why DPDK or one of its devices cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DpdkError {
    /// The library refused to start.
    #[error("DPDK does not start: {why}\n  {mend}")]
    Start {
        /// What it said.
        why: String,
        /// What to do.
        mend: &'static str,
    },
    /// A network card needs huge pages, and none are free.
    #[error("no huge pages are free on this machine, and the device {0} needs them\n  hugepage-setup --apply")]
    NoHugePages(String),
    /// The text names no device.
    #[error(
        "{0:?} names no DPDK device\n  name a PCI address such as 0000:3b:00.2 (`lspci -D` lists them), or a virtual device \
         such as net_af_xdp0,iface=eth1"
    )]
    Name(String),
    /// There is no such card.
    #[error("there is no PCI device {0}\n  lspci -D lists those there are")]
    Absent(String),
    /// The card was not named when DPDK started.
    #[error("the PCI device {0} was not named when DPDK started\n  name it in the configuration and restart sluiced")]
    NotAllowed(String),
    /// The card is on a driver that DPDK cannot work with.
    #[error("{device} is on {driver}, which DPDK cannot drive\n  {mend}")]
    WrongDriver {
        /// PCI address.
        device: String,
        /// `no driver`, or its name.
        driver: String,
        /// The command.
        mend: String,
    },
    /// The machine does not translate device addresses.
    #[error(
        "{0} has no IOMMU group, so it cannot be given away safely\n  switch the IOMMU on: intel_iommu=on iommu=pt on the \
         kernel's command line (AMD: amd_iommu=on), VT-d or AMD-Vi in the firmware, then reboot"
    )]
    NoIommu(String),
    /// Another process has it.
    #[error("{device} is in use by another process\n  {mend}")]
    Busy {
        /// The device.
        device: String,
        /// How to find that process.
        mend: String,
    },
    /// DPDK has a table of fixed size.
    #[error(
        "{device} is one device too many: this DPDK was built for {most} in a process\n  give fewer pods of this node fast \
         ports, or build DPDK with a larger RTE_MAX_ETHPORTS"
    )]
    TooMany {
        /// The device.
        device: String,
        /// How many there can be.
        most: u32,
    },
    /// A driver did not take the device.
    #[error("no DPDK driver takes {device}: {why}\n  {mend}")]
    Probe {
        /// The device.
        device: String,
        /// What DPDK said.
        why: String,
        /// What to do.
        mend: &'static str,
    },
    /// The device is there, and a step of setting it up failed.
    #[error("{device}: {step} failed: {why}")]
    Setup {
        /// The device.
        device: String,
        /// Which step.
        step: &'static str,
        /// What DPDK said.
        why: String,
    },
    /// No memory for packet headers.
    #[error(
        "no memory for {what}: {why}\n  hugepage-setup --check says how many pages are free, --apply reserves more"
    )]
    Memory {
        /// For what.
        what: String,
        /// What DPDK said.
        why: String,
    },
}
