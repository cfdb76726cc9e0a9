//! Settings under `/proc/sys`, read and written as the namespace sees them.
//!
//! `/proc/sys/net` shows the namespace of the thread that opens the file, so every access runs inside the namespace.
//! A key is the path form (`net/ipv4/conf/eth0/rp_filter`): interface names may contain dots.
//!
//! A container that is not privileged sees `/proc/sys` read-only. It is given the host's folder at another place, which
//! the environment variable `SLUICE_PROC_SYS` names; the namespace is still the thread's.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::{HostError, Netns};

/// Reads a setting without its line's end.
///
/// # Errors
/// When the key is no path below `/proc/sys`, does not exist, or the namespace cannot be entered.
pub fn sysctl(ns: &Netns, key: &str) -> Result<String, HostError> {
    let path = path_of(key)?;
    let text = ns.run(|| fs::read_to_string(path))?;
    let text = text.map_err(|source| HostError::Sysctl {
        operation: "read",
        key: key.to_owned(),
        namespace: ns.label().to_owned(),
        source,
    })?;
    Ok(text.trim_end().to_owned())
}

/// Writes a setting; an empty value clears a list.
///
/// # Errors
/// As [`sysctl`], and when the kernel refuses the value.
pub fn set_sysctl(ns: &Netns, key: &str, value: &str) -> Result<(), HostError> {
    ns.run(|| write(ns.label(), key, value))?
}

/// Writes a setting from a thread that is inside the namespace already.
pub(crate) fn write(namespace: &str, key: &str, value: &str) -> Result<(), HostError> {
    let path = path_of(key)?;
    // The newline makes an empty value a write at all; one write call, for the kernel takes each as a whole value.
    fs::write(path, format!("{value}\n")).map_err(|source| HostError::Sysctl {
        operation: "write",
        key: key.to_owned(),
        namespace: namespace.to_owned(),
        source,
    })
}

/// True when the setting exists for the calling thread's namespace.
pub(crate) fn exists(key: &str) -> bool {
    path_of(key).is_ok_and(|path| path.exists())
}

fn root() -> &'static PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let named = std::env::var_os("SLUICE_PROC_SYS").filter(|path| !path.is_empty());
        named.map_or_else(|| PathBuf::from("/proc/sys"), PathBuf::from)
    })
}

fn path_of(key: &str) -> Result<PathBuf, HostError> {
    let sound = key.split('/').all(|part| !matches!(part, "" | "." | "..")) && !key.contains('\0');
    if !sound {
        return Err(HostError::BadName {
            name: key.to_owned(),
            what: "a path below /proc/sys such as net/ipv4/ip_forward",
        });
    }
    Ok(root().join(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_cannot_lead_out_of_proc_sys() {
        let ns = Netns::current().unwrap();
        for key in ["../version", "/etc/passwd", "", "net//ipv4", "net/./ipv4"] {
            assert!(matches!(sysctl(&ns, key), Err(HostError::BadName { .. })), "{key}");
        }
    }

    #[test]
    fn a_setting_is_read_without_its_newline() {
        let release = sysctl(&Netns::current().unwrap(), "kernel/osrelease").unwrap();
        assert!(!release.is_empty() && !release.contains('\n'));
    }

    #[test]
    fn an_absent_setting_is_named() {
        let error = sysctl(&Netns::current().unwrap(), "net/ipv4/conf/sg-absent/rp_filter").unwrap_err();
        assert!(error.to_string().contains("net/ipv4/conf/sg-absent/rp_filter"), "{error}");
    }
}
