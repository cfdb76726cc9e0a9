//! How a userspace driver takes a network device, by vendor and device.
//!
//! Source: DPDK's NIC guides. Bifurcated drivers (`mlx4`, `mlx5`, `mana`) work beside the kernel's: the device stays bound to it and
//! must not be taken away. All others speak to the device through VFIO, which needs an IOMMU and a kernel driver that lets go.
//! What is not in the table is left alone.

use serde::Serialize;

/// How a device is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Bound to `vfio-pci`.
    VfioPci,
    /// It stays on its kernel driver.
    Bifurcated,
}

/// The driver that VFIO takes devices with.
pub const VFIO: &str = "vfio-pci";

/// A vendor's devices of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// PCI vendor.
    pub vendor: u16,
    /// PCI devices; empty: all of the vendor that no other row names.
    pub devices: &'static [u16],
    /// How they are taken.
    pub method: Method,
    /// The kernel's driver.
    pub kernel: &'static str,
    /// What they are called.
    pub name: &'static str,
}

/// The table. Rows with devices come before their vendor's rest.
pub const TABLE: &[Kind] = &[
    Kind {
        vendor: 0x15b3,
        devices: &[0x1003, 0x1004, 0x1007],
        method: Method::Bifurcated,
        kernel: "mlx4_core",
        name: "NVIDIA ConnectX-3",
    },
    Kind {
        vendor: 0x15b3,
        devices: &[],
        method: Method::Bifurcated,
        kernel: "mlx5_core",
        name: "NVIDIA ConnectX-4 and later, BlueField",
    },
    Kind {
        vendor: 0x1414,
        devices: &[0x00ba],
        method: Method::Bifurcated,
        kernel: "mana",
        name: "Microsoft Azure Network Adapter",
    },
    Kind {
        vendor: 0x8086,
        devices: &[0x10ed, 0x1515, 0x1565, 0x15a8, 0x15c5, 0x57ad],
        method: Method::VfioPci,
        kernel: "ixgbevf",
        name: "Intel 82599, X5xx, E610 VF",
    },
    Kind {
        vendor: 0x8086,
        devices: &[0x10ca, 0x152d, 0x1520, 0x152f],
        method: Method::VfioPci,
        kernel: "igbvf",
        name: "Intel 82576, I350 VF",
    },
    Kind {
        vendor: 0x8086,
        devices: &[0x154c, 0x37cd, 0x1571, 0x1889],
        method: Method::VfioPci,
        kernel: "iavf",
        name: "Intel X710, XL710, E810 VF",
    },
    Kind {
        vendor: 0x8086,
        devices: &[0x1591, 0x1592, 0x1593, 0x1599, 0x159a, 0x159b],
        method: Method::VfioPci,
        kernel: "ice",
        name: "Intel E810",
    },
    Kind {
        vendor: 0x8086,
        devices: &[0x1572, 0x1583, 0x1584, 0x158a, 0x158b, 0x37d0, 0x37d2],
        method: Method::VfioPci,
        kernel: "i40e",
        name: "Intel X710, XL710, X722",
    },
    Kind {
        vendor: 0x8086,
        devices: &[0x10fb, 0x1528, 0x1563, 0x15ab],
        method: Method::VfioPci,
        kernel: "ixgbe",
        name: "Intel 82599, X540, X550",
    },
    Kind {
        vendor: 0x14e4,
        devices: &[0x16d7, 0x16d8, 0x1750, 0x1751, 0x1806, 0x16dc, 0x16e1, 0x1807],
        method: Method::VfioPci,
        kernel: "bnxt_en",
        name: "Broadcom NetXtreme-E",
    },
    Kind {
        vendor: 0x1077,
        devices: &[0x1656, 0x1654, 0x1664, 0x8070, 0x8090],
        method: Method::VfioPci,
        kernel: "qede",
        name: "Marvell FastLinQ",
    },
    Kind {
        vendor: 0x177d,
        devices: &[0xa064],
        method: Method::VfioPci,
        kernel: "rvu_nicvf",
        name: "Marvell Octeon VF",
    },
    Kind { vendor: 0x1d0f, devices: &[0xec20, 0xec21], method: Method::VfioPci, kernel: "ena", name: "Amazon ENA" },
    Kind {
        vendor: 0x1af4,
        devices: &[0x1000, 0x1041],
        method: Method::VfioPci,
        kernel: "virtio-pci",
        name: "virtio network device",
    },
    Kind { vendor: 0x15ad, devices: &[0x07b0], method: Method::VfioPci, kernel: "vmxnet3", name: "VMware vmxnet3" },
];

/// The row of a device; none for one that is not known.
pub fn kind(vendor: u16, device: u16) -> Option<&'static Kind> {
    TABLE.iter().find(|row| row.vendor == vendor && (row.devices.is_empty() || row.devices.contains(&device)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mellanox_stays_on_its_kernel_driver_and_intel_goes_to_vfio() {
        let of = |vendor, device| kind(vendor, device).map(|k| (k.method, k.kernel));
        assert_eq!(of(0x15b3, 0x1018), Some((Method::Bifurcated, "mlx5_core")));
        assert_eq!(of(0x15b3, 0xa2d6), Some((Method::Bifurcated, "mlx5_core")));
        assert_eq!(of(0x15b3, 0x1004), Some((Method::Bifurcated, "mlx4_core")));
        assert_eq!(of(0x8086, 0x154c), Some((Method::VfioPci, "iavf")));
        assert_eq!(of(0x8086, 0x1889), Some((Method::VfioPci, "iavf")));
        assert_eq!(of(0x8086, 0x10ed), Some((Method::VfioPci, "ixgbevf")));
        assert_eq!(of(0x8086, 0xffff), None);
        assert_eq!(of(0x10ec, 0x8168), None);
    }

    #[test]
    fn no_device_stands_in_two_rows_and_a_vendors_rest_comes_last() {
        for (at, row) in TABLE.iter().enumerate() {
            for later in TABLE.iter().skip(at + 1).filter(|l| l.vendor == row.vendor) {
                assert!(!row.devices.is_empty(), "{} hides {}", row.name, later.name);
                assert!(later.devices.iter().all(|d| !row.devices.contains(d)), "{} and {}", row.name, later.name);
            }
        }
    }
}
