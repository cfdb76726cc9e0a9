//! core/v1 `Namespace`: its labels, and the annotations that are ours.

use super::{At, Report, annotations, labels, own_annotation, version};
use crate::model::Namespace;
use crate::source::Kind;

/// Imports a namespace; its name's label is put on it, as the API server does.
pub(super) fn import(name: &str, root: &At<'_>, report: &mut Report) -> Namespace {
    report.field(version(root, Kind::Namespace));
    let annotations = annotations(root, own_annotation, report);
    Namespace { annotations, ..Namespace::new(name, labels(root, report)) }
}

#[cfg(test)]
mod tests {
    use crate::import::tests::cluster;

    #[test]
    fn a_namespace_always_carries_the_label_of_its_own_name() {
        let cluster = cluster(
            "{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {team: a, kubernetes.io/metadata.name: y}}}",
        );
        let labels = cluster.namespace_labels("x").unwrap();
        assert_eq!(labels.get("team").map(String::as_str), Some("a"));
        assert_eq!(labels.get("kubernetes.io/metadata.name").map(String::as_str), Some("x"));
    }
}
