//! Who owns which pod address: the pods of the cluster, with this machine's view taking precedence for its own.
//!
//! Owner: the control thread. Invariants: finished pods and pods on the host's network are not in it; an address has
//! one owner, local pods first, then by name, and every other claim is a [`Finding`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use sluice_tables::limits::{MAX_PORTS, at_most};
use sluice_tables::{Address, Pods, Prefix, TableError};

use super::hops::HopPlan;
use super::policy::CompiledPolicy;
use super::{Finding, LocalPod, LocalView};
use crate::model::{Cluster, NamespacedName, Pod};

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

/// All pods, by name.
pub(crate) struct Directory<'a> {
    pub pods: BTreeMap<&'a NamespacedName, Known<'a>>,
}

impl<'a> Directory<'a> {
    pub fn new(cluster: &'a Cluster, local: &'a LocalView, invalid: &mut BTreeSet<Finding>) -> Self {
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
        let mut pods = BTreeMap::new();
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
            let addresses = claim(name, &pod.addresses);
            pods.insert(name, Known { name, pod: Some(pod), local: None, node: pod.node.as_deref(), addresses });
        }
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
            let pod = sluice_tables::Pod {
                name: known.name.to_string().into(),
                port: port.port,
                worker: port.worker,
                mac: port.mac,
                addresses: known.addresses.iter().map(|ip| Address::from(*ip)).collect(),
                extra_sources: {
                    let given = port.extra_sources.iter().map(|net| (*net).into());
                    given.chain(extra_sources(known)).collect()
                },
                ingress: rules.ingress,
                egress: rules.egress,
                hop: *hop,
            };
            pods.push((pod.into(), rules.version));
        }
        Ok(Pods::new(pods))
    }
}
