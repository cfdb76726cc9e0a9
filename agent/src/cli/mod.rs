//! `sluice`: the operator's command line.
//!
//! Commands that ask the agent are in [`status`], [`listings`], [`flows`], [`counters`], [`observe`] and [`pod`]; those that
//! work on files, on no machine at all, in [`policy`] and [`replay`]. Every command ends with one of the exit codes of
//! [`failure`].

mod agent;
mod counters;
mod failure;
mod flows;
mod listings;
mod observe;
pub mod output;
mod pod;
pub mod policy;
mod replay;
mod status;

use agent::Socket;
use clap::{Args, Parser, Subcommand};
use failure::{Done, Failure};
use output::{Format, Output};
use std::process::ExitCode;

/// Looks into a node's Sluicegate, and tries policies and packets out on files.
#[derive(Parser)]
#[command(
    name = "sluice",
    version,
    max_term_width = 110,
    after_help = "Examples:\n  \
        sluice status\n  \
        sluice flows --pod shop/web-0\n  \
        sluice observe --verdict dropped\n  \
        sluice policy check --manifests cluster/ --from shop/web-0 --to shop/db --port 5432\n\n\
        Exit codes: 0 done; 1 what was asked for does not hold; 2 bad arguments or input file;\n\
        3 the agent cannot be reached; 4 this machine lacks something."
)]
struct Cli {
    #[command(flatten)]
    shared: Shared,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes, before or after its name.
#[derive(Args)]
struct Shared {
    #[command(flatten)]
    socket: Socket,
    /// How results are printed.
    #[arg(short = 'o', long = "output", global = true, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Subcommand)]
enum Command {
    /// How the node is, and what is wrong.
    Status,
    /// The Services as programmed on this node.
    Services(listings::ServicesArgs),
    /// The pods with a port on this node.
    Pods,
    /// The virtual functions of this node, and who has which.
    Vfs,
    /// The policies of the cluster, and the pods here that they select.
    Policies,
    /// The flows this node remembers.
    Flows(flows::FlowsArgs),
    /// Everything counted since the agent's start.
    Counters(counters::CountersArgs),
    /// Which tables are published, and which every worker runs on.
    Generation,
    /// What becomes of packets, as it happens.
    Observe(observe::ObserveArgs),
    /// Adds or deletes a pod's port by hand.
    #[command(subcommand)]
    Pod(pod::PodCommand),
    /// Answers from manifests who may talk to whom, and what an edit changes.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Runs captures through the pipeline of a node, offline.
    Replay(replay::ReplayArgs),
    /// Measures the packet path in memory.
    Bench(crate::bench::BenchArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.shared.format);
    match run(cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("sluice: {}", failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: Cli, output: &Output) -> Done {
    let agent = || cli.shared.socket.agent();
    if cli.shared.format.is_picture() && !matches!(cli.command, Command::Policy(policy::PolicyCommand::Matrix(_))) {
        return Err(Failure::usage("only `sluice policy matrix` draws: -o svg and -o dot are for it alone"));
    }
    match cli.command {
        Command::Status => status::run(&agent(), output),
        Command::Services(args) => listings::services(&agent(), &args, output),
        Command::Pods => listings::pods(&agent(), output),
        Command::Vfs => listings::vfs(&agent(), output),
        Command::Policies => listings::policies(&agent(), output),
        Command::Flows(args) => flows::run(&agent(), args, output),
        Command::Counters(args) => counters::run(&agent(), &args, output),
        Command::Generation => counters::generation(&agent(), output),
        Command::Observe(args) => observe::run(&agent(), args, output),
        Command::Pod(command) => pod::run(&agent(), command, output),
        Command::Policy(command) => policy::run(command, &agent(), output),
        Command::Replay(args) => replay::run(args),
        Command::Bench(args) => {
            crate::bench::main(&args, cli.shared.format).map_err(|error| Failure::usage(format_args!("{error:#}")))
        }
    }
}

/// Checks that a word is `namespace/name`.
fn pod_name(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(text.to_owned())
        }
        _ => Err("expected NAMESPACE/NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn socket_and_format_stand_before_or_after_the_command() {
        for line in
            [["sluice", "--socket", "/x", "-o", "json", "status"], ["sluice", "status", "-o", "json", "--socket", "/x"]]
        {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.shared.format, Format::Json);
            assert_eq!(cli.shared.socket.socket.to_str(), Some("/x"));
        }
    }
}
