//! Egress gateways: which pods leave the cluster where, and under which address.
//!
//! Owner: the control thread. Source: sluicegate.dev/v1alpha1 `EgressGateway`. Rendezvous hashing of the pod's address
//! chooses one of the egress addresses of its family; the node that carries that address now is where the pod's new flows
//! leave (`compile::carriers`). Flows that have begun stay with their gateway as long as it carries anything of this object.
//! Invariant: a selected pod never leaves with another source (law 6): no node or no address gives `Nowhere`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use sluice_tables::{Address, Egress, EgressPath, EgressRule, HopId, Lpm, Prefix};

use super::carriers::Moving;
use super::directory::Known;
use super::hops::HopPlan;
use super::{Context, Finding};
use crate::carriers::placement::weight;
use crate::model::{EgressGateway, Family, Labels};

/// The rules that concern this node, and the names of other nodes that local pods leave through.
pub(crate) fn compile(
    context: &Context<'_>,
    plan: &HopPlan,
    moving: &Moving,
    invalid: &mut BTreeSet<Finding>,
) -> (Egress, BTreeSet<String>) {
    let own = context.node.name.as_str();
    let mut egress = Egress::default();
    let mut gateways_used = BTreeSet::new();
    for gateway in context.cluster.egress_gateways.values() {
        let addresses = moving.egress.get(&gateway.name).map_or(&[][..], Vec::as_slice);
        let carriers: BTreeSet<&str> = addresses.iter().filter_map(|ip| moving.carrier(*ip)).collect();
        let keep: Vec<HopId> = carriers.iter().filter_map(|node| plan.gateway_tunnels.get(*node).copied()).collect();
        let shape = Shape::of(gateway, keep.into());
        let (mut serves, mut shadowed) = (false, false);
        for known in context.directory.pods.values().filter(|known| selects(context, gateway, known)) {
            for address in &known.addresses {
                let chosen = choose(addresses, *address);
                let path = match chosen.and_then(|ip| moving.carrier(ip)) {
                    Some(node) if node == own => EgressPath::Here,
                    // A pod of another node that leaves elsewhere is none of our business.
                    _ if known.local.is_none() => continue,
                    Some(node) => {
                        plan.gateway_tunnels.get(node).map_or(EgressPath::Nowhere, |hop| EgressPath::Gateway(*hop))
                    }
                    None => EgressPath::Nowhere,
                };
                serves |= known.local.is_some();
                let rule = shape.rule(path, chosen.map_or(unspecified(*address), Into::into));
                let rules = egress.rules.entry(Address::from(*address)).or_default();
                if let Some(first) = rules.iter().find(|earlier| !shadowed && shadows(earlier, &rule)) {
                    shadowed = true;
                    let why = format!(
                        "pod {} and its destinations are EgressGateway {}'s already, which counts because of its name",
                        known.name, first.name
                    );
                    let name = gateway.name.clone();
                    invalid.insert(Finding { kind: "EgressGateway", name, field: "spec.podSelector", why });
                }
                rules.push(rule);
            }
        }
        if serves {
            gateways_used.extend(carriers.into_iter().filter(|node| *node != own).map(str::to_owned));
        }
    }
    let ours: BTreeSet<IpAddr> = moving.carried_by(own).collect();
    let leaves_with: BTreeSet<IpAddr> = moving.egress.values().flatten().copied().collect();
    egress.addresses = ours.intersection(&leaves_with).map(|ip| Address::from(*ip)).collect();
    let announced = ours.iter().filter(|ip| !context.node.internal_ips.contains(ip));
    egress.announced = announced.map(|ip| Address::from(*ip)).collect();
    (egress, gateways_used)
}

/// The egress address of a pod's address: the one of its family with the highest weight, the lower where two are equal.
/// Addresses that nobody carries now count too: their pods wait for them, and no other pod moves.
fn choose(addresses: &[IpAddr], pod: IpAddr) -> Option<IpAddr> {
    let of_family = addresses.iter().copied().filter(|ip| Family::of(ip) == Family::of(&pod));
    of_family.max_by_key(|ip| (weight(pod, &Address::from(*ip).0), std::cmp::Reverse(*ip)))
}

/// Whether an earlier rule of a pod takes all that goes to one of a later rule's networks.
fn shadows(earlier: &EgressRule, later: &EgressRule) -> bool {
    let excepted =
        |net: &Prefix| earlier.excluded.entries().iter().any(|(hole, _)| hole.covers(net) || net.covers(hole));
    let Some(later) = &later.destinations else { return earlier.destinations.is_none() };
    later.entries().iter().filter(|(net, _)| !excepted(net)).any(|(net, _)| match &earlier.destinations {
        None => true,
        Some(map) => map.entries().iter().any(|(wider, _)| wider.covers(net)),
    })
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
    keep: Arc<[HopId]>,
}

impl Shape {
    fn of(gateway: &EgressGateway, keep: Arc<[HopId]>) -> Shape {
        let to = gateway.destinations.as_ref().map(|nets| nets.iter().map(|net| (Prefix::from(*net), true)));
        Shape {
            name: gateway.name.as_str().into(),
            destinations: to.map(|nets| Arc::new(Lpm::from_entries(nets))),
            excluded: Arc::new(Lpm::from_entries(gateway.excluded.iter().map(|net| (Prefix::from(*net), ())))),
            keep,
        }
    }

    fn rule(&self, path: EgressPath, address: Address) -> EgressRule {
        let (name, destinations, keep) = (self.name.clone(), self.destinations.clone(), self.keep.clone());
        EgressRule { name, destinations, excluded: self.excluded.clone(), path, keep, address }
    }
}

fn unspecified(like: IpAddr) -> Address {
    if like.is_ipv4() { Address::v4([0; 4]) } else { Address::v6([0; 16]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_that_goes_moves_only_the_pods_it_had() {
        let (all, fewer) =
            ([ip("192.0.2.50"), ip("192.0.2.51"), ip("192.0.2.52")], [ip("192.0.2.50"), ip("192.0.2.52")]);
        let mut had = 0;
        for last in 0..=255u8 {
            let pod = IpAddr::from([10, 244, 1, last]);
            match choose(&all, pod) {
                Some(gone) if gone == ip("192.0.2.51") => had += 1,
                other => assert_eq!(choose(&fewer, pod), other),
            }
        }
        assert!((40..130).contains(&had), "a third of 256, got {had}");
    }

    #[test]
    fn a_pod_gets_an_address_of_its_own_family() {
        let both = [ip("192.0.2.50"), ip("2001:db8::50")];
        assert_eq!(choose(&both, ip("fd00::5")), Some(ip("2001:db8::50")));
        assert_eq!(choose(&both[..1], ip("fd00::5")), None);
    }
}
