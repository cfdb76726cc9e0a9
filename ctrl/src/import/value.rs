//! Reading typed fields out of a raw object, with the path of every field that cannot be read.
//!
//! Owner: the control thread. Missing and `null` are the same, as in the API. Reading never panics; the caller decides
//! whether a [`Problem`] costs a field, an object, or closes a policy. Paths are only written out for problems.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::Value;

use crate::model::{Labels, Protocol, Requirement, Selector};
use crate::nearest::nearest;

/// A field that could not be read, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path from the object's root, as `spec.ports[0].port`.
    pub field: String,
    /// What was expected, and what was found.
    pub why: String,
}

static NULL: Value = Value::Null;

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

/// A value together with the way to it.
#[derive(Clone, Copy)]
pub struct At<'a> {
    value: &'a Value,
    step: Step<'a>,
    parent: Option<&'a At<'a>>,
}

impl<'a> At<'a> {
    /// The object itself.
    pub fn root(value: &'a Value) -> At<'a> {
        At { value, step: Step::Root, parent: None }
    }

    /// A field; a missing one reads as `null`.
    pub fn get<'b>(&'b self, key: &'b str) -> At<'b> {
        At { value: self.value.get(key).unwrap_or(&NULL), step: Step::Key(key), parent: Some(self) }
    }

    /// The value where it stands.
    pub fn value(&self) -> &'a Value {
        self.value
    }

    /// Missing or `null`.
    pub fn is_absent(&self) -> bool {
        self.value.is_null()
    }

    /// The path of this field.
    pub fn path(&self) -> String {
        let parent = self.parent.map(At::path).unwrap_or_default();
        match self.step {
            Step::Root => parent,
            Step::Key(key) if parent.is_empty() => key.to_owned(),
            Step::Key(key) => format!("{parent}.{key}"),
            Step::Index(index) => format!("{parent}[{index}]"),
        }
    }

    /// A problem of this field.
    pub fn problem(&self, why: impl Into<String>) -> Problem {
        Problem { field: self.path(), why: why.into() }
    }

    fn expected(&self, what: &str) -> Problem {
        let found = match self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(b) => format!("{b}"),
            Value::Number(n) => format!("{n}"),
            Value::String(s) => format!("{:?}", s.chars().take(60).collect::<String>()),
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "a mapping".to_owned(),
        };
        self.problem(format!("expected {what}, found {found}"))
    }

    /// Text, where the field is there.
    pub fn text(&self) -> Result<Option<&'a str>, Problem> {
        match self.value {
            Value::Null => Ok(None),
            Value::String(s) => Ok(Some(s)),
            _ => Err(self.expected("text")),
        }
    }

    /// Text that is there and not empty.
    pub fn required_text(&self) -> Result<&'a str, Problem> {
        self.text()?.filter(|t| !t.is_empty()).ok_or_else(|| self.problem("must be given"))
    }

    /// True or false, where the field is there. YAML 1.1 words such as `yes` are text here.
    pub fn boolean(&self) -> Result<Option<bool>, Problem> {
        match self.value {
            Value::Null => Ok(None),
            Value::Bool(b) => Ok(Some(*b)),
            _ => Err(self.expected("true or false")),
        }
    }

    /// A whole number within bounds, where the field is there.
    pub fn integer(&self, low: i64, high: i64) -> Result<Option<i64>, Problem> {
        match self.value {
            Value::Null => Ok(None),
            Value::Number(n) => match n.as_i64() {
                Some(n) if (low..=high).contains(&n) => Ok(Some(n)),
                _ => Err(self.expected(&format!("a whole number from {low} to {high}"))),
            },
            _ => Err(self.expected("a whole number")),
        }
    }

    /// A port from 1 to 65,535, where the field is there.
    pub fn port(&self) -> Result<Option<u16>, Problem> {
        Ok(self.integer(1, 65_535)?.and_then(|n| u16::try_from(n).ok()))
    }

    /// The entries of a list; none where the field is missing.
    pub fn items<'b>(&'b self) -> Result<Option<Vec<At<'b>>>, Problem> {
        match self.value {
            Value::Null => Ok(None),
            Value::Array(items) => Ok(Some(
                items
                    .iter()
                    .enumerate()
                    .map(|(i, value)| At { value, step: Step::Index(i), parent: Some(self) })
                    .collect(),
            )),
            _ => Err(self.expected("a list")),
        }
    }

    /// The entries of a list, none for a missing one.
    pub fn list<'b>(&'b self) -> Result<Vec<At<'b>>, Problem> {
        Ok(self.items()?.unwrap_or_default())
    }

    /// Refuses fields that are not in `known`; a missing value has none.
    pub fn only(&self, known: &[&str]) -> Result<(), Problem> {
        match self.value {
            Value::Null => Ok(()),
            Value::Object(fields) => match fields.keys().find(|k| !known.contains(&k.as_str())) {
                None => Ok(()),
                Some(unknown) => {
                    let field = At { value: &NULL, step: Step::Key(unknown), parent: Some(self) };
                    Err(field.problem(match nearest(unknown, known) {
                        Some(near) => format!("unknown field, did you mean {near}?"),
                        None => "unknown field".to_owned(),
                    }))
                }
            },
            _ => Err(self.expected("a mapping")),
        }
    }

    /// The names of the fields that are set.
    pub fn set_fields(&self) -> Vec<&'a str> {
        match self.value {
            Value::Object(fields) => fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k.as_str()).collect(),
            _ => Vec::new(),
        }
    }

    /// A mapping of text to text; `null` values are empty text, as the API decodes them.
    pub fn labels(&self) -> Result<Option<Labels>, Problem> {
        match self.value {
            Value::Null => Ok(None),
            Value::Object(fields) => {
                let mut labels = BTreeMap::new();
                for key in fields.keys() {
                    labels.insert(key.clone(), self.get(key).text()?.unwrap_or_default().to_owned());
                }
                Ok(Some(labels))
            }
            _ => Err(self.expected("a mapping")),
        }
    }

    /// A transport protocol, TCP where the field is missing.
    pub fn protocol(&self) -> Result<Protocol, Problem> {
        match self.text()? {
            None | Some("") => Ok(Protocol::Tcp),
            Some(text) => Protocol::from_api(text).ok_or_else(|| self.expected("TCP, UDP or SCTP")),
        }
    }

    /// An IP address, where the field is there and not empty.
    pub fn address(&self) -> Result<Option<IpAddr>, Problem> {
        match self.text()? {
            None | Some("") => Ok(None),
            Some(text) => parse_address(text).map(Some).ok_or_else(|| self.expected("an IP address")),
        }
    }

    /// A network in CIDR notation; host bits are cleared, blanks around it are ignored.
    pub fn network(&self) -> Result<IpNet, Problem> {
        let text = self.text()?.unwrap_or_default();
        parse_network(text.trim()).ok_or_else(|| self.expected("a network such as 10.0.0.0/8 or fd00::/8"))
    }

    /// A label selector, where the field is there; strict, as a selector half understood selects the wrong things.
    pub fn selector(&self) -> Result<Option<Selector>, Problem> {
        if self.is_absent() {
            return Ok(None);
        }
        self.only(&["matchLabels", "matchExpressions"])?;
        let labels = self.get("matchLabels").labels()?.unwrap_or_default();
        let mut requirements: Vec<Requirement> = Selector::labels(&labels).requirements().cloned().collect();
        for expression in self.get("matchExpressions").list()? {
            expression.only(&["key", "operator", "values"])?;
            let key = expression.get("key").required_text()?.to_owned();
            let values_field = expression.get("values");
            let mut values = BTreeSet::new();
            for value in values_field.list()? {
                values.insert(value.text()?.ok_or_else(|| value.problem("must be text"))?.to_owned());
            }
            let operator = expression.get("operator");
            let wants_values = match operator.required_text()? {
                "In" | "NotIn" => true,
                "Exists" | "DoesNotExist" => false,
                _ => return Err(operator.expected("In, NotIn, Exists or DoesNotExist")),
            };
            if wants_values == values.is_empty() {
                return Err(values_field.problem(if wants_values {
                    "must not be empty for In and NotIn"
                } else {
                    "must be empty for Exists and DoesNotExist"
                }));
            }
            requirements.push(match operator.required_text()? {
                "In" => Requirement::In(key, values),
                "NotIn" => Requirement::NotIn(key, values),
                "Exists" => Requirement::Exists(key),
                _ => Requirement::DoesNotExist(key),
            });
        }
        Ok(Some(Selector::new(requirements)))
    }
}

/// An address as Kubernetes reads it: leading zeros in IPv4 mean decimal, IPv4 in IPv6 clothes is IPv4.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse::<Ipv6Addr>().ok().map(|a| IpAddr::V6(a).to_canonical());
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?, 255)?.try_into().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// A network in CIDR notation, host bits cleared; IPv4 networks in IPv6 clothes are refused as ambiguous.
pub fn parse_network(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let address = match parse_address(address)? {
        IpAddr::V4(_) if address.contains(':') => return None,
        address => address,
    };
    let length = u8::try_from(decimal(length, 128)?).ok()?;
    IpNet::new(address, length).ok().map(|n| n.trunc())
}

fn decimal(text: &str, high: u32) -> Option<u32> {
    let digits = !text.is_empty() && text.len() <= 16 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse::<u64>().ok()).flatten().and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= high)
}

/// A port name by the API's rule: at most 15 of `a-z0-9-`, a letter among them, no `-` at an end or doubled.
pub fn is_port_name(text: &str) -> bool {
    text.len() <= 15
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn leading_zeros_in_ipv4_mean_decimal() {
        assert_eq!(parse_address("172.30.0.041"), Some("172.30.0.41".parse().unwrap()));
        assert_eq!(parse_network("010.000.0.0/08"), Some("10.0.0.0/8".parse().unwrap()));
        for bad in ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.+4", "1..2.3", "a.b.c.d", "1.2.3.4 "] {
            assert_eq!(parse_address(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn ipv4_in_ipv6_clothes_is_ipv4_and_not_a_network() {
        assert_eq!(parse_address("::ffff:10.0.0.1"), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(parse_network("::ffff:10.0.0.0/104"), None);
        assert_eq!(parse_address("fe80::1%eth0"), None);
    }

    #[test]
    fn host_bits_of_a_network_are_cleared() {
        assert_eq!(parse_network("10.1.2.3/8"), Some("10.0.0.0/8".parse().unwrap()));
        assert_eq!(parse_network("fd00::7/64"), Some("fd00::/64".parse().unwrap()));
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "/8", "fd00::/129"] {
            assert_eq!(parse_network(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_problem_names_the_whole_path() {
        let value = json!({"spec": {"ports": [{"port": 1}, {"port": "x"}]}});
        let root = At::root(&value);
        let spec = root.get("spec");
        let ports = spec.get("ports");
        let ports = ports.list().unwrap();
        assert_eq!(ports[0].get("port").port(), Ok(Some(1)));
        let problem = ports[1].get("port").port().unwrap_err();
        assert_eq!(problem.field, "spec.ports[1].port");
        assert_eq!(problem.why, "expected a whole number, found \"x\"");
    }

    #[test]
    fn missing_null_and_empty_selectors_differ_as_the_api_says() {
        let value = json!({"a": null, "b": {}, "c": {"matchLabels": {}}});
        let root = At::root(&value);
        assert_eq!(root.get("a").selector(), Ok(None));
        assert_eq!(root.get("missing").selector(), Ok(None));
        assert_eq!(root.get("b").selector(), Ok(Some(Selector::everything())));
        assert_eq!(root.get("c").selector(), Ok(Some(Selector::everything())));
    }

    #[test]
    fn a_selector_half_understood_is_refused() {
        for (bad, field) in [
            (json!({"matchLabel": {}}), "matchLabel"),
            (json!({"matchLabels": {"a": 1}}), "matchLabels.a"),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}),
                "matchExpressions[0].operator",
            ),
            (json!({"matchExpressions": [{"key": "a", "operator": "In"}]}), "matchExpressions[0].values"),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["1"]}]}),
                "matchExpressions[0].values",
            ),
            (json!({"matchExpressions": [{"operator": "Exists"}]}), "matchExpressions[0].key"),
        ] {
            assert_eq!(At::root(&bad).selector().unwrap_err().field, field);
        }
        let why = At::root(&json!({"matchLabel": {}})).selector().unwrap_err().why;
        assert_eq!(why, "unknown field, did you mean matchLabels?");
    }

    #[test]
    fn port_names_follow_the_api() {
        assert!(is_port_name("serve-80-tcp") && is_port_name("x"));
        for bad in ["", "80", "Http", "a--b", "-a", "a-", "a-name-that-is-long", "a_b"] {
            assert!(!is_port_name(bad), "{bad:?}");
        }
    }
}
