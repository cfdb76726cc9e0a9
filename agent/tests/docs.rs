//! The documentation says what the code does: reasons, configuration, metrics, commands, dependencies and paths.

use cargo_metadata::{Metadata, MetadataCommand};
use sluice_agent::metrics::{Sample, render};
use sluice_ctrl::config::Config;
use sluice_engine::Reason;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the agent lies in the workspace").to_owned()
}

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cells of every table row of a page whose first cell is in backticks.
fn rows(text: &str) -> Vec<Vec<String>> {
    let row = |line: &str| -> Option<Vec<String>> {
        let cells: Vec<String> =
            line.strip_prefix("| ")?.strip_suffix('|')?.split(" | ").map(|c| c.trim().to_owned()).collect();
        cells[0].starts_with('`').then_some(cells)
    };
    text.lines().filter_map(row).collect()
}

/// What stands in backticks, in order.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// What is wrong with a page of reasons, a line each.
fn reason_complaints(page: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let sections: Vec<(&str, &str)> = page.split("\n## ").skip(1).filter_map(|s| s.split_once('\n')).collect();
    let titles: Vec<&str> = sections.iter().map(|(title, _)| *title).collect();
    let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    if titles != names {
        wrong.push(format!("the page has {titles:?}, the engine has {names:?}"));
    }
    for (name, body) in sections {
        let tests: Vec<(&str, &str)> = body
            .lines()
            .filter(|l| l.starts_with("- Produced by: "))
            .flat_map(quoted)
            .filter_map(|t| t.split_once("::"))
            .collect();
        if tests.is_empty() {
            wrong.push(format!("{name}: no test produces it"));
        }
        for (file, function) in tests {
            let source = std::fs::read_to_string(root().join(file)).unwrap_or_default();
            let defined =
                [format!("\nfn {function}("), format!("\ndef {function}(")].iter().any(|d| source.contains(d));
            let said = source.contains(&format!("\"{name}\"")) || source.contains(&format!("Reason::{name}"));
            if !defined || !said {
                wrong.push(format!("{name}: {file} has no {function} that speaks of it"));
            }
        }
    }
    wrong
}

#[test]
fn every_reason_is_explained_and_produced_by_a_test() {
    let wrong = reason_complaints(&read("docs/reasons.md"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_reason_without_a_test_is_found() {
    let page = read("docs/reasons.md");
    let cut = page.replace("stories/external.py::ranges", "stories/external.py::nothing");
    assert_eq!(reason_complaints(&cut).len(), 1);
    let renamed = page.replace("## TxFull", "## TxFlood");
    assert!(!reason_complaints(&renamed).is_empty());
}

/// Every leaf of a value, by its path; lists are leaves.
fn leaves(value: &serde_json::Value, path: &str, out: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(field, &path, out);
            }
        }
        _ => drop(out.insert(path.to_owned())),
    }
}

/// Puts a field into a tree of mappings.
fn put(tree: &mut serde_json::Map<String, serde_json::Value>, path: &str, value: serde_json::Value) {
    match path.split_once('.') {
        None => drop(tree.insert(path.to_owned(), value)),
        Some((first, rest)) => {
            let inner = tree.entry(first).or_insert_with(|| serde_json::Value::Object(Default::default()));
            put(inner.as_object_mut().expect("a section"), rest, value);
        }
    }
}

#[test]
fn the_defaults_of_the_page_are_the_default_configuration() {
    let page = read("docs/configuration.md");
    let mut documented = BTreeSet::new();
    let mut tree = serde_json::Map::new();
    for row in rows(&page) {
        let (field, default) = (row[0].trim_matches('`'), row[1].trim_matches('`'));
        if default == "none" {
            continue;
        }
        documented.insert(field.to_owned());
        let value = serde_yaml_ng::from_str(default).unwrap_or_else(|error| panic!("{field}: {error}"));
        put(&mut tree, field, value);
    }
    let text = serde_json::to_string(&tree).expect("plain values");
    let written = Config::parse(&text, Path::new("docs/configuration.md"), "NODE").expect("the defaults are valid");
    assert_eq!(written, Config::builtin("NODE"));
    let mut fields = BTreeSet::new();
    leaves(&serde_json::to_value(Config::builtin("NODE")).expect("plain values"), "", &mut fields);
    assert_eq!(documented, fields);
}

#[test]
fn every_metric_of_a_scrape_is_on_the_page_and_the_other_way_round() {
    let text = render(Sample::default()).expect("a scrape");
    let given: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).filter_map(|line| line.split_once(' ')).collect();
    let given: BTreeSet<String> = given
        .into_iter()
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        .collect();
    let page = read("docs/metrics.md");
    let documented: BTreeSet<String> = rows(&page).iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    assert_eq!(documented, given);
}

/// The workspace and what it is built from on this machine; other platforms' crates may never have been downloaded.
fn metadata() -> Metadata {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let options = vec!["--filter-platform".to_owned(), platform];
    MetadataCommand::new().other_options(options).exec().expect("cargo metadata runs")
}

#[test]
fn every_crate_named_in_a_manifest_has_a_row_with_its_licence() {
    let metadata = metadata();
    let declared: BTreeSet<String> = metadata
        .workspace_packages()
        .iter()
        .flat_map(|package| &package.dependencies)
        .filter(|dependency| dependency.path.is_none())
        .map(|dependency| dependency.name.clone())
        .collect();
    let page = read("docs/dependencies.md");
    let documented: BTreeMap<String, String> = rows(page.split("\n## Refused").next().unwrap_or_default())
        .into_iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), row[3].clone()))
        .collect();
    assert_eq!(documented.keys().cloned().collect::<BTreeSet<_>>(), declared);
    for package in metadata.packages.iter().filter(|p| p.source.is_some()) {
        if let Some(licence) = documented.get(package.name.as_str()) {
            assert_eq!(Some(licence), package.license.as_ref(), "{}", package.name);
        }
    }
}

/// Whether an SPDX expression lets us choose licences from the list.
fn is_free(expression: &str) -> bool {
    const TAKEN: &[&str] = &[
        "0BSD",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "MIT",
        "Unicode-3.0",
        "Zlib",
    ];
    let expression = expression.replace('/', " OR ");
    let plain = expression.replace(['(', ')'], "");
    // Without a parser: every part of an AND must have an alternative on the list.
    plain.split(" AND ").all(|part| part.split(" OR ").any(|licence| TAKEN.contains(&licence.trim())))
}

#[test]
fn every_crate_that_is_built_has_a_licence_from_the_list() {
    let metadata = metadata();
    let wrong: Vec<String> = metadata
        .packages
        .iter()
        .filter(|package| !package.license.as_deref().is_some_and(is_free))
        .map(|package| format!("{}: {:?}", package.name, package.license))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!is_free("GPL-2.0"));
    assert!(!is_free("CC0-1.0"));
    assert!(!is_free("MIT AND GPL-2.0"));
    assert!(is_free("GPL-2.0 OR MIT"));
}

/// Every page, by its path from the root.
fn pages() -> Vec<(PathBuf, String)> {
    let mut all = vec!["README.md".into(), "CHANGELOG.md".into(), "CONTRIBUTING.md".into()];
    for folder in ["docs", "docs/adr"] {
        let entries = std::fs::read_dir(root().join(folder)).expect("a folder");
        let names = entries.filter_map(Result::ok).map(|entry| Path::new(folder).join(entry.file_name()));
        all.extend(names.filter(|path| path.extension().is_some_and(|e| e == "md")));
    }
    all.into_iter().map(|path: PathBuf| (path.clone(), read(&path.to_string_lossy()))).collect()
}

/// Where files are that the page of readings names without a folder.
fn short(word: &str) -> Option<String> {
    match word.rsplit_once('.') {
        _ if word.contains('/') => None,
        Some((_, "rs")) => Some(format!("dataplane/engine/src/nodes/{word}")),
        Some((_, "py")) => Some(format!("tests/replay/stories/{word}")),
        _ => None,
    }
}

/// Whether a word in backticks is a path from the root of the repository.
fn is_path(word: &str) -> bool {
    let first = word.split('/').next().unwrap_or_default();
    word.contains('/')
        && ["agent", "benches", "cni", "ctrl", "dataplane", "demo", "docs", "pmd", "scripts", "tests"].contains(&first)
        && !word.contains(['*', '{', ' ', '<'])
}

#[test]
fn every_link_and_every_path_in_the_documentation_leads_somewhere() {
    let mut wrong = Vec::new();
    for (path, text) in pages() {
        let folder = path.parent().unwrap_or(Path::new(""));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if !target.contains("://") && !file.is_empty() && !root().join(folder).join(file).exists() {
                wrong.push(format!("{}: {target}", path.display()));
            }
        }
        for word in quoted(&text).filter(|word| is_path(word)) {
            let file = word.split("::").next().unwrap_or_default();
            if !root().join(file).exists() {
                wrong.push(format!("{}: `{word}`", path.display()));
            }
        }
    }
    let page = "docs/adr/0009-readings-of-the-contract.md";
    wrong.extend(quoted(&read(page)).filter_map(short).filter(|file| !root().join(file).exists()));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_command_is_on_the_map() {
    let page = read("docs/cli.md");
    for (file, program) in [("agent/src/cli/mod.rs", "sluice"), ("agent/src/bin/sluiced.rs", "sluiced")] {
        let source = read(file);
        let commands = source.split_once("enum Command {").expect("commands").1.split_once("\n}").expect("an end").0;
        let names = commands.lines().map(str::trim).filter(|line| line.starts_with(char::is_uppercase));
        let names: Vec<String> =
            names.filter_map(|line| line.split(['(', ',']).next()).map(str::to_lowercase).collect();
        assert!(names.len() > 1, "{file} was not read");
        for name in names {
            assert!(page.contains(&format!("`{program} {name}")), "docs/cli.md does not speak of `{program} {name}`");
        }
    }
}

#[test]
fn words_have_one_meaning_and_stand_in_order() {
    let page = read("docs/vocabulary.md");
    let words: Vec<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .skip(1)
        .filter_map(|line| line.split(" |").next())
        .map(str::to_lowercase)
        .collect();
    assert!(words.len() > 50, "the page was not read");
    assert!(words.is_sorted_by(|a, b| a < b), "{words:?}");
}

#[test]
fn decisions_are_numbered_listed_and_say_what_they_close() {
    let list = read("docs/adr/README.md");
    let mut numbers = Vec::new();
    for (path, text) in pages() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((number, _)) = name.split_once('-').filter(|_| path.starts_with("docs/adr")) else { continue };
        numbers.push(number.parse::<usize>().expect("a number"));
        assert!(list.contains(&name), "{name} is not listed");
        for heading in ["## Context", "## Decision", "## Consequences", "## What it closes"] {
            assert!(text.contains(heading), "{name} has no {heading}");
        }
    }
    numbers.sort_unstable();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "a number twice: {numbers:?}");
}
