//! What became of each packet, for replay, `sluice observe` and tests. Nothing here runs unless somebody listens.

use crate::reason::{Reason, Stage};
use sluice_tables::{Address, RuleId};
use std::sync::Arc;

/// What the deciding stages noted of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// The rule that decided; `None`: no policy selects.
    pub rule: Option<RuleId>,
    /// An audited policy alone would have denied it; `rule` is its.
    pub audited: bool,
    /// `namespace/name:port/PROTO` of the Service.
    pub service: Option<Arc<str>>,
    /// The backend's address and port.
    pub backend: Option<(Address, u16)>,
}

/// One thing that happened to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It left through a port.
    Sent(u16),
    /// It went to the host port.
    Punted(u16),
    /// It ended.
    Dropped(Reason, Stage),
    /// We answered it; the reason is set when the answer refuses.
    Replied(Option<Reason>),
    /// It waits.
    Held,
}

/// A listener. Called on the worker's thread, between decisions; must not block.
pub trait Trace: Send {
    /// `event` befell a packet that came in on `port`; `frame` is its bytes where they are still at hand.
    fn event(&mut self, port: u16, event: Event, note: Option<&Note>, frame: Option<&[u8]>);
}
