//! The XDP steering program on one interface: loaded, attached, and its tables kept as wanted.
//!
//! Runs on the control thread, in the interface's network namespace while attaching. Source: `bpf/sluice.bpf.c`, which
//! says what is steered; Documentation/bpf/map_xskmap.rst.
//! Attached by a BPF link, which the kernel removes when the process ends, however it ends; or, for an uplink, to last:
//! see [`Program::lasting`] and `lasting.rs`.
//! Each setter takes the whole wanted state and changes only what differs, additions first, so that traffic of what
//! stays is never missed.

use crate::attach::{AttachMode, Attached, attach, load_error, program_error};
use crate::device::{Device, DeviceError, Interface};
use crate::lasting::{self, Found, Predecessor};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, XskMap};
use aya::programs::Xdp;
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice.bpf.o"));

const ADDRESS_NODE: u32 = 1;
const ADDRESS_OWNED: u32 = 2;
const CONFIG_STEER_ALL: u32 = 1;
/// Queues an interface may have (`xsks` in the object).
const MAX_QUEUES: u32 = 64;

/// Why the program is not on the interface, or a table not as wanted. Every message names what would mend it.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No such interface, or it cannot be described.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// CAP_BPF or CAP_NET_ADMIN is missing.
    #[error("no permission to load XDP programs; run as root or grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Permission,
    /// The kernel refused the program or a map of it.
    #[error("the kernel refuses the XDP program: {0}")]
    Load(String),
    /// Another program is on the interface.
    #[error(
        "another XDP program is attached to {0}; `ip link set dev {0} xdp off` removes it, `ip link show {0}` names it"
    )]
    Occupied(String),
    /// Neither mode could be attached.
    #[error("no XDP program can be attached to {device}: native: {native}; generic: {generic}")]
    Attach {
        /// Interface name.
        device: String,
        /// Why not in the driver; empty if that was not tried.
        native: String,
        /// Why not in the stack; empty if that was not tried.
        generic: String,
    },
    /// The kernel is too old for BPF links on interfaces.
    #[error("this kernel cannot attach XDP programs by BPF link; Linux 5.9 or newer is needed")]
    NoLink,
    /// A table could not be changed.
    #[error("XDP table `{table}` of {device}: {source}")]
    Table {
        /// Interface name.
        device: String,
        /// Which table.
        table: &'static str,
        /// The kernel's answer.
        source: MapError,
    },
    /// The program was attached without steering tables.
    #[error("the XDP program on {0} steers everything; it has no tables")]
    NoTables(String),
}

/// What the program needs to know besides addresses and NodePorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Steering {
    /// UDP port of the overlay; `None` while there is none.
    pub vxlan_port: Option<u16>,
    /// First and last port used for SNAT on the node's addresses.
    pub snat_ports: Option<(u16, u16)>,
    /// Everything is ours, whatever the tables say.
    pub steer_all: bool,
}

impl Steering {
    /// `struct config` of the object.
    fn bytes(&self) -> [u8; 12] {
        let (low, high) = self.snat_ports.unwrap_or((1, 0));
        let mut bytes = [0; 12];
        bytes[0..2].copy_from_slice(&self.vxlan_port.unwrap_or(0).to_be_bytes());
        bytes[2..4].copy_from_slice(&low.to_ne_bytes());
        bytes[4..6].copy_from_slice(&high.to_ne_bytes());
        bytes[8..12].copy_from_slice(&if self.steer_all { CONFIG_STEER_ALL } else { 0 }.to_ne_bytes());
        bytes
    }
}

/// Packets the program has decided on, over all queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Verdicts {
    /// Left to the kernel.
    pub passed: u64,
    /// Given to one of our sockets.
    pub redirected: u64,
    /// Ours, but there was no socket: dropped, so that the kernel does not answer for us.
    pub guarded: u64,
}

/// The tables that say what is ours; absent where everything is.
struct Tables {
    addresses: HashMap<MapData, [u8; 16], u32>,
    ports: HashMap<MapData, [u8; 4], u8>,
    config: Array<MapData, [u8; 12]>,
    /// The wanted sets, by who asked for them.
    node: BTreeSet<[u8; 16]>,
    owned: BTreeSet<[u8; 16]>,
    /// What the kernel has now.
    address_flags: BTreeMap<[u8; 16], u32>,
    port_keys: BTreeSet<[u8; 4]>,
    steering: Steering,
}

impl Tables {
    /// Takes the tables of a loaded object, before any packet is looked at.
    fn new(device: &Device, ebpf: &mut Ebpf) -> Result<Tables, ProgramError> {
        let mut config: Array<MapData, [u8; 12]> = table(device, ebpf, "config")?;
        let steering = Steering::default();
        config.set(0, steering.bytes(), 0).map_err(|e| table_error(device, "config", e))?;
        Ok(Tables {
            addresses: table(device, ebpf, "local_addrs")?,
            ports: table(device, ebpf, "ports")?,
            config,
            node: BTreeSet::new(),
            owned: BTreeSet::new(),
            address_flags: BTreeMap::new(),
            port_keys: BTreeSet::new(),
            steering,
        })
    }
}

/// What keeps a program on its interface.
enum Hold {
    /// This value: dropping it takes the program off.
    Link(#[expect(dead_code, reason = "held for its drop")] FdLink),
    /// The interface: the program stays when the process ends.
    Interface,
    /// Nothing yet: the program of an earlier process is to be replaced by this one.
    Successor(Predecessor, OwnedFd),
}

/// The program on one interface. Dropping it takes it off, unless it was attached to last.
pub struct Program {
    device: Device,
    attached: Attached,
    reason: String,
    xsks: XskMap<MapData>,
    guard: Array<MapData, u64>,
    verdicts: PerCpuArray<MapData, u64>,
    tables: Option<Tables>,
    hold: Hold,
}

/// Name of the program for shared interfaces, by which a later process knows it.
pub(crate) const NAME: &str = "sluice";

impl Program {
    /// Loads and attaches the program with empty tables: until they are set, the kernel gets every packet.
    pub fn attach<'a>(interface: impl Into<Interface<'a>>, mode: AttachMode) -> Result<Program, ProgramError> {
        Program::load(Device::find(interface)?, mode, Wish::Tables)
    }

    /// As [`attach`](Self::attach), but the program stays on the interface when this process ends, and keeps dropping what
    /// is ours until [`guard`](Self::guard) runs out or a later process takes over. One that an earlier process left is
    /// replaced by [`take_over`](Self::take_over): until then it goes on as it is, so sockets and tables can be made ready.
    pub fn lasting<'a>(interface: impl Into<Interface<'a>>, mode: AttachMode) -> Result<Program, ProgramError> {
        Program::load(Device::find(interface)?, mode, Wish::Lasting)
    }

    /// Takes a lasting program off an interface, whoever left it there; `false` if there is none of ours.
    pub fn remove<'a>(interface: impl Into<Interface<'a>>) -> Result<bool, ProgramError> {
        let device = Device::find(interface)?;
        match lasting::look(&device)? {
            Found::Ours(predecessor) => lasting::take_off(&device, &predecessor).map(|()| true),
            Found::Nothing | Found::Foreign => Ok(false),
        }
    }

    /// Loads and attaches the program with everything steered to us and no tables: for pod interfaces, of which there
    /// are many. A smaller program: attaching takes some 25 ms, nearly all of it in reading the kernel's BTF.
    pub fn attach_all<'a>(interface: impl Into<Interface<'a>>, mode: AttachMode) -> Result<Program, ProgramError> {
        Program::load(Device::find(interface)?, mode, Wish::Everything)
    }

    fn load(device: Device, mode: AttachMode, wish: Wish) -> Result<Program, ProgramError> {
        let everything = wish == Wish::Everything;
        let mut loader = EbpfLoader::new();
        if everything {
            for table in ["local_addrs", "ports", "fragments"] {
                loader.map_max_entries(table, 1);
            }
        }
        let mut ebpf = loader.load(OBJECT).map_err(load_error)?;
        let tables = if everything { None } else { Some(Tables::new(&device, &mut ebpf)?) };
        let xsks = table(&device, &mut ebpf, "xsks")?;
        let guard = table(&device, &mut ebpf, "guard")?;
        let verdicts = table(&device, &mut ebpf, "verdicts")?;
        let name = if everything { "sluice_all" } else { NAME };
        let program: &mut Xdp = ebpf
            .program_mut(name)
            .ok_or_else(|| ProgramError::Load(format!("the object has no program `{name}`")))?
            .try_into()
            .map_err(program_error)?;
        program.load().map_err(program_error)?;
        let (hold, attached, reason) = if wish == Wish::Lasting {
            let fd = program.fd().map_err(program_error)?;
            lasting_hold(&device, fd.as_fd(), mode)?
        } else {
            let (link, attached, reason) = attach(program, &device, mode)?;
            (Hold::Link(link), attached, reason)
        };
        Ok(Program { device, attached, reason, xsks, guard, verdicts, tables, hold })
    }

    /// Puts this program in the place of the one that an earlier process left: from here on packets come to its sockets.
    /// Nothing to do where there was none.
    pub fn take_over(&mut self) -> Result<(), ProgramError> {
        if let Hold::Successor(predecessor, fd) = &self.hold {
            lasting::replace(&self.device, predecessor, fd.as_fd())?;
            self.hold = Hold::Interface;
        }
        Ok(())
    }

    /// For how long, from now, what is ours is dropped while no socket takes it; zero: not at all.
    pub fn guard(&mut self, time: Duration) -> Result<(), ProgramError> {
        let until = if time.is_zero() { 0 } else { monotonic() + time.as_nanos() as u64 };
        self.guard.set(0, until, 0).map_err(|e| table_error(&self.device, "guard", e))
    }

    /// The interface, as it was when the program was attached.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Where the program runs.
    pub fn attached(&self) -> Attached {
        self.attached
    }

    /// Why it does not run in the driver; empty if it does or was not meant to.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Replaces the addresses that we share with the kernel (the node's InternalIPs).
    pub fn set_node_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), ProgramError> {
        self.tables()?.node = addresses.iter().map(address_key).collect();
        self.sync_addresses()
    }

    /// Replaces the addresses that are ours alone (VIPs, egress addresses): all their packets, ARP and ND included.
    pub fn set_owned_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), ProgramError> {
        self.tables()?.owned = addresses.iter().map(address_key).collect();
        self.sync_addresses()
    }

    /// Replaces the NodePorts: IP protocol number and port.
    pub fn set_node_ports(&mut self, ports: &[(u8, u16)]) -> Result<(), ProgramError> {
        let device = self.device.clone();
        let failed = |e| table_error(&device, "ports", e);
        let tables = self.tables()?;
        let wanted: BTreeSet<[u8; 4]> = ports
            .iter()
            .map(|(protocol, port)| {
                let [high, low] = port.to_be_bytes();
                [*protocol, 0, high, low]
            })
            .collect();
        for key in &wanted {
            if !tables.port_keys.contains(key) {
                tables.ports.insert(key, 1, 0).map_err(failed)?;
                tables.port_keys.insert(*key);
            }
        }
        for key in tables.port_keys.difference(&wanted).copied().collect::<Vec<_>>() {
            removed(tables.ports.remove(&key)).map_err(failed)?;
            tables.port_keys.remove(&key);
        }
        Ok(())
    }

    /// Replaces the configuration.
    pub fn set_config(&mut self, steering: Steering) -> Result<(), ProgramError> {
        let device = self.device.clone();
        let tables = self.tables()?;
        if steering != tables.steering {
            tables.config.set(0, steering.bytes(), 0).map_err(|e| table_error(&device, "config", e))?;
            tables.steering = steering;
        }
        Ok(())
    }

    /// Gives queue `queue`'s packets to the socket; it must be bound to that queue of this interface. The kernel
    /// removes the entry when the socket is closed.
    pub fn register(&mut self, queue: u32, socket: impl AsFd) -> Result<(), ProgramError> {
        self.xsks.set(queue, socket.as_fd().as_raw_fd(), 0).map_err(|e| table_error(&self.device, "xsks", e))
    }

    /// Leaves queue `queue`'s packets to the kernel again.
    pub fn unregister(&mut self, queue: u32) -> Result<(), ProgramError> {
        removed(self.xsks.unset(queue)).map_err(|e| table_error(&self.device, "xsks", e))
    }

    /// What the program has decided so far. One system call; for metrics and for the [`Watchdog`](crate::Watchdog).
    pub fn verdicts(&self) -> Result<Verdicts, ProgramError> {
        let read = |at| {
            self.verdicts
                .get(&at, 0)
                .map(|per_cpu| per_cpu.iter().sum())
                .map_err(|e| table_error(&self.device, "verdicts", e))
        };
        Ok(Verdicts { passed: read(0)?, redirected: read(1)?, guarded: read(2)? })
    }

    fn tables(&mut self) -> Result<&mut Tables, ProgramError> {
        self.tables.as_mut().ok_or_else(|| ProgramError::NoTables(self.device.name.clone()))
    }

    fn sync_addresses(&mut self) -> Result<(), ProgramError> {
        let device = self.device.clone();
        let failed = |e| table_error(&device, "local_addrs", e);
        let tables = self.tables()?;
        let mut wanted: BTreeMap<[u8; 16], u32> = BTreeMap::new();
        for key in &tables.node {
            *wanted.entry(*key).or_default() |= ADDRESS_NODE;
        }
        for key in &tables.owned {
            *wanted.entry(*key).or_default() |= ADDRESS_OWNED;
        }
        for (key, flags) in &wanted {
            if tables.address_flags.get(key) != Some(flags) {
                tables.addresses.insert(key, flags, 0).map_err(failed)?;
                tables.address_flags.insert(*key, *flags);
            }
        }
        let gone: Vec<_> = tables.address_flags.keys().filter(|k| !wanted.contains_key(*k)).copied().collect();
        for key in gone {
            removed(tables.addresses.remove(&key)).map_err(failed)?;
            tables.address_flags.remove(&key);
        }
        Ok(())
    }
}

/// What is to be loaded, and how it is to be held.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Tables,
    Lasting,
    Everything,
}

/// Attaches to last, or finds whom to succeed. A predecessor in the wrong place is taken off first.
fn lasting_hold(
    device: &Device,
    program: BorrowedFd<'_>,
    mode: AttachMode,
) -> Result<(Hold, Attached, String), ProgramError> {
    match lasting::look(device)? {
        Found::Foreign => return Err(ProgramError::Occupied(device.name.clone())),
        Found::Ours(predecessor) => {
            let suits = match mode {
                AttachMode::Auto => true,
                AttachMode::Native => predecessor.attached == Attached::Native,
                AttachMode::Generic => predecessor.attached == Attached::Generic,
            };
            if suits {
                let reason = match (predecessor.attached, mode) {
                    (Attached::Native, _) => "",
                    (Attached::Generic, AttachMode::Generic) => "generic XDP was asked for",
                    (Attached::Generic, _) => "generic XDP taken over from the last run",
                };
                let attached = predecessor.attached;
                let own = program.try_clone_to_owned().map_err(|e| ProgramError::Load(e.to_string()))?;
                return Ok((Hold::Successor(predecessor, own), attached, reason.to_owned()));
            }
            lasting::take_off(device, &predecessor)?;
        }
        Found::Nothing => {}
    }
    let (attached, reason) = lasting::put_on(device, program, mode)?;
    Ok((Hold::Interface, attached, reason))
}

/// Nanoseconds of the clock that the kernel's programs read.
fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// `struct address` of the object: IPv4 as `::ffff:a.b.c.d`.
fn address_key(address: &IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Removing what is not there is done already.
fn removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn table<T: TryFrom<Map, Error = MapError>>(
    device: &Device,
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, ProgramError> {
    let map = ebpf.take_map(name).ok_or_else(|| ProgramError::Load(format!("the object has no map `{name}`")))?;
    T::try_from(map).map_err(|e| table_error(device, name, e))
}

fn table_error(device: &Device, table: &'static str, source: MapError) -> ProgramError {
    ProgramError::Table { device: device.name.clone(), table, source }
}

/// The number of queues that can be registered on one interface.
pub(crate) const fn max_queues() -> u32 {
    MAX_QUEUES
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn the_configuration_is_laid_out_as_the_program_reads_it() {
        let steering = Steering { vxlan_port: Some(4789), snat_ports: Some((40000, 57343)), steer_all: false };
        let bytes = steering.bytes();
        assert_eq!(bytes[0..2], 4789u16.to_be_bytes());
        assert_eq!(bytes[2..4], 40000u16.to_ne_bytes());
        assert_eq!(bytes[4..6], 57343u16.to_ne_bytes());
        assert_eq!(bytes[6..12], [0; 6]);
    }

    #[test]
    fn no_snat_ports_are_an_empty_range() {
        let bytes = Steering::default().bytes();
        let low = u16::from_ne_bytes([bytes[2], bytes[3]]);
        let high = u16::from_ne_bytes([bytes[4], bytes[5]]);
        assert!(low > high);
    }

    #[test]
    fn addresses_of_both_families_share_one_key_space() {
        assert_eq!(
            address_key(&IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]
        );
        assert_eq!(address_key(&IpAddr::V6(Ipv6Addr::LOCALHOST))[15], 1);
    }

    #[test]
    fn the_committed_object_was_made_from_these_sources() {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for source in [include_bytes!("../bpf/kernel.h").as_slice(), include_bytes!("../bpf/sluice.bpf.c")] {
            for byte in source {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        let recorded = include_str!("../bpf/sluice.bpf.digest").trim();
        assert_eq!(recorded, format!("{hash:016x}"), "renew it: SLUICE_BPF_COMMIT=1 cargo build -p sluice-afxdp");
    }

    /// Needs root: the committed object is what hosts without clang load.
    #[test]
    fn the_committed_object_is_accepted_by_the_kernel() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        static COMMITTED: &[u8] = include_bytes_aligned!("../bpf/sluice.bpf.o");
        let mut ebpf = EbpfLoader::new().load(COMMITTED).unwrap();
        for name in ["sluice", "sluice_all"] {
            let program: &mut Xdp = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
    }
}
