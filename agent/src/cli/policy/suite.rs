//! `sluice policy test`: a list of expectations, checked together.

use super::Proto;
use super::domains::DomainArgs;
use super::rehearsal::Rehearsal;
use super::verdict::{Answer, Connection, Verdict};
use crate::cli::failure::{Done, Failure};
use crate::cli::output::{Output, table};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Checks a list of expectations.
#[derive(Args)]
#[command(
    after_help = "CASES.yaml is a list:\n  - { from: shop/web-0, to: shop/db-0, port: 5432, proto: tcp, expect: allow, title: the shop's pages }\n\n\
    Example:\n  sluice policy test cases.yaml --manifests cluster/"
)]
pub struct TestArgs {
    /// The list.
    #[arg(value_name = "CASES.yaml")]
    cases: PathBuf,
    /// Folder of Kubernetes manifests.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    #[command(flatten)]
    domains: DomainArgs,
}

/// One expectation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    from: String,
    to: String,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    proto: Proto,
    expect: Verdict,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    family: Option<u8>,
}

/// One expectation and what is.
#[derive(Serialize)]
struct Checked {
    title: Option<String>,
    expect: Verdict,
    ok: bool,
    #[serde(flatten)]
    answer: Answer,
}

/// Checks them all; code 1 where one does not hold.
pub fn run(args: &TestArgs, output: &Output) -> Done {
    let file = args.cases.display();
    let text = std::fs::read_to_string(&args.cases);
    let text = text.map_err(|error| Failure::usage(format_args!("cannot read {file}: {error}")))?;
    let cases: Vec<Case> = serde_yaml_ng::from_str(&text).map_err(|error| match error.location() {
        Some(at) => Failure::usage(format_args!("{file}:{}:{}: {error}", at.line(), at.column())),
        None => Failure::usage(format_args!("{file}: {error}")),
    })?;
    let lines = lines_of_items(&text);
    let rehearsal = Rehearsal::read(&args.manifests, &args.domains)?;
    let mut checked = Vec::new();
    for (index, case) in cases.into_iter().enumerate() {
        let place = |failure: Failure| Failure {
            message: match lines.get(index) {
                Some(line) => format!("{file}:{line}: case {}: {}", index + 1, failure.message),
                None => format!("{file}: case {}: {}", index + 1, failure.message),
            },
            ..failure
        };
        let family = case.family.map(|family| super::check::family(&family.to_string()));
        let family = family.transpose().map_err(|error| place(Failure::usage(format_args!("family: {error}"))))?;
        let question = Connection { from: &case.from, to: &case.to, proto: case.proto, port: case.port, family };
        let answer = question.judge(&rehearsal).map_err(place)?;
        checked.push(Checked { title: case.title, expect: case.expect, ok: answer.verdict == case.expect, answer });
    }
    for note in &rehearsal.notes {
        eprintln!("sluice: {note}");
    }
    output.print(&checked, || {
        table(&["RESULT", "FROM", "TO", "PORT", "EXPECT", "VERDICT", "DECIDED BY", "TITLE"], checked.iter().map(row))
    })?;
    match checked.iter().filter(|case| !case.ok).count() {
        0 => Ok(()),
        different => Err(Failure::untrue(format_args!("{different} of {} cases do not hold", checked.len()))),
    }
}

/// The line of each item of a block sequence, counted from 1; none for a list that is written otherwise.
fn lines_of_items(text: &str) -> Vec<usize> {
    let numbered = text.lines().zip(1..);
    let dashes = numbered.filter_map(|(line, number)| {
        let item = line.trim_start();
        (item.starts_with("- ") || item == "-").then_some((line.len() - item.len(), number))
    });
    let dashes: Vec<(usize, usize)> = dashes.collect();
    // A dash further in belongs to a list inside an item.
    let outer = dashes.iter().map(|(indent, _)| *indent).min();
    dashes.into_iter().filter(|(indent, _)| Some(*indent) == outer).map(|(_, number)| number).collect()
}

fn row(case: &Checked) -> [String; 8] {
    let answer = &case.answer;
    let port = answer.port.map_or(answer.proto.name().to_owned(), |port| format!("{}/{port}", answer.proto.name()));
    [
        if case.ok { "ok" } else { "DIFFERENT" }.to_owned(),
        answer.from.clone(),
        answer.to.clone(),
        port,
        case.expect.name().to_owned(),
        answer.verdict.name().to_owned(),
        answer.decided_by.clone().or(answer.reason.clone()).unwrap_or_default(),
        case.title.clone().unwrap_or_default(),
    ]
}
