//! A machine's root folder and how its files are read.
//!
//! A file that is not there means that the kernel lacks the feature; one that cannot be read is an error.

use crate::list;
use std::io;
use std::path::{Path, PathBuf};

/// Why a machine could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file is there and cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A file does not say what its documentation promises.
    #[error("{}: expected {expected}, got {got:?}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What it holds.
        got: String,
    },
}

/// The root folder of a machine; files are named from it, without a slash in front.
#[derive(Clone, Copy, Debug)]
pub struct Root<'a> {
    folder: &'a Path,
}

impl<'a> Root<'a> {
    /// The machine below this folder.
    pub fn new(folder: &'a Path) -> Self {
        Root { folder }
    }

    /// Where a file of the machine is for this process.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file.trim_start_matches('/'))
    }

    /// Whether a file or folder is there.
    pub fn has(&self, file: &str) -> bool {
        self.path(file).exists()
    }

    /// A file's text; none where there is no such file.
    pub fn text(&self, file: &str) -> Result<Option<String>, ReadError> {
        let path = self.path(file);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(source) => Err(ReadError::Read { path, source }),
        }
    }

    /// A file's text without the white space around it; none where there is no such file or no text.
    pub fn word(&self, file: &str) -> Result<Option<String>, ReadError> {
        Ok(self.text(file)?.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()))
    }

    /// A decimal number.
    pub fn number(&self, file: &str) -> Result<Option<u64>, ReadError> {
        self.parsed(file, "a number", |text| text.parse().ok())
    }

    /// A hexadecimal number with `0x` in front.
    pub fn hex(&self, file: &str) -> Result<Option<u32>, ReadError> {
        let read = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        self.parsed(file, "a hexadecimal number", read)
    }

    /// A list of CPUs or nodes; empty where there is no such file.
    pub fn list(&self, file: &str) -> Result<Vec<u32>, ReadError> {
        Ok(self.parsed(file, "a CPU list", list::parse)?.unwrap_or_default())
    }

    /// A value that `read` knows how to read.
    pub fn parsed<T>(
        &self,
        file: &str,
        expected: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ReadError> {
        let Some(text) = self.text(file)? else { return Ok(None) };
        match read(text.trim()) {
            Some(value) => Ok(Some(value)),
            None => Err(ReadError::Parse { path: self.path(file), expected, got: text }),
        }
    }

    /// Names in a folder, in order; none where there is no such folder.
    pub fn names(&self, folder: &str) -> Result<Vec<String>, ReadError> {
        let path = self.path(folder);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(source) => return Err(ReadError::Read { path, source }),
        };
        let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Numbers behind a prefix in a folder, as 0 and 1 of `node0` and `node1`; ascending.
    pub fn numbered(&self, folder: &str, prefix: &str) -> Result<Vec<u32>, ReadError> {
        let names = self.names(folder)?;
        let mut all: Vec<u32> = names.iter().filter_map(|n| n.strip_prefix(prefix)?.parse().ok()).collect();
        all.sort_unstable();
        Ok(all)
    }

    /// The last part of what a symbolic link points to, as sysfs tells a device's driver or group.
    pub fn link(&self, file: &str) -> Option<String> {
        let target = std::fs::read_link(self.path(file)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }
}
