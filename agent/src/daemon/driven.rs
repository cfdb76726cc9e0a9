//! What drives the uplink: the XDP program on a kernel interface, or DPDK with a TAP for the kernel.
//!
//! Both keep law 7 by the same rules: what is not ours stays the kernel's. The program leaves it in the kernel; with DPDK the
//! kernel gets it through the TAP, which bears the port's MAC and the node's addresses.
//! Owner: the control thread.

use super::uplink;
use anyhow::Result;
use sluice_afxdp::{Program, Steering as ProgramSteering, Umem};
use sluice_ctrl::compile::Steering;
use sluice_ctrl::config::{Config, UplinkDriver};
use sluice_dpdk::{Exceptions, Orders, Rules};
use sluice_hostnet::Netns;
use sluice_port::{FramePool, PoolCache, Queue};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The uplink's driver, open or ready to be opened.
pub enum Driven {
    /// AF_XDP sockets behind an XDP program.
    Xdp(Box<Program>),
    /// A DPDK device.
    Dpdk(DpdkUplink),
}

/// A DPDK device and what its queues are told.
pub struct DpdkUplink {
    /// For the workers.
    queues: Vec<Box<dyn Queue>>,
    orders: Orders,
    /// Rules that a worker may still read.
    old: Vec<Arc<Rules>>,
    #[cfg(feature = "dpdk")]
    port: sluice_dpdk::Port,
}

impl Driven {
    /// Makes the uplink's driver ready; no packet is taken yet.
    pub fn load(config: &Config, netns: &Netns, frames: &Arc<FramePool>) -> Result<Driven> {
        match config.ports.uplink.driver {
            UplinkDriver::AfXdp => Ok(Driven::Xdp(Box::new(uplink::load(config)?))),
            UplinkDriver::Dpdk => Ok(Driven::Dpdk(DpdkUplink::open(config, netns, frames)?)),
            other => anyhow::bail!("ports.uplink.driver: {other:?} is for captures and tests; sluice replay runs them"),
        }
    }

    /// The queues, for the workers in turn.
    pub fn open(&mut self, config: &Config, umem: &Arc<Umem>, cache: &mut PoolCache) -> Result<Vec<Box<dyn Queue>>> {
        match self {
            Driven::Xdp(program) => {
                let queues = uplink::open(config, umem, program, cache)?;
                Ok(queues.into_iter().map(|queue| Box::new(queue) as Box<dyn Queue>).collect())
            }
            Driven::Dpdk(device) => Ok(std::mem::take(&mut device.queues)),
        }
    }

    /// From now on packets are ours.
    pub fn take_over(&mut self) -> Result<()> {
        match self {
            Driven::Xdp(program) => Ok(program.take_over()?),
            Driven::Dpdk(_) => Ok(()),
        }
    }

    /// For so long nobody answers for us when this process is gone. A DPDK device without a process receives nothing.
    pub fn guard(&mut self, time: Duration) -> Result<()> {
        match self {
            Driven::Xdp(program) => Ok(program.guard(time)?),
            Driven::Dpdk(_) => Ok(()),
        }
    }

    /// Says what is ours.
    pub fn steer(&mut self, steering: &Steering) -> Result<()> {
        let list = |set: &BTreeSet<IpAddr>| set.iter().copied().collect::<Vec<_>>();
        let ports = steering.node_ports.iter().map(|(_, protocol, port)| (*protocol, *port));
        match self {
            Driven::Xdp(program) => {
                program.set_config(ProgramSteering {
                    vxlan_port: Some(steering.vxlan_port),
                    snat_ports: Some(steering.snat_ports),
                    steer_all: false,
                })?;
                program.set_node_addresses(&list(&steering.node_addresses))?;
                program.set_owned_addresses(&list(&steering.owned_addresses))?;
                program.set_node_ports(&ports.collect::<Vec<_>>())?;
            }
            Driven::Dpdk(device) => device.set(Rules::new(
                steering.node_addresses.iter().copied(),
                steering.owned_addresses.iter().copied(),
                ports,
                steering.vxlan_port,
                steering.snat_ports,
            )),
        }
        Ok(())
    }

    /// Leaves everything to the kernel; `true` if the queues must be closed for that.
    pub fn let_go(&mut self) -> bool {
        match self {
            Driven::Xdp(_) => true,
            Driven::Dpdk(device) => {
                device.set(Rules::default());
                false
            }
        }
    }

    /// Counters of a DPDK device by its own names.
    pub fn device_counters(&self) -> Vec<(String, u64)> {
        match self {
            Driven::Xdp(_) => Vec::new(),
            Driven::Dpdk(device) => device.counters(),
        }
    }

    /// What is wrong with the device just now.
    pub fn problem(&self) -> Option<String> {
        match self {
            Driven::Xdp(_) => None,
            Driven::Dpdk(device) => device.problem(),
        }
    }
}

impl DpdkUplink {
    /// New rules; old ones are freed here, on the control thread, once no worker reads them.
    fn set(&mut self, rules: Rules) {
        self.old.retain(|rules| Arc::strong_count(rules) > 1);
        self.old.push(self.orders.set(rules));
    }

    /// Frames of the exception path.
    fn exceptions(&self) -> Exceptions {
        self.orders.exceptions()
    }
}

#[cfg(not(feature = "dpdk"))]
impl DpdkUplink {
    fn open(_config: &Config, _netns: &Netns, _frames: &Arc<FramePool>) -> Result<Self> {
        Err(super::host::Lacking {
            what: "ports.uplink.driver is dpdk, and this sluiced was built without DPDK".to_owned(),
            mend: "apt install libdpdk-dev libclang-dev && cargo build --release -p sluice-agent --features dpdk"
                .to_owned(),
        }
        .into())
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let _ = self.exceptions();
        Vec::new()
    }

    fn problem(&self) -> Option<String> {
        None
    }
}

#[cfg(feature = "dpdk")]
impl DpdkUplink {
    fn open(config: &Config, netns: &Netns, frames: &Arc<FramePool>) -> Result<Self> {
        use sluice_ctrl::config::Queues;
        use sluice_dpdk::{Divided, PortOptions};
        use sluice_tap::{TapOptions, TapQueue};
        let wanted = &config.ports.uplink;
        let Some(device) = wanted.device.clone() else {
            return Err(super::host::Lacking {
                what: "ports.uplink.driver is dpdk, and ports.uplink.device names no device".to_owned(),
                mend: "lspci -D shows PCI addresses; a virtual device is named as net_af_xdp0,iface=eth1".to_owned(),
            }
            .into());
        };
        let eal = super::fast::start_dpdk(config)?;
        let queues = match wanted.queues {
            Queues::Auto => u16::MAX,
            Queues::Count(n) => n,
        };
        // More queues than workers would not be polled any faster.
        let queues = queues.min(super::start::worker_count(config));
        let options = PortOptions { queues, ..PortOptions::new(&device) };
        let (port, queues) = sluice_dpdk::open(eal, &options, frames).map_err(super::fast::lacking)?;
        let tap = TapQueue::open(&TapOptions { finished: true, ..TapOptions::new(&wanted.interface) })?;
        sluice_hostnet::raise_link(netns, &wanted.interface, port.mac, u32::from(port.mtu))?;
        tracing::info!(
            device,
            driver = port.driver,
            queues = queues.len(),
            huge_pages = eal.huge_pages(),
            exceptions = wanted.interface,
            "{} drives the uplink",
            sluice_dpdk::Eal::version()
        );
        let orders = Orders::default();
        let mut tap: Option<Box<dyn Queue>> = Some(Box::new(tap));
        let queues = queues
            .into_iter()
            .map(|queue| Box::new(Divided::new(Box::new(queue), tap.take(), &orders)) as Box<dyn Queue>)
            .collect();
        Ok(DpdkUplink { queues, orders, old: Vec::new(), port })
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let exceptions = self.exceptions();
        let mut all = vec![
            ("exceptions_to_kernel".to_owned(), exceptions.passed),
            ("exceptions_lost".to_owned(), exceptions.lost),
            ("exceptions_from_kernel".to_owned(), exceptions.sent),
        ];
        all.extend(self.port.xstats());
        all
    }

    fn problem(&self) -> Option<String> {
        if self.port.is_removed() {
            return Some("the uplink's device was pulled out; restart sluiced once it is back".to_owned());
        }
        (self.port.is_open() && !self.port.link().up).then(|| "the uplink's link is down".to_owned())
    }
}
