//! Ports of the node that lead to one pod: `hostPort`.
//!
//! Owner: the control thread. Source: core/v1 `ContainerPort.hostPort` and `hostIP`, CNI capability `portMappings`. Each is a
//! frontend with one local backend, so that clients outside keep their address, policy is asked as for any packet to the
//! pod, and replies find back. One (address, protocol, port) is one pod's: a Service's node port goes first, then the first
//! pod by name; every other claim is a [`Finding`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use sluice_tables::services::{FrontendKind, VERSION_SLOTS, shard_of};
use sluice_tables::stable_hash::{stable_hash, stamp};
use sluice_tables::{Address, Backend, BackendSet, Frontend, FrontendKey, Services, TableError};

use super::directory::Known;
use super::local::PortMapping;
use super::{Context, Finding, Knobs};
use crate::model::{Family, Node};

/// A port of the node in one family, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostPort {
    /// `ns/name` of the pod.
    pub pod: String,
    /// The node's address; none: all of the family.
    pub address: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: u8,
    /// Port of the node.
    pub port: u16,
    /// The pod's address.
    pub to: IpAddr,
    /// The pod's port.
    pub to_port: u16,
    name: String,
}

impl HostPort {
    /// Family, protocol and port, where it is on an address that packets come to this node for.
    pub fn on(&self, node: &Node) -> Option<(Family, u8, u16)> {
        let here = self.address.is_none_or(|ip| node.internal_ips.contains(&ip));
        here.then(|| (Family::of(&self.to), self.protocol, self.port))
    }
}

/// All of them, by pod.
pub(crate) fn of(context: &Context<'_>) -> Vec<HostPort> {
    let mut all = Vec::new();
    for (known, local) in context.directory.local() {
        let mut mappings: BTreeSet<PortMapping> = local.mappings.iter().copied().collect();
        mappings.extend(declared(known));
        for mapping in mappings {
            for to in &known.addresses {
                if mapping.host_ip.is_some_and(|ip| Family::of(&ip) != Family::of(to)) {
                    continue;
                }
                all.push(HostPort {
                    pod: known.name.to_string(),
                    address: mapping.host_ip,
                    protocol: mapping.protocol.number(),
                    port: mapping.host_port,
                    to: *to,
                    to_port: mapping.port,
                    name: format!("pod/{}:{}/{}", known.name, mapping.host_port, mapping.protocol),
                });
            }
        }
    }
    all
}

/// What the Pod object's containers declare.
fn declared<'a>(known: &'a Known<'_>) -> impl Iterator<Item = PortMapping> + 'a {
    let ports = known.pod.into_iter().flat_map(|pod| &pod.ports);
    ports.filter_map(|port| {
        Some(PortMapping {
            host_ip: port.host_ip,
            host_port: port.host_port?,
            protocol: port.protocol,
            port: port.port,
        })
    })
}

/// Puts them beside the frontends of Services, and gives back those that hold: what is refused here must not be redirected
/// by the host either, least of all a `hostIP` that is somebody else's address.
pub(crate) fn program(
    knobs: &Knobs,
    node: &Node,
    host_ports: &[HostPort],
    services: &mut Services,
    invalid: &mut BTreeSet<Finding>,
) -> Result<Vec<HostPort>, TableError> {
    let mut accepted = Vec::new();
    let mut versions: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for wanted in host_ports {
        let refuse = |why: String| Finding {
            kind: "Pod",
            name: wanted.pod.clone(),
            field: "spec.containers.ports.hostPort",
            why,
        };
        if let Some(whose) = reserved(knobs, wanted) {
            invalid.insert(refuse(format!("port {} lies in {whose}; not programmed", wanted.port)));
            continue;
        }
        let address = match wanted.address {
            // The loopback is the host's own: packets to it never come here, and the host redirects them.
            Some(ip) if ip.is_loopback() => {
                accepted.push(wanted.clone());
                continue;
            }
            Some(ip) if !node.internal_ips.contains(&ip) => {
                invalid.insert(refuse(format!("hostIP {ip} is no address of this node; not programmed")));
                continue;
            }
            Some(ip) => ip.into(),
            None if wanted.to.is_ipv4() => Address::v4([0; 4]),
            None => Address::v6([0; 16]),
        };
        let key = FrontendKey { address, protocol: wanted.protocol, port: wanted.port };
        let Some(shard) = services.shards.get_mut(shard_of(&key)) else { continue };
        if let Some(winner) = shard.frontends.get(&key) {
            let (port, winner) = (wanted.port, &winner.name);
            invalid.insert(refuse(format!("port {port} belongs to {winner} already; not programmed for this pod")));
            continue;
        }
        let slot = 1 + (stable_hash(wanted.name.as_bytes()) % (VERSION_SLOTS as u64 - 1)) as u16;
        let backend = (wanted.to.into(), wanted.to_port);
        let set = BackendSet::new(vec![Backend { address: backend.0, port: backend.1, local: true }])?;
        let set = Arc::new(set);
        let frontend = Frontend {
            name: wanted.name.as_str().into(),
            slot,
            kind: FrontendKind::HostPort,
            internal: set.clone(),
            external: set,
            alive: Arc::new([backend].into_iter().collect()),
            internal_local_empty: false,
            external_local_empty: false,
            external_local: true,
            affinity: None,
            direct: false,
            source_ranges: None,
        };
        Arc::make_mut(shard).frontends.insert(key, frontend);
        versions.entry(slot).or_default().push(format!("{key:?} {backend:?}"));
        accepted.push(wanted.clone());
    }
    if !versions.is_empty() {
        let all = Arc::make_mut(&mut services.versions);
        for (slot, content) in versions {
            if let Some(version) = all.get_mut(usize::from(slot)) {
                *version = stamp(&(*version, content));
            }
        }
    }
    Ok(accepted)
}

/// What else the node's port is for.
fn reserved(knobs: &Knobs, wanted: &HostPort) -> Option<&'static str> {
    let settings = &knobs.settings;
    let (first, last) = settings.snat_ports;
    if (first..=last).contains(&wanted.port) {
        return Some("masquerade.ports");
    }
    (wanted.protocol == 17 && wanted.port == settings.vxlan_port).then_some("vxlan.port")
}
