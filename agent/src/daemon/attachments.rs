//! What CNI has attached on this node, on disk: enough to take every pod's port up again after a restart.
//!
//! Written whole to a temporary file, synced and renamed, before the answer goes out; so a crash at any time leaves either the
//! old list or the new one.

use super::capabilities::Bandwidth;
use super::vfs::BareVf;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sluice_ctrl::compile::PortMapping;
use sluice_ctrl::model::NamespacedName;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// One pod's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Sandbox, unique on the node for all time.
    pub container: String,
    /// Interface inside the pod.
    pub ifname: String,
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// Inode of that namespace: a path may come to name another one.
    pub netns_inode: u64,
    /// Port number.
    pub port: u16,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// MAC of the interface.
    pub mac: [u8; 6],
    /// Our end of the pod's veth pair; none where the interface is a TAP device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub veth: Option<String>,
    /// The pod's fast port, in place of an interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast: Option<super::fast::FastPort>,
    /// Ports of the node that the runtime asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mappings: Vec<PortMapping>,
    /// Rates that the runtime asked for.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// The bare VF that the pod asked for, beside this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf: Option<BareVf>,
}

impl Attachment {
    /// The pod.
    pub fn pod(&self) -> NamespacedName {
        NamespacedName::new(&self.namespace, &self.name)
    }
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    /// Identity of the list: port numbers mean something beside it only.
    #[serde(default)]
    id: u64,
    next_port: u16,
    attachments: Vec<Attachment>,
}

const VERSION: u32 = 1;
const FILE: &str = "attachments.json";

/// The list and its file. Keyed by container: one interface for each.
#[derive(Debug)]
pub struct Attachments {
    path: PathBuf,
    list: BTreeMap<String, Attachment>,
    id: u64,
    next_port: u16,
}

impl Attachments {
    /// Reads the list of a state folder; empty if there is none. `first` is the lowest port number of a pod.
    pub fn open(state_dir: &Path, first: u16) -> Result<Self> {
        let path = state_dir.join(FILE);
        let (list, id, next_port) = match std::fs::read(&path) {
            Ok(bytes) => {
                let document: Document = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} cannot be read; remove it to start without pods", path.display()))?;
                anyhow::ensure!(
                    document.version == VERSION,
                    "{} has version {}, this program knows {VERSION}; run the version that wrote it, or remove the file to \
                     start without pods",
                    path.display(),
                    document.version
                );
                let list = document.attachments.into_iter().map(|a| (a.container.clone(), a)).collect();
                (list, document.id, document.next_port.max(first))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (BTreeMap::new(), 0, first),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut attachments = Attachments { path, list, id, next_port };
        if id == 0 {
            attachments.id = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8).max(1);
            attachments.save()?;
        }
        Ok(attachments)
    }

    /// Identity of this list, for whatever remembers port numbers; a list that was lost and begun anew has another one.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// All of them, by container.
    pub fn iter(&self) -> impl Iterator<Item = &Attachment> {
        self.list.values()
    }

    /// One by its container.
    pub fn get(&self, container: &str) -> Option<&Attachment> {
        self.list.get(container)
    }

    /// The one behind a port number.
    pub fn by_port(&self, port: u16) -> Option<&Attachment> {
        self.list.values().find(|a| a.port == port)
    }

    /// The newest one of a pod.
    pub fn of_pod(&self, namespace: &str, name: &str) -> Option<&Attachment> {
        self.list.values().find(|a| a.namespace == namespace && a.name == name)
    }

    /// A port number that has been free the longest: flows of its last owner are long gone.
    pub fn free_port(&mut self, first: u16) -> Option<u16> {
        for _ in first..u16::MAX {
            let port = self.next_port.max(first);
            self.next_port = if port >= 65_000 { first } else { port + 1 };
            if !self.list.values().any(|a| a.port == port) {
                return Some(port);
            }
        }
        None
    }

    /// Adds or replaces some and writes the file once.
    pub fn insert_all(&mut self, attachments: impl IntoIterator<Item = Attachment>) -> Result<()> {
        let before = self.list.clone();
        self.list.extend(attachments.into_iter().map(|a| (a.container.clone(), a)));
        if self.list == before {
            return Ok(());
        }
        self.save().inspect_err(|_| self.list = before)
    }

    /// Removes some and writes the file once; those that are not there are fine.
    pub fn remove_all<'a>(&mut self, containers: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let gone = containers.into_iter().filter_map(|container| self.list.remove(container)).count();
        if gone > 0 { self.save() } else { Ok(()) }
    }

    fn save(&self) -> Result<()> {
        let document = Document {
            version: VERSION,
            id: self.id,
            next_port: self.next_port,
            attachments: self.list.values().cloned().collect(),
        };
        write_atomically(&self.path, &serde_json::to_vec_pretty(&document)?)
    }
}

/// Replaces a file so that a reader, or a crash, sees the old content or the new one.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str, port: u16) -> Attachment {
        Attachment {
            namespace: "shop".into(),
            name: "web-0".into(),
            container: container.into(),
            ifname: "eth0".into(),
            netns: "/run/netns/x".into(),
            netns_inode: 7,
            port,
            addresses: vec!["10.244.1.5".parse().unwrap()],
            mac: [2, 0, 10, 244, 1, 5],
            veth: None,
            fast: None,
            mappings: Vec::new(),
            bandwidth: Bandwidth::default(),
            vf: None,
        }
    }

    #[test]
    fn what_was_attached_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = Attachments::open(dir.path(), 2).unwrap();
        let port = list.free_port(2).unwrap();
        list.insert_all([attachment("c1", port)]).unwrap();
        let again = Attachments::open(dir.path(), 2).unwrap();
        assert_eq!(again.get("c1"), list.get("c1"));
        assert_eq!(again.of_pod("shop", "web-0").map(|a| a.port), Some(2));
    }

    #[test]
    fn a_list_keeps_its_identity_and_a_new_one_has_another() {
        let dir = tempfile::tempdir().unwrap();
        let id = Attachments::open(dir.path(), 2).unwrap().id();
        assert_eq!(Attachments::open(dir.path(), 2).unwrap().id(), id);
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        assert_ne!(Attachments::open(dir.path(), 2).unwrap().id(), id);
    }

    #[test]
    fn a_port_number_is_not_reused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = Attachments::open(dir.path(), 2).unwrap();
        assert_eq!((list.free_port(2), list.free_port(2)), (Some(2), Some(3)));
        list.insert_all([attachment("c1", 4)]).unwrap();
        assert_eq!(list.free_port(2), Some(5));
    }

    #[test]
    fn a_file_of_another_version_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), r#"{"version":9,"next_port":2,"attachments":[]}"#).unwrap();
        let error = Attachments::open(dir.path(), 2).unwrap_err().to_string();
        assert!(error.contains("version 9") && error.contains("remove the file"), "{error}");
    }
}
