//! The uplink: taken, and put back.
//!
//! Invariant (law 7): the kernel keeps every packet that is not ours; without the program it keeps all of them. Putting back
//! leaves workers, tables and pods as they are, so that taking it again costs nothing but its queues.

use super::control::Control;
use super::host;
use anyhow::{Result, anyhow};
use sluice_afxdp::{AttachMode, BindMode, Program, QueueOptions, Umem, XskQueue};
use sluice_ctrl::config::{Config, Queues, XdpMode};
use sluice_port::PoolCache;
use std::sync::Arc;
use std::time::Instant;

/// The program on the interface, and a queue for each receive queue.
pub struct Taken {
    /// The program.
    pub program: Program,
    /// The queues, by number.
    pub queues: Vec<XskQueue>,
}

/// Attaches to the uplink's interface.
pub fn take(config: &Config, umem: &Arc<Umem>, cache: &mut PoolCache) -> Result<Taken> {
    let uplink = &config.ports.uplink;
    let mut program = Program::attach(uplink.interface.as_str(), attach_mode(uplink.mode))?;
    let options = QueueOptions { mode: bind_mode(uplink.mode), ..QueueOptions::uplink() };
    let mut queues = Vec::new();
    for queue in 0..queue_count(&uplink.queues, &program) {
        queues.push(XskQueue::open(umem, &mut program, queue, &options, cache)?);
    }
    Ok(Taken { program, queues })
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
        for worker in &self.workers {
            while worker.detach(port) {}
        }
        self.program = None;
        self.put_back = Some(why);
        self.host_ready = false;
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
        let umem = self.umem.clone();
        let Taken { program, queues } = take(&self.config, &umem, &mut self.cache)?;
        self.program = Some(program);
        for (at, queue) in queues.into_iter().enumerate() {
            let worker = self.workers.get(at % self.workers.len().max(1)).ok_or_else(|| anyhow!("no worker"))?;
            if !worker.attach(self.view.uplink.port, Box::new(queue)) {
                return Err(anyhow!("a worker does not answer"));
            }
        }
        self.put_back = None;
        tracing::warn!("the uplink is taken again");
        self.apply(Instant::now());
        Ok(())
    }
}
