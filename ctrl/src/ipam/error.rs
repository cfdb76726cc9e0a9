//! Why there is no address.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::COOL_DOWN_SECONDS;
use crate::model::{Family, NamespacedName};

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// Every address of the family's pools is taken or rests.
    #[error("no free {family} address in {pools}: {size} in all, {in_use} in use, {resting} released too recently")]
    Exhausted {
        /// The family.
        family: Family,
        /// The pools that were tried.
        pools: String,
        /// How many addresses they can give.
        size: u128,
        /// How many of them pods have.
        in_use: usize,
        /// How many were released less than [`COOL_DOWN_SECONDS`] ago.
        resting: usize,
    },
    /// The node has no network to give addresses from.
    #[error("this node has no podCIDR to give addresses from")]
    NoPools,
    /// An address that the Pod object asks for is another pod's.
    #[error("{address} is asked for by {pod}, and {owner} has it")]
    Conflict {
        /// The address.
        address: IpAddr,
        /// Who asks.
        pod: NamespacedName,
        /// Who has it.
        owner: NamespacedName,
    },
    /// An address that the Pod object asks for can be no pod's.
    #[error("{address} is asked for by {pod}: {why}")]
    Unusable {
        /// The address.
        address: IpAddr,
        /// Who asks.
        pod: NamespacedName,
        /// Whose it is.
        why: &'static str,
    },
    /// An address that a pod asks for was another pod's a moment ago.
    #[error("{address} is asked for by {pod}, and {owner} gave it back less than {COOL_DOWN_SECONDS} seconds ago")]
    Resting {
        /// The address.
        address: IpAddr,
        /// Who asks.
        pod: NamespacedName,
        /// Who had it.
        owner: String,
    },
    /// One container stands for one pod.
    #[error("container {container} is {owner}'s already")]
    OtherPod {
        /// The container.
        container: String,
        /// The pod that has it.
        owner: NamespacedName,
    },
    /// The leases cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not one of ours, or of a later version.
    #[error("{path}: {why}; pods run with these leases, so the file is not replaced")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}
