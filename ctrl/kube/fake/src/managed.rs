//! Who manages which fields: as much of server-side apply as a client that writes one status can see.
//!
//! Source: Kubernetes "Server-Side Apply". Kept: an apply takes away what its manager applied before and applies no more; a write
//! of somebody else that changes a field ends its ownership. Lists are one field. Not kept: conflicts, shared ownership, updates.

use serde_json::{Map, Value, json};

/// Paths of an object's fields, lists and scalars as leaves; type, name and version are nobody's.
fn paths(value: &Value, at: &str, all: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| paths(value, &format!("{at}/{key}"), all)),
        _ => all.push(at.to_owned()),
    }
}

fn owned_by(applied: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for part in ["spec", "status"] {
        if let Some(value) = applied.get(part) {
            paths(value, &format!("/{part}"), &mut all);
        }
    }
    all
}

/// `fieldsV1`: `/status/x` as `{"f:status": {"f:x": {}}}`.
fn fields(paths: &[String]) -> Value {
    let mut root = json!({});
    for path in paths {
        let mut at = &mut root;
        for part in path.trim_start_matches('/').split('/') {
            at = at.as_object_mut().expect("made so").entry(format!("f:{part}")).or_insert_with(|| json!({}));
        }
    }
    root
}

fn unfields(value: &Value, at: &str, all: &mut Vec<String>) {
    match value.as_object() {
        Some(fields) if !fields.is_empty() => {
            fields
                .iter()
                .for_each(|(key, value)| unfields(value, &format!("{at}/{}", key.trim_start_matches("f:")), all));
        }
        _ => all.push(at.to_owned()),
    }
}

fn entries(value: &Value) -> Vec<Value> {
    value.pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn keep(value: &mut Value, entries: Vec<Value>) {
    let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    match entries.is_empty() {
        true => drop(metadata.remove("managedFields")),
        false => drop(metadata.insert("managedFields".into(), entries.into())),
    }
}

fn remove(value: &mut Value, path: &str) {
    let Some((parent, last)) = path.rsplit_once('/') else { return };
    if let Some(Value::Object(fields)) = value.pointer_mut(parent) {
        let fields: &mut Map<String, Value> = fields;
        fields.remove(last);
    }
}

/// An apply: `new` has been merged already.
pub fn apply(new: &mut Value, old: Option<&Value>, applied: &Value, manager: &str, subresource: &str) {
    let mut all = old.map(entries).unwrap_or_default();
    let same = |e: &Value| e["manager"] == manager && e["subresource"].as_str().unwrap_or_default() == subresource;
    let wanted = owned_by(applied);
    for entry in all.iter().filter(|e| same(e)) {
        let mut had = Vec::new();
        unfields(&entry["fieldsV1"], "", &mut had);
        for gone in had.iter().filter(|path| !wanted.contains(path)) {
            remove(new, gone);
        }
    }
    all.retain(|e| !same(e));
    if !wanted.is_empty() {
        let mut entry =
            json!({"manager": manager, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields(&wanted)});
        if !subresource.is_empty() {
            entry["subresource"] = subresource.into();
        }
        all.push(entry);
    }
    keep(new, all);
}

/// Any other write: whoever changes a field takes it from its manager.
pub fn overwrite(new: &mut Value, old: &Value) {
    let mut all = entries(old);
    for entry in &mut all {
        let mut had = Vec::new();
        unfields(&entry["fieldsV1"], "", &mut had);
        had.retain(|path| new.pointer(path) == old.pointer(path));
        entry["fieldsV1"] = fields(&had);
    }
    all.retain(|entry| entry["fieldsV1"] != json!({}));
    keep(new, all);
}
