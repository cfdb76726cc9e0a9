//! ADDs that were refused: kept for the status, counted, and told to the API server where no address was left.
//!
//! Events are made once for an object and a sentence, so what is told here bears no number that changes from one try of kubelet
//! to the next.

use super::control::Control;
use crate::api::problem::Problem;
use sluice_cni::protocol::ErrorBody;
use sluice_ctrl::ipam::{IpamError, Pool};
use sluice_ctrl::model::{Family, NamespacedName};
use sluice_ctrl::source::{Kind, ObjectKey};
use sluice_kube::writer::Note;
use std::collections::{BTreeMap, BTreeSet};

/// Pods whose refused ADD is remembered for the status.
const REMEMBERED: usize = 64;

/// What became of ADDs that did not succeed.
#[derive(Debug, Default)]
pub struct Refusals {
    by_pod: BTreeMap<NamespacedName, String>,
    exhausted: [u64; 2],
}

impl Refusals {
    /// Keeps why a pod's last ADD was refused, until an ADD or a DEL of it succeeds.
    pub fn remember(&mut self, pod: NamespacedName, error: Option<&ErrorBody>) {
        self.by_pod.remove(&pod);
        if let Some(error) = error
            && self.by_pod.len() < REMEMBERED
        {
            self.by_pod.insert(pod, format!("{}: {}", error.msg, error.details));
        }
    }

    /// Pods whose last ADD was refused, as problems of their objects.
    pub fn problems(&self) -> impl Iterator<Item = Problem> + '_ {
        self.by_pod
            .iter()
            .map(|(name, why)| Problem { object: Some(format!("Pod/{name}")), ..Problem::plain(why.clone()) })
    }

    /// ADDs refused for want of an address, by family.
    pub fn exhausted(&self) -> BTreeMap<String, u64> {
        [("IPv4", self.exhausted[0]), ("IPv6", self.exhausted[1])].map(|(f, n)| (f.to_owned(), n)).into()
    }
}

impl Control {
    /// Counts an ADD for which no address was left, and tells the API server: on the pod, and on what should have had one.
    pub(super) fn note_exhaustion(&mut self, pod: &NamespacedName, pools: &[Pool], error: &IpamError) {
        let IpamError::Exhausted { family, .. } = error else { return };
        self.refusals.exhausted[usize::from(*family == Family::V6)] += 1;
        for note in exhaustion_notes(pod, &self.config.node, pools, *family) {
            self.note_event(note);
        }
    }
}

fn exhaustion_notes(pod: &NamespacedName, node: &str, pools: &[Pool], family: Family) -> Vec<Note> {
    let tried: Vec<&Pool> = pools.iter().filter(|p| Family::of_net(&p.net) == family).collect();
    let networks = |of: &dyn Fn(&Pool) -> bool| {
        let all = tried.iter().filter(|p| of(p)).map(|p| format!("{} ({} addresses for this node)", p.net, p.size()));
        all.collect::<Vec<_>>().join(", ")
    };
    let key = |kind, namespace: &str, name: &str| ObjectKey { kind, namespace: namespace.into(), name: name.into() };
    let of_pod = Note {
        key: key(Kind::Pod, &pod.namespace, &pod.name),
        reason: "NoFreeAddress",
        message: format!("no free {family} address on node {node} in {}", networks(&|_| true)),
    };
    let names: BTreeSet<&str> = tried.iter().map(|p| p.name.as_str()).collect();
    let of_pools = names.into_iter().map(|name| Note {
        key: match name {
            "node" => key(Kind::Node, "", node),
            pool => key(Kind::IpPool, "", pool),
        },
        reason: "AddressesExhausted",
        message: format!("pods of node {node} have no free {family} address left in {}", networks(&|p| p.name == name)),
    });
    std::iter::once(of_pod).chain(of_pools).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_cni::protocol::ErrorCode;

    fn pool(name: &str, net: &str) -> Pool {
        Pool { name: name.to_owned(), net: net.parse().unwrap(), share: None }
    }

    #[test]
    fn want_of_addresses_is_told_on_the_pod_and_on_every_pool_of_the_family() {
        let pools = [pool("edge", "10.60.0.0/29"), pool("node", "10.244.1.0/30"), pool("node", "fd00::/64")];
        let pod = NamespacedName::new("shop", "web");
        let notes = exhaustion_notes(&pod, "node-a", &pools, Family::V4);
        let told: Vec<_> = notes.iter().map(|n| (n.key.to_string(), n.reason)).collect();
        assert_eq!(
            told,
            [
                ("Pod/shop/web".to_owned(), "NoFreeAddress"),
                ("IPPool/edge".to_owned(), "AddressesExhausted"),
                ("Node/node-a".to_owned(), "AddressesExhausted")
            ]
        );
        assert!(notes[0].message.contains("10.60.0.0/29 (5 addresses") && notes[0].message.contains("10.244.1.0/30"));
        assert!(notes[1].message.contains("10.60.0.0/29") && !notes[1].message.contains("10.244.1.0"));
        assert!(notes.iter().all(|n| !n.message.contains("fd00")));
    }

    #[test]
    fn a_refusal_stands_until_the_pod_succeeds_and_their_number_is_bounded() {
        let mut refusals = Refusals::default();
        let error = ErrorBody::new(ErrorCode::TRY_AGAIN_LATER, "no address for x/y", "no free ipv4 address");
        for n in 0..2 * REMEMBERED {
            refusals.remember(NamespacedName::new("x", format!("p{n:03}")), Some(&error));
        }
        assert_eq!(refusals.problems().count(), REMEMBERED);
        refusals.remember(NamespacedName::new("x", "p000"), None);
        let left: Vec<_> = refusals.problems().map(|p| p.object.unwrap()).collect();
        assert!(left.len() == REMEMBERED - 1 && !left.contains(&"Pod/x/p000".to_owned()));
        assert_eq!(refusals.exhausted(), BTreeMap::from([("IPv4".to_owned(), 0), ("IPv6".to_owned(), 0)]));
    }
}
