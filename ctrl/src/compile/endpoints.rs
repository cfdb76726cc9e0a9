//! The endpoints of one Service port and family, and which of them a client may be sent to.
//!
//! Owner: the control thread. Source: discovery.k8s.io/v1 `EndpointSlice`; the API's rules on readiness, termination,
//! traffic policies and topology hints. An endpoint is an (address, port); where two slices disagree on it, the better
//! state counts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashSet;
use sluice_tables::{Address, Backend};

use super::topology::{Topology, WhyAll};
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

impl Place<'_> {
    /// Whether an endpoint is on this node.
    pub fn has(&self, endpoint: &Endpoint) -> bool {
        match &endpoint.node {
            Some(node) => node == self.node,
            None => endpoint.addresses.first().is_some_and(|ip| (self.is_here)(*ip)),
        }
    }
}

/// All endpoints of one Service port and family.
pub(crate) struct Endpoints<'a> {
    states: BTreeMap<(Address, u16), State<'a>>,
    alive: Arc<HashSet<(Address, u16)>>,
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
                    let state = State {
                        ready: endpoint.ready || publish_not_ready,
                        serving: endpoint.serving || publish_not_ready,
                        terminating: endpoint.terminating,
                        local: place.has(endpoint),
                        endpoint,
                    };
                    let known = states.entry(((*address).into(), target.port)).or_insert_with(|| state.clone());
                    if state.rank() > known.rank() {
                        *known = state;
                    }
                }
            }
        }
        let alive = Arc::new(states.keys().copied().collect());
        Endpoints { states, alive }
    }

    /// Every (address, port) that is there in any state: what an established flow may go on using.
    pub fn alive(&self) -> Arc<HashSet<(Address, u16)>> {
        self.alive.clone()
    }

    /// Endpoints of the whole cluster, near ones only where hints ask for it; ready ones, else serving ones that
    /// terminate. `asked`: the Service wants a distribution, so that hints are missed where there are none.
    pub fn cluster(&self, place: &Place<'_>, asked: bool) -> (Vec<Backend>, Topology) {
        let ready: Vec<_> = self.states.iter().filter(|(_, s)| s.ready).collect();
        let asked = asked || self.states.values().any(|s| has_hint(s.endpoint));
        if ready.is_empty() {
            let dying = self.states.iter().filter(|(_, s)| s.serving && s.terminating);
            let why = if asked { Topology::All(WhyAll::NoneReady) } else { Topology::Unasked };
            return (dying.map(backend).collect(), why);
        }
        let (near, how) = if asked { nearest(&ready, place) } else { (ready, Topology::Unasked) };
        (near.into_iter().map(backend).collect(), how)
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

fn has_hint(endpoint: &Endpoint) -> bool {
    !endpoint.node_hints.is_empty() || !endpoint.zone_hints.is_empty()
}

/// The hints' choice: same node, else same zone, else all. A level counts only if every ready endpoint carries its hint
/// and at least one names this place.
fn nearest<'s, 'a>(ready: &[Entry<'s, 'a>], place: &Place<'_>) -> (Vec<Entry<'s, 'a>>, Topology) {
    let named = |named: &dyn Fn(&Endpoint) -> bool| -> Vec<Entry<'s, 'a>> {
        ready.iter().copied().filter(|(_, s)| named(s.endpoint)).collect()
    };
    let all_have = |has: &dyn Fn(&Endpoint) -> bool| ready.iter().all(|(_, s)| has(s.endpoint));
    let by_node = all_have(&|e| !e.node_hints.is_empty());
    if by_node {
        let here = named(&|e| e.node_hints.contains(place.node));
        if !here.is_empty() {
            return (here, Topology::Node);
        }
    }
    let without = ready.iter().find(|(_, s)| s.endpoint.zone_hints.is_empty());
    let why = match (without, place.zone) {
        (None, Some(zone)) => {
            let near = named(&|e| e.zone_hints.contains(zone));
            if !near.is_empty() {
                return (near, Topology::Zone(zone.to_owned()));
            }
            WhyAll::NotNamed(zone.to_owned())
        }
        (None, None) => WhyAll::NoZone,
        (Some(_), _) if by_node => WhyAll::NodeNotNamed,
        (Some((key, _)), _) => {
            let hintless = ready.iter().find(|(_, s)| !has_hint(s.endpoint)).map_or(*key, |(key, _)| *key);
            WhyAll::Without(std::net::SocketAddr::new(hintless.0.into(), hintless.1).to_string())
        }
    };
    (ready.to_vec(), Topology::All(why))
}
