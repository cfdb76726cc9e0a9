//! What the compiler takes from the configuration.
//!
//! Owner: the control thread. Source: contract §4.

use ipnet::IpNet;
use sluice_tables::{Lpm, Settings};

/// Knobs of the packet path and the ranges that make the cluster's inside.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// Handed to workers as they are.
    pub settings: Settings,
    /// `cidrs.pods`.
    pub pod_ranges: Vec<IpNet>,
    /// `cidrs.services`.
    pub service_ranges: Vec<IpNet>,
}

impl Default for Knobs {
    /// The contract's defaults.
    fn default() -> Self {
        let nets = |list: &[&str]| list.iter().filter_map(|net| net.parse().ok()).collect::<Vec<IpNet>>();
        Knobs {
            settings: Settings {
                vni: 4096,
                vxlan_port: 4789,
                reject: false,
                masquerade: true,
                masquerade_exclude: Lpm::from_entries(nets(&["10.0.0.0/8"]).into_iter().map(|net| (net.into(), ()))),
                snat_ports: (40_000, 57_343),
                node_ports: (30_000, 32_767),
                timeouts: Default::default(),
            },
            pod_ranges: nets(&["10.244.0.0/16", "fd00:10:244::/56"]),
            service_ranges: nets(&["10.96.0.0/12", "fd00:10:96::/112"]),
        }
    }
}
