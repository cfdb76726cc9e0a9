//! testkit: see docs/architecture.md.
