//! What we tell the API server: status of our own kinds and of ClusterNetworkPolicy, load-balancer addresses that we gave,
//! events for what was refused, this node's condition and taint.
//!
//! Status of cluster-wide objects and events about them are the same whoever writes them, so one node does: the holder of the
//! lease `sluicegate-writer`. Writes are server-side applies of the status subresource under one field manager, only when
//! something differs, at most one each [`PAUSE`]. A Service's `status.loadBalancer` is written where it is empty or what it holds
//! is ours by its managed fields, and emptied again where it is no more ours to give; everything else is somebody else's. An event is made once for an object, a field and a reason, and counted up after
//! [`REPEAT`] at the earliest. Each node writes its own condition, removes its own taint, and makes events about itself.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hasher;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::core::Request;
use kube::core::params::{GetParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use sluice_ctrl::import::Effect;
use sluice_ctrl::model::NamespacedName;
use sluice_ctrl::source::{Kind, ObjectKey};
use tokio::sync::{mpsc, watch};

use crate::connection::{ApiError, Connection};
use crate::feed::resource;
use crate::lease::{Elector, Leases};
use crate::store::Store;

/// Shortest time between two writes.
const PAUSE: Duration = Duration::from_millis(100);
/// An event that stands is counted up at most this often.
const REPEAT: Duration = Duration::from_secs(3600);
/// A status that was written and is not there after this long was undone by somebody.
const ECHO: Duration = Duration::from_secs(30);
/// Events that are remembered.
const REMEMBERED: usize = 10_000;
/// Kinds with conditions of ours in their status; NetworkPolicy v1 has no status.
pub(crate) const WRITTEN: [Kind; 3] = [Kind::ClusterNetworkPolicy, Kind::EgressGateway, Kind::IpPool];
/// The lease of whoever writes.
pub const LEASE: &str = "sluicegate-writer";
/// The field manager of our writes.
pub const MANAGER: &str = "sluicegate";
/// The taint that keeps pods away until a node is programmed.
pub const TAINT: &str = "sluicegate.dev/agent-not-ready";

/// Something about an object that was not done as it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Refusal {
    /// The object.
    pub key: ObjectKey,
    /// The field.
    pub field: String,
    /// Why.
    pub why: String,
    /// What it costs; none for what was understood and cannot be programmed.
    pub effect: Option<Effect>,
}

/// What became of the objects, as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What was refused.
    pub refusals: Vec<Refusal>,
    /// Every worker runs on tables of the objects that are there, and pods can be added.
    pub programmed: bool,
    /// Why not.
    pub why_not: Option<String>,
    /// Load-balancer addresses that Services should have out of our pools.
    pub balanced: Arc<BTreeMap<NamespacedName, Vec<IpAddr>>>,
}

/// An event about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The object.
    pub key: ObjectKey,
    /// One word in CamelCase.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// Writes for one node.
#[derive(Clone)]
pub struct Writer {
    connection: Arc<Connection>,
    store: Rc<RefCell<Store>>,
    node: String,
    lease: Duration,
}

impl Writer {
    /// For a node.
    pub fn new(connection: Arc<Connection>, store: Rc<RefCell<Store>>, node: &str, lease: Duration) -> Writer {
        Writer { connection, store, node: node.to_owned(), lease }
    }

    /// Says on the Node object that its network is there, each time it has come to be.
    pub async fn node(self, mut verdicts: watch::Receiver<Option<Verdict>>) {
        loop {
            if verdicts.wait_for(is_programmed).await.is_err() {
                return;
            }
            let mut wait = Duration::from_millis(500);
            while let Err(error) = self.mark_node().await {
                tracing::warn!(%error, "cannot mark the node as programmed");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(30));
            }
            // Whoever removed it meanwhile, a cloud's route controller for one, had no reason to.
            let again = tokio::time::timeout(Duration::from_secs(600), verdicts.wait_for(|v| !is_programmed(v))).await;
            if let Ok(Err(_)) = again {
                return;
            }
        }
    }

    async fn mark_node(&self) -> Result<(), ApiError> {
        let nodes = Request::new("/api/v1/nodes");
        let node: Value = self.connection.ask(nodes.get(&self.node, &GetParams::default())).await?;
        let network = condition(&node, "NetworkUnavailable");
        if network.is_none_or(|c| c["status"] != "False") {
            let now = now();
            let status = json!({"status": {"conditions": [{
                "type": "NetworkUnavailable", "status": "False", "reason": "SluicegateIsUp",
                "message": "Every worker runs on the cluster's tables", "lastHeartbeatTime": now, "lastTransitionTime": now,
            }]}});
            let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            let request = nodes.patch_subresource("status", &self.node, &params, &Patch::Strategic(status));
            self.connection.ask::<Value>(request).await?;
        }
        let Some(taints) = node.pointer("/spec/taints").and_then(Value::as_array) else { return Ok(()) };
        let left: Vec<&Value> = taints.iter().filter(|t| t["key"] != TAINT).collect();
        if left.len() == taints.len() {
            return Ok(());
        }
        // The list is replaced whole, so only the version that was read may be replaced.
        let fresh: Value = self.connection.ask(nodes.get(&self.node, &GetParams::default())).await?;
        let taints = fresh.pointer("/spec/taints").and_then(Value::as_array).cloned().unwrap_or_default();
        let left: Vec<Value> = taints.into_iter().filter(|t| t["key"] != TAINT).collect();
        let version = fresh.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": left}});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        self.connection.ask::<Value>(nodes.patch(&self.node, &params, &Patch::Merge(patch))).await?;
        Ok(())
    }

    /// Writes status and events as long as it is polled.
    pub async fn objects(self, verdicts: watch::Receiver<Option<Verdict>>, mut notes: mpsc::UnboundedReceiver<Note>) {
        let mut events = Events::default();
        let mut elector: Option<Elector> = None;
        let mut tick = tokio::time::interval(self.lease / 3);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut changed = verdicts.clone();
        loop {
            tokio::select! {
                _ = tick.tick() => self.attempt(&mut elector).await,
                note = notes.recv() => match note {
                    Some(note) => self.event(&mut events, &note).await,
                    None => return,
                },
                done = changed.changed() => {
                    if done.is_err() {
                        return;
                    }
                }
            }
            if elector.as_ref().is_some_and(Elector::holds) {
                let verdict = changed.borrow_and_update().clone();
                // Before the first verdict nothing is known of any object.
                if let Some(verdict) = verdict {
                    self.write(&verdict, &mut events, elector.as_ref()).await;
                }
            }
        }
    }

    async fn attempt(&self, elector: &mut Option<Elector>) {
        if elector.is_none() {
            match self.connection.namespace().await {
                Ok(namespace) => {
                    let leases = Leases::new(self.connection.clone(), namespace);
                    *elector = Some(Elector::new(leases, LEASE, &self.node, self.lease));
                }
                Err(_) => return,
            }
        }
        if let Some(elector) = elector
            && let Err(error) = elector.attempt().await
        {
            tracing::debug!(%error, "the writer's lease");
        }
    }

    async fn write(&self, verdict: &Verdict, events: &mut Events, elector: Option<&Elector>) {
        // First: somebody waits for them.
        self.balance(verdict, events, elector).await;
        for refusal in &verdict.refusals {
            let reason = match refusal.effect {
                Some(Effect::FailedClosed) => "FailedClosed",
                Some(Effect::ObjectIgnored) => "Refused",
                Some(Effect::FieldIgnored) => "FieldIgnored",
                None => "NotProgrammed",
            };
            let costs = refusal.effect.map(|e| format!(" ({e})")).unwrap_or_default();
            let message = format!("{}: {}{costs}", refusal.field, refusal.why);
            self.event(events, &Note { key: refusal.key.clone(), reason, message }).await;
            if !elector.is_some_and(Elector::holds) {
                return;
            }
        }
        for kind in WRITTEN {
            let wanted: Vec<(ObjectKey, i64, Vec<Value>)> = {
                let store = self.store.borrow();
                let all = store.of_kind(kind);
                all.filter_map(|(key, known)| {
                    let conditions = conditions(key, known.generation, &known.conditions, verdict);
                    Some((key.clone(), known.generation, conditions?))
                })
                .collect()
            };
            for (key, generation, conditions) in wanted {
                if !elector.is_some_and(Elector::holds) {
                    return;
                }
                if events.written(&key, generation, &conditions) {
                    continue;
                }
                let resource = resource(kind);
                let body = json!({
                    "apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": key.name},
                    "status": {"conditions": conditions},
                });
                let params = PatchParams::apply(MANAGER).force();
                let path = Request::new(&resource.path);
                let request = path.patch_subresource("status", &key.name, &params, &Patch::Apply(body));
                match self.connection.ask::<Value>(request).await {
                    Ok(_) => events.wrote(key, generation, conditions),
                    Err(ApiError::NotFound(_)) => {}
                    Err(error) => tracing::warn!(%error, %key, "cannot write the status"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Gives Services the addresses they should have, and takes back what is no more theirs.
    async fn balance(&self, verdict: &Verdict, events: &mut Events, elector: Option<&Elector>) {
        let mut wanted: Vec<(ObjectKey, Option<String>, Vec<String>)> = Vec::new();
        {
            let store = self.store.borrow();
            let key = |name: &NamespacedName| ObjectKey {
                kind: Kind::Service,
                namespace: name.namespace.clone(),
                name: name.name.clone(),
            };
            for (name, addresses) in verdict.balanced.iter() {
                let Some(known) = store.get(&key(name)) else { continue };
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                let version = match &known.ingress {
                    Some(there) if !there.ours && !there.addresses.is_empty() || there.addresses == addresses => {
                        continue;
                    }
                    there => there.as_ref().map(|there| there.version.clone()),
                };
                wanted.push((key(name), version, addresses));
            }
            for (key, known) in store.of_kind(Kind::Service) {
                let Some(there) = known.ingress.as_ref().filter(|there| there.ours) else { continue };
                let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
                if !verdict.balanced.contains_key(&name) {
                    wanted.push((key.clone(), Some(there.version.clone()), Vec::new()));
                }
            }
        }
        for (key, version, addresses) in wanted {
            if !elector.is_some_and(Elector::holds) {
                return;
            }
            if events.balanced(&key, &addresses) {
                continue;
            }
            // An apply that does not name the list any more takes it away, as far as it is ours.
            let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
            let balancer = if ingress.is_empty() { json!({}) } else { json!({"ingress": ingress}) };
            let mut metadata = json!({"name": key.name, "namespace": key.namespace});
            if let Some(version) = version {
                metadata["resourceVersion"] = version.into();
            }
            let body = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": metadata, "status": {"loadBalancer": balancer},
            });
            let path = Request::new(format!("/api/v1/namespaces/{}/services", key.namespace));
            // Not by force: what somebody else has written meanwhile is his.
            let request =
                path.patch_subresource("status", &key.name, &PatchParams::apply(MANAGER), &Patch::Apply(body));
            match self.connection.ask::<Value>(request).await {
                Ok(_) => events.gave(key, addresses),
                Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => {}
                Err(error) => tracing::warn!(%error, %key, "cannot write the load-balancer addresses"),
            }
            tokio::time::sleep(PAUSE / 10).await;
        }
    }

    async fn event(&self, events: &mut Events, note: &Note) {
        let uid = self.store.borrow().get(&note.key).map(|k| k.uid.clone()).unwrap_or_default();
        let name = event_name(note, &uid);
        if !events.is_due(&name) {
            return;
        }
        match self.send_event(note, &uid, &name, events.count(&name)).await {
            Ok(()) => events.sent(name),
            Err(error) => tracing::warn!(%error, object = %note.key, "cannot make an event"),
        }
        tokio::time::sleep(PAUSE).await;
    }

    async fn send_event(&self, note: &Note, uid: &str, name: &str, count: u32) -> Result<(), ApiError> {
        let namespace = if note.key.namespace.is_empty() { "default" } else { &note.key.namespace };
        let path = Request::new(format!("/api/v1/namespaces/{namespace}/events"));
        let (now, resource) = (now(), resource(note.key.kind));
        let mut object = json!({
            "apiVersion": resource.api_version, "kind": resource.kind, "name": note.key.name, "uid": uid,
        });
        if !note.key.namespace.is_empty() {
            object["namespace"] = note.key.namespace.clone().into();
        }
        let body = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace},
            "involvedObject": object, "type": "Warning", "reason": note.reason, "message": note.message,
            "source": {"component": "sluiced", "host": self.node}, "reportingComponent": "sluicegate.dev/sluiced",
            "reportingInstance": self.node, "firstTimestamp": now, "lastTimestamp": now, "count": count,
        });
        let create = path.create(&PostParams::default(), serde_json::to_vec(&body).unwrap_or_default());
        match self.connection.ask::<Value>(create).await {
            Err(ApiError::Conflict(_)) => {}
            other => return other.map(|_| ()),
        }
        let patch = Patch::Merge(json!({"count": count.max(2), "lastTimestamp": now}));
        self.connection.ask::<Value>(path.patch(name, &PatchParams::default(), &patch)).await?;
        Ok(())
    }
}

/// What was written, so that it is not written again.
#[derive(Default)]
struct Events {
    /// When each was sent last, and how often.
    sent: HashMap<String, (Instant, u32)>,
    status: HashMap<ObjectKey, (i64, Vec<Value>, Instant)>,
    given: HashMap<ObjectKey, (Vec<String>, Instant)>,
}

impl Events {
    fn is_due(&self, name: &str) -> bool {
        self.sent.get(name).is_none_or(|(at, _)| at.elapsed() >= REPEAT)
    }

    /// The number of the next one.
    fn count(&self, name: &str) -> u32 {
        self.sent.get(name).map_or(1, |(_, count)| count.saturating_add(1))
    }

    fn sent(&mut self, name: String) {
        let count = self.count(&name);
        if self.sent.len() >= REMEMBERED {
            self.sent.retain(|_, (at, _)| at.elapsed() < REPEAT);
        }
        if self.sent.len() < REMEMBERED {
            self.sent.insert(name, (Instant::now(), count));
        }
    }

    /// Whether this was written and its echo is still on the way.
    fn written(&self, key: &ObjectKey, generation: i64, conditions: &[Value]) -> bool {
        let same = |(g, old, at): &(i64, Vec<Value>, Instant)| {
            let equal = old.len() == conditions.len() && old.iter().zip(conditions).all(|(a, b)| says_the_same(a, b));
            *g == generation && equal && at.elapsed() < ECHO
        };
        self.status.get(key).is_some_and(same)
    }

    /// Whether a Service was given these addresses and the echo is still on the way.
    fn balanced(&self, key: &ObjectKey, addresses: &[String]) -> bool {
        self.given.get(key).is_some_and(|(given, at)| given == addresses && at.elapsed() < ECHO)
    }

    fn gave(&mut self, key: ObjectKey, addresses: Vec<String>) {
        self.given.retain(|_, (_, at)| at.elapsed() < ECHO);
        self.given.insert(key, (addresses, Instant::now()));
    }

    fn wrote(&mut self, key: ObjectKey, generation: i64, conditions: Vec<Value>) {
        self.status.insert(key, (generation, conditions, Instant::now()));
    }
}

/// The same object, field and reason have the same event, whichever node makes it.
fn event_name(note: &Note, uid: &str) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    for part in [note.key.kind.name(), &note.key.namespace, &note.key.name, uid, note.reason, &note.message] {
        hasher.write(part.as_bytes());
        hasher.write_u8(0);
    }
    format!("{}.{:016x}", note.key.name, hasher.finish())
}

fn now() -> String {
    format!("{:.0}", Timestamp::now())
}

fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.pointer("/status/conditions")?.as_array()?.iter().find(|c| c["type"] == name)
}

fn is_programmed(verdict: &Option<Verdict>) -> bool {
    verdict.as_ref().is_some_and(|v| v.programmed)
}

/// Equal but for the time of the last transition.
fn says_the_same(a: &Value, b: &Value) -> bool {
    ["type", "status", "reason", "message", "observedGeneration"].iter().all(|field| a.get(field) == b.get(field))
}

/// The conditions that an object should have; none where it has them.
fn conditions(key: &ObjectKey, generation: i64, have: &Value, verdict: &Verdict) -> Option<Vec<Value>> {
    let about: Vec<&Refusal> = verdict.refusals.iter().filter(|r| r.key == *key).collect();
    let text = |of: &[&&Refusal]| of.iter().map(|r| format!("{}: {}", r.field, r.why)).collect::<Vec<_>>().join("; ");
    let misread: Vec<&&Refusal> = about.iter().filter(|r| r.effect.is_some()).collect();
    let undone: Vec<&&Refusal> = about.iter().filter(|r| r.effect.is_none()).collect();
    let accepted = match misread.is_empty() {
        true => ("True", "Accepted", "The object was understood".to_owned()),
        false => ("False", "Invalid", text(&misread)),
    };
    let programmed = match (&verdict.why_not, misread.is_empty(), undone.is_empty()) {
        (_, false, _) => ("False", "Invalid", "Not programmed as it is written; see Accepted".to_owned()),
        (_, _, false) => ("False", "NotProgrammed", text(&undone)),
        (Some(why), ..) => ("False", "Pending", why.clone()),
        (None, ..) if !verdict.programmed => ("False", "Pending", "Not yet".to_owned()),
        (None, ..) => ("True", "Programmed", "Every worker of the writing node runs on it".to_owned()),
    };
    let made = |name: &str, (status, reason, mut message): (&str, &str, String)| {
        if message.len() > 1024 {
            message = message.chars().take(1000).collect();
        }
        let old = have.as_array().and_then(|list| list.iter().find(|c| c["type"] == name));
        let kept = old.filter(|c| c["status"] == status).and_then(|c| c.get("lastTransitionTime")).cloned();
        json!({
            "type": name, "status": status, "reason": reason, "message": message, "observedGeneration": generation,
            "lastTransitionTime": kept.unwrap_or_else(|| now().into()),
        })
    };
    let wanted = vec![made("Accepted", accepted), made("Programmed", programmed)];
    let has = |want: &Value| have.as_array().is_some_and(|list| list.iter().any(|c| says_the_same(c, want)));
    (!wanted.iter().all(has)).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey { kind: Kind::EgressGateway, namespace: String::new(), name: name.into() }
    }

    fn refusal(name: &str, effect: Option<Effect>) -> Refusal {
        Refusal { key: key(name), field: "spec.x".into(), why: "is wrong".into(), effect }
    }

    fn status(conditions: &[Value]) -> Vec<(String, String)> {
        let text = |c: &Value, f: &str| c[f].as_str().unwrap_or_default().to_owned();
        conditions.iter().map(|c| (text(c, "status"), text(c, "reason"))).collect()
    }

    #[test]
    fn conditions_say_what_was_understood_and_what_is_in_force() {
        let good = Verdict { programmed: true, ..Verdict::default() };
        let wanted = conditions(&key("a"), 3, &Value::Null, &good).unwrap();
        assert_eq!(status(&wanted), [("True".into(), "Accepted".into()), ("True".into(), "Programmed".into())]);
        assert_eq!(wanted[0]["observedGeneration"], 3);
        let misread = Verdict { refusals: vec![refusal("a", Some(Effect::FailedClosed))], ..good.clone() };
        let wanted = conditions(&key("a"), 3, &Value::Null, &misread).unwrap();
        assert_eq!(status(&wanted), [("False".into(), "Invalid".into()), ("False".into(), "Invalid".into())]);
        let undone = Verdict { refusals: vec![refusal("a", None), refusal("b", Some(Effect::ObjectIgnored))], ..good };
        let wanted = conditions(&key("a"), 3, &Value::Null, &undone).unwrap();
        assert_eq!(status(&wanted), [("True".into(), "Accepted".into()), ("False".into(), "NotProgrammed".into())]);
        let pending = Verdict { why_not: Some("worker 0 has ended".into()), ..Verdict::default() };
        let wanted = conditions(&key("a"), 3, &Value::Null, &pending).unwrap();
        assert_eq!(status(&wanted)[1], ("False".into(), "Pending".into()));
    }

    #[test]
    fn conditions_that_are_there_are_not_written_again_and_keep_their_time() {
        let verdict = Verdict { programmed: true, ..Verdict::default() };
        let mut have = conditions(&key("a"), 3, &Value::Null, &verdict).unwrap();
        have[0]["lastTransitionTime"] = "2020-01-01T00:00:00Z".into();
        let have = Value::from(have);
        assert_eq!(conditions(&key("a"), 3, &have, &verdict), None);
        let newer = conditions(&key("a"), 4, &have, &verdict).unwrap();
        assert_eq!(newer[0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
    }

    #[test]
    fn one_refusal_has_one_event_name_on_every_node() {
        let note = |message: &str| Note { key: key("a"), reason: "Refused", message: message.into() };
        assert_eq!(event_name(&note("x"), "u"), event_name(&note("x"), "u"));
        assert_ne!(event_name(&note("x"), "u"), event_name(&note("y"), "u"));
        assert_ne!(event_name(&note("x"), "u"), event_name(&note("x"), "v"));
    }
}
