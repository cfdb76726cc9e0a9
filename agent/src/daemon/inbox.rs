//! The way to the control thread: work that others send it, and the answers they wait for.

use super::control::Control;
use crossbeam::channel::{Sender, bounded};
use serde_json::Value;
use sluice_cni::protocol::{CniRequest, ErrorBody, Verb};
use sluice_ctrl::carriers::Outcome;
use sluice_ctrl::source::Snapshot;
use sluice_engine::nat::Mapping;
use std::time::Instant;

/// Work for the control thread.
pub enum Message {
    /// The manifests have changed.
    Objects(Snapshot, Instant),
    /// The API server has told something.
    Cluster(sluice_kube::feed::Update),
    /// The kernel's neighbours, addresses or routes may have changed.
    Machine,
    /// A request of the CNI plugin.
    Cni(CniCall),
    /// Who carries which address has changed; and the flows of what has come here.
    Carriers(Outcome, Vec<Mapping>),
    /// Do this with the state.
    Do(Box<dyn FnOnce(&mut Control) + Send>),
    /// End; pods and flows stay for the next start.
    Stop,
}

/// A request of the CNI plugin, and where its answer goes.
pub struct CniCall {
    pub(crate) verb: Verb,
    pub(crate) request: CniRequest,
    pub(crate) reply: Sender<Result<Value, ErrorBody>>,
}

/// A way to the control thread for everybody else.
#[derive(Clone)]
pub struct Link {
    sender: Sender<Message>,
}

impl Link {
    /// Around the sending end of the control thread's channel.
    pub fn new(sender: Sender<Message>) -> Self {
        Link { sender }
    }

    /// Sends a message; `false` if the control thread is gone.
    pub fn send(&self, message: Message) -> bool {
        self.sender.send(message).is_ok()
    }

    /// Runs `work` on the control thread and waits for what it gives; `None` if that thread is gone.
    pub fn ask<T: Send + 'static>(&self, work: impl FnOnce(&mut Control) -> T + Send + 'static) -> Option<T> {
        let (reply, answer) = bounded(1);
        let message = Message::Do(Box::new(move |control| {
            let _ = reply.send(work(control));
        }));
        self.sender.send(message).ok()?;
        answer.recv().ok()
    }

    /// Has a CNI request served and waits for the answer; `None` if the control thread is gone. Requests that wait are
    /// served together.
    pub fn cni(&self, verb: Verb, request: CniRequest) -> Option<Result<Value, ErrorBody>> {
        let (reply, answer) = bounded(1);
        self.sender.send(Message::Cni(CniCall { verb, request, reply })).ok()?;
        answer.recv().ok()
    }
}
