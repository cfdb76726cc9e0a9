//! Domain names that rules accept: which of them a name that was asked for belongs to.
//!
//! Source: policy.networking.k8s.io/v1alpha2 `DomainName`: a name matches itself alone; behind `*.` it matches every name
//! with one label or more in front. Names are kept as on the wire (RFC 1035 §3.1: length, label, …, 0), lower case.
//! Numbers are made of the text, so that an address keeps its names when other rules change.
//! Cost: one hash per number of labels that some wildcard has.

use crate::stable_hash::stable_hash;
use hashbrown::HashMap;

/// A domain name or wildcard that a rule speaks of; a number made of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainId(pub u64);

impl DomainId {
    /// The number of a name as it stands in a rule: lower case, without a dot at its end.
    pub fn of(text: &str) -> DomainId {
        DomainId(stable_hash(text))
    }
}

/// Longest name on the wire (RFC 1035 §3.1).
pub const MAX_NAME: usize = 255;

/// All names that rules speak of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domains {
    exact: HashMap<Box<[u8]>, DomainId>,
    /// What follows `*.`.
    under: HashMap<Box<[u8]>, DomainId>,
    /// Numbers of labels that occur in `under`, one bit each.
    depths: u128,
    texts: HashMap<DomainId, String>,
}

impl Domains {
    /// From names as rules write them; what is no name is left out, and so matches nothing.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Domains {
        let mut out = Domains::default();
        for text in names {
            let rest = text.strip_prefix("*.");
            let Some(wire) = to_wire(rest.unwrap_or(text)) else { continue };
            let id = DomainId::of(text);
            if rest.is_some() {
                out.depths |= 1 << labels(&wire).count().min(127);
                out.under.insert(wire.into(), id);
            } else {
                out.exact.insert(wire.into(), id);
            }
            out.texts.insert(id, text.to_owned());
        }
        out
    }

    /// Calls `each` with every name that a name on the wire (lower case) belongs to.
    pub fn matching(&self, wire: &[u8], mut each: impl FnMut(DomainId)) {
        if let Some(id) = self.exact.get(wire) {
            each(*id);
        }
        if self.depths == 0 {
            return;
        }
        let count = labels(wire).count();
        for (at, start) in labels(wire).enumerate().skip(1) {
            if self.depths >> (count - at).min(127) & 1 != 0
                && let Some(id) = wire.get(start..).and_then(|rest| self.under.get(rest))
            {
                each(*id);
            }
        }
    }

    /// A name as its rule writes it.
    pub fn text(&self, id: DomainId) -> Option<&str> {
        self.texts.get(&id).map(String::as_str)
    }

    /// Every name, sorted.
    pub fn texts(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.texts.values().map(String::as_str).collect();
        all.sort_unstable();
        all
    }

    /// Whether no rule speaks of names.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }
}

/// Where each label begins.
fn labels(wire: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let length = usize::from(*wire.get(at)?);
        let start = at;
        at += 1 + length;
        (length > 0).then_some(start)
    })
}

/// A name as on the wire, lower case; `None` if it is none (RFC 1035 §2.3.4).
pub fn to_wire(text: &str) -> Option<Vec<u8>> {
    let mut wire = Vec::with_capacity(text.len() + 2);
    for label in text.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n))?;
        wire.push(length);
        wire.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
    }
    wire.push(0);
    (wire.len() <= MAX_NAME).then_some(wire)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(domains: &Domains, name: &str) -> Vec<String> {
        let mut all = Vec::new();
        domains.matching(&to_wire(name).unwrap(), |id| all.push(domains.text(id).unwrap().to_owned()));
        all.sort();
        all
    }

    #[test]
    fn a_name_matches_itself_and_a_wildcard_everything_below_it() {
        let domains = Domains::new(["kubernetes.io", "*.kubernetes.io", "*.blog.kubernetes.io"]);
        assert_eq!(found(&domains, "kubernetes.io"), ["kubernetes.io"]);
        assert_eq!(found(&domains, "www.Kubernetes.IO"), ["*.kubernetes.io"]);
        assert_eq!(found(&domains, "latest.blog.kubernetes.io"), ["*.blog.kubernetes.io", "*.kubernetes.io"]);
        for stranger in ["my-kubernetes.io", "wikipedia.org", "io", "kubernetes.io.example.org"] {
            assert!(found(&domains, stranger).is_empty(), "{stranger}");
        }
    }

    #[test]
    fn what_is_no_name_matches_nothing() {
        let long = "a".repeat(64);
        let domains = Domains::new(["", "a..b", long.as_str(), "*."]);
        assert!(domains.is_empty());
        domains.matching(&[], |_| panic!("nothing is there"));
    }

    proptest! {
        #[test]
        fn it_agrees_with_comparing_text(
            rules in prop::collection::vec("(\\*\\.)?[ab]{1,2}(\\.[ab]{1,2}){0,3}", 0..12),
            name in "[ab]{1,2}(\\.[ab]{1,2}){0,5}",
        ) {
            let domains = Domains::new(rules.iter().map(String::as_str));
            let mut expected: Vec<&String> = rules.iter().filter(|rule| match rule.strip_prefix("*.") {
                Some(rest) => name.ends_with(&format!(".{rest}")),
                None => **rule == name,
            }).collect();
            expected.sort();
            expected.dedup();
            let found = found(&domains, &name);
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
        }

        #[test]
        fn bytes_that_are_no_name_do_no_harm(wire in prop::collection::vec(any::<u8>(), 0..300)) {
            Domains::new(["*.a.b", "c"]).matching(&wire, |_| {});
        }
    }
}
