//! benches: see docs/architecture.md.
