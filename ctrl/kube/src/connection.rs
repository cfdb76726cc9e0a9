//! The way to the API server, and what may go wrong on it.
//!
//! Owner: the runtime of the thread `kube`. Credentials are a kubeconfig file or the pod's service account. A token that the
//! server refuses is read from its file again at once: kube's client looks at the file once a minute, and a token that was
//! exchanged in between must not cost that minute. The same goes for the CA, which it reads once. Every request but a watch ends within [`REQUEST`].

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::de::DeserializeOwned;

/// Longest wait for an answer that is not a watch.
const REQUEST: Duration = Duration::from_secs(30);
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Why the API server did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// 401: the credentials are not valid (any more).
    #[error("the API server refuses our credentials: {0}")]
    Unauthorized(String),
    /// 403: RBAC does not allow it.
    #[error("forbidden: {0}")]
    Forbidden(String),
    /// 404: no such object, or no such kind.
    #[error("not found: {0}")]
    NotFound(String),
    /// 409: somebody else has changed or made the object.
    #[error("conflict: {0}")]
    Conflict(String),
    /// 410: the server does not remember that version.
    #[error("too old: {0}")]
    Gone(String),
    /// Any other answer that is a refusal.
    #[error("{code}: {message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// What the server said.
        message: String,
    },
    /// No answer.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// What answers is not the API server that we know.
    #[error(
        "the API server's certificate is not accepted: {0}; the CA is the kubeconfig's certificate-authority, or ca.crt of \
         the service account"
    )]
    Certificate(String),
    /// No usable kubeconfig or service account.
    #[error("no credentials for the API server: {0}")]
    Credentials(String),
}

impl ApiError {
    /// The error of an API status.
    pub fn of_status(code: u16, message: String) -> ApiError {
        match code {
            401 => ApiError::Unauthorized(message),
            403 => ApiError::Forbidden(message),
            404 => ApiError::NotFound(message),
            409 => ApiError::Conflict(message),
            410 => ApiError::Gone(message),
            code => ApiError::Refused { code, message },
        }
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => ApiError::of_status(status.code, status.message),
            kube::Error::SerdeError(e) => ApiError::Unreachable(format!("an answer that is not JSON: {e}")),
            other => match chain(&other) {
                // The words of rustls, whose type is wrapped out of sight by the HTTP client.
                text if text.contains("invalid peer certificate") => ApiError::Certificate(text),
                text => ApiError::Unreachable(text),
            },
        }
    }
}

/// `HOST:PORT` that a kubeconfig's current context connects to: its proxy, where it names one, else the API server.
pub fn server_of(kubeconfig: &Path) -> Result<String, ApiError> {
    let wrong = |why: String| ApiError::Credentials(format!("{}: {why}", kubeconfig.display()));
    let file = Kubeconfig::read_from(kubeconfig).map_err(|e| wrong(chain(&e)))?;
    let current = file.current_context.ok_or_else(|| wrong("no current-context".to_owned()))?;
    let context = file.contexts.into_iter().find(|c| c.name == current).and_then(|c| c.context);
    let context = context.ok_or_else(|| wrong(format!("no context {current:?}")))?;
    let cluster = file.clusters.into_iter().find(|c| c.name == context.cluster).and_then(|c| c.cluster);
    let cluster = cluster.ok_or_else(|| wrong(format!("no cluster {:?}", context.cluster)))?;
    let url = cluster.proxy_url.filter(|url| !url.is_empty()).or(cluster.server);
    let url = url.ok_or_else(|| wrong(format!("cluster {:?} has no server", context.cluster)))?;
    let uri: http::Uri = url.parse().map_err(|e| wrong(format!("server {url:?}: {e}")))?;
    let host = uri.host().ok_or_else(|| wrong(format!("server {url:?} names no host")))?;
    let port = uri.port_u16().unwrap_or(match uri.scheme_str() {
        Some("http") => 80,
        Some("socks5") => 1080,
        _ => 443,
    });
    Ok(format!("{host}:{port}"))
}

/// An error with its causes: "client error (Connect)" alone says nothing.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// A connection to one API server; cheap to share.
#[derive(Debug)]
pub struct Connection {
    kubeconfig: Option<PathBuf>,
    client: Mutex<Option<Known>>,
}

#[derive(Clone)]
struct Known {
    client: Client,
    namespace: String,
    /// Counts up with each time the credentials were read.
    number: u64,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Known({})", self.number)
    }
}

impl Connection {
    /// With a kubeconfig file, or else the pod's service account. Nothing is read yet.
    pub fn new(kubeconfig: Option<PathBuf>) -> Arc<Connection> {
        Arc::new(Connection { kubeconfig, client: Mutex::new(None) })
    }

    /// The namespace of the credentials: where our own Leases live.
    pub async fn namespace(&self) -> Result<String, ApiError> {
        Ok(self.known().await?.namespace)
    }

    /// The client, made of the credentials where there is none yet.
    pub async fn client(&self) -> Result<Client, ApiError> {
        Ok(self.known().await?.client)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Known>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn known(&self) -> Result<Known, ApiError> {
        if let Some(known) = self.lock().clone() {
            return Ok(known);
        }
        let made = self.make().await?;
        let mut slot = self.lock();
        Ok(slot.get_or_insert(made).clone())
    }

    async fn make(&self) -> Result<Known, ApiError> {
        let wrong = |error: &(dyn std::error::Error + 'static)| ApiError::Credentials(chain(error));
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|e| wrong(&e))?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options).await.map_err(|e| wrong(&e))?
            }
            None => Config::incluster().map_err(|e| wrong(&e))?,
        };
        config.connect_timeout = Some(CONNECT);
        // The loops here wait and try again by themselves, and say so in the status.
        config.default_retry = false;
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|e| wrong(&e))?;
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Known { client, namespace, number })
    }

    /// Runs a request with the client; once more with credentials read anew where the server refuses the present ones, or
    /// bears a certificate that they do not cover: token and CA are files that are exchanged under us.
    pub async fn with<T, F>(&self, request: impl Fn(Client) -> F) -> Result<T, ApiError>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let known = self.known().await?;
        match request(known.client).await.map_err(ApiError::from) {
            Err(ApiError::Unauthorized(_) | ApiError::Certificate(_)) => {
                let current = self.lock().as_ref().map(|k| k.number);
                if current == Some(known.number) {
                    *self.lock() = None;
                }
                request(self.known().await?.client).await.map_err(ApiError::from)
            }
            other => other,
        }
    }

    /// Sends a request and reads the whole answer as JSON.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, ApiError> {
        let request = request.map_err(|e| ApiError::Refused { code: 400, message: e.to_string() })?;
        let send = |client: Client| {
            let request = request.clone();
            async move { client.request::<T>(request).await }
        };
        match tokio::time::timeout(REQUEST, self.with(send)).await {
            Ok(done) => done,
            Err(_) => Err(ApiError::Unreachable(format!("no answer within {} s", REQUEST.as_secs()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_a_kubeconfig_is_that_of_its_current_context() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        let server = |url: &str, current: &str| {
            let text = format!(
                "{{apiVersion: v1, kind: Config, current-context: {current}, users: [{{name: u, user: {{}}}}], \
                 contexts: [{{name: x, context: {{cluster: two, user: u}}}}], \
                 clusters: [{{name: one, cluster: {{server: 'https://one:1'}}}}, {{name: two, cluster: {{{url}}}}}]}}"
            );
            std::fs::write(&path, text).unwrap();
            server_of(&path).map_err(|e| e.to_string())
        };
        assert_eq!(server("server: 'https://192.0.2.1:6443'", "x").as_deref(), Ok("192.0.2.1:6443"));
        assert_eq!(server("server: 'https://[2001:db8::1]/k8s'", "x").as_deref(), Ok("[2001:db8::1]:443"));
        assert_eq!(server("server: 'http://api.example'", "x").as_deref(), Ok("api.example:80"));
        let proxied = "server: 'https://192.0.2.1:6443', proxy-url: 'http://192.0.2.9:3128'";
        assert_eq!(server(proxied, "x").as_deref(), Ok("192.0.2.9:3128"));
        for (url, current, part) in [
            ("server: 'https://a:1'", "y", "no context \"y\""),
            ("", "x", "has no server"),
            ("server: '/x'", "x", "no host"),
        ] {
            let error = server(url, current).unwrap_err();
            assert!(error.contains(part) && error.contains("kubeconfig"), "{error}");
        }
        assert!(server_of(Path::new("/no/such/file")).unwrap_err().to_string().contains("/no/such/file"));
    }
}
