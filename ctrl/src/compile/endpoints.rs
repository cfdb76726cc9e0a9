//! The endpoints of one Service port and family, and which of them a client may be sent to.
//!
//! Owner: the control thread. Source: discovery.k8s.io/v1 `EndpointSlice`; the API's rules on readiness, termination,
//! traffic policies and topology hints. An endpoint is an (address, port); where two slices disagree on it, the better
//! state counts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice_tables::{Address, Backend};

use crate::model::{Endpoint, EndpointSlice, Family, ServicePort};

/// What is known of one (address, port).
#[derive(Clone, Debug)]
pub(crate) struct State<'a> {
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    endpoint: &'a Endpoint,
}

impl State<'_> {
    /// Ready counts most, then serving, then not terminating.
    fn rank(&self) -> (bool, bool, bool) {
        (self.ready, self.serving, !self.terminating)
    }
}

/// Where the node stands that endpoints are chosen for.
pub(crate) struct Place<'a> {
    pub node: &'a str,
    pub zone: Option<&'a str>,
    /// Whether an address is on this node; asked for endpoints that name no node.
    pub is_here: &'a dyn Fn(IpAddr) -> bool,
}

/// All endpoints of one Service port and family.
pub(crate) struct Endpoints<'a> {
    states: BTreeMap<(Address, u16), State<'a>>,
}

impl<'a> Endpoints<'a> {
    /// The union over a Service's slices. `publish_not_ready`: what is there counts as ready.
    pub fn collect(
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
        family: Family,
        port: &ServicePort,
        publish_not_ready: bool,
        place: &Place<'_>,
    ) -> Self {
        let mut states: BTreeMap<(Address, u16), State<'a>> = BTreeMap::new();
        for slice in slices.into_iter().filter(|s| s.is_served() && s.family == Some(family)) {
            let ports = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for target in ports {
                for endpoint in &slice.endpoints {
                    let Some(address) = endpoint.addresses.first() else { continue };
                    let local = match &endpoint.node {
                        Some(node) => node == place.node,
                        None => (place.is_here)(*address),
                    };
                    let state = State {
                        ready: endpoint.ready || publish_not_ready,
                        serving: endpoint.serving || publish_not_ready,
                        terminating: endpoint.terminating,
                        local,
                        endpoint,
                    };
                    let known = states.entry(((*address).into(), target.port)).or_insert_with(|| state.clone());
                    if state.rank() > known.rank() {
                        *known = state;
                    }
                }
            }
        }
        Endpoints { states }
    }

    /// Every (address, port) that is there in any state: what an established flow may go on using.
    pub fn all(&self) -> impl Iterator<Item = (Address, u16)> + '_ {
        self.states.keys().copied()
    }

    /// Endpoints of the whole cluster, near ones only where hints ask for it; ready ones, else serving ones that
    /// terminate.
    pub fn cluster(&self, place: &Place<'_>) -> Vec<Backend> {
        let ready: Vec<_> = self.states.iter().filter(|(_, s)| s.ready).collect();
        if ready.is_empty() {
            return self.states.iter().filter(|(_, s)| s.serving && s.terminating).map(backend).collect();
        }
        nearest(&ready, place).into_iter().map(backend).collect()
    }

    /// Endpoints of this node: ready ones, else serving ones that terminate. Hints do not count.
    pub fn local(&self) -> Vec<Backend> {
        let here = || self.states.iter().filter(|(_, s)| s.local);
        let ready: Vec<_> = here().filter(|(_, s)| s.ready).map(backend).collect();
        if ready.is_empty() { here().filter(|(_, s)| s.serving && s.terminating).map(backend).collect() } else { ready }
    }
}

fn backend((key, state): (&(Address, u16), &State<'_>)) -> Backend {
    Backend { address: key.0, port: key.1, local: state.local }
}

type Entry<'s, 'a> = (&'s (Address, u16), &'s State<'a>);

/// The hints' choice: same node, else same zone, else all. A level counts only if every ready endpoint carries its hint
/// and at least one names this place.
fn nearest<'s, 'a>(ready: &[Entry<'s, 'a>], place: &Place<'_>) -> Vec<Entry<'s, 'a>> {
    let choose = |hinted: &dyn Fn(&Endpoint) -> bool, named: &dyn Fn(&Endpoint) -> bool| {
        let chosen: Vec<_> = ready.iter().copied().filter(|(_, s)| named(s.endpoint)).collect();
        let all_hinted = ready.iter().all(|(_, s)| hinted(s.endpoint));
        (all_hinted && !chosen.is_empty()).then_some(chosen)
    };
    let by_node = choose(&|e| !e.node_hints.is_empty(), &|e| e.node_hints.contains(place.node));
    let by_zone = || {
        let zone = place.zone?;
        choose(&|e| !e.zone_hints.is_empty(), &|e| e.zone_hints.contains(zone))
    };
    by_node.or_else(by_zone).unwrap_or_else(|| ready.to_vec())
}
