//! DPDK's environment, started once a process from our own configuration.
//!
//! Owner: the control thread. DPDK starts on a thread of its own, since it pins the one it starts on; it gets one logical
//! core, which stands for all CPUs we may use, and never runs anything of ours: workers are our own threads. Nothing is
//! left behind on the machine (`--in-memory`, no telemetry socket). Cost: 0.2 to 0.4 s, most of it loading drivers.

use crate::error::DpdkError;
use crate::pci::PciAddress;
use sluice_dpdk_sys as sys;
use std::ffi::{CStr, CString, c_char};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Which pages DPDK's own memory (headers, descriptor rings; not frames) lies on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// Huge pages if any are free, else small ones.
    #[default]
    Auto,
    /// Huge pages, or an error.
    Huge,
    /// Small ones.
    Small,
}

/// How DPDK is to run.
#[derive(Clone, Debug)]
pub struct EalOptions {
    /// Cards that may be opened later; all others are left alone.
    pub cards: Vec<PciAddress>,
    /// Its memory.
    pub pages: Pages,
    /// Megabytes of it on small pages, taken as they are touched; huge pages are taken as they are needed.
    pub megabytes: u32,
}

impl Default for EalOptions {
    fn default() -> Self {
        EalOptions { cards: Vec::new(), pages: Pages::Auto, megabytes: 256 }
    }
}

/// The running environment.
#[derive(Debug)]
pub struct Eal {
    huge: bool,
    cards: Vec<PciAddress>,
    log: OwnedFd,
    /// Devices are probed and removed one at a time, so that what DPDK says is about one of them.
    pub(crate) turn: Mutex<()>,
}

static EAL: OnceLock<Result<Eal, DpdkError>> = OnceLock::new();

impl Eal {
    /// Starts DPDK, or gives back what an earlier call made: options count the first time only, as does an error, since
    /// DPDK cannot be started twice.
    pub fn start(options: &EalOptions) -> Result<&'static Eal, DpdkError> {
        EAL.get_or_init(|| start(options)).as_ref().map_err(Clone::clone)
    }

    /// Whether its memory lies on huge pages.
    pub fn huge_pages(&self) -> bool {
        self.huge
    }

    /// Whether a card was named at the start.
    pub(crate) fn allows(&self, card: PciAddress) -> bool {
        self.cards.contains(&card)
    }

    /// What DPDK and its drivers have said since the last call, at most a few thousand bytes; for errors and the log.
    pub fn take_log(&self) -> String {
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = rustix::io::read(&self.log, &mut buffer) {
            text.extend_from_slice(&buffer[..n]);
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    }

    /// Version of the library, such as `DPDK 22.11.11`.
    pub fn version() -> String {
        // SAFETY: a static string inside the library.
        unsafe { CStr::from_ptr(sys::rte_version()) }.to_string_lossy().into_owned()
    }
}

fn start(options: &EalOptions) -> Result<Eal, DpdkError> {
    let free = free_huge_bytes(Path::new("/sys/kernel/mm/hugepages"));
    let huge = match options.pages {
        Pages::Small => false,
        Pages::Huge => true,
        // Below that DPDK's own tables do not fit.
        Pages::Auto => free >= 32 << 20,
    };
    if let Some(card) = options.cards.first().filter(|_| !huge || free == 0) {
        return Err(DpdkError::NoHugePages(card.to_string()));
    }
    if huge && free == 0 {
        return Err(DpdkError::NoHugePages("(hugepages: required)".to_owned()));
    }
    let refused =
        |why: String| DpdkError::Start { why, mend: "`dpdk-testpmd -- --help` starts the same library and shows more" };
    let log = capture_log().map_err(|error| refused(error.to_string()))?;
    let mut arguments: Vec<String> = ["sluicegate", "--no-telemetry", "--iova-mode=va"].map(str::to_owned).to_vec();
    arguments.push(format!("--file-prefix=sluicegate-{}", std::process::id()));
    arguments.push(format!("--lcores=0@({})", cpus()));
    if huge {
        arguments.push("--in-memory".to_owned());
    } else {
        arguments.extend(["--no-huge".to_owned(), "--no-shconf".to_owned(), "-m".to_owned()]);
        arguments.push(options.megabytes.to_string());
    }
    match options.cards.as_slice() {
        [] => arguments.push("--no-pci".to_owned()),
        cards => cards.iter().for_each(|card| arguments.extend(["-a".to_owned(), card.to_string()])),
    }
    let starter = std::thread::Builder::new().name("dpdk-start".into()).spawn(move || init(arguments));
    let started = starter.map_err(|error| refused(error.to_string()))?.join();
    let eal = Eal { huge, cards: options.cards.clone(), log, turn: Mutex::new(()) };
    // Made whatever the options say, and empty with these.
    let _ = std::fs::remove_dir(format!("/var/run/dpdk/sluicegate-{}", std::process::id()));
    match started {
        Ok(Ok(())) => Ok(eal),
        Ok(Err(errno)) => {
            let said = eal.take_log();
            let mend = match errno {
                libc::EACCES | libc::EPERM => "run it as root, or with CAP_IPC_LOCK, CAP_SYS_ADMIN and CAP_NET_ADMIN",
                libc::ENOMEM => "hugepage-setup --check says how many pages are free, --apply reserves more",
                _ => "the lines above are DPDK's own; `dpdk-testpmd` with the same device shows more",
            };
            Err(DpdkError::Start { why: format!("{} ({said})", strerror(errno)), mend })
        }
        Err(_) => Err(refused("its thread panicked".to_owned())),
    }
}

fn init(arguments: Vec<String>) -> Result<(), i32> {
    let owned: Vec<CString> = arguments.into_iter().filter_map(|a| CString::new(a).ok()).collect();
    let mut pointers: Vec<*mut c_char> = owned.iter().map(|a| a.as_ptr().cast_mut()).collect();
    let count = pointers.len() as i32;
    pointers.push(std::ptr::null_mut());
    // DPDK keeps pointers to its arguments.
    std::mem::forget(owned);
    // SAFETY: `count` strings and a null pointer behind them, the strings leaked above; called once (the OnceLock).
    let used = unsafe { sys::rte_eal_init(count, pointers.as_mut_ptr()) };
    // SAFETY: reads a thread-local number.
    if used < 0 { Err(unsafe { sys::sg_errno() }) } else { Ok(()) }
}

/// Makes DPDK write its log into a pipe; what nobody reads is lost beyond the pipe's size, and nobody waits.
fn capture_log() -> std::io::Result<OwnedFd> {
    let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
    let (reader, writer) = rustix::pipe::pipe_with(flags)?;
    // SAFETY: the descriptor is open and given away here; the mode is a constant string.
    let stream = unsafe { libc::fdopen(writer.into_raw_fd(), c"w".as_ptr()) };
    if stream.is_null() {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a stream just opened, never closed; line buffering needs no buffer of ours. DPDK's FILE is libc's.
    unsafe {
        libc::setvbuf(stream, std::ptr::null_mut(), libc::_IOLBF, 0);
        sys::rte_openlog_stream(stream.cast());
    }
    Ok(reader)
}

/// CPUs of this process, as DPDK writes lists.
fn cpus() -> String {
    let set = rustix::thread::sched_getaffinity(None).ok();
    let usable = |cpu: &usize| set.as_ref().is_none_or(|set| set.is_set(*cpu));
    let list: Vec<String> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(usable).take(128).map(|cpu| cpu.to_string()).collect();
    if list.is_empty() { "0".to_owned() } else { list.join(",") }
}

/// Free huge pages of all sizes, in bytes.
fn free_huge_bytes(folder: &Path) -> u64 {
    let Ok(sizes) = std::fs::read_dir(folder) else { return 0 };
    let bytes = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let free: u64 = std::fs::read_to_string(entry.path().join("free_hugepages")).ok()?.trim().parse().ok()?;
        Some(kilobytes * 1024 * free)
    };
    sizes.filter_map(|entry| bytes(entry.ok()?)).sum()
}

/// The text of a DPDK or system error number, either sign.
pub(crate) fn strerror(errno: i32) -> String {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: rte_strerror gives a string in a buffer of this thread, valid until its next call here; copied at once.
    unsafe { CStr::from_ptr(sys::rte_strerror(errno.abs())) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_huge_pages_of_all_sizes_add_up() {
        let root = std::env::temp_dir().join(format!("sg-huge-{}", std::process::id()));
        for (size, free) in [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "1\n"), ("other", "9\n")] {
            std::fs::create_dir_all(root.join(size)).unwrap();
            std::fs::write(root.join(size).join("free_hugepages"), free).unwrap();
        }
        assert_eq!(free_huge_bytes(&root), (1 << 30) + (6 << 20));
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(free_huge_bytes(&root), 0);
    }

    #[test]
    fn a_card_without_huge_pages_is_refused_before_dpdk_is_asked() {
        let options =
            EalOptions { cards: vec!["3b:00.2".parse().unwrap()], pages: Pages::Small, ..EalOptions::default() };
        let error = start(&options).unwrap_err();
        assert_eq!(error, DpdkError::NoHugePages("0000:3b:00.2".into()));
        assert!(error.to_string().contains("hugepage-setup --apply"));
    }
}
