//! The examples of the documentation do what they say: every folder's cases hold for its manifests, and the index names it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/policy")
}

fn examples() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    all.sort();
    all
}

#[test]
fn every_example_does_what_its_cases_say() {
    let examples = examples();
    assert!(examples.len() >= 5, "{examples:?}");
    for example in examples {
        let done = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["policy", "test"])
            .arg(example.join("CASES.yaml"))
            .arg("--manifests")
            .arg(example.join("manifests"))
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert_eq!(done.status.code(), Some(0), "{}: {out}{err}", example.display());
        assert_eq!(err, "", "{}: nothing is made up or misunderstood", example.display());
        // Cases that all expect one verdict would hold for any policy, or for none.
        for verdict in ["allow", "deny"] {
            assert!(out.lines().any(|line| line.contains(verdict)), "{}: no {verdict}", example.display());
        }
    }
}

#[test]
fn the_index_names_every_example() {
    let index = std::fs::read_to_string(folder().join("README.md")).unwrap();
    for example in examples() {
        let name = example.file_name().unwrap().to_string_lossy();
        assert!(index.contains(&format!("[{name}]({name}/manifests/policy.yaml)")), "{name}");
    }
}
