//! `healthCheckNodePort`: what a load balancer is told of a Service's pods on this node.
//!
//! Owner: the control thread. Source: core/v1 `Service.spec.healthCheckNodePort`. Invariant: only ready endpoints of this
//! node count, each address once; one that only terminates does not, though it still serves.

use std::collections::BTreeSet;

use super::Finding;
use super::endpoints::Place;
use crate::model::{EndpointSlice, Family, NamespacedName, Service, ServiceKind, TrafficPolicy};

/// A port on which the node answers for one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: u16,
    /// The Service.
    pub service: NamespacedName,
    /// Ready endpoints on this node, of the family that has more of them.
    pub local_endpoints: usize,
}

impl HealthCheck {
    /// Of a LoadBalancer Service with `externalTrafficPolicy: Local` that has such a port.
    pub(crate) fn of(service: &Service, slices: &[&EndpointSlice], place: &Place<'_>) -> Option<HealthCheck> {
        let port = service.health_check_node_port?;
        if service.kind != ServiceKind::LoadBalancer || service.external_traffic != TrafficPolicy::Local {
            return None;
        }
        let local_endpoints = [Family::V4, Family::V6].map(|family| {
            let served = slices.iter().filter(|s| s.is_served() && s.family == Some(family));
            let ready = served.flat_map(|s| &s.endpoints).filter(|e| e.ready || service.publish_not_ready);
            let here = ready.filter(|e| place.has(e)).filter_map(|e| e.addresses.first());
            here.collect::<BTreeSet<_>>().len()
        });
        let local_endpoints = local_endpoints.into_iter().max()?;
        Some(HealthCheck { port, service: service.name.clone(), local_endpoints })
    }
}

/// One Service for each port: the first by name has it.
pub(crate) fn ports<'a>(
    wanted: impl Iterator<Item = &'a HealthCheck>,
    invalid: &mut BTreeSet<Finding>,
) -> Vec<HealthCheck> {
    let mut by_port: std::collections::BTreeMap<u16, &HealthCheck> = Default::default();
    for check in wanted {
        match by_port.entry(check.port) {
            std::collections::btree_map::Entry::Vacant(free) => drop(free.insert(check)),
            std::collections::btree_map::Entry::Occupied(taken) => {
                let why = format!(
                    "port {} is Service {}'s already; not served for this one",
                    check.port,
                    taken.get().service
                );
                let (name, field) = (check.service.to_string(), "spec.healthCheckNodePort");
                invalid.insert(Finding { kind: "Service", name, field, why });
            }
        }
    }
    by_port.into_values().cloned().collect()
}
