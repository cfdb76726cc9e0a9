//! A blocking client of the agent's Unix socket, for the CNI shim and for the operator's command line.
//!
//! One connection per request. A request as a whole (connect, send, wait, read) has one deadline; a stream has none once
//! its head has arrived. Bodies beyond the limit are an error, not a truncation.
//! Source: `docs` on the agent's socket; `unix(7)`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::http::{self, Body, HttpError};

/// Most bytes of an answer's body that a client keeps unless told otherwise.
pub const DEFAULT_BODY_LIMIT: u64 = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket, or it may not be opened: the agent is not running, or not for us.
    #[error("sluiced cannot be reached at {socket}: {source}")]
    Unreachable {
        /// The socket's path.
        socket: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The deadline passed.
    #[error("sluiced did not answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke before the answer was whole.
    #[error("the connection to sluiced broke: {0}")]
    Broken(io::Error),
    /// What came back is no HTTP answer, or not the JSON that was expected.
    #[error("sluiced answered with something else than expected: {0}")]
    Malformed(String),
    /// The answer's body is longer than this client keeps.
    #[error("the answer of sluiced is longer than {0} bytes")]
    TooLong(u64),
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status code.
    pub status: u16,
    /// The body without its transfer coding.
    pub body: Vec<u8>,
}

impl Answer {
    /// Whether the status is a 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body read as JSON; [`ClientError::Malformed`] where it is none or another shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(|error| ClientError::Malformed(error.to_string()))
    }
}

/// Where the agent is and how patient to be.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
    body_limit: u64,
}

impl Client {
    /// A client of the agent at `socket`; every request has `timeout` as a whole.
    pub fn new(socket: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self { socket: socket.into(), timeout, body_limit: DEFAULT_BODY_LIMIT }
    }

    /// The same client, keeping at most `bytes` of a body.
    pub fn with_body_limit(self, bytes: u64) -> Self {
        Self { body_limit: bytes, ..self }
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET path`, the whole answer.
    pub fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.request("GET", path, None)
    }

    /// `POST path` with a JSON body, the whole answer.
    pub fn post(&self, path: &str, body: &impl Serialize) -> Result<Answer, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Malformed(error.to_string()))?;
        self.request("POST", path, Some(&body))
    }

    /// `GET path` as a stream of lines without end. An answer that is no success is returned whole, as `Err` of the
    /// inner result.
    pub fn lines(&self, path: &str) -> Result<Result<Lines, Answer>, ClientError> {
        self.stream(self.open("GET", path, None)?)
    }

    /// The same for `POST path` with a JSON body.
    pub fn lines_of(&self, path: &str, body: &impl Serialize) -> Result<Result<Lines, Answer>, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Malformed(error.to_string()))?;
        self.stream(self.open("POST", path, Some(&body))?)
    }

    fn stream(&self, (head, mut stream): (http::Head, AgentReader)) -> Result<Result<Lines, Answer>, ClientError> {
        if (200..300).contains(&head.status) {
            stream.get_mut().deadline = None;
            stream.get_ref().stream.set_read_timeout(None).map_err(ClientError::Broken)?;
            return Ok(Ok(Lines { body: BufReader::new(Body::new(head, stream)), limit: self.body_limit }));
        }
        Ok(Err(self.finish(head, stream)?))
    }

    fn request(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Answer, ClientError> {
        let (head, stream) = self.open(method, path, body)?;
        self.finish(head, stream)
    }

    fn open(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<(http::Head, AgentReader), ClientError> {
        let deadline = Instant::now() + self.timeout;
        let stream = self.connect()?;
        let mut stream = Timed { stream, deadline: Some(deadline) };
        // An agent that refuses early may close before it has read everything; its answer is still there to be read.
        match http::write_request(&mut stream, method, path, body) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(self.broken(error)),
            _ => {}
        }
        let mut stream = BufReader::new(stream);
        let head = http::read_head(&mut stream).map_err(|error| match error {
            HttpError::Io(error) => self.broken(error),
            HttpError::Malformed(_) => ClientError::Malformed(error.to_string()),
        })?;
        Ok((head, stream))
    }

    fn finish(&self, head: http::Head, stream: AgentReader) -> Result<Answer, ClientError> {
        let mut body = Vec::new();
        let kept = Body::new(head, stream).take(self.body_limit.saturating_add(1)).read_to_end(&mut body);
        kept.map_err(|error| self.broken(error))?;
        if body.len() as u64 > self.body_limit {
            return Err(ClientError::TooLong(self.body_limit));
        }
        Ok(Answer { status: head.status, body })
    }

    /// Connects within the deadline. A listener whose backlog is full blocks `connect`, for which std knows no timeout,
    /// so it waits on a thread of its own; that thread ends with the connection or with the process.
    fn connect(&self) -> Result<UnixStream, ClientError> {
        let (done, connected) = mpsc::sync_channel(1);
        let socket = self.socket.clone();
        std::thread::spawn(move || drop(done.send(UnixStream::connect(socket))));
        match connected.recv_timeout(self.timeout) {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(ClientError::Unreachable { socket: self.socket.display().to_string(), source }),
            Err(_) => Err(ClientError::Timeout(self.timeout)),
        }
    }

    fn broken(&self, error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ClientError::Timeout(self.timeout),
            io::ErrorKind::InvalidData => ClientError::Malformed(error.to_string()),
            _ => ClientError::Broken(error),
        }
    }
}

type AgentReader = BufReader<Timed>;

/// A connection whose reads and writes all end by one deadline.
#[derive(Debug)]
struct Timed {
    stream: UnixStream,
    deadline: Option<Instant>,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(deadline) = self.deadline else { return Ok(None) };
        match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.stream.set_read_timeout(Some(left))?;
        }
        self.stream.read(out)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(left) = self.left()? {
            self.stream.set_write_timeout(Some(left))?;
        }
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The lines of a stream as they come; ends when the agent ends the answer.
#[derive(Debug)]
pub struct Lines {
    body: BufReader<Body<AgentReader>>,
    limit: u64,
}

impl Iterator for Lines {
    type Item = Result<String, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match self.body.by_ref().take(self.limit).read_line(&mut line) {
            Ok(0) => None,
            Ok(length) if !line.ends_with('\n') && length as u64 == self.limit => {
                Some(Err(ClientError::TooLong(self.limit)))
            }
            Ok(_) => Some(Ok(line.trim_end_matches(['\r', '\n']).to_owned())),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Some(Err(ClientError::Malformed(error.to_string())))
            }
            Err(error) => Some(Err(ClientError::Broken(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// Serves one connection: reads the request's head, then hands the connection over.
    fn agent(serve: impl FnOnce(UnixStream) + Send + 'static) -> (tempfile::TempDir, Client) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            serve(reader.into_inner());
        });
        (dir, Client::new(path, Duration::from_millis(300)))
    }

    #[test]
    fn an_answer_comes_back_with_its_status_and_json() {
        let (_dir, client) = agent(|mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}").unwrap();
        });
        let answer = client.get("/v1/status").unwrap();
        assert!(answer.is_success());
        assert_eq!(answer.json::<serde_json::Value>().unwrap()["a"], 1);
        assert!(matches!(answer.json::<Vec<u8>>(), Err(ClientError::Malformed(_))));
    }

    #[test]
    fn a_dripping_answer_does_not_stretch_the_deadline() {
        let (_dir, client) = agent(|mut stream| {
            for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n".iter().chain([b'x'; 50].iter()) {
                if stream.write_all(&[*byte]).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        let start = Instant::now();
        assert!(matches!(client.get("/"), Err(ClientError::Timeout(_))));
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn nobody_there_a_broken_connection_and_a_long_body_are_told_apart() {
        let client = Client::new("/nonexistent/agent.sock", Duration::from_millis(200));
        assert!(matches!(client.get("/"), Err(ClientError::Unreachable { .. })));
        let (_dir, client) = agent(|mut s| s.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab").unwrap());
        assert!(matches!(client.get("/"), Err(ClientError::Broken(_))));
        let (_dir, client) = agent(|mut s| s.write_all(b"HTTP/1.1 200 OK\r\n\r\nabcdef").unwrap());
        assert!(matches!(client.with_body_limit(5).get("/"), Err(ClientError::TooLong(5))));
    }

    #[test]
    fn a_stream_gives_line_after_line_beyond_the_deadline() {
        let (_dir, client) = agent(|mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\none\n\r\n").unwrap();
            thread::sleep(Duration::from_millis(500));
            stream.write_all(b"4\r\ntwo\n\r\n0\r\n\r\n").unwrap();
        });
        let lines: Vec<String> = client.lines("/v1/observe").unwrap().unwrap().map(Result::unwrap).collect();
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn a_refused_stream_gives_the_whole_answer() {
        let (_dir, client) =
            agent(|mut s| s.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno").unwrap());
        let refused = client.lines("/v1/observe").unwrap().unwrap_err();
        assert_eq!((refused.status, refused.body), (404, b"no".to_vec()));
    }
}
