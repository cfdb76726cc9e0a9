//! `sluiced`: the node agent.

use clap::{Args, Parser, Subcommand};
use sluice_agent::daemon::host::Lacking;
use sluice_agent::daemon::start;
use sluice_ctrl::config::{Config, ConfigError, Source};
use sluice_vf::VfError;
use std::path::PathBuf;
use std::process::ExitCode;

/// Handles the packets of a Kubernetes node.
#[derive(Parser)]
#[command(name = "sluiced", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the agent in the network namespace it is started in; SIGTERM ends it and leaves pods for the next start.
    #[command(after_help = "Example:\n  sluiced run --config /etc/sluicegate/sluiced.yaml")]
    Run(RunArgs),
    /// Removes all that the agent has made on this node and restores what it changed. No agent may be running.
    #[command(after_help = "Example:\n  sluiced cleanup --config /etc/sluicegate/sluiced.yaml")]
    Cleanup(WithConfig),
    /// Reads a configuration file as `run` would and says what is wrong with it (exit code 2). Touches nothing.
    #[command(after_help = "Example:\n  sluiced check --config /etc/sluicegate/sluiced.yaml")]
    Check(WithConfig),
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    with: WithConfig,
    /// How to reach the API server, in place of source.kubeconfig and the pod's service account.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Args)]
struct WithConfig {
    /// Configuration file; defaults where absent.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SLUICE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    let cli = Cli::parse();
    let (Command::Run(RunArgs { with: args, .. }) | Command::Cleanup(args) | Command::Check(args)) = &cli.command;
    let mut config = match &args.config {
        Some(path) => match Config::load(path) {
            Ok(config) => config,
            Err(error) => return fail(&error.into()),
        },
        None => Config::default(),
    };
    let done = match cli.command {
        Command::Run(RunArgs { kubeconfig: given, .. }) => {
            if let (Some(given), Source::Kubernetes { kubeconfig }) = (given, &mut config.source) {
                *kubeconfig = Some(given);
            }
            start::run(config)
        }
        Command::Cleanup(_) => start::cleanup(&config),
        Command::Check(_) => {
            println!("the configuration of node {} is sound", config.node);
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Says what is wrong; the exit code tells bad input (2) and a lacking machine (4) from the rest.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("sluiced: {error:#}");
    if error.downcast_ref::<ConfigError>().is_some() {
        ExitCode::from(2)
    } else if error.downcast_ref::<Lacking>().is_some() || error.downcast_ref::<VfError>().is_some() {
        ExitCode::from(4)
    } else {
        ExitCode::FAILURE
    }
}
