//! Carries a plan out, and takes it back.
//!
//! Invariants: a number is read again right before it is raised and never lowered by an apply; an undo takes only pages that
//! an apply added and that nobody uses; the record is written after every change, so a killed run can be undone.

use crate::plan::{Plan, Step};
use crate::record::{FILE, Mounted, Record};
use crate::unit;
use rustix::mount::{MountFlags, UnmountFlags};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};

/// What changes the host: the kernel, or a test's stand-in for one that gives less.
pub trait Kernel {
    /// Asks for `pages` in an `nr_hugepages` file; the kernel may give fewer without an error.
    fn set_pages(&self, file: &Path, pages: u64) -> io::Result<()>;
    /// Mounts hugetlbfs of 2 MB pages.
    fn mount(&self, target: &Path) -> io::Result<()>;
    /// Unmounts it; fails while a file there is open.
    fn unmount(&self, target: &Path) -> io::Result<()>;
}

/// The kernel that runs this program.
#[derive(Clone, Copy, Debug)]
pub struct Running;

impl Kernel for Running {
    fn set_pages(&self, file: &Path, pages: u64) -> io::Result<()> {
        std::fs::write(file, pages.to_string())
    }

    fn mount(&self, target: &Path) -> io::Result<()> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        Ok(rustix::mount::mount("none", target, "hugetlbfs", flags, Some(c"pagesize=2M"))?)
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        Ok(rustix::mount::unmount(target, UnmountFlags::empty())?)
    }
}

/// A change that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct ApplyError {
    /// What was tried.
    pub what: &'static str,
    /// On which file or folder.
    pub path: PathBuf,
    /// The kernel's reason.
    pub source: io::Error,
}

/// What an apply or undo did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Changes made, a sentence each.
    pub done: Vec<String>,
    /// What was asked for and did not come about.
    pub short: Vec<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ApplyError + 'a {
    move |source| ApplyError { what, path: path.to_owned(), source }
}

fn number(path: &Path) -> Result<u64, ApplyError> {
    let text = std::fs::read_to_string(path).map_err(failed("reading", path))?;
    text.trim().parse().map_err(|e| failed("reading", path)(io::Error::new(io::ErrorKind::InvalidData, e)))
}

fn on(root: &Path, absolute: &str) -> PathBuf {
    root.join(absolute.trim_start_matches('/'))
}

/// Does the page and mount steps of `plan`. `boot` and `systemd` are what was found.
pub fn apply(
    root: &Path,
    kernel: &dyn Kernel,
    plan: &Plan,
    boot: Option<&str>,
    systemd: bool,
) -> Result<Outcome, ApplyError> {
    let file = root.join(FILE);
    let mut record = Record::load(root, boot).map_err(failed("reading", &file))?;
    record.boot = boot.map(str::to_owned);
    // What cannot be recorded could not be undone: a read-only disk shows here, before the first change.
    let store = |record: &Record| record.store(root).map_err(failed("writing", &file));
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(failed("making", folder))?;
    }
    store(&record)?;
    if systemd {
        let path = root.join(unit::FILE);
        unit::owned(root).map_err(failed("writing", &path))?;
    }
    let mut outcome = Outcome::default();
    for step in &plan.steps {
        match step {
            Step::SetPages { node, file, to, .. } => {
                let path = on(root, file);
                let before = number(&path)?;
                if before >= *to {
                    continue;
                }
                kernel.set_pages(&path, *to).map_err(failed("writing", &path))?;
                let after = number(&path)?;
                record.add(*node, file, after.saturating_sub(before), after);
                store(&record)?;
                outcome.done.push(format!("node {node}: 2 MB pages from {before} to {after}"));
                if after < *to {
                    outcome.short.push(format!(
                        "node {node}: the kernel gave {after} of {to} pages: its memory is fragmented; more come after \
                         `echo 1 > /proc/sys/vm/compact_memory` or a reboot"
                    ));
                }
            }
            Step::Mount { target, .. } => {
                let path = on(root, target);
                let made_folder = !path.exists();
                std::fs::create_dir_all(&path).map_err(failed("making", &path))?;
                kernel.mount(&path).map_err(failed("mounting hugetlbfs at", &path))?;
                record.mount = Some(Mounted { target: target.clone(), made_folder });
                store(&record)?;
                outcome.done.push(format!("hugetlbfs mounted at {target}"));
            }
            Step::Advice { .. } => {}
        }
    }
    for short in &plan.shortfalls {
        outcome.short.push(format!(
            "node {}: memory for {} of {} pages{}",
            short.node,
            short.possible,
            short.wanted,
            short
                .elsewhere
                .iter()
                .map(|e| format!("; node {} has {} free and memory for {}", e.node, e.free_pages, e.possible_pages))
                .collect::<String>()
        ));
    }
    if record.pages.is_empty() && record.mount.is_none() {
        outcome.notes.push("nothing of this program's needs to last".to_owned());
    } else if systemd {
        let path = root.join(unit::FILE);
        unit::write(root, &record).map_err(failed("writing", &path))?;
        record.unit = true;
        store(&record)?;
        outcome.notes.push(format!("persistent: /{}", unit::FILE));
    } else {
        outcome.notes.push("not persistent: systemd does not run this host; apply again after each boot".to_owned());
    }
    Ok(outcome)
}

/// Takes back what the record says, the last change first.
pub fn undo(root: &Path, kernel: &dyn Kernel, boot: Option<&str>) -> Result<Outcome, ApplyError> {
    let file = root.join(FILE);
    let mut record = Record::load(root, boot).map_err(failed("reading", &file))?;
    let mut outcome = Outcome::default();
    if record.is_empty() {
        outcome.notes.push("nothing to undo".to_owned());
    }
    if record.unit {
        let path = root.join(unit::FILE);
        unit::remove(root).map_err(failed("removing", &path))?;
        record.unit = false;
        // From here on the record is of this boot: its unit has brought all of it back.
        record.boot = boot.map(str::to_owned);
        record.store(root).map_err(failed("writing", &file))?;
        outcome.done.push(format!("/{} removed", unit::FILE));
    }
    if let Some(mount) = record.mount.take() {
        let path = on(root, &mount.target);
        match kernel.unmount(&path) {
            Ok(()) => {
                if mount.made_folder {
                    std::fs::remove_dir(&path).map_err(failed("removing", &path))?;
                }
                outcome.done.push(format!("{} unmounted", mount.target));
            }
            // Somebody else unmounted it already.
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {}
            Err(e) => {
                outcome.short.push(format!("{} stays mounted: {e}", mount.target));
                record.mount = Some(mount);
            }
        }
        record.store(root).map_err(failed("writing", &file))?;
    }
    for pages in std::mem::take(&mut record.pages).into_iter().rev() {
        let path = on(root, &pages.file);
        let before = number(&path)?;
        let free = number(&path.with_file_name("free_hugepages"))?;
        // Lowering below what is in use would turn those pages into surplus that vanishes when its user ends.
        let target = before.saturating_sub(pages.added.min(free));
        kernel.set_pages(&path, target).map_err(failed("writing", &path))?;
        let after = number(&path)?;
        outcome.done.push(format!("node {}: 2 MB pages from {before} to {after}", pages.node));
        let left = pages.added.saturating_sub(before.saturating_sub(after)).min(after);
        if left > 0 {
            outcome
                .short
                .push(format!("node {}: {left} of our pages are in use and stay; undo again later", pages.node));
            record.pages.push(crate::record::Added { added: left, total: after, ..pages });
        }
    }
    record.store(root).map_err(failed("writing", &file))?;
    Ok(outcome)
}
