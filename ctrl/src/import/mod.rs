//! Import: raw objects become typed values, and every object that cannot is reported.
//!
//! Owner: the control thread. One file per kind. Invariants: pure and deterministic, the order of objects does not
//! matter; nothing panics on any JSON; a policy or gateway that is not understood closes what it selects and is never
//! left out (law 6), while a bad value in any other kind costs that value alone. One object may have several problems
//! and still be usable, so importers return the value and collect [`Invalid`]s beside it.
//! Cost: [`Importer`] keeps what it made of each object, so a change costs the changed objects and one walk of the set.

pub mod cluster_network_policy;
pub mod egress_gateway;
pub mod endpoint_slice;
pub mod ip_pool;
pub mod live;
pub mod namespace;
pub mod network_policy;
pub mod node;
pub mod pod;
pub mod service;
pub(crate) mod value;

pub use value::{At, Problem, parse_address, parse_network};

use std::fmt;
use std::sync::Arc;

use crate::model::network_policy::ENFORCEMENT_ANNOTATION;
use crate::model::standalone::{Standalone, Unfilled};
use crate::model::{
    Cluster, ClusterNetworkPolicy, EgressGateway, EndpointSlice, IpPool, Labels, Namespace, NamespacedName,
    NetworkPolicy, Node, Pod, Service,
};
use crate::source::{Kind, ObjectKey, ObjectSet, Origin, RawObject};

/// What an invalid field costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// The object is used without that field.
    FieldIgnored,
    /// The object is not used.
    ObjectIgnored,
    /// The object denies what it selects.
    FailedClosed,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effect::FieldIgnored => "field ignored",
            Effect::ObjectIgnored => "object ignored",
            Effect::FailedClosed => "denies what it selects",
        })
    }
}

/// A field of an object that could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{origin}: {kind}/{name}: {field}: {why} ({effect})")]
pub struct Invalid {
    /// The object's kind.
    pub kind: Kind,
    /// `ns/name`, or `name` for kinds without a namespace.
    pub name: String,
    /// Path of the field, as `spec.ports[0].port`.
    pub field: String,
    /// What was expected, and what was found.
    pub why: String,
    /// What it costs.
    pub effect: Effect,
    /// Where the object was read.
    pub origin: Origin,
}

/// Collects the problems of one object while it is imported.
#[derive(Debug, Default)]
pub struct Report {
    problems: Vec<(Effect, Problem)>,
}

impl Report {
    /// Notes a problem.
    pub fn add(&mut self, effect: Effect, problem: Problem) {
        self.problems.push((effect, problem));
    }

    /// The value, or a note that the field is ignored.
    pub fn field<T>(&mut self, read: Result<T, Problem>) -> Option<T> {
        read.map_err(|problem| self.add(Effect::FieldIgnored, problem)).ok()
    }

    /// The value where the field is there and readable; a note that the field is ignored where it is not readable.
    pub fn optional<T>(&mut self, read: Result<Option<T>, Problem>) -> Option<T> {
        self.field(read).flatten()
    }

    /// The value, or a note that the object denies what it selects.
    pub fn strict<T>(&mut self, read: Result<T, Problem>) -> Option<T> {
        read.map_err(|problem| self.add(Effect::FailedClosed, problem)).ok()
    }
}

/// What importing needs besides objects.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// Fills in what controllers would, in a cluster without any; none for an API server.
    pub standalone: Option<Standalone>,
}

impl Cluster {
    /// Imports a whole object set: the cluster it describes, and everything in it that was not understood, in order of
    /// kind, name and field.
    pub fn build(objects: &ObjectSet, defaults: &Defaults) -> (Cluster, Vec<Invalid>) {
        Importer::default().build(objects, defaults)
    }
}

#[derive(Clone, Debug)]
enum Imported {
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    NetworkPolicy(Arc<NetworkPolicy>),
    ClusterNetworkPolicy(Arc<ClusterNetworkPolicy>),
    EgressGateway(Arc<EgressGateway>),
    IpPool(Arc<IpPool>),
    Nothing,
}

#[derive(Debug)]
struct Entry {
    raw: Arc<RawObject>,
    imported: Imported,
    invalid: Vec<Invalid>,
}

/// Imports object sets one after the other, and keeps what it made of objects that did not change.
#[derive(Debug, Default)]
pub struct Importer {
    /// Sorted by key.
    entries: Vec<(ObjectKey, Entry)>,
}

/// What becomes of objects, by kind and in the order of names: maps are built of them at once.
#[derive(Default)]
struct Placed {
    namespaces: Vec<(String, Arc<Namespace>)>,
    nodes: Vec<(String, Arc<Node>)>,
    pods: Vec<(NamespacedName, Arc<Pod>)>,
    services: Vec<(NamespacedName, Arc<Service>)>,
    endpoint_slices: Vec<(NamespacedName, Arc<EndpointSlice>)>,
    network_policies: Vec<(NamespacedName, Arc<NetworkPolicy>)>,
    cluster_network_policies: Vec<(String, Arc<ClusterNetworkPolicy>)>,
    egress_gateways: Vec<(String, Arc<EgressGateway>)>,
    ip_pools: Vec<(String, Arc<IpPool>)>,
}

impl Placed {
    fn cluster(self) -> Cluster {
        Cluster {
            namespaces: self.namespaces.into_iter().collect(),
            nodes: self.nodes.into_iter().collect(),
            pods: self.pods.into_iter().collect(),
            services: self.services.into_iter().collect(),
            endpoint_slices: self.endpoint_slices.into_iter().collect(),
            network_policies: self.network_policies.into_iter().collect(),
            cluster_network_policies: self.cluster_network_policies.into_iter().collect(),
            egress_gateways: self.egress_gateways.into_iter().collect(),
            ip_pools: self.ip_pools.into_iter().collect(),
        }
    }
}

impl Importer {
    /// As [`Cluster::build`]; objects that are the same allocation as last time are not read again.
    pub fn build(&mut self, objects: &ObjectSet, defaults: &Defaults) -> (Cluster, Vec<Invalid>) {
        // Both are sorted by key, so they are walked side by side.
        let mut before = std::mem::take(&mut self.entries).into_iter().peekable();
        let mut placed = Placed::default();
        let mut invalid = Vec::new();
        self.entries.reserve(objects.objects.len());
        for (key, raw) in &objects.objects {
            while before.next_if(|(old, _)| old < key).is_some() {}
            let known = before.next_if(|(old, _)| old == key);
            let (key, entry) = match known {
                Some((key, entry)) if Arc::ptr_eq(&entry.raw, raw) => (key, entry),
                _ => (key.clone(), import(key, raw)),
            };
            invalid.extend(entry.invalid.iter().cloned());
            place(&mut placed, &key, &entry.imported);
            self.entries.push((key, entry));
        }
        let mut cluster = placed.cluster();
        if let Some(standalone) = &defaults.standalone {
            for unfilled in standalone.fill(&mut cluster) {
                invalid.push(unfilled_field(unfilled, objects));
            }
        }
        assume_namespaces(&mut cluster);
        (cluster, invalid)
    }
}

fn import(key: &ObjectKey, raw: &Arc<RawObject>) -> Entry {
    let root = At::root(&raw.value);
    let mut report = Report::default();
    let name = || NamespacedName::new(key.namespace.clone(), key.name.clone());
    let imported = match key.kind {
        Kind::Namespace => Imported::Namespace(Arc::new(namespace::import(&key.name, &root, &mut report))),
        Kind::Node => Imported::Node(Arc::new(node::import(&key.name, &root, &mut report))),
        Kind::Pod => Imported::Pod(Arc::new(pod::import(name(), &root, &mut report))),
        Kind::Service => Imported::Service(Arc::new(service::import(name(), &root, &mut report))),
        Kind::EndpointSlice => Imported::EndpointSlice(Arc::new(endpoint_slice::import(name(), &root, &mut report))),
        Kind::NetworkPolicy => Imported::NetworkPolicy(Arc::new(network_policy::import(name(), &root, &mut report))),
        Kind::ClusterNetworkPolicy => Imported::ClusterNetworkPolicy(Arc::new(cluster_network_policy::import(
            key.name.clone(),
            &root,
            &mut report,
        ))),
        Kind::EgressGateway => {
            Imported::EgressGateway(Arc::new(egress_gateway::import(key.name.clone(), &root, &mut report)))
        }
        Kind::IpPool => ip_pool::import(key.name.clone(), &root, &mut report)
            .map_or(Imported::Nothing, |pool| Imported::IpPool(Arc::new(pool))),
    };
    let invalid = report.problems.into_iter().map(|(effect, problem)| Invalid {
        kind: key.kind,
        name: key.full_name(),
        field: problem.field,
        why: problem.why,
        effect,
        origin: raw.origin.clone(),
    });
    Entry { raw: raw.clone(), imported, invalid: invalid.collect() }
}

fn place(placed: &mut Placed, key: &ObjectKey, imported: &Imported) {
    let name = || NamespacedName::new(key.namespace.clone(), key.name.clone());
    match imported {
        Imported::Namespace(value) => placed.namespaces.push((key.name.clone(), value.clone())),
        Imported::Node(value) => placed.nodes.push((key.name.clone(), value.clone())),
        Imported::Pod(value) => placed.pods.push((name(), value.clone())),
        Imported::Service(value) => placed.services.push((name(), value.clone())),
        Imported::EndpointSlice(value) => placed.endpoint_slices.push((name(), value.clone())),
        Imported::NetworkPolicy(value) => placed.network_policies.push((name(), value.clone())),
        Imported::ClusterNetworkPolicy(value) => {
            placed.cluster_network_policies.push((key.name.clone(), value.clone()));
        }
        Imported::EgressGateway(value) => placed.egress_gateways.push((key.name.clone(), value.clone())),
        Imported::IpPool(value) => placed.ip_pools.push((key.name.clone(), value.clone())),
        Imported::Nothing => {}
    }
}

fn unfilled_field(unfilled: Unfilled, objects: &ObjectSet) -> Invalid {
    let NamespacedName { namespace, name } = unfilled.service;
    let key = ObjectKey { kind: Kind::Service, namespace, name };
    Invalid {
        kind: key.kind,
        name: key.full_name(),
        field: unfilled.field.to_owned(),
        why: unfilled.why,
        effect: Effect::FieldIgnored,
        origin: objects.objects.get(&key).map_or(Origin::ApiServer, |raw| raw.origin.clone()),
    }
}

/// A namespace that objects live in and nobody described has just the label of its name.
fn assume_namespaces(cluster: &mut Cluster) {
    let names = cluster
        .pods
        .keys()
        .chain(cluster.services.keys())
        .chain(cluster.endpoint_slices.keys())
        .chain(cluster.network_policies.keys());
    for name in names {
        if !cluster.namespaces.contains_key(&name.namespace) {
            let namespace = Namespace::new(name.namespace.clone(), Labels::new());
            cluster.namespaces.insert(name.namespace.clone(), Arc::new(namespace));
        }
    }
}

/// The envelope of an object: a version whose fields we know.
fn version(root: &At<'_>, kind: Kind) -> Result<(), Problem> {
    let field = root.get("apiVersion");
    let version = field.text()?.map(|text| text.rsplit_once('/').map_or(text, |(_, version)| version));
    match version {
        Some(version) if version == kind.version() => Ok(()),
        _ => Err(field.problem(format!("only version {} is understood", kind.version()))),
    }
}

/// The envelope of an object that must be understood whole: a version we know, and no field beside the known ones.
fn envelope(root: &At<'_>, kind: Kind) -> Result<(), Problem> {
    version(root, kind)?;
    root.only(&["apiVersion", "kind", "metadata", "spec", "status"])
}

/// `metadata.labels`, as forgiving as can be: an object that lost a label would escape the policies that select by it,
/// so numbers and truth values are taken as their text, and reported.
fn labels(root: &At<'_>, report: &mut Report) -> Labels {
    let metadata = root.get("metadata");
    text_map(&metadata.get("labels"), |_| true, report)
}

/// `metadata.annotations` whose key is wanted.
fn annotations(root: &At<'_>, wanted: impl Fn(&str) -> bool, report: &mut Report) -> Labels {
    let metadata = root.get("metadata");
    text_map(&metadata.get("annotations"), wanted, report)
}

/// Whether a policy only records what it would deny; a value we do not know is reported, and the policy enforced.
fn audit(root: &At<'_>, report: &mut Report) -> bool {
    let metadata = root.get("metadata");
    let field = metadata.get("annotations");
    let field = field.get(ENFORCEMENT_ANNOTATION);
    match report.optional(field.text()) {
        Some("audit") => true,
        None | Some("enforce") => false,
        Some(other) => {
            report.add(Effect::FieldIgnored, field.problem(format!("expected audit or enforce, found {other:?}")));
            false
        }
    }
}

/// True for annotations of our own group.
fn own_annotation(key: &str) -> bool {
    key.starts_with("sluicegate.dev/")
}

fn text_map(field: &At<'_>, wanted: impl Fn(&str) -> bool, report: &mut Report) -> Labels {
    let mut map = Labels::new();
    for key in field.set_fields() {
        let value = field.get(key);
        if !wanted(key) {
            continue;
        }
        match value.text() {
            Ok(text) => drop(map.insert(key.to_owned(), text.unwrap_or_default().to_owned())),
            Err(problem) => {
                if value.value().is_number() || value.value().is_boolean() {
                    map.insert(key.to_owned(), value.value().to_string());
                }
                report.add(Effect::FieldIgnored, problem);
            }
        }
    }
    if !field.is_absent() && !field.value().is_object() {
        report.add(Effect::FieldIgnored, field.problem("expected a mapping"));
    }
    map
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::source::{Identified, identify};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// The set of these objects, all from the API server.
    pub(crate) fn objects(values: impl IntoIterator<Item = Value>) -> ObjectSet {
        let mut set = ObjectSet::default();
        for value in values {
            if let Ok(Identified::Key(key)) = identify(&value) {
                set.objects.insert(key, Arc::new(RawObject { value, origin: Origin::ApiServer }));
            }
        }
        set
    }

    /// The set of the documents of a YAML text.
    pub(crate) fn yaml(text: &str) -> ObjectSet {
        let file = crate::source::document::read(std::path::Path::new("test.yaml"), text.as_bytes());
        assert_eq!(file.problems, vec![], "test objects must be readable");
        let mut set = ObjectSet::default();
        for (key, raw) in file.objects {
            assert!(set.objects.insert(key, Arc::new(raw)).is_none(), "test objects must be distinct");
        }
        set
    }

    /// The cluster of a YAML text, which must be valid.
    pub(crate) fn cluster(text: &str) -> Cluster {
        let (cluster, invalid) = Cluster::build(&yaml(text), &Defaults::default());
        assert_eq!(invalid, vec![]);
        cluster
    }

    /// The cluster of a YAML text, and its problems as `field: why (effect)`.
    pub(crate) fn cluster_and_problems(text: &str) -> (Cluster, Vec<String>) {
        let (cluster, invalid) = Cluster::build(&yaml(text), &Defaults::default());
        (cluster, invalid.iter().map(|i| format!("{}: {} ({})", i.field, i.why, i.effect)).collect())
    }

    #[test]
    fn an_object_in_an_unknown_namespace_brings_the_namespace_with_it() {
        let cluster = cluster("{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x}}");
        let expected = Labels::from([("kubernetes.io/metadata.name".to_owned(), "x".to_owned())]);
        assert_eq!(cluster.namespace_labels("x"), Some(&expected));
    }

    #[test]
    fn labels_that_are_not_text_are_kept_as_text_and_reported() {
        let (cluster, problems) = cluster_and_problems(
            "{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {tier: 1, on: true, empty: null, bad: [x]}}}",
        );
        let labels = &cluster.pods[&NamespacedName::new("default", "a")].labels;
        assert_eq!(labels.get("tier").map(String::as_str), Some("1"));
        assert_eq!(labels.get("on").map(String::as_str), Some("true"));
        assert_eq!(labels.get("bad"), None);
        assert_eq!(problems.len(), 3, "{problems:?}");
    }

    #[test]
    fn unchanged_objects_are_not_imported_again() {
        let set = objects([json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}})]);
        let mut importer = Importer::default();
        let (first, _) = importer.build(&set, &Defaults::default());
        let (second, _) = importer.build(&set, &Defaults::default());
        let name = NamespacedName::new("default", "a");
        assert!(Arc::ptr_eq(&first.pods[&name], &second.pods[&name]));
        let (empty, _) = importer.build(&ObjectSet::default(), &Defaults::default());
        assert_eq!(empty, Cluster::default());
    }

    const WORLD: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: web}}, status: {podIP: 10.244.1.5}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: lab, labels: {app: web}}, status: {podIP: 10.244.1.6}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: api, namespace: shop}, spec: {type: NodePort, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: api-1, namespace: shop, labels: {kubernetes.io/service-name: api}}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}], ports: [{port: 80}]}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: shop}, spec: {podSelector: {}, ingress: [{unknown: 1}]}}
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: c}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}}
---
{apiVersion: sluicegate.dev/v1alpha1, kind: EgressGateway, metadata: {name: g}, spec: {egressIPs: [192.0.2.50], gatewayNodes: {}}}
---
{apiVersion: sluicegate.dev/v1alpha1, kind: IPPool, metadata: {name: i}, spec: {use: egress, cidrs: [192.0.2.48/29]}}
"#;

    fn any_json() -> impl Strategy<Value = Value> {
        // Words of the API, so that the garbage reaches deep into the importers.
        let word = prop::sample::select(vec![
            "spec",
            "status",
            "metadata",
            "name",
            "namespace",
            "labels",
            "annotations",
            "podSelector",
            "matchLabels",
            "matchExpressions",
            "key",
            "operator",
            "values",
            "In",
            "Exists",
            "ingress",
            "egress",
            "from",
            "to",
            "ports",
            "port",
            "endPort",
            "protocol",
            "protocols",
            "TCP",
            "tcp",
            "SCTP",
            "destinationPort",
            "range",
            "start",
            "end",
            "number",
            "ipBlock",
            "cidr",
            "except",
            "10.0.0.0/8",
            "::/0",
            "10.0.0.1",
            "fd00::1",
            "policyTypes",
            "Ingress",
            "Egress",
            "tier",
            "Admin",
            "priority",
            "subject",
            "namespaces",
            "pods",
            "action",
            "Accept",
            "networks",
            "nodes",
            "clusterIP",
            "clusterIPs",
            "None",
            "type",
            "LoadBalancer",
            "selector",
            "targetPort",
            "nodePort",
            "sessionAffinity",
            "ClientIP",
            "endpoints",
            "addresses",
            "addressType",
            "IPv4",
            "conditions",
            "ready",
            "hints",
            "forZones",
            "containers",
            "podIPs",
            "ip",
            "podCIDRs",
            "egressIPs",
            "gatewayNodes",
            "destinationCIDRs",
            "cidrs",
            "use",
            "phase",
            "Failed",
            "loadBalancer",
            "ipMode",
            "sluicegate.dev/vtep-mac",
        ])
        .prop_map(str::to_owned);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (0i64..70_000).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            word.clone().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 96, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(word.clone(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_order_of_objects_and_files_gives_an_equal_cluster(
            order in Just((0..11usize).collect::<Vec<_>>()).prop_shuffle(),
            files in prop::collection::vec(0..3u8, 11),
        ) {
            let defaults = Defaults { standalone: Some(Standalone::default()) };
            let expected = Cluster::build(&yaml(WORLD), &defaults).0;
            prop_assert_eq!(expected.services.len() + expected.pods.len() + expected.namespaces.len(), 6);
            let documents: Vec<&str> = WORLD.split("---\n").collect();
            let folder = tempfile::tempdir().unwrap();
            for file in 0..3u8 {
                let chosen = order.iter().filter(|i| files[**i] == file);
                let text = chosen.map(|i| documents[*i]).collect::<Vec<_>>().join("---\n");
                std::fs::write(folder.path().join(format!("{file}.yaml")), text).unwrap();
            }
            let snapshot = crate::source::ManifestSource::new(folder.path()).unwrap().snapshot();
            prop_assert_eq!(snapshot.problems, vec![]);
            let (cluster, invalid) = Cluster::build(&snapshot.objects, &defaults);
            prop_assert_eq!(cluster, expected);
            prop_assert_eq!(invalid.len(), 1);
        }

        #[test]
        fn no_json_makes_an_importer_panic(spec in any_json(), status in any_json(), metadata in any_json()) {
            for kind in Kind::ALL {
                let mut metadata = metadata.clone();
                if !metadata.is_object() {
                    metadata = json!({});
                }
                metadata["name"] = json!("x");
                let group = kind.group();
                let slash = if group.is_empty() { "" } else { "/" };
                let set = objects([json!({
                    "apiVersion": format!("{group}{slash}{}", kind.version()),
                    "kind": kind.name(),
                    "metadata": metadata,
                    "spec": spec.clone(),
                    "status": status.clone(),
                    "endpoints": spec.get("endpoints").cloned(),
                    "ports": spec.get("ports").cloned(),
                    "addressType": "IPv4",
                })]);
                let defaults = Defaults { standalone: Some(Standalone::default()) };
                let (cluster, invalid) = Cluster::build(&set, &defaults);
                prop_assert_eq!(Cluster::build(&set, &defaults), (cluster.clone(), invalid.clone()));
                let policies = cluster.network_policies.len() + cluster.cluster_network_policies.len();
                let wanted = matches!(kind, Kind::NetworkPolicy | Kind::ClusterNetworkPolicy) && !set.objects.is_empty();
                prop_assert_eq!(policies == 1, wanted, "a policy is never left out");
            }
        }
    }
}
