//! `sluiced run` from the configuration file to the first packet, and `sluiced cleanup`.
//!
//! What the machine lacks is said before anything is changed on it, with the command that provides it (exit code 4).

use super::attachments::Attachments;
use super::carriers::Carriers;
use super::cluster::{Unwatched, Watched};
use super::control::{Control, Link, Message, Parts};
use super::cores::Cores;
use super::driven::Driven;
use super::flow_files;
use super::guard::Guard;
use super::health_ports::HealthPorts;
use super::host::{self, Lacking, Notes};
use super::pods::FIRST_POD_PORT;
use super::reports::Node;
use super::resume::{Phases, Prepared};
use super::uplink;
use super::vfs::{self, Vfs};
use crate::api;
use anyhow::{Context, Result, anyhow};
use crossbeam::channel::{Receiver, Sender, unbounded};
use sluice_afxdp::Umem;
use sluice_cni::pending::PendingDels;
use sluice_cni::protocol::Verb;
use sluice_ctrl::carriers::Outcome;
use sluice_ctrl::compile::{HostPort, Knobs, LocalView, Uplink};
use sluice_ctrl::config::{Config, Source, UplinkDriver};
use sluice_ctrl::ipam::Ipam;
use sluice_ctrl::publish::Publisher;
use sluice_engine::Shared;
use sluice_hostnet::Netns;
use sluice_kube::Keeper;
use sluice_port::{FramePool, PoolOptions};
use sluice_tap::{TapOptions, TapQueue};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Frames of the pool: 128 MB, touched at start.
const FRAMES: usize = 32_768;

/// Runs the agent until it is told to stop.
pub fn run(config: Config) -> Result<()> {
    let started = Instant::now();
    check_machine()?;
    let mut phases = Phases::new(started);
    let guard = Guard::before(&config);
    let (link, inbox, mut control, watch, mut prepared) = assemble(config, started)?;
    phases.done("machine");
    let config = control.config.clone();
    // Before the first tables: these tell it who the nodes are.
    let keeper = match &config.source {
        Source::Kubernetes { kubeconfig } if config.liveness.leases => {
            Some(Keeper::start(&config.node, kubeconfig.clone())?)
        }
        _ => None,
    };
    let (node, port) = (config.node.clone(), config.liveness.port);
    control.carriers = Some(Carriers::start(node, port, control.shared.clone(), link.clone(), keeper)?);
    prepared.returning = control.recall_pods();
    control.read_machine();
    control.begin_from_disk();
    control.import();
    // Packets are taken once there are tables that know what to do with them.
    let mut waiting = Some(prepared);
    if control.apply(started)
        && let Some(prepared) = waiting.take()
    {
        phases.done("tables");
        control.go_live(prepared, &mut phases)?;
    }
    let server = api::server::Server::bind(&config.socket, config.metrics)?;
    let mut running = server.start(Arc::new(Node::new(link.clone())))?;
    let watch = match watch.start(link.clone())? {
        Watched::Kubernetes(source) => {
            if let Some(following) = &mut control.following {
                following.source = Some(source);
            }
            None
        }
        manifests => Some(manifests),
    };
    let neighbours = {
        let link = link.clone();
        sluice_hostnet::watch_neighbours(&control.netns, &control.uplink_name, move || {
            link.send(Message::Machine);
        })?
    };
    stop_on_signal(link.clone())?;
    if let Some(prepared) = waiting.take() {
        tracing::warn!("there are no tables yet: no packet is taken until there are");
        if !control.run_while(&inbox, |control| control.publisher.generation() < 2) {
            return Ok(());
        }
        control.go_live(prepared, &mut phases)?;
    }
    // Not earlier: what is reachable before the uplink is attached to says nothing.
    if let Some(guard) = guard {
        guard.watch(link)?;
    }
    // Leases of ADDs that were cut off before they had a port.
    if let Err(error) = control.reconcile() {
        tracing::error!("cannot give back what lost pods left: {error:#}");
    }
    finish_pending(&mut control, &config.socket);
    tracing::info!(node = config.node, workers = control.workers.len(), "running");
    control.run(&inbox);
    tracing::info!("stopping; pods keep their interfaces");
    drop((watch, neighbours));
    control.following = None;
    running.stop();
    control.shut_down()
}

fn check_machine() -> Result<()> {
    let missing = sluice_hostnet::capabilities_missing();
    if !missing.is_empty() {
        return Err(Lacking {
            what: format!("this process lacks {}", missing.join(", ")),
            mend: "run it as root, or with AmbientCapabilities= of these in its systemd unit, or these in the pod's \
                   securityContext.capabilities.add"
                .to_owned(),
        }
        .into());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Err(Lacking {
            what: "/dev/net/tun is not there, so pods can get no ports".to_owned(),
            mend: "modprobe tun".to_owned(),
        }
        .into());
    }
    Ok(())
}

/// One agent for each state folder.
fn lock(state_dir: &Path) -> Result<File> {
    std::fs::create_dir_all(state_dir).with_context(|| format!("cannot make {}", state_dir.display()))?;
    let path = state_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        anyhow!("another sluiced uses {}; end it first, or give this one its own state_dir", state_dir.display())
    })?;
    Ok(file)
}

fn assemble(config: Config, started: Instant) -> Result<(Link, Receiver<Message>, Control, Unwatched, Prepared)> {
    let absent = host::absent_folders(folders(&config));
    // Held for the life of the process.
    std::mem::forget(lock(&config.state_dir)?);
    let netns = Netns::current()?;
    let uplink_name = config.ports.uplink.interface.clone();
    let on_kernel = config.ports.uplink.driver == UplinkDriver::AfXdp;
    if on_kernel {
        host::uplink(&netns, &uplink_name)?;
    }
    let (source, snapshot, following) = Unwatched::open(&config)?;
    let mut notes = Notes::open(&config.state_dir)?;
    notes.found.note_folders(absent);
    host::fence_ports(&netns, &mut notes, (config.masquerade.ports.first(), config.masquerade.ports.last()))?;
    notes.found.host_interface = Some(config.ports.host.interface.clone());
    let attached = on_kernel.then(|| uplink_name.clone());
    if let Some(old) =
        std::mem::replace(&mut notes.found.uplink, attached.clone()).filter(|old| Some(old) != attached.as_ref())
    {
        uplink::remove(&old)?;
    }
    if !on_kernel && sluice_hostnet::interface(&netns, &uplink_name)?.is_none() {
        notes.found.exceptions = Some(uplink_name.clone());
    }
    notes.save()?;

    // What takes long and hangs on nothing else is done side by side; DPDK receives into the pool, so it comes after it.
    let cores = Cores::plan(&config)?;
    let new_pool = || FramePool::new(PoolOptions { frames: FRAMES, huge_pages: true });
    let (pool, uplink) = if on_kernel {
        let (made, loaded) = std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                // Whoever touches memory first decides on which NUMA node it lies.
                cores.go_home();
                new_pool()
            });
            let loaded = uplink::load(&config);
            (made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), loaded)
        });
        (made?, Driven::Xdp(Box::new(loaded?)))
    } else {
        let pool = new_pool()?;
        let card = config.ports.uplink.device.as_deref().filter(|device| sluice_machine::pci::is_address(device));
        if let (Some(card), true) = (card, cfg!(feature = "dpdk")) {
            vfs::take_uplink(&config, card, &netns)?;
        }
        let uplink = Driven::load(&config, &netns, &pool)?;
        (pool, uplink)
    };
    let found = host::uplink(&netns, &uplink_name)?;
    let view = LocalView {
        node: config.node.clone(),
        uplink: Uplink {
            port: sluice_ctrl::compile::local::UPLINK_PORT,
            mac: found.mac,
            mtu: u16::try_from(found.mtu).unwrap_or(u16::MAX),
            subnets: Vec::new(),
        },
        host: HostPort { port: sluice_ctrl::compile::local::HOST_PORT, mac: [2, 0, 0, 0, 0, 1] },
        pods: BTreeMap::new(),
        neighbours: BTreeMap::new(),
        gateways: [None, None],
        // Nothing is carried before the election has spoken: another node may be at it.
        carriers: Some(Outcome::default()),
    };
    let host = TapQueue::open(&TapOptions::new(&config.ports.host.interface))?;
    let folder = flow_files::folder(config.flows.path.as_deref(), &config.socket);
    let shared = Shared::with_clients(config.flows.max, flow_files::clients(&folder));
    let publisher = Publisher::new(sluice_ctrl::compile::empty(&view, &Knobs::from(&config)));
    let umem = Umem::new(&pool);
    let attachments = Attachments::open(&config.state_dir, FIRST_POD_PORT)?;
    let ipam = Ipam::open(&config.state_dir, Vec::new())?;
    let vfs = Vfs::new(&config)?;
    let (sender, inbox): (Sender<Message>, _) = unbounded();
    let parts = Parts {
        config,
        netns,
        snapshot,
        following,
        view,
        publisher,
        workers: Vec::new(),
        cores,
        vfs,
        shared,
        pool,
        uplink: None,
        umem,
        uplink_name,
        attachments,
        ipam,
        notes,
        health_ports: HealthPorts::start()?,
        started,
    };
    let prepared = Prepared { returning: Vec::new(), host, uplink };
    Ok((Link::new(sender), inbox, Control::new(parts), source, prepared))
}

/// How many workers this configuration gives.
pub fn worker_count(config: &Config) -> u16 {
    Cores::plan(config).map_or(1, |cores| cores.cpus().len() as u16)
}

/// Folders that the agent makes where they are not there. That of the state itself is not among them: it goes whole.
fn folders(config: &Config) -> impl Iterator<Item = &Path> {
    let around = [config.state_dir.parent(), config.socket.parent()].into_iter().flatten();
    let runtime = [config.cni.conf_dir.as_path(), config.cni.bin_dir.as_path()];
    around.chain(runtime.into_iter().filter(|_| super::install::is_wanted(config)))
}

/// Finishes DELs and GCs that came while no agent was there.
fn finish_pending(control: &mut Control, socket: &Path) {
    let pending = PendingDels::beside(socket);
    let notes = match pending.notes() {
        Ok(notes) => notes,
        Err(error) => return tracing::warn!(%error, "cannot read the DELs that came while no agent ran"),
    };
    for note in notes {
        match &note.request {
            Ok(request) => {
                let done = match note.verb {
                    Verb::Gc => control.collect_noted_garbage(request, note.written),
                    verb => control.cni(verb, request),
                };
                if let Err(error) = done {
                    tracing::error!(
                        container = request.container_id,
                        "{:?} cannot be finished: {}",
                        note.verb,
                        error.msg
                    );
                    continue;
                }
            }
            Err(error) => tracing::warn!(path = %note.path.display(), %error, "a note cannot be read"),
        }
        if let Err(error) = pending.done(&note.path) {
            tracing::warn!(path = %note.path.display(), %error, "cannot remove a finished note");
        }
    }
}

/// SIGTERM and SIGINT end the control thread's loop.
fn stop_on_signal(link: Link) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut terminate), Ok(mut interrupt)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            else {
                return;
            };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            link.send(Message::Stop);
        });
    })?;
    Ok(())
}

/// Removes all that a node's agent has made and puts back what it changed; may be repeated. No agent may be running.
pub fn cleanup(config: &Config) -> Result<()> {
    if !config.state_dir.exists() {
        return Ok(());
    }
    let held = lock(&config.state_dir)?;
    let netns = Netns::current()?;
    let notes = Notes::open(&config.state_dir)?;
    // First of all: the runtime must not start pods on what goes away.
    if let Some(installed) = &notes.found.cni {
        super::install::remove(installed)?;
    }
    let attachments = Attachments::open(&config.state_dir, FIRST_POD_PORT)?;
    let pods = attachments.iter().filter_map(|a| {
        let ns = Netns::open(&a.netns).ok().filter(|ns| ns.inode() == a.netns_inode)?;
        Some((a, ns))
    });
    let pods: Vec<_> = pods.collect();
    // Before pods lose anything: what of a VF cannot be given back stands in the way of the rest, and the command may be repeated.
    let spaces: Vec<(String, &Netns)> = pods.iter().map(|(a, ns)| (a.container.clone(), ns)).collect();
    vfs::give_back_all(config, &netns, &spaces)?;
    for (attachment, ns) in &pods {
        sluice_hostnet::delete_link(ns, &attachment.ifname)?;
    }
    for fast in attachments.iter().filter_map(|a| a.fast.as_ref()) {
        fast.remove()?;
    }
    if let Some(name) = &notes.found.uplink {
        uplink::remove(name)?;
    }
    if let Some(name) = &notes.found.exceptions {
        sluice_hostnet::delete_link(&netns, name)?;
    }
    if let Some(folder) = &notes.found.flow_tables {
        flow_files::remove(folder)?;
    }
    sluice_hostnet::remove_redirects(&netns)?;
    if let Some(name) = &notes.found.host_interface {
        sluice_hostnet::delete_link(&netns, name)?;
    }
    if let Some(ports) = &notes.found.reserved_ports {
        sluice_hostnet::set_reserved_ports(&netns, ports)?;
    }
    if config.socket.exists() {
        std::fs::remove_file(&config.socket).with_context(|| format!("cannot remove {}", config.socket.display()))?;
    }
    let pending = PendingDels::beside(&config.socket);
    pending.remove().context("cannot remove the notes of DELs that wait")?;
    drop(held);
    let state = &config.state_dir;
    std::fs::remove_dir_all(state).with_context(|| format!("cannot remove {}", state.display()))?;
    host::remove_folders(&notes.found.folders)
}
