//! Where flow tables lie, so that the next process finds its flows: one file for each worker and family, in memory; and beside
//! them one with the clients of Services that keep their backends.
//!
//! Runs on the control thread before workers start. A file that this program cannot use (another version's, another boot's,
//! other port numbers) is said in one line and replaced by an empty one. Without a place for files the tables are plain
//! memory, and `sluice status` says so.

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock, fstat, statfs};
use sluice_engine::Strays;
use sluice_engine::affinity::{Affinity, Bucket, CLIENTS, ClientsHeader};
use sluice_engine::flow::layout::ENTRIES_AT;
use sluice_engine::flow::{Entry, Entry4, Entry6, FlowTable, Header};
use sluice_port::Mapped;
use std::collections::BTreeSet;
use std::fs::{DirBuilder, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// File systems whose files are memory: tmpfs, ramfs, hugetlbfs (linux/magic.h).
const IN_MEMORY: [u32; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];
/// The file of the clients of Services.
const CLIENTS_FILE: &str = "clients";
const SHARED_MEMORY: &str = "/dev/shm";

/// Flow tables of one worker.
pub type Tables = (FlowTable<Entry4>, FlowTable<Entry6>);

/// What the tables' files are for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Number of workers.
    pub workers: u16,
    /// Connections that each table can hold.
    pub pairs: usize,
    /// Identity of the list that port numbers were given out by.
    pub ports: u64,
    /// Seed of the flow hash, where no table brings one.
    pub seed: u64,
}

/// Tables, opened.
pub struct Opened {
    /// By worker.
    pub tables: Vec<Tables>,
    /// Connections of workers that are no more.
    pub strays: Strays,
    /// Pairs among those that did not prove themselves.
    pub torn: u32,
    /// Seed of the flow hash.
    pub seed: u64,
    /// Why flows will not survive a restart; none if they will.
    pub problem: Option<String>,
    surplus: Vec<PathBuf>,
}

impl Opened {
    /// To be called when the strays have found their places: files of workers that are no more go.
    pub fn forget_surplus(&mut self) {
        for path in self.surplus.drain(..) {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove the table of a worker that is no more");
            }
        }
    }
}

/// The folder: as configured, else beside the socket if that is in memory, else in `/dev/shm` under the socket's name.
pub fn folder(configured: Option<&Path>, socket: &Path) -> PathBuf {
    if let Some(path) = configured {
        return path.to_owned();
    }
    let beside = socket.with_extension("flows");
    if is_in_memory(&beside) || !is_in_memory(Path::new(SHARED_MEMORY)) {
        return beside;
    }
    let name = beside.to_string_lossy().trim_start_matches('/').replace('/', "-");
    Path::new(SHARED_MEMORY).join(name)
}

/// Whether what is made at a path will be memory.
fn is_in_memory(path: &Path) -> bool {
    let there = path.ancestors().find(|p| p.exists());
    there.and_then(|p| statfs(p).ok()).is_some_and(|fs| IN_MEMORY.contains(&(fs.f_type as u32)))
}

/// Opens the tables in a folder, or makes them.
pub fn open(folder: &Path, wanted: Wanted) -> Result<Opened> {
    match boot_id().and_then(|boot| open_in(folder, &wanted, boot)) {
        Ok(opened) => Ok(opened),
        Err(error) => {
            let problem = format!("flow tables are not in files, flows end with this process: {error:#}");
            tracing::error!("{problem}");
            let table = || Ok::<_, anyhow::Error>((plain(&wanted)?, plain(&wanted)?));
            let tables = (0..wanted.workers).map(|_| table()).collect::<Result<_>>()?;
            let (strays, surplus) = (Strays::default(), Vec::new());
            Ok(Opened { tables, strays, torn: 0, seed: wanted.seed, problem: Some(problem), surplus })
        }
    }
}

/// Clients of Services and their backends, from a folder's file or in a new one; in plain memory where there can be none.
pub fn clients(folder: &Path) -> Affinity {
    match boot_id().and_then(|boot| clients_in(folder, boot)) {
        Ok(clients) => clients,
        Err(error) => {
            tracing::warn!("clients of Services with sessionAffinity are forgotten with this process: {error:#}");
            Affinity::default()
        }
    }
}

fn clients_in(folder: &Path, boot: [u8; 16]) -> Result<Affinity> {
    make(folder)?;
    let path = folder.join(CLIENTS_FILE);
    let mine = ClientsHeader::new(boot);
    let mut file = File::open(&path)?;
    let found = Mapped::<ClientsHeader>::in_file(file.fd.try_clone()?, 0, 1)?.first().copied();
    if found.is_some_and(|found| found != mine) {
        tracing::warn!(path = %path.display(), "another version's or another boot's clients; they are chosen anew");
        std::fs::remove_file(&path)?;
        file = File::open(&path)?;
    }
    let mut header = Mapped::<ClientsHeader>::in_file(file.fd.try_clone()?, 0, 1)?;
    anyhow::ensure!(header.reserve(1), "no room for {}", path.display());
    header[0] = mine;
    let count = Affinity::buckets_for(CLIENTS);
    // The lock goes with the last descriptor, which the mapping keeps.
    let mut buckets = Mapped::<Bucket>::in_file(file.fd, ClientsHeader::BUCKETS_AT, count)?;
    anyhow::ensure!(buckets.reserve(count), "no room for {}", path.display());
    Affinity::over(buckets).context("the clients' file has another size")
}

/// Removes the tables of a folder, and the folder if nothing else is in it.
pub fn remove(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for (_, _, path) in tables_in(folder)? {
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    match std::fs::remove_file(folder.join(CLIENTS_FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("cannot remove the clients of Services");
        }
        _ => {}
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn plain<E: Entry>(wanted: &Wanted) -> Result<FlowTable<E>> {
    Ok(FlowTable::new(wanted.pairs, wanted.seed, true)?)
}

/// The kernel's run.
fn boot_id() -> Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the boot's id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    Ok(u128::from_str_radix(&digits, 16).context("the boot's id is no number")?.to_be_bytes())
}

/// Family, worker and path of each table in a folder.
fn tables_in(folder: &Path) -> Result<Vec<(u32, u16, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let named = name.to_str().and_then(|name| name.strip_prefix('v')).and_then(|name| name.split_once('-'));
        if let Some((family @ ("4" | "6"), worker)) = named
            && let (Ok(family), Ok(worker)) = (family.parse(), worker.parse())
        {
            found.push((family, worker, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn make(folder: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    Ok(())
}

fn open_in(folder: &Path, wanted: &Wanted, boot: [u8; 16]) -> Result<Opened> {
    make(folder)?;
    if !is_in_memory(folder) {
        tracing::warn!(
            folder = %folder.display(),
            "flow tables lie on a disk, which is slow; set flows.path to a folder on a tmpfs"
        );
    }
    let mut refused = BTreeSet::new();
    let mut files = Vec::new();
    for (family, worker, path) in tables_in(folder)? {
        let file = File::open(&path)?;
        let mine = match family {
            4 => Header::new::<Entry4>(worker, wanted.workers, boot, wanted.ports, wanted.seed),
            _ => Header::new::<Entry6>(worker, wanted.workers, boot, wanted.ports, wanted.seed),
        };
        match file.header()?.map(|header| header.check(&mine).map(|()| header.seed)) {
            Some(Ok(seed)) => files.push((family, worker, file, seed)),
            Some(Err(why)) => {
                refused.insert(why.to_string());
                std::fs::remove_file(&path)?;
            }
            None => std::fs::remove_file(&path)?,
        }
    }
    for why in refused {
        tracing::warn!(folder = %folder.display(), "the flow table is not used: {why}; starting without its flows");
    }
    let seed = files.first().map_or(wanted.seed, |(.., seed)| *seed);
    let mut take =
        |family, worker| files.iter().position(|f| (f.0, f.1) == (family, worker)).map(|at| files.swap_remove(at).2);
    let mut tables = Vec::new();
    for worker in 0..wanted.workers {
        let mut of = |family: u32| match take(family, worker) {
            Some(file) => Ok(file),
            None => File::open(&folder.join(format!("v{family}-{worker}"))),
        };
        let header4 = Header::new::<Entry4>(worker, wanted.workers, boot, wanted.ports, seed);
        let header6 = Header::new::<Entry6>(worker, wanted.workers, boot, wanted.ports, seed);
        tables.push((of(4)?.table(header4, wanted.pairs)?, of(6)?.table(header6, wanted.pairs)?));
    }
    let (mut strays, mut torn, mut surplus) = (Strays::default(), 0, Vec::new());
    for (family, worker, file, _) in files {
        surplus.push(file.path.clone());
        torn += match family {
            4 => strays.collect4(worker, &file.entries(0)?),
            _ => strays.collect6(worker, &file.entries(0)?),
        };
    }
    Ok(Opened { tables, strays, torn, seed, problem: None, surplus })
}

/// A table's file, locked.
struct File {
    path: PathBuf,
    fd: OwnedFd,
}

impl File {
    fn open(path: &Path) -> Result<File> {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("{} is in use by another process", path.display()))?;
        Ok(File { path: path.to_owned(), fd: file.into() })
    }

    /// Its header; none where the file is empty.
    fn header(&self) -> Result<Option<Header>> {
        let mapped = Mapped::<Header>::in_file(self.fd.try_clone()?, 0, 1)?;
        Ok(mapped.first().copied())
    }

    /// Its entries, with room for at least so many connections.
    fn entries<E: Entry>(&self, pairs: usize) -> Result<Mapped<E>> {
        let held = u64::try_from(fstat(&self.fd)?.st_size).unwrap_or(0).saturating_sub(ENTRIES_AT);
        let held = usize::try_from(held).unwrap_or(0) / size_of::<E>() / 2;
        Ok(Mapped::in_file(self.fd.try_clone()?, ENTRIES_AT, pairs.max(held) * 2)?)
    }

    fn table<E: Entry>(self, header: Header, pairs: usize) -> Result<FlowTable<E>> {
        let mut mapped = Mapped::<Header>::in_file(self.fd.try_clone()?, 0, 1)?;
        anyhow::ensure!(mapped.reserve(1), "no room for {}", self.path.display());
        mapped[0] = header;
        Ok(FlowTable::over(self.entries(pairs)?, pairs, header.seed, true)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(workers: u16) -> Wanted {
        Wanted { workers, pairs: 64, ports: 5, seed: 1 }
    }

    fn names(folder: &Path) -> Vec<String> {
        let all = tables_in(folder).unwrap().into_iter();
        all.map(|(_, _, path)| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_folder_is_beside_the_socket_or_in_shared_memory_under_its_name() {
        let configured = folder(Some(Path::new("/somewhere")), Path::new("/run/a.sock"));
        assert_eq!(configured, Path::new("/somewhere"));
        assert_eq!(folder(None, Path::new("/dev/shm/x/a.sock")), Path::new("/dev/shm/x/a.flows"));
        if is_in_memory(Path::new(SHARED_MEMORY)) {
            assert_eq!(folder(None, Path::new("/proc/x/a.sock")), Path::new("/dev/shm/proc-x-a.flows"));
        }
    }

    #[test]
    fn tables_are_made_found_again_with_their_seed_and_refused_for_another_boot() {
        let dir = tempfile::tempdir_in(SHARED_MEMORY).unwrap();
        let place = dir.path().join("flows");
        let first = open_in(&place, &wanted(2), [1; 16]).unwrap();
        assert_eq!((first.tables.len(), first.seed), (2, 1));
        assert!(open_in(&place, &wanted(2), [1; 16]).is_err(), "they are locked");
        drop(first);
        let again = open_in(&place, &Wanted { seed: 9, ..wanted(2) }, [1; 16]).unwrap();
        assert_eq!(again.seed, 1);
        drop(again);
        let other = open_in(&place, &Wanted { seed: 9, ..wanted(2) }, [2; 16]).unwrap();
        assert_eq!(other.seed, 9);
        drop(other);
        std::fs::write(place.join("keep"), b"").unwrap();
        remove(&place).unwrap();
        assert!(names(&place).is_empty() && place.join("keep").exists());
        std::fs::remove_file(place.join("keep")).unwrap();
        remove(&place).unwrap();
        remove(&place).unwrap();
        assert!(!place.exists());
    }

    #[test]
    fn clients_are_found_again_and_those_of_another_boot_are_not() {
        let dir = tempfile::tempdir_in(SHARED_MEMORY).unwrap();
        let who = sluice_engine::affinity::Client::new(7, 9);
        let first = clients_in(dir.path(), [1; 16]).unwrap();
        first.remember(who, 5, 100);
        assert!(clients_in(dir.path(), [1; 16]).is_err(), "they are locked");
        drop(first);
        let again = clients_in(dir.path(), [1; 16]).unwrap();
        assert_eq!(again.recall(who, 110, 60), Some(5));
        drop(again);
        assert_eq!(clients_in(dir.path(), [2; 16]).unwrap().recall(who, 110, 60), None);
        remove(dir.path()).unwrap();
        assert!(!dir.path().exists());
    }

    #[test]
    fn tables_of_workers_that_are_no_more_go_once_their_flows_have_moved() {
        let dir = tempfile::tempdir_in(SHARED_MEMORY).unwrap();
        drop(open_in(dir.path(), &wanted(3), [1; 16]).unwrap());
        let mut fewer = open_in(dir.path(), &wanted(1), [1; 16]).unwrap();
        assert_eq!((fewer.tables.len(), names(dir.path()).len()), (1, 6));
        fewer.forget_surplus();
        assert_eq!(names(dir.path()), ["v4-0", "v6-0"]);
    }

    #[test]
    fn where_no_file_can_be_made_the_tables_are_plain_memory_and_it_is_said() {
        let opened = open(Path::new("/proc/no/such/place"), wanted(1)).unwrap();
        assert_eq!(opened.tables.len(), 1);
        assert!(opened.problem.unwrap().contains("/proc/no/such/place"));
    }
}
