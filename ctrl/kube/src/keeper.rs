//! Holds Leases for the addresses that this node answers for, so that no two nodes answer for one.
//!
//! Owner: the thread `leases`, so that no large list delays a renewal. Two kinds of Leases in the agent's namespace
//! (`docs/adr/0022`): a node that carries something renews its *session* `sluicegate-node-NODE`; each address has a Lease
//! `sluicegate-address-…` that names the node which may answer for it and is written when that changes, not renewed.
//!
//! Invariants. A hold counts while our session lasts by our own clock, less a fifth, from before its renewal was sent; other
//! nodes take what we hold after they have seen our session unchanged for its whole duration, by theirs. After a session
//! has run out the next one has another epoch, and every address is written anew: the write changes its version, so that
//! whoever was about to take it is refused. A taker reads the address first, then the session of its holder, then writes with the version it read.
//!
//! Cost: three or four writes a second for each node that carries something, whatever it carries; of more than [`EASY`] such
//! nodes each writes less often, and taking over takes as much longer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::connection::{ApiError, Connection};
use crate::lease::{LeaseRecord, Leases};

/// So many nodes may carry something before sessions are made longer.
pub const EASY: usize = 16;
/// A session of few nodes.
const SESSION: Duration = Duration::from_secs(1);
/// Renewals in the time of a session, rounded down.
const RENEWALS: u32 = 3;
/// Between two rounds while something is to be had.
const HURRY: Duration = Duration::from_millis(100);
/// So long after an address was last wanted its Lease is given up: the workers have taken up tables without it.
const LET_GO: Duration = Duration::from_millis(200);
/// The annotation by which a session and what was taken in it know each other.
const EPOCH: &str = "sluicegate.dev/epoch";
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_millis(600);
/// Writes at once.
const AT_ONCE: usize = 8;
/// More than so many are read by a list.
const FEW: usize = 4;

/// What a node wants of the Leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Addresses that it answers for or would.
    pub wanted: BTreeSet<IpAddr>,
    /// Nodes that have fallen silent: their sessions are watched.
    pub suspects: BTreeSet<String>,
    /// How many nodes carry something.
    pub carriers: usize,
    /// Give up everything and end.
    pub leave: bool,
}

/// What it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Until when the session lasts.
    pub until: Option<Instant>,
    /// Addresses whose Leases name us, written during this session.
    pub ours: BTreeSet<IpAddr>,
    /// Addresses whose Leases name a node whose session lives, and since when we know.
    pub others: BTreeMap<IpAddr, Instant>,
    /// How long two sessions last: by then whoever let go or died is seen to have.
    pub patience: Duration,
    /// When the API server last answered, or since when it has been asked in vain.
    pub heard: Option<Instant>,
    /// The API server does not let us use Leases.
    pub denied: Option<String>,
}

/// A running keeper. Dropping it ends the thread and gives nothing up.
#[derive(Debug)]
pub struct Keeper {
    wishes: watch::Sender<Wish>,
    held: Arc<Mutex<Held>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread of a node. Nothing is asked of the API server before there is a wish.
    pub fn start(node: &str, kubeconfig: Option<PathBuf>) -> io::Result<Keeper> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
        let (wishes, wish) = watch::channel(Wish::default());
        let held = Arc::new(Mutex::new(Held::default()));
        let desk = Desk::new(node, kubeconfig, held.clone());
        let thread = std::thread::Builder::new().name("leases".into()).spawn(move || {
            runtime.block_on(desk.run(wish));
            runtime.shutdown_timeout(Duration::from_millis(100));
        })?;
        Ok(Keeper { wishes, held, thread: Some(thread) })
    }

    /// Says what is wanted now.
    pub fn wish(&self, wish: Wish) {
        self.wishes.send_if_modified(|old| {
            let differs = *old != wish;
            *old = wish;
            differs
        });
    }

    /// What is held now.
    pub fn held(&self) -> Held {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives everything up, so that others need not wait, and ends; to be called when we answer for nothing any more.
    pub fn leave(mut self) {
        self.wishes.send_modify(|wish| wish.leave = true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the Leases had panicked");
        }
    }
}

/// The name of a node's session.
pub fn session_name(node: &str) -> String {
    format!("sluicegate-node-{node}")
}

/// The name of an address's Lease: no colons, and it ends in a digit or a letter (RFC 1123).
pub fn address_name(address: IpAddr) -> String {
    let text = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => address.segments().map(|group| format!("{group:04x}")).join("-"),
    };
    format!("sluicegate-address-{text}")
}

struct Desk {
    node: String,
    kubeconfig: Option<PathBuf>,
    leases: Option<Leases>,
    held: Arc<Mutex<Held>>,
    /// Our session as it was last read or written.
    session: Option<LeaseRecord>,
    until: Option<Instant>,
    next_renewal: Instant,
    /// Which session this is: what was taken in an earlier one does not count.
    epoch: String,
    ours: BTreeSet<IpAddr>,
    /// Addresses whose Leases we have tried to write and not deleted since, and when they were last wanted.
    touched: BTreeMap<IpAddr, Instant>,
    others: BTreeMap<IpAddr, Instant>,
    /// Version of another node's session, and since when it is that.
    seen: HashMap<String, (String, Instant)>,
    heard: Option<Instant>,
    denied: Option<String>,
    /// Requests without an answer, one after the other.
    unanswered: u32,
}

impl Desk {
    fn new(node: &str, kubeconfig: Option<PathBuf>, held: Arc<Mutex<Held>>) -> Desk {
        Desk {
            node: node.to_owned(),
            kubeconfig,
            leases: None,
            held,
            session: None,
            until: None,
            next_renewal: Instant::now(),
            epoch: String::new(),
            ours: BTreeSet::new(),
            touched: BTreeMap::new(),
            others: BTreeMap::new(),
            seen: HashMap::new(),
            heard: None,
            denied: None,
            unanswered: 0,
        }
    }

    async fn run(mut self, mut wishes: watch::Receiver<Wish>) {
        loop {
            let wish = wishes.borrow_and_update().clone();
            if wish.leave {
                self.leave().await;
                return;
            }
            let round = self.round(&wish).await;
            self.settle(round);
            let letting_go = self.touched.keys().any(|address| !wish.wanted.contains(address));
            let eager = !wish.suspects.is_empty() || wish.wanted.len() > self.ours.len() || letting_go;
            let renewal = self.next_renewal.saturating_duration_since(Instant::now());
            let nap = if eager { renewal.min(HURRY) } else { renewal };
            let idle = wish.wanted.is_empty() && self.session.is_none() && !eager;
            tokio::select! {
                changed = wishes.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(nap.max(Duration::from_millis(10))), if !idle => {}
            }
        }
    }

    /// Notes what came of a round, and tells.
    fn settle(&mut self, round: Result<(), ApiError>) {
        match round {
            Ok(()) => self.denied = None,
            Err(ApiError::Forbidden(why)) => {
                if self.denied.is_none() {
                    tracing::warn!("Leases cannot be used, addresses are fenced by the majority alone: {why}");
                }
                self.denied = Some(why);
            }
            Err(error) => tracing::debug!(%error, "Leases of addresses"),
        }
        self.tell();
    }

    fn tell(&self) {
        let now = Held {
            until: self.until,
            ours: self.ours.clone(),
            others: self.others.clone(),
            patience: 2 * self.session.as_ref().map_or(SESSION, |session| session.duration),
            heard: self.heard,
            denied: self.denied.clone(),
        };
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// One request, within its time; what it says of the API server is noted.
    async fn ask<T>(&mut self, request: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
        let answer = tokio::time::timeout(ANSWER, request).await;
        let answer = answer.unwrap_or_else(|_| Err(ApiError::Unreachable("no answer in time".to_owned())));
        self.note(answer.as_ref().err());
        answer
    }

    fn note(&mut self, error: Option<&ApiError>) {
        match error {
            None | Some(ApiError::Conflict(_) | ApiError::NotFound(_) | ApiError::Forbidden(_)) => {
                self.heard = Some(Instant::now());
                self.unanswered = 0;
            }
            // A connection that hangs must not be tried for ever.
            Some(_) => {
                self.unanswered += 1;
                if self.unanswered.is_multiple_of(2) {
                    self.leases = None;
                }
            }
        }
    }

    async fn leases(&mut self) -> Result<Leases, ApiError> {
        if let Some(leases) = &self.leases {
            return Ok(leases.clone());
        }
        let connection = Connection::new(self.kubeconfig.clone());
        let namespace = connection.namespace().await?;
        let leases = Leases::new(connection, namespace);
        self.leases = Some(leases.clone());
        Ok(leases)
    }

    async fn round(&mut self, wish: &Wish) -> Result<(), ApiError> {
        let now = Instant::now();
        self.others.retain(|address, _| wish.wanted.contains(address));
        self.ours.retain(|address| wish.wanted.contains(address));
        for (_, last) in self.touched.iter_mut().filter(|(address, _)| wish.wanted.contains(address)) {
            *last = now;
        }
        if wish.wanted.is_empty() && self.touched.is_empty() && self.session.is_none() && wish.suspects.is_empty() {
            return Ok(());
        }
        // Silence counts from the first question on.
        self.heard.get_or_insert(now);
        self.tell();
        let leases = self.leases().await.inspect_err(|_| self.leases = None)?;
        if !wish.wanted.is_empty() {
            self.renew(&leases, wish.carriers).await?;
        }
        let gone = self.touched.iter().filter(|(_, last)| now.duration_since(**last) >= LET_GO);
        for address in gone.map(|(address, _)| *address).collect::<Vec<_>>() {
            self.release(&leases, address).await?;
            self.touched.remove(&address);
        }
        if wish.wanted.is_empty() && self.touched.is_empty() {
            self.end_session(&leases).await?;
        }
        self.take(&leases, wish).await
    }

    /// Deletes an address's Lease where it names us; whether an earlier write reached it need not be known.
    async fn release(&mut self, leases: &Leases, address: IpAddr) -> Result<(), ApiError> {
        let name = address_name(address);
        let found = self.ask(leases.get(&name)).await?;
        match found.filter(|record| record.holder.as_ref() == Some(&self.node)) {
            Some(record) => self.ask(leases.delete(&record)).await,
            None => Ok(()),
        }
    }

    /// Renews the session where it is time.
    async fn renew(&mut self, leases: &Leases, carriers: usize) -> Result<(), ApiError> {
        let sent = Instant::now();
        if sent < self.next_renewal && self.until.is_some_and(|until| sent < until) {
            return Ok(());
        }
        let duration = SESSION * u32::try_from(carriers.div_ceil(EASY).max(1)).unwrap_or(u32::MAX);
        self.next_renewal = sent + duration * 9 / (10 * RENEWALS);
        let name = session_name(&self.node);
        let known = match self.session.take() {
            Some(record) => Some(record),
            None => {
                let found = leases.get(&name);
                self.ask(found).await?
            }
        };
        let lapsed = self.until.is_none_or(|until| until <= sent);
        if lapsed {
            self.ours.clear();
            self.epoch = format!("{:?}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        }
        let mut record = known.unwrap_or_else(|| LeaseRecord::new(name, duration));
        (record.holder, record.duration) = (Some(self.node.clone()), duration);
        record.annotations.insert(EPOCH.to_owned(), self.epoch.clone());
        let done = match record.version.is_empty() {
            true => self.ask(leases.create(&record)).await,
            false => self.ask(leases.update(&record)).await,
        };
        match done {
            Ok(made) => {
                self.session = Some(made);
                // Whoever waited for its end may have taken something meanwhile: it is begun anew.
                if !lapsed && self.until.is_none_or(|until| until <= Instant::now()) {
                    self.end_hold();
                    return Err(ApiError::Unreachable("the answer came after the session's end".to_owned()));
                }
                self.until = Some(sent + duration * 4 / 5);
                self.tell();
                Ok(())
            }
            Err(error) => {
                // What was written last is not known: it is read at once.
                self.next_renewal = Instant::now();
                Err(error)
            }
        }
    }

    fn end_hold(&mut self) {
        (self.until, self.next_renewal) = (None, Instant::now());
        self.ours.clear();
        self.tell();
    }

    async fn end_session(&mut self, leases: &Leases) -> Result<(), ApiError> {
        self.end_hold();
        let Some(record) = self.session.take() else { return Ok(()) };
        let gone = leases.delete(&record);
        match self.ask(gone).await {
            Ok(()) | Err(ApiError::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes what is wanted and free.
    async fn take(&mut self, leases: &Leases, wish: &Wish) -> Result<(), ApiError> {
        let missing: Vec<IpAddr> = wish.wanted.iter().copied().filter(|a| !self.ours.contains(a)).collect();
        let mut found: HashMap<String, LeaseRecord> = HashMap::new();
        if missing.len() > FEW {
            let all = self.ask(leases.list()).await?;
            found.extend(all.into_iter().map(|record| (record.name.clone(), record)));
        } else {
            for address in &missing {
                let name = address_name(*address);
                if let Some(record) = self.ask(leases.get(&name)).await? {
                    found.insert(name, record);
                }
            }
        }
        // After the addresses were read, not before.
        let holders = missing.iter().filter_map(|a| found.get(&address_name(*a))?.holder.clone());
        let holders: BTreeSet<String> =
            holders.chain(wish.suspects.iter().cloned()).filter(|h| *h != self.node).collect();
        let mut living = BTreeMap::new();
        self.seen.retain(|node, _| holders.contains(node));
        for holder in holders {
            if let Some(epoch) = self.lives(leases, &holder).await? {
                living.insert(holder, epoch);
            }
        }
        let mut free = Vec::new();
        for address in missing {
            let name = address_name(address);
            let record = found.remove(&name).unwrap_or_else(|| LeaseRecord::new(name, SESSION));
            // What a holder took in an earlier session is not its any more.
            let epoch = record.annotations.get(EPOCH);
            let holds = |holder: &String| living.get(holder).is_some_and(|now| Some(now) == epoch);
            if record.holder.as_ref().is_some_and(holds) {
                self.others.entry(address).or_insert_with(Instant::now);
            } else {
                free.push((address, record));
            }
        }
        for some in free.chunks(AT_ONCE) {
            self.renew(leases, wish.carriers).await?;
            let mut writes = JoinSet::new();
            for (address, record) in some.iter().cloned() {
                let write = take_over(leases.clone(), self.node.clone(), self.epoch.clone(), record);
                self.touched.insert(address, Instant::now());
                writes.spawn(async move { (address, tokio::time::timeout(ANSWER, write).await) });
            }
            while let Some(done) = writes.join_next().await {
                let Ok((address, done)) = done else { continue };
                let done = done.unwrap_or_else(|_| Err(ApiError::Unreachable("no answer in time".to_owned())));
                self.note(done.as_ref().err());
                match done {
                    // A session that ran out in between does not cover it.
                    Ok(()) if self.until.is_some_and(|until| Instant::now() < until) => {
                        self.others.remove(&address);
                        self.ours.insert(address);
                    }
                    Ok(()) | Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            self.tell();
        }
        Ok(())
    }

    /// The epoch of another node's session, if that has changed within its duration as seen from here.
    async fn lives(&mut self, leases: &Leases, node: &str) -> Result<Option<String>, ApiError> {
        let found = self.ask(leases.get(&session_name(node))).await?.filter(|record| record.holder.is_some());
        let Some(record) = found else {
            self.seen.remove(node);
            return Ok(None);
        };
        let now = Instant::now();
        let seen = self.seen.entry(node.to_owned()).or_insert_with(|| (record.version.clone(), now));
        if seen.0 != record.version {
            *seen = (record.version, now);
        }
        let lives = seen.1.elapsed() < record.duration.max(SESSION);
        Ok(lives.then(|| record.annotations.get(EPOCH).cloned().unwrap_or_default()))
    }

    async fn leave(&mut self) {
        self.until = None;
        self.tell();
        if self.session.is_none() {
            return;
        }
        let Ok(leases) = self.leases().await else { return };
        if let Err(error) = self.end_session(&leases).await {
            tracing::warn!(%error, "the session is left to run out");
        }
    }
}

/// Writes an address's Lease in a node's name, with the version that was read.
async fn take_over(leases: Leases, node: String, epoch: String, mut record: LeaseRecord) -> Result<(), ApiError> {
    if record.holder.as_ref() != Some(&node) {
        record.transitions = record.transitions.saturating_add(i32::from(!record.version.is_empty()));
    }
    record.annotations.insert(EPOCH.to_owned(), epoch);
    record.annotations.insert("sluicegate.dev/session".to_owned(), session_name(&node));
    record.holder = Some(node);
    match record.version.is_empty() {
        true => leases.create(&record).await.map(|_| ()),
        false => leases.update(&record).await.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_leases_are_dns_names() {
        assert_eq!(address_name("192.0.2.50".parse().unwrap()), "sluicegate-address-192.0.2.50");
        let v6 = address_name("2001:db8::".parse().unwrap());
        assert_eq!(v6, "sluicegate-address-2001-0db8-0000-0000-0000-0000-0000-0000");
        assert_eq!(session_name("node-a"), "sluicegate-node-node-a");
    }
}
