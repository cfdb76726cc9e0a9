//! Machines written down as text, made into folders for tests.
//!
//! ```text
//! # a remark
//! @ sys/devices/system/node/node0     paths below are from here; `@ /` goes back to the root
//! cpulist = 0-3                       a file with this line; `\n` is a line's end
//! power/                              an empty folder
//! driver -> /sys/bus/pci/drivers/ice  a symbolic link; the target is named from the root
//! ```

use std::io;
use std::path::Path;

/// Makes the tree of a text below `root`.
pub fn plant(text: &str, root: &Path) -> io::Result<()> {
    let mut folder = root.to_owned();
    let make = |path: &Path| path.parent().map_or(Ok(()), std::fs::create_dir_all);
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(at) = line.strip_prefix("@ ") {
            folder = root.join(at.trim_matches('/'));
            std::fs::create_dir_all(&folder)?;
        } else if let Some((link, target)) = line.split_once(" -> ") {
            let link = folder.join(link);
            make(&link)?;
            std::os::unix::fs::symlink(root.join(target.trim_matches('/')), link)?;
        } else if let Some((file, content)) = line.split_once(" =") {
            let file = folder.join(file.trim_matches('/'));
            make(&file)?;
            std::fs::write(file, content.trim().replace("\\n", "\n") + "\n")?;
        } else if let Some(empty) = line.strip_suffix('/') {
            std::fs::create_dir_all(folder.join(empty))?;
        } else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not understood: {line}")));
        }
    }
    Ok(())
}

/// The machines that are written down, by name.
pub const ALL: &[(&str, &str)] = &[
    ("two-nodes-mellanox", include_str!("../fixtures/two-nodes-mellanox.tree")),
    ("intel-vfs", include_str!("../fixtures/intel-vfs.tree")),
    ("no-iommu", include_str!("../fixtures/no-iommu.tree")),
    ("virtual-machine", include_str!("../fixtures/virtual-machine.tree")),
    ("fragmented", include_str!("../fixtures/fragmented.tree")),
];

/// Makes the tree of a machine by its name.
pub fn plant_named(name: &str, root: &Path) -> io::Result<()> {
    let found = ALL.iter().find(|(n, _)| *n == name);
    let (_, text) = found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no machine {name}")))?;
    plant(text, root)
}
