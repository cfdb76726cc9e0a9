//! Health-check node ports: load balancers ask on them whether a Service has ready pods on this node; and the one port on which
//! they ask whether the node as a whole should be sent connections.
//!
//! Owner: a thread of its own; control tells it what is wanted. Source: core/v1 `Service.spec.healthCheckNodePort`, and the
//! answers that load balancers know from kube-proxy. Invariants: a port is open exactly while a Service wants it; one that
//! cannot be had is a problem of its Service and tried again every second; a client that says nothing is cut.

use super::control::Control;
use crate::api::problem::Problem;
use crate::api::seat::{Seat, Silent};
use crate::api::server::{Limits, converse};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, Uri, header};
use axum::response::IntoResponse;
use serde_json::json;
use sluice_ctrl::compile::HealthCheck;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// How long a port that cannot be had is left alone.
const AGAIN: Duration = Duration::from_secs(1);
/// Connections that are served at once on each port.
const CONNECTIONS: usize = 64;
/// How patient a port is.
const LIMITS: Limits = Limits { head: Duration::from_secs(5), connection: Duration::from_secs(10) };

/// What the node shall answer.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wanted {
    checks: Vec<HealthCheck>,
    /// The node programs what it is told.
    healthy: bool,
    /// Where to listen; empty: on every address of the node.
    addresses: Vec<IpAddr>,
    /// The port for the whole node; none: it is not asked for.
    whole: Option<Whole>,
    ending: bool,
}

/// The port on which load balancers ask after the whole node, as they do of kube-proxy (KEP-3836).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// The port.
    pub port: u16,
    /// The node is about to go: no new connections.
    pub leaving: bool,
}

impl Wanted {
    /// Every port, and whose it is.
    fn ports(&self) -> impl Iterator<Item = (u16, String)> {
        let checks = self.checks.iter().map(|check| (check.port, format!("Service {}", check.service)));
        checks.chain(self.whole.map(|whole| (whole.port, "the whole node".to_owned())))
    }
}

/// Ports that cannot be had, and why.
type Failed = Arc<Mutex<BTreeMap<u16, String>>>;

/// The thread that answers.
#[derive(Debug)]
pub struct HealthPorts {
    wanted: watch::Sender<Wanted>,
    failed: Failed,
    thread: Option<JoinHandle<()>>,
}

impl HealthPorts {
    /// Starts the thread; nothing is open yet.
    pub fn start() -> std::io::Result<HealthPorts> {
        let (wanted, orders) = watch::channel(Wanted::default());
        let failed = Failed::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let keeper = Keeper { open: BTreeMap::new(), failed: failed.clone() };
        let thread = std::thread::Builder::new()
            .name("health-ports".to_owned())
            .spawn(move || runtime.block_on(keeper.run(orders)))?;
        Ok(HealthPorts { wanted, failed, thread: Some(thread) })
    }

    /// Says what is to be answered from now on.
    pub fn want(&self, checks: &[HealthCheck], healthy: bool, addresses: &[IpAddr], whole: Option<Whole>) {
        self.wanted.send_if_modified(|now| {
            let same =
                now.checks == checks && now.healthy == healthy && now.addresses == addresses && now.whole == whole;
            if !same {
                *now = Wanted { checks: checks.to_vec(), healthy, addresses: addresses.to_vec(), whole, ending: false };
            }
            !same
        });
    }

    /// Ports that cannot be had, as problems of their Services.
    pub fn problems(&self) -> Vec<Problem> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = self.wanted.borrow();
        let of = |check: &HealthCheck| {
            let why = failed.get(&check.port)?;
            Some(Problem {
                object: Some(format!("Service/{}", check.service)),
                field: Some("spec.healthCheckNodePort".to_owned()),
                reason: format!("cannot listen on port {}: {why}; tried again every second", check.port),
                ..Problem::default()
            })
        };
        let whole = wanted.whole.and_then(|whole| {
            let why = failed.get(&whole.port)?;
            Some(Problem::plain(format!(
                "cannot listen on services.health_port {}: {why}; tried again every second. End kube-proxy, or set it to 0",
                whole.port
            )))
        });
        wanted.checks.iter().filter_map(of).chain(whole).collect()
    }
}

impl Drop for HealthPorts {
    fn drop(&mut self) {
        self.wanted.send_modify(|now| *now = Wanted { ending: true, ..Wanted::default() });
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of health-check ports had panicked");
        }
    }
}

impl Control {
    /// Tells the health-check ports what the tables in force say, and whether they can be believed.
    pub(super) fn show_health(&self) {
        let healthy = self.compile_problem.is_none() && self.workers.iter().all(super::workers::Handle::is_alive);
        let addresses = match self.config.services.node_port_addresses.is_empty() {
            true => Vec::new(),
            false => self.publisher.current().tables.node.node_port_addresses.iter().map(|a| (*a).into()).collect(),
        };
        let leaving = self.cluster.nodes.get(&self.config.node).is_some_and(|node| node.leaving);
        let port = self.config.services.health_port;
        let whole = (self.following.is_some() && port != 0).then_some(Whole { port, leaving });
        self.health_ports.want(&self.publisher.current().health_checks, healthy, &addresses, whole);
    }
}

/// Opens and closes ports, inside the thread.
struct Keeper {
    open: BTreeMap<u16, (Vec<IpAddr>, JoinSet<()>)>,
    failed: Failed,
}

impl Keeper {
    async fn run(mut self, mut orders: watch::Receiver<Wanted>) {
        loop {
            let wanted = orders.borrow_and_update().clone();
            if wanted.ending {
                return;
            }
            self.open
                .retain(|port, (at, _)| *at == wanted.addresses && wanted.ports().any(|(wanted, _)| wanted == *port));
            // A port that has just been closed is free once its task has ended.
            tokio::task::yield_now().await;
            let mut failed = BTreeMap::new();
            for (port, whose) in wanted.ports() {
                if self.open.contains_key(&port) {
                    continue;
                }
                match listen(port, &wanted.addresses) {
                    Ok(listeners) => {
                        let mut tasks = JoinSet::new();
                        for listener in listeners {
                            tasks.spawn(answer_on(listener, port, orders.clone()));
                        }
                        self.open.insert(port, (wanted.addresses.clone(), tasks));
                    }
                    Err(error) => {
                        tracing::warn!(port, whose, %error, "no health-check port");
                        failed.insert(port, error.to_string());
                    }
                }
            }
            let retry = !failed.is_empty();
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
            tokio::select! {
                changed = orders.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(AGAIN), if retry => {}
            }
        }
    }
}

/// On these addresses; on all of the node where there are none.
fn listen(port: u16, addresses: &[IpAddr]) -> std::io::Result<Vec<TcpListener>> {
    let bind = |address: IpAddr| {
        let listener = TcpListener::bind(SocketAddr::new(address, port))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    if !addresses.is_empty() {
        return addresses.iter().map(|address| bind(*address)).collect();
    }
    match bind(Ipv6Addr::UNSPECIFIED.into()) {
        Ok(both) => Ok(vec![both]),
        // A kernel without IPv6.
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => Ok(vec![bind(Ipv4Addr::UNSPECIFIED.into())?]),
        Err(error) => Err(error),
    }
}

async fn answer_on(listener: TcpListener, port: u16, orders: watch::Receiver<Wanted>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let router = Router::new().fallback(answer).with_state((port, orders));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Dropped with this task: connections under way end when the port closes.
    let (_end, ending) = watch::channel(false);
    let mut conversations = JoinSet::new();
    let silent = Arc::new(Silent::default());
    loop {
        tokio::select! {
            taken = listener.accept() => {
                let Ok((stream, _)) = taken else { tokio::time::sleep(AGAIN).await; continue };
                if places.available_permits() == 0 {
                    silent.cut_longest();
                }
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let served = converse(stream, Seat::new(silent.clone()), router.clone(), LIMITS, ending.clone());
                conversations.spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Some(_) = conversations.join_next() => {}
        }
    }
}

/// On the port of the whole node: what `/healthz` and `/livez` say of a proxy that is well or not, of a node that stays or not.
fn answer_for_node(path: &str, healthy: bool, leaving: bool) -> axum::response::Response {
    let code = match path {
        "/healthz" if healthy && !leaving => StatusCode::OK,
        "/livez" if healthy => StatusCode::OK,
        "/healthz" | "/livez" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::NOT_FOUND,
    };
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    let body = json!({"serviceProxyHealthy": healthy, "nodeEligible": !leaving});
    (code, headers, format!("{body}\n")).into_response()
}

/// Any path, any method: 200 where a ready endpoint is here and the node is healthy, else 503.
async fn answer(State((port, orders)): State<(u16, watch::Receiver<Wanted>)>, uri: Uri) -> impl IntoResponse {
    let wanted = orders.borrow();
    if let Some(whole) = wanted.whole.filter(|whole| whole.port == port) {
        return answer_for_node(uri.path(), wanted.healthy, whole.leaving);
    }
    let check = wanted.checks.iter().find(|check| check.port == port);
    let (service, count) =
        check.map_or((Default::default(), 0), |check| (check.service.clone(), check.local_endpoints));
    let code = if count > 0 && wanted.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (HeaderName::from_static("x-load-balancing-endpoint-weight"), count.to_string()),
    ];
    let body = json!({
        "service": { "namespace": service.namespace, "name": service.name },
        "localEndpoints": count,
        "serviceProxyHealthy": wanted.healthy,
    });
    (code, headers, format!("{body}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_ctrl::model::NamespacedName;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    fn check(port: u16, local_endpoints: usize) -> HealthCheck {
        HealthCheck { port, service: NamespacedName::new("shop", "web"), local_endpoints }
    }

    /// Status line, headers and body; `None` while nobody listens.
    fn ask(address: &str, port: u16) -> Option<String> {
        ask_for("/any/path", address, port)
    }

    fn ask_for(path: &str, address: &str, port: u16) -> Option<String> {
        let mut stream = TcpStream::connect((address, port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
        for _ in 0..500 {
            if let Some(found) = found() {
                return found;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{what}: not within five seconds");
    }

    #[test]
    fn a_port_says_how_many_endpoints_are_here_as_long_as_it_is_wanted() {
        let (ports, port) = (HealthPorts::start().unwrap(), free_port());
        ports.want(&[check(port, 2)], true, &[], None);
        let text = until("an answer", || ask("127.0.0.1", port));
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        for line in
            ["content-type: application/json", "x-content-type-options: nosniff", "x-load-balancing-endpoint-weight: 2"]
        {
            assert!(text.to_lowercase().contains(line), "{line}: {text}");
        }
        let body: serde_json::Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let expected =
            json!({"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true});
        assert_eq!(body, expected);
        ports.want(&[check(port, 0)], true, &[], None);
        assert!(until("503", || ask("127.0.0.1", port).filter(|t| t.contains("503"))).contains("\"localEndpoints\":0"));
        ports.want(&[check(port, 2)], false, &[], None);
        until("503 while the node is not healthy", || {
            ask("127.0.0.1", port).filter(|t| t.contains("503") && t.contains("\"serviceProxyHealthy\":false"))
        });
        ports.want(&[], true, &[], None);
        until("a closed port", || ask("127.0.0.1", port).is_none().then_some(()));
        ports.want(&[check(port, 1)], true, &[], None);
        until("the same port again", || ask("127.0.0.1", port));
    }

    #[test]
    fn the_whole_node_is_healthy_until_it_is_about_to_go_and_alive_as_long_as_it_programs() {
        let (ports, port) = (HealthPorts::start().unwrap(), free_port());
        let codes = |what: &str, expected: [&str; 3]| {
            until(what, || {
                let of = |path: &str| Some(ask_for(path, "127.0.0.1", port)?.get(9..12)?.to_owned());
                let found = [of("/healthz")?, of("/livez")?, of("/other")?];
                (found == expected).then_some(())
            });
        };
        let whole = |leaving| Some(Whole { port, leaving });
        ports.want(&[], true, &[], whole(false));
        codes("a node that stays", ["200", "200", "404"]);
        ports.want(&[], true, &[], whole(true));
        codes("a node that goes", ["503", "200", "404"]);
        ports.want(&[], false, &[], whole(false));
        codes("a node that does not program", ["503", "503", "404"]);
        ports.want(&[], true, &[], None);
        until("a closed port", || ask("127.0.0.1", port).is_none().then_some(()));
    }

    #[test]
    fn a_port_that_another_has_is_a_problem_of_its_service_until_it_can_be_had() {
        let ports = HealthPorts::start().unwrap();
        let taken = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).unwrap();
        let port = taken.local_addr().unwrap().port();
        ports.want(&[check(port, 1)], true, &[], None);
        let problem = until("a problem", || ports.problems().pop());
        assert_eq!(problem.object.as_deref(), Some("Service/shop/web"));
        assert!(problem.reason.contains(&port.to_string()), "{problem}");
        drop(taken);
        until("an answer", || ask("127.0.0.1", port));
        until("no problem", || ports.problems().is_empty().then_some(()));
    }

    #[test]
    fn a_silent_client_keeps_nobody_waiting_and_addresses_are_kept_to() {
        let (ports, port) = (HealthPorts::start().unwrap(), free_port());
        ports.want(&[check(port, 1)], true, &["127.0.0.2".parse().unwrap()], None);
        until("an answer", || ask("127.0.0.2", port));
        assert_eq!(ask("127.0.0.1", port), None);
        let _silent: Vec<_> = (0..8).map(|_| TcpStream::connect(("127.0.0.2", port)).unwrap()).collect();
        assert!(ask("127.0.0.2", port).is_some());
    }
}
