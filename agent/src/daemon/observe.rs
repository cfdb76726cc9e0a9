//! Who listens to what becomes of packets. Workers trace only while somebody listens; a slow listener loses events.

use super::workers::Handle;
use sluice_engine::reason::Reason;
use sluice_engine::trace::{Event, Note, Trace};
use std::sync::{Arc, Mutex, PoisonError};

/// One event as a worker tells it.
#[derive(Clone, Debug)]
pub struct Told {
    /// Port the packet came in on.
    pub port: u16,
    /// What befell it.
    pub event: Event,
    /// What the deciding stages noted.
    pub note: Note,
    /// The frame's first bytes.
    pub frame: Vec<u8>,
}

/// Takes events on a worker's thread; `false` when it wants no more. Must not block.
pub type Sink = Box<dyn FnMut(&Told) -> bool + Send>;

/// Which events a listener is told of; others cost it nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All.
    All,
    /// Those of packets that policy denies.
    Denied,
}

impl Wanted {
    fn wants(self, event: Event) -> bool {
        let denied = matches!(event, Event::Dropped(Reason::PolicyDeny, _) | Event::Replied(Some(Reason::PolicyDeny)));
        self == Wanted::All || denied
    }
}

/// A listener.
pub struct Listener {
    /// What it is told of.
    pub wanted: Wanted,
    /// Where it is told.
    pub sink: Sink,
    /// Whether it has gone.
    pub gone: Box<dyn Fn() -> bool + Send>,
}

/// The listeners, shared with the workers' traces.
#[derive(Clone, Default)]
pub struct Observers {
    sinks: Arc<Mutex<Vec<Listener>>>,
    tracing: bool,
}

/// Bytes of a frame that an event carries.
const SNAP: usize = 128;

struct Tracer {
    sinks: Arc<Mutex<Vec<Listener>>>,
}

impl Trace for Tracer {
    fn event(&mut self, port: u16, event: Event, note: Option<&Note>, frame: Option<&[u8]>) {
        // Contended only while a listener comes or goes; that event is lost rather than waited for.
        let Ok(mut sinks) = self.sinks.try_lock() else { return };
        if !sinks.iter().any(|listener| listener.wanted.wants(event)) {
            return;
        }
        let frame = frame.map_or_else(Vec::new, |f| f[..f.len().min(SNAP)].to_vec());
        let told = Told { port, event, note: note.cloned().unwrap_or_default(), frame };
        sinks.retain_mut(|listener| !listener.wanted.wants(event) || (listener.sink)(&told));
    }
}

impl Observers {
    /// Adds a listener; workers begin to trace.
    pub fn add(&mut self, listener: Listener, workers: &[Handle]) {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        if !self.tracing {
            self.tracing = true;
            for worker in workers {
                worker.trace(Some(Box::new(Tracer { sinks: Arc::clone(&self.sinks) })));
            }
        }
    }

    /// Workers stop tracing when nobody listens any more.
    pub fn prune(&mut self, workers: &[Handle]) {
        if !self.tracing {
            return;
        }
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        sinks.retain(|listener| !(listener.gone)());
        if sinks.is_empty() {
            self.tracing = false;
            for worker in workers {
                worker.trace(None);
            }
        }
    }
}
