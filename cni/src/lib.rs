//! The CNI plugin `sluice-cni` and what it shares with the agent and the operator's command line.
//!
//! The plugin is a shim: it checks what the container runtime hands it, asks `sluiced` over the agent's Unix socket and
//! prints the answer in the version of the specification that the runtime speaks. It keeps no state, with one exception:
//! a DEL or GC that finds no agent leaves a note for the agent's next start (see [`pending`]).
//!
//! * [`protocol`]: the requests and answers of `POST /v1/cni/*`, shared with the agent.
//! * [`client`] and [`http`]: a blocking HTTP/1.1 client for the agent's socket, used by `sluice` too.
//! * [`invocation`]: the environment variables and the network configuration that a runtime gives to a plugin.
//! * [`pending`]: DELs and GCs that wait for the agent.
//! * [`shim`]: one run of the plugin, from invocation to what it prints.
//!
//! Source: Container Network Interface Specification 1.1.0. Runs in a process of its own, never near a worker; one
//! connection and one request per run.
#![forbid(unsafe_code)]

pub mod client;
pub mod http;
pub mod invocation;
pub mod pending;
pub mod prefix;
pub mod protocol;
pub mod shim;
pub mod version;
