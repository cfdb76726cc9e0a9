//! Egress gateways: which pods leave the cluster where, and under which address.
//!
//! Owner: the control thread. Source: sluicegate.dev/v1alpha1 `EgressGateway`. Every node computes the same placement
//! from the cluster alone: rendezvous hashing (Thaler, Ravishankar 1998) of the pod's address chooses one of the
//! egress addresses of its family, rendezvous hashing of that address chooses the one node that carries it, so that no
//! two nodes ever answer for one address. Weight of a candidate: [`StableHasher`], FNV-1a 64 over the 16 bytes of
//! the address that asks (IPv4 as ::ffff:a.b.c.d) and the candidate's bytes (address or node name); the highest wins,
//! the lower candidate where two are equal. Candidates are nodes that are not known to be unready; where all are
//! unready, all of them, because an egress address must not be left for that.
//! Invariant: a selected pod never leaves with another source (law 6): no node or no address gives `Nowhere`.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_tables::stable_hash::StableHasher;
use sluice_tables::{Address, Egress, EgressPath, EgressRule, Lpm, Prefix};

use super::directory::Known;
use super::hops::HopPlan;
use super::{Context, Finding};
use crate::model::{EgressGateway, Family, Labels, Node};

/// The rules that concern this node, and the names of other nodes that local pods leave through.
pub(crate) fn compile(
    context: &Context<'_>,
    plan: &HopPlan,
    invalid: &mut BTreeSet<Finding>,
) -> (Egress, BTreeSet<String>) {
    let holders = holders(context, invalid);
    let mut egress = Egress::default();
    let mut gateways_used = BTreeSet::new();
    for gateway in context.cluster.egress_gateways.values() {
        let shape = Shape::of(gateway);
        for known in context.directory.pods.values().filter(|known| selects(context, gateway, known)) {
            for address in &known.addresses {
                let chosen = choose(gateway, *address, &holders);
                let path = match chosen {
                    Some((_, node)) if node == context.node.name => EgressPath::Here,
                    // A pod of another node that leaves elsewhere is none of our business.
                    _ if known.local.is_none() => continue,
                    Some((_, node)) => match plan.tunnels.get(node) {
                        Some(hop) => {
                            gateways_used.insert(node.to_owned());
                            EgressPath::Gateway(*hop)
                        }
                        None => EgressPath::Nowhere,
                    },
                    None => EgressPath::Nowhere,
                };
                let rule = shape.rule(path, chosen.map_or(unspecified(*address), |(ip, _)| ip.into()));
                egress.rules.entry(Address::from(*address)).or_default().push(rule);
            }
        }
    }
    let ours = holders.values().filter(|held| held.node == Some(context.node.name.as_str()));
    egress.addresses = ours.map(|held| Address::from(held.address)).collect();
    (egress, gateways_used)
}

/// An egress address and the node that carries it.
struct Held<'a> {
    address: IpAddr,
    node: Option<&'a str>,
}

/// Every egress address with its one carrier, by address. The first gateway by name that lists an address decides.
fn holders<'a>(context: &Context<'a>, invalid: &mut BTreeSet<Finding>) -> BTreeMap<IpAddr, Held<'a>> {
    let mut holders: BTreeMap<IpAddr, Held<'a>> = BTreeMap::new();
    let mut deciders: BTreeMap<IpAddr, &EgressGateway> = BTreeMap::new();
    for gateway in context.cluster.egress_gateways.values() {
        let candidates = candidates(context, gateway);
        for address in &gateway.egress_ips {
            let first = *deciders.entry(*address).or_insert(gateway);
            if first.name != gateway.name {
                let carrier = holders.get(address).and_then(|held| held.node);
                if !candidates.iter().any(|n| Some(n.name.as_str()) == carrier) {
                    let why = format!(
                        "{address} is carried by a node of EgressGateway {} and of no node of this one",
                        first.name
                    );
                    let name = gateway.name.clone();
                    invalid.insert(Finding { kind: "EgressGateway", name, field: "spec.egressIPs", why });
                }
                continue;
            }
            let node = rendezvous(*address, candidates.iter().map(|n| (n.name.as_bytes(), n.name.as_str())));
            holders.insert(*address, Held { address: *address, node });
        }
    }
    holders
}

/// The gateway's nodes, by name.
fn candidates<'a>(context: &Context<'a>, gateway: &EgressGateway) -> Vec<&'a Node> {
    let nodes = context.cluster.nodes.values().map(Arc::as_ref);
    let all: Vec<&Node> = nodes.filter(|n| !gateway.fail_closed && gateway.gateway_nodes.matches(&n.labels)).collect();
    let ready: Vec<&Node> = all.iter().copied().filter(|n| n.ready != Some(false)).collect();
    if ready.is_empty() { all } else { ready }
}

/// The egress address of a pod's address, and the node that carries it.
fn choose<'a>(gateway: &EgressGateway, pod: IpAddr, holders: &BTreeMap<IpAddr, Held<'a>>) -> Option<(IpAddr, &'a str)> {
    let carried = gateway.addresses(Family::of(&pod)).filter_map(|ip| Some((ip, holders.get(&ip)?.node?)));
    let carried: Vec<_> = carried.map(|(ip, node)| (Address::from(ip).0, (ip, node))).collect();
    rendezvous(pod, carried.iter().map(|(bytes, chosen)| (bytes.as_slice(), *chosen)))
}

/// The candidate with the highest weight for `asks`; the lower bytes where weights are equal.
fn rendezvous<'a, T>(asks: IpAddr, candidates: impl Iterator<Item = (&'a [u8], T)>) -> Option<T> {
    let weight = |candidate: &[u8]| {
        let mut hasher = StableHasher::default();
        hasher.write(&Address::from(asks).0);
        hasher.write(candidate);
        hasher.finish()
    };
    candidates.max_by_key(|(bytes, _)| (weight(bytes), std::cmp::Reverse(bytes.to_vec()))).map(|(_, chosen)| chosen)
}

fn selects(context: &Context<'_>, gateway: &EgressGateway, known: &Known<'_>) -> bool {
    let none = Labels::new();
    let namespace = context.cluster.namespace_labels(&known.name.namespace).unwrap_or(&none);
    gateway.namespaces.matches(namespace) && gateway.pods.matches(known.pod.map_or(&none, |p| &p.labels))
}

/// What all rules of one gateway share.
struct Shape {
    name: Arc<str>,
    destinations: Option<Arc<Lpm<bool>>>,
    excluded: Arc<Lpm<()>>,
}

impl Shape {
    fn of(gateway: &EgressGateway) -> Shape {
        let to = gateway.destinations.as_ref().map(|nets| nets.iter().map(|net| (Prefix::from(*net), true)));
        Shape {
            name: gateway.name.as_str().into(),
            destinations: to.map(|nets| Arc::new(Lpm::from_entries(nets))),
            excluded: Arc::new(Lpm::from_entries(gateway.excluded.iter().map(|net| (Prefix::from(*net), ())))),
        }
    }

    fn rule(&self, path: EgressPath, address: Address) -> EgressRule {
        let (name, destinations) = (self.name.clone(), self.destinations.clone());
        EgressRule { name, destinations, excluded: self.excluded.clone(), path, address }
    }
}

fn unspecified(like: IpAddr) -> Address {
    if like.is_ipv4() { Address::v4([0; 4]) } else { Address::v6([0; 16]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(pod: &str, nodes: &[&str]) -> String {
        rendezvous(pod.parse().unwrap(), nodes.iter().map(|n| (n.as_bytes(), *n))).unwrap().to_owned()
    }

    #[test]
    fn a_candidate_that_leaves_moves_only_what_it_carried() {
        let (all, fewer) = (["gw-a", "gw-b", "gw-c"], ["gw-a", "gw-c"]);
        let mut carried = 0;
        for last in 0..=255 {
            let pod = format!("10.244.1.{last}");
            match chosen(&pod, &all).as_str() {
                "gw-b" => carried += 1,
                other => assert_eq!(chosen(&pod, &fewer), other),
            }
        }
        assert!((40..130).contains(&carried), "a third of 256, got {carried}");
    }

    #[test]
    fn the_choice_is_pinned_because_nodes_of_different_builds_must_agree() {
        let nodes = ["gw-a", "gw-b", "gw-c"];
        let picks: Vec<_> = (1..=6).map(|n| chosen(&format!("10.244.1.{n}"), &nodes)).collect();
        assert_eq!(picks.join(" "), "gw-a gw-a gw-c gw-c gw-a gw-c");
    }

    #[test]
    fn nobody_is_chosen_of_nobody() {
        assert_eq!(rendezvous::<()>("10.0.0.1".parse().unwrap(), std::iter::empty()), None);
    }
}
