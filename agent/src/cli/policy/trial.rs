//! `sluice policy try`: a candidate set beside the enforced one, on the node's live flows.

use super::domains::DomainArgs;
use crate::api::report::{TryChange, TryReport, TryRequest};
use crate::cli::agent::Agent;
use crate::cli::failure::{Done, Failure};
use crate::cli::output::{Output, table};
use clap::{Args, ValueEnum};
use sluice_ctrl::source::document;
use sluice_ctrl::source::manifests::ManifestSource;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Tries policies on the node's live flows, without touching them.
#[derive(Args)]
#[command(
    after_help = "The candidate's policies stand in for enforced ones of the same name, or for all with --replace-all; other objects in the\n\
    folder are ignored. Addresses of domain names are those that pods have learned, and what --dns says for the candidate.\n\
    Ctrl-C ends the trial early and prints what was found.\n\n\
    Examples:\n  sluice policy try next/ --for 10m\n  sluice policy try deny.yaml --for 1h --expect none -o json"
)]
pub struct TryArgs {
    /// The candidate: a file of manifests or a folder.
    #[arg(value_name = "DIR_OR_FILE")]
    candidate: PathBuf,
    /// How long, as 90s, 10m or 2h.
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = seconds)]
    length: u64,
    /// The candidate is the whole set: enforced policies that it does not have count as deleted.
    #[arg(long)]
    replace_all: bool,
    /// End with code 1 where a decision would change.
    #[arg(long, value_name = "WHAT", value_enum)]
    expect: Option<Expected>,
    #[command(flatten)]
    domains: DomainArgs,
}

/// What `--expect` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Expected {
    /// No decision changes.
    None,
}

fn seconds(text: &str) -> Result<u64, String> {
    let expected = || "expected a time such as 90s, 10m or 2h".to_owned();
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let factor = match unit {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(expected()),
    };
    match number.checked_mul(factor) {
        Some(seconds) if (1..=24 * 3600).contains(&seconds) => Ok(seconds),
        _ => Err("expected a time from 1s to 24h".to_owned()),
    }
}

/// Asks the agent to try it and follows.
pub fn run(args: &TryArgs, agent: &Agent, output: &Output) -> Done {
    let said = args.domains.read()?;
    let dns = said.all().iter().map(|(name, all)| (name.clone(), all.iter().copied().collect()));
    let request = TryRequest {
        objects: objects(&args.candidate)?,
        replace_all: args.replace_all,
        seconds: args.length,
        dns: dns.collect(),
    };
    let lines = agent.lines_of("/v1/policy/try", &request)?;
    // Lines are read on a thread of their own, so that Ctrl-C is heard between them.
    let (sender, reports) = channel();
    std::thread::spawn(move || {
        for line in lines {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let interrupted = interrupts()?;
    let follow = output.is_table() && std::io::stderr().is_terminal();
    let mut last: Option<TryReport> = None;
    loop {
        match reports.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                let line = line.map_err(|error| agent.failed(error))?;
                let report: TryReport = serde_json::from_str(&line)
                    .map_err(|error| Failure::unreachable(format_args!("the agent's report is none: {error}")))?;
                if follow {
                    eprint!("\r\x1b[K{}", progress(&report));
                }
                let done = report.done;
                if last.is_none() {
                    report.problems.iter().for_each(|problem| eprintln!("sluice: {problem}"));
                }
                last = Some(report);
                if done {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) if interrupted.try_recv().is_ok() => break,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if last.is_some() => {
                eprintln!("sluice: the agent ended the trial early");
                break;
            }
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::unreachable("the agent ended the trial")),
        }
    }
    if follow {
        eprint!("\r\x1b[K");
    }
    let report = last.unwrap_or_default();
    output.print(&report, || text(&report))?;
    match (args.expect, report.changes.len()) {
        (Some(Expected::None), count) if count > 0 => {
            Err(Failure::untrue(format_args!("{count} decisions would change")))
        }
        _ => Ok(()),
    }
}

/// Tells of Ctrl-C and SIGTERM from now on.
fn interrupts() -> Result<std::sync::mpsc::Receiver<()>, Failure> {
    let (sender, receiver) = channel();
    let failed = |error: std::io::Error| Failure::untrue(format_args!("cannot listen to signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    std::thread::spawn(move || {
        let both = async {
            let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok()?;
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            sender.send(()).ok()
        };
        runtime.block_on(both);
    });
    Ok(receiver)
}

/// The objects of a file or folder, as they are written.
fn objects(path: &Path) -> Result<Vec<serde_json::Value>, Failure> {
    let refused = |error| Failure::usage(format_args!("cannot read {}: {error}", path.display()));
    let (problems, objects) = if std::fs::metadata(path).map_err(refused)?.is_dir() {
        let snapshot = ManifestSource::new(path).map_err(refused)?.snapshot();
        let objects = snapshot.objects.objects.values().map(|object| object.value.clone()).collect();
        (snapshot.problems, objects)
    } else {
        let content = document::read(path, &std::fs::read(path).map_err(refused)?);
        (content.problems, content.objects.into_iter().map(|(_, object)| object.value).collect())
    };
    match problems.first() {
        Some(problem) => Err(Failure::usage(problem)),
        None => Ok(objects),
    }
}

fn progress(report: &TryReport) -> String {
    format!(
        "{} of {} s: {} flows, {} denied packets looked at, {} decisions would change",
        report.elapsed_seconds,
        report.seconds,
        report.flows,
        report.denied_packets,
        report.changes.len()
    )
}

fn text(report: &TryReport) -> String {
    let mut text = format!("{}\n", progress(report));
    if report.changes.is_empty() {
        return text;
    }
    let by = |name: &Option<String>| name.clone().unwrap_or_else(|| "no policy".to_owned());
    let row = |change: &TryChange| {
        let port = change.port.map_or(change.proto.clone(), |port| format!("{}/{port}", change.proto));
        [
            change.from.clone(),
            change.to.clone(),
            port,
            change.direction.clone(),
            format!("{} -> {}", change.now, change.then),
            format!("{} -> {}", by(&change.now_decided_by), by(&change.then_decided_by)),
            change.flows.to_string(),
            change.packets.to_string(),
        ]
    };
    text.push('\n');
    let head = ["FROM", "TO", "PORT", "SIDE", "VERDICT", "DECIDED BY", "FLOWS", "DENIED PACKETS"];
    text.push_str(&table(&head, report.changes.iter().map(row)));
    if report.truncated {
        text.push_str("more would change than is listed\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_an_end() {
        assert_eq!([seconds("90s"), seconds("10m"), seconds("2h"), seconds("7")], [Ok(90), Ok(600), Ok(7200), Ok(7)]);
        for wrong in ["", "m", "0s", "25h", "1d", "-1s", "99999999999999999999h"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
