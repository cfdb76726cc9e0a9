//! Carries a plan out.
//!
//! Invariants: a number is read again right before it is raised and never lowered; the record is written after every change, so a
//! killed run can be undone; a step that fails is reported and the others are done all the same.

use crate::files;
use crate::plan::{Plan, ports_added};
use crate::record::{FILE, MadeVfs, Mounted, Record};
use crate::step::{RESERVED, Size, Step, numvfs};
use rustix::mount::{MountFlags, UnmountFlags};
use serde::Serialize;
use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What changes the host: the kernel, or a test's stand-in for one that gives less.
pub trait Kernel {
    /// Writes a number or word into a file of the kernel's; it may take less than it was asked without an error.
    fn write(&self, file: &Path, value: &str) -> io::Result<()>;
    /// Mounts hugetlbfs of pages of this size.
    fn mount(&self, target: &Path, size: Size) -> io::Result<()>;
    /// Unmounts it; fails while a file there is open.
    fn unmount(&self, target: &Path) -> io::Result<()>;
    /// Loads (or with `unload` removes) a module of the host whose root is `root`.
    fn module(&self, root: &Path, module: &str, unload: bool) -> io::Result<()>;
}

/// The kernel that runs this program.
#[derive(Clone, Copy, Debug)]
pub struct Running;

impl Kernel for Running {
    fn write(&self, file: &Path, value: &str) -> io::Result<()> {
        // Opened without truncating: the kernel's files are not files.
        let mut opened = std::fs::OpenOptions::new().write(true).open(file)?;
        io::Write::write_all(&mut opened, format!("{value}\n").as_bytes())
    }

    fn mount(&self, target: &Path, size: Size) -> io::Result<()> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let options = CString::new(format!("pagesize={}", size.name()))?;
        Ok(rustix::mount::mount("none", target, "hugetlbfs", flags, Some(options.as_c_str()))?)
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        Ok(rustix::mount::unmount(target, UnmountFlags::empty())?)
    }

    fn module(&self, root: &Path, module: &str, unload: bool) -> io::Result<()> {
        // The host's own modprobe and modules, not the container's.
        let mut command = match root == Path::new("/") {
            true => Command::new("modprobe"),
            false => {
                let mut command = Command::new("chroot");
                command.arg(root).arg("modprobe");
                command
            }
        };
        if unload {
            command.arg("-r");
        }
        let output = command.arg(module).output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
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

pub(crate) fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ApplyError + 'a {
    move |source| ApplyError { what, path: path.to_owned(), source }
}

pub(crate) fn number(path: &Path) -> Result<u64, ApplyError> {
    let text = std::fs::read_to_string(path).map_err(failed("reading", path))?;
    text.trim().parse().map_err(|e| failed("reading", path)(io::Error::new(io::ErrorKind::InvalidData, e)))
}

pub(crate) fn on(root: &Path, absolute: &str) -> PathBuf {
    root.join(absolute.trim_start_matches('/'))
}

/// Where changes are made and noted.
struct Hands<'a> {
    root: &'a Path,
    kernel: &'a dyn Kernel,
    record: Record,
    outcome: Outcome,
}

/// Does the steps of `plan`. `boot` and `systemd` are what was found.
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
    let mut hands = Hands { root, kernel, record, outcome: Outcome::default() };
    // What cannot be recorded could not be undone: a read-only disk shows here, before the first change.
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(failed("making", folder))?;
    }
    hands.store()?;
    if systemd {
        files::owned(root).map_err(failed("writing below", root))?;
    }
    for step in &plan.steps {
        // One that fails costs itself.
        if let Err(error) = hands.step(step) {
            hands.outcome.short.push(error.to_string());
        }
        hands.store()?;
    }
    hands.outcome.short.extend(plan.shortfalls.iter().map(ToString::to_string));
    hands.last(systemd)?;
    Ok(hands.outcome)
}

impl Hands<'_> {
    fn store(&self) -> Result<(), ApplyError> {
        let file = self.root.join(FILE);
        self.record.store(self.root).map_err(failed("writing", &file))
    }

    fn step(&mut self, step: &Step) -> Result<(), ApplyError> {
        match step {
            Step::SetPages { node, size, file, to, .. } => self.pages(*node, *size, file, *to),
            Step::Mount { target, size, .. } => self.mount(target, *size),
            Step::LoadModule { module, .. } => {
                let root = self.root;
                self.kernel.module(root, module, false).map_err(failed("modprobe", Path::new(module)))?;
                self.record.modules.push(module.clone());
                self.outcome.done.push(format!("module {module} loaded"));
                Ok(())
            }
            Step::MakeVfs { pf, interface, count, .. } => self.vfs(pf, interface.as_deref(), *count),
            Step::ReservePorts { value, .. } => self.ports(value),
            Step::Advice { .. } => Ok(()),
        }
    }

    fn pages(&mut self, node: u32, size: Size, file: &str, to: u64) -> Result<(), ApplyError> {
        let path = on(self.root, file);
        let before = number(&path)?;
        if before >= to {
            return Ok(());
        }
        self.kernel.write(&path, &to.to_string()).map_err(failed("writing", &path))?;
        let after = number(&path)?;
        self.record.add(node, file, after.saturating_sub(before), after);
        self.outcome.done.push(format!("node {node}: {} pages from {before} to {after}", size.words()));
        if after < to {
            self.outcome.short.push(format!(
                "node {node}: the kernel gave {after} of {to} {} pages: its memory is fragmented; more come after \
                 `echo 1 > /proc/sys/vm/compact_memory` or a reboot",
                size.words()
            ));
        }
        Ok(())
    }

    fn mount(&mut self, target: &str, size: Size) -> Result<(), ApplyError> {
        let path = on(self.root, target);
        let made_folder = !path.exists();
        std::fs::create_dir_all(&path).map_err(failed("making", &path))?;
        self.kernel.mount(&path, size).map_err(failed("mounting hugetlbfs at", &path))?;
        let page_size = size.name().to_owned();
        self.record.mounts.push(Mounted { target: target.to_owned(), page_size, made_folder });
        self.outcome.done.push(format!("hugetlbfs of {} pages mounted at {target}", size.words()));
        Ok(())
    }

    fn vfs(&mut self, pf: &str, interface: Option<&str>, count: u32) -> Result<(), ApplyError> {
        let path = on(self.root, &numvfs(pf));
        // Somebody else may have been quicker, and theirs stay.
        if number(&path)? != 0 {
            return Ok(());
        }
        self.kernel.write(&path, &count.to_string()).map_err(failed("writing", &path))?;
        let after = number(&path)? as u32;
        self.record.vfs.push(MadeVfs { pf: pf.to_owned(), count: after });
        let name = interface.unwrap_or(pf);
        self.outcome.done.push(format!("{name}: {after} VFs"));
        if after < count {
            self.outcome
                .short
                .push(format!("{name}: its driver made {after} of {count} VFs; `dmesg | grep {pf}` says why"));
        }
        Ok(())
    }

    fn ports(&mut self, value: &str) -> Result<(), ApplyError> {
        let path = on(self.root, RESERVED);
        let before = std::fs::read_to_string(&path).map_err(failed("reading", &path))?;
        self.kernel.write(&path, value).map_err(failed("writing", &path))?;
        let added = ports_added(before.trim(), value).unwrap_or_default();
        self.outcome.done.push(format!("net.ipv4.ip_local_reserved_ports: {added} added"));
        let known = self.record.ports.take().map_or(String::new(), |ports| ports + ",");
        self.record.ports = Some(known + &added);
        Ok(())
    }

    /// Makes it last.
    fn last(&mut self, systemd: bool) -> Result<(), ApplyError> {
        if !self.record.has_changes() {
            self.outcome.notes.push("nothing of this program's needs to last".to_owned());
        } else if systemd {
            let written = files::write(self.root, &self.record).map_err(failed("writing below", self.root))?;
            self.record.unit = true;
            self.store()?;
            self.outcome.notes.extend(written.iter().map(|file| format!("persistent: /{file}")));
        } else {
            self.outcome
                .notes
                .push("not persistent: systemd does not run this host; apply again after each boot".to_owned());
        }
        Ok(())
    }
}
