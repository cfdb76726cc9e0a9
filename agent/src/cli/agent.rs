//! The agent behind its socket, as the commands ask it.

use super::failure::Failure;
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sluice_cni::client::{Answer, Client, ClientError, Lines};
use sluice_cni::protocol::ErrorBody;
use std::path::PathBuf;
use std::time::Duration;

/// Where the agent listens unless it was told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/sluicegate/sluiced.sock";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a pod's addition may take.
const POD_PATIENCE: Duration = Duration::from_secs(90);

/// `--socket`.
#[derive(Args, Clone, Debug)]
pub struct Socket {
    /// Unix socket of the agent; files-only commands do not need it.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET, env = "SLUICE_SOCKET")]
    pub socket: PathBuf,
}

impl Socket {
    /// The agent there.
    pub fn agent(&self) -> Agent {
        Agent { socket: self.socket.clone() }
    }
}

/// The agent.
#[derive(Clone, Debug)]
pub struct Agent {
    socket: PathBuf,
}

impl Agent {
    /// `GET path`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let answer = self.client(PATIENCE).get(path).map_err(|error| self.failed(error))?;
        self.read(&answer)
    }

    /// `POST path`; may take as long as adding a pod does.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let answer = self.client(POD_PATIENCE).post(path, body).map_err(|error| self.failed(error))?;
        self.read(&answer)
    }

    /// `GET path` as lines without end.
    pub fn lines(&self, path: &str) -> Result<Lines, Failure> {
        match self.client(PATIENCE).lines(path).map_err(|error| self.failed(error))? {
            Ok(lines) => Ok(lines),
            Err(answer) => Err(refusal(&answer)),
        }
    }

    /// `POST path` as lines without end.
    pub fn lines_of(&self, path: &str, body: &impl Serialize) -> Result<Lines, Failure> {
        match self.client(POD_PATIENCE).lines_of(path, body).map_err(|error| self.failed(error))? {
            Ok(lines) => Ok(lines),
            Err(answer) => Err(refusal(&answer)),
        }
    }

    /// What a failed exchange means.
    pub fn failed(&self, error: ClientError) -> Failure {
        let socket = self.socket.display();
        match error {
            ClientError::Unreachable { source, .. } => Failure::unreachable(format_args!(
                "no agent answers on {socket} ({source}); start one with `sluiced run --config FILE`, or name its \
                 socket with --socket"
            )),
            other => Failure::unreachable(format_args!("{other} (socket {socket})")),
        }
    }

    fn client(&self, patience: Duration) -> Client {
        Client::new(&self.socket, patience)
    }

    fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, Failure> {
        if !answer.is_success() {
            return Err(refusal(answer));
        }
        answer.json().map_err(|error| self.failed(error))
    }
}

/// An answer that is no success: a bad question (2), or something that does not hold (1).
fn refusal(answer: &Answer) -> Failure {
    #[derive(serde::Deserialize)]
    struct Plain {
        error: String,
    }
    let text = if let Ok(body) = answer.json::<ErrorBody>() {
        match body.details.as_str() {
            "" => format!("{} (code {})", body.msg, body.code.0),
            details => format!("{}: {details} (code {})", body.msg, body.code.0),
        }
    } else if let Ok(Plain { error }) = answer.json() {
        error
    } else {
        format!("the agent answered with status {}", answer.status)
    };
    if matches!(answer.status, 400 | 404 | 405 | 422) { Failure::usage(text) } else { Failure::untrue(text) }
}

/// `path?key=value&…` of the pairs that have a value.
pub fn with_query(path: &str, pairs: &[(&str, Option<&str>)]) -> String {
    let mut out = path.to_owned();
    let mut before = '?';
    for (key, value) in pairs {
        let Some(value) = value else { continue };
        out.push(before);
        before = '&';
        out.push_str(key);
        out.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(byte.into()),
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_holds_what_was_given_and_nothing_breaks_out_of_it() {
        let path = with_query("/v1/flows", &[("pod", Some("shop/web-0")), ("x", None), ("limit", Some("1&a b"))]);
        assert_eq!(path, "/v1/flows?pod=shop/web-0&limit=1%26a%20b");
        assert_eq!(with_query("/v1/flows", &[("pod", None)]), "/v1/flows");
    }

    #[test]
    fn a_refusal_says_what_the_agent_said() {
        let answer = |status, body: &str| Answer { status, body: body.as_bytes().to_vec() };
        assert_eq!(refusal(&answer(400, r#"{"error":"no such field"}"#)), Failure::usage("no such field"));
        let cni = refusal(&answer(503, r#"{"code":11,"msg":"not yet","details":"no Pod object"}"#));
        assert_eq!(cni, Failure::untrue("not yet: no Pod object (code 11)"));
        assert_eq!(refusal(&answer(502, "?")).code, 1);
    }
}
