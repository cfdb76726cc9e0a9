//! The uplink: taken, and put back.
//!
//! Invariant (law 7): the kernel keeps every packet that is not ours; without the program it keeps all of them. Putting back
//! leaves workers, tables and pods as they are, so that taking it again costs nothing but its queues.

use super::control::Control;
use super::driven::Driven;
use super::host;
use anyhow::{Context, Result, anyhow};
use sluice_afxdp::{AttachMode, BindMode, DeviceError, Program, ProgramError, QueueOptions, Umem, XskQueue};
use sluice_ctrl::config::{Config, Queues, XdpMode};
use sluice_port::PoolCache;
use std::sync::Arc;
use std::time::Instant;

/// Loads the uplink's program and attaches it to last, or makes it ready to succeed the one that an earlier process left.
pub fn load(config: &Config) -> Result<Program> {
    let uplink = &config.ports.uplink;
    Ok(Program::lasting(uplink.interface.as_str(), attach_mode(uplink.mode))?)
}

/// A queue for each receive queue, by number.
pub fn open(config: &Config, umem: &Arc<Umem>, program: &mut Program, cache: &mut PoolCache) -> Result<Vec<XskQueue>> {
    let uplink = &config.ports.uplink;
    let options = QueueOptions { mode: bind_mode(uplink.mode), ..QueueOptions::uplink() };
    let mut queues = Vec::new();
    for queue in 0..queue_count(&uplink.queues, program) {
        queues.push(XskQueue::open(umem, program, queue, &options, cache)?);
    }
    Ok(queues)
}

/// Takes the program that stays on an uplink off; an interface that is gone took it along.
pub fn remove(interface: &str) -> Result<()> {
    match Program::remove(interface) {
        Ok(_) | Err(ProgramError::Device(DeviceError::NotFound(_))) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot take the XDP program off {interface}")),
    }
}

/// Every receive queue needs a socket: what the device spreads to a queue without one would go to the kernel.
fn queue_count(wanted: &Queues, program: &Program) -> u32 {
    let there = program.device().rx_queues.max(1);
    match wanted {
        Queues::Auto => there,
        Queues::Count(n) => u32::from(*n).clamp(1, there),
    }
}

fn attach_mode(mode: XdpMode) -> AttachMode {
    match mode {
        XdpMode::Auto => AttachMode::Auto,
        XdpMode::ZeroCopy | XdpMode::Copy => AttachMode::Native,
        XdpMode::Skb => AttachMode::Generic,
    }
}

fn bind_mode(mode: XdpMode) -> BindMode {
    match mode {
        XdpMode::Auto => BindMode::Auto,
        XdpMode::ZeroCopy => BindMode::ZeroCopy,
        XdpMode::Copy | XdpMode::Skb => BindMode::Copy,
    }
}

impl Control {
    /// Puts the uplink and the host's routes back as they were found; pods of this node still reach each other.
    pub fn let_go_of_uplink(&mut self, why: String) {
        tracing::error!("the uplink is put back: {why}");
        let port = self.view.uplink.port;
        if self.uplink.as_mut().is_some_and(Driven::let_go) {
            for worker in &self.workers {
                while worker.detach(port) {}
            }
            self.uplink = None;
            if let Err(error) = remove(&self.uplink_name) {
                tracing::error!("{error:#}");
            }
        }
        self.steered = None;
        self.put_back = Some(why);
        self.host_ready = false;
        self.host_plan = None;
        self.set_redirects(&Default::default());
        if let Err(error) = host::silence_host_port(&self.netns, &self.config.ports.host.interface) {
            tracing::error!("the host's routes to pods and Services cannot be removed: {error:#}");
        }
    }

    /// Takes the uplink again.
    pub fn take_uplink_again(&mut self) -> Result<()> {
        if self.put_back.is_none() {
            return Ok(());
        }
        if self.uplink.is_none() {
            let umem = self.umem.clone();
            let mut program = load(&self.config)?;
            let queues = open(&self.config, &umem, &mut program, &mut self.cache)?;
            program.take_over()?;
            self.uplink = Some(Driven::Xdp(Box::new(program)));
            self.renew_guard();
            for (at, queue) in queues.into_iter().enumerate() {
                let worker = self.workers.get(at % self.workers.len().max(1)).ok_or_else(|| anyhow!("no worker"))?;
                if !worker.attach(self.view.uplink.port, Box::new(queue)) {
                    return Err(anyhow!("a worker does not answer"));
                }
            }
        }
        self.put_back = None;
        tracing::warn!("the uplink is taken again");
        self.apply(Instant::now());
        Ok(())
    }
}
