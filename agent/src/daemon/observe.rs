//! Who listens to what becomes of packets. Workers trace only while somebody listens; a slow listener loses events.

use super::workers::Handle;
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

/// The listeners, shared with the workers' traces.
#[derive(Clone, Default)]
pub struct Observers {
    sinks: Arc<Mutex<Vec<Sink>>>,
    tracing: bool,
}

/// Bytes of a frame that an event carries.
const SNAP: usize = 128;

struct Tracer {
    sinks: Arc<Mutex<Vec<Sink>>>,
}

impl Trace for Tracer {
    fn event(&mut self, port: u16, event: Event, note: Option<&Note>, frame: Option<&[u8]>) {
        // Contended only while a listener comes or goes; that event is lost rather than waited for.
        let Ok(mut sinks) = self.sinks.try_lock() else { return };
        if sinks.is_empty() {
            return;
        }
        let frame = frame.map_or_else(Vec::new, |f| f[..f.len().min(SNAP)].to_vec());
        let told = Told { port, event, note: note.cloned().unwrap_or_default(), frame };
        sinks.retain_mut(|sink| sink(&told));
    }
}

impl Observers {
    /// Adds a listener; workers begin to trace.
    pub fn add(&mut self, sink: Sink, workers: &[Handle]) {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).push(sink);
        if !self.tracing {
            self.tracing = true;
            for worker in workers {
                worker.trace(Some(Box::new(Tracer { sinks: Arc::clone(&self.sinks) })));
            }
        }
    }

    /// Workers stop tracing when nobody listens any more.
    pub fn prune(&mut self, workers: &[Handle]) {
        if self.tracing && self.sinks.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            self.tracing = false;
            for worker in workers {
                worker.trace(None);
            }
        }
    }
}
