//! The CNI plugin that a container runtime executes for every pod; see the crate's documentation for what it does.
//!
//! Standard output carries the result or the error of the specification and nothing else.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use sluice_cni::invocation::Environment;
use sluice_cni::protocol::{ErrorBody, ErrorCode};
use sluice_cni::shim::{self, Outcome};
use sluice_cni::version::CniVersion;

/// Longest network configuration taken from standard input; real ones have a few kilobytes.
const STDIN_LIMIT: u64 = 4 * 1024 * 1024;

fn main() -> ExitCode {
    if io::stdin().is_terminal() {
        let spoken = CniVersion::SUPPORTED.map(CniVersion::as_str).join(", ");
        eprintln!("sluice-cni {}: a CNI plugin (CNI {spoken}).", env!("CARGO_PKG_VERSION"));
        eprintln!(
            "A container runtime executes it with CNI_COMMAND set and a network configuration on standard input."
        );
    }
    let outcome = match read_stdin() {
        Ok(stdin) => shim::run(&Environment::from_process(), &stdin),
        Err(error) => shim::failure(&error, None),
    };
    print(&outcome)
}

fn read_stdin() -> Result<Vec<u8>, ErrorBody> {
    if io::stdin().is_terminal() {
        return Ok(Vec::new());
    }
    let mut stdin = Vec::new();
    io::stdin().lock().take(STDIN_LIMIT + 1).read_to_end(&mut stdin).map_err(|error| {
        ErrorBody::new(ErrorCode::IO, "the network configuration cannot be read", error.to_string())
    })?;
    if stdin.len() as u64 > STDIN_LIMIT {
        let msg = format!("the network configuration is longer than {STDIN_LIMIT} bytes");
        return Err(ErrorBody::new(ErrorCode::INVALID_CONFIG, msg, ""));
    }
    Ok(stdin)
}

fn print(outcome: &Outcome) -> ExitCode {
    if let Some(json) = &outcome.stdout {
        let mut stdout = io::stdout().lock();
        if writeln!(stdout, "{json:#}").and_then(|()| stdout.flush()).is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::from(outcome.exit_code)
}
