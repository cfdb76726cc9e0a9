//! Where cluster state comes from, and how the control thread follows it: a folder as a whole, an API server change by change.
//!
//! The first change of an idle node is compiled at once; what comes while the node is busy is taken together. Values that
//! did not change keep their place in memory, by which the compiler knows what it need not build again. Objects of a
//! start without an API server come from disk, and the status says so until the API server was heard.

use super::control::{Control, Link, Message};
use anyhow::{Context, Result};
use crossbeam::channel::Receiver;
use sluice_ctrl::config::Config;
use sluice_ctrl::import::live::{Delta, Live, Touched};
use sluice_ctrl::model::NamespacedName;
use sluice_ctrl::model::standalone::{Balance, Unfilled};
use sluice_ctrl::source::{Kind, ManifestSource, ManifestWatch, ObjectKey, ObjectSet, Snapshot};
use sluice_kube::feed::{KubeSource, Options, SourceHealth, Update};
use sluice_kube::state;
use sluice_kube::writer::{Note, Refusal, Verdict};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most changes that are taken together, so that a flood does not keep the tables waiting for its end.
const TOGETHER: usize = 20_000;

/// A source that was read once and is not followed yet.
pub enum Unwatched {
    /// A folder.
    Manifests(ManifestSource),
    /// An API server.
    Kubernetes(Box<Options>),
}

/// A source that is followed; dropping it ends that.
#[derive(Debug)]
pub enum Watched {
    /// A folder.
    Manifests(ManifestWatch),
    /// An API server.
    Kubernetes(KubeSource),
}

/// What the control thread knows of the API server.
#[derive(Debug, Default)]
pub struct Following {
    /// The index beside the cluster.
    pub live: Live,
    /// Changes that the tables in force do not have.
    pub touched: Touched,
    /// How it is with the API server.
    pub health: SourceHealth,
    /// When the state was written that the node runs on for want of an API server.
    pub from_disk: Option<state::Saved>,
    /// Where verdicts go, once the source runs.
    pub source: Option<KubeSource>,
    /// Load-balancer addresses that Services should have out of our pools, and those that could not be given.
    pub balanced: Arc<BTreeMap<NamespacedName, Vec<IpAddr>>>,
    unfilled: Vec<Unfilled>,
}

impl Unwatched {
    /// Reads what can be read without waiting: the folder, or the last good state.
    pub fn open(config: &Config) -> Result<(Unwatched, Snapshot, Option<Following>)> {
        match &config.source {
            sluice_ctrl::config::Source::Manifests { path } => {
                let source = ManifestSource::new(path)
                    .with_context(|| format!("source.path: cannot read the manifests in {}", path.display()))?;
                let snapshot = source.snapshot();
                Ok((Unwatched::Manifests(source), snapshot, None))
            }
            sluice_ctrl::config::Source::Kubernetes { kubeconfig } => {
                let mut options = Options::new(&config.node, kubeconfig.clone());
                options.state_dir = Some(config.state_dir.clone());
                let mut following = Following::default();
                let path: PathBuf = state::path(&config.state_dir);
                match state::load(&path, &config.node) {
                    Ok(saved) => following.from_disk = saved,
                    Err(error) => tracing::warn!(path = %path.display(), %error, "the last good state is not used"),
                }
                let had = following.from_disk.iter().flat_map(|saved| saved.deltas.iter().map(|d| d.key.kind));
                options.had = had.collect();
                Ok((Unwatched::Kubernetes(Box::new(options)), Snapshot::default(), Some(following)))
            }
        }
    }

    /// Begins to follow; changes go to the control thread.
    pub fn start(self, link: Link) -> Result<Watched> {
        match self {
            Unwatched::Manifests(source) => {
                let changed = move |snapshot| {
                    link.send(Message::Objects(snapshot, Instant::now()));
                };
                let watch = ManifestWatch::start(source, changed).context("cannot watch the manifests")?;
                Ok(Watched::Manifests(watch))
            }
            Unwatched::Kubernetes(options) => {
                let changed = move |update| {
                    link.send(Message::Cluster(update));
                };
                Ok(Watched::Kubernetes(KubeSource::start(*options, changed).context("cannot start a thread")?))
            }
        }
    }
}

impl Control {
    /// Takes up the last good state, where there is one.
    pub fn begin_from_disk(&mut self) {
        let Some(following) = &mut self.following else { return };
        let Some(saved) = &mut following.from_disk else { return };
        let deltas = std::mem::take(&mut saved.deltas);
        tracing::info!(objects = deltas.len(), age = ?saved.age(), "beginning with the last good state");
        self.snapshot.objects = Arc::new(objects_of(&deltas));
        following.live.replace(&mut self.cluster, deltas, &mut following.touched);
        self.note_invalid();
    }

    /// Takes an update, and everything else of its kind that waits; gives back what came after it.
    pub fn follow(&mut self, first: Update, inbox: &Receiver<Message>) -> Option<Message> {
        let (mut next, mut since, mut count) = (Some(first), None, 0);
        let mut after = None;
        while let Some(update) = next.take() {
            count += self.take_update(update, &mut since);
            match inbox.try_recv() {
                Ok(Message::Cluster(update)) if count < TOGETHER => next = Some(update),
                Ok(other) => after = Some(other),
                Err(_) => {}
            }
        }
        if let Some(since) = since {
            self.catch_up(since);
        }
        self.judge();
        after
    }

    fn take_update(&mut self, update: Update, earliest: &mut Option<Instant>) -> usize {
        let Some(following) = &mut self.following else { return 0 };
        match update {
            Update::Health(health) => {
                following.health = health;
                1
            }
            Update::Objects { deltas, all, since } => {
                let count = deltas.len();
                earliest.get_or_insert(since);
                if all {
                    following.from_disk = None;
                    self.snapshot.objects = Arc::new(objects_of(&deltas));
                    following.live.replace(&mut self.cluster, deltas, &mut following.touched);
                } else {
                    let objects = &mut Arc::make_mut(&mut self.snapshot.objects).objects;
                    for delta in deltas {
                        match &delta.object {
                            Some(raw) => drop(objects.insert(delta.key.clone(), raw.clone())),
                            None => drop(objects.remove(&delta.key)),
                        }
                        following.live.apply(&mut self.cluster, delta, &mut following.touched);
                    }
                }
                count.max(1)
            }
        }
    }

    fn note_invalid(&mut self) {
        let Some(following) = &mut self.following else { return };
        if std::mem::take(&mut following.touched.problems) {
            self.invalid = following.live.invalid().cloned().collect();
        }
        self.set_pools();
    }

    /// Tables of what is there now.
    fn catch_up(&mut self, since: Instant) {
        self.note_invalid();
        let Some(following) = &mut self.following else { return };
        if following.touched.is_empty() {
            return;
        }
        let Balance { given, unfilled } = Balance::of(&self.cluster);
        if *following.balanced != given {
            following.balanced = Arc::new(given);
        }
        following.unfilled = unfilled;
        self.apply(since);
        self.limit_pods();
    }

    /// All that was touched is compiled.
    pub fn nothing_touched(&mut self) {
        if let Some(following) = &mut self.following {
            following.touched.services.clear();
            following.touched.others = false;
        }
    }

    /// Whether a pod may be added by what the API server has shown; in a folder's cluster anybody may.
    pub fn is_shown(&self, pod: &NamespacedName, uid: Option<&str>) -> bool {
        let Some(following) = &self.following else { return true };
        let same = |shown: &str| uid.is_none_or(|uid| shown.is_empty() || shown == uid);
        following.live.shows(&self.cluster, pod) && self.cluster.pods.get(pod).is_some_and(|p| same(&p.uid))
    }

    /// The pod has its port: its object is kept until that goes.
    pub fn hold_pod(&mut self, pod: &NamespacedName) {
        if let Some(following) = &mut self.following {
            following.live.hold(pod);
        }
    }

    /// The pod's port is gone.
    pub fn release_pod(&mut self, pod: &NamespacedName) {
        if let Some(following) = &mut self.following {
            following.live.release(&mut self.cluster, pod, &mut following.touched);
        }
    }

    /// What to say of the source, in the status.
    pub fn source_problems(&self) -> Vec<String> {
        let Some(following) = &self.following else { return Vec::new() };
        let mut all = following.health.problems();
        if let Some(saved) = &following.from_disk {
            all.push(format!(
                "running on the last good state, {} old: the API server was not heard since the start",
                rough(saved.age())
            ));
        }
        all
    }

    /// Services that a load-balancer address is missing for.
    pub fn unfilled(&self) -> impl Iterator<Item = String> + '_ {
        let all = self.following.iter().flat_map(|following| &following.unfilled);
        all.map(|u| format!("Service/{}: {}: {}", u.service, u.field, u.why))
    }

    /// What to say of kinds that the API server does not have.
    pub fn source_notes(&self) -> Vec<String> {
        let absent = self.following.as_ref().map(|f| f.health.absent()).unwrap_or_default();
        let note = |kind: Kind| format!("the API server has no {kind}; none is programmed until its CRD is there");
        absent.into_iter().map(note).collect()
    }

    /// Whether every kind was in sync once; a folder always is.
    pub fn is_synced(&self) -> bool {
        self.following.as_ref().is_none_or(|f| f.health.synced)
    }

    /// Why this node should get no new pods by the probe `/readyz`; none where it should.
    pub fn why_unready(&self) -> Option<String> {
        if !self.is_synced() {
            return Some("not every kind is in sync with the API server".to_owned());
        }
        if self.pool.outstanding() >= self.pool.frames() {
            return Some("the frame pool is empty".to_owned());
        }
        self.not_ready()
    }

    /// Tells the API server what became of its objects, where that has changed.
    pub fn judge(&mut self) {
        let Some(following) = &self.following else { return };
        let Some(source) = &following.source else { return };
        if !following.health.synced {
            return;
        }
        let invalid = self.invalid.iter().map(|i| Refusal {
            key: key_of(i.kind, &i.name),
            field: i.field.clone(),
            why: i.why.clone(),
            effect: Some(i.effect),
        });
        let found = self.publisher.current().invalid.iter().filter_map(|finding| {
            let kind = Kind::ALL.into_iter().find(|k| k.name() == finding.kind)?;
            let (field, why) = (finding.field.to_owned(), finding.why.clone());
            Some(Refusal { key: key_of(kind, &finding.name), field, why, effect: None })
        });
        let unfilled = following.unfilled.iter().map(|u| Refusal {
            key: key_of(Kind::Service, &u.service.to_string()),
            field: u.field.to_owned(),
            why: u.why.clone(),
            effect: None,
        });
        let why_not = self.not_ready();
        let verdict = Verdict {
            refusals: invalid.chain(found).chain(unfilled).collect(),
            programmed: why_not.is_none(),
            why_not,
            balanced: following.balanced.clone(),
        };
        source.judge(verdict);
    }

    /// Makes an event about an object, where there is an API server to take it.
    pub fn note_event(&self, note: Note) {
        if let Some(source) = self.following.as_ref().and_then(|f| f.source.as_ref()) {
            source.note(note);
        }
    }
}

/// What is left of changes.
fn objects_of(deltas: &[Delta]) -> ObjectSet {
    let mut set = ObjectSet::default();
    for delta in deltas {
        match &delta.object {
            Some(raw) => drop(set.objects.insert(delta.key.clone(), raw.clone())),
            None => drop(set.objects.remove(&delta.key)),
        }
    }
    set
}

fn key_of(kind: Kind, full_name: &str) -> ObjectKey {
    let (namespace, name) =
        if kind.is_namespaced() { full_name.split_once('/').unwrap_or(("", full_name)) } else { ("", full_name) };
    ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

/// A duration as people say it.
fn rough(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}
