//! What the API server has, as far as we were told: events in, changes out.
//!
//! Invariants: an event that is older than what is known of its object (a duplicate, one out of order, one from before the list)
//! changes nothing; an object that differs only in what [`strip`] takes away is no change; a list that
//! is complete is the truth, whatever versions it bears (a cluster that was restored from a backup counts from an older one).
//! Source: resource versions of one collection can be compared as numbers (Kubernetes API concepts, since 1.35).
//! Memory: one compact JSON text for each object, which is also what goes to disk.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;
use sluice_ctrl::import::live::Delta;
use sluice_ctrl::source::{Identified, Kind, ObjectKey, Origin, RawObject, identify};

use crate::strip::strip;
use crate::writer::WRITTEN;

/// Deletions that are remembered for each kind, to know their late events again.
const TOMBS: usize = 4096;

/// What is known of one object.
#[derive(Clone, Debug)]
pub struct Known {
    /// `metadata.resourceVersion`; 0 where it is not a number.
    pub version: u64,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.conditions`, of kinds whose status we write.
    pub conditions: Value,
    /// Load-balancer addresses of a Service; none where it has none and never had one of ours.
    pub ingress: Option<Box<Ingress>>,
    /// The stripped object.
    pub text: Arc<[u8]>,
}

/// `status.loadBalancer.ingress` of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// Addresses and host names, in their order.
    pub addresses: Vec<String>,
    /// We wrote it, and nobody has written over it (`metadata.managedFields`).
    pub ours: bool,
    /// `metadata.resourceVersion` it was read with.
    pub version: String,
}

impl Ingress {
    fn of(value: &Value) -> Option<Box<Ingress>> {
        let list = value.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
        let name = |entry: &Value| entry.get("ip").or_else(|| entry.get("hostname"))?.as_str().map(str::to_owned);
        let addresses: Vec<String> = list.into_iter().flatten().filter_map(name).collect();
        let managed = value.pointer("/metadata/managedFields").and_then(Value::as_array);
        let ours = managed.into_iter().flatten().any(|entry| {
            entry["manager"] == crate::writer::MANAGER
                && entry["subresource"] == "status"
                && entry.pointer("/fieldsV1/f:status/f:loadBalancer/f:ingress").is_some()
        });
        let version = value.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
        (ours || !addresses.is_empty()).then(|| Box::new(Ingress { addresses, ours, version }))
    }
}

#[derive(Debug, Default)]
struct Collection {
    objects: HashMap<ObjectKey, Known>,
    /// Versions of deletions.
    tombs: HashMap<ObjectKey, u64>,
    /// What is not known is not newer than this.
    floor: u64,
    /// Objects of the list that is under way.
    listing: HashSet<ObjectKey>,
}

/// Everything the API server has told.
#[derive(Debug)]
pub struct Store {
    node: String,
    collections: HashMap<Kind, Collection>,
}

impl Store {
    /// Empty; `node` is this node's name, whose pods are kept whole.
    pub fn new(node: impl Into<String>) -> Store {
        Store { node: node.into(), collections: HashMap::new() }
    }

    /// A list begins.
    pub fn begin(&mut self, kind: Kind) {
        self.collections.entry(kind).or_default().listing.clear();
    }

    /// Objects of a list.
    pub fn page(&mut self, kind: Kind, items: Vec<Value>, deltas: &mut Vec<Delta>) {
        for item in items {
            let Some((key, _, value, known)) = self.read(kind, item) else { continue };
            let collection = self.collections.entry(kind).or_default();
            collection.listing.insert(key.clone());
            deltas.extend(collection.put(key, known, value));
        }
    }

    /// The list is complete: what was not in it is gone.
    pub fn listed(&mut self, kind: Kind, version: &str, deltas: &mut Vec<Delta>) {
        let collection = self.collections.entry(kind).or_default();
        let listing = std::mem::take(&mut collection.listing);
        let gone: Vec<ObjectKey> = collection.objects.keys().filter(|key| !listing.contains(*key)).cloned().collect();
        for key in gone {
            collection.objects.remove(&key);
            deltas.push(Delta { key, object: None });
        }
        collection.floor = version.parse().unwrap_or(0);
        collection.tombs.clear();
    }

    /// An object was made, changed or deleted.
    pub fn event(&mut self, kind: Kind, deleted: bool, item: Value, deltas: &mut Vec<Delta>) {
        let Some((key, version, value, known)) = self.read(kind, item) else { return };
        let collection = self.collections.entry(kind).or_default();
        let newest = match (collection.objects.get(&key), collection.tombs.get(&key)) {
            (Some(known), _) => known.version,
            (None, Some(tomb)) => *tomb,
            (None, None) => collection.floor,
        };
        if version != 0 && version <= newest {
            return;
        }
        if deleted {
            if collection.tombs.len() >= TOMBS {
                // What is forgotten is not newer than the newest that is forgotten.
                collection.floor = collection.floor.max(collection.tombs.values().copied().max().unwrap_or(0));
                collection.tombs.clear();
            }
            collection.tombs.insert(key.clone(), version);
            if collection.objects.remove(&key).is_some() {
                deltas.push(Delta { key, object: None });
            }
        } else {
            collection.tombs.remove(&key);
            deltas.extend(collection.put(key, known, value));
        }
    }

    /// Everything of a kind is gone.
    pub fn clear(&mut self, kind: Kind, deltas: &mut Vec<Delta>) {
        self.begin(kind);
        self.listed(kind, "0", deltas);
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.collections.get(&kind).map_or(0, |c| c.objects.len())
    }

    /// What is known of an object.
    pub fn get(&self, key: &ObjectKey) -> Option<&Known> {
        self.collections.get(&key.kind)?.objects.get(key)
    }

    /// All objects of a kind.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &Known)> {
        self.collections.get(&kind).into_iter().flat_map(|c| &c.objects)
    }

    /// The texts of all objects.
    pub fn texts(&self) -> Vec<Arc<[u8]>> {
        self.collections.values().flat_map(|c| c.objects.values().map(|k| k.text.clone())).collect()
    }

    fn read(&self, kind: Kind, mut value: Value) -> Option<(ObjectKey, u64, Value, Known)> {
        let key = match identify(&value) {
            Ok(Identified::Key(key)) if key.kind == kind => key,
            other => {
                tracing::warn!(%kind, ?other, "the API server sent an object that is not what was asked for");
                return None;
            }
        };
        let text = |field: &str| value.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let version = text("/metadata/resourceVersion").parse().unwrap_or(0);
        let uid = text("/metadata/uid");
        let generation = value.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
        let conditions = match WRITTEN.contains(&kind) {
            true => value.pointer("/status/conditions").cloned().unwrap_or(Value::Null),
            false => Value::Null,
        };
        let ingress = if kind == Kind::Service { Ingress::of(&value) } else { None };
        strip(kind, &mut value, &self.node);
        let text: Arc<[u8]> = serde_json::to_vec(&value).unwrap_or_default().into();
        Some((key, version, value, Known { version, uid, generation, conditions, ingress, text }))
    }
}

impl Collection {
    /// Puts an object in its place; a change only where its text differs.
    fn put(&mut self, key: ObjectKey, known: Known, value: Value) -> Option<Delta> {
        let same = match self.objects.get_mut(&key) {
            Some(old) => {
                let same = old.text == known.text;
                *old = Known { text: if same { old.text.clone() } else { known.text }, ..known };
                same
            }
            None => {
                self.objects.insert(key.clone(), known);
                false
            }
        };
        (!same).then(|| Delta { key, object: Some(Arc::new(RawObject { value, origin: Origin::ApiServer })) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn service(name: usize, version: u64, port: u64) -> Value {
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": format!("s{name}"), "namespace": "x", "resourceVersion": version.to_string()},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]}})
    }

    /// The deltas played into a plain map.
    fn play(map: &mut BTreeMap<String, Value>, deltas: Vec<Delta>) {
        for delta in deltas {
            match delta.object {
                Some(raw) => drop(map.insert(delta.key.name, raw.value["spec"]["ports"][0]["port"].clone())),
                None => drop(map.remove(&delta.key.name)),
            }
        }
    }

    proptest! {
        /// A history of four Services; every event arrives, some twice, in any order, and a list may come in between.
        #[test]
        fn duplicate_and_reordered_events_end_in_the_same_objects(
            history in prop::collection::vec((0..4usize, 0..4u64), 1..24),
            extra in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            keys in prop::collection::vec(any::<u32>(), 48),
            list_at in 0..24usize,
        ) {
            let mut truth: BTreeMap<String, Value> = BTreeMap::new();
            let mut events = Vec::new();
            let mut states = vec![truth.clone()];
            for (at, (name, port)) in history.iter().enumerate() {
                let version = at as u64 + 1;
                let deleted = *port == 0;
                if deleted && !truth.contains_key(&format!("s{name}")) {
                    states.push(truth.clone());
                    continue;
                }
                if deleted {
                    truth.remove(&format!("s{name}"));
                } else {
                    truth.insert(format!("s{name}"), json!(port));
                }
                states.push(truth.clone());
                events.push((version, deleted, service(*name, version, *port)));
            }
            let list_at = list_at.min(history.len());
            let mut store = Store::new("n");
            let mut map = BTreeMap::new();
            // The list of that moment, with the versions its objects had.
            let mut deltas = Vec::new();
            store.begin(Kind::Service);
            let mut listed: BTreeMap<String, Value> = BTreeMap::new();
            for (version, deleted, value) in &events {
                if *version <= list_at as u64 {
                    let name = value["metadata"]["name"].as_str().unwrap().to_owned();
                    if *deleted { listed.remove(&name); } else { listed.insert(name, value.clone()); }
                }
            }
            store.page(Kind::Service, listed.into_values().collect(), &mut deltas);
            store.listed(Kind::Service, &list_at.to_string(), &mut deltas);
            play(&mut map, deltas);
            prop_assert_eq!(&map, &states[list_at]);
            // Then every event, old ones too, shuffled and some twice.
            let mut sent: Vec<_> = events.iter().collect();
            for index in &extra {
                if !events.is_empty() {
                    sent.push(index.get(&events));
                }
            }
            let mut order: Vec<usize> = (0..sent.len()).collect();
            order.sort_by_key(|i| keys[i % keys.len()]);
            for i in order {
                let (_, deleted, value) = sent[i];
                let mut deltas = Vec::new();
                store.event(Kind::Service, *deleted, value.clone(), &mut deltas);
                play(&mut map, deltas);
            }
            prop_assert_eq!(&map, &truth);
        }
    }

    #[test]
    fn an_object_that_only_got_a_new_version_is_no_change() {
        let mut store = Store::new("n");
        let mut deltas = Vec::new();
        store.event(Kind::Service, false, service(1, 5, 80), &mut deltas);
        store.event(Kind::Service, false, service(1, 6, 80), &mut deltas);
        assert_eq!(deltas.len(), 1);
        assert_eq!(store.of_kind(Kind::Service).next().unwrap().1.version, 6);
    }

    #[test]
    fn a_list_is_the_truth_even_where_its_versions_are_older() {
        let mut store = Store::new("n");
        let mut deltas = Vec::new();
        store.event(Kind::Service, false, service(1, 500, 80), &mut deltas);
        store.event(Kind::Service, false, service(2, 501, 80), &mut deltas);
        deltas.clear();
        store.begin(Kind::Service);
        store.page(Kind::Service, vec![service(1, 7, 81)], &mut deltas);
        store.listed(Kind::Service, "9", &mut deltas);
        assert_eq!(deltas.len(), 2);
        deltas.clear();
        store.event(Kind::Service, false, service(1, 10, 82), &mut deltas);
        assert_eq!(deltas.len(), 1, "versions count from the list on");
    }
}
