//! What `--apply` changed, so that `--undo` takes back that and nothing else.
//!
//! Source of truth: `/var/lib/sluicegate/hugepage-setup.json`, replaced whole by rename after every change. Pages, mounts, modules,
//! VFs and settings end with a boot; unless our files bring them back, a record of an earlier boot speaks of nothing any more.

use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// The record's file, below the root.
pub const FILE: &str = "var/lib/sluicegate/hugepage-setup.json";

/// Pages added to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// The node.
    pub node: u32,
    /// Its `nr_hugepages` file.
    pub file: String,
    /// Pages we added.
    pub added: u64,
    /// The number we left there.
    pub total: u64,
}

/// A mount we made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// Where.
    pub target: String,
    /// `2M` or `1G`.
    #[serde(default = "small")]
    pub page_size: String,
    /// Whether the folder is ours too.
    pub made_folder: bool,
}

fn small() -> String {
    "2M".to_owned()
}

/// VFs that we made of a PF that had none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeVfs {
    /// Address of the PF.
    pub pf: String,
    /// How many.
    pub count: u32,
}

/// All changes that stand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The boot they were made in.
    pub boot: Option<String>,
    /// Pages by node and size.
    pub pages: Vec<Added>,
    /// A mount, as versions before 1 GB pages noted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<Mounted>,
    /// Mounts.
    #[serde(default)]
    pub mounts: Vec<Mounted>,
    /// Modules that we loaded.
    #[serde(default)]
    pub modules: Vec<String>,
    /// VFs.
    #[serde(default)]
    pub vfs: Vec<MadeVfs>,
    /// Ports that we added to `ip_local_reserved_ports`.
    #[serde(default)]
    pub ports: Option<String>,
    /// Whether files that bring all of it back at boot are ours and there.
    pub unit: bool,
}

impl Record {
    /// Reads it; an empty one where there is none, or where a boot has undone all of it.
    pub fn load(root: &Path, boot: Option<&str>) -> io::Result<Record> {
        let text = match std::fs::read(root.join(FILE)) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
            Err(e) => return Err(e),
        };
        let mut record: Record = serde_json::from_slice(&text)?;
        record.mounts.extend(record.mount.take());
        let gone = record.boot.as_deref() != boot && !record.unit;
        Ok(if gone { Record::default() } else { record })
    }

    /// Writes it; an empty one is removed.
    pub fn store(&self, root: &Path) -> io::Result<()> {
        let path = root.join(FILE);
        if self.is_empty() {
            return match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let fresh = path.with_extension("json.new");
        std::fs::write(&fresh, serde_json::to_string_pretty(self)? + "\n")?;
        std::fs::rename(&fresh, &path)
    }

    /// Whether nothing of ours stands.
    pub fn is_empty(&self) -> bool {
        !self.has_changes() && !self.unit
    }

    /// Whether there is anything that a boot would end.
    pub fn has_changes(&self) -> bool {
        let Record { pages, mounts, modules, vfs, ports, .. } = self;
        !(pages.is_empty() && mounts.is_empty() && modules.is_empty() && vfs.is_empty() && ports.is_none())
    }

    /// Notes that `added` pages came to a node that now has `total`.
    pub fn add(&mut self, node: u32, file: &str, added: u64, total: u64) {
        match self.pages.iter_mut().find(|p| p.file == file) {
            Some(known) => {
                known.added += added;
                known.total = total;
            }
            None if added > 0 => self.pages.push(Added { node, file: file.to_owned(), added, total }),
            None => {}
        }
    }
}
