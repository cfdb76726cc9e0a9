//! Where cluster state comes from: one type, the object set, that every source fills.
//!
//! Owner: the control thread. Manifest folders (`manifests`) fill it from files; a watch on an API server fills it from
//! list and watch, through the same type. Objects are raw JSON values with their origin; what they mean is decided in
//! `crate::import`. Invariant: the set is keyed by (kind, namespace, name), so its content does not depend on the order
//! in which objects arrived.

pub mod document;
pub mod manifests;
mod strict;
pub mod watch;

pub use document::SourceProblem;
pub use manifests::{ManifestSource, Snapshot};
pub use watch::ManifestWatch;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

/// The kinds of objects that are read; all others are counted and left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Namespace.
    Namespace,
    /// core/v1 Node.
    Node,
    /// core/v1 Pod.
    Pod,
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
    /// policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// sluicegate.dev/v1alpha1 EgressGateway.
    EgressGateway,
    /// sluicegate.dev/v1alpha1 IPPool.
    IpPool,
}

impl Kind {
    /// Every kind that is read.
    pub const ALL: [Kind; 9] = [
        Kind::Namespace,
        Kind::Node,
        Kind::Pod,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::NetworkPolicy,
        Kind::ClusterNetworkPolicy,
        Kind::EgressGateway,
        Kind::IpPool,
    ];

    /// The API's `kind`.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::Node => "Node",
            Kind::Pod => "Pod",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Kind::EgressGateway => "EgressGateway",
            Kind::IpPool => "IPPool",
        }
    }

    /// The API group; empty for the core group.
    pub const fn group(self) -> &'static str {
        match self {
            Kind::Namespace | Kind::Node | Kind::Pod | Kind::Service => "",
            Kind::EndpointSlice => "discovery.k8s.io",
            Kind::NetworkPolicy => "networking.k8s.io",
            Kind::ClusterNetworkPolicy => "policy.networking.k8s.io",
            Kind::EgressGateway | Kind::IpPool => "sluicegate.dev",
        }
    }

    /// The version whose fields are understood.
    pub const fn version(self) -> &'static str {
        match self {
            Kind::ClusterNetworkPolicy => "v1alpha2",
            Kind::EgressGateway | Kind::IpPool => "v1alpha1",
            _ => "v1",
        }
    }

    /// True for kinds whose objects live in a namespace.
    pub const fn is_namespaced(self) -> bool {
        matches!(self, Kind::Pod | Kind::Service | Kind::EndpointSlice | Kind::NetworkPolicy)
    }

    /// The kind of an object by group and name. Versions are not looked at: an object of a version that is not
    /// understood must still be seen, because leaving a policy out would open what it closes.
    pub fn of(api_version: &str, kind: &str) -> Option<Kind> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        Kind::ALL.into_iter().find(|k| k.group() == group && k.name() == kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The object's kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds without.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// `ns/name`, or `name` for kinds without a namespace.
    pub fn full_name(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.full_name())
    }
}

/// Where an object was read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// From an API server.
    ApiServer,
    /// From a file.
    File {
        /// Path of the file, below the folder that was given.
        path: Arc<Path>,
        /// The object's first line, counted from 1.
        line: u32,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::ApiServer => f.write_str("API server"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// An object as it was read, not yet understood.
#[derive(Clone, Debug, PartialEq)]
pub struct RawObject {
    /// The whole object.
    pub value: Value,
    /// Where it was read.
    pub origin: Origin,
}

/// All objects of the kinds that are read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectSet {
    /// The objects by name.
    pub objects: BTreeMap<ObjectKey, Arc<RawObject>>,
}

/// What stands in the way of adding an object to a set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unnamed {
    /// Not a mapping with `kind` and `apiVersion`.
    #[error("not a Kubernetes object: {0}")]
    NotAnObject(&'static str),
    /// The kind is read, the object has no usable name.
    #[error("{0} without metadata.name")]
    NoName(Kind),
    /// A name or namespace that is not text without blanks and slashes.
    #[error("{0}: {1} must be text without blanks and slashes")]
    BadName(Kind, &'static str),
}

/// What an object turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identified {
    /// An object of a kind that is read.
    Key(ObjectKey),
    /// An object of another kind, as `kind.group`.
    Other(String),
}

/// Reads an object's kind, namespace (`default` where it is left out) and name.
pub fn identify(value: &Value) -> Result<Identified, Unnamed> {
    let object = value.as_object().ok_or(Unnamed::NotAnObject("a mapping is expected"))?;
    let text = |key: &str| object.get(key).and_then(Value::as_str).filter(|t| !t.is_empty());
    let kind_text = text("kind").ok_or(Unnamed::NotAnObject("kind is missing"))?;
    let api_version = text("apiVersion").ok_or(Unnamed::NotAnObject("apiVersion is missing"))?;
    let Some(kind) = Kind::of(api_version, kind_text) else {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let dot = if group.is_empty() { "" } else { "." };
        return Ok(Identified::Other(format!("{kind_text}{dot}{group}")));
    };
    let part = |field: &'static str, full: &'static str| match value.get("metadata").and_then(|m| m.get(field)) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(s)) if !s.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) => {
            Ok(s.clone())
        }
        Some(Value::Number(n)) => Ok(n.to_string()),
        Some(_) => Err(Unnamed::BadName(kind, full)),
    };
    let name = part("name", "metadata.name")?;
    if name.is_empty() {
        return Err(Unnamed::NoName(kind));
    }
    let namespace = match kind.is_namespaced() {
        false => String::new(),
        true => Some(part("namespace", "metadata.namespace")?)
            .filter(|n| !n.is_empty())
            .unwrap_or_else(|| "default".to_owned()),
    };
    Ok(Identified::Key(ObjectKey { kind, namespace, name }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn key(kind: Kind, namespace: &str, name: &str) -> Identified {
        Identified::Key(ObjectKey { kind, namespace: namespace.into(), name: name.into() })
    }

    #[test]
    fn an_object_is_named_by_kind_namespace_and_name() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "x"}});
        assert_eq!(identify(&pod), Ok(key(Kind::Pod, "x", "a")));
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
        assert_eq!(identify(&pod), Ok(key(Kind::Pod, "default", "a")));
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "namespace": "x"}});
        assert_eq!(identify(&node), Ok(key(Kind::Node, "", "n")));
    }

    #[test]
    fn the_group_decides_and_the_version_does_not() {
        let knative = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "a"}});
        assert_eq!(identify(&knative), Ok(Identified::Other("Service.serving.knative.dev".into())));
        let later = json!({"apiVersion": "networking.k8s.io/v2", "kind": "NetworkPolicy", "metadata": {"name": "a"}});
        assert_eq!(identify(&later), Ok(key(Kind::NetworkPolicy, "default", "a")));
    }

    #[test]
    fn what_has_no_name_is_refused_with_the_reason() {
        assert_eq!(identify(&json!({"apiVersion": "v1", "kind": "Pod"})), Err(Unnamed::NoName(Kind::Pod)));
        assert!(matches!(identify(&json!([1])), Err(Unnamed::NotAnObject(_))));
        let slash = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a/b"}});
        assert!(matches!(identify(&slash), Err(Unnamed::BadName(Kind::Pod, "metadata.name"))));
    }
}
