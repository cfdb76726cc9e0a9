//! The routes of the agent's socket and of its metrics address.
//!
//! Owner: the API thread, which only passes on: every call of the [`Agent`] runs on a thread for blocking work. Reads and
//! CNI calls have places of their own, so that neither keeps the other waiting. Every error is a JSON object with `error`.

use super::Agent;
use super::report::{
    DEFAULT_FLOWS, FlowFilter, MAX_FLOWS, ObserveFilter, State as NodeState, StatusReport, TryRequest,
};
use super::seat::Seat;
use crate::metrics::{self, Sample};
use axum::body::{Body, Bytes};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use serde::Serialize;
use serde_json::json;
use sluice_cni::protocol::{CniRequest, ErrorBody, ErrorCode, Verb};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

/// Longest body of a request, in bytes.
pub const BODY_LIMIT: usize = 1024 * 1024;
/// Reads that run at once.
pub(super) const READS: usize = 8;
/// CNI calls that wait at once: they are served together, so more of them cost little.
pub(super) const CNI_CALLS: usize = 128;
/// Readers of events at once.
const OBSERVERS: usize = 16;
/// Trials of policies at once, and the longest body of one.
const TRIALS: usize = 4;
const TRIAL_LIMIT: usize = 64 * 1024 * 1024;
/// Most events that are written together.
const EVENTS_AT_ONCE: usize = 64;
/// The `Content-Type` of a stream of JSON objects, one a line.
pub(super) const STREAM_TYPE: &str = "application/x-ndjson";
/// How long a request's body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What every handler shares.
#[derive(Clone)]
pub(super) struct Desk {
    agent: Arc<dyn Agent>,
    reads: Arc<Semaphore>,
    cni: Arc<Semaphore>,
    observers: Arc<Semaphore>,
    trials: Arc<Semaphore>,
    /// True once the server is to end: streams end with it.
    ending: watch::Receiver<bool>,
}

impl Desk {
    pub(super) fn new(agent: Arc<dyn Agent>, ending: watch::Receiver<bool>) -> Desk {
        let places = |count| Arc::new(Semaphore::new(count));
        Desk {
            agent,
            reads: places(READS),
            cni: places(CNI_CALLS),
            observers: places(OBSERVERS),
            trials: places(TRIALS),
            ending,
        }
    }

    /// Runs one call of the agent on a thread where it may block.
    async fn ask<T: Send + 'static>(
        &self,
        places: &Arc<Semaphore>,
        call: impl FnOnce(&dyn Agent) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let gone = || Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "the agent failed on this request; see its log");
        let place = places.clone().acquire_owned().await.map_err(|_| gone())?;
        let agent = self.agent.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let _place = place;
            call(&*agent)
        });
        answer.await.map_err(|_| gone())
    }

    async fn read<T: Serialize + Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Agent) -> T + Send + 'static,
    ) -> Result<Json<T>, Refused> {
        self.ask(&self.reads, call).await.map(Json)
    }
}

/// An answer that says what is wrong.
struct Refused {
    status: StatusCode,
    error: String,
}

impl Refused {
    fn new(status: StatusCode, error: impl Into<String>) -> Refused {
        Refused { status, error: error.into() }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.error }))).into_response()
    }
}

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Self {
        Refused::new(rejection.status(), rejection.body_text())
    }
}

/// The routes of the Unix socket.
pub(super) fn socket(desk: Desk) -> Router {
    let verbs = [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status];
    let cni = verbs.into_iter().fold(Router::new(), |router, verb| {
        router.route(verb.path(), post(move |State(desk): State<Desk>, request: Request| cni(verb, desk, request)))
    });
    cni.route("/v1/status", get(|State(desk): State<Desk>| async move { desk.read(|a| a.status()).await }))
        .route("/v1/services", get(|State(desk): State<Desk>| async move { desk.read(|a| a.services()).await }))
        .route("/v1/pods", get(|State(desk): State<Desk>| async move { desk.read(|a| a.pods()).await }))
        .route("/v1/policies", get(|State(desk): State<Desk>| async move { desk.read(|a| a.policies()).await }))
        .route("/v1/counters", get(|State(desk): State<Desk>| async move { desk.read(|a| a.counters()).await }))
        .route("/v1/generation", get(|State(desk): State<Desk>| async move { desk.read(|a| a.generation()).await }))
        .route("/v1/vfs", get(|State(desk): State<Desk>| async move { desk.read(|a| a.vfs()).await }))
        .route("/v1/flows", get(flows))
        .route("/v1/observe", get(observe))
        .route("/v1/policy/try", post(policy_try).layer(DefaultBodyLimit::max(TRIAL_LIMIT)))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(desk)
}

/// The routes of the metrics address.
pub(super) fn metrics(desk: Desk) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(desk)
}

async fn unknown(uri: axum::http::Uri) -> Refused {
    Refused::new(StatusCode::NOT_FOUND, format!("there is no {}", uri.path()))
}

async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> Refused {
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}

async fn flows(
    State(desk): State<Desk>,
    query: Result<Query<FlowFilter>, QueryRejection>,
) -> Result<impl IntoResponse, Refused> {
    let Query(filter) = query?;
    let limit = filter.limit.unwrap_or(DEFAULT_FLOWS).min(MAX_FLOWS);
    desk.read(move |agent| agent.flows(&filter, limit)).await
}

async fn observe(
    State(desk): State<Desk>,
    query: Result<Query<ObserveFilter>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(filter) = query?;
    let Ok(place) = desk.observers.clone().try_acquire_owned() else {
        let error = format!("{OBSERVERS} readers of events are connected already");
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, error));
    };
    let events = desk.ask(&desk.reads, move |agent| agent.observe(filter)).await?;
    Ok(streamed(&desk, events, place))
}

/// What comes out of a channel as lines of JSON, until the sender or the server ends.
fn streamed<T: Serialize + Send + 'static>(
    desk: &Desk,
    items: mpsc::Receiver<T>,
    place: OwnedSemaphorePermit,
) -> Response {
    let start = (items, desk.ending.clone(), place);
    let lines = stream::unfold(start, |(mut items, mut ending, place)| async move {
        let mut batch = Vec::new();
        let count = tokio::select! {
            count = items.recv_many(&mut batch, EVENTS_AT_ONCE) => count,
            _ = ending.wait_for(|ending| *ending) => 0,
        };
        if count == 0 {
            return None;
        }
        let mut text = Vec::new();
        for item in &batch {
            if serde_json::to_writer(&mut text, item).is_ok() {
                text.push(b'\n');
            }
        }
        Some((Ok::<_, Infallible>(Bytes::from(text)), (items, ending, place)))
    });
    let head = [(header::CONTENT_TYPE, STREAM_TYPE), (header::CACHE_CONTROL, "no-store")];
    (head, Body::from_stream(lines)).into_response()
}

async fn policy_try(
    State(desk): State<Desk>,
    body: Result<Json<TryRequest>, JsonRejection>,
) -> Result<Response, Refused> {
    let Json(request) = body.map_err(|rejection| Refused::new(rejection.status(), rejection.body_text()))?;
    let Ok(place) = desk.trials.clone().try_acquire_owned() else {
        let error = format!("{TRIALS} sets of policies are being tried already");
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, error));
    };
    let reports = desk.ask(&desk.reads, move |agent| agent.policy_try(request)).await?;
    let reports = reports.map_err(|error| Refused::new(StatusCode::UNPROCESSABLE_ENTITY, error))?;
    Ok(streamed(&desk, reports, place))
}

async fn cni(verb: Verb, desk: Desk, request: Request) -> Response {
    let seat = request.extensions().get::<Seat>().cloned();
    let body = request.into_body();
    let refuse = |status: StatusCode, code, msg: &str, details: String| {
        (status, Json(ErrorBody::new(code, msg, details))).into_response()
    };
    let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, BODY_LIMIT)).await;
    let body = match read {
        Err(_) => {
            return refuse(StatusCode::REQUEST_TIMEOUT, ErrorCode::IO, "the request did not come whole", String::new());
        }
        Ok(Err(error)) => {
            let msg = "the request cannot be read, or is longer than 1 MiB";
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::IO, msg, error.to_string());
        }
        Ok(Ok(body)) => body,
    };
    if let Some(seat) = seat {
        seat.speaks();
    }
    let request: CniRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            return refuse(
                StatusCode::BAD_REQUEST,
                ErrorCode::DECODE,
                "the request is not understood",
                error.to_string(),
            );
        }
    };
    match desk.ask(&desk.cni, move |agent| agent.cni(verb, request)).await {
        Ok(Ok(result)) => Json(result).into_response(),
        Ok(Err(error)) => (status_of(error.code), Json(error)).into_response(),
        Err(gone) => refuse(gone.status, ErrorCode::AGENT_REFUSED, &gone.error, String::new()),
    }
}

/// The HTTP status that goes with an error for the runtime.
fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::TRY_AGAIN_LATER | ErrorCode::NOT_AVAILABLE | ErrorCode::NOT_AVAILABLE_PODS_LIMITED => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ErrorCode::UNKNOWN_CONTAINER => StatusCode::NOT_FOUND,
        ErrorCode::INCOMPATIBLE_VERSION
        | ErrorCode::UNSUPPORTED_FIELD
        | ErrorCode::INVALID_ENVIRONMENT
        | ErrorCode::INVALID_CONFIG
        | ErrorCode::DECODE => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn scrape(State(desk): State<Desk>) -> Result<Response, Refused> {
    let sample = |agent: &dyn Agent| Sample {
        status: agent.status(),
        counters: agent.counters(),
        generation: agent.generation(),
        vfs: agent.vfs(),
    };
    let text = desk.ask(&desk.reads, move |agent| metrics::render(sample(agent))).await?;
    let failed = |_| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written as text");
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text.map_err(failed)?).into_response())
}

/// Alive: the agent answers and every worker's thread runs. Says nothing of the cluster's API server: a node that has
/// lost it goes on with its last tables and must not be restarted for that.
async fn healthz(State(desk): State<Desk>) -> Result<&'static str, Refused> {
    let status = desk.ask(&desk.reads, |agent| agent.status()).await?;
    match status.workers.iter().find(|worker| !worker.alive) {
        None => Ok("ok\n"),
        Some(worker) => {
            Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, format!("worker {} does not turn", worker.id)))
        }
    }
}

/// Ready: in sync with the cluster's source, every worker alive, frames left, pods can be added.
async fn readyz(State(desk): State<Desk>) -> Result<&'static str, Refused> {
    let StatusReport { state, unready, .. } = desk.ask(&desk.reads, |agent| agent.status()).await?;
    if let Some(why) = unready {
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, why));
    }
    match state {
        NodeState::Ready | NodeState::Degraded => Ok("ok\n"),
        NodeState::Starting => Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "starting")),
    }
}
