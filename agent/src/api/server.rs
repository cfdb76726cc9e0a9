//! The HTTP server of the agent: one thread, one runtime, the Unix socket and the metrics address.
//!
//! Source: RFC 9112 by way of hyper. Invariants: a client that says nothing, half of something or nonsense is cut after
//! [`Limits::head`] and keeps nobody else waiting; a connection that does not stream ends after [`Limits::connection`];
//! where [`CONNECTIONS`] of an address are open, the one whose client has been silent longest is cut for a new one, and only
//! where all are being served the new one waits. Workers never run here.

use super::Agent;
use super::endpoint::{EndpointError, Socket, bind_metrics};
use super::routes::{self, CNI_CALLS, Desk, READS};
use super::seat::{Seat, Silent};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, header};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, oneshot, watch};

/// Connections that are served at once, for each of the two addresses.
const CONNECTIONS: usize = 256;
/// How long answers that are under way may take once the server is to end.
const FAREWELL: Duration = Duration::from_secs(2);
/// Pause after the kernel refused to give a connection (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How patient the server is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the head of a request, also for the next one of a connection that is kept open.
    pub head: Duration,
    /// For a connection as a whole, unless it streams events.
    pub connection: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { head: Duration::from_secs(10), connection: Duration::from_secs(300) }
    }
}

/// A server with both addresses bound; nobody is answered yet.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    metrics: std::net::TcpListener,
    limits: Limits,
}

/// Binds both addresses and answers until `shutdown` is ready. Errors only where an address cannot be had.
pub async fn serve(
    socket: &Path,
    metrics: SocketAddr,
    agent: Arc<dyn Agent>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), EndpointError> {
    Server::bind(socket, metrics)?.run(agent, shutdown).await
}

impl Server {
    /// Takes the socket and the metrics address.
    pub fn bind(socket: &Path, metrics: SocketAddr) -> Result<Server, EndpointError> {
        let metrics = bind_metrics(metrics)?;
        Ok(Server { socket: Socket::bind(socket)?, metrics, limits: Limits::default() })
    }

    /// The same server with other patience.
    pub fn with_limits(self, limits: Limits) -> Server {
        Server { limits, ..self }
    }

    /// The metrics address, with the port that the kernel chose where 0 was asked for.
    pub fn metrics_address(&self) -> io::Result<SocketAddr> {
        self.metrics.local_addr()
    }

    /// Answers on a thread of its own, named `api`, until the handle is stopped or dropped.
    pub fn start(self, agent: Arc<dyn Agent>) -> io::Result<Running> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(READS + CNI_CALLS)
            .thread_name("api-call")
            .build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("api".to_owned()).spawn(move || {
            let done = runtime.block_on(self.run(agent, async {
                let _ = stopped.await;
            }));
            // A call that hangs must not keep the agent from ending.
            runtime.shutdown_timeout(FAREWELL);
            if let Err(error) = done {
                tracing::error!(%error, "the agent's API has ended");
            }
        })?;
        Ok(Running { stop: Some(stop), thread: Some(thread) })
    }

    /// Answers until `shutdown` is ready; then streams end and answers under way get [`FAREWELL`].
    pub async fn run(self, agent: Arc<dyn Agent>, shutdown: impl Future<Output = ()>) -> Result<(), EndpointError> {
        let path = self.socket.path().to_owned();
        let failed = |source| EndpointError::Socket { path: path.clone(), source };
        let unix = self.socket.listener().and_then(UnixListener::from_std).map_err(failed)?;
        let address = self.metrics.local_addr().map_err(failed)?;
        let tcp = TcpListener::from_std(self.metrics);
        let tcp = tcp.map_err(|source| EndpointError::Metrics { address, source })?;
        let (end, ending) = watch::channel(false);
        let desk = Desk::new(agent, ending.clone());
        let api = Hall::new(routes::socket(desk.clone()), self.limits, ending.clone());
        let scrape = Hall::new(routes::metrics(desk), self.limits, ending);
        tokio::select! {
            () = api.accept(async || unix.accept().await.map(|(stream, _)| stream)) => {}
            () = scrape.accept(async || tcp.accept().await.map(|(stream, _)| stream)) => {}
            () = shutdown => {}
        }
        drop(self.socket);
        let _ = end.send(true);
        let _ = tokio::time::timeout(FAREWELL, async {
            api.emptied().await;
            scrape.emptied().await;
        })
        .await;
        Ok(())
    }
}

/// A server that answers on its own thread.
#[derive(Debug)]
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Ends it: the socket is gone and its thread has ended when this returns (a few seconds at most).
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the agent's API had panicked");
        }
    }

    /// Whether it still answers.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The connections of one address.
struct Hall {
    router: Router,
    limits: Limits,
    ending: watch::Receiver<bool>,
    places: Arc<Semaphore>,
    silent: Arc<Silent>,
}

impl Hall {
    fn new(router: Router, limits: Limits, ending: watch::Receiver<bool>) -> Hall {
        Hall { router, limits, ending, places: Arc::new(Semaphore::new(CONNECTIONS)), silent: Arc::default() }
    }

    /// Takes connections for ever.
    async fn accept<S>(&self, mut next: impl AsyncFnMut() -> io::Result<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        loop {
            let stream = match next().await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection to the agent's API");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if self.places.available_permits() == 0 {
                self.silent.cut_longest();
            }
            let Ok(place) = self.places.clone().acquire_owned().await else { return };
            let seat = Seat::new(self.silent.clone());
            let served = converse(stream, seat, self.router.clone(), self.limits, self.ending.clone());
            tokio::spawn(async move {
                served.await;
                drop(place);
            });
        }
    }

    /// Waits until no connection is left.
    async fn emptied(&self) {
        let _ = self.places.acquire_many(CONNECTIONS as u32).await;
    }
}

/// Serves one connection to its end.
pub(crate) async fn converse<S>(
    stream: S,
    seat: Seat,
    router: Router,
    limits: Limits,
    mut ending: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let streams = Arc::new(AtomicBool::new(false));
    let router = TowerToHyperService::new(router);
    let noted = streams.clone();
    let served = seat.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        // A request with a body is one once the body is there.
        if request.body().is_end_stream() {
            served.speaks();
        }
        request.extensions_mut().insert(served.clone());
        let (answer, noted, served) = (hyper::service::Service::call(&router, request), noted.clone(), served.clone());
        async move {
            let answer: Response<Body> = answer.await?;
            let kind = answer.headers().get(header::CONTENT_TYPE);
            let streams = kind.is_some_and(|kind| kind == routes::STREAM_TYPE);
            noted.store(streams, Ordering::Relaxed);
            if !streams {
                served.falls_silent();
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let deadline = tokio::time::sleep(limits.connection);
    tokio::pin!(deadline);
    let (mut overdue, mut leaving) = (false, false);
    loop {
        tokio::select! {
            // Whatever went wrong is the client's: it has been cut, and others do not notice.
            _ = connection.as_mut() => return,
            () = seat.cut() => return,
            () = deadline.as_mut(), if !overdue => {
                overdue = true;
                if !streams.load(Ordering::Relaxed) {
                    return;
                }
            }
            _ = ending.wait_for(|ending| *ending), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
