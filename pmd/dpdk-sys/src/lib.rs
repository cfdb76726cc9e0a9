//! Bindings of DPDK, as `sluice-dpdk` needs them: generated at build time from the distribution's own headers, so that they
//! fit the library they are linked with, and a small C shim for the functions that DPDK keeps in its headers.
//!
//! Empty without the feature `dpdk`, which is off by default: building the workspace needs no DPDK.
//! With it, `apt install libdpdk-dev libclang-dev pkg-config`. Meant for the long-term releases 22.11 (Debian 12) and 23.11
//! (Ubuntu 24.04); tested with 22.11.
//!
//! Structures, constants and functions have DPDK's names and DPDK's contracts: <https://doc.dpdk.org/api-22.11/>. The `sg_`
//! functions are the shim's; each is one of DPDK's inline functions under another name. The library is linked as the
//! distribution ships it, dynamically, since DPDK finds its drivers as plug-ins beside it.

#![cfg_attr(feature = "dpdk", allow(non_camel_case_types, non_upper_case_globals, non_snake_case, missing_docs))]
#![cfg_attr(feature = "dpdk", allow(clippy::all, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn))]
#![cfg_attr(feature = "dpdk", allow(rustdoc::all, unused_qualifications, rust_2018_idioms))]

#[cfg(feature = "dpdk")]
include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
