//! `hugepage-setup`: prepares a host for `sluiced`.
//!
//! Exit codes: 0 done; 1 a change failed or came about in part; 2 bad arguments; 4 the host lacks something, named with the
//! command that provides it.

mod arguments;
mod report;

use arguments::Arguments;
use clap::Parser;
use hugepage_setup::apply::{Running, apply};
use hugepage_setup::plan::plan;
use hugepage_setup::undo::undo;
use hugepage_setup::wanted::wanted;
use report::{Check, Report, lines, outcome_table, print, report_table};
use sluice_machine::machine::read;
use std::io::Write;
use std::process::ExitCode;

/// An exit code, and why.
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
    let configuration = arguments.configuration().map_err(|why| Failure(2, why))?;
    let found = read(root).map_err(|e| failed(&e))?;
    if arguments.undo {
        let outcome = undo(root, &Running, found.boot.as_deref()).map_err(|e| failed(&e))?;
        print(arguments.output, &outcome, || outcome_table(&outcome))?;
        return Ok(u8::from(!outcome.short.is_empty()));
    }
    let wanted = wanted(&configuration, &found).map_err(|e| Failure(2, e.to_string()))?;
    let plan = plan(&wanted, &found);
    if arguments.apply {
        let outcome = apply(root, &Running, &plan, found.boot.as_deref(), found.systemd).map_err(|e| failed(&e))?;
        print(arguments.output, &outcome, || outcome_table(&outcome))?;
        let code = match (plan.lacks.is_empty(), outcome.short.is_empty()) {
            (false, _) => 4,
            (true, short) => u8::from(!short),
        };
        // `sluiced` runs slower on less, and an init container that fails would keep it from running at all.
        let code = if arguments.best_effort { 0 } else { code };
        return match plan.lacks.is_empty() {
            true => Ok(code),
            false => Err(Failure(code, lines(&plan.lacks))),
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
