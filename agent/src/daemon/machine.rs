//! This machine as the tables see it: the host port, the uplink's addresses, gateways and neighbours.
//!
//! The host port is looked at in full when what it should be has changed, and now and then: somebody may have taken a route
//! away. In between a change of tables costs no question to the kernel.

use super::control::Control;
use super::host;
use sluice_ctrl::model::{Family, PoolUse};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How often the host port is compared with what it should be.
const HOST_CHECK: Duration = Duration::from_secs(10);

/// What the host port should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPlan {
    overlay: Vec<IpAddr>,
    ranges: Vec<ipnet::IpNet>,
    mtu: u16,
}

impl Control {
    /// Gives the host port its addresses and routes as soon as the node's podCIDRs are known, and when they change.
    pub(super) fn prepare_host(&mut self) {
        if self.put_back.is_some() {
            return;
        }
        let Some(plan) = self.host_plan() else { return };
        if self.host_plan.as_ref() == Some(&plan) {
            return;
        }
        let name = self.config.ports.host.interface.clone();
        self.host_checked = Instant::now();
        match host::configure_host_port(&self.netns, &name, &plan.overlay, &plan.ranges, plan.mtu) {
            Ok(mac) => {
                self.view.host.mac = mac;
                self.host_ready = true;
                self.host_plan = Some(plan);
                self.machine_problems.retain(|p| !p.starts_with("host port"));
            }
            Err(error) => {
                self.host_plan = None;
                let problem = format!("host port {name}: {error:#}");
                if !self.machine_problems.contains(&problem) {
                    tracing::error!("{problem}");
                    self.machine_problems.push(problem);
                }
            }
        }
    }

    /// What the host port should be; none before this node is known.
    fn host_plan(&self) -> Option<HostPlan> {
        let node = self.cluster.nodes.get(&self.config.node)?;
        let mut ranges = self.config.cidrs.pods.clone();
        ranges.extend(self.config.cidrs.services.iter().copied());
        ranges.extend(self.balanced_addresses());
        let pools = self.cluster.ip_pools.values().filter(|pool| pool.usage == PoolUse::Pods);
        ranges.extend(pools.flat_map(|pool| pool.cidrs.iter().copied()));
        ranges.sort_unstable();
        ranges.dedup();
        Some(HostPlan {
            overlay: [Family::V4, Family::V6].iter().filter_map(|f| node.overlay_address(*f)).collect(),
            ranges,
            mtu: self.pod_mtu(),
        })
    }

    /// Now and then puts back what somebody else changed on the host port.
    pub(super) fn look_after_host(&mut self) {
        if self.host_checked.elapsed() >= HOST_CHECK {
            self.host_checked = Instant::now();
            self.host_plan = None;
            self.prepare_host();
        }
    }

    /// Load balancers' addresses that are ours to serve, so that the node's own processes reach them here and not through
    /// the network.
    fn balanced_addresses(&self) -> Vec<ipnet::IpNet> {
        let nodes = self.cluster.nodes.values().flat_map(|n| n.internal_ips.iter().chain(&n.external_ips));
        let nodes: BTreeSet<IpAddr> = nodes.copied().collect();
        let served = self.cluster.services.values().filter(|service| service.is_served());
        let ours = served.flat_map(|service| &service.load_balancer).filter(|a| !a.proxied && !nodes.contains(&a.ip));
        let all: BTreeSet<IpAddr> = ours.map(|a| a.ip).collect();
        all.into_iter().map(ipnet::IpNet::from).collect()
    }

    /// Layer-3 MTU of pods as the tables in force have it.
    pub fn pod_mtu(&self) -> u16 {
        let mtu = self.publisher.current().tables.node.pod_mtu;
        if mtu == 0 { self.view.uplink.mtu.saturating_sub(50) } else { mtu }
    }

    /// Reads uplink, gateways and neighbours anew; new tables if anything differs.
    pub fn look_at_machine(&mut self) {
        let before = self.view.clone();
        self.read_machine();
        if self.view != before {
            self.apply(Instant::now());
        }
    }

    /// Reads uplink, gateways and neighbours into the view.
    pub fn read_machine(&mut self) {
        match sluice_hostnet::interface(&self.netns, &self.uplink_name) {
            Ok(Some(interface)) => {
                self.view.uplink.mac = interface.mac;
                self.view.uplink.mtu = u16::try_from(interface.mtu).unwrap_or(u16::MAX);
                self.view.uplink.subnets = interface.addresses.iter().map(ipnet::IpNet::trunc).collect();
                self.view.uplink.subnets.retain(|net| match net {
                    ipnet::IpNet::V6(v6) => !v6.addr().is_unicast_link_local(),
                    ipnet::IpNet::V4(_) => true,
                });
            }
            Ok(None) => tracing::error!(interface = self.uplink_name, "the uplink is gone"),
            Err(error) => tracing::warn!(%error, "cannot read the uplink"),
        }
        if let Ok(gateways) = sluice_hostnet::default_gateways(&self.netns, &self.uplink_name) {
            self.view.gateways = gateways;
        }
        // An entry that the kernel drops while it is still asked for would send flows down the slow path: entries are kept
        // until another MAC takes their place.
        self.view.neighbours.extend(host::neighbours(&self.netns, &self.uplink_name));
    }

    /// Asks the kernel for neighbours that tables or packets want.
    pub(super) fn resolve_wanted(&mut self) {
        let mut wanted = self.shared.wanted.drain();
        let asked = !wanted.is_empty();
        let due = std::mem::take(&mut self.solicit_now) || self.solicited.elapsed() > Duration::from_secs(1);
        if due {
            wanted.extend(self.publisher.current().wanted_neighbours.iter().map(|a| sluice_tables::Address::from(*a)));
            self.solicited = Instant::now();
        }
        if wanted.is_empty() {
            return;
        }
        for address in wanted {
            let address: IpAddr = address.into();
            if let Err(error) = sluice_hostnet::solicit(&self.netns, &self.uplink_name, address) {
                tracing::debug!(%error, %address, "cannot ask for a neighbour");
            }
        }
        if asked {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.look_at_machine();
    }
}
