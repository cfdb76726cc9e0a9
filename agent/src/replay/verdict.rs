//! What became of each packet, as a line of `verdicts.jsonl`.

use super::inputs::Input;
use serde::Serialize;
use sluice_ctrl::compile::LocalView;
use sluice_engine::reason::{Reason, Stage};
use sluice_engine::trace::{Event, Note, Trace};
use sluice_tables::{Address, Family, Tables};
use std::sync::{Arc, Mutex, PoisonError};

/// Port numbers and their names in captures.
#[derive(Debug)]
pub struct Names {
    list: Vec<(u16, String)>,
}

impl Names {
    /// `uplink0`, `host`, `pod:NAMESPACE/NAME`.
    pub fn of<'a>(views: impl IntoIterator<Item = &'a LocalView>) -> Self {
        let mut list: Vec<(u16, String)> = Vec::new();
        for view in views {
            let own = [(view.uplink.port, "uplink0".to_owned()), (view.host.port, "host".to_owned())];
            let pods = view.pods.iter().map(|(name, pod)| (pod.port, format!("pod:{name}")));
            for named in own.into_iter().chain(pods) {
                if !list.contains(&named) {
                    list.push(named);
                }
            }
        }
        Names { list }
    }

    /// Every port's number.
    pub fn ports(&self) -> Vec<u16> {
        self.list.iter().map(|(port, _)| *port).collect()
    }

    /// Number of a named port.
    pub fn number(&self, name: &str) -> Option<u16> {
        self.list.iter().find(|(_, n)| n == name).map(|(port, _)| *port)
    }

    /// Name of a port.
    pub fn name(&self, port: u16) -> &str {
        self.list.iter().find(|(p, _)| *p == port).map_or("?", |(_, name)| name)
    }

    /// All names, for messages.
    pub fn list(&self) -> String {
        self.list.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// One line of `verdicts.jsonl`.
#[derive(Debug, Serialize)]
pub struct Verdict {
    n: usize,
    port: String,
    verdict: &'static str,
    reason: Option<&'static str>,
    tx: Vec<String>,
    policy: Option<String>,
    /// `audit-deny` where an audited policy alone would have denied the packet; `policy` is its name. Else not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_verdict: Option<&'static str>,
    service: Option<String>,
    backend: Option<String>,
}

#[derive(Debug, Default)]
struct Record {
    events: Vec<Event>,
    note: Note,
}

/// Collects the events of one packet from all workers.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    record: Arc<Mutex<Record>>,
}

struct Listener {
    record: Arc<Mutex<Record>>,
}

impl Trace for Listener {
    fn event(&mut self, _port: u16, event: Event, note: Option<&Note>, _frame: Option<&[u8]>) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.events.push(event);
        if let Some(note) = note {
            let mine = &mut record.note;
            mine.rule = note.rule.or(mine.rule);
            mine.audited |= note.audited;
            mine.service = note.service.clone().or(mine.service.take());
            mine.backend = note.backend.or(mine.backend);
        }
    }
}

impl Recorder {
    /// A listener for one worker.
    pub fn listener(&self) -> impl Trace + use<> {
        Listener { record: Arc::clone(&self.record) }
    }

    /// Forgets the last packet.
    pub fn clear(&self) {
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = Record::default();
    }

    /// The verdict on the packet since `clear`.
    pub fn verdict(&self, n: usize, names: &Names, input: &Input, tables: &Tables) -> Verdict {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tx: Vec<String> = Vec::new();
        let (mut sent, mut punted, mut held) = (false, false, false);
        let mut replied: Option<Option<Reason>> = None;
        let mut dropped: Option<(Reason, Stage)> = None;
        for event in &record.events {
            match event {
                Event::Sent(port) | Event::Punted(port) => {
                    sent |= matches!(event, Event::Sent(_));
                    punted |= matches!(event, Event::Punted(_));
                    let name = names.name(*port).to_owned();
                    if !tx.contains(&name) {
                        tx.push(name);
                    }
                }
                Event::Replied(reason) => replied = Some(*reason),
                Event::Dropped(reason, stage) => dropped = Some((*reason, *stage)),
                Event::Held => held = true,
            }
        }
        let (verdict, reason) = match (replied, dropped) {
            (Some(reason), _) => ("replied", reason),
            _ if punted => ("punted", None),
            _ if sent => ("forwarded", None),
            _ if held => ("held", None),
            (None, Some((reason, _))) => ("dropped", Some(reason)),
            (None, None) => ("dropped", None),
        };
        let note = &record.note;
        let policy = note.rule.and_then(|rule| tables.policy.name(rule)).map(|name| name.to_string());
        let denied = reason == Some(Reason::PolicyDeny);
        let policy_verdict = policy_verdict(policy.is_some(), note.audited, denied).filter(|v| *v == "audit-deny");
        let backend = note.backend.map(|(address, port)| endpoint(address, port));
        Verdict {
            n,
            port: names.name(input.port).to_owned(),
            verdict,
            reason: reason.map(Reason::name),
            tx,
            policy,
            policy_verdict,
            service: note.service.as_ref().map(|name| name.to_string()),
            backend,
        }
    }
}

/// What a policy has said of a packet: the label of the counter it is in.
pub fn policy_verdict(named: bool, audited: bool, denied: bool) -> Option<&'static str> {
    match (named, audited, denied) {
        (_, _, true) => Some("deny"),
        (true, true, _) => Some("audit-deny"),
        (true, ..) => Some("allow"),
        _ => None,
    }
}

/// `10.0.0.1:80` or `[fd00::1]:80`.
fn endpoint(address: Address, port: u16) -> String {
    match address.family() {
        Family::V4 => format!("{address}:{port}"),
        Family::V6 => format!("[{address}]:{port}"),
    }
}
