//! The machine around the workers: uplink, host port, neighbours, reserved ports. What is changed on a host is noted in the
//! state folder before it is changed, so that `sluiced cleanup` can put it back.

use super::attachments::write_atomically;
use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sluice_ctrl::compile::derived_mac;
use sluice_hostnet::{HostInterface, Interface, Netns};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

const FILE: &str = "host.json";

/// Something this machine lacks; ends the program with exit code 4.
#[derive(Debug, thiserror::Error)]
#[error("{what}\n  {mend}")]
pub struct Lacking {
    /// What is missing.
    pub what: String,
    /// What provides it.
    pub mend: String,
}

/// What was found on the host before it was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// `net.ipv4.ip_local_reserved_ports`.
    pub reserved_ports: Option<String>,
    /// The host port's interface, ours to remove.
    pub host_interface: Option<String>,
    /// What was put there for the container runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni: Option<super::install::Installed>,
    /// Interface that an XDP program of ours stays on.
    #[serde(default)]
    pub uplink: Option<String>,
    /// The TAP of the exception path, if we made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exceptions: Option<String>,
    /// Folder of the flow tables.
    #[serde(default)]
    pub flow_tables: Option<PathBuf>,
    /// Folders that were not there, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<PathBuf>,
}

impl Found {
    /// Notes folders that are about to be made.
    pub fn note_folders(&mut self, absent: Vec<PathBuf>) {
        self.folders.extend(absent);
        self.folders.sort();
        self.folders.dedup();
    }
}

/// Those of these folders, and of the folders around them, that are not there.
pub fn absent_folders<'a>(wanted: impl IntoIterator<Item = &'a Path>) -> Vec<PathBuf> {
    let around = wanted.into_iter().flat_map(Path::ancestors);
    around.filter(|path| !path.as_os_str().is_empty() && !path.exists()).map(Path::to_owned).collect()
}

/// Removes folders that were made, innermost first; what somebody else has put something into stays.
pub fn remove_folders(made: &[PathBuf]) -> Result<()> {
    use std::io::ErrorKind::{DirectoryNotEmpty, NotFound};
    for folder in made.iter().rev() {
        match std::fs::remove_dir(folder) {
            Err(error) if !matches!(error.kind(), DirectoryNotEmpty | NotFound) => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The note of what to put back.
#[derive(Debug)]
pub struct Notes {
    path: PathBuf,
    /// What was found.
    pub found: Found,
}

impl Notes {
    /// Reads the note of a state folder; empty if there is none.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join(FILE);
        let found = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("{} cannot be read; remove it if this host was cleaned by hand", path.display())
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Found::default(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        Ok(Notes { path, found })
    }

    /// Writes the note.
    pub fn save(&self) -> Result<()> {
        write_atomically(&self.path, &serde_json::to_vec_pretty(&self.found)?)
    }
}

/// Keeps the kernel from giving SNAT ports to its own sockets.
pub fn fence_ports(ns: &Netns, notes: &mut Notes, ports: (u16, u16)) -> Result<()> {
    let current = sluice_hostnet::reserved_ports(ns)?;
    if notes.found.reserved_ports.is_none() {
        notes.found.reserved_ports = Some(current.clone());
        notes.save()?;
    }
    let wanted = sluice_hostnet::with_reserved(&current, ports.0, ports.1);
    if wanted != current {
        sluice_hostnet::set_reserved_ports(ns, &wanted)?;
    }
    Ok(())
}

/// The uplink's interface, or what is missing.
pub fn uplink(ns: &Netns, name: &str) -> Result<Interface> {
    match sluice_hostnet::interface(ns, name)? {
        Some(interface) if interface.up => Ok(interface),
        Some(_) => {
            Err(Lacking { what: format!("the uplink {name} is down"), mend: format!("ip link set {name} up") }.into())
        }
        None => Err(Lacking {
            what: format!("there is no interface {name} in this network namespace"),
            mend: "name the node's network interface in `ports.uplink.interface`; `ip -brief link` lists them"
                .to_owned(),
        }
        .into()),
    }
}

/// Sets the host port up for these overlay addresses and cluster ranges.
pub fn configure_host_port(ns: &Netns, name: &str, overlay: &[IpAddr], ranges: &[IpNet], mtu: u16) -> Result<[u8; 6]> {
    let mac = derived_mac(overlay).unwrap_or([2, 0, 0, 0, 0, 1]);
    let wanted = HostInterface { name, mac, mtu: u32::from(mtu), addresses: overlay, routes: ranges, exclude: &[] };
    sluice_hostnet::configure_host(ns, &wanted)?;
    Ok(mac)
}

/// Takes the host port's addresses and routes away: the host reaches nothing through it any more.
pub fn silence_host_port(ns: &Netns, name: &str) -> Result<()> {
    let mac = sluice_hostnet::interface(ns, name)?.map_or([2, 0, 0, 0, 0, 1], |found| found.mac);
    let nothing = HostInterface { name, mac, mtu: 1500, addresses: &[], routes: &[], exclude: &[] };
    Ok(sluice_hostnet::configure_host(ns, &nothing)?)
}

/// The kernel's usable neighbours on the uplink.
pub fn neighbours(ns: &Netns, uplink: &str) -> BTreeMap<IpAddr, [u8; 6]> {
    match sluice_hostnet::neighbours(ns, uplink) {
        Ok(list) => list.into_iter().map(|n| (n.address, n.mac)).collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot read the neighbours of {uplink}");
            BTreeMap::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_were_made_go_again_unless_somebody_uses_them() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        std::fs::create_dir(at("there")).unwrap();
        let wanted = [at("there/a/b"), at("there/a/c"), at("there")];
        let mut found = Found::default();
        found.note_folders(absent_folders(wanted.iter().map(PathBuf::as_path)));
        assert_eq!(found.folders, [at("there/a"), at("there/a/b"), at("there/a/c")]);
        wanted.iter().for_each(|path| std::fs::create_dir_all(path).unwrap());
        std::fs::write(at("there/a/c/theirs"), "").unwrap();
        remove_folders(&found.folders).unwrap();
        assert!(at("there/a/c/theirs").exists() && !at("there/a/b").exists());
        std::fs::remove_file(at("there/a/c/theirs")).unwrap();
        remove_folders(&found.folders).unwrap();
        remove_folders(&found.folders).unwrap();
        assert!(at("there").exists() && !at("there/a").exists());
    }
}
