//! The stages a packet can pass, one file each; all are methods of [`Pipeline`](crate::pipeline::Pipeline) that borrow an
//! item and set its fate.

mod answer;
mod classify;
mod dns;
mod egress;
mod established;
pub mod fragment;
mod icmp;
mod ingress;
mod inherit;
pub(crate) mod plain;
pub(crate) mod plan;
mod revalidate;
mod send;
mod service;
mod split;
pub(crate) mod steady;
mod transit;
mod uncommon;
