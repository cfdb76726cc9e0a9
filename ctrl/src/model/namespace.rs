//! A namespace: a name and the labels policies select it by.
//!
//! Owner: the control thread. Source: core/v1 `Namespace`.

use super::Labels;

/// The label by which a namespace is selected by name; the API server puts it on every namespace.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace; its labels always carry [`NAME_LABEL`] with its own name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`, with [`NAME_LABEL`].
    pub labels: Labels,
    /// `metadata.annotations` of the group `sluicegate.dev`.
    pub annotations: Labels,
}

impl Namespace {
    /// A namespace with these labels and its own name's label.
    pub fn new(name: impl Into<String>, mut labels: Labels) -> Namespace {
        let name = name.into();
        labels.insert(NAME_LABEL.to_owned(), name.clone());
        Namespace { name, labels, annotations: Labels::new() }
    }
}
