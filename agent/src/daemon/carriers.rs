//! The liveness thread: talks to other nodes' agents through the overlay and says who carries which address.
//!
//! Owner: a thread of its own, so that no compilation, CNI call or slow disk delays a sign of life. Its datagrams leave by
//! the host port from the node's overlay address and so pass both nodes' workers: what is up is the whole way. It sleeps
//! while there is nothing to carry. A datagram counts only if it comes from a node's overlay address: no pod can have one.

use super::control::{Link, Message};
use super::mirror::Mirror;
use crossbeam::channel::{Receiver, Sender, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_ctrl::carriers::{Carried, Election, Fence, Liveness, Message as Datagram, Outcome, Pace, Placement};
use sluice_ctrl::model::{Cluster, Family};
use sluice_engine::Shared;
use sluice_engine::nat::Mapping;
use sluice_kube::{Held, Keeper, Wish};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest nap while there is something to carry.
const NAP: Duration = Duration::from_millis(20);
/// Between two tries to open the sockets: the overlay address comes with the host port.
const RETRY: Duration = Duration::from_millis(200);

/// Unheard for so long, a node's Lease is watched: its end is known the sooner. Later it is no news any more.
const SUSPECT: std::ops::Range<Duration> = Duration::from_millis(300)..Duration::from_secs(10);

/// What the thread must know of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// This node's overlay addresses.
    own: Vec<IpAddr>,
    /// Other nodes that run this agent, with their overlay addresses.
    peers: BTreeMap<String, Vec<IpAddr>>,
    placement: Placement,
    unready: BTreeSet<String>,
}

impl Topology {
    /// Of a cluster as this node sees it.
    pub fn of(cluster: &Cluster, own: &str, placement: Placement) -> Self {
        let overlay = |node: &sluice_ctrl::model::Node| -> Vec<IpAddr> {
            [Family::V4, Family::V6].into_iter().filter_map(|family| node.overlay_address(family)).collect()
        };
        // A node whose tunnel end has a MAC of its own is somebody else's.
        let others = cluster.nodes.values().filter(|n| n.name != own && n.vtep_mac.is_none());
        Topology {
            own: cluster.nodes.get(own).map(|n| overlay(n)).unwrap_or_default(),
            peers: others.map(|n| (n.name.clone(), overlay(n))).filter(|(_, list)| !list.is_empty()).collect(),
            placement,
            unready: cluster.nodes.values().filter(|n| n.ready == Some(false)).map(|n| n.name.clone()).collect(),
        }
    }
}

enum Order {
    Know(Topology),
    Stop,
}

/// The thread, as control sees it.
pub struct Carriers {
    orders: Sender<Order>,
    thread: Option<JoinHandle<Option<Keeper>>>,
    told: Topology,
}

impl Carriers {
    /// Starts the thread; what it finds goes to `link`. With a keeper, Leases fence the addresses.
    pub fn start(
        own: String,
        port: u16,
        shared: Arc<Shared>,
        link: Link,
        keeper: Option<Keeper>,
    ) -> std::io::Result<Self> {
        let (orders, inbox) = unbounded();
        let thread = std::thread::Builder::new().name("carriers".into()).spawn(move || {
            Talk {
                own,
                port,
                shared,
                link,
                inbox,
                sockets: Vec::new(),
                topology: Topology::default(),
                started: Instant::now(),
                keeper,
            }
            .run()
        })?;
        Ok(Carriers { orders, thread: Some(thread), told: Topology::default() })
    }

    /// Tells it what the cluster is now.
    pub fn know(&mut self, topology: Topology) {
        if topology != self.told {
            self.told = topology.clone();
            let _ = self.orders.send(Order::Know(topology));
        }
    }

    /// Takes leave of the other nodes and ends the thread; to be called while workers still move packets. The keeper is given
    /// back: Leases are given up when no worker answers any more.
    pub fn stop(&mut self) -> Option<Keeper> {
        let _ = self.orders.send(Order::Stop);
        self.thread.take().and_then(|thread| thread.join().ok()).flatten()
    }
}

struct Talk {
    own: String,
    port: u16,
    shared: Arc<Shared>,
    link: Link,
    inbox: Receiver<Order>,
    sockets: Vec<(IpAddr, UdpSocket)>,
    topology: Topology,
    started: Instant,
    keeper: Option<Keeper>,
}

/// The state while there is something to carry.
struct Active {
    liveness: Liveness,
    election: Election,
    /// What each peer sent last, to be echoed.
    sent: BTreeMap<String, u64>,
    by_address: BTreeMap<IpAddr, String>,
    next_send: Duration,
    outcome: Outcome,
    mirror: Mirror,
}

impl Talk {
    fn run(mut self) -> Option<Keeper> {
        let pace = Pace::default();
        let mut active: Option<Active> = None;
        let mut tried: Option<Instant> = None;
        loop {
            match self.next_order(active.is_some()) {
                Some(Order::Stop) => {
                    if let Some(active) = &active {
                        self.take_leave(active);
                    }
                    return self.keeper;
                }
                Some(Order::Know(topology)) => {
                    if topology.own != self.topology.own {
                        self.sockets.clear();
                    }
                    self.topology = topology;
                    if let Some(active) = &mut active {
                        active.know(&self.topology);
                    }
                }
                None => {}
            }
            if self.topology.placement == Placement::default() {
                if active.take().is_some() {
                    self.sockets.clear();
                    self.shared.mirror.want(false);
                    if let Some(keeper) = &self.keeper {
                        keeper.wish(Wish::default());
                    }
                    self.link.send(Message::Carriers(Outcome::default(), Vec::new()));
                }
                continue;
            }
            let now = self.started.elapsed();
            if self.sockets.len() < self.topology.own.len() && tried.is_none_or(|at| at.elapsed() >= RETRY) {
                tried = Some(Instant::now());
                self.open();
            }
            let active = active.get_or_insert_with(|| {
                let mut fresh = Active {
                    liveness: Liveness::new(&self.own, pace, now),
                    election: Election::new(&self.own),
                    sent: BTreeMap::new(),
                    by_address: BTreeMap::new(),
                    next_send: now,
                    outcome: Outcome::default(),
                    mirror: Mirror::default(),
                };
                fresh.know(&self.topology);
                fresh
            });
            self.hear(active);
            let round = now >= active.next_send;
            if round {
                active.next_send = now + pace.interval;
                self.send(active, false);
            }
            let outcome = self.decide(active);
            if active.outcome != outcome {
                let before = std::mem::replace(&mut active.outcome, outcome.clone());
                let heirs = self.shift_mirror(active, &before);
                let moved = nodes(&before) != nodes(&outcome);
                self.link.send(Message::Carriers(outcome, heirs));
                if moved {
                    // Others need not wait for the next round to learn what we carry or let go.
                    self.send(active, false);
                }
            }
            self.tell_mirror(active, round);
        }
    }

    /// Decides anew under what the Leases say, and tells their keeper what we would have.
    fn decide(&self, active: &mut Active) -> Outcome {
        let held = self.keeper.as_ref().map(Keeper::held).unwrap_or_default();
        let fence = self.fence(&held);
        let now = self.started.elapsed();
        let mut outcome = active.election.decide(&mut active.liveness, &fence, now);
        if let Some(keeper) = &self.keeper {
            let carriers: BTreeSet<&str> = outcome.carried.values().filter_map(|c| c.node.as_deref()).collect();
            // Of a node that falls silent, who would take something over from it watches the Lease, and nobody else.
            let ours_next = |c: &&Carried| c.next.as_deref() == Some(self.own.as_str());
            let heir_of: BTreeSet<&str> =
                outcome.carried.values().filter(ours_next).filter_map(|c| c.node.as_deref()).collect();
            let silent = active.liveness.silent(SUSPECT, now);
            keeper.wish(Wish {
                wanted: active.election.wanted().clone(),
                suspects: silent.filter(|node| heir_of.contains(node)).map(str::to_owned).collect(),
                carriers: carriers.len(),
                leave: false,
            });
        }
        outcome.denied = held.denied;
        outcome
    }

    fn fence(&self, held: &Held) -> Fence {
        let since_start = |at: Instant| at.saturating_duration_since(self.started);
        Fence {
            // Where the API server does not let us use them the majority alone fences, and the status says so.
            used: self.keeper.is_some() && held.denied.is_none(),
            until: held.until.map(since_start),
            ours: held.ours.clone(),
            others: held.others.iter().map(|(address, since)| (*address, since_start(*since))).collect(),
            patience: held.patience,
            heard: held.heard.map(since_start),
        }
    }

    /// Follows addresses and their next in line; gives back the flows of what has come here.
    fn shift_mirror(&self, active: &mut Active, before: &Outcome) -> Vec<Mapping> {
        let mut heirs = Vec::new();
        let mut heard_of = false;
        for (address, carried) in &active.outcome.carried {
            let ours = |outcome: Option<&Carried>| outcome.and_then(|c| c.node.as_ref()) == Some(&self.own);
            let old = before.carried.get(address);
            match (ours(old), ours(Some(carried))) {
                (false, true) => heirs.extend(active.mirror.inherit(*address)),
                (true, false) => active.mirror.lose(*address),
                (true, true) if old.map(|c| &c.next) != Some(&carried.next) => active.mirror.tell_all(*address),
                _ => {}
            }
            heard_of |= ours(Some(carried)) && carried.next.is_some();
        }
        self.shared.mirror.want(heard_of);
        heirs
    }

    /// Tells the next in line what flows have begun and ended.
    fn tell_mirror(&self, active: &mut Active, round: bool) {
        while let Some((mapping, lives)) = self.shared.mirror.take() {
            active.mirror.note(mapping, lives);
        }
        match self.shared.mirror.take_lost() {
            0 => {}
            lost => tracing::warn!(lost, "flows that will not outlive this gateway: too many began at once"),
        }
        let carried = &active.outcome.carried;
        let next = |address: IpAddr| carried.get(&address).and_then(|c| c.next.clone());
        for (peer, datagrams) in active.mirror.due(next, round) {
            let Some((socket, to)) = self.way(&peer) else { continue };
            for datagram in datagrams {
                let _ = socket.send_to(&datagram, SocketAddr::new(to, self.port));
            }
        }
    }

    /// The next order; waits for one, or for a datagram.
    fn next_order(&self, active: bool) -> Option<Order> {
        if !active {
            return match self.topology.placement == Placement::default() {
                true => Some(self.inbox.recv().unwrap_or(Order::Stop)),
                false => self.inbox.try_recv().ok(),
            };
        }
        let order = match self.inbox.try_recv() {
            Ok(order) => return Some(order),
            Err(crossbeam::channel::TryRecvError::Disconnected) => return Some(Order::Stop),
            Err(crossbeam::channel::TryRecvError::Empty) => None,
        };
        let mut fds: Vec<PollFd<'_>> = self.sockets.iter().map(|(_, s)| PollFd::new(s, PollFlags::IN)).collect();
        let nap = Timespec { tv_sec: 0, tv_nsec: NAP.subsec_nanos().into() };
        let _ = poll(&mut fds, Some(&nap));
        order
    }

    fn open(&mut self) {
        for own in &self.topology.own {
            if self.sockets.iter().any(|(address, _)| address == own) {
                continue;
            }
            match UdpSocket::bind((*own, self.port)).and_then(|s| s.set_nonblocking(true).map(|()| s)) {
                Ok(socket) => self.sockets.push((*own, socket)),
                Err(error) => {
                    tracing::debug!(%error, address = %own, port = self.port, "cannot listen for other nodes")
                }
            }
        }
    }

    fn hear(&self, active: &mut Active) {
        let mut room = [0u8; 2048];
        for (_, socket) in &self.sockets {
            // Bounded: a flood must not keep us from speaking.
            for _ in 0..256 {
                let Ok((length, from)) = socket.recv_from(&mut room) else { break };
                let Some(peer) = active.by_address.get(&from.ip()).cloned() else { continue };
                if active.mirror.heard(&room[..length], self.started.elapsed()) {
                    continue;
                }
                let Some(datagram) = Datagram::read(&room[..length]) else { continue };
                active.take(&peer, &datagram, self.started.elapsed());
            }
        }
    }

    /// Sends a sign of life to every peer that has to do with addresses that move, or with whom we have.
    fn send(&self, active: &Active, leaving: bool) {
        let placement = &self.topology.placement;
        let we_may = placement.names(&self.own);
        let mut told = active.election.tell();
        for peer in self.topology.peers.keys() {
            if !we_may && !placement.names(peer) {
                continue;
            }
            let Some((socket, to)) = self.way(peer) else { continue };
            for datagram in &mut told {
                datagram.leaving = leaving;
                datagram.sent = self.started.elapsed().as_nanos() as u64;
                datagram.echo = active.sent.get(peer).copied().unwrap_or(0);
                let _ = socket.send_to(&datagram.write(), SocketAddr::new(to, self.port));
            }
        }
    }

    /// The socket and the address by which a peer is reached.
    fn way(&self, peer: &str) -> Option<(&UdpSocket, IpAddr)> {
        let addresses = self.topology.peers.get(peer)?;
        self.sockets.iter().find_map(|(own, socket)| {
            let same = |a: &&IpAddr| a.is_ipv4() == own.is_ipv4();
            Some((socket, *addresses.iter().find(same)?))
        })
    }

    fn take_leave(&self, active: &Active) {
        // Twice: nobody repeats it for us.
        for _ in 0..2 {
            self.send(active, true);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Active {
    fn know(&mut self, topology: &Topology) {
        self.liveness.expect(topology.peers.keys().cloned());
        self.election.place(topology.placement.clone(), topology.unready.clone());
        let addresses = topology.peers.iter().flat_map(|(name, list)| list.iter().map(|a| (*a, name.clone())));
        self.by_address = addresses.collect();
    }

    fn take(&mut self, peer: &str, datagram: &Datagram, now: Duration) {
        let echoes = (datagram.echo != 0).then(|| Duration::from_nanos(datagram.echo));
        if datagram.leaving {
            self.liveness.left(peer);
        } else {
            self.liveness.heard(peer, now, echoes.filter(|sent| *sent <= now));
        }
        self.election.told(peer, datagram);
        self.sent.insert(peer.to_owned(), datagram.sent);
    }
}

fn nodes(outcome: &Outcome) -> BTreeMap<IpAddr, Option<String>> {
    outcome.carried.iter().map(|(address, carried)| (*address, carried.node.clone())).collect()
}
