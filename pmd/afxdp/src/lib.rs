//! afxdp: see docs/architecture.md.
