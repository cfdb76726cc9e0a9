//! The systemd unit that brings pages and mount back at boot: a file this program owns, written and removed whole.
//!
//! `sysctl.d` cannot do it: `vm.nr_hugepages` spreads pages over all nodes. Written only where systemd runs the host.

use crate::record::Record;
use std::io;
use std::path::Path;

/// The unit, below the root.
pub const FILE: &str = "etc/systemd/system/sluicegate-hugepages.service";
/// What enables it, below the root.
pub const WANTED: &str = "etc/systemd/system/multi-user.target.wants/sluicegate-hugepages.service";
const MARK: &str = "# Written by hugepage-setup --apply, removed by --undo: changes here are lost.\n";

/// The unit's text: each command raises a number and never lowers it.
pub fn text(record: &Record) -> String {
    let mut text = format!(
        "{MARK}[Unit]\nDescription=2 MB pages for sluiced\nBefore=kubelet.service\n\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\n"
    );
    for pages in &record.pages {
        // `$$` is systemd's way to write `$`.
        text += &format!(
            "ExecStart=/bin/sh -c 'test \"$$(cat {0})\" -ge {1} || echo {1} > {0}'\n",
            pages.file, pages.total
        );
    }
    if let Some(mount) = &record.mount {
        text += &format!(
            "ExecStart=/bin/sh -c 'mkdir -p {0}; mountpoint -q {0} || mount -t hugetlbfs -o pagesize=2M none {0}'\n",
            mount.target
        );
    }
    text + "\n[Install]\nWantedBy=multi-user.target\n"
}

/// Writes and enables it. Refuses a file of that name that this program did not write.
pub fn write(root: &Path, record: &Record) -> io::Result<()> {
    owned(root)?;
    let (file, link) = (root.join(FILE), root.join(WANTED));
    for folder in [file.parent(), link.parent()].into_iter().flatten() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(file, text(record))?;
    match std::os::unix::fs::symlink(format!("/{FILE}"), link) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Disables and removes it.
pub fn remove(root: &Path) -> io::Result<()> {
    owned(root)?;
    for file in [WANTED, FILE] {
        match std::fs::remove_file(root.join(file)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Fails if a unit of that name is there and not ours.
pub fn owned(root: &Path) -> io::Result<()> {
    match std::fs::read_to_string(root.join(FILE)) {
        Ok(text) if !text.starts_with(MARK) => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("/{FILE} was not written by hugepage-setup")))
        }
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
