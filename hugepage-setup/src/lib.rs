//! Host preparation for `sluiced`: which huge pages, VFs and settings it needs, and how the host comes to have them.
//!
//! [`sluice_machine`] reads the host, [`wanted`] computes the need, [`plan`] compares the two without side effects, [`advice`]
//! says what only an operator can do, [`apply`] carries a plan out and [`undo`] takes it back, [`record`] remembers what was
//! changed, [`files`] makes it last over a reboot. Everything works below a root folder, so that an init container can prepare
//! the host it sees at `/host`.
//! Source: the kernel's admin-guide/mm/hugetlbpage, admin-guide/mm/numa_memory_policy, PCI/pci-iov-howto, driver-api/vfio,
//! ip-sysctl; modules-load.d(5), sysctl.d(5), systemd.service(5).

pub mod advice;
pub mod apply;
pub mod files;
pub mod plan;
pub mod record;
pub mod step;
pub mod undo;
pub mod wanted;
