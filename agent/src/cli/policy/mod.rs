//! `sluice policy check|test|diff|matrix`: verdicts from manifests, with the tables that nodes would run on and no node at
//! all; and `try`, which asks the agent to judge a candidate on its live flows.
//!
//! A verdict is the cluster's: the egress rules of the source on its node and the ingress rules of the destination on its
//! node both count. [`rehearsal`] compiles the nodes, [`names`] says who is meant, [`domains`] which addresses domain names
//! have, [`verdict`] decides with the compiled
//! tables, [`considered`] lists the rules that were weighed, read from the objects and not from the tables, [`reach`] answers for
//! all pairs at once.

pub mod considered;
pub mod diff;
pub mod domains;
pub mod matrix;
pub mod names;
pub mod reach;
pub mod rehearsal;
pub mod verdict;

mod check;
mod picture;
mod suite;
mod trial;

use super::agent::Agent;
use super::failure::Done;
use super::output::Output;
use clap::{Subcommand, ValueEnum};
use sluice_ctrl::model::{Family, Protocol};

/// What to ask of the policies.
#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Says whether one end may talk to another, and which rule decides.
    Check(check::CheckArgs),
    /// Checks a list of expectations.
    Test(suite::TestArgs),
    /// Shows every pair of pods whose verdict an edit changes.
    Diff(diff::DiffArgs),
    /// Prints who reaches whom.
    Matrix(matrix::MatrixArgs),
    /// Tries policies on the node's live flows, without touching them.
    Try(trial::TryArgs),
}

/// Runs a command.
pub fn run(command: PolicyCommand, agent: &Agent, output: &Output) -> Done {
    match command {
        PolicyCommand::Check(args) => check::run(&args, output),
        PolicyCommand::Test(args) => suite::run(&args, output),
        PolicyCommand::Diff(args) => diff::run(&args, output),
        PolicyCommand::Matrix(args) => matrix::run(&args, output),
        PolicyCommand::Try(args) => trial::run(&args, agent, output),
    }
}

/// `--proto`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    #[default]
    #[serde(alias = "TCP")]
    Tcp,
    /// UDP.
    #[serde(alias = "UDP")]
    Udp,
    /// SCTP.
    #[serde(alias = "SCTP")]
    Sctp,
    /// ICMP and ICMPv6, which have no ports.
    #[serde(alias = "ICMP")]
    Icmp,
}

impl Proto {
    /// The word on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
            Proto::Sctp => "sctp",
            Proto::Icmp => "icmp",
        }
    }

    /// The transport protocol, where it has ports.
    pub const fn transport(self) -> Option<Protocol> {
        match self {
            Proto::Tcp => Some(Protocol::Tcp),
            Proto::Udp => Some(Protocol::Udp),
            Proto::Sctp => Some(Protocol::Sctp),
            Proto::Icmp => None,
        }
    }

    /// The IP protocol number in a family.
    pub const fn number(self, family: Family) -> u8 {
        match (self.transport(), family) {
            (Some(protocol), _) => protocol.number(),
            (None, Family::V4) => 1,
            (None, Family::V6) => 58,
        }
    }
}
