//! `hugepage-setup`: prepares a host for `sluiced`.
//!
//! Exit codes: 0 done; 1 a change failed or came about in part; 2 bad arguments; 4 the host lacks something, named with the
//! command that provides it.

use clap::{Parser, ValueEnum};
use comfy_table::{Table, presets::NOTHING};
use hugepage_setup::apply::{Outcome, Running, apply, undo};
use hugepage_setup::found::{Found, read};
use hugepage_setup::plan::{Missing, Plan, Step, plan, ranges};
use hugepage_setup::wanted::{Configuration, NodeWanted, wanted};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "Examples:
  hugepage-setup                                what this host needs for sluiced's defaults
  hugepage-setup --flows 262144 --workers 4     ... for a smaller configuration
  hugepage-setup -o json                        the same for programs
  hugepage-setup --check                        exit code 4 names each missing thing and its command
  hugepage-setup --apply                        reserve the pages, mount hugetlbfs, make both last
  hugepage-setup --apply --root /host           from an init container that sees the host at /host
  hugepage-setup --undo                         take back exactly what --apply did

Exit codes: 0 done; 1 a change failed or came about in part; 2 bad arguments; 4 the host lacks something.";

/// Reserves the 2 MB pages that sluiced needs, on the NUMA nodes where it needs them.
#[derive(Debug, Parser)]
#[command(name = "hugepage-setup", version, after_help = EXAMPLES)]
struct Arguments {
    /// Print the plan and change nothing (the default)
    #[arg(long, group = "mode")]
    dry_run: bool,
    /// Verify that nothing is missing
    #[arg(long, group = "mode")]
    check: bool,
    /// Carry the plan out: pages and mount
    #[arg(long, group = "mode")]
    apply: bool,
    /// Take back what --apply did
    #[arg(long, group = "mode")]
    undo: bool,
    /// Connections each worker remembers: sluiced's `flows.max`
    #[arg(long, value_name = "N", default_value_t = 1_048_576, value_parser = clap::value_parser!(u64).range(1024..=1 << 28))]
    flows: u64,
    /// Workers [default: as `workers: auto`, all CPUs but the first]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// The frame pool, in MiB: 32,768 frames of 4 KiB
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pool_mb: u64,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// The host's root folder
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
}

/// What `--dry-run` prints.
#[derive(Serialize)]
struct Report {
    configuration: Configuration,
    found: Found,
    wanted: Vec<NodeWanted>,
    plan: Plan,
}

/// What `--check` prints.
#[derive(Serialize)]
struct Check {
    missing: Vec<Missing>,
}

struct Failure(u8, String);

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(Failure(code, why)) => {
            // Nowhere left to say it if standard error is gone.
            let _ = writeln!(std::io::stderr(), "hugepage-setup: {why}");
            ExitCode::from(code)
        }
    }
}

fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let root = &arguments.root;
    let failed = |e: &dyn std::fmt::Display| Failure(1, e.to_string());
    if !root.is_dir() {
        return Err(Failure(2, format!("--root {}: no such folder", root.display())));
    }
    let found = read(root).map_err(|e| failed(&e))?;
    if arguments.undo {
        let outcome = undo(root, &Running, found.boot.as_deref()).map_err(|e| failed(&e))?;
        print(arguments.output, &outcome, || outcome_table(&outcome))?;
        return Ok(u8::from(!outcome.short.is_empty()));
    }
    let configuration =
        Configuration { flows: arguments.flows, workers: arguments.workers, pool_mib: arguments.pool_mb };
    let wanted = wanted(&configuration, &found).map_err(|e| Failure(2, e.to_string()))?;
    let plan = plan(&wanted, &found);
    if arguments.apply {
        let outcome = apply(root, &Running, &plan, found.boot.as_deref(), found.systemd).map_err(|e| failed(&e))?;
        print(arguments.output, &outcome, || outcome_table(&outcome))?;
        return match plan.lacks.is_empty() {
            true => Ok(u8::from(!outcome.short.is_empty())),
            false => Err(Failure(4, lines(&plan.lacks))),
        };
    }
    if arguments.check {
        let check = Check { missing: plan.missing() };
        print(arguments.output, &check, || match check.missing.is_empty() {
            true => "nothing is missing\n".to_owned(),
            false => lines(&check.missing) + "\n",
        })?;
        return Ok(if check.missing.is_empty() { 0 } else { 4 });
    }
    let report = Report { configuration, found, wanted, plan };
    print(arguments.output, &report, || report_table(&report))?;
    Ok(0)
}

fn print(format: Format, value: &impl Serialize, table: impl FnOnce() -> String) -> Result<(), Failure> {
    let text = match format {
        Format::Table => table(),
        Format::Json => serde_json::to_string_pretty(value).map_err(|e| Failure(1, e.to_string()))? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(value).map_err(|e| Failure(1, e.to_string()))?,
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader that has gone (`| head`) is no failure.
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure(1, e.to_string())),
        _ => Ok(()),
    }
}

fn lines(missing: &[Missing]) -> String {
    missing.iter().map(|m| format!("missing: {}\n    {}", m.what, m.command)).collect::<Vec<_>>().join("\n")
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn report_table(report: &Report) -> String {
    let nodes = report.found.nodes.iter().map(|node| {
        let wanted = report.wanted.iter().find(|w| w.node == node.id);
        let pages = |f: fn(&hugepage_setup::found::Pages) -> u64| {
            node.pages.as_ref().map_or("none".to_owned(), |p| f(p).to_string())
        };
        vec![
            node.id.to_string(),
            ranges(&node.cpus),
            (node.available_kib >> 10).to_string(),
            pages(|p| p.total),
            pages(|p| p.free),
            pages(|p| p.sluiced),
            wanted.map_or(0, NodeWanted::pages).to_string(),
            wanted.map_or(String::new(), |w| ranges(&w.workers)),
        ]
    });
    let mut text = table(&["NODE", "CPUS", "AVAILABLE MB", "2MB PAGES", "FREE", "SLUICED", "WANTED", "WORKERS"], nodes);
    let steps = report.plan.steps.iter().map(|step| match step {
        Step::SetPages { gains, .. } | Step::Mount { gains, .. } => {
            vec!["apply".to_owned(), step.command().unwrap_or_default(), gains.clone()]
        }
        Step::Advice { what, gains } => vec!["advice".to_owned(), what.clone(), gains.clone()],
    });
    text += "\n";
    text += &table(&["STEP", "COMMAND", "GAINS"], steps);
    for short in &report.plan.shortfalls {
        text += &format!("\nshort: node {} can give {} of {} pages", short.node, short.possible, short.wanted);
        for other in &short.elsewhere {
            text +=
                &format!("; node {} has {} free and memory for {}", other.node, other.free_pages, other.possible_pages);
        }
        text += "\n";
    }
    if !report.plan.lacks.is_empty() {
        text += &format!("\n{}\n", lines(&report.plan.lacks));
    }
    text
}

fn outcome_table(outcome: &Outcome) -> String {
    let groups = [("done", &outcome.done), ("short", &outcome.short), ("note", &outcome.notes)];
    groups.iter().flat_map(|(kind, all)| all.iter().map(move |line| format!("{kind}: {line}\n"))).collect()
}
