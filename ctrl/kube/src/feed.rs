//! Cluster state from an API server: all kinds followed at once, nothing handed over before every kind was in sync once.
//!
//! Owner: the thread `kube` with its runtime. What changes is handed over as it comes, one call for each event or page; whoever
//! is busy collects. A kind that the server does not have (a CRD that nobody installed) counts as in sync and empty;
//! where there *were* objects of it, they stay for [`Options::absent_grace`], because an API server that
//! starts serves its own kinds before those of CRDs, and a policy must not vanish for that. The last good state goes to
//! disk from here.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluice_ctrl::import::live::Delta;
use sluice_ctrl::source::Kind;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use crate::connection::Connection;
use crate::follow::{Follow, Health, Patience, Resource, Signal};
use crate::state;
use crate::store::Store;
use crate::writer::{self, Note, Verdict};

/// What a source needs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kubeconfig; none for the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// This node's name.
    pub node: String,
    /// The folder for the last good state; none keeps nothing.
    pub state_dir: Option<PathBuf>,
    /// How long what may last.
    pub patience: Patience,
    /// How long objects of a kind that is not there any more are kept.
    pub absent_grace: Duration,
    /// Kinds that the last good state had objects of.
    pub had: BTreeSet<Kind>,
    /// How long a hold on the writer's lease lasts.
    pub lease: Duration,
}

impl Options {
    /// The usual ones.
    pub fn new(node: impl Into<String>, kubeconfig: Option<PathBuf>) -> Options {
        Options {
            kubeconfig,
            node: node.into(),
            state_dir: None,
            patience: Patience::default(),
            absent_grace: Duration::from_secs(60),
            had: BTreeSet::new(),
            lease: Duration::from_secs(15),
        }
    }
}

/// How it is with the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceHealth {
    /// Every kind was in sync once.
    pub synced: bool,
    /// Each kind.
    pub kinds: BTreeMap<Kind, Health>,
}

impl Default for SourceHealth {
    fn default() -> Self {
        SourceHealth { synced: false, kinds: Kind::ALL.into_iter().map(|kind| (kind, Health::Unknown)).collect() }
    }
}

impl SourceHealth {
    /// What is wrong, a line each; lines that several kinds share are one.
    pub fn problems(&self) -> Vec<String> {
        let mut by_line: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (kind, health) in &self.kinds {
            match health {
                Health::Failing(why) => by_line.entry(why.clone()).or_default().push(kind.to_string()),
                Health::Unknown | Health::Well | Health::Absent => {}
            }
        }
        by_line.into_iter().map(|(why, kinds)| format!("{}: {why}", kinds.join(", "))).collect()
    }

    /// Kinds that the API server does not have.
    pub fn absent(&self) -> Vec<Kind> {
        self.kinds.iter().filter(|(_, health)| **health == Health::Absent).map(|(kind, _)| *kind).collect()
    }
}

/// What a source hands over.
#[derive(Debug)]
pub enum Update {
    /// Changes.
    Objects {
        /// In order.
        deltas: Vec<Delta>,
        /// These are all objects there are: what was known before is void.
        all: bool,
        /// When the event came.
        since: Instant,
    },
    /// How it is now.
    Health(SourceHealth),
}

/// A running source; dropping it ends it.
#[derive(Debug)]
pub struct KubeSource {
    commands: mpsc::UnboundedSender<Command>,
    verdict: watch::Sender<Option<Verdict>>,
    thread: Option<JoinHandle<()>>,
}

/// Orders to the source.
#[derive(Debug)]
enum Command {
    Note(Note),
    Stop,
}

impl KubeSource {
    /// Starts the thread. `on_update` is called on it.
    pub fn start(options: Options, on_update: impl FnMut(Update) + 'static + Send) -> io::Result<KubeSource> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
        let (commands, orders) = mpsc::unbounded_channel();
        let (verdict, verdicts) = watch::channel(None);
        let thread = std::thread::Builder::new().name("kube".into()).spawn(move || {
            let local = LocalSet::new();
            local.block_on(&runtime, run(options, Box::new(on_update), orders, verdicts));
            drop(local);
            runtime.shutdown_timeout(Duration::from_secs(1));
        })?;
        Ok(KubeSource { commands, verdict, thread: Some(thread) })
    }

    /// Says what became of the objects; status and events follow from it.
    pub fn judge(&self, verdict: Verdict) {
        self.verdict.send_if_modified(|old| {
            let differs = old.as_ref() != Some(&verdict);
            if differs {
                *old = Some(verdict);
            }
            differs
        });
    }

    /// Makes a Kubernetes event, from this node and whoever holds the lease.
    pub fn note(&self, note: Note) {
        // The source is ending where nobody listens.
        let _ = self.commands.send(Command::Note(note));
    }
}

impl Drop for KubeSource {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the API server's thread had panicked");
        }
    }
}

/// What all tasks of the thread share.
struct Feed {
    store: Rc<RefCell<Store>>,
    health: SourceHealth,
    synced: BTreeSet<Kind>,
    /// Held back until every kind is in sync.
    pending: Vec<Delta>,
    absent_since: BTreeMap<Kind, Instant>,
    absent_grace: Duration,
    had: BTreeSet<Kind>,
    on_update: Box<dyn FnMut(Update)>,
    /// Something has changed since the last save.
    dirty: bool,
}

async fn run(
    options: Options,
    on_update: Box<dyn FnMut(Update)>,
    mut orders: mpsc::UnboundedReceiver<Command>,
    verdicts: watch::Receiver<Option<Verdict>>,
) {
    let connection = Connection::new(options.kubeconfig.clone());
    let store = Rc::new(RefCell::new(Store::new(&options.node)));
    let feed = Rc::new(RefCell::new(Feed {
        store: store.clone(),
        health: SourceHealth::default(),
        synced: BTreeSet::new(),
        pending: Vec::new(),
        absent_since: BTreeMap::new(),
        absent_grace: options.absent_grace,
        had: options.had.clone(),
        on_update,
        dirty: false,
    }));
    for kind in Kind::ALL {
        let (feed, connection) = (feed.clone(), connection.clone());
        let follow = Follow::new(connection, resource(kind), options.patience);
        tokio::task::spawn_local(follow.run(move |signal| feed.borrow_mut().take(kind, signal)));
    }
    let saving = options.state_dir.as_ref().map(|dir| state::path(dir));
    if let Some(path) = saving.clone() {
        tokio::task::spawn_local(keep(feed.clone(), path, options.node.clone()));
    }
    let (notes, noted) = mpsc::unbounded_channel();
    let desk = writer::Writer::new(connection, store, &options.node, options.lease);
    tokio::task::spawn_local(desk.clone().node(verdicts.clone()));
    tokio::task::spawn_local(desk.objects(verdicts, noted));
    while let Some(command) = orders.recv().await {
        match command {
            // The writer runs as long as this does.
            Command::Note(note) => drop(notes.send(note)),
            Command::Stop => break,
        }
    }
    let last = feed.borrow_mut().unsaved();
    if let (Some(path), Some(texts)) = (saving, last)
        && let Err(error) = state::save(&path, &options.node, &texts)
    {
        tracing::warn!(%error, "cannot keep the last good state");
    }
}

/// Saves what changed, at most so often.
async fn keep(feed: Rc<RefCell<Feed>>, path: PathBuf, node: String) {
    loop {
        let texts = feed.borrow_mut().unsaved();
        let Some(texts) = texts else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let began = Instant::now();
        let (path, node) = (path.clone(), node.clone());
        let save = move || {
            // A large state takes a tenth of a second of a processor, which changes of tables are to have first.
            let _ = rustix::process::nice(19);
            state::save(&path, &node, &texts)
        };
        match tokio::task::spawn_blocking(save).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot keep the last good state"),
            Err(error) => tracing::warn!(%error, "keeping the last good state failed"),
        }
        tokio::time::sleep(state::INTERVAL.max(began.elapsed() * 20)).await;
    }
}

impl Feed {
    /// The texts to save, where something has changed since the last save and all is in sync.
    fn unsaved(&mut self) -> Option<Vec<std::sync::Arc<[u8]>>> {
        (self.health.synced && std::mem::take(&mut self.dirty)).then(|| self.store.borrow().texts())
    }

    fn take(&mut self, kind: Kind, signal: Signal) {
        let since = Instant::now();
        let mut deltas = Vec::new();
        let mut in_sync = false;
        {
            let mut store = self.store.borrow_mut();
            match signal {
                Signal::Begin => store.begin(kind),
                Signal::Page(items) => store.page(kind, items, &mut deltas),
                Signal::Listed { version } => {
                    store.listed(kind, &version, &mut deltas);
                    in_sync = true;
                }
                Signal::Set(value) => store.event(kind, false, value, &mut deltas),
                Signal::Deleted(value) => store.event(kind, true, value, &mut deltas),
                Signal::Health(health) => {
                    drop(store);
                    self.note_health(kind, health, &mut deltas, &mut in_sync);
                }
            }
        }
        self.hand_over(deltas, since);
        if in_sync {
            self.in_sync(kind, since);
        }
    }

    fn note_health(&mut self, kind: Kind, health: Health, deltas: &mut Vec<Delta>, in_sync: &mut bool) {
        if health == Health::Absent {
            let since = *self.absent_since.entry(kind).or_insert_with(Instant::now);
            let had = self.had.contains(&kind) || self.store.borrow().count(kind) > 0;
            if !had || since.elapsed() >= self.absent_grace {
                self.store.borrow_mut().clear(kind, deltas);
                *in_sync = true;
            }
        } else {
            self.absent_since.remove(&kind);
        }
        if self.health.kinds.get(&kind) != Some(&health) {
            match &health {
                Health::Failing(why) => tracing::warn!(%kind, "{why}"),
                Health::Absent => tracing::info!(%kind, "the API server does not have this kind; looking again"),
                Health::Well => tracing::info!(%kind, "followed"),
                Health::Unknown => {}
            }
            self.health.kinds.insert(kind, health);
            (self.on_update)(Update::Health(self.health.clone()));
        }
    }

    fn in_sync(&mut self, kind: Kind, since: Instant) {
        self.synced.insert(kind);
        if self.health.synced || self.synced.len() < Kind::ALL.len() {
            return;
        }
        self.health.synced = true;
        self.dirty = true;
        let deltas = std::mem::take(&mut self.pending);
        (self.on_update)(Update::Objects { deltas, all: true, since });
        (self.on_update)(Update::Health(self.health.clone()));
    }

    fn hand_over(&mut self, deltas: Vec<Delta>, since: Instant) {
        if deltas.is_empty() {
            return;
        }
        if self.health.synced {
            self.dirty = true;
            (self.on_update)(Update::Objects { deltas, all: false, since });
        } else {
            self.pending.extend(deltas);
        }
    }
}

/// The collection of a kind, over all namespaces.
pub fn resource(kind: Kind) -> Resource {
    let (api_version, plural) = match kind {
        Kind::Namespace => ("v1", "namespaces"),
        Kind::Node => ("v1", "nodes"),
        Kind::Pod => ("v1", "pods"),
        Kind::Service => ("v1", "services"),
        Kind::EndpointSlice => ("discovery.k8s.io/v1", "endpointslices"),
        Kind::NetworkPolicy => ("networking.k8s.io/v1", "networkpolicies"),
        Kind::ClusterNetworkPolicy => ("policy.networking.k8s.io/v1alpha2", "clusternetworkpolicies"),
        Kind::EgressGateway => ("sluicegate.dev/v1alpha1", "egressgateways"),
        Kind::IpPool => ("sluicegate.dev/v1alpha1", "ippools"),
    };
    let prefix = if api_version.contains('/') { "apis" } else { "api" };
    Resource::new(format!("/{prefix}/{api_version}/{plural}"), api_version, kind.name())
}
