//! Who owns which pod address: the pods of the cluster, with this machine's view taking precedence for its own.
//!
//! Owner: the control thread. Invariants: finished pods and pods on the host's network are not in it; an address has
//! one owner, local pods first, then by name, and every other claim is a [`Finding`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sluice_tables::limits::{MAX_PORTS, at_most};
use sluice_tables::stable_hash::stamp;
use sluice_tables::{Address, Pods, Prefix, TableError};

use super::hops::HopPlan;
use super::policy::CompiledPolicy;
use super::{Finding, LocalPod, LocalView};
use crate::model::{Cluster, NamespacedName, Pod, PoolUse};

/// A pod and the addresses it really owns.
pub(crate) struct Known<'a> {
    pub name: &'a NamespacedName,
    /// None for a local pod that the API has not shown: it has no labels.
    pub pod: Option<&'a Arc<Pod>>,
    pub local: Option<&'a LocalPod>,
    /// None where it is not scheduled.
    pub node: Option<&'a str>,
    pub addresses: Vec<IpAddr>,
}

/// The networks that pods may have addresses of: whoever may write a Pod's status may write any address, and the cluster must
/// not send the world's traffic there.
struct Networks<'a> {
    cluster: &'a Cluster,
    ranges: &'a [IpNet],
}

impl Networks<'_> {
    fn hold(&self, pod: &Pod, address: IpAddr) -> bool {
        let of = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        let own = pod.node.as_ref().and_then(|n| self.cluster.nodes.get(n)).is_some_and(|n| of(&n.pod_cidrs));
        let pools = || self.cluster.ip_pools.values().filter(|p| p.usage == PoolUse::Pods);
        own || of(self.ranges)
            || pools().any(|pool| of(&pool.cidrs))
            || self.cluster.nodes.values().any(|n| of(&n.pod_cidrs))
    }
}

/// All pods, by name.
pub(crate) struct Directory<'a> {
    pub pods: BTreeMap<&'a NamespacedName, Known<'a>>,
}

impl<'a> Directory<'a> {
    /// `ranges` are the pod networks of the configuration.
    pub fn new(cluster: &'a Cluster, local: &'a LocalView, ranges: &[IpNet], invalid: &mut BTreeSet<Finding>) -> Self {
        let networks = Networks { cluster, ranges };
        let mut owners: HashMap<IpAddr, &NamespacedName> = HashMap::new();
        let mut claim = |name: &'a NamespacedName, wanted: &[IpAddr]| {
            let mut got = Vec::new();
            for address in wanted {
                match *owners.entry(*address).or_insert(name) {
                    owner if owner == name => got.push(*address),
                    owner => {
                        let why = format!("{address} belongs to {owner} already; this pod is not reached by it");
                        invalid.insert(Finding { kind: "Pod", name: name.to_string(), field: "status.podIPs", why });
                    }
                }
            }
            got.dedup();
            got
        };
        let (mut pods, mut outside) = (BTreeMap::new(), Vec::new());
        for (name, port) in &local.pods {
            let pod = cluster.pods.get(name);
            if pod.is_some_and(|p| p.is_finished() || p.host_network) {
                continue;
            }
            let addresses = claim(name, &port.addresses);
            pods.insert(name, Known { name, pod, local: Some(port), node: Some(local.node.as_str()), addresses });
        }
        for (name, pod) in &cluster.pods {
            if local.pods.contains_key(name) || pod.is_finished() || pod.host_network || pod.addresses.is_empty() {
                continue;
            }
            let inside: Vec<IpAddr> = pod.addresses.iter().copied().filter(|ip| networks.hold(pod, *ip)).collect();
            for ip in pod.addresses.iter().filter(|ip| !inside.contains(ip)) {
                outside.push(Finding {
                    kind: "Pod",
                    name: name.to_string(),
                    field: "status.podIPs",
                    why: format!("{ip} lies in no pod network; this pod is not reached by it"),
                });
            }
            let addresses = claim(name, &inside);
            pods.insert(name, Known { name, pod: Some(pod), local: None, node: pod.node.as_deref(), addresses });
        }
        invalid.extend(outside);
        Directory { pods }
    }

    /// Pods with a port on this node, by name.
    pub fn local(&self) -> impl Iterator<Item = (&Known<'a>, &'a LocalPod)> {
        self.pods.values().filter_map(|known| Some((known, known.local?)))
    }

    /// The table of local pods.
    pub fn local_pods(
        &self,
        plan: &HopPlan,
        policy: &CompiledPolicy,
        mut extra_sources: impl FnMut(&Known<'a>) -> Vec<Prefix>,
    ) -> Result<Pods, TableError> {
        at_most("ports", MAX_PORTS, self.local().count() + 2)?;
        let mut pods = Vec::new();
        for (known, port) in self.local() {
            let Some(hop) = plan.pods.get(known.name) else { continue };
            let rules = policy.of(known.name);
            let extra_sources: Vec<Prefix> = {
                let given = port.extra_sources.iter().map(|net| (*net).into());
                given.chain(extra_sources(known)).collect()
            };
            let version = version(rules.version, &extra_sources);
            let pod = sluice_tables::Pod {
                name: known.name.to_string().into(),
                port: port.port,
                worker: port.worker,
                mac: port.mac,
                addresses: known.addresses.iter().map(|ip| Address::from(*ip)).collect(),
                extra_sources,
                ingress: rules.ingress,
                egress: rules.egress,
                hop: *hop,
            };
            pods.push((pod.into(), version));
        }
        Ok(Pods::new(pods))
    }
}

/// What a pod's flows were decided under: its rules, and the sources that it may bear beside its addresses.
pub(crate) fn version(rules: u32, extra_sources: &[Prefix]) -> u32 {
    if extra_sources.is_empty() { rules } else { stamp(&(rules, extra_sources)) }
}
