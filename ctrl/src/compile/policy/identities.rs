//! Addresses sorted into classes that every rule treats alike.
//!
//! Owner: the control thread. A class is the set of questions its addresses answer with yes, with the numbers behind the
//! port names that egress rules look up on a peer; class 0 answers every question with no. Blocks are compared with pod
//! addresses too. Invariants: ids follow the order of classes; an address is listed only where its class is not that of
//! its most specific prefix, a prefix only where its class is not that of the prefix around it.
//! Cost: questions × (distinct label sets + prefixes), and one lookup per address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_tables::{Address, Identities, IdentityId, Lpm, Prefix, Transport};

use super::super::Context;
use super::super::routes::overlay_addresses;
use super::matchers::{MatcherId, Matchers};
use super::rules::transport;
use crate::model::{ContainerPort, Labels};

/// What rules can tell of an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Class {
    /// Questions answered with yes, sorted.
    pub yes: Vec<MatcherId>,
    /// (index into [`Matchers::names`], protocol, number).
    pub ports: Vec<(usize, Transport, u16)>,
}

impl Class {
    pub fn answers(&self, matcher: MatcherId) -> bool {
        self.yes.binary_search(&matcher).is_ok()
    }
}

/// Classes by id, and who belongs to which.
pub(crate) struct Classes {
    /// Index is the id; the first is the empty class.
    pub list: Vec<Class>,
    /// Addresses listed one by one, by id.
    pub members: Vec<Vec<Address>>,
    pub identities: Identities,
}

impl Classes {
    pub fn build(context: &Context<'_>, matchers: &Matchers) -> Classes {
        let prefixes: Vec<(Prefix, Vec<MatcherId>)> =
            matchers.prefixes().into_iter().map(|p| (p, matchers.of_prefix(&p))).collect();
        let blocks: Lpm<Vec<MatcherId>> = Lpm::from_entries(prefixes.iter().cloned());
        let around = |address: Address| blocks.lookup(address).cloned().unwrap_or_default();

        let mut exact: BTreeMap<Address, Class> = BTreeMap::new();
        let mut add = |ip: IpAddr, yes: &[MatcherId], ports: &[(usize, Transport, u16)]| {
            let inside = around(ip.into());
            if yes.is_empty() && ports.is_empty() {
                return;
            }
            let yes: BTreeSet<MatcherId> = inside.iter().chain(yes).copied().collect();
            let class = Class { yes: yes.into_iter().collect(), ports: ports.to_vec() };
            exact.entry(ip.into()).or_insert(class);
        };
        let none = Labels::new();
        let mut seen: BTreeMap<(&str, &Labels), Vec<MatcherId>> = BTreeMap::new();
        for known in context.directory.pods.values() {
            let namespace = known.name.namespace.as_str();
            let labels = known.pod.map_or(&none, |p| &p.labels);
            let yes = seen.entry((namespace, labels)).or_insert_with(|| {
                matchers.of_pod(namespace, context.cluster.namespace_labels(namespace).unwrap_or(&none), labels)
            });
            let ports = known.pod.map_or_else(Vec::new, |p| named_ports(matchers, &p.ports));
            known.addresses.iter().for_each(|ip| add(*ip, yes, &ports));
        }
        if matchers.ask_for_nodes() {
            for node in context.cluster.nodes.values() {
                let yes = matchers.of_node(&node.labels);
                let addresses = node.internal_ips.iter().chain(&node.external_ips).copied();
                addresses.chain(overlay_addresses(node)).for_each(|ip| add(ip, &yes, &[]));
            }
        }

        let of_prefix = |yes: &[MatcherId]| Class { yes: yes.to_vec(), ports: Vec::new() };
        let mut distinct: BTreeSet<Class> = exact.values().cloned().collect();
        distinct.extend(prefixes.iter().map(|(_, yes)| of_prefix(yes)));
        distinct.insert(Class::default());
        let list: Vec<Class> = distinct.into_iter().collect();
        let id = |class: &Class| IdentityId(list.binary_search(class).unwrap_or(0) as u32);

        let mut identities = Identities::default();
        for (prefix, yes) in &prefixes {
            let class = id(&of_prefix(yes));
            // Shorter prefixes are in already, so this asks the network around.
            let parent = identities.prefixes.lookup(prefix.address()).copied().unwrap_or_default();
            if class != parent {
                identities.prefixes.insert(*prefix, class);
            }
        }
        let mut members = vec![Vec::new(); list.len()];
        for (address, class) in &exact {
            let id = id(class);
            members[id.0 as usize].push(*address);
            identities.exact.insert(*address, id);
        }
        Classes { list, members, identities }
    }
}

/// The numbers a pod gives to the names that rules ask for.
fn named_ports(matchers: &Matchers, ports: &[ContainerPort]) -> Vec<(usize, Transport, u16)> {
    let mut found = BTreeSet::new();
    for (index, (protocol, name)) in matchers.names.iter().enumerate() {
        for port in ports.iter().filter(|p| p.name.as_ref() == Some(name)) {
            if protocol.is_none_or(|wanted| wanted == port.protocol) {
                found.insert((index, transport(port.protocol), port.port));
            }
        }
    }
    found.into_iter().collect()
}
