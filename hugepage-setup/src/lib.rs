//! hugepage-setup: see docs/architecture.md.
