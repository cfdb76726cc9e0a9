//! Load-balancer addresses out of pools with `use: services`, for Services that have none.
//!
//! Source: Service `spec.type: LoadBalancer`, `spec.loadBalancerClass`, `status.loadBalancer.ingress`; IPPool
//! `namespaceSelector`. An address depends on the Service's name (a hash, then the next free place) and on nothing that
//! happened before, so that every node of a cluster without an API server gives the same. What is written wins.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Unfilled, add, hash, probe};
use crate::model::service::LoadBalancerAddress;
use crate::model::{Cluster, Family, IpPool, Labels, NamespacedName, PoolUse};

/// Gives every Service that wants one an address of each of its families that a pool has.
pub(super) fn balancers(cluster: &mut Cluster) -> Vec<Unfilled> {
    let pools: Vec<Arc<IpPool>> =
        cluster.ip_pools.values().filter(|pool| pool.usage == PoolUse::Services).cloned().collect();
    if pools.is_empty() {
        // Somebody else gives addresses, or nobody does.
        return Vec::new();
    }
    let mut used: BTreeSet<IpAddr> =
        cluster.services.values().flat_map(|s| s.load_balancer.iter().map(|a| a.ip)).collect();
    used.extend(cluster.nodes.values().flat_map(|n| n.internal_ips.iter().copied()));
    used.extend(cluster.egress_gateways.values().flat_map(|g| g.egress_ips.iter().copied()));
    let mut unfilled = Vec::new();
    let names: Vec<NamespacedName> = cluster.services.keys().cloned().collect();
    for name in names {
        let Some(service) = cluster.services.get(&name) else { continue };
        if !service.is_balanced_here() || !service.load_balancer.is_empty() {
            continue;
        }
        let none = Labels::new();
        let labels = cluster.namespace_labels(&name.namespace).unwrap_or(&none);
        let open: Vec<&IpPool> =
            pools.iter().map(Arc::as_ref).filter(|p| p.namespaces.as_ref().is_none_or(|n| n.matches(labels))).collect();
        let families: Vec<Family> = service.cluster_ips.iter().map(Family::of).collect();
        let mut given = Vec::new();
        for family in families {
            let nets = open.iter().flat_map(|pool| &pool.cidrs).filter(|net| Family::of_net(net) == family);
            if let Some(ip) = nets.clone().find_map(|net| free(&name, net, &used)) {
                used.insert(ip);
                given.push(LoadBalancerAddress { ip, proxied: false });
            } else if nets.count() > 0 {
                let why = format!("no free {family} address in the pools for its namespace");
                unfilled.push(Unfilled { service: name.clone(), field: "status.loadBalancer.ingress", why });
            }
        }
        if let Some(service) = cluster.services.get_mut(&name).filter(|_| !given.is_empty()) {
            Arc::make_mut(service).load_balancer = given;
        }
    }
    unfilled
}

fn free(name: &NamespacedName, net: &IpNet, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let host_bits = net.max_prefix_len() - net.prefix_len();
    let last = (1u64 << host_bits.min(32)) - 1;
    // A subnet's own address and its broadcast address are not given.
    let (first, last) = if host_bits > 1 { (1, last - 1) } else { (0, last) };
    probe(hash(&format!("{name}/balancer/{net}")), first, last, 0, |offset| {
        let address = add(net.network(), offset);
        (!used.contains(&address)).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::filled;
    use super::*;

    const POOL: &str = "
---
{apiVersion: sluicegate.dev/v1alpha1, kind: IPPool, metadata: {name: edge},
 spec: {use: services, cidrs: [192.0.2.64/30, 'fd00:64::/120'], namespaceSelector: {matchLabels: {edge: 'yes'}}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {edge: 'yes'}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: dark}}
";

    fn balancer(namespace: &str, name: &str, more: &str) -> String {
        format!(
            "
---
{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}},
  spec: {{type: LoadBalancer, ports: [{{port: 80}}]{more}}}}}"
        )
    }

    fn given(cluster: &Cluster, namespace: &str, name: &str) -> Vec<String> {
        let service = &cluster.services[&NamespacedName::new(namespace, name)];
        service.load_balancer.iter().map(|a| a.ip.to_string()).collect()
    }

    #[test]
    fn a_service_without_an_address_gets_one_of_each_family_from_its_pool() {
        let text = format!("{POOL}{}", balancer("shop", "web", ", ipFamilyPolicy: PreferDualStack"));
        let found = given(&filled(&text), "shop", "web");
        let [v4, v6] = &found[..] else { panic!("{found:?}") };
        assert!(v4 == "192.0.2.65" || v4 == "192.0.2.66", "{v4}");
        assert!(v6.starts_with("fd00:64::"), "{v6}");
        assert_eq!(given(&filled(&text), "shop", "web"), found, "the same again");
    }

    #[test]
    fn other_classes_other_namespaces_and_written_addresses_are_left_alone() {
        let text = format!(
            "{POOL}{}{}{}{}",
            balancer("shop", "foreign", ", loadBalancerClass: metallb.io/metallb"),
            balancer("shop", "ours", ", loadBalancerClass: sluicegate.dev/flat"),
            balancer("dark", "web", ""),
            balancer("shop", "written", "}, status: {loadBalancer: {ingress: [{ip: 192.0.2.66}]}")
        );
        let cluster = filled(&text);
        assert!(given(&cluster, "shop", "foreign").is_empty() && given(&cluster, "dark", "web").is_empty());
        assert_eq!(given(&cluster, "shop", "written"), ["192.0.2.66"]);
        assert_eq!(given(&cluster, "shop", "ours"), ["192.0.2.65"], "the one that is left");
    }

    #[test]
    fn without_a_pool_nobody_gets_anything() {
        assert!(given(&filled(&balancer("shop", "web", "")), "shop", "web").is_empty());
    }
}
