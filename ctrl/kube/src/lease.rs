//! coordination.k8s.io/v1 `Lease`: who does something that one node alone may do.
//!
//! A write bears the version that was read, and the API server refuses it where somebody else wrote in between: two nodes
//! never both take a lease. Whether a holder is still alive is judged by our own monotonic clock, as client-go does: a lease
//! has expired when its record has not changed for its duration *as seen here*; the clocks of nodes are never compared.
//! A holder counts its hold from *before* it sent the renewal, so that it stops before anybody else may begin.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use kube::core::Request;
use kube::core::params::{DeleteParams, GetParams, ListParams, PostParams, Preconditions};

use crate::connection::{ApiError, Connection};
use crate::follow::{Follow, Patience, Resource, Signal};

/// One lease as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its name.
    pub name: String,
    /// Who holds it; none after it was given up.
    pub holder: Option<String>,
    /// How long a hold lasts without being renewed.
    pub duration: Duration,
    /// The holder's own time of the last renewal; only compared with itself.
    pub renewed: Option<String>,
    /// How often it changed hands.
    pub transitions: i32,
    /// Annotations, for what the holder wants to say.
    pub annotations: BTreeMap<String, String>,
    /// `metadata.resourceVersion`: what a write is fenced by; empty for a lease that is not made yet.
    pub version: String,
}

impl LeaseRecord {
    /// A record that is not there yet.
    pub fn new(name: impl Into<String>, duration: Duration) -> LeaseRecord {
        LeaseRecord {
            name: name.into(),
            holder: None,
            duration,
            renewed: None,
            transitions: 0,
            annotations: BTreeMap::new(),
            version: String::new(),
        }
    }

    fn of(lease: Lease) -> LeaseRecord {
        let spec = lease.spec.unwrap_or_default();
        LeaseRecord {
            name: lease.metadata.name.unwrap_or_default(),
            holder: spec.holder_identity.filter(|h| !h.is_empty()),
            duration: Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0)),
            renewed: spec.renew_time.map(|t| t.0.to_string()),
            transitions: spec.lease_transitions.unwrap_or(0),
            annotations: lease.metadata.annotations.unwrap_or_default(),
            version: lease.metadata.resource_version.unwrap_or_default(),
        }
    }

    /// The object, renewed now.
    fn object(&self, namespace: &str) -> Lease {
        let now = MicroTime(Timestamp::now());
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(namespace.to_owned()),
                resource_version: (!self.version.is_empty()).then(|| self.version.clone()),
                annotations: (!self.annotations.is_empty()).then(|| self.annotations.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.holder.clone().unwrap_or_default()),
                lease_duration_seconds: Some(i32::try_from(self.duration.as_secs().max(1)).unwrap_or(i32::MAX)),
                lease_transitions: Some(self.transitions),
                renew_time: Some(now.clone()),
                acquire_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// What happened to a lease of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// These are all there are; sent at the start and after every gap.
    All(Vec<LeaseRecord>),
    /// Made or changed.
    Set(LeaseRecord),
    /// Deleted.
    Gone(String),
}

/// The leases of one namespace.
#[derive(Clone, Debug)]
pub struct Leases {
    connection: Arc<Connection>,
    namespace: String,
}

impl Leases {
    /// Leases of a namespace.
    pub fn new(connection: Arc<Connection>, namespace: impl Into<String>) -> Leases {
        Leases { connection, namespace: namespace.into() }
    }

    fn path(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    fn body(&self, record: &LeaseRecord) -> Vec<u8> {
        serde_json::to_vec(&record.object(&self.namespace)).unwrap_or_default()
    }

    /// The lease, where there is one.
    pub async fn get(&self, name: &str) -> Result<Option<LeaseRecord>, ApiError> {
        match self.connection.ask::<Lease>(Request::new(self.path()).get(name, &GetParams::default())).await {
            Ok(lease) => Ok(Some(LeaseRecord::of(lease))),
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All leases of the namespace.
    pub async fn list(&self) -> Result<Vec<LeaseRecord>, ApiError> {
        #[derive(serde::Deserialize)]
        struct List {
            items: Vec<Lease>,
        }
        let list: List = self.connection.ask(Request::new(self.path()).list(&ListParams::default())).await?;
        Ok(list.items.into_iter().map(LeaseRecord::of).collect())
    }

    /// Makes a lease; [`ApiError::Conflict`] where there is one of that name.
    pub async fn create(&self, record: &LeaseRecord) -> Result<LeaseRecord, ApiError> {
        let fresh = LeaseRecord { version: String::new(), ..record.clone() };
        let request = Request::new(self.path()).create(&PostParams::default(), self.body(&fresh));
        Ok(LeaseRecord::of(self.connection.ask(request).await?))
    }

    /// Writes a lease, renewed now; [`ApiError::Conflict`] where it is not the version that was read any more.
    pub async fn update(&self, record: &LeaseRecord) -> Result<LeaseRecord, ApiError> {
        if record.version.is_empty() {
            return Err(ApiError::Conflict(format!(
                "lease {} was never read: there is no version to fence by",
                record.name
            )));
        }
        let request = Request::new(self.path()).replace(&record.name, &PostParams::default(), self.body(record));
        Ok(LeaseRecord::of(self.connection.ask(request).await?))
    }

    /// Deletes the version that was read; a lease that is gone already is fine.
    pub async fn delete(&self, record: &LeaseRecord) -> Result<(), ApiError> {
        let fence = Preconditions { resource_version: Some(record.version.clone()), uid: None };
        let request = Request::new(self.path()).delete(&record.name, &DeleteParams::default().preconditions(fence));
        match self.connection.ask::<serde_json::Value>(request).await {
            Ok(_) | Err(ApiError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Follows the leases of the namespace for ever: all of them first, then each change. Lasts as long as it is polled.
    pub async fn follow(&self, mut on_change: impl FnMut(LeaseChange)) {
        let resource = Resource::new(self.path(), "coordination.k8s.io/v1", "Lease");
        let mut all = Vec::new();
        let read = |value| serde_json::from_value::<Lease>(value).ok().map(LeaseRecord::of);
        Follow::new(self.connection.clone(), resource, Patience::default())
            .run(|signal| match signal {
                Signal::Begin => all.clear(),
                Signal::Page(items) => all.extend(items.into_iter().filter_map(read)),
                Signal::Listed { .. } => on_change(LeaseChange::All(std::mem::take(&mut all))),
                Signal::Set(value) => drop(read(value).map(|record| on_change(LeaseChange::Set(record)))),
                Signal::Deleted(value) => drop(read(value).map(|record| on_change(LeaseChange::Gone(record.name)))),
                Signal::Health(_) => {}
            })
            .await;
    }
}

/// One node's attempt to hold one lease. Call [`Elector::attempt`] about every third of the duration.
#[derive(Debug)]
pub struct Elector {
    leases: Leases,
    name: String,
    identity: String,
    duration: Duration,
    /// The record as last seen, and when it was first seen like that.
    seen: Option<(LeaseRecord, Instant)>,
    /// Until when our own hold lasts.
    held_until: Option<Instant>,
}

impl Elector {
    /// To hold `name` as `identity`; a hold that is not renewed for `duration` may be taken by another.
    pub fn new(leases: Leases, name: impl Into<String>, identity: impl Into<String>, duration: Duration) -> Elector {
        Elector { leases, name: name.into(), identity: identity.into(), duration, seen: None, held_until: None }
    }

    /// Whether we hold it at this moment, by our own clock.
    pub fn holds(&self) -> bool {
        self.held_until.is_some_and(|until| Instant::now() < until)
    }

    /// Takes or renews the lease where that is right; whether we hold it now.
    pub async fn attempt(&mut self) -> Result<bool, ApiError> {
        let now = Instant::now();
        let found = self.leases.get(&self.name).await?;
        let mut record = match found {
            None => {
                let record =
                    LeaseRecord { holder: Some(self.identity.clone()), ..LeaseRecord::new(&self.name, self.duration) };
                return match self.leases.create(&record).await {
                    Ok(made) => Ok(self.took(made, now)),
                    Err(ApiError::Conflict(_)) => Ok(false),
                    Err(error) => Err(error),
                };
            }
            Some(record) => record,
        };
        let since = match &self.seen {
            Some((seen, since)) if *seen == record => *since,
            _ => now,
        };
        self.seen = Some((record.clone(), since));
        let ours = record.holder.as_deref() == Some(&self.identity);
        if !ours && record.holder.is_some() && since.elapsed() < record.duration.max(Duration::from_secs(1)) {
            self.held_until = None;
            return Ok(false);
        }
        if !ours {
            record.transitions = record.transitions.saturating_add(1);
        }
        record.holder = Some(self.identity.clone());
        record.duration = self.duration;
        match self.leases.update(&record).await {
            Ok(made) => Ok(self.took(made, now)),
            Err(ApiError::Conflict(_)) => {
                self.held_until = None;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the lease up, so that another need not wait.
    pub async fn give_up(&mut self) -> Result<(), ApiError> {
        self.held_until = None;
        let Some(mut record) = self.leases.get(&self.name).await? else { return Ok(()) };
        if record.holder.as_deref() == Some(&self.identity) {
            record.holder = None;
            self.leases.update(&record).await?;
        }
        Ok(())
    }

    fn took(&mut self, record: LeaseRecord, since: Instant) -> bool {
        self.seen = Some((record, since));
        self.held_until = Some(since + self.duration);
        true
    }
}
