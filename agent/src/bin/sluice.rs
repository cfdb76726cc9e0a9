//! `sluice`: the operator's command line. Offline commands work on files; the others ask `sluiced` over its socket.

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use sluice_agent::{bench, replay};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Lets `sluice bench` say how often the packet path allocates.
#[global_allocator]
static ALLOCATOR: sluice_port::alloc::Counting = sluice_port::alloc::Counting;

/// Looks into Sluicegate and tries things out.
#[derive(Parser)]
#[command(name = "sluice", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs captures through the pipeline, offline.
    Replay(ReplayArgs),
    /// Measures the packet path in memory.
    Bench(bench::BenchArgs),
}

/// Runs captures through the pipeline of a node, offline: no machine is touched, the clock is the packets' own.
#[derive(Args)]
#[command(
    after_help = "Example:\n  sluice replay --manifests cluster/ --node node-a --rx pod:shop/web-0=in.pcap --out out/\n\
    writes out/PORT.pcap for each port that sent something, and out/verdicts.jsonl."
)]
struct ReplayArgs {
    /// Folder of Kubernetes manifests.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Node whose pipeline the packets pass.
    #[arg(long, value_name = "NAME")]
    node: String,
    /// Configuration file of sluiced.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A port and the capture it receives; PORT is uplink0, host or pod:NAMESPACE/NAME. Repeat for more ports.
    #[arg(long = "rx", value_name = "PORT=FILE", required = true, value_parser = port_and_file)]
    inputs: Vec<(String, PathBuf)>,
    /// Folder for the results.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of workers; the results do not depend on it.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Next hop towards the outside, once per family; default: the first address of the node's /24 or /64.
    #[arg(long = "gateway", value_name = "IP")]
    gateways: Vec<IpAddr>,
}

fn port_and_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((port, file)) if !port.is_empty() && !file.is_empty() => Ok((port.to_owned(), file.into())),
        _ => Err("expected PORT=FILE".to_owned()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Replay(args) => replay::run(&replay::Options {
            manifests: args.manifests,
            node: args.node,
            config: args.config,
            inputs: args.inputs,
            out: args.out,
            workers: args.workers,
            gateways: args.gateways,
        })
        .map(|packets| eprintln!("sluice: {packets} packets replayed")),
        Command::Bench(args) => bench::main(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice: {error:#}");
            ExitCode::from(2)
        }
    }
}
