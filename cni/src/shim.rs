//! One run of the plugin: from what the runtime handed over to what is printed and the exit code.
//!
//! | The agent… | ADD, CHECK | DEL, GC | STATUS |
//! |---|---|---|---|
//! | is away | error 11 | success, with a note for its next start; else error 11 | error 51 |
//! | is too slow, or the connection breaks | error 11 | error 11 | error 50 |
//! | answers something else than expected | error 6 | error 6 | error 6 |
//! | refuses | its code | its code | its code |
//!
//! With the agent away no packet of any pod moves, hence 51 rather than 50.

use serde_json::{Value, json};

use crate::client::{Answer, Client, ClientError};
use crate::invocation::{Command, Environment, NetworkConfig, requested_version};
use crate::pending::PendingDels;
use crate::protocol::{AddResult, CniRequest, ErrorBody, ErrorCode, Verb};
use crate::version::CniVersion;

/// Most bytes of an agent's answer that the shim keeps; a result has a few hundred.
const BODY_LIMIT: u64 = 1024 * 1024;

/// What the process prints on standard output, and its exit code.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The JSON to print, if any.
    pub stdout: Option<Value>,
    /// 0 or 1.
    pub exit_code: u8,
}

/// Does what the runtime asks.
pub fn run(environment: &Environment, stdin: &[u8]) -> Outcome {
    let version = requested_version(stdin).ok().flatten().and_then(|text| CniVersion::parse(&text));
    match answer(environment, stdin) {
        Ok(stdout) => Outcome { stdout, exit_code: 0 },
        Err(error) => failure(&error, version),
    }
}

/// The outcome that tells `error` in the runtime's version, the newest where that is not known.
pub fn failure(error: &ErrorBody, version: Option<CniVersion>) -> Outcome {
    Outcome { stdout: Some(error.to_json(version.unwrap_or(CniVersion::V1_1_0))), exit_code: 1 }
}

fn answer(environment: &Environment, stdin: &[u8]) -> Result<Option<Value>, ErrorBody> {
    let verb = match environment.command()? {
        Command::Version => return versions(stdin).map(Some),
        Command::Ask(verb) => verb,
    };
    let config = NetworkConfig::parse(stdin)?;
    let client = Client::new(config.socket.clone(), config.timeout).with_body_limit(BODY_LIMIT);
    let request = config.request(verb, environment)?;
    match ask(&client, verb, &request) {
        Err(ClientError::Unreachable { .. }) if matches!(verb, Verb::Del | Verb::Gc) => {
            do_later(&client, verb, &request).map(|()| None)
        }
        Err(error) => Err(tell(verb, &error)),
        Ok(answer) => read_answer(verb, request.cni_version, &answer),
    }
}

fn versions(stdin: &[u8]) -> Result<Value, ErrorBody> {
    let asked = requested_version(stdin)?;
    let version = asked.unwrap_or_else(|| CniVersion::V1_1_0.to_string());
    Ok(json!({"cniVersion": version, "supportedVersions": CniVersion::SUPPORTED}))
}

fn ask(client: &Client, verb: Verb, request: &CniRequest) -> Result<Answer, ClientError> {
    client.post(verb.path(), request)
}

/// Leaves a note for the agent's next start, then tries once more: the agent may have started in between and read the
/// folder before the note was there.
fn do_later(client: &Client, verb: Verb, request: &CniRequest) -> Result<(), ErrorBody> {
    let pending = PendingDels::beside(client.socket());
    let note = pending.leave(verb, request).map_err(|error| {
        ErrorBody::new(
            ErrorCode::TRY_AGAIN_LATER,
            format!("sluiced cannot be reached at {} and the {verb:?} cannot be noted", client.socket().display()),
            error.to_string(),
        )
    })?;
    match ask(client, verb, request) {
        Err(ClientError::Unreachable { .. }) => Ok(()),
        Err(error) => Err(tell(verb, &error)),
        Ok(answer) => {
            read_answer(verb, request.cni_version, &answer)?;
            // A note that stays is worked off at the next start and finds nothing to do.
            let _ = pending.done(&note);
            Ok(())
        }
    }
}

fn read_answer(verb: Verb, version: CniVersion, answer: &Answer) -> Result<Option<Value>, ErrorBody> {
    if !answer.is_success() {
        return Err(refusal(answer));
    }
    if verb != Verb::Add {
        return Ok(None);
    }
    let result: AddResult = answer.json().map_err(|error| tell(verb, &error))?;
    if result.ips.is_empty() {
        return Err(ErrorBody::new(ErrorCode::DECODE, "sluiced answered ADD without an address", ""));
    }
    Ok(Some(result.to_json(version)))
}

fn refusal(answer: &Answer) -> ErrorBody {
    if let Ok(error) = answer.json::<ErrorBody>() {
        return error;
    }
    let code = if answer.status == 503 { ErrorCode::TRY_AGAIN_LATER } else { ErrorCode::AGENT_REFUSED };
    let start: String = String::from_utf8_lossy(&answer.body).chars().take(200).collect();
    ErrorBody::new(code, format!("sluiced answered with HTTP status {}", answer.status), start)
}

fn tell(verb: Verb, error: &ClientError) -> ErrorBody {
    let (code, advice) = match error {
        ClientError::Unreachable { .. } if verb == Verb::Status => (
            ErrorCode::NOT_AVAILABLE_PODS_LIMITED,
            "is the sluicegate pod of this node running? `kubectl -n sluicegate get pods -o wide`",
        ),
        ClientError::Unreachable { .. } => (
            ErrorCode::TRY_AGAIN_LATER,
            "is the sluicegate pod of this node running? `kubectl -n sluicegate get pods -o wide`",
        ),
        ClientError::Timeout(_) | ClientError::Broken(_) if verb == Verb::Status => (ErrorCode::NOT_AVAILABLE, ""),
        ClientError::Timeout(_) | ClientError::Broken(_) => (ErrorCode::TRY_AGAIN_LATER, ""),
        ClientError::Malformed(_) | ClientError::TooLong(_) => {
            (ErrorCode::DECODE, "are sluice-cni and sluiced of the same version?")
        }
    };
    ErrorBody::new(code, error.to_string(), advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str) -> ErrorBody {
        read_answer(Verb::Del, CniVersion::V1_1_0, &Answer { status, body: body.into() }).unwrap_err()
    }

    #[test]
    fn a_refusal_keeps_the_agents_code_or_gets_one() {
        assert_eq!(refused(409, r#"{"code":7,"msg":"m","details":"d"}"#), ErrorBody::new(ErrorCode(7), "m", "d"));
        assert_eq!(refused(503, "busy").code, ErrorCode::TRY_AGAIN_LATER);
        assert_eq!(refused(500, "<html>").code, ErrorCode::AGENT_REFUSED);
        assert_eq!(refused(500, &"x".repeat(9000)).details.len(), 200);
    }

    #[test]
    fn add_without_a_result_is_not_a_success() {
        let add =
            |status, body: &str| read_answer(Verb::Add, CniVersion::V1_1_0, &Answer { status, body: body.into() });
        assert_eq!(add(204, "").unwrap_err().code, ErrorCode::DECODE);
        assert_eq!(add(200, "{}").unwrap_err().code, ErrorCode::DECODE);
        assert!(add(200, r#"{"ips":[{"address":"10.0.0.1/32"}]}"#).is_ok());
    }
}
