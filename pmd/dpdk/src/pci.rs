//! What sysfs says of a card before DPDK is asked: most of what goes wrong is visible there, and has a name.
//!
//! Source: `Documentation/ABI/testing/sysfs-bus-pci`, `Documentation/driver-api/vfio.rst`. Cost: a few files, at start.

use crate::error::DpdkError;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// Drivers whose cards DPDK shares with the kernel: they stay where they are.
const SHARED_WITH_KERNEL: &[&str] = &["mlx4_core", "mlx5_core", "mana"];

/// Domain, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl FromStr for PciAddress {
    type Err = DpdkError;

    /// `0000:3b:00.2`, or `3b:00.2` for domain 0.
    fn from_str(text: &str) -> Result<Self, DpdkError> {
        let parse = || {
            let (rest, function) = text.split_once('.')?;
            let mut parts = rest.rsplit(':');
            let hex = |part: Option<&str>, digits: usize| {
                let part = part.filter(|p| p.len() <= digits && !p.is_empty())?;
                u32::from_str_radix(part, 16).ok()
            };
            let device = hex(parts.next(), 2).filter(|d| *d < 32)? as u8;
            let bus = hex(parts.next(), 2)? as u8;
            let domain = parts.next().map_or(Some(0), |d| hex(Some(d), 8))?;
            let function = hex(Some(function), 1).filter(|f| *f < 8)? as u8;
            parts.next().is_none().then_some(PciAddress { domain, bus, device, function })
        };
        parse().ok_or_else(|| DpdkError::Name(text.to_owned()))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// Whether DPDK can have a card, as sysfs tells; `sys` is `/sys`, `dev` is `/dev`.
///
/// Only drivers that translate addresses are accepted: without an IOMMU a card could write anywhere, and the frame pool has
/// no physical addresses to give it.
pub fn check(address: PciAddress, sys: &Path, dev: &Path) -> Result<(), DpdkError> {
    let card = sys.join("bus/pci/devices").join(address.to_string());
    if !card.exists() {
        return Err(DpdkError::Absent(address.to_string()));
    }
    let name_of = |link: &str| {
        std::fs::read_link(card.join(link)).ok().and_then(|to| Some(to.file_name()?.to_string_lossy().into_owned()))
    };
    let driver = name_of("driver");
    if driver.as_deref().is_some_and(|name| SHARED_WITH_KERNEL.contains(&name)) {
        return Ok(());
    }
    if driver.as_deref() != Some("vfio-pci") {
        return Err(DpdkError::WrongDriver {
            device: address.to_string(),
            driver: driver.unwrap_or_else(|| "no driver".to_owned()),
            mend: format!(
                "modprobe vfio-pci && driverctl set-override {address} vfio-pci (or dpdk-devbind.py -b vfio-pci {address}); \
                 not for a card that this node is reached by"
            ),
        });
    }
    let Some(group) = name_of("iommu_group") else { return Err(DpdkError::NoIommu(address.to_string())) };
    if !dev.join("vfio").join(&group).exists() {
        return Err(DpdkError::NoIommu(address.to_string()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    #[test]
    fn an_address_is_read_with_and_without_its_domain_and_written_in_full() {
        for (text, full) in
            [("0000:3b:00.2", "0000:3b:00.2"), ("3b:1f.7", "0000:3b:1f.7"), ("10000:01:00.0", "10000:01:00.0")]
        {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), full);
        }
        for wrong in ["", "3b:00", "net_ring0", "0:0000:3b:00.2", "3b:20.0", "3b:00.8", "zz:00.0", "3b::0.0"] {
            assert!(matches!(wrong.parse::<PciAddress>(), Err(DpdkError::Name(_))), "{wrong}");
        }
    }

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Tree {
            let root = std::env::temp_dir().join(format!("sg-pci-{}-{name}", std::process::id()));
            std::fs::create_dir_all(root.join("sys/bus/pci/devices/0000:3b:00.2")).unwrap();
            std::fs::create_dir_all(root.join("dev/vfio")).unwrap();
            Tree(root)
        }

        fn link(&self, name: &str, to: &str) {
            symlink(to, self.0.join("sys/bus/pci/devices/0000:3b:00.2").join(name)).unwrap();
        }

        fn check(&self) -> Result<(), DpdkError> {
            check("3b:00.2".parse().unwrap(), &self.0.join("sys"), &self.0.join("dev"))
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_wrong_with_a_card_is_named_with_the_command_that_mends_it() {
        let tree = Tree::new("kernel");
        assert!(tree.check().unwrap_err().to_string().contains("0000:3b:00.2 is on no driver"));
        tree.link("driver", "../../../../bus/pci/drivers/iavf");
        let error = tree.check().unwrap_err().to_string();
        assert!(
            error.contains("is on iavf") && error.contains("driverctl set-override 0000:3b:00.2 vfio-pci"),
            "{error}"
        );

        let tree = Tree::new("vfio");
        tree.link("driver", "../../../../bus/pci/drivers/vfio-pci");
        assert_eq!(tree.check(), Err(DpdkError::NoIommu("0000:3b:00.2".into())));
        tree.link("iommu_group", "../../../../kernel/iommu_groups/17");
        assert_eq!(tree.check(), Err(DpdkError::NoIommu("0000:3b:00.2".into())), "no /dev/vfio/17");
        std::fs::write(tree.0.join("dev/vfio/17"), "").unwrap();
        assert_eq!(tree.check(), Ok(()));

        let tree = Tree::new("shared");
        tree.link("driver", "../../../../bus/pci/drivers/mlx5_core");
        assert_eq!(tree.check(), Ok(()));
        let absent = check("3b:00.3".parse().unwrap(), &tree.0.join("sys"), &tree.0.join("dev"));
        assert_eq!(absent, Err(DpdkError::Absent("0000:3b:00.3".into())));
    }
}
