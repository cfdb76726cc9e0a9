//! Source networks that a pod may use besides its own addresses.
//!
//! Owner: the control thread. Source: the annotation [`ANNOTATION`] on a Pod, networks with commas between. Invariant: no
//! network overlaps what is somebody's inside the cluster (pod ranges, podCIDRs, Service ranges, addresses of nodes), so that
//! nobody can speak in another's name; what is refused is a [`Finding`] and stays forbidden.

use std::collections::BTreeSet;

use ipnet::IpNet;
use sluice_tables::Prefix;

use super::directory::Known;
use super::{Context, Finding};
use crate::import::value::parse_network;

/// Whoever may annotate a Pod may let it speak for these networks.
pub const ANNOTATION: &str = "sluicegate.dev/allowed-source-prefixes";

/// The networks of a pod.
pub(crate) fn of(context: &Context<'_>, known: &Known<'_>, invalid: &mut BTreeSet<Finding>) -> Vec<Prefix> {
    let Some(text) = known.pod.and_then(|pod| pod.annotations.get(ANNOTATION)) else { return Vec::new() };
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let refused = match parse_network(part) {
            None => Some(format!("{part:?} is not a network such as 198.51.100.0/28")),
            Some(net) => match inside(context, &net) {
                None => {
                    all.push(net.into());
                    None
                }
                Some(whose) => Some(format!("{net} overlaps {whose}; the pod may not use it as source")),
            },
        };
        if let Some(why) = refused {
            let name = known.name.to_string();
            invalid.insert(Finding { kind: "Pod", name, field: "metadata.annotations", why });
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

fn inside(context: &Context<'_>, net: &IpNet) -> Option<String> {
    let overlaps = |other: &IpNet| other.contains(net) || net.contains(other);
    let ranges = context.knobs.pod_ranges.iter().chain(&context.knobs.service_ranges);
    if let Some(range) = ranges.into_iter().find(|range| overlaps(range)) {
        return Some(format!("the cluster's range {range}"));
    }
    context.cluster.nodes.values().find_map(|node| {
        let cidr = node.pod_cidrs.iter().find(|cidr| overlaps(cidr)).map(ToString::to_string);
        let own =
            node.internal_ips.iter().chain(&node.external_ips).find(|ip| net.contains(*ip)).map(ToString::to_string);
        cidr.or(own).map(|what| format!("{what} of node {}", node.name))
    })
}
