//! The HTTP side: paths, pages, watches, and everything that can go wrong with them.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::Response;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::tls::Identity;
use crate::world::{Entry, Name, Refusal, Wanted, World, Write, name_of};

/// Time between bookmarks.
const BOOKMARK: Duration = Duration::from_millis(500);

/// A server that can be stopped and started again at the same port with the same objects.
#[derive(Debug)]
pub struct Fake {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<Runtime>,
    identity: Option<Identity>,
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    news: watch::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fake {
    /// Starts on a port of the kernel's choice, on loopback.
    pub fn start() -> io::Result<Fake> {
        Fake::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), World::default(), None)
    }

    /// The same by HTTPS.
    pub fn start_tls(identity: Identity) -> io::Result<Fake> {
        Fake::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), World::default(), Some(identity))
    }

    /// Starts with these objects at this address; by HTTPS where it is given an identity.
    pub fn start_at(address: SocketAddr, world: World, identity: Option<Identity>) -> io::Result<Fake> {
        let news = watch::Sender::new(world.version);
        let shared = Arc::new(Shared { world: Mutex::new(world), news });
        let mut fake = Fake { shared, address, runtime: None, identity };
        fake.resume()?;
        Ok(fake)
    }

    /// Listens again after [`Fake::stop`].
    pub fn resume(&mut self) -> io::Result<()> {
        let listener = std::net::TcpListener::bind(self.address)?;
        listener.set_nonblocking(true)?;
        self.address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let router = Router::new().fallback(answer).with_state(self.shared.clone());
        let identity = self.identity.clone();
        runtime.spawn(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            let served = match identity {
                Some(identity) => axum::serve(identity.listen(listener), router).await,
                None => axum::serve(listener, router).await,
            };
            if let Err(error) = served {
                eprintln!("fake-apiserver: {error}");
            }
        });
        self.runtime = Some(runtime);
        Ok(())
    }

    /// Speaks with another identity from the next [`Fake::resume`] on: its authority was exchanged.
    pub fn identify(&mut self, identity: Identity) {
        self.identity = Some(identity);
    }

    /// Cuts every connection and listens no more; the objects stay.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // On a thread of its own: a test may be asynchronous itself, where a runtime may not be waited for.
            let end = std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(1)));
            if end.join().is_err() {
                eprintln!("fake-apiserver: the runtime did not end");
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does something with the objects and wakes the watches.
    pub fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.shared.lock();
        let result = change(&mut world);
        let version = world.version;
        drop(world);
        self.shared.news.send_replace(version);
        result
    }

    /// Makes or changes an object.
    pub fn apply(&self, value: Value) -> u64 {
        self.with(|world| world.apply(value))
    }

    /// The object of a collection, where it is there.
    pub fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let name = (namespace.to_owned(), name.to_owned());
        self.with(|world| Some(world.objects.get(collection)?.get(&name)?.value.clone()))
    }

    /// All objects of a collection.
    pub fn list(&self, collection: &str) -> Vec<Value> {
        self.with(|world| world.objects.get(collection).into_iter().flatten().map(|(_, s)| s.value.clone()).collect())
    }

    /// Writes a kubeconfig that leads here, with a token file beside it where a token is given, and the authority's
    /// certificate in `ca.crt` where the server has one.
    pub fn kubeconfig(&self, folder: &Path, token: Option<&str>) -> io::Result<PathBuf> {
        let user = match token {
            Some(token) => {
                let path = folder.join("token");
                std::fs::write(&path, token)?;
                json!({"tokenFile": path})
            }
            None => json!({}),
        };
        let cluster = match &self.identity {
            Some(identity) => {
                let path = folder.join("ca.crt");
                std::fs::write(&path, identity.authority())?;
                json!({"server": format!("https://{}", self.address), "certificate-authority": path})
            }
            None => json!({"server": format!("http://{}", self.address)}),
        };
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": cluster}],
            "users": [{"name": "fake", "user": user}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "sluicegate"}}],
        });
        let path = folder.join("kubeconfig");
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a path means.
struct Target {
    collection: String,
    namespace: String,
    name: Option<String>,
    status: bool,
}

fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (prefix, rest) = match *parts.first()? {
        "api" => (parts.get(..2)?, parts.get(2..)?),
        "apis" => (parts.get(..3)?, parts.get(3..)?),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest[0] != "status" => (*namespace, rest),
        _ => ("", rest),
    };
    let (plural, rest) = rest.split_first()?;
    Some(Target {
        collection: format!("{}/{plural}", prefix.join("/")),
        namespace: namespace.to_owned(),
        name: rest.first().map(|n| (*n).to_owned()),
        status: rest.get(1) == Some(&"status"),
    })
}

fn query(uri: &Uri, key: &str) -> Option<String> {
    let found = uri.query()?.split('&').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key)?.1;
    Some(found.replace("%2C", ",").replace("%3D", "="))
}

fn json_answer(code: u16, body: String) -> Response {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn status_object((code, reason, message): &Refusal) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code})
}

fn refuse(refusal: &Refusal) -> Response {
    json_answer(refusal.0, status_object(refusal).to_string())
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if uri.path().starts_with("/fake/") {
        return admin(&shared, uri.path(), &body);
    }
    {
        let mut world = shared.lock();
        world.requests.push((method.to_string(), uri.to_string()));
        if let Some(code) = world.faults.answer {
            return refuse(&(code, "Fault", "told to".to_owned()));
        }
        let token = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let known = world.faults.tokens.iter().any(|t| token == format!("Bearer {t}"));
        if !world.faults.tokens.is_empty() && !known {
            return refuse(&(401, "Unauthorized", "Unauthorized".to_owned()));
        }
    }
    let Some(target) = target(uri.path()) else {
        return refuse(&(404, "NotFound", "no such path".to_owned()));
    };
    let plural = target.collection.rsplit('/').next().unwrap_or_default().to_owned();
    {
        let world = shared.lock();
        if world.faults.absent.contains(&plural) {
            return refuse(&(404, "NotFound", "the server could not find the requested resource".to_owned()));
        }
        if world.faults.forbidden.contains(&plural) {
            return refuse(&(403, "Forbidden", format!("cannot touch resource {plural:?}")));
        }
    }
    match (method, &target.name) {
        (Method::GET, None) if query(&uri, "watch").is_some_and(|w| w == "true" || w == "1") => {
            watch_answer(shared, target, &uri)
        }
        (Method::GET, None) => list_answer(&shared, &target, &uri),
        (Method::GET, Some(name)) => {
            let world = shared.lock();
            let key = (target.namespace.clone(), name.clone());
            match world.objects.get(&target.collection).and_then(|c| c.get(&key)) {
                Some(stored) => json_answer(200, stored.text.to_string()),
                None => refuse(&(404, "NotFound", format!("{plural} {name:?} not found"))),
            }
        }
        (Method::DELETE, Some(name)) => {
            let key = (target.namespace.clone(), name.clone());
            let fence: Value = serde_json::from_slice(&body).unwrap_or_default();
            let wanted = fence.pointer("/preconditions/resourceVersion").and_then(Value::as_str);
            let mut world = shared.lock();
            let have = world.objects.get(&target.collection).and_then(|c| c.get(&key));
            let have = have.and_then(|s| s.value.pointer("/metadata/resourceVersion")).and_then(Value::as_str);
            if wanted.is_some() && have.is_some() && wanted != have {
                return refuse(&(409, "Conflict", "precondition failed".to_owned()));
            }
            let done = world.delete(&target.collection, &key);
            let version = world.version;
            drop(world);
            shared.news.send_replace(version);
            match done {
                true => json_answer(
                    200,
                    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}).to_string(),
                ),
                false => refuse(&(404, "NotFound", format!("{plural} {name:?} not found"))),
            }
        }
        (method @ (Method::POST | Method::PUT | Method::PATCH), _) => {
            let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let manager = query(&uri, "fieldManager").unwrap_or_default();
            write_answer(&shared, &target, &method, kind, &manager, &body)
        }
        _ => refuse(&(405, "MethodNotAllowed", "not here".to_owned())),
    }
}

fn write_answer(shared: &Shared, target: &Target, method: &Method, kind: &str, manager: &str, body: &[u8]) -> Response {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        return refuse(&(400, "BadRequest", "the body is not JSON".to_owned()));
    };
    let how = match *method {
        Method::POST => Write::Create,
        Method::PUT => Write::Replace,
        _ => Write::Patch,
    };
    let name: Name = match &target.name {
        Some(name) => (target.namespace.clone(), name.clone()),
        None => (target.namespace.clone(), name_of(&value).1),
    };
    let mut world = shared.lock();
    let (strategic, apply) = (kind.contains("strategic-merge"), kind.contains("apply-patch"));
    let done = world.write(Wanted {
        how,
        collection: &target.collection,
        name: &name,
        status: target.status,
        body: value,
        merge_lists: strategic,
        apply,
        manager,
    });
    let version = world.version;
    drop(world);
    shared.news.send_replace(version);
    match done {
        Ok((value, made)) => json_answer(if made { 201 } else { 200 }, value.to_string()),
        Err(refusal) => refuse(&refusal),
    }
}

fn list_answer(shared: &Shared, target: &Target, uri: &Uri) -> Response {
    let mut world = shared.lock();
    let limit = query(uri, "limit").and_then(|l| l.parse::<usize>().ok()).filter(|l| *l > 0);
    let (version, mut items) = match query(uri, "continue") {
        Some(token) => {
            let kept = if world.faults.expire_pages { None } else { world.pages.remove(&token) };
            match kept {
                Some(kept) => kept,
                None => return refuse(&(410, "Expired", "The provided continue parameter is too old".to_owned())),
            }
        }
        None => {
            let all = world.objects.get(&target.collection).into_iter().flatten();
            let here = all.filter(|((ns, _), _)| target.namespace.is_empty() || *ns == target.namespace);
            (world.version, here.map(|(_, s)| s.text.clone()).collect())
        }
    };
    let rest = if let Some(limit) = limit.filter(|l| *l < items.len()) { items.split_off(limit) } else { Vec::new() };
    let remaining = rest.len();
    let token = if rest.is_empty() { String::new() } else { world.keep_pages(version, rest) };
    drop(world);
    let mut text = String::with_capacity(items.iter().map(|i| i.len() + 1).sum::<usize>() + 200);
    text.push_str(&format!(
        "{{\"kind\":\"List\",\"apiVersion\":\"v1\",\"metadata\":{{\"resourceVersion\":\"{version}\",\"continue\":\"{token}\",\"remainingItemCount\":{remaining}}},\"items\":["
    ));
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(item);
    }
    text.push_str("]}");
    json_answer(200, text)
}

/// One open watch.
struct Watching {
    shared: Arc<Shared>,
    news: watch::Receiver<u64>,
    target: Target,
    cursor: u64,
    pending: VecDeque<Entry>,
    sent: usize,
    bookmarks: bool,
    until: Instant,
    ended: bool,
    silent: bool,
}

fn watch_answer(shared: Arc<Shared>, target: Target, uri: &Uri) -> Response {
    let seconds = query(uri, "timeoutSeconds").and_then(|s| s.parse().ok()).unwrap_or(300u64);
    let cursor = query(uri, "resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0u64);
    let bookmarks = query(uri, "allowWatchBookmarks").is_some_and(|b| b == "true");
    let news = shared.news.subscribe();
    let watching = Watching {
        news,
        target,
        cursor,
        pending: VecDeque::new(),
        sent: 0,
        bookmarks,
        until: Instant::now() + Duration::from_secs(seconds),
        ended: false,
        silent: false,
        shared,
    };
    let body = Body::from_stream(stream::unfold(watching, |mut watching| async move {
        let line = watching.next().await?;
        Some((line, watching))
    }));
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

impl Watching {
    /// The next piece of the answer; none ends it.
    async fn next(&mut self) -> Option<Result<String, io::Error>> {
        loop {
            if self.ended {
                return None;
            }
            if self.pending.is_empty() {
                self.news.borrow_and_update();
                let gone = self.gather();
                if gone {
                    self.ended = true;
                    let status = status_object(&(410, "Expired", format!("too old resource version: {}", self.cursor)));
                    return Some(Ok(format!("{}\n", json!({"type": "ERROR", "object": status}))));
                }
            }
            let faults = self.shared.lock().faults.clone();
            // A connection that fell silent stays so, whatever the server does on others.
            self.silent |= faults.silent;
            if self.silent {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if Instant::now() > self.until {
                    return None;
                }
                continue;
            }
            if let Some(entry) = self.pending.pop_front() {
                if faults.slow_ms > 0 {
                    tokio::time::sleep(Duration::from_millis(faults.slow_ms)).await;
                }
                self.sent += 1;
                let line = format!("{{\"type\":\"{}\",\"object\":{}}}\n", entry.kind, entry.text);
                if faults.cut_after.is_some_and(|n| self.sent > n) {
                    self.ended = true;
                    return Some(Ok(line[..line.len() / 2].to_owned()));
                }
                return Some(Ok(if faults.duplicate { format!("{line}{line}") } else { line }));
            }
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            match tokio::time::timeout(BOOKMARK.min(left), self.news.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) if self.bookmarks && left > BOOKMARK => {
                    let mark = json!({"type": "BOOKMARK", "object": {"kind": "Bookmark", "apiVersion": "v1",
                        "metadata": {"resourceVersion": self.cursor.to_string()}}});
                    return Some(Ok(format!("{mark}\n")));
                }
                Err(_) => {}
            }
        }
    }

    /// Takes what happened since; true where that is forgotten.
    fn gather(&mut self) -> bool {
        let world = self.shared.lock();
        if self.cursor < world.floor {
            return true;
        }
        let from = world.log.partition_point(|e| e.version <= self.cursor);
        let here = |entry: &&Entry| {
            entry.collection == self.target.collection
                && (self.target.namespace.is_empty()
                    || entry.text.contains(&format!("\"namespace\":\"{}\"", self.target.namespace)))
        };
        let mut new: Vec<Entry> = world.log[from..].iter().filter(here).cloned().collect();
        if world.faults.reverse {
            new.reverse();
        }
        self.cursor = world.version.max(self.cursor);
        self.pending.extend(new);
        false
    }
}

/// `POST /fake/apply`, `/fake/delete`, `/fake/faults`, `/fake/compact`; `/fake/requests` lists what was asked.
fn admin(shared: &Shared, path: &str, body: &[u8]) -> Response {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut world = shared.lock();
    let answer = match path {
        "/fake/apply" => {
            let list = if let Value::Array(list) = value { list } else { vec![value] };
            let version = list.into_iter().map(|object| world.apply(object)).last();
            json!({"version": version})
        }
        "/fake/delete" => {
            let Some(collection) = crate::world::collection_of(&value) else {
                return refuse(&(400, "BadRequest", "no kind".to_owned()));
            };
            json!({"deleted": world.delete(&collection, &name_of(&value))})
        }
        "/fake/faults" => {
            let texts = |key: &str| {
                let list = value.get(key).and_then(Value::as_array);
                list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
            };
            let flag = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
            world.faults = crate::world::Faults {
                tokens: texts("tokens"),
                answer: value.get("answer").and_then(Value::as_u64).and_then(|c| u16::try_from(c).ok()),
                forbidden: texts("forbidden").into_iter().collect(),
                absent: texts("absent").into_iter().collect(),
                slow_ms: value.get("slow_ms").and_then(Value::as_u64).unwrap_or(0),
                duplicate: flag("duplicate"),
                reverse: flag("reverse"),
                cut_after: value.get("cut_after").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()),
                expire_pages: flag("expire_pages"),
                silent: flag("silent"),
            };
            json!({})
        }
        "/fake/compact" => {
            world.compact();
            json!({})
        }
        "/fake/requests" => json!(world.requests),
        _ => return refuse(&(404, "NotFound", "no such command".to_owned())),
    };
    let version = world.version;
    drop(world);
    shared.news.send_replace(version);
    json_answer(200, answer.to_string())
}
