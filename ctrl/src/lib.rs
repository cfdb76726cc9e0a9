//! ctrl: see docs/architecture.md.
