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

/// All local pods. Slots are indexed by port number, so a flow's zone finds its pod with one load.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    slots: Vec<Option<Arc<Pod>>>,
    versions: Vec<u32>,
    own_addresses: hashbrown::HashMap<Address, u16>,
}

impl Pods {
    /// From `(pod, version)`: the version says under which rules its flows were decided; it changes whenever the pod's
    /// policy, or the meaning of an address in it, changes, and is never 0.
    pub fn new(pods: impl IntoIterator<Item = (Arc<Pod>, u32)>) -> Self {
        let mut out = Pods { slots: vec![None], versions: vec![0], ..Pods::default() };
        for (pod, version) in pods {
            let at = usize::from(pod.port);
            if out.slots.len() <= at {
                out.slots.resize(at + 1, None);
                out.versions.resize(at + 1, 0);
            }
            for address in &pod.addresses {
                out.own_addresses.insert(*address, pod.port);
            }
            out.versions[at] = version;
            out.slots[at] = Some(pod);
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
    fn where_no_pod_is_the_version_is_zero() {
        let pods = Pods::new([(pod(2, 5), 20)]);
        assert_eq!(pods.versions(), [0, 0, 20]);
        assert_eq!(Pods::default().versions(), [0u32; 0]);
    }
}
