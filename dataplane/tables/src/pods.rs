//! Local pods: by port number (the hot path's index) and by address (routes).

use crate::address::{Address, Prefix};
use crate::policy::PolicySetId;
use std::sync::Arc;

/// A local pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// `namespace/name`.
    pub name: Arc<str>,
    /// Port number; also the zone of its flows.
    pub port: u16,
    /// Worker that owns the pod's flows and polls its port.
    pub worker: u16,
    /// MAC of the pod's interface.
    pub mac: [u8; 6],
    /// Its addresses; a packet from its port must bear one as source.
    pub addresses: Vec<Address>,
    /// Further source prefixes it may use.
    pub extra_sources: Vec<Prefix>,
    /// Rules for packets to it; `None` where no policy selects it for ingress.
    pub ingress: Option<PolicySetId>,
    /// Rules for packets from it.
    pub egress: Option<PolicySetId>,
    /// Way to its port.
    pub hop: crate::hops::HopId,
}

impl Pod {
    /// Whether its packets may bear this source.
    pub fn may_bear(&self, source: Address) -> bool {
        self.addresses.contains(&source) || self.extra_sources.iter().any(|net| net.contains(source))
    }
}

/// No MAC.
const NOBODY: u64 = u64::MAX;

/// A MAC and the two bytes behind it as a number that is the same whatever those are.
#[inline(always)]
pub fn mac_word(bytes: [u8; 8]) -> u64 {
    u64::from_be_bytes(bytes) >> 16
}

/// All local pods. Slots are indexed by port number, so a flow's zone finds its pod with one load.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    slots: Vec<Option<Arc<Pod>>>,
    versions: Vec<u32>,
    /// MACs by port number, as [`mac_word`] gives them; [`NOBODY`] where no pod is.
    senders: Vec<u64>,
    own_addresses: Arc<hashbrown::HashMap<Address, u16>>,
}

impl Pods {
    /// From `(pod, version)`: the version says under which rules its flows were decided; it changes whenever the pod's
    /// policy, or the meaning of an address in it, changes, and is never 0.
    pub fn new(pods: impl IntoIterator<Item = (Arc<Pod>, u32)>) -> Self {
        let mut out = Pods { slots: vec![None], versions: vec![0], senders: vec![NOBODY], ..Pods::default() };
        let mut own_addresses = hashbrown::HashMap::new();
        for (pod, version) in pods {
            let at = usize::from(pod.port);
            if out.slots.len() <= at {
                out.slots.resize(at + 1, None);
                out.versions.resize(at + 1, 0);
                out.senders.resize(at + 1, NOBODY);
            }
            for address in &pod.addresses {
                own_addresses.insert(*address, pod.port);
            }
            out.versions[at] = version;
            let [a, b, c, d, e, f] = pod.mac;
            out.senders[at] = mac_word([a, b, c, d, e, f, 0, 0]);
            out.slots[at] = Some(pod);
        }
        out.own_addresses = Arc::new(own_addresses);
        out
    }

    /// The same pods under other rules: port, sets for ingress and egress, version. Who has the same sets stays the same
    /// allocation.
    pub fn under(&self, rules: impl IntoIterator<Item = (u16, [Option<PolicySetId>; 2], u32)>) -> Self {
        let mut out = self.clone();
        for (port, [ingress, egress], version) in rules {
            let at = usize::from(port);
            let Some(Some(pod)) = out.slots.get_mut(at) else { continue };
            out.versions[at] = version;
            if (pod.ingress, pod.egress) != (ingress, egress) {
                *pod = Arc::new(Pod { ingress, egress, ..(**pod).clone() });
            }
        }
        out
    }

    /// The pod behind a port number.
    #[inline]
    pub fn by_port(&self, port: u16) -> Option<&Arc<Pod>> {
        self.slots.get(usize::from(port)).and_then(Option::as_ref)
    }

    /// The local pod with an address.
    #[inline]
    pub fn by_address(&self, address: Address) -> Option<&Arc<Pod>> {
        self.own_addresses.get(&address).and_then(|port| self.by_port(*port))
    }

    /// Whether a frame with this source MAC (see [`mac_word`]) may come from a port: a pod is there, and it is the pod's.
    #[inline(always)]
    pub fn is_sender(&self, port: u16, mac: u64) -> bool {
        self.senders.get(usize::from(port)) == Some(&mac)
    }

    /// Policy version by port number; 0 for zone 0 and for pods that are gone (no flow was decided under 0 there).
    #[inline]
    pub fn versions(&self) -> &[u32] {
        &self.versions
    }

    /// Every pod, by port number.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.slots.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hops::HopId;

    fn pod(port: u16, last: u8) -> Arc<Pod> {
        Arc::new(Pod {
            name: format!("ns/p{port}").into(),
            port,
            worker: 0,
            mac: [2; 6],
            addresses: vec![Address::v4([10, 244, 1, last])],
            extra_sources: vec![],
            ingress: None,
            egress: None,
            hop: HopId(1),
        })
    }

    #[test]
    fn a_pod_is_found_by_port_and_by_address() {
        let pods = Pods::new([(pod(7, 5), 70), (pod(2, 6), 20)]);
        assert_eq!(pods.by_port(7).map(|p| p.port), Some(7));
        assert_eq!(pods.by_address(Address::v4([10, 244, 1, 6])).map(|p| p.port), Some(2));
        assert!(pods.by_port(3).is_none() && pods.by_port(60_000).is_none());
        assert!(pods.by_address(Address::v4([10, 244, 1, 7])).is_none());
        assert_eq!(pods.iter().map(|p| p.port).collect::<Vec<_>>(), [2, 7]);
    }

    #[test]
    fn pods_under_other_rules_are_the_same_pods() {
        let before = Pods::new([(pod(7, 5), 70), (pod(2, 6), 20)]);
        let set = Some(PolicySetId(3));
        let after = before.under([(7, [set, None], 71), (2, [None, None], 20), (9, [set, set], 90)]);
        let of = |pods: &Pods, port| pods.by_port(port).map(|p| (p.name.clone(), p.ingress, p.egress));
        assert_eq!(of(&after, 7), Some(("ns/p7".into(), set, None)));
        assert_eq!(after.versions(), [0, 0, 20, 0, 0, 0, 0, 71]);
        assert!(Arc::ptr_eq(before.by_port(2).unwrap(), after.by_port(2).unwrap()), "nothing of it has changed");
        assert_eq!(of(&before, 7), Some(("ns/p7".into(), None, None)), "the old tables stand");
        assert_eq!(after.by_address(Address::v4([10, 244, 1, 5])).map(|p| p.port), Some(7));
        assert_eq!(after.iter().count(), 2, "a port without a pod gets none");
    }

    #[test]
    fn a_frame_may_come_from_a_port_if_it_bears_its_pods_mac() {
        let pods = Pods::new([(pod(7, 5), 70)]);
        let word =
            |mac: [u8; 6], behind: u8| mac_word([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], behind, behind]);
        assert!(pods.is_sender(7, word([2; 6], 8)) && pods.is_sender(7, word([2; 6], 0x86)));
        assert!(!pods.is_sender(7, word([2, 2, 2, 2, 2, 3], 8)));
        assert!(!pods.is_sender(6, word([2; 6], 8)) && !pods.is_sender(9, word([0xff; 6], 0xff)), "nobody is there");
    }

    #[test]
    fn where_no_pod_is_the_version_is_zero() {
        let pods = Pods::new([(pod(2, 5), 20)]);
        assert_eq!(pods.versions(), [0, 0, 20]);
        assert_eq!(Pods::default().versions(), [0u32; 0]);
    }
}
