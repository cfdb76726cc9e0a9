//! `sluice`: the operator's command line. Offline commands work on files; the others ask `sluiced` over its socket.

use std::process::ExitCode;

fn main() -> ExitCode {
    sluice_agent::cli::main()
}
