//! What a container runtime hands to a plugin: environment variables and a network configuration, checked.
//!
//! Source: CNI specification 1.1.0, section 2 "Execution protocol", parameters and error codes.
//! Invariant: a [`CniRequest`] made here has every field that its verb needs, in the form the specification asks for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::protocol::{CniRequest, ErrorBody, ErrorCode, Verb};
use crate::version::CniVersion;

/// The agent's socket where the configuration names none.
pub const DEFAULT_SOCKET: &str = "/run/sluicegate/sluiced.sock";
/// How long a request may take where the configuration says nothing: below kubelet's own patience (2 minutes).
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// What the runtime wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print the versions spoken.
    Version,
    /// Ask the agent.
    Ask(Verb),
}

/// The environment variables of the specification, as found; empty counts as absent.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables that start with `CNI_`. Values that are no UTF-8 are kept lossily, to be refused where it matters.
    pub fn from_process() -> Self {
        let cni =
            std::env::vars_os().map(|(k, v)| (k.to_string_lossy().into_owned(), v.to_string_lossy().into_owned()));
        cni.collect()
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn require(&self, name: &str) -> Result<&str, ErrorBody> {
        self.get(name).ok_or_else(|| bad_variable(format!("{name} is required but not set")))
    }

    /// The verb in `CNI_COMMAND`.
    pub fn command(&self) -> Result<Command, ErrorBody> {
        match self.require("CNI_COMMAND")? {
            "VERSION" => Ok(Command::Version),
            "ADD" => Ok(Command::Ask(Verb::Add)),
            "DEL" => Ok(Command::Ask(Verb::Del)),
            "CHECK" => Ok(Command::Ask(Verb::Check)),
            "GC" => Ok(Command::Ask(Verb::Gc)),
            "STATUS" => Ok(Command::Ask(Verb::Status)),
            other => Err(bad_variable(format!("CNI_COMMAND is `{other}`, none of ADD DEL CHECK GC STATUS VERSION"))),
        }
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        let kept = variables.into_iter().filter(|(name, value)| name.starts_with("CNI_") && !value.is_empty());
        Self(kept.collect())
    }
}

fn bad_variable(msg: String) -> ErrorBody {
    ErrorBody::new(ErrorCode::INVALID_ENVIRONMENT, msg, "")
}

/// The network configuration from standard input, checked as far as the shim needs it.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The version of the specification that the answer must be in.
    pub version: CniVersion,
    /// The agent's socket.
    pub socket: PathBuf,
    /// The deadline of a request: the field `timeoutSeconds`, 1 to 600, else [`DEFAULT_TIMEOUT`].
    pub timeout: Duration,
    whole: Value,
}

impl NetworkConfig {
    /// Reads a configuration. Fields that the shim does not know are none of its business and go to the agent as they are.
    pub fn parse(stdin: &[u8]) -> Result<Self, ErrorBody> {
        let whole = parse_object(stdin)?;
        let version = match whole.get("cniVersion") {
            Some(Value::String(text)) => CniVersion::parse(text).ok_or_else(|| incompatible(text))?,
            Some(_) => return Err(bad_config("cniVersion is not a string")),
            // The specification reads an absent version as 0.1.0, which is older than anything spoken here.
            None => return Err(incompatible("0.1.0")),
        };
        if whole.get("name").and_then(Value::as_str).unwrap_or_default().is_empty() {
            return Err(bad_config("name is missing or empty"));
        }
        let socket = match whole.get("socket") {
            None => PathBuf::from(DEFAULT_SOCKET),
            Some(Value::String(path)) if path.starts_with('/') => PathBuf::from(path),
            Some(_) => return Err(bad_config("socket is not an absolute path")),
        };
        let timeout = match whole.get("timeoutSeconds").map(Value::as_u64) {
            None => DEFAULT_TIMEOUT,
            Some(Some(seconds @ 1..=600)) => Duration::from_secs(seconds),
            Some(_) => return Err(bad_config("timeoutSeconds is not a whole number from 1 to 600")),
        };
        Ok(Self { version, socket, timeout, whole })
    }

    /// The request that `verb` makes of the agent in this environment.
    pub fn request(self, verb: Verb, environment: &Environment) -> Result<CniRequest, ErrorBody> {
        if self.version < verb.since() {
            return Err(ErrorBody::new(
                ErrorCode::INCOMPATIBLE_VERSION,
                format!("CNI {} does not have {verb:?}", self.version),
                format!("it exists since CNI {}", verb.since()),
            ));
        }
        let mut request = CniRequest {
            cni_version: self.version,
            container_id: String::new(),
            netns: String::new(),
            ifname: String::new(),
            args: parse_args(environment.get("CNI_ARGS").unwrap_or_default())?,
            config: self.whole,
        };
        match verb {
            Verb::Status => return Ok(request),
            Verb::Gc => {
                if request.valid_attachments().is_none() {
                    return Err(bad_config("cni.dev/valid-attachments is missing or no list of attachments"));
                }
                return Ok(request);
            }
            Verb::Add | Verb::Check => request.netns = environment.require("CNI_NETNS")?.to_owned(),
            Verb::Del => request.netns = environment.get("CNI_NETNS").unwrap_or_default().to_owned(),
        }
        if verb == Verb::Check && !request.config["prevResult"].is_object() {
            return Err(bad_config("CHECK needs prevResult, the result of ADD"));
        }
        request.container_id = container_id(environment.require("CNI_CONTAINERID")?)?.to_owned();
        request.ifname = interface_name(environment.require("CNI_IFNAME")?)?.to_owned();
        Ok(request)
    }
}

/// The version that VERSION is asked in: whatever a newer or older runtime says is fine, since the answer lists ours.
pub fn requested_version(stdin: &[u8]) -> Result<Option<String>, ErrorBody> {
    let whole = parse_object(stdin)?;
    Ok(whole.get("cniVersion").and_then(Value::as_str).map(str::to_owned))
}

fn parse_object(stdin: &[u8]) -> Result<Value, ErrorBody> {
    match serde_json::from_slice(stdin) {
        Ok(object @ Value::Object(_)) => Ok(object),
        Ok(_) => Err(ErrorBody::new(ErrorCode::DECODE, "the network configuration is no JSON object", "")),
        Err(error) => Err(ErrorBody::new(ErrorCode::DECODE, "the network configuration is no JSON", error.to_string())),
    }
}

fn bad_config(msg: &str) -> ErrorBody {
    ErrorBody::new(ErrorCode::INVALID_CONFIG, msg, "")
}

fn incompatible(version: &str) -> ErrorBody {
    let spoken = CniVersion::SUPPORTED.map(CniVersion::as_str).join(", ");
    ErrorBody::new(
        ErrorCode::INCOMPATIBLE_VERSION,
        format!("CNI version `{version}` is not spoken here"),
        format!("spoken are {spoken}"),
    )
}

/// Alphanumeric at first, then also `_`, `.` and `-`: safe in a file name.
fn container_id(id: &str) -> Result<&str, ErrorBody> {
    let first = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        return Ok(id);
    }
    Err(bad_variable(format!("CNI_CONTAINERID `{id}` is not letters, digits, `_`, `.` and `-`")))
}

/// What the kernel takes as an interface's name: 1 to 15 bytes, no slash, colon or white space, not `.` or `..`.
fn interface_name(name: &str) -> Result<&str, ErrorBody> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.len() <= 15 && name != "." && name != ".." && !name.contains(bad) {
        return Ok(name);
    }
    Err(bad_variable(format!("CNI_IFNAME `{name}` cannot be an interface's name")))
}

fn parse_args(text: &str) -> Result<BTreeMap<String, String>, ErrorBody> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(bad_variable(format!("CNI_ARGS has `{pair}`, which is not KEY=VALUE"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        let mut all = BTreeMap::from([
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/a"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"),
        ]);
        all.extend(pairs.iter().copied());
        all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn config(extra: Value) -> NetworkConfig {
        let mut whole = json!({"cniVersion": "1.1.0", "name": "sluicegate", "type": "sluice-cni"});
        whole.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        NetworkConfig::parse(whole.to_string().as_bytes()).unwrap()
    }

    fn code(verb: Verb, pairs: &[(&str, &str)]) -> u32 {
        config(json!({})).request(verb, &environment(pairs)).unwrap_err().code.0
    }

    #[test]
    fn the_whole_configuration_goes_to_the_agent() {
        let config = config(json!({"mtu": 9000, "runtimeConfig": {"ips": ["10.0.0.9"]}, "prevResult": {}}));
        assert_eq!(config.socket, PathBuf::from(DEFAULT_SOCKET));
        let request = config.request(Verb::Add, &environment(&[])).unwrap();
        assert_eq!(request.config["mtu"], 9000);
        assert_eq!(request.config["runtimeConfig"]["ips"][0], "10.0.0.9");
        assert_eq!(request.pod().unwrap().name, "web");
        assert_eq!((&*request.container_id, &*request.netns, &*request.ifname), ("c1", "/run/netns/a", "eth0"));
    }

    #[test]
    fn variables_that_are_missing_or_wrong_are_error_4() {
        for (verb, name) in [
            (Verb::Add, "CNI_CONTAINERID"),
            (Verb::Add, "CNI_NETNS"),
            (Verb::Add, "CNI_IFNAME"),
            (Verb::Del, "CNI_CONTAINERID"),
            (Verb::Del, "CNI_IFNAME"),
        ] {
            assert_eq!(code(verb, &[(name, "")]), 4, "{verb:?} without {name}");
        }
        assert!(config(json!({})).request(Verb::Del, &environment(&[("CNI_NETNS", "")])).is_ok());
        for (name, value) in [
            ("CNI_CONTAINERID", "../x"),
            ("CNI_CONTAINERID", "-a"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "sixteen-letters-"),
            ("CNI_IFNAME", "a b"),
            ("CNI_ARGS", "K8S_POD_NAME"),
            ("CNI_ARGS", "=x"),
        ] {
            assert_eq!(code(Verb::Add, &[(name, value)]), 4, "{name}={value}");
        }
    }

    #[test]
    fn a_command_nobody_knows_is_error_4() {
        assert_eq!(environment(&[]).command().unwrap_err().code.0, 4);
        assert_eq!(environment(&[("CNI_COMMAND", "add")]).command().unwrap_err().code.0, 4);
        assert_eq!(environment(&[("CNI_COMMAND", "GC")]).command().unwrap(), Command::Ask(Verb::Gc));
    }

    #[test]
    fn configurations_that_do_not_hold_are_told_apart_by_code() {
        let code = |text: &str| NetworkConfig::parse(text.as_bytes()).unwrap_err().code.0;
        assert_eq!(code("not json"), 6);
        assert_eq!(code("[]"), 6);
        assert_eq!(code(r#"{"name":"n"}"#), 1);
        assert_eq!(code(r#"{"cniVersion":"0.3.1","name":"n"}"#), 1);
        assert_eq!(code(r#"{"cniVersion":1,"name":"n"}"#), 7);
        assert_eq!(code(r#"{"cniVersion":"1.0.0"}"#), 7);
        assert_eq!(code(r#"{"cniVersion":"1.0.0","name":"n","socket":"relative"}"#), 7);
        assert_eq!(code(r#"{"cniVersion":"1.0.0","name":"n","timeoutSeconds":0}"#), 7);
    }

    #[test]
    fn verbs_have_the_input_and_the_version_they_need() {
        assert_eq!(code(Verb::Check, &[]), 7);
        assert_eq!(code(Verb::Gc, &[]), 7);
        let old = config(json!({"cniVersion": "1.0.0"}));
        assert_eq!(old.request(Verb::Status, &environment(&[])).unwrap_err().code.0, 1);
        let gc = config(json!({"cni.dev/valid-attachments": []}));
        assert_eq!(gc.request(Verb::Gc, &Environment::default()).unwrap().valid_attachments(), Some(vec![]));
        assert!(config(json!({})).request(Verb::Status, &Environment::default()).is_ok());
    }
}
