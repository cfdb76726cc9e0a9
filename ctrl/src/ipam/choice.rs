//! Which pools a pod may have addresses from, and what it asks for itself.
//!
//! Owner: the control thread. Source: `IPPool` (`use: pods`), the annotations [`POOL_ANNOTATION`] and
//! [`ADDRESS_ANNOTATION`]. Rules: a pod's annotation goes before its namespace's, both before selectors, these before the
//! node's podCIDRs; each family is decided by itself, so a pool of IPv4 alone leaves IPv6 to the podCIDRs. A pool with a
//! selector is for the namespaces it selects only, also by annotation: no tenant helps itself to another's addresses.

use std::net::IpAddr;

use super::pool::{Pool, Share, node_pools};
use crate::model::{Cluster, Family, IpPool, Labels, NamespacedName, PoolUse};

/// Annotation of a Pod or a Namespace: names of IPPools, in order of preference, separated by commas.
pub const POOL_ANNOTATION: &str = "sluicegate.dev/ip-pool";
/// Annotation of a Pod: addresses it must have, at most one of each family, separated by commas.
pub const ADDRESS_ANNOTATION: &str = "sluicegate.dev/ip";

/// What a pod's objects ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Networks to choose from, in order of preference within a family.
    pub pools: Vec<Pool>,
    /// Addresses asked for, at most one of each family.
    pub addresses: Vec<IpAddr>,
}

/// A wish that cannot be granted as it is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadWish {
    /// No such pool.
    #[error("{annotation}: there is no IPPool {pool:?} with use: pods")]
    NoPool {
        /// The annotation.
        annotation: &'static str,
        /// What it names.
        pool: String,
    },
    /// A pool of other namespaces.
    #[error("{annotation}: IPPool {pool:?} is not for namespace {namespace:?}")]
    NotYours {
        /// The annotation.
        annotation: &'static str,
        /// What it names.
        pool: String,
        /// Who asks.
        namespace: String,
    },
    /// No address, or two of one family.
    #[error("{annotation}: {text:?} is not one address, or one of each family")]
    NotAddresses {
        /// The annotation.
        annotation: &'static str,
        /// What it says.
        text: String,
    },
}

/// What a pod of this node may have. `node` is this node's name.
pub fn choose(cluster: &Cluster, node: &str, pod: &NamespacedName) -> Result<Choice, BadWish> {
    let none = Labels::new();
    let annotations = cluster.pods.get(pod).map_or(&none, |p| &p.annotations);
    let namespace = cluster.namespaces.get(&pod.namespace);
    let named = annotations
        .get(POOL_ANNOTATION)
        .or_else(|| namespace?.annotations.get(POOL_ANNOTATION))
        .map(|text| words(text).collect::<Vec<_>>());
    let selected = |pool: &&IpPool| {
        let labels = namespace.map_or(&none, |n| &n.labels);
        pool.namespaces.as_ref().is_some_and(|selector| selector.matches(labels))
    };
    let pools: Vec<&IpPool> = match named {
        None => pod_pools(cluster).filter(selected).collect(),
        Some(names) => {
            let mut pools = Vec::new();
            for name in names {
                let pool = pod_pools(cluster)
                    .find(|p| p.name == name)
                    .ok_or_else(|| BadWish::NoPool { annotation: POOL_ANNOTATION, pool: name.to_owned() })?;
                if pool.namespaces.is_some() && !selected(&pool) {
                    let (pool, namespace) = (name.to_owned(), pod.namespace.clone());
                    return Err(BadWish::NotYours { annotation: POOL_ANNOTATION, pool, namespace });
                }
                pools.push(pool);
            }
            pools
        }
    };
    let share = Share::of(cluster, node);
    let mut found: Vec<Pool> = pools.into_iter().flat_map(|pool| shared(pool, &share)).collect();
    let own = cluster.nodes.get(node).map(|n| node_pools(&n.pod_cidrs)).unwrap_or_default();
    let covered = |net: &Pool| found.iter().any(|p| Family::of_net(&p.net) == Family::of_net(&net.net));
    let rest: Vec<Pool> = own.into_iter().filter(|net| !covered(net)).collect();
    found.extend(rest);
    let addresses = match annotations.get(ADDRESS_ANNOTATION) {
        None => Vec::new(),
        Some(text) => addresses(text.split(','))
            .ok_or_else(|| BadWish::NotAddresses { annotation: ADDRESS_ANNOTATION, text: text.clone() })?,
    };
    Ok(Choice { pools: found, addresses })
}

/// Every network this node gives pods addresses from: podCIDRs, then its share of the pools.
pub fn all_pools(cluster: &Cluster, node: &str) -> Vec<Pool> {
    let share = Share::of(cluster, node);
    let own = cluster.nodes.get(node).map(|n| node_pools(&n.pod_cidrs)).unwrap_or_default();
    own.into_iter().chain(pod_pools(cluster).flat_map(|pool| shared(pool, &share))).collect()
}

/// Addresses without prefix lengths (one of a whole address is fine), at most one of each family; `None` else.
pub fn addresses<'a>(texts: impl IntoIterator<Item = &'a str>) -> Option<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = Vec::new();
    for text in texts {
        let text = text.trim();
        let whole = text.strip_suffix("/32").or_else(|| text.strip_suffix("/128")).unwrap_or(text);
        let address: IpAddr = whole.parse().ok()?;
        if found.iter().any(|a| a.is_ipv4() == address.is_ipv4()) {
            return None;
        }
        found.push(address);
    }
    (!found.is_empty()).then_some(found)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn pod_pools(cluster: &Cluster) -> impl Iterator<Item = &IpPool> {
    cluster.ip_pools.values().map(AsRef::as_ref).filter(|pool| pool.usage == PoolUse::Pods)
}

fn shared(pool: &IpPool, share: &Share) -> Vec<Pool> {
    let make = |net: &ipnet::IpNet| Pool { name: pool.name.clone(), net: net.trunc(), share: Some(share.clone()) };
    pool.cidrs.iter().map(make).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::Defaults;
    use crate::source::ManifestSource;

    fn cluster(text: &str) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("all.yaml"), text).unwrap();
        let snapshot = ManifestSource::new(dir.path()).unwrap().snapshot();
        assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
        Cluster::build(&snapshot.objects, &Defaults::default()).0
    }

    const CLUSTER: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: a}, spec: {podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: edge, labels: {zone: edge}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {sluicegate.dev/ip-pool: open}}}
---
{apiVersion: sluicegate.dev/v1alpha1, kind: IPPool, metadata: {name: edge}, spec: {use: pods, cidrs: [10.60.0.0/24], namespaceSelector: {matchLabels: {zone: edge}}}}
---
{apiVersion: sluicegate.dev/v1alpha1, kind: IPPool, metadata: {name: open}, spec: {use: pods, cidrs: [10.61.0.0/24, "fd61::/64"]}}
---
{apiVersion: sluicegate.dev/v1alpha1, kind: IPPool, metadata: {name: vips}, spec: {use: services, cidrs: [10.62.0.0/24], namespaceSelector: {}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: greedy, namespace: shop, annotations: {sluicegate.dev/ip-pool: edge}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: lost, namespace: shop, annotations: {sluicegate.dev/ip-pool: "open, vips"}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: fixed, namespace: edge, annotations: {sluicegate.dev/ip-pool: open, sluicegate.dev/ip: "10.61.0.9, fd61::9"}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: bad, namespace: edge, annotations: {sluicegate.dev/ip: "10.61.0.9,10.61.0.10"}}}
"#;

    fn nets(namespace: &str, name: &str) -> Result<Vec<String>, String> {
        let choice =
            choose(&cluster(CLUSTER), "a", &NamespacedName::new(namespace, name)).map_err(|e| e.to_string())?;
        Ok(choice.pools.iter().map(|p| format!("{} {}", p.name, p.net)).collect())
    }

    #[test]
    fn annotations_go_before_selectors_and_these_before_the_nodes_own_networks() {
        assert_eq!(nets("default", "x").unwrap(), ["node 10.244.1.0/24", "node fd00:10:244:1::/64"]);
        assert_eq!(nets("edge", "x").unwrap(), ["edge 10.60.0.0/24", "node fd00:10:244:1::/64"]);
        assert_eq!(nets("shop", "x").unwrap(), ["open 10.61.0.0/24", "open fd61::/64"]);
        assert_eq!(nets("edge", "fixed").unwrap(), ["open 10.61.0.0/24", "open fd61::/64"]);
    }

    #[test]
    fn a_pool_of_other_namespaces_or_other_use_is_refused_by_name() {
        assert!(nets("shop", "greedy").unwrap_err().contains("\"edge\" is not for namespace \"shop\""));
        assert!(nets("shop", "lost").unwrap_err().contains("no IPPool \"vips\""));
    }

    #[test]
    fn a_pod_may_ask_for_one_address_of_each_family() {
        let cluster = cluster(CLUSTER);
        let choice = choose(&cluster, "a", &NamespacedName::new("edge", "fixed")).unwrap();
        assert_eq!(choice.addresses, ["10.61.0.9".parse::<IpAddr>().unwrap(), "fd61::9".parse().unwrap()]);
        assert!(choose(&cluster, "a", &NamespacedName::new("edge", "bad")).is_err());
        assert_eq!(addresses(["10.0.0.1/32"]), Some(vec!["10.0.0.1".parse().unwrap()]));
        assert_eq!((addresses(["10.0.0.1/24"]), addresses(["x"]), addresses([])), (None, None, None));
    }

    #[test]
    fn pools_of_pods_are_all_counted() {
        let all: Vec<String> = all_pools(&cluster(CLUSTER), "a").iter().map(|p| p.net.to_string()).collect();
        let wanted = ["10.244.1.0/24", "fd00:10:244:1::/64", "10.60.0.0/24", "10.61.0.0/24", "fd61::/64"];
        assert_eq!(all, wanted);
    }
}
