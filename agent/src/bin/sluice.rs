//! `sluice`: the operator's command line. Offline commands work on files; the others ask `sluiced` over its socket.

use std::process::ExitCode;

/// Lets `sluice bench` say how often the packet path allocates.
#[global_allocator]
static ALLOCATOR: sluice_port::alloc::Counting = sluice_port::alloc::Counting;

fn main() -> ExitCode {
    sluice_agent::cli::main()
}
