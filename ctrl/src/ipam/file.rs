//! The file that leases are kept in: JSON with a version.
//!
//! Owner: the control thread. Invariant: after a crash at any moment the file is the old one or the new one, whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Lease;
use super::pool::Pool;
use super::state::{Rest, State};
use crate::model::NamespacedName;

const VERSION: u32 = 1;

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    leases: Vec<LeaseDocument>,
    resting: BTreeMap<IpAddr, u64>,
    /// Whose the resting addresses were.
    #[serde(default)]
    rested_from: BTreeMap<IpAddr, String>,
    last: BTreeMap<IpNet, IpAddr>,
}

#[derive(Serialize, Deserialize)]
struct LeaseDocument {
    namespace: String,
    name: String,
    container: String,
    addresses: Vec<IpAddr>,
    since: u64,
}

/// The state in a file's bytes; the reason where they are none.
pub(super) fn read_state(bytes: &[u8]) -> Result<State, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if version != VERSION {
        return Err(format!("version {version}, and this program knows version {VERSION}"));
    }
    let document: Document = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let lease = |l: LeaseDocument| {
        let pod = NamespacedName::new(l.namespace, l.name);
        (l.container.clone(), Lease { pod, container: l.container, addresses: l.addresses, since: l.since })
    };
    let offset = |(net, address): (IpNet, IpAddr)| {
        let pool = Pool { name: String::new(), net, share: None };
        pool.offset(&address).map(|offset| (net, offset))
    };
    Ok(State {
        leases: document.leases.into_iter().map(lease).collect(),
        resting: document
            .resting
            .into_iter()
            .map(|(address, since)| {
                let pod = document.rested_from.get(&address).cloned().unwrap_or_default();
                (address, Rest { since, pod })
            })
            .collect(),
        last: document.last.into_iter().filter_map(offset).collect(),
    })
}

/// Writes aside, syncs, renames, syncs the directory: after a crash the file is the old one or the new one, whole.
pub(super) fn write_state(path: &Path, state: &State) -> io::Result<()> {
    let lease = |l: &Lease| LeaseDocument {
        namespace: l.pod.namespace.clone(),
        name: l.pod.name.clone(),
        container: l.container.clone(),
        addresses: l.addresses.clone(),
        since: l.since,
    };
    let document = Document {
        version: VERSION,
        leases: state.leases.values().map(lease).collect(),
        resting: state.resting.iter().map(|(address, rest)| (*address, rest.since)).collect(),
        rested_from: state.resting.iter().map(|(address, rest)| (*address, rest.pod.clone())).collect(),
        last: state
            .last
            .iter()
            .map(|(net, offset)| (*net, Pool { name: String::new(), net: *net, share: None }.address(*offset)))
            .collect(),
    };
    let aside = path.with_extension("json.new");
    let mut file = File::create(&aside)?;
    file.write_all(&serde_json::to_vec_pretty(&document)?)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
