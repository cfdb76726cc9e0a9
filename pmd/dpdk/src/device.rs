//! A device: found or made, configured, started, watched, and given back.
//!
//! Owner: the control thread opens it; its queues go to workers, and the last of them to be closed stops it. Invariants:
//! while a queue lives its device is started; every frame a device holds comes back when it is closed. Cost: milliseconds
//! to seconds to open, nothing afterwards.
//! Source: DPDK Programmer's Guide, "Poll Mode Driver".

use crate::eal::{Eal, strerror};
use crate::error::DpdkError;
use crate::listener::{Listener, abstract_name, listening};
use crate::mempool::{BUFFER, OWN_DATA, Own, Shared};
use crate::pci::{self, PciAddress};
use crate::queue::DpdkQueue;
use sluice_dpdk_sys as sys;
use sluice_port::{Capabilities, FramePool};
use std::ffi::{CStr, CString, c_int, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, Weak};

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// Bytes in front of received data that DPDK leaves free.
const HEADROOM: usize = 128;
/// Drivers that need a packet's bytes to lie behind its header: they give the kernel, or another process, one region with
/// both. Their frames are copied.
const NEEDS_OWN_MEMORY: &[&str] = &["net_af_xdp", "net_virtio_user"];
/// Drivers that do in software what cards do in hardware, and not well (`net_tap` of 22.11): segmentation crashes when the bytes
/// lie outside the mbuf, and a checksum over segments of odd lengths comes out wrong. Segmentation is not asked for, checksums
/// for frames in one piece only.
const OFFLOADS_BADLY: &[&str] = &["net_tap"];
/// A key of two repeated bytes gives both directions of a flow the same hash (Woo and Park, "Scalable TCP session
/// monitoring with symmetric receive-side scaling", 2012).
const SYMMETRIC_KEY: [u8; 2] = [0x6d, 0x5a];

/// What is wanted of a device.
#[derive(Clone, Debug)]
pub struct PortOptions {
    /// A PCI address, or a virtual device with its arguments: `net_af_xdp0,iface=eth1`.
    pub device: String,
    /// Queue pairs; fewer if the device has fewer.
    pub queues: u16,
    /// Descriptors of each ring; the device may round.
    pub ring: u16,
    /// MTU, in bytes without the Ethernet header; `None`: the device's.
    pub mtu: Option<u16>,
    /// Receive what is for other MACs too.
    pub promiscuous: bool,
}

impl PortOptions {
    /// One queue, rings of 1,024, nothing unusual.
    pub fn new(device: &str) -> Self {
        PortOptions { device: device.to_owned(), queues: 1, ring: 1024, mtu: None, promiscuous: false }
    }
}

/// State of the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether it is up.
    pub up: bool,
    /// Megabits a second; 0 if unknown.
    pub megabits: u32,
}

/// A device as control sees it; does not keep it open.
#[derive(Clone, Debug)]
pub struct Port {
    device: Weak<Device>,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its MTU, in bytes.
    pub mtu: u16,
    /// Its DPDK driver.
    pub driver: String,
    /// NUMA node, if the machine has several and the device is on one.
    pub numa_node: Option<u32>,
}

impl Port {
    /// Whether queues of it are open.
    pub fn is_open(&self) -> bool {
        self.device.strong_count() > 0
    }

    /// Whether the device was pulled out, or its VF taken away.
    pub fn is_removed(&self) -> bool {
        self.device.upgrade().is_some_and(|device| device.look_for_removal())
    }

    /// Its link; down if it is closed or removed.
    pub fn link(&self) -> Link {
        self.device.upgrade().map(|device| device.link()).unwrap_or_default()
    }

    /// All counters of the device by DPDK's names, such as `rx_missed_errors`; empty if it is closed or removed.
    pub fn xstats(&self) -> Vec<(String, u64)> {
        self.device.upgrade().map(|device| device.xstats()).unwrap_or_default()
    }
}

/// Where a device's packets lie.
#[derive(Debug)]
pub(crate) enum Memory {
    /// In the frame pool.
    Shared(Arc<Shared>),
    /// In a mempool of the device's own; the frame pool's headers are not needed.
    Own(Own),
}

/// An open device.
#[derive(Debug)]
pub(crate) struct Device {
    eal: &'static Eal,
    pub(crate) port: u16,
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) memory: Memory,
    handle: *mut sys::rte_device,
    /// The frame pool is mapped for this device.
    mapped: Option<(*mut c_void, usize)>,
    /// Boxed apart from the device: DPDK's event thread holds its address.
    gone: Box<AtomicBool>,
    queues: u16,
    started: bool,
    watched: bool,
    /// Sockets that the driver will forget to close.
    listeners: Vec<Listener>,
}

// SAFETY: the pointers name DPDK's device and the frame pool's region, which may be used from any thread; `handle` is valid
// until `drop` gives the device back.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// Opens a device with all its queues.
///
/// Drivers that need packets in memory of their own (`net_af_xdp`, `net_virtio_user`) copy each frame once in either
/// direction, counted in `PortStats`; all others receive into the frame pool and send out of it.
pub fn open(
    eal: &'static Eal,
    options: &PortOptions,
    frames: &Arc<FramePool>,
) -> Result<(Port, Vec<DpdkQueue>), DpdkError> {
    let name = options.device.split(',').next().unwrap_or_default().to_owned();
    let (devargs, name) = match name.parse::<PciAddress>() {
        Ok(card) => {
            pci::check(card, Path::new("/sys"), Path::new("/dev"))?;
            if !eal.allows(card) {
                return Err(DpdkError::NotAllowed(card.to_string()));
            }
            (options.device.replacen(&name, &card.to_string(), 1), card.to_string())
        }
        Err(_) if name.starts_with("net_") || name.starts_with("eth_") => (options.device.clone(), name),
        Err(error) => return Err(error),
    };
    let socket = abstract_name(&devargs);
    let before = socket.map(listening).unwrap_or_default();
    let mut device = {
        let _turn = eal.turn.lock().unwrap_or_else(PoisonError::into_inner);
        eal.take_log();
        let port = probe(eal, &devargs, &name)?;
        describe(eal, port, name)?
    };
    let configured = configure(&mut device, options, frames);
    device.listeners = socket.map(listening).unwrap_or_default();
    device.listeners.retain(|listener| !before.contains(listener));
    let offloads = configured?;
    let (port, device) = (device.port, Arc::new(device));
    let mut mtu = 1500;
    let mut mac = sys::rte_ether_addr::default();
    // SAFETY: the port is open; both calls fill one local each.
    unsafe {
        sys::rte_eth_dev_get_mtu(port, &raw mut mtu);
        sys::rte_eth_macaddr_get(port, &raw mut mac);
    }
    let capabilities = capabilities(&device, offloads, mtu);
    let reason = reason(&device, capabilities);
    let queues = (0..device.queues)
        .map(|queue| {
            DpdkQueue::new(Arc::clone(&device), queue, frames, capabilities, u32::from(mtu) + ETHERNET, &reason)
        })
        .collect();
    let socket = device.socket();
    let described = Port {
        device: Arc::downgrade(&device),
        mac: mac.addr_bytes,
        mtu,
        driver: device.driver.clone(),
        numa_node: u32::try_from(socket).ok(),
    };
    Ok((described, queues))
}

/// Finds the card, or makes the virtual device.
fn probe(eal: &Eal, devargs: &str, name: &str) -> Result<u16, DpdkError> {
    let (Ok(arguments), Ok(c_name)) = (CString::new(devargs), CString::new(name)) else {
        return Err(DpdkError::Name(devargs.to_owned()));
    };
    let mut port = 0;
    // SAFETY: a string and a local.
    if unsafe { sys::rte_eth_dev_get_port_by_name(c_name.as_ptr(), &raw mut port) } == 0 {
        // A card that was named at the start is there before anybody asks for it, unless one of us has it.
        if name.parse::<PciAddress>().is_err() || taken(port) {
            return Err(DpdkError::Busy {
                device: name.to_owned(),
                mend: "name another device: this process has it open already".to_owned(),
            });
        }
        return Ok(port);
    }
    // SAFETY: a string.
    let probed = unsafe { sys::rte_dev_probe(arguments.as_ptr()) };
    // SAFETY: as above.
    if probed >= 0 && unsafe { sys::rte_eth_dev_get_port_by_name(c_name.as_ptr(), &raw mut port) } == 0 {
        return Ok(port);
    }
    let said = eal.take_log();
    let why = if said.is_empty() { strerror(probed) } else { format!("{} ({said})", strerror(probed)) };
    if probed == -libc::EBUSY || said.contains("resource busy") || said.contains("already in use") {
        let mend =
            "`fuser -v /dev/vfio/*`, `ss -xlp` and `ip -details link show` say who has it; end that process first";
        return Err(DpdkError::Busy { device: name.to_owned(), mend: mend.to_owned() });
    }
    if said.contains("maximum number of Ethernet ports") {
        return Err(DpdkError::TooMany { device: name.to_owned(), most: sys::RTE_MAX_ETHPORTS });
    }
    let mend = if name.parse::<PciAddress>().is_ok() {
        "`dpdk-devbind.py --status` shows its driver; the package librte-net-all or the like brings drivers"
    } else {
        "its name begins with a DPDK driver (net_af_xdp, net_tap, net_memif, net_vhost, net_ring, net_null, net_pcap) and \
         its arguments stand behind commas"
    };
    Err(DpdkError::Probe { device: name.to_owned(), why, mend })
}

/// Whether a port is configured, and so in use.
fn taken(port: u16) -> bool {
    let mut info = sys::rte_eth_dev_info::default();
    // SAFETY: the call fills the structure.
    unsafe { sys::rte_eth_dev_info_get(port, &raw mut info) == 0 && info.nb_rx_queues > 0 }
}

fn info(port: u16) -> Result<sys::rte_eth_dev_info, c_int> {
    let mut info = sys::rte_eth_dev_info::default();
    // SAFETY: the call fills the structure.
    match unsafe { sys::rte_eth_dev_info_get(port, &raw mut info) } {
        0 => Ok(info),
        error => Err(error),
    }
}

/// The device before it is configured. From here on dropping it gives it back.
fn describe(eal: &'static Eal, port: u16, name: String) -> Result<Device, DpdkError> {
    let failed = |error| DpdkError::Setup { device: name.clone(), step: "reading what it is", why: strerror(error) };
    let info = info(port).map_err(failed)?;
    let driver = match info.driver_name.is_null() {
        true => String::new(),
        // SAFETY: a static string of the driver.
        false => unsafe { CStr::from_ptr(info.driver_name) }.to_string_lossy().into_owned(),
    };
    Ok(Device {
        eal,
        port,
        name,
        driver,
        // `configure` says which.
        memory: Memory::Own(Own::none()),
        handle: info.device,
        mapped: None,
        gone: Box::default(),
        queues: 0,
        started: false,
        watched: false,
        listeners: Vec::new(),
    })
}

/// Configures and starts the device; gives back the transmit offloads that are on.
fn configure(device: &mut Device, options: &PortOptions, frames: &Arc<FramePool>) -> Result<u64, DpdkError> {
    let port = device.port;
    let info = info(port).map_err(|error| device.failed("reading what it is", error))?;
    let most = info.max_rx_queues.min(info.max_tx_queues).max(1);
    device.queues = options.queues.clamp(1, most);
    let own = NEEDS_OWN_MEMORY.contains(&device.driver.as_str());
    let room = if own { OWN_DATA } else { BUFFER - HEADROOM };
    let mut conf = sys::rte_eth_conf::default();
    let mtu = options.mtu.map(|mtu| u32::from(mtu).clamp(info.min_mtu.into(), info.max_mtu.into()));
    conf.rxmode.mtu = mtu.unwrap_or(0);
    conf.rxmode.offloads = sys::SG_OFFLOAD_RX_CHECKSUM & info.rx_offload_capa;
    if mtu.unwrap_or(1500) as usize + 18 > room {
        conf.rxmode.offloads |= sys::SG_OFFLOAD_RX_SCATTER & info.rx_offload_capa;
    }
    let checksums = sys::SG_OFFLOAD_TX_TCP_CKSUM | sys::SG_OFFLOAD_TX_UDP_CKSUM;
    let wanted = checksums | sys::SG_OFFLOAD_TX_IPV4_CKSUM | sys::SG_OFFLOAD_TX_TSO | sys::SG_OFFLOAD_TX_MULTI_SEGS;
    conf.txmode.offloads = wanted & info.tx_offload_capa;
    if device.sums_whole_frames_only() {
        conf.txmode.offloads &= !sys::SG_OFFLOAD_TX_TSO;
    }
    let mut key: Vec<u8> = SYMMETRIC_KEY.iter().copied().cycle().take(usize::from(info.hash_key_size)).collect();
    let rss = sys::SG_RSS_WANTED & info.flow_type_rss_offloads;
    if device.queues > 1 && rss != 0 {
        conf.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
        conf.rx_adv_conf.rss_conf.rss_hf = rss;
        if !key.is_empty() {
            conf.rx_adv_conf.rss_conf.rss_key = key.as_mut_ptr();
            conf.rx_adv_conf.rss_conf.rss_key_len = info.hash_key_size;
        }
    }
    let queues = device.queues;
    // SAFETY: an open port that is not started; the structure, and the key it names, are read within the call.
    device.check("setting it up", unsafe { sys::rte_eth_dev_configure(port, queues, queues, &raw const conf) })?;
    let (mut receive, mut send) = (options.ring, options.ring);
    // SAFETY: as above; the call changes the two locals.
    let sized = unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(port, &raw mut receive, &raw mut send) };
    device.check("sizing its rings", sized)?;
    device.memory = if own {
        let count = 4096 + usize::from(queues) * (usize::from(receive) + usize::from(send));
        let socket = device.socket();
        let in_one_piece = device.driver == "net_af_xdp";
        Memory::Own(if in_one_piece { Own::packed(count, socket)? } else { Own::new(count, socket)? })
    } else {
        Memory::Shared(Shared::of(frames)?)
    };
    device.map(frames, &info);
    let pool = device.pool();
    let socket = device.socket() as u32;
    for queue in 0..queues {
        // SAFETY: a configured port, queues below its number; no configuration means the driver's defaults with the port's
        // offloads; the mempool lives as long as the device (`Device::memory`).
        let made = unsafe { sys::rte_eth_rx_queue_setup(port, queue, receive, socket, std::ptr::null(), pool) };
        device.check("making a receive queue", made)?;
        // SAFETY: as above.
        let made = unsafe { sys::rte_eth_tx_queue_setup(port, queue, send, socket, std::ptr::null()) };
        device.check("making a transmit queue", made)?;
    }
    device.watch();
    // SAFETY: a port that is configured with all its queues.
    device.check("starting it", unsafe { sys::rte_eth_dev_start(port) })?;
    device.started = true;
    // Multicast carries neighbour discovery. What a driver cannot do of these it has no need of (virtual devices).
    // SAFETY: a started port.
    unsafe {
        sys::rte_eth_allmulticast_enable(port);
        if options.promiscuous {
            sys::rte_eth_promiscuous_enable(port);
        } else {
            sys::rte_eth_promiscuous_disable(port);
        }
    }
    Ok(conf.txmode.offloads)
}

fn capabilities(device: &Device, offloads: u64, mtu: u16) -> Capabilities {
    let both = sys::SG_OFFLOAD_TX_TCP_CKSUM | sys::SG_OFFLOAD_TX_UDP_CKSUM;
    let tx_checksum = offloads & both == both;
    let chained = offloads & sys::SG_OFFLOAD_TX_MULTI_SEGS != 0;
    let segments = tx_checksum && chained;
    let tso6 = segments && offloads & sys::SG_OFFLOAD_TX_TSO != 0;
    let tso4 = tso6 && offloads & sys::SG_OFFLOAD_TX_IPV4_CKSUM != 0;
    let longest = u32::from(mtu) + ETHERNET;
    let joined = matches!(device.memory, Memory::Own(_)) && longest as usize <= OWN_DATA;
    Capabilities {
        tx_checksum,
        tso4,
        tso6,
        chained: chained || joined,
        wants_coalescing: false,
        max_frame: if tso4 || tso6 { 65_535 + ETHERNET } else { longest },
    }
}

fn reason(device: &Device, capabilities: Capabilities) -> String {
    let mut reasons = Vec::new();
    if matches!(device.memory, Memory::Own(_)) {
        reasons.push(format!("copied: {} keeps packets in memory of its own", device.driver));
    }
    if !capabilities.tx_checksum {
        reasons.push("checksums in software: the device has no offload".to_owned());
    }
    if !device.eal.huge_pages() {
        reasons.push("headers on small pages: no huge pages are free".to_owned());
    }
    reasons.join("; ")
}

impl Device {
    pub(crate) fn pool(&self) -> *mut sys::rte_mempool {
        match &self.memory {
            Memory::Shared(shared) => shared.pool(),
            Memory::Own(own) => own.pool(),
        }
    }

    fn failed(&self, step: &'static str, error: c_int) -> DpdkError {
        let said = self.eal.take_log();
        let why = if said.is_empty() { strerror(error) } else { format!("{} ({said})", strerror(error)) };
        DpdkError::Setup { device: self.name.clone(), step, why }
    }

    fn check(&self, step: &'static str, result: c_int) -> Result<(), DpdkError> {
        if result < 0 { Err(self.failed(step, result)) } else { Ok(()) }
    }

    fn socket(&self) -> c_int {
        // SAFETY: an open port.
        unsafe { sys::rte_eth_dev_socket_id(self.port) }
    }

    /// Lets a card reach the frame pool through the IOMMU. Virtual devices need and know nothing of it.
    fn map(&mut self, frames: &FramePool, info: &sys::rte_eth_dev_info) {
        if !matches!(self.memory, Memory::Shared(_)) || self.name.parse::<PciAddress>().is_err() {
            return;
        }
        let (base, bytes) = frames.region();
        let base: *mut c_void = base.as_ptr().cast();
        // SAFETY: the region is mapped for the life of the process; registering it twice is refused and harmless. A driver
        // that maps memory by itself (mlx5) says that it cannot do this.
        unsafe {
            sys::rte_extmem_register(base, bytes, std::ptr::null_mut(), 0, 4096);
            if sys::rte_dev_dma_map(info.device, base, base.addr() as u64, bytes) == 0 {
                self.mapped = Some((base, bytes));
            }
        }
    }

    /// Has DPDK tell when the device is pulled out.
    fn watch(&mut self) {
        let gone: *const AtomicBool = &*self.gone;
        // SAFETY: the flag lives until the callback is unregistered in `drop`.
        self.watched = unsafe {
            sys::rte_eth_dev_callback_register(
                self.port,
                sys::RTE_ETH_EVENT_INTR_RMV,
                Some(removed),
                gone.cast_mut().cast(),
            )
        } == 0;
    }

    /// Whether checksums of chained frames must not be left to it.
    pub(crate) fn sums_whole_frames_only(&self) -> bool {
        OFFLOADS_BADLY.contains(&self.driver.as_str())
    }

    #[inline(always)]
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Has DPDK's event call us as a driver's would.
    pub(crate) fn note_removal(&self) {
        let gone: *const AtomicBool = &*self.gone;
        // SAFETY: what `watch` registered, called as DPDK calls it.
        unsafe { removed(self.port, sys::RTE_ETH_EVENT_INTR_RMV, gone.cast_mut().cast(), std::ptr::null_mut()) };
    }

    /// Asks the driver, which may not have told.
    pub(crate) fn look_for_removal(&self) -> bool {
        // SAFETY: an open port.
        if !self.is_gone() && unsafe { sys::rte_eth_dev_is_removed(self.port) } == 1 {
            self.gone.store(true, Ordering::Relaxed);
        }
        self.is_gone()
    }

    pub(crate) fn link(&self) -> Link {
        let mut link = sys::rte_eth_link::default();
        // SAFETY: an open port; the call fills the structure.
        if self.is_gone() || unsafe { sys::rte_eth_link_get_nowait(self.port, &raw mut link) } != 0 {
            return Link::default();
        }
        let megabits = if link.link_speed == u32::MAX { 0 } else { link.link_speed };
        Link { up: link.link_status() != 0, megabits }
    }

    /// Frames the device lost for want of room or memory.
    pub(crate) fn missed(&self) -> u64 {
        let mut stats = sys::rte_eth_stats::default();
        // SAFETY: an open port; the call fills the structure.
        if self.is_gone() || unsafe { sys::rte_eth_stats_get(self.port, &raw mut stats) } != 0 {
            return 0;
        }
        stats.imissed.saturating_add(stats.rx_nombuf)
    }

    fn xstats(&self) -> Vec<(String, u64)> {
        if self.is_gone() {
            return Vec::new();
        }
        // SAFETY: an open port; without room the call only counts.
        let count = unsafe { sys::rte_eth_xstats_get_names(self.port, std::ptr::null_mut(), 0) };
        let Ok(count) = u32::try_from(count) else { return Vec::new() };
        let mut names = vec![sys::rte_eth_xstat_name::default(); count as usize];
        let mut values = vec![sys::rte_eth_xstat::default(); count as usize];
        // SAFETY: both arrays have room for `count` elements.
        let filled = unsafe {
            let named = sys::rte_eth_xstats_get_names(self.port, names.as_mut_ptr(), count);
            named.min(sys::rte_eth_xstats_get(self.port, values.as_mut_ptr(), count))
        };
        let filled = usize::try_from(filled).unwrap_or(0).min(values.len());
        let text = |name: &sys::rte_eth_xstat_name| {
            let bytes = name.name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
            String::from_utf8(bytes).unwrap_or_default()
        };
        values[..filled].iter().filter_map(|v| Some((text(names.get(v.id as usize)?), v.value))).collect()
    }
}

/// DPDK's event thread says that a device is gone.
unsafe extern "C" fn removed(_port: u16, _event: u32, gone: *mut c_void, _: *mut c_void) -> c_int {
    // SAFETY: the flag that `watch` registered, which outlives the registration.
    unsafe { (*gone.cast::<AtomicBool>()).store(true, Ordering::Relaxed) };
    0
}

impl Drop for Device {
    fn drop(&mut self) {
        let _turn = self.eal.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: *const AtomicBool = &*self.gone;
        // SAFETY: an open port whose queues nobody polls any more: each held a reference to this. What it still holds it frees
        // into its mempool, which is alive. The device is not used afterwards.
        unsafe {
            if self.started {
                sys::rte_eth_dev_stop(self.port);
            }
            if self.watched {
                let event = sys::RTE_ETH_EVENT_INTR_RMV;
                sys::rte_eth_dev_callback_unregister(self.port, event, Some(removed), gone.cast_mut().cast());
            }
            sys::rte_eth_dev_close(self.port);
            if let Some((base, bytes)) = self.mapped {
                sys::rte_dev_dma_unmap(self.handle, base, base.addr() as u64, bytes);
            }
            sys::rte_dev_remove(self.handle);
        }
        self.listeners.iter().for_each(Listener::close);
    }
}
