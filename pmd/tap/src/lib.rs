//! tap: see docs/architecture.md.
