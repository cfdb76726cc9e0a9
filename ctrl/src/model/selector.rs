//! Label selectors: a conjunction of requirements on an object's labels.
//!
//! Owner: any thread (plain values). Source: meta/v1 `LabelSelector`. Invariant: requirements are sorted and without
//! duplicates, so selectors that were written in a different order are equal. Cost of a match: one map lookup per
//! requirement.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// An object's labels.
pub type Labels = BTreeMap<String, String>;

/// One condition on one label key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The label is there and its value is one of these; an entry of `matchLabels` is this with a single value.
    In(String, BTreeSet<String>),
    /// The label is missing, or its value is none of these.
    NotIn(String, BTreeSet<String>),
    /// The label is there, whatever its value.
    Exists(String),
    /// The label is missing.
    DoesNotExist(String),
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        match self {
            Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

/// All requirements must hold; without any, everything is selected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    requirements: BTreeSet<Requirement>,
}

impl Selector {
    /// Selects every object: the API's `{}`.
    pub fn everything() -> Selector {
        Selector { requirements: BTreeSet::new() }
    }

    /// Selects no object at all.
    pub fn nothing() -> Selector {
        Selector::new([Requirement::In(String::new(), BTreeSet::new())])
    }

    /// The conjunction of the given requirements.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Selector {
        Selector { requirements: requirements.into_iter().collect() }
    }

    /// Equality on each of these labels, as in a Service's `selector`.
    pub fn labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Selector {
        Selector::new(labels.into_iter().map(|(k, v)| Requirement::In(k.clone(), BTreeSet::from([v.clone()]))))
    }

    /// True when every requirement holds for these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }

    /// True when nothing is asked, so that every object is selected.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The requirements, sorted.
    pub fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.requirements.iter()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("{}");
        }
        for (i, requirement) in self.requirements.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let list = |values: &BTreeSet<String>| values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            match requirement {
                Requirement::In(key, values) if values.len() == 1 => write!(f, "{comma}{key}={}", list(values))?,
                Requirement::In(key, values) => write!(f, "{comma}{key} in ({})", list(values))?,
                Requirement::NotIn(key, values) => write!(f, "{comma}{key} notin ({})", list(values))?,
                Requirement::Exists(key) => write!(f, "{comma}{key}")?,
                Requirement::DoesNotExist(key) => write!(f, "{comma}!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    fn values(values: &[&str]) -> BTreeSet<String> {
        values.iter().map(|v| v.to_string()).collect()
    }

    #[test]
    fn an_empty_selector_selects_everything_and_nothing_selects_nothing() {
        assert!(Selector::everything().matches(&labels(&[])));
        assert!(Selector::everything().matches(&labels(&[("a", "b")])));
        assert!(!Selector::nothing().matches(&labels(&[])));
        assert!(!Selector::nothing().matches(&labels(&[("", "")])));
    }

    #[test]
    fn not_in_holds_for_an_object_without_the_label() {
        let selector = Selector::new([Requirement::NotIn("app".into(), values(&["db"]))]);
        assert!(selector.matches(&labels(&[])));
        assert!(selector.matches(&labels(&[("app", "web")])));
        assert!(!selector.matches(&labels(&[("app", "db")])));
    }

    #[test]
    fn all_requirements_must_hold() {
        let selector = Selector::new([
            Requirement::In("app".into(), values(&["web", "api"])),
            Requirement::Exists("tier".into()),
            Requirement::DoesNotExist("old".into()),
        ]);
        assert!(selector.matches(&labels(&[("app", "api"), ("tier", "")])));
        assert!(!selector.matches(&labels(&[("app", "api")])));
        assert!(!selector.matches(&labels(&[("app", "api"), ("tier", "1"), ("old", "")])));
        assert_eq!(selector.to_string(), "app in (api,web),tier,!old");
    }

    #[test]
    fn the_order_of_writing_does_not_matter() {
        let a = Selector::new([Requirement::Exists("x".into()), Requirement::Exists("y".into())]);
        let b = Selector::new(["y", "x", "y"].map(|k| Requirement::Exists(k.into())));
        assert_eq!(a, b);
    }
}
