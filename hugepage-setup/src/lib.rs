//! Host preparation for `sluiced`: which 2 MB pages it needs on which NUMA node, and how the host comes to have them.
//!
//! [`found`] reads the host, [`wanted`] computes the need, [`plan`] compares the two without side effects, [`apply`] carries
//! a plan out and takes it back, [`record`] remembers what was changed, [`mod@unit`] makes it last over a reboot. Everything
//! works below a root folder, so that an init container can prepare the host it sees at `/host`.
//! Source: the kernel's admin-guide/mm/hugetlbpage, admin-guide/mm/numa_memory_policy, hugetlbfs mount options.

pub mod apply;
pub mod found;
pub mod plan;
pub mod record;
pub mod unit;
pub mod wanted;
