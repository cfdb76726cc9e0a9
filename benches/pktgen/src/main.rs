//! `pktgen`: loads and measures a forwarder from outside, from inside the sender's network namespace.
//!
//! `flood` and `search` make packets in the kernel (`sluice-livegen`), at a rate or as many as one core can; `connect`
//! and `rtt` use the kernel's sockets, and `serve` answers them. Results are one JSON object on standard output.

mod connect;
mod flood;
mod pace;
mod rtt;
mod search;
mod serve;
mod sink;

use anyhow::Result;
use clap::{Parser, Subcommand};
use hdrhistogram::Histogram;
use std::process::ExitCode;

/// Loads a packet forwarder and measures it.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends UDP packets at a rate, or as fast as one core makes them.
    #[command(
        after_help = "Example:\n  pktgen flood --dev eth0 --from 10.244.1.5 --to 10.96.0.10 --to-mac 02:00:a9:fe:01:01 --rate 500000"
    )]
    Flood(flood::Options),
    /// Finds the highest rate that loses no more than a share (RFC 2544 §26.1, binary search), counted at a sink.
    #[command(
        after_help = "Example:\n  pktgen search --dev eth0 --from 10.244.1.5 --to 10.96.0.10 --to-mac 02:00:a9:fe:01:01 \\\n    --sink-netns /run/netns/backend --sink-dev eth0 --loss 0.001"
    )]
    Search(search::Options),
    /// Opens TCP connections one after the other on several threads: connections a second, and how long each took.
    Connect(connect::Options),
    /// UDP round trips, one at a time, each answer checked: p50, p99, p99.9 and losses.
    Rtt(rtt::Options),
    /// Answers `connect` (one byte, then a reset) and `rtt` (the same datagram) until it is ended.
    Serve(serve::Options),
}

/// Nanoseconds up to a minute, to three digits.
fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

fn main() -> ExitCode {
    let done: Result<serde_json::Value> = match Cli::parse().command {
        Command::Flood(options) => flood::run(&options),
        Command::Search(options) => search::run(&options),
        Command::Connect(options) => connect::run(&options),
        Command::Rtt(options) => rtt::run(&options),
        Command::Serve(options) => serve::run(&options),
    };
    match done {
        Ok(value) => {
            println!("{value}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pktgen: {error:#}");
            ExitCode::FAILURE
        }
    }
}
