//! The control side: watch → import → model → compile → publish.
//!
//! Owner: the control thread. Cluster state comes in as raw objects, leaves as immutable tables. Nothing here is on the
//! packet path, and nothing past [`model`] knows how Kubernetes writes its objects.

pub mod carriers;
pub mod compile;
pub mod config;
pub mod import;
pub mod ipam;
pub mod model;
mod nearest;
pub mod publish;
pub mod source;
