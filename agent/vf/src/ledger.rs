//! Claims on devices, on disk: who has which, since when, and how it was before.
//!
//! One file for the host, `/var/lib/sluicegate/vfs.json`, for all agents on it; replaced whole, synced, under a lock, so a crash at any
//! time leaves the old list or the new one. A boot ends every claim: devices start anew.

use crate::VfError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file, below the host's root.
pub const FILE: &str = "var/lib/sluicegate/vfs.json";

/// Who has a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Owner {
    /// The uplink of a node's agent.
    Uplink {
        /// The node.
        node: String,
    },
    /// A pod.
    Pod {
        /// The node.
        node: String,
        /// `namespace/name`.
        pod: String,
        /// Its sandbox, unique on the host for all time: the token without which nobody gives the device back.
        container: String,
        /// The interface's name in the pod.
        ifname: String,
    },
}

impl Owner {
    /// The node whose agent claimed it.
    pub fn node(&self) -> &str {
        match self {
            Owner::Uplink { node } | Owner::Pod { node, .. } => node,
        }
    }

    /// What gives the device back: the pod's sandbox, or `uplink`.
    pub fn token(&self) -> &str {
        match self {
            Owner::Uplink { .. } => "uplink",
            Owner::Pod { container, .. } => container,
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Owner::Uplink { node } => write!(f, "the uplink of {node}"),
            Owner::Pod { pod, container, .. } => write!(f, "pod {pod} (sandbox {container})"),
        }
    }
}

/// How a device was before it was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Its driver.
    pub driver: Option<String>,
    /// Its driver override.
    pub driver_override: Option<String>,
    /// Its interface.
    pub interface: Option<String>,
    /// The interface's MAC.
    pub mac: Option<String>,
    /// The interface's MTU.
    pub mtu: u32,
}

/// How far a claim is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Being taken.
    Taking,
    /// The owner has it.
    Held,
    /// It did not come back as it went.
    Dirty {
        /// What differs.
        why: String,
    },
}

/// A claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The device.
    pub address: String,
    /// Who has it.
    pub owner: Owner,
    /// How far it is.
    #[serde(flatten)]
    pub state: State,
    /// How it was.
    pub before: Before,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    boot: Option<String>,
    claims: Vec<Claim>,
}

const VERSION: u32 = 1;

/// The file of claims. Nothing is kept in memory: another agent may have changed it.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    boot: Option<String>,
}

impl Ledger {
    /// The ledger of the host below `root`, in this boot.
    pub fn new(root: &Path, boot: Option<String>) -> Self {
        Ledger { path: root.join(FILE), boot }
    }

    /// All claims, by address.
    pub fn claims(&self) -> Result<BTreeMap<String, Claim>, VfError> {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(source) => return Err(self.failed(source)),
        };
        let document: Document = serde_json::from_slice(&text).map_err(|e| self.failed(e.into()))?;
        if document.version != VERSION {
            let why = format!("version {}, this program knows {VERSION}", document.version);
            return Err(self.failed(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        if document.boot != self.boot {
            return Ok(BTreeMap::new());
        }
        Ok(document.claims.into_iter().map(|c| (c.address.clone(), c)).collect())
    }

    /// Changes the claims under the lock; what `change` refuses is not written.
    pub fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Claim>) -> Result<T, VfError>,
    ) -> Result<T, VfError> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(folder).map_err(|e| self.failed(e))?;
        // The folder is the lock: nothing is left behind.
        let lock = File::open(folder).map_err(|e| self.failed(e))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).map_err(|e| self.failed(e.into()))?;
        let mut claims = self.claims()?;
        let before = claims.clone();
        let done = change(&mut claims)?;
        if claims != before {
            self.write(claims).map_err(|e| self.failed(e))?;
        }
        Ok(done)
    }

    fn write(&self, claims: BTreeMap<String, Claim>) -> io::Result<()> {
        if claims.is_empty() {
            return match std::fs::remove_file(&self.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
        }
        let document = Document { version: VERSION, boot: self.boot.clone(), claims: claims.into_values().collect() };
        let fresh = self.path.with_extension("json.new");
        let mut file = File::create(&fresh)?;
        file.write_all((serde_json::to_string_pretty(&document)? + "\n").as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }

    fn failed(&self, source: io::Error) -> VfError {
        VfError::Ledger { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(address: &str) -> Claim {
        Claim {
            address: address.into(),
            owner: Owner::Uplink { node: "a".into() },
            state: State::Dirty { why: "x".into() },
            before: Before::default(),
            since: 7,
        }
    }

    #[test]
    fn claims_are_found_by_the_next_process_and_not_after_a_boot() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = |boot: &str| Ledger::new(folder.path(), Some(boot.to_owned()));
        ledger("1").change(|c| Ok(c.insert("0000:00:01.0".into(), claim("0000:00:01.0")))).unwrap();
        assert_eq!(ledger("1").claims().unwrap()["0000:00:01.0"], claim("0000:00:01.0"));
        assert!(ledger("2").claims().unwrap().is_empty());
        ledger("1").change(|c| Ok(std::mem::take(c))).unwrap();
        assert!(!folder.path().join(FILE).exists());
    }

    #[test]
    fn what_is_refused_is_not_written_and_rubbish_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(folder.path(), None);
        let refused: Result<(), _> = ledger.change(|c| {
            c.insert("x".into(), claim("x"));
            Err(VfError::NoVfio)
        });
        assert!(refused.is_err() && ledger.claims().unwrap().is_empty());
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(ledger.claims().unwrap_err().to_string().contains("remove it if no VF is in use"));
    }
}
