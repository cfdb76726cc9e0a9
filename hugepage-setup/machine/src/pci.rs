//! Network devices on the PCI bus: who is whose VF, on which node, with which driver, behind which interfaces.
//!
//! Source: `Documentation/ABI/testing/sysfs-bus-pci` (`driver_override`, `sriov_*`, `physfn`, `virtfnN`, `numa_node`),
//! `Documentation/PCI/pci-iov-howto.rst`, `sysfs-class-net`. Interfaces are those of the network namespace in which sysfs was
//! mounted: a VF's interface that was moved into a pod is not seen, its device is.

use crate::root::{ReadError, Root};
use serde::Serialize;

/// Where devices are, below the root.
pub const DEVICES: &str = "sys/bus/pci/devices";
/// Where drivers are, below the root.
pub const DRIVERS: &str = "sys/bus/pci/drivers";
/// `IFF_UP` of `net/NAME/flags`.
const UP: u32 = 1;

/// An interface of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC, as the kernel writes it.
    pub mac: String,
    /// Its MTU; 0 where the kernel does not say.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// The bond or bridge it belongs to.
    pub master: Option<String>,
    /// Interfaces that stand on it: VLANs, macvlans, bonds.
    pub uppers: Vec<String>,
}

/// What a device is to SR-IOV.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Function {
    /// A device of its own, perhaps with VFs.
    Physical {
        /// VFs it can have; 0: no SR-IOV.
        total_vfs: u32,
        /// Addresses of its VFs, by index.
        vfs: Vec<String>,
    },
    /// A virtual function.
    Virtual {
        /// Address of its physical function.
        pf: String,
        /// Its index there: `ip link set PF vf INDEX`.
        index: Option<u32>,
    },
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetDevice {
    /// `0000:3b:00.2`.
    pub address: String,
    /// PCI vendor.
    pub vendor: u16,
    /// PCI device.
    pub device: u16,
    /// Its NUMA node; none where the firmware does not say, or there is only one.
    pub node: Option<u32>,
    /// The driver it is bound to.
    pub driver: Option<String>,
    /// The only driver it may be bound to.
    pub driver_override: Option<String>,
    /// Its IOMMU group.
    pub iommu_group: Option<u32>,
    /// SR-IOV.
    pub function: Function,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
}

impl NetDevice {
    /// Whether it is a VF.
    pub fn is_vf(&self) -> bool {
        matches!(self.function, Function::Virtual { .. })
    }

    /// Address of the physical function of a VF.
    pub fn pf(&self) -> Option<&str> {
        match &self.function {
            Function::Virtual { pf, .. } => Some(pf),
            Function::Physical { .. } => None,
        }
    }

    /// Its folder, below the root.
    pub fn folder(&self) -> String {
        format!("{DEVICES}/{}", self.address)
    }

    /// `8086:154c`.
    pub fn id(&self) -> String {
        format!("{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// Whether a text is a PCI address with its domain: `0000:3b:00.2`.
pub fn is_address(text: &str) -> bool {
    let hex = |part: &str, most: usize| {
        !part.is_empty() && part.len() <= most && part.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    };
    let Some((bus, function)) = text.rsplit_once('.') else { return false };
    let parts: Vec<&str> = bus.split(':').collect();
    matches!(&parts[..], [domain, bus, slot] if (4..=8).contains(&domain.len()) && hex(domain, 8) && bus.len() == 2
        && hex(bus, 2) && slot.len() == 2 && hex(slot, 2))
        && function.len() == 1
        && function.bytes().all(|b| (b'0'..=b'7').contains(&b))
}

/// All network devices, by address.
pub fn read(root: Root<'_>) -> Result<Vec<NetDevice>, ReadError> {
    let mut all = Vec::new();
    for address in root.names(DEVICES)? {
        if is_address(&address)
            && let Some(device) = device(root, &address)?
        {
            all.push(device);
        }
    }
    Ok(all)
}

/// One network device; none where there is no such device or it is none.
pub fn device(root: Root<'_>, address: &str) -> Result<Option<NetDevice>, ReadError> {
    let folder = format!("{DEVICES}/{address}");
    let file = |name: &str| format!("{folder}/{name}");
    // Class 0x02....: network controllers, InfiniBand among them.
    if root.hex(&file("class"))?.is_none_or(|class| class >> 16 != 2) {
        return Ok(None);
    }
    let id = |name: &str| root.hex(&file(name)).map(|id| id.unwrap_or(0) as u16);
    let function = match root.link(&file("physfn")) {
        Some(pf) => {
            let mut index = root.numbered(&format!("{DEVICES}/{pf}"), "virtfn")?.into_iter();
            let own = |n: &u32| root.link(&format!("{DEVICES}/{pf}/virtfn{n}")).as_deref() == Some(address);
            Function::Virtual { index: index.find(own), pf }
        }
        None => Function::Physical {
            total_vfs: root.number(&file("sriov_totalvfs"))?.unwrap_or(0) as u32,
            vfs: root
                .numbered(&folder, "virtfn")?
                .into_iter()
                .filter_map(|n| root.link(&file(&format!("virtfn{n}"))))
                .collect(),
        },
    };
    let node = root.parsed(&file("numa_node"), "a node's number", |t| t.parse::<i64>().ok())?;
    Ok(Some(NetDevice {
        vendor: id("vendor")?,
        device: id("device")?,
        node: node.and_then(|n| u32::try_from(n).ok()),
        driver: root.link(&file("driver")),
        driver_override: root.word(&file("driver_override"))?.filter(|d| d != "(null)"),
        iommu_group: root.link(&file("iommu_group")).and_then(|g| g.parse().ok()),
        interfaces: interfaces(root, &folder)?,
        function,
        address: address.to_owned(),
    }))
}

fn interfaces(root: Root<'_>, folder: &str) -> Result<Vec<Interface>, ReadError> {
    // A virtio device has its interface one floor below.
    let mut nets = vec![format!("{folder}/net")];
    nets.extend(root.numbered(folder, "virtio")?.iter().map(|n| format!("{folder}/virtio{n}/net")));
    let mut all = Vec::new();
    for net in nets {
        for name in root.names(&net)? {
            let at = format!("{net}/{name}");
            let uppers = root.names(&at)?.iter().filter_map(|n| n.strip_prefix("upper_").map(str::to_owned)).collect();
            all.push(Interface {
                mac: root.word(&format!("{at}/address"))?.unwrap_or_default(),
                mtu: root.number(&format!("{at}/mtu"))?.unwrap_or(0) as u32,
                up: root.hex(&format!("{at}/flags"))?.unwrap_or(0) & UP != 0,
                master: root.link(&format!("{at}/master")),
                uppers,
                name,
            });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::plant_named;

    fn devices(name: &str) -> Vec<NetDevice> {
        let folder = tempfile::tempdir().unwrap();
        plant_named(name, folder.path()).unwrap();
        read(Root::new(folder.path())).unwrap()
    }

    #[test]
    fn vfs_are_found_with_their_pf_index_node_and_driver() {
        let all = devices("two-nodes-mellanox");
        let addresses: Vec<&str> = all.iter().map(|d| d.address.as_str()).collect();
        assert_eq!(addresses, ["0000:3b:00.0", "0000:3b:00.2", "0000:3b:00.3", "0000:5e:00.0", "0000:af:00.0"]);
        let vf = &all[2];
        assert_eq!(vf.function, Function::Virtual { pf: "0000:3b:00.0".into(), index: Some(1) });
        assert_eq!((vf.id().as_str(), vf.node, vf.driver.as_deref()), ("15b3:1018", Some(0), Some("mlx5_core")));
        assert_eq!((vf.iommu_group, vf.interfaces[0].name.as_str()), (Some(43), "ens1f0v1"));
        assert!(!vf.interfaces[0].up);
        let pf = &all[0];
        let vfs = vec!["0000:3b:00.2".to_owned(), "0000:3b:00.3".to_owned()];
        assert_eq!(pf.function, Function::Physical { total_vfs: 8, vfs });
        assert_eq!(all[4].node, Some(1));
    }

    #[test]
    fn a_driver_override_and_a_device_without_driver_are_seen() {
        let all = devices("intel-vfs");
        let of = |address: &str| all.iter().find(|d| d.address == address).unwrap();
        assert_eq!(of("0000:18:01.1").driver.as_deref(), Some("vfio-pci"));
        assert_eq!(of("0000:18:01.1").driver_override.as_deref(), Some("vfio-pci"));
        assert_eq!(of("0000:18:01.0").driver_override, None);
        assert_eq!((of("0000:18:01.2").driver.as_deref(), of("0000:18:01.2").interfaces.len()), (None, 0));
    }

    #[test]
    fn a_virtio_device_has_its_interface_one_floor_below_and_no_vfs() {
        let all = devices("virtual-machine");
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].interfaces[0].name, "eth0");
        assert_eq!(all[0].function, Function::Physical { total_vfs: 0, vfs: vec![] });
        assert_eq!((all[0].node, all[0].iommu_group), (None, None));
    }

    #[test]
    fn only_an_address_is_an_address() {
        assert!(is_address("0000:3b:00.2") && is_address("10000:01:1f.7"));
        for bad in ["", "3b:00.2", "0000:3b:00.8", "0000:3b:00.2/", "../0000:3b:00.2", "0000:3B:00.2", "0000:3b:0.2"] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn this_machine_is_read() {
        read(Root::new(std::path::Path::new("/"))).unwrap();
    }
}
