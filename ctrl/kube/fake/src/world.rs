//! What the server stores: objects by collection, one counter of versions, and the log that watches read.
//!
//! Source: "Kubernetes API concepts" and "API conventions": `resourceVersion`, optimistic locking, `generation` follows the
//! spec, the status subresource and the object proper do not touch each other's part.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::managed;

/// A collection: API prefix and plural, as `apis/discovery.k8s.io/v1/endpointslices` or `api/v1/pods`.
pub type Collection = String;

/// Namespace (empty for kinds without) and name.
pub type Name = (String, String);

/// What the server does wrong on purpose.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Tokens that are let in; empty lets everybody in.
    pub tokens: Vec<String>,
    /// Every request is answered with this status.
    pub answer: Option<u16>,
    /// Plurals that are answered with 403.
    pub forbidden: BTreeSet<String>,
    /// Plurals that are answered with 404, as if their CRD were not there.
    pub absent: BTreeSet<String>,
    /// Events reach a watch late, each by this many milliseconds.
    pub slow_ms: u64,
    /// Each event is sent twice.
    pub duplicate: bool,
    /// Events that wait together are sent in the reverse order.
    pub reverse: bool,
    /// A watch is cut in the middle of a line after this many events.
    pub cut_after: Option<usize>,
    /// `continue` tokens are answered with 410.
    pub expire_pages: bool,
    /// A watch is never told anything, not even bookmarks.
    pub silent: bool,
}

/// One entry of the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Version of the change.
    pub version: u64,
    /// Where it happened.
    pub collection: Collection,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub kind: &'static str,
    /// The object as JSON.
    pub text: Arc<str>,
}

/// An object with its text.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The object.
    pub value: Value,
    /// The same as JSON.
    pub text: Arc<str>,
}

/// A refusal: HTTP status, reason, message.
pub type Refusal = (u16, &'static str, String);

/// Everything the server knows.
#[derive(Debug, Default)]
pub struct World {
    /// The newest version.
    pub version: u64,
    /// Objects.
    pub objects: BTreeMap<Collection, BTreeMap<Name, Stored>>,
    /// Changes, oldest first.
    pub log: Vec<Entry>,
    /// Versions up to this one are forgotten.
    pub floor: u64,
    /// Lists of which pages are left, by token.
    pub pages: HashMap<String, (u64, Vec<Arc<str>>)>,
    /// What goes wrong.
    pub faults: Faults,
    /// Requests that were answered: method and path with query.
    pub requests: Vec<(String, String)>,
    tokens: u64,
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `POST`.
    Create,
    /// `PUT`.
    Replace,
    /// `PATCH`, and apply.
    Patch,
}

/// One write.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// What it does.
    pub how: Write,
    /// Where.
    pub collection: &'a str,
    /// To what.
    pub name: &'a Name,
    /// The status subresource alone.
    pub status: bool,
    /// The body.
    pub body: Value,
    /// A strategic merge patch.
    pub merge_lists: bool,
    /// Server-side apply.
    pub apply: bool,
    /// The field manager; empty where the client names none.
    pub manager: &'a str,
}

/// The collection an object lives in.
pub fn collection_of(value: &Value) -> Option<Collection> {
    let api = value.get("apiVersion")?.as_str()?;
    let kind = value.get("kind")?.as_str()?;
    let plural = match kind {
        "NetworkPolicy" => "networkpolicies".to_owned(),
        "ClusterNetworkPolicy" => "clusternetworkpolicies".to_owned(),
        _ => format!("{}s", kind.to_lowercase()),
    };
    Some(if api.contains('/') { format!("apis/{api}/{plural}") } else { format!("api/{api}/{plural}") })
}

/// Namespace and name of an object.
pub fn name_of(value: &Value) -> Name {
    let text =
        |key: &str| value.pointer(&format!("/metadata/{key}")).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn metadata(value: &mut Value) -> &mut Map<String, Value> {
    if !value.get("metadata").is_some_and(Value::is_object) {
        value["metadata"] = json!({});
    }
    value["metadata"].as_object_mut().expect("made above")
}

impl World {
    /// Stores an object as it is, made or changed; gives it its metadata.
    pub fn apply(&mut self, value: Value) -> u64 {
        let collection = collection_of(&value).expect("an object has a kind");
        let name = name_of(&value);
        let old = self.objects.get(&collection).and_then(|c| c.get(&name)).map(|s| s.value.clone());
        self.store(collection, name, value, old.as_ref())
    }

    fn store(&mut self, collection: Collection, name: Name, mut value: Value, old: Option<&Value>) -> u64 {
        self.version += 1;
        let version = self.version;
        let generation = old.and_then(|o| o.pointer("/metadata/generation")).and_then(Value::as_u64);
        let same_spec = old.is_some_and(|o| o.get("spec") == value.get("spec"));
        let meta = metadata(&mut value);
        meta.insert("resourceVersion".into(), version.to_string().into());
        let uid = old.and_then(|o| o.pointer("/metadata/uid")).cloned();
        if let Some(uid) = uid {
            meta.insert("uid".into(), uid);
        } else {
            meta.entry("uid").or_insert_with(|| format!("00000000-0000-4000-8000-{version:012x}").into());
        }
        let next = generation.map_or(1, |g| if same_spec { g } else { g + 1 });
        meta.insert("generation".into(), next.into());
        let text: Arc<str> = value.to_string().into();
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.log.push(Entry { version, collection: collection.clone(), kind, text: text.clone() });
        self.objects.entry(collection).or_default().insert(name, Stored { value, text });
        version
    }

    /// Deletes an object; false where it was not there.
    pub fn delete(&mut self, collection: &str, name: &Name) -> bool {
        let Some(stored) = self.objects.get_mut(collection).and_then(|c| c.remove(name)) else { return false };
        self.version += 1;
        let mut value = stored.value;
        metadata(&mut value).insert("resourceVersion".into(), self.version.to_string().into());
        let text: Arc<str> = value.to_string().into();
        self.log.push(Entry { version: self.version, collection: collection.to_owned(), kind: "DELETED", text });
        true
    }

    /// Forgets the log: every watch has to list again.
    pub fn compact(&mut self) {
        self.floor = self.version;
        self.log.clear();
        self.pages.clear();
    }

    /// A write as a client asks for it; the object as it stands then, and whether it was made.
    pub fn write(&mut self, wanted: Wanted<'_>) -> Result<(Value, bool), Refusal> {
        let Wanted { how, collection, name, status, body, merge_lists, apply, manager } = wanted;
        let applied = apply.then(|| body.clone());
        let old = self.objects.get(collection).and_then(|c| c.get(name)).map(|s| s.value.clone());
        let shown = format!("{} {:?}", collection.rsplit('/').next().unwrap_or_default(), name.1);
        match (how, &old) {
            (Write::Create, Some(_)) => return Err((409, "AlreadyExists", format!("{shown} already exists"))),
            (Write::Replace, None) => return Err((404, "NotFound", format!("{shown} not found"))),
            (Write::Patch, None) if !apply || status => return Err((404, "NotFound", format!("{shown} not found"))),
            _ => {}
        }
        let wanted = body.pointer("/metadata/resourceVersion").and_then(Value::as_str).filter(|v| !v.is_empty());
        let have = old.as_ref().and_then(|o| o.pointer("/metadata/resourceVersion")).and_then(Value::as_str);
        if how != Write::Create && wanted.is_some() && wanted != have {
            return Err((409, "Conflict", format!("{shown}: the object has been modified")));
        }
        let mut new = match (how, &old) {
            (Write::Patch, Some(old)) => {
                let mut merged = old.clone();
                merge(&mut merged, &body, merge_lists || apply);
                merged
            }
            _ => body,
        };
        let subresource = if status { "status" } else { "" };
        if let Some(applied) = &applied {
            managed::apply(&mut new, old.as_ref(), applied, manager, subresource);
        } else if let Some(old) = &old {
            managed::overwrite(&mut new, old);
        }
        if let Some(old) = &old {
            // Each of the two ways leaves the other's part alone.
            let kept = if status { ["spec", "type"] } else { ["status", ""] };
            let has_status_resource = !collection.ends_with("/leases") && !collection.ends_with("/events");
            for part in kept.into_iter().filter(|p| !p.is_empty() && has_status_resource) {
                match old.get(part) {
                    Some(value) => new[part] = value.clone(),
                    None => drop(new.as_object_mut().map(|o| o.remove(part))),
                }
            }
            if unversioned(&new) == unversioned(old) {
                return Ok((old.clone(), false));
            }
        }
        metadata(&mut new).insert("name".into(), name.1.clone().into());
        if !name.0.is_empty() {
            metadata(&mut new).insert("namespace".into(), name.0.clone().into());
        }
        self.store(collection.to_owned(), name.clone(), new, old.as_ref());
        Ok((self.objects[collection][name].value.clone(), old.is_none()))
    }

    /// Keeps the rest of a list under a new token.
    pub fn keep_pages(&mut self, version: u64, rest: Vec<Arc<str>>) -> String {
        self.tokens += 1;
        let token = format!("page-{}", self.tokens);
        self.pages.insert(token.clone(), (version, rest));
        token
    }
}

fn unversioned(value: &Value) -> Value {
    let mut value = value.clone();
    metadata(&mut value).remove("resourceVersion");
    value
}

/// RFC 7386, and with `lists` the strategic merge of lists whose elements have a `type` or `key`.
fn merge(target: &mut Value, patch: &Value, lists: bool) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(key);
                } else {
                    merge(target.entry(key.clone()).or_insert(Value::Null), value, lists);
                }
            }
        }
        (Value::Array(target), Value::Array(patch))
            if lists && patch.iter().all(|p| p.get("type").is_some_and(Value::is_string)) =>
        {
            for element in patch {
                match target.iter_mut().find(|t| t.get("type") == element.get("type")) {
                    Some(found) => merge(found, element, lists),
                    None => target.push(element.clone()),
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}
