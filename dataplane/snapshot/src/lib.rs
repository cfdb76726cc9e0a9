//! snapshot: see docs/architecture.md.
