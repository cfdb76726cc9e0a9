//! A cluster that follows single changes: what one event costs does not grow with the cluster.
//!
//! Owner: the control thread. Every change is imported as [`super::Importer`] would, and put in its place. Invariant:
//! whatever the order of changes, cluster and problems equal those of [`Cluster::build`] over the objects that are left
//! (without the standalone filling-in: a cluster with an API server has controllers of its own). A pod that still has its
//! port here keeps its object until the port goes ([`Live::hold`]): a pod without labels would escape the policies that
//! select it. Cost of a change: the object, and the maps' logarithms.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::{Imported, Invalid, import};
use crate::model::{Cluster, Labels, Namespace, NamespacedName};
use crate::source::{Kind, ObjectKey, RawObject};

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Which object.
    pub key: ObjectKey,
    /// What it is now; none where it is gone.
    pub object: Option<Arc<RawObject>>,
}

/// What changes have touched, as far as the compiler can make use of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services that changed, or whose slices did.
    pub services: BTreeSet<NamespacedName>,
    /// Anything beside Services and slices.
    pub others: bool,
    /// What is wrong with objects has changed.
    pub problems: bool,
}

impl Touched {
    /// Nothing that tables could depend on.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.others
    }
}

/// What is known beside the cluster itself.
#[derive(Debug, Default)]
pub struct Live {
    invalid: BTreeMap<ObjectKey, Vec<Invalid>>,
    /// Objects that live in a namespace, counted for each.
    residents: HashMap<String, usize>,
    /// Namespaces that have an object of their own.
    described: BTreeSet<String>,
    /// Pods that must not vanish, because they have a port here.
    held: BTreeSet<NamespacedName>,
    /// Held pods whose object is gone.
    gone: BTreeSet<NamespacedName>,
}

impl Live {
    /// Everything that was not understood, in order of kind, name and field.
    pub fn invalid(&self) -> impl Iterator<Item = &Invalid> {
        self.invalid.values().flatten()
    }

    /// Whether the API shows this pod now; a held pod whose object is gone is not shown.
    pub fn shows(&self, cluster: &Cluster, pod: &NamespacedName) -> bool {
        cluster.pods.contains_key(pod) && !self.gone.contains(pod)
    }

    /// Makes the cluster that of these objects and no others.
    pub fn replace(&mut self, cluster: &mut Cluster, deltas: Vec<Delta>, touched: &mut Touched) {
        let stay: HashSet<&ObjectKey> = deltas.iter().filter(|d| d.object.is_some()).map(|d| &d.key).collect();
        let mut known = self.keys(cluster);
        known.retain(|key| !stay.contains(key));
        drop(stay);
        for key in known {
            self.apply(cluster, Delta { key, object: None }, touched);
        }
        for delta in deltas {
            self.apply(cluster, delta, touched);
        }
    }

    /// Every object that the cluster or a problem speaks of.
    fn keys(&self, cluster: &Cluster) -> Vec<ObjectKey> {
        let plain = |kind, name: &String| ObjectKey { kind, namespace: String::new(), name: name.clone() };
        let spaced =
            |kind, n: &NamespacedName| ObjectKey { kind, namespace: n.namespace.clone(), name: n.name.clone() };
        let mut all: BTreeSet<ObjectKey> = self.invalid.keys().cloned().collect();
        all.extend(self.described.iter().map(|n| plain(Kind::Namespace, n)));
        all.extend(cluster.nodes.keys().map(|n| plain(Kind::Node, n)));
        all.extend(cluster.pods.keys().map(|n| spaced(Kind::Pod, n)));
        all.extend(cluster.services.keys().map(|n| spaced(Kind::Service, n)));
        all.extend(cluster.endpoint_slices.keys().map(|n| spaced(Kind::EndpointSlice, n)));
        all.extend(cluster.network_policies.keys().map(|n| spaced(Kind::NetworkPolicy, n)));
        all.extend(cluster.cluster_network_policies.keys().map(|n| plain(Kind::ClusterNetworkPolicy, n)));
        all.extend(cluster.egress_gateways.keys().map(|n| plain(Kind::EgressGateway, n)));
        all.extend(cluster.ip_pools.keys().map(|n| plain(Kind::IpPool, n)));
        all.into_iter().collect()
    }

    /// Keeps a pod's object from now on, also past its deletion.
    pub fn hold(&mut self, pod: &NamespacedName) {
        self.held.insert(pod.clone());
    }

    /// The pod has no port here any more; its object goes, where the API has none.
    pub fn release(&mut self, cluster: &mut Cluster, pod: &NamespacedName, touched: &mut Touched) {
        self.held.remove(pod);
        if self.gone.remove(pod) {
            let key = ObjectKey { kind: Kind::Pod, namespace: pod.namespace.clone(), name: pod.name.clone() };
            self.apply(cluster, Delta { key, object: None }, touched);
        }
    }

    /// Applies one change.
    pub fn apply(&mut self, cluster: &mut Cluster, delta: Delta, touched: &mut Touched) {
        let Delta { key, object } = delta;
        if key.kind == Kind::Pod {
            let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
            if object.is_some() {
                self.gone.remove(&name);
            } else if self.held.contains(&name) && cluster.pods.contains_key(&name) {
                self.gone.insert(name);
                return;
            }
        }
        let entry = object.as_ref().map(|raw| import(&key, raw));
        let (imported, invalid) = entry.map_or((Imported::Nothing, Vec::new()), |e| (e.imported, e.invalid));
        if self.invalid.get(&key).map_or(&[][..], Vec::as_slice) != invalid.as_slice() {
            touched.problems = true;
            if invalid.is_empty() {
                self.invalid.remove(&key);
            } else {
                self.invalid.insert(key.clone(), invalid);
            }
        }
        self.place(cluster, &key, imported, touched);
    }

    fn place(&mut self, cluster: &mut Cluster, key: &ObjectKey, imported: Imported, touched: &mut Touched) {
        let name = || NamespacedName::new(key.namespace.clone(), key.name.clone());
        let (was, is) = match (key.kind, imported) {
            (Kind::Namespace, imported) => {
                let value = match imported {
                    Imported::Namespace(value) => Some(value),
                    _ => None,
                };
                self.namespace(cluster, &key.name, value, touched);
                return;
            }
            (Kind::Node, Imported::Node(value)) => put(&mut cluster.nodes, key.name.clone(), Some(value), touched),
            (Kind::Node, _) => put(&mut cluster.nodes, key.name.clone(), None, touched),
            (Kind::Pod, Imported::Pod(value)) => put(&mut cluster.pods, name(), Some(value), touched),
            (Kind::Pod, _) => put(&mut cluster.pods, name(), None, touched),
            (Kind::NetworkPolicy, Imported::NetworkPolicy(value)) => {
                put(&mut cluster.network_policies, name(), Some(value), touched)
            }
            (Kind::NetworkPolicy, _) => put(&mut cluster.network_policies, name(), None, touched),
            (Kind::ClusterNetworkPolicy, Imported::ClusterNetworkPolicy(value)) => {
                put(&mut cluster.cluster_network_policies, key.name.clone(), Some(value), touched)
            }
            (Kind::ClusterNetworkPolicy, _) => {
                put(&mut cluster.cluster_network_policies, key.name.clone(), None, touched)
            }
            (Kind::EgressGateway, Imported::EgressGateway(value)) => {
                put(&mut cluster.egress_gateways, key.name.clone(), Some(value), touched)
            }
            (Kind::EgressGateway, _) => put(&mut cluster.egress_gateways, key.name.clone(), None, touched),
            (Kind::IpPool, Imported::IpPool(value)) => {
                put(&mut cluster.ip_pools, key.name.clone(), Some(value), touched)
            }
            (Kind::IpPool, _) => put(&mut cluster.ip_pools, key.name.clone(), None, touched),
            (Kind::Service, imported) => {
                let value = match imported {
                    Imported::Service(value) => Some(value),
                    _ => None,
                };
                let (old, there) = exchange(&mut cluster.services, name(), value);
                if old.differs {
                    touched.services.insert(name());
                }
                (old.was_there, there)
            }
            (Kind::EndpointSlice, imported) => {
                let value = match imported {
                    Imported::EndpointSlice(value) => Some(value),
                    _ => None,
                };
                let before = cluster.endpoint_slices.get(&name()).and_then(|s| s.service.clone());
                let after = value.as_ref().and_then(|s| s.service.clone());
                let (old, there) = exchange(&mut cluster.endpoint_slices, name(), value);
                if old.differs {
                    let full = |service| NamespacedName::new(key.namespace.clone(), service);
                    touched.services.extend(before.into_iter().chain(after).map(full));
                }
                (old.was_there, there)
            }
        };
        if is_resident(key.kind) && was != is {
            self.resident(cluster, &key.namespace, is, touched);
        }
    }

    /// An object came to live in a namespace, or left it.
    fn resident(&mut self, cluster: &mut Cluster, namespace: &str, came: bool, touched: &mut Touched) {
        let count = self.residents.entry(namespace.to_owned()).or_default();
        *count = if came { *count + 1 } else { count.saturating_sub(1) };
        let lived_in = *count > 0;
        if !lived_in {
            self.residents.remove(namespace);
        }
        if !self.described.contains(namespace) {
            assume(cluster, namespace, lived_in, touched);
        }
    }

    fn namespace(&mut self, cluster: &mut Cluster, name: &str, value: Option<Arc<Namespace>>, touched: &mut Touched) {
        match value {
            Some(value) => {
                self.described.insert(name.to_owned());
                put(&mut cluster.namespaces, name.to_owned(), Some(value), touched);
            }
            None => {
                self.described.remove(name);
                let lived_in = self.residents.contains_key(name);
                assume(cluster, name, lived_in, touched);
            }
        }
    }
}

/// A namespace that nobody described has just the label of its name, as long as something lives in it.
fn assume(cluster: &mut Cluster, name: &str, lived_in: bool, touched: &mut Touched) {
    let value = lived_in.then(|| Arc::new(Namespace::new(name.to_owned(), Labels::new())));
    put(&mut cluster.namespaces, name.to_owned(), value, touched);
}

/// Kinds whose objects bring their namespace with them.
fn is_resident(kind: Kind) -> bool {
    matches!(kind, Kind::Pod | Kind::Service | Kind::EndpointSlice | Kind::NetworkPolicy)
}

struct Old {
    was_there: bool,
    differs: bool,
}

/// Puts a value in its place; an equal one stays as it is, so that its `Arc` can be recognised.
fn exchange<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, Arc<V>>, key: K, value: Option<Arc<V>>) -> (Old, bool) {
    match value {
        None => {
            let was_there = map.remove(&key).is_some();
            (Old { was_there, differs: was_there }, false)
        }
        Some(value) => match map.get_mut(&key) {
            Some(old) if *old == value => (Old { was_there: true, differs: false }, true),
            Some(old) => {
                *old = value;
                (Old { was_there: true, differs: true }, true)
            }
            None => {
                map.insert(key, value);
                (Old { was_there: false, differs: true }, true)
            }
        },
    }
}

/// As [`exchange`], for what is neither a Service nor a slice; gives whether it was there and whether it is.
fn put<K: Ord, V: PartialEq>(
    map: &mut BTreeMap<K, Arc<V>>,
    key: K,
    value: Option<Arc<V>>,
    touched: &mut Touched,
) -> (bool, bool) {
    let (old, is_there) = exchange(map, key, value);
    touched.others |= old.differs;
    (old.was_there, is_there)
}

#[cfg(test)]
mod tests {
    use super::super::Defaults;
    use super::*;
    use crate::source::{Identified, ObjectSet, Origin, identify};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn delta(value: &Value, there: bool) -> Delta {
        let Ok(Identified::Key(key)) = identify(value) else { panic!("{value}") };
        let raw = RawObject { value: value.clone(), origin: Origin::ApiServer };
        Delta { key, object: there.then(|| Arc::new(raw)) }
    }

    /// A few objects of every kind, some of them wrong, in two versions each.
    fn objects() -> Vec<[Value; 2]> {
        let both = |make: &dyn Fn(u32) -> Value| [make(1), make(2)];
        let meta =
            |name: &str, ns: &str, v: u32| json!({"name": name, "namespace": ns, "labels": {"v": v.to_string()}});
        vec![
            both(&|v| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta("shop", "", v)})),
            both(
                &|v| json!({"apiVersion": "v1", "kind": "Node", "metadata": meta("n", "", v), "spec": {"podCIDR": "10.0.0.0/24"}}),
            ),
            both(
                &|v| json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta("a", "shop", v), "status": {"podIP": format!("10.0.0.{v}")}}),
            ),
            both(
                &|v| json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta("b", "lab", v), "status": {"podIP": "bad"}}),
            ),
            both(
                &|v| json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("web", "shop", 0), "spec": {"clusterIP": format!("10.96.0.{v}"), "ports": [{"port": 80}]}}),
            ),
            both(
                &|v| json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("api", "lab", 0), "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 70_000 * u64::from(v - 1) + 1}]}}),
            ),
            both(&|v| {
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": "s", "namespace": "shop", "labels": {"kubernetes.io/service-name": if v == 1 { "web" } else { "other" }}},
                "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]})
            }),
            both(
                &|v| json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta("p", "tmp", 0), "spec": {"podSelector": {}, "unknown": v}}),
            ),
            both(
                &|v| json!({"apiVersion": "sluicegate.dev/v1alpha1", "kind": "EgressGateway", "metadata": meta("g", "", v), "spec": {"egressIPs": ["192.0.2.1"], "gatewayNodes": {}}}),
            ),
            both(
                &|v| json!({"apiVersion": "sluicegate.dev/v1alpha1", "kind": "IPPool", "metadata": meta("i", "", 0), "spec": {"use": if v == 1 { "pods" } else { "cats" }, "cidrs": ["10.60.0.0/20"]}}),
            ),
            both(&|v| {
                json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": meta("c", "", v),
                "spec": {"tier": "Admin", "priority": v, "subject": {"namespaces": {}}}})
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn any_way_to_a_set_of_objects_ends_in_the_cluster_of_that_set(
            events in prop::collection::vec((0..11usize, 0..3usize), 0..60),
        ) {
            let (objects, mut live, mut at) = (objects(), Live::default(), Cluster::default());
            let mut set = ObjectSet::default();
            for (which, version) in events {
                let change = delta(&objects[which][version.min(1)], version < 2);
                match &change.object {
                    Some(raw) => drop(set.objects.insert(change.key.clone(), raw.clone())),
                    None => drop(set.objects.remove(&change.key)),
                }
                let before = at.clone();
                let mut touched = Touched::default();
                live.apply(&mut at, change, &mut touched);
                prop_assert_eq!(touched.is_empty(), before == at, "{:?}", touched);
            }
            let (cluster, invalid) = Cluster::build(&set, &Defaults::default());
            prop_assert_eq!(&at, &cluster);
            // Replacing whatever there is by a set gives that set, too.
            let (mut other, mut elsewhere) = (Live::default(), Cluster::default());
            for object in &objects {
                other.apply(&mut elsewhere, delta(&object[1], true), &mut Touched::default());
            }
            let all = set.objects.iter().map(|(key, raw)| Delta { key: key.clone(), object: Some(raw.clone()) });
            other.replace(&mut elsewhere, all.collect(), &mut Touched::default());
            prop_assert_eq!(&elsewhere, &cluster);
            prop_assert_eq!(live.invalid().cloned().collect::<Vec<_>>(), invalid);
        }
    }

    #[test]
    fn a_slice_that_moves_touches_both_services_and_nothing_else() {
        let (mut live, mut cluster) = (Live::default(), Cluster::default());
        let objects = objects();
        live.apply(&mut cluster, delta(&objects[6][0], true), &mut Touched::default());
        let mut touched = Touched::default();
        live.apply(&mut cluster, delta(&objects[6][1], true), &mut touched);
        let names: Vec<String> = touched.services.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["shop/other", "shop/web"]);
        assert!(!touched.others && !touched.problems);
    }

    #[test]
    fn a_pod_with_a_port_here_keeps_its_labels_until_the_port_goes() {
        let (mut live, mut cluster) = (Live::default(), Cluster::default());
        let name = NamespacedName::new("shop", "a");
        let objects = objects();
        live.apply(&mut cluster, delta(&objects[2][0], true), &mut Touched::default());
        live.hold(&name);
        let mut touched = Touched::default();
        live.apply(&mut cluster, delta(&objects[2][0], false), &mut touched);
        assert!(cluster.pods.contains_key(&name) && touched.is_empty() && !live.shows(&cluster, &name));
        live.release(&mut cluster, &name, &mut touched);
        assert!(touched.others && !cluster.pods.contains_key(&name));
        live.apply(&mut cluster, delta(&objects[2][1], true), &mut touched);
        live.release(&mut cluster, &name, &mut touched);
        assert!(live.shows(&cluster, &name), "a pod that the API shows stays when its port goes");
    }
}
