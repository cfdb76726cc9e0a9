//! The files that bring everything back at boot: this program owns them, writes and removes them whole.
//!
//! | File | For | Why there |
//! |---|---|---|
//! | systemd unit | pages, mounts, VFs | `vm.nr_hugepages` knows no nodes, VFs have no other place |
//! | `modules-load.d` | modules | before udev and units |
//! | `sysctl.d` | reserved ports | before any socket |
//!
//! Written only where systemd runs the host. A file of that name that somebody else wrote is left alone and said.

use crate::record::Record;
use crate::step::{RESERVED, numvfs};
use std::io;
use std::path::Path;

/// The unit, below the root.
pub const UNIT: &str = "etc/systemd/system/sluicegate-hugepages.service";
/// What enables it, below the root.
pub const WANTED: &str = "etc/systemd/system/multi-user.target.wants/sluicegate-hugepages.service";
/// Modules to load, below the root.
pub const MODULES: &str = "etc/modules-load.d/sluicegate.conf";
/// Kernel settings, below the root.
pub const SYSCTL: &str = "etc/sysctl.d/90-sluicegate.conf";
const MARK: &str = "# Written by hugepage-setup --apply, removed by --undo: changes here are lost.\n";

/// The unit's text: each command raises a number and never lowers it. None where it has nothing to do.
pub fn unit(record: &Record) -> Option<String> {
    if record.pages.is_empty() && record.mounts.is_empty() && record.vfs.is_empty() {
        return None;
    }
    let mut text = format!(
        "{MARK}[Unit]\nDescription=Huge pages and VFs for sluiced\nBefore=kubelet.service\n\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\n"
    );
    for pages in &record.pages {
        // `$$` is systemd's way to write `$`.
        text += &format!(
            "ExecStart=/bin/sh -c 'test \"$$(cat {0})\" -ge {1} || echo {1} > {0}'\n",
            pages.file, pages.total
        );
    }
    for mount in &record.mounts {
        text += &format!(
            "ExecStart=/bin/sh -c 'mkdir -p {0}; mountpoint -q {0} || mount -t hugetlbfs -o pagesize={1} none {0}'\n",
            mount.target, mount.page_size
        );
    }
    for vfs in &record.vfs {
        text += &format!(
            "ExecStart=/bin/sh -c 'test \"$$(cat {0})\" -ne 0 || echo {1} > {0}'\n",
            numvfs(&vfs.pf),
            vfs.count
        );
    }
    Some(text + "\n[Install]\nWantedBy=multi-user.target\n")
}

fn modules(record: &Record) -> Option<String> {
    (!record.modules.is_empty()).then(|| MARK.to_owned() + &record.modules.join("\n") + "\n")
}

/// The list as it stands now, so that what others put there before us is there at boot too.
fn sysctl(record: &Record, root: &Path) -> Option<String> {
    record.ports.as_ref()?;
    let value = std::fs::read_to_string(root.join(RESERVED.trim_start_matches('/'))).ok()?;
    Some(format!("{MARK}net.ipv4.ip_local_reserved_ports = {}\n", value.trim()))
}

/// Writes and enables what the record needs, removes what it needs no more. Refuses files that this program did not write.
pub fn write(root: &Path, record: &Record) -> io::Result<Vec<&'static str>> {
    owned(root)?;
    let wanted = [(UNIT, unit(record)), (MODULES, modules(record)), (SYSCTL, sysctl(record, root))];
    let mut written = Vec::new();
    for (file, text) in wanted {
        match text {
            Some(text) => {
                put(root, file, &text)?;
                written.push(file);
            }
            None => remove_one(root, file)?,
        }
    }
    if written.contains(&UNIT) {
        let link = root.join(WANTED);
        link.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        match std::os::unix::fs::symlink(format!("/{UNIT}"), link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    } else {
        remove_one(root, WANTED)?;
    }
    Ok(written)
}

fn put(root: &Path, file: &str, text: &str) -> io::Result<()> {
    let path = root.join(file);
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    std::fs::write(path, text)
}

fn remove_one(root: &Path, file: &str) -> io::Result<()> {
    match std::fs::remove_file(root.join(file)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Disables and removes all of them.
pub fn remove(root: &Path) -> io::Result<()> {
    owned(root)?;
    [WANTED, UNIT, MODULES, SYSCTL].into_iter().try_for_each(|file| remove_one(root, file))
}

/// Fails if a file of that name is there and not ours.
pub fn owned(root: &Path) -> io::Result<()> {
    for file in [UNIT, MODULES, SYSCTL] {
        match std::fs::read_to_string(root.join(file)) {
            Ok(text) if !text.starts_with(MARK) => {
                let why =
                    format!("/{file} was not written by hugepage-setup: move it away, or put its lines elsewhere");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
