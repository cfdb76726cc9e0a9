//! Dependencies between the workspace's crates point down only: what `cargo metadata` says is held against the table
//! below, and the crates at the bottom depend on no runtime.
//!
//! A new crate needs a row here, which is the moment to ask which room it is (`docs/architecture.md`).

use cargo_metadata::{DependencyKind, MetadataCommand};
use std::collections::BTreeSet;
use std::process::Command;

/// Each crate of the workspace with the crates of the workspace that its programs may use.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "sluice-agent",
        &[
            "sluice-afxdp",
            "sluice-cni",
            "sluice-ctrl",
            "sluice-dpdk",
            "sluice-engine",
            "sluice-hostnet",
            "sluice-kube",
            "sluice-machine",
            "sluice-port",
            "sluice-snapshot",
            "sluice-tables",
            "sluice-tap",
            "sluice-vf",
            "sluice-wire",
        ],
    ),
    (
        "sluice-benches",
        &["sluice-afxdp", "sluice-engine", "sluice-port", "sluice-snapshot", "sluice-tables", "sluice-wire"],
    ),
    ("sluice-pktgen", &["sluice-hostnet", "sluice-livegen"]),
    ("sluice-livegen", &[]),
    ("sluice-cni", &[]),
    ("sluice-ctrl", &["sluice-tables", "sluice-snapshot"]),
    ("sluice-kube", &["sluice-ctrl"]),
    ("sluice-fake-apiserver", &[]),
    ("sluice-engine", &["sluice-tables", "sluice-snapshot", "sluice-port", "sluice-wire"]),
    ("sluice-tables", &["sluice-wire"]),
    ("sluice-snapshot", &[]),
    ("sluice-wire", &[]),
    ("sluice-port", &[]),
    ("sluice-afxdp", &["sluice-port"]),
    ("sluice-dpdk", &["sluice-dpdk-sys", "sluice-port"]),
    ("sluice-dpdk-sys", &[]),
    ("sluice-tap", &["sluice-port"]),
    ("sluice-hostnet", &[]),
    ("sluice-testkit", &["sluice-wire", "sluice-tables", "sluice-port"]),
    ("sluice-machine", &[]),
    ("sluice-vf", &["sluice-machine"]),
    ("hugepage-setup", &["sluice-ctrl", "sluice-machine"]),
];

/// Pairs that may not meet in tests either: their common language is `sluice-tables`.
const STRANGERS: &[(&str, &str)] = &[("sluice-ctrl", "sluice-engine"), ("sluice-engine", "sluice-ctrl")];

/// What brings a runtime, an operating system, a clock, chance or the outside world into a crate.
const RUNTIMES: &[&str] = &[
    "async-std",
    "crossbeam",
    "futures",
    "getrandom",
    "k8s-openapi",
    "kube",
    "libc",
    "mio",
    "rand",
    "rand_core",
    "rustix",
    "serde",
    "serde_core",
    "serde_json",
    "serde_yaml_ng",
    "smol",
    "tokio",
    "tracing",
];

/// Crates that are values and bytes and nothing else.
const PURE: &[&str] = &["sluice-wire", "sluice-tables"];

/// One dependency between two crates of the workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arrow {
    from: String,
    to: String,
    tests_only: bool,
}

fn arrow(from: &str, to: &str, tests_only: bool) -> Arrow {
    Arrow { from: from.to_owned(), to: to.to_owned(), tests_only }
}

/// What is wrong with these crates and arrows, a line each.
fn complaints(crates: &BTreeSet<String>, arrows: &[Arrow]) -> Vec<String> {
    let mut wrong = Vec::new();
    for name in crates {
        if !ARROWS.iter().any(|(known, _)| known == name) {
            wrong.push(format!("{name}: a crate without a row in the table of arrows"));
        }
    }
    for Arrow { from, to, tests_only } in arrows {
        if STRANGERS.iter().any(|(a, b)| a == from && b == to) {
            wrong.push(format!("{from} -> {to}: these two never name each other, not even in tests"));
            continue;
        }
        let allowed =
            ARROWS.iter().find(|(known, _)| known == from).is_some_and(|(_, to_all)| to_all.contains(&to.as_str()));
        if !tests_only && !allowed {
            wrong.push(format!("{from} -> {to}: this arrow does not point down"));
        }
    }
    wrong
}

/// The runtimes among the crates that `name` is built from.
fn runtimes(name: &str, built_from: &BTreeSet<String>) -> Vec<String> {
    let of = |found: &&&str| built_from.contains(**found);
    RUNTIMES.iter().filter(of).map(|found| format!("{name} is built from {found}")).collect()
}

/// The workspace as its manifests declare it.
fn workspace() -> (BTreeSet<String>, Vec<Arrow>) {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata runs");
    let packages = metadata.workspace_packages();
    let crates: BTreeSet<String> = packages.iter().map(|p| p.name.to_string()).collect();
    let mut arrows = Vec::new();
    for package in &packages {
        for dependency in package.dependencies.iter().filter(|d| crates.contains(&d.name)) {
            arrows.push(arrow(&package.name, &dependency.name, dependency.kind == DependencyKind::Development));
        }
    }
    (crates, arrows)
}

/// Every crate that `name` is built from when it is built alone: features that others ask for do not count against it.
fn built_from(name: &str) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let tree = Command::new(cargo)
        .args(["tree", "--package", name, "--edges", "normal,no-proc-macro", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo tree runs");
    assert!(tree.status.success(), "cargo tree: {}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8(tree.stdout).expect("crate names are text");
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn every_arrow_of_the_workspace_points_down() {
    let (crates, arrows) = workspace();
    assert!(arrows.contains(&arrow("sluice-engine", "sluice-tables", false)), "the workspace was not read: {arrows:?}");
    let wrong = complaints(&crates, &arrows);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bytes_and_tables_depend_on_no_runtime() {
    for name in PURE {
        let built_from = built_from(name);
        assert!(built_from.contains("zerocopy"), "{name} was not read: {built_from:?}");
        let wrong = runtimes(name, &built_from);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[test]
fn only_the_agent_uses_what_changes_the_host_and_the_generator_what_looks_at_it() {
    let (_, arrows) = workspace();
    let users: Vec<&Arrow> = arrows
        .iter()
        .filter(|a| a.to == "sluice-hostnet" && !["sluice-agent", "sluice-pktgen"].contains(&a.from.as_str()))
        .collect();
    assert!(users.is_empty(), "{users:?}");
}

#[test]
fn a_wrong_arrow_is_found() {
    let (crates, sound) = workspace();
    for (from, to, tests_only) in [
        ("sluice-ctrl", "sluice-engine", false),
        ("sluice-engine", "sluice-ctrl", true),
        ("sluice-wire", "sluice-tables", false),
        ("sluice-afxdp", "sluice-engine", false),
        ("sluice-engine", "sluice-testkit", false),
        ("sluice-ctrl", "sluice-hostnet", false),
    ] {
        let mut arrows = sound.clone();
        arrows.push(arrow(from, to, tests_only));
        let wrong = complaints(&crates, &arrows);
        assert_eq!(wrong.len(), 1, "{from} -> {to}: {wrong:?}");
        assert!(wrong[0].starts_with(&format!("{from} -> {to}")), "{wrong:?}");
    }
}

#[test]
fn a_crate_without_a_row_is_found() {
    let (mut crates, arrows) = workspace();
    crates.insert("sluice-utils".to_owned());
    assert_eq!(complaints(&crates, &arrows), ["sluice-utils: a crate without a row in the table of arrows"]);
}

#[test]
fn a_runtime_is_found() {
    let names = ["sluice-wire", "zerocopy", "tokio"].map(str::to_owned);
    assert_eq!(runtimes("sluice-wire", &BTreeSet::from(names)), ["sluice-wire is built from tokio"]);
}
