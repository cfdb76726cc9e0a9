//! Stories of objects and what a node makes of them: import, compile, and questions to the tables.

mod claims;
mod egress;
mod fail_closed;
mod host_ports;
mod incremental;
mod memory;
mod order;
mod policy;
mod policy_oracle;
mod services;
mod story;
mod ways;
