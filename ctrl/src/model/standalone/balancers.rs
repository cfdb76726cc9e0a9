//! Load-balancer addresses out of pools with `use: services`, for Services that have none.
//!
//! Source: Service `spec.type: LoadBalancer`, `spec.loadBalancerClass`, `status.loadBalancer.ingress`; IPPool
//! `namespaceSelector`. An address depends on the Service's name (a hash, then the next free place) and on nothing that
//! happened before, so that every node of a cluster without an API server gives the same. What is written wins. Where there is
//! an API server, one node writes what comes out here into the Services' status.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Unfilled, add, hash, probe};
use crate::model::service::LoadBalancerAddress;
use crate::model::{Cluster, Family, IpPool, Labels, NamespacedName, PoolUse};

/// What load-balancer addresses Services should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Of each Service whose addresses are ours to give: those it has out of the pools for its namespace, and new ones for
    /// families that it has none of.
    pub given: BTreeMap<NamespacedName, Vec<IpAddr>>,
    /// What could not be given.
    pub unfilled: Vec<Unfilled>,
}

impl Balance {
    /// For a cluster as it is. Empty where no pool is for Services: somebody else gives addresses, or nobody does.
    pub fn of(cluster: &Cluster) -> Balance {
        let mut balance = Balance::default();
        let pools: Vec<&IpPool> =
            cluster.ip_pools.values().map(Arc::as_ref).filter(|pool| pool.usage == PoolUse::Services).collect();
        if pools.is_empty() {
            return balance;
        }
        let mut used: BTreeSet<IpAddr> =
            cluster.services.values().flat_map(|s| s.load_balancer.iter().map(|a| a.ip)).collect();
        used.extend(cluster.nodes.values().flat_map(|n| n.internal_ips.iter().copied()));
        used.extend(cluster.egress_gateways.values().flat_map(|g| g.egress_ips.iter().copied()));
        let none = Labels::new();
        let mut open = Vec::new();
        for service in cluster.services.values().filter(|service| service.is_balanced_here()) {
            let labels = cluster.namespace_labels(&service.name.namespace).unwrap_or(&none);
            let matching = pools.iter().filter(|p| p.namespaces.as_ref().is_none_or(|n| n.matches(labels)));
            let nets: Vec<IpNet> = matching.flat_map(|pool| pool.cidrs.iter().copied()).collect();
            let kept = service.load_balancer.iter().filter(|a| !a.proxied).map(|a| a.ip);
            let kept: Vec<IpAddr> = kept.filter(|ip| nets.iter().any(|net| net.contains(ip))).collect();
            open.push((kept.len() < service.load_balancer.len(), service, nets, kept));
        }
        // Those that have an address of somebody else's come last: they must not keep one from those that wait.
        open.sort_by_key(|(foreign, service, ..)| (*foreign, &service.name));
        for (foreign, service, nets, mut given) in open {
            for family in service.cluster_ips.iter().map(Family::of) {
                if given.iter().any(|ip| Family::of(ip) == family) {
                    continue;
                }
                let nets = nets.iter().filter(|net| Family::of_net(net) == family);
                if let Some(ip) = nets.clone().find_map(|net| free(&service.name, net, &used)) {
                    used.insert(ip);
                    given.push(ip);
                } else if nets.count() > 0 && !foreign {
                    let why = format!("no free {family} address in the pools for its namespace");
                    let service = service.name.clone();
                    balance.unfilled.push(Unfilled { service, field: "status.loadBalancer.ingress", why });
                }
            }
            if !given.is_empty() {
                balance.given.insert(service.name.clone(), given);
            }
        }
        balance
    }
}

/// Gives every Service that has no address and wants one an address of each of its families that a pool has.
pub(super) fn balancers(cluster: &mut Cluster) -> Vec<Unfilled> {
    let Balance { given, unfilled } = Balance::of(cluster);
    for (name, given) in given {
        if let Some(service) = cluster.services.get_mut(&name).filter(|service| service.load_balancer.is_empty()) {
            let address = |ip| LoadBalancerAddress { ip, proxied: false };
            Arc::make_mut(service).load_balancer = given.into_iter().map(address).collect();
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
    fn addresses_that_are_kept_stay_and_families_that_came_later_get_theirs() {
        let had = "}, status: {loadBalancer: {ingress: [{ip: 192.0.2.66}]}";
        let text = format!("{POOL}{}", balancer("shop", "web", &format!(", ipFamilyPolicy: PreferDualStack{had}")));
        let of = |text: &str| Balance::of(&filled(text)).given.remove(&NamespacedName::new("shop", "web")).unwrap();
        let given = of(&text);
        assert_eq!((given.len(), given[0].to_string()), (2, "192.0.2.66".to_owned()), "{given:?}");
        // One that the pool does not have any more is given anew.
        let moved = of(&text.replace("{ip: 192.0.2.66}", "{ip: 203.0.113.1}"));
        assert!(moved.len() == 2 && moved.iter().all(|ip| ip.to_string() != "203.0.113.1"), "{moved:?}");
        let foreign = format!("{POOL}{}", balancer("shop", "web", ", loadBalancerClass: metallb.io/metallb"));
        assert_eq!(Balance::of(&filled(&foreign)), Balance::default());
    }

    #[test]
    fn without_a_pool_nobody_gets_anything() {
        assert!(given(&filled(&balancer("shop", "web", "")), "shop", "web").is_empty());
    }
}
