//! Writes to sysfs: the kernel's, or a test's stand-in that does to a fixture tree what the kernel would.

use std::io::{self, Write};
use std::path::Path;

/// Takes what is written to `driver_override`, `unbind`, `bind` and `drivers_probe`.
pub trait Bus: Send {
    /// Writes a word into a file; an empty one clears it.
    fn write(&self, file: &Path, value: &str) -> io::Result<()>;
}

/// The kernel that runs this program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sysfs;

impl Bus for Sysfs {
    fn write(&self, file: &Path, value: &str) -> io::Result<()> {
        // Not created, not truncated: the kernel's files are not files.
        let mut opened = std::fs::OpenOptions::new().write(true).open(file)?;
        opened.write_all(format!("{value}\n").as_bytes())
    }
}
