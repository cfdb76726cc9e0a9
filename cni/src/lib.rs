//! cni: see docs/architecture.md.
