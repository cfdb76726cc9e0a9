//! Takes back what the record says, the last change first.
//!
//! Invariants: only what an apply added is taken, and of that only what nobody uses; the rest is said, stays in the record, and
//! goes with a later undo. So it may be repeated.

use crate::apply::{ApplyError, Kernel, Outcome, failed, number, on};
use crate::files;
use crate::plan::without_ports;
use crate::record::{Added, FILE, MadeVfs, Record};
use crate::step::{RESERVED, Size, numvfs};
use sluice_machine::devices::VFIO;
use sluice_machine::pci::{self, NetDevice};
use sluice_machine::{ReadError, Root};
use std::path::Path;

/// Takes back what the record says.
pub fn undo(root: &Path, kernel: &dyn Kernel, boot: Option<&str>) -> Result<Outcome, ApplyError> {
    let file = root.join(FILE);
    let mut record = Record::load(root, boot).map_err(failed("reading", &file))?;
    let mut outcome = Outcome::default();
    if record.is_empty() {
        outcome.notes.push("nothing to undo".to_owned());
    }
    if record.unit {
        files::remove(root).map_err(failed("removing below", root))?;
        record.unit = false;
        // From here on the record is of this boot: its files have brought all of it back.
        record.boot = boot.map(str::to_owned);
        record.store(root).map_err(failed("writing", &file))?;
        outcome.done.push("what brought it back at boot is removed".to_owned());
    }
    if let Some(added) = record.ports.take() {
        let path = on(root, RESERVED);
        let current = std::fs::read_to_string(&path).map_err(failed("reading", &path))?;
        if let Some(value) = without_ports(current.trim(), &added) {
            kernel.write(&path, &value).map_err(failed("writing", &path))?;
            outcome.done.push(format!("net.ipv4.ip_local_reserved_ports: {added} removed"));
        }
        record.store(root).map_err(failed("writing", &file))?;
    }
    for vfs in std::mem::take(&mut record.vfs).into_iter().rev() {
        record.vfs.extend(unmake(root, kernel, vfs, &mut outcome)?);
        record.store(root).map_err(failed("writing", &file))?;
    }
    for module in std::mem::take(&mut record.modules).into_iter().rev() {
        match kernel.module(root, &module, true) {
            Ok(()) => outcome.done.push(format!("module {module} removed")),
            Err(e) => {
                outcome.short.push(format!("module {module} stays: {e}"));
                record.modules.push(module);
            }
        }
        record.store(root).map_err(failed("writing", &file))?;
    }
    for mount in std::mem::take(&mut record.mounts).into_iter().rev() {
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
                record.mounts.push(mount);
            }
        }
        record.store(root).map_err(failed("writing", &file))?;
    }
    for pages in std::mem::take(&mut record.pages).into_iter().rev() {
        record.pages.extend(lower(root, kernel, pages, &mut outcome)?);
        record.store(root).map_err(failed("writing", &file))?;
    }
    Ok(outcome)
}

/// Takes pages back; gives back what stays.
fn lower(root: &Path, kernel: &dyn Kernel, pages: Added, outcome: &mut Outcome) -> Result<Option<Added>, ApplyError> {
    let (path, size) = (on(root, &pages.file), Size::of_file(&pages.file).words());
    let before = number(&path)?;
    let free = number(&path.with_file_name("free_hugepages"))?;
    // Lowering below what is in use would turn those pages into surplus that vanishes when its user ends.
    let target = before.saturating_sub(pages.added.min(free));
    kernel.write(&path, &target.to_string()).map_err(failed("writing", &path))?;
    let after = number(&path)?;
    outcome.done.push(format!("node {}: {size} pages from {before} to {after}", pages.node));
    let left = pages.added.saturating_sub(before.saturating_sub(after)).min(after);
    if left == 0 {
        return Ok(None);
    }
    outcome
        .short
        .push(format!("node {}: {left} of our {size} pages are in use and stay; undo again later", pages.node));
    Ok(Some(Added { added: left, total: after, ..pages }))
}

/// Removes the VFs of a PF if nobody uses one of them; gives them back if they stay.
fn unmake(
    root: &Path,
    kernel: &dyn Kernel,
    vfs: MadeVfs,
    outcome: &mut Outcome,
) -> Result<Option<MadeVfs>, ApplyError> {
    let path = on(root, &numvfs(&vfs.pf));
    if !path.exists() || number(&path)? == 0 {
        return Ok(None);
    }
    let read = |e: ReadError| failed("reading the VFs of", &path)(std::io::Error::other(e));
    let devices = pci::read(Root::new(root)).map_err(read)?;
    let used = devices.iter().filter(|d| d.pf() == Some(&vfs.pf)).find_map(|d| Some((d, in_use(d)?)));
    if let Some((vf, how)) = used {
        outcome.short.push(format!("VFs of {} stay: {} {how}; undo again when it is free", vfs.pf, vf.address));
        return Ok(Some(vfs));
    }
    kernel.write(&path, "0").map_err(failed("writing", &path))?;
    outcome.done.push(format!("{}: {} VFs removed", vfs.pf, vfs.count));
    Ok(None)
}

/// How a VF is used, as far as sysfs tells.
fn in_use(vf: &NetDevice) -> Option<String> {
    match (&vf.driver, vf.interfaces.first()) {
        (Some(driver), _) if driver == VFIO => Some("is bound to vfio-pci".to_owned()),
        // A kernel driver whose interface is not here: it is in another network namespace.
        (Some(driver), None) => Some(format!("has its interface in another network namespace ({driver})")),
        (_, Some(interface)) if interface.up => Some(format!("is up as {}", interface.name)),
        (_, Some(interface)) if interface.master.is_some() || !interface.uppers.is_empty() => {
            Some(format!("carries others as {}", interface.name))
        }
        _ => None,
    }
}
