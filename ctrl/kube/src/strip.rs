//! What is kept of an object: the fields that the import reads, so that a large cluster fits into memory and a change of
//! anything else is no change.
//!
//! Policies, gateways and pools are kept whole but for what others manage, because a field we do not know must be seen to fail closed. Pods of
//! this node are kept whole too: CNI, host ports and annotations are about them.

use serde_json::{Map, Value};
use sluice_ctrl::model::node::LEAVING_TAINT;
use sluice_ctrl::source::Kind;

/// Strips an object of a kind; `node` is this node's name.
pub fn strip(kind: Kind, value: &mut Value, node: &str) {
    let Some(object) = value.as_object_mut() else { return };
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        let keep = ["name", "namespace", "uid", "labels", "annotations", "deletionTimestamp"];
        metadata.retain(|key, _| keep.contains(&key.as_str()));
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|key, _| key.starts_with("sluicegate.dev/") || key.starts_with("kubernetes.io/"));
        }
    }
    match kind {
        Kind::Namespace => object.retain(|key, _| is_envelope(key)),
        Kind::Node => {
            fields(object, "spec", &["podCIDR", "podCIDRs", "taints"]);
            taints(object);
            fields(object, "status", &["addresses", "conditions"]);
            conditions(object);
        }
        Kind::Pod => {
            let here = object.get("spec").and_then(|s| s.get("nodeName")).and_then(Value::as_str) == Some(node);
            if !here {
                fields(object, "spec", &["nodeName", "hostNetwork", "containers", "initContainers"]);
                containers(object);
                fields(object, "status", &["phase", "podIP", "podIPs", "conditions"]);
            }
            conditions(object);
        }
        Kind::Service => {
            fields(object, "status", &["loadBalancer"]);
        }
        Kind::EndpointSlice => {
            if let Some(Value::Array(endpoints)) = object.get_mut("endpoints") {
                for endpoint in endpoints.iter_mut().filter_map(Value::as_object_mut) {
                    fields(endpoint, "targetRef", &["kind", "namespace", "name"]);
                    endpoint.remove("hostname");
                }
            }
        }
        Kind::NetworkPolicy | Kind::ClusterNetworkPolicy | Kind::EgressGateway | Kind::IpPool => {
            object.remove("status");
        }
    }
}

fn is_envelope(key: &str) -> bool {
    matches!(key, "apiVersion" | "kind" | "metadata")
}

fn fields(object: &mut Map<String, Value>, part: &str, keep: &[&str]) {
    if let Some(part) = object.get_mut(part).and_then(Value::as_object_mut) {
        part.retain(|key, _| keep.contains(&key.as_str()));
    }
}

/// Of conditions only `Ready` is read, and of that only its status: heartbeats are no change.
fn conditions(object: &mut Map<String, Value>) {
    let Some(Value::Array(list)) = object.get_mut("status").and_then(|s| s.get_mut("conditions")) else { return };
    list.retain(|c| c.get("type").and_then(Value::as_str) == Some("Ready"));
    for condition in list.iter_mut().filter_map(Value::as_object_mut) {
        condition.retain(|key, _| key == "type" || key == "status");
    }
}

/// Of taints only the one that says the node will be deleted.
fn taints(object: &mut Map<String, Value>) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(Value::Array(list)) = spec.get_mut("taints") {
        list.retain(|taint| taint.get("key").and_then(Value::as_str) == Some(LEAVING_TAINT));
        for taint in list.iter_mut().filter_map(Value::as_object_mut) {
            taint.retain(|key, _| key == "key");
        }
        if list.is_empty() {
            spec.remove("taints");
        }
    }
}

fn containers(object: &mut Map<String, Value>) {
    for part in ["containers", "initContainers"] {
        let Some(Value::Array(list)) = object.get_mut("spec").and_then(|s| s.get_mut(part)) else { continue };
        for container in list.iter_mut().filter_map(Value::as_object_mut) {
            container.retain(|key, _| matches!(key.as_str(), "ports" | "restartPolicy"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stripped(kind: Kind, mut value: Value) -> Value {
        strip(kind, &mut value, "here");
        value
    }

    #[test]
    fn a_pod_elsewhere_is_what_others_need_of_it() {
        let pod = |node: &str| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a", "namespace": "x", "resourceVersion": "7", "managedFields": [{}], "labels": {"a": "b"},
                    "annotations": {"other.dev/x": "y", "sluicegate.dev/a": "b"}},
                "spec": {"nodeName": node, "volumes": [1], "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]},
                "status": {"phase": "Running", "podIP": "10.0.0.1", "startTime": "now",
                    "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": "now"}, {"type": "Initialized", "status": "True"}]},
            })
        };
        let there = stripped(Kind::Pod, pod("there"));
        assert_eq!(
            there,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a", "namespace": "x", "labels": {"a": "b"}, "annotations": {"sluicegate.dev/a": "b"}},
                "spec": {"nodeName": "there", "containers": [{"ports": [{"containerPort": 80}]}]},
                "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
            })
        );
        let here = stripped(Kind::Pod, pod("here"));
        assert_eq!(here["spec"]["volumes"], json!([1]));
        assert_eq!(here["metadata"].get("managedFields"), None);
    }

    #[test]
    fn a_heartbeat_of_a_node_is_no_change() {
        let node = |time: &str| {
            stripped(
                Kind::Node,
                json!({"metadata": {"name": "n", "resourceVersion": time}, "spec": {"podCIDR": "10.0.0.0/24", "taints": []},
                "status": {"images": [1], "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": time}]}}),
            )
        };
        assert_eq!(node("1"), node("2"));
        assert_eq!(node("1")["status"]["conditions"][0]["status"], "True");
    }

    #[test]
    fn what_fails_closed_on_unknown_fields_keeps_them() {
        let policy = json!({"metadata": {"name": "p"}, "spec": {"podSelector": {}, "new": 1}, "extra": 2, "status": {"conditions": []}});
        let kept = stripped(Kind::NetworkPolicy, policy);
        assert_eq!((kept["spec"]["new"].clone(), kept["extra"].clone()), (json!(1), json!(2)));
    }
}
