//! List, then watch, for ever: one collection of the API server as a stream of signals.
//!
//! Source: "Efficient detection of changes" of the Kubernetes API concepts. Lists come in pages; a watch goes on from the
//! last version that an event or a bookmark bore; a version that the server has forgotten (410, as an answer or as an event)
//! begins a new list. A watch that is silent for longer than bookmarks are apart is cut: a server that went without a word
//! looks just like that. Waits grow from [`Patience::first`] to [`Patience::longest`] and bear jitter, so that the nodes of a cluster do
//! not come back as one. A collection that is not there (a CRD that nobody installed) is no error, and is looked for again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use kube::core::params::{ListParams, WatchParams};
use kube::core::{Request, WatchEvent};
use serde::Deserialize;
use serde_json::Value;

use crate::connection::{ApiError, Connection};

/// One collection.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Path of the collection.
    pub path: String,
    /// `apiVersion` of its objects: a list leaves it out of the items.
    pub api_version: &'static str,
    /// `kind` of its objects.
    pub kind: &'static str,
}

impl Resource {
    /// A collection by path.
    pub fn new(path: impl Into<String>, api_version: &'static str, kind: &'static str) -> Resource {
        Resource { path: path.into(), api_version, kind }
    }
}

/// How long what may last.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Objects of a page.
    pub page: u32,
    /// A watch is asked to end after this long.
    pub watch: Duration,
    /// A watch that says nothing for this long is cut.
    pub silence: Duration,
    /// First wait after a failure.
    pub first: Duration,
    /// Longest wait after failures.
    pub longest: Duration,
    /// Wait before a collection that is not there is looked for again.
    pub absent: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            page: 500,
            watch: Duration::from_secs(270),
            silence: Duration::from_secs(100),
            first: Duration::from_millis(200),
            longest: Duration::from_secs(8),
            absent: Duration::from_secs(10),
        }
    }
}

/// How it is with a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not asked yet.
    Unknown,
    /// Listed, and a watch is or was just open.
    Well,
    /// The server does not have this kind.
    Absent,
    /// What went wrong last; it is being tried again.
    Failing(String),
}

/// What a collection tells.
#[derive(Debug)]
pub enum Signal {
    /// A list begins; pages of an earlier list that did not end are void.
    Begin,
    /// Some of its objects.
    Page(Vec<Value>),
    /// The list is complete, at this version.
    Listed {
        /// Version of the list.
        version: String,
    },
    /// An object was made or changed.
    Set(Value),
    /// An object was deleted; its last state.
    Deleted(Value),
    /// How it is now.
    Health(Health),
}

/// Follows one collection.
#[derive(Debug)]
pub struct Follow {
    connection: Arc<Connection>,
    resource: Resource,
    patience: Patience,
    wait: Duration,
}

#[derive(Deserialize)]
struct RawList {
    #[serde(default)]
    metadata: RawListMeta,
    #[serde(default)]
    items: Option<Vec<Value>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    more: Option<String>,
}

enum WatchEnd {
    /// The server ended it, or it was silent: go on from the version.
    Over,
    /// The version is forgotten.
    Gone,
    Failed(ApiError),
}

impl Follow {
    /// Prepares; nothing is asked yet.
    pub fn new(connection: Arc<Connection>, resource: Resource, patience: Patience) -> Follow {
        Follow { connection, resource, patience, wait: patience.first }
    }

    /// Runs as long as it is polled.
    pub async fn run(mut self, mut signal: impl FnMut(Signal)) {
        let mut version: Option<String> = None;
        loop {
            let Some(at) = version.clone() else {
                match self.list(&mut signal).await {
                    Ok(listed) => {
                        self.wait = self.patience.first;
                        signal(Signal::Listed { version: listed.clone() });
                        signal(Signal::Health(Health::Well));
                        version = Some(listed);
                    }
                    Err(ApiError::NotFound(_)) => {
                        signal(Signal::Health(Health::Absent));
                        tokio::time::sleep(jittered(self.patience.absent)).await;
                    }
                    Err(error) => {
                        signal(Signal::Health(Health::Failing(error.to_string())));
                        self.pause().await;
                    }
                }
                continue;
            };
            let began = Instant::now();
            let mut newest = at;
            let end = self.watch(&mut newest, &mut signal).await;
            let long = began.elapsed() > Duration::from_secs(5);
            version = Some(newest);
            match end {
                WatchEnd::Over if long => self.wait = self.patience.first,
                // A server that ends every watch at once must not be asked in a loop.
                WatchEnd::Over => self.pause().await,
                WatchEnd::Gone => {
                    version = None;
                    self.pause().await;
                }
                // The kind is gone: a list will say so.
                WatchEnd::Failed(ApiError::NotFound(_)) => version = None,
                WatchEnd::Failed(error) => {
                    if long {
                        self.wait = self.patience.first;
                    }
                    signal(Signal::Health(Health::Failing(error.to_string())));
                    self.pause().await;
                }
            }
        }
    }

    async fn pause(&mut self) {
        tokio::time::sleep(jittered(self.wait)).await;
        self.wait = (self.wait * 2).min(self.patience.longest);
    }

    async fn list(&self, signal: &mut impl FnMut(Signal)) -> Result<String, ApiError> {
        let mut more: Option<String> = None;
        // A list that takes longer than the server remembers its first page can only be had whole.
        let mut limit = Some(self.patience.page);
        signal(Signal::Begin);
        loop {
            let params = ListParams { limit, continue_token: more.clone(), ..ListParams::default() };
            let answer = self.connection.ask::<RawList>(Request::new(&self.resource.path).list(&params)).await;
            let list = match answer {
                Err(ApiError::Gone(_)) if more.is_some() => {
                    (more, limit) = (None, None);
                    signal(Signal::Begin);
                    continue;
                }
                other => other?,
            };
            let mut items = list.items.unwrap_or_default();
            for item in &mut items {
                if let Value::Object(fields) = item {
                    fields.entry("apiVersion").or_insert_with(|| self.resource.api_version.into());
                    fields.entry("kind").or_insert_with(|| self.resource.kind.into());
                }
            }
            signal(Signal::Page(items));
            more = list.metadata.more.filter(|token| !token.is_empty());
            if more.is_none() {
                return Ok(list.metadata.resource_version);
            }
        }
    }

    async fn watch(&self, version: &mut String, signal: &mut impl FnMut(Signal)) -> WatchEnd {
        let seconds = u32::try_from(jittered(self.patience.watch).as_secs().clamp(1, 294)).unwrap_or(270);
        let params = WatchParams { timeout: Some(seconds), bookmarks: true, ..WatchParams::default() };
        let path = self.resource.path.clone();
        let from = version.clone();
        let open = self.connection.with(|client| {
            let request = Request::new(path.clone()).watch(&params, &from);
            async move {
                let request = request.map_err(kube::Error::BuildRequest)?;
                client.request_events::<Value>(request).await
            }
        });
        let stream = match tokio::time::timeout(self.patience.silence, open).await {
            Err(_) => return WatchEnd::Failed(ApiError::Unreachable("no answer to a watch".to_owned())),
            Ok(Err(ApiError::Gone(_))) => return WatchEnd::Gone,
            Ok(Err(error)) => return WatchEnd::Failed(error),
            Ok(Ok(stream)) => stream,
        };
        signal(Signal::Health(Health::Well));
        let mut stream = std::pin::pin!(stream);
        loop {
            let event = match tokio::time::timeout(self.patience.silence, stream.try_next()).await {
                Err(_) | Ok(Ok(None)) => return WatchEnd::Over,
                Ok(Err(error)) => return WatchEnd::Failed(error.into()),
                Ok(Ok(Some(event))) => event,
            };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    note(version, &object);
                    signal(Signal::Set(object));
                }
                WatchEvent::Deleted(object) => {
                    note(version, &object);
                    signal(Signal::Deleted(object));
                }
                WatchEvent::Bookmark(mark) => *version = mark.metadata.resource_version,
                WatchEvent::Error(status) if status.code == 410 => return WatchEnd::Gone,
                WatchEvent::Error(status) => {
                    return WatchEnd::Failed(ApiError::of_status(status.code, status.message));
                }
            }
        }
    }
}

/// The version to go on from is that of the last event; where events come out of order it never goes back.
fn note(version: &mut String, object: &Value) {
    let Some(new) = object.pointer("/metadata/resourceVersion").and_then(Value::as_str) else { return };
    match (version.parse::<u64>(), new.parse::<u64>()) {
        (Ok(old), Ok(now)) if now <= old => {}
        _ => *version = new.to_owned(),
    }
}

/// Between this long and a third more.
fn jittered(wait: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let share = u32::try_from(RandomState::new().hash_one(0u8) % 1000).unwrap_or(0);
    wait + wait * share / 3000
}
