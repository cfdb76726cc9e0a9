//! Who is meant by `shop/web-0`, `svc/shop/web`, `node/node-a` or `10.0.0.7`.
//!
//! A pod first, then a Service; `pod/`, `svc/` and `node/` say which. An address that a pod, a node or a Service has means
//! that one; any other address is outside. A domain name means the addresses that were said of it.

use super::rehearsal::Rehearsal;
use crate::cli::failure::Failure;
use sluice_ctrl::model::{Cluster, Family, NamespacedName, Node, Pod, Service};
use std::net::IpAddr;
use std::sync::Arc;

/// One end of a conversation.
#[derive(Clone, Debug)]
pub enum End {
    /// A pod with a port of its own.
    Pod(Arc<Pod>),
    /// A Service with an address, or a headless one.
    Service(Arc<Service>),
    /// A node, also a pod on a node's network.
    Node(Arc<Node>),
    /// A domain name, with the addresses that were said.
    Domain(String, Vec<IpAddr>),
    /// An address that nobody in the cluster has.
    Outside(IpAddr),
}

/// One end with the address it was named by, if it was.
#[derive(Clone, Debug)]
pub struct Named {
    /// The end.
    pub end: End,
    /// The address, where it was named by one: it fixes the family.
    pub address: Option<IpAddr>,
}

impl Named {
    /// The addresses of this end, the named one only where there is one.
    pub fn addresses(&self) -> Vec<IpAddr> {
        match (&self.address, &self.end) {
            (Some(address), _) | (None, End::Outside(address)) => vec![*address],
            (None, End::Pod(pod)) => pod.addresses.clone(),
            (None, End::Service(service)) => service.cluster_ips.clone(),
            (None, End::Node(node)) => node.internal_ips.clone(),
            (None, End::Domain(_, addresses)) => addresses.clone(),
        }
    }

    /// The first address of a family.
    pub fn address_of(&self, family: Family) -> Option<IpAddr> {
        self.addresses().into_iter().find(|address| Family::of(address) == family)
    }

    /// Where a connection that ends at one of its addresses was sent to: a Service's own address, else that one.
    pub fn asked(&self, family: Family, address: IpAddr) -> IpAddr {
        match self.end {
            End::Service(_) | End::Node(_) => self.address_of(family).unwrap_or(address),
            _ => address,
        }
    }

    /// Whether it has an address of a family; a headless Service has what its endpoints have.
    pub fn has(&self, family: Family) -> bool {
        matches!(&self.end, End::Service(service) if service.headless) || self.address_of(family).is_some()
    }
}

/// Finds who is meant; the failure names what is closest.
pub fn find(rehearsal: &Rehearsal, text: &str) -> Result<Named, Failure> {
    let cluster = &rehearsal.cluster;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Named { end: owner(cluster, address), address: Some(address) });
    }
    if let Some(addresses) = rehearsal.domains.addresses(text) {
        return Ok(Named { end: End::Domain(text.to_owned(), addresses), address: None });
    }
    if text.contains('.') && !text.contains('/') {
        return Err(Failure::usage(format_args!(
            "no address is known of {text}, and nothing is looked up here; say one with --dns {text}=ADDRESS"
        )));
    }
    let parts: Vec<&str> = text.split('/').collect();
    let end = match parts[..] {
        ["pod", namespace, name] => pod(cluster, &NamespacedName::new(namespace, name)),
        ["svc" | "service", namespace, name] => service(cluster, &NamespacedName::new(namespace, name)),
        ["node", name] if cluster.nodes.contains_key(name) => cluster.nodes.get(name).cloned().map(End::Node),
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            let name = NamespacedName::new(namespace, name);
            pod(cluster, &name).or_else(|| service(cluster, &name))
        }
        _ => {
            let forms = "NAMESPACE/POD, NAMESPACE/SERVICE, node/NAME or an address";
            return Err(Failure::usage(format_args!("{text:?} is no name: expected {forms}")));
        }
    };
    match end {
        Some(End::Pod(pod)) if pod.is_finished() => {
            Err(Failure::usage(format_args!("pod {} has finished and owns no address", pod.name)))
        }
        Some(end) => Ok(Named { end, address: None }),
        None => Err(Failure::usage(unknown(cluster, text))),
    }
}

fn pod(cluster: &Cluster, name: &NamespacedName) -> Option<End> {
    let pod = cluster.pods.get(name)?;
    if pod.host_network
        && let Some(node) = pod.node.as_ref().and_then(|node| cluster.nodes.get(node))
    {
        return Some(End::Node(node.clone()));
    }
    Some(End::Pod(pod.clone()))
}

fn service(cluster: &Cluster, name: &NamespacedName) -> Option<End> {
    cluster.services.get(name).cloned().map(End::Service)
}

fn owner(cluster: &Cluster, address: IpAddr) -> End {
    let mut pods = cluster.pods.values().filter(|pod| !pod.host_network && !pod.is_finished());
    if let Some(pod) = pods.find(|pod| pod.addresses.contains(&address)) {
        return End::Pod(pod.clone());
    }
    if let Some(node) = cluster.nodes.values().find(|node| is_of_node(node, address)) {
        return End::Node(node.clone());
    }
    let has = |service: &Service| {
        service.cluster_ips.contains(&address)
            || service.external_ips.contains(&address)
            || service.load_balancer.iter().any(|balancer| balancer.ip == address && !balancer.proxied)
    };
    match cluster.services.values().find(|service| has(service)) {
        Some(service) => End::Service(service.clone()),
        None => End::Outside(address),
    }
}

/// Whether a node answers for an address: an InternalIP, or its address on the overlay.
pub fn is_of_node(node: &Node, address: IpAddr) -> bool {
    node.internal_ips.contains(&address) || node.overlay_address(Family::of(&address)) == Some(address)
}

/// What to say of a name that nobody has.
fn unknown(cluster: &Cluster, text: &str) -> String {
    let name = ["pod/", "svc/", "service/"].iter().find_map(|kind| text.strip_prefix(kind)).unwrap_or(text);
    let pods = cluster.pods.keys().map(|known| (known.to_string(), "pod"));
    let services = cluster.services.keys().map(|known| (known.to_string(), "Service"));
    let nodes = cluster.nodes.keys().map(|known| (format!("node/{known}"), "node"));
    let all = pods.chain(services).chain(nodes).map(|(known, kind)| (strsim::jaro_winkler(name, &known), kind, known));
    let best = all.filter(|(likeness, ..)| *likeness > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((_, kind, known)) => format!("no pod, Service or node is called {text}; did you mean the {kind} {known}?"),
        None => format!("no pod, Service or node is called {text}"),
    }
}
