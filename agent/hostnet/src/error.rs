//! What can go wrong when the agent asks the kernel for a namespace, an interface, a route or a setting.
//!
//! Every message names the operation, where it was tried, the cause, and the command that mends it where there is one.

use std::io;
use std::path::PathBuf;

use ipnet::IpNet;
use rustix::io::Errno;

/// Why host networking could not be read or arranged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// A namespace's file could not be opened or examined.
    #[error("cannot open network namespace {}: {source}{}", path.display(), open_remedy(source))]
    OpenNamespace {
        /// The file that was opened.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file exists but no network namespace is mounted on it (left over after a restart of the machine, for instance).
    #[error("{} is not a network namespace; if it is left over: `rm {0}`, then let the runtime make it again", path.display())]
    NotANamespace {
        /// The file that was opened.
        path: PathBuf,
    },
    /// `setns` was refused, or its thread could not be started.
    #[error("cannot enter network namespace {namespace}: {source}{}", privilege_remedy(source, "CAP_SYS_ADMIN"))]
    EnterNamespace {
        /// The namespace as it was opened.
        namespace: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A name that the kernel would not take, or that would lead outside `/proc/sys`.
    #[error("`{name}` is not {what}")]
    BadName {
        /// The text as given.
        name: String,
        /// What it should have been.
        what: &'static str,
    },
    /// The interface is not in that namespace.
    #[error(
        "cannot {operation}: no interface {interface} in network namespace {namespace}; `ip link` there shows what it has"
    )]
    NoInterface {
        /// What was attempted.
        operation: &'static str,
        /// The name that was looked up.
        interface: String,
        /// The namespace that was searched.
        namespace: String,
    },
    /// The name is another interface's in that namespace.
    #[error(
        "cannot {operation}: network namespace {namespace} has an interface {interface} already; `ip link set {interface} name OTHER` there frees the name"
    )]
    NameTaken {
        /// What was attempted.
        operation: &'static str,
        /// The name.
        interface: String,
        /// The namespace that has it.
        namespace: String,
    },
    /// IPv6 needs 1,280 bytes (RFC 8200 section 5); the kernel takes IPv6 off an interface with less.
    #[error(
        "cannot give {interface} an IPv6 address with an MTU of {mtu}: IPv6 needs 1280 or more; raise the uplink's: `ip link set UPLINK mtu 1500`"
    )]
    MtuTooSmall {
        /// The interface to configure.
        interface: String,
        /// The MTU that was wanted, in bytes.
        mtu: u32,
    },
    /// A destination already has a route that we did not make.
    #[error(
        "cannot route {destination} over {interface} in network namespace {namespace}: another route to it exists; `ip route show {destination}` shows it, `ip route del {destination}` removes it"
    )]
    RouteTaken {
        /// The prefix that was to be routed.
        destination: IpNet,
        /// The interface it was to go over.
        interface: String,
        /// The namespace of that interface.
        namespace: String,
    },
    /// The kernel refused a netlink request.
    #[error(
        "cannot {operation} in network namespace {namespace}: {source}{}{}",
        parenthesised(detail),
        kernel_remedy(source, operation)
    )]
    Kernel {
        /// What was attempted, with the interface.
        operation: String,
        /// The namespace it was attempted in.
        namespace: String,
        /// The kernel's answer.
        source: io::Error,
        /// The kernel's own words (extended acknowledgement), or empty.
        detail: String,
    },
    /// The kernel's answer could not be understood.
    #[error("cannot {operation} in network namespace {namespace}: the kernel's answer does not parse: {cause}")]
    Malformed {
        /// What was attempted, with the interface.
        operation: String,
        /// The namespace it was attempted in.
        namespace: String,
        /// What the parser said.
        cause: String,
    },
    /// A setting under `/proc/sys` could not be read or written.
    #[error("cannot {operation} /proc/sys/{key} in network namespace {namespace}: {source}{}", sysctl_remedy(source))]
    Sysctl {
        /// `read` or `write`.
        operation: &'static str,
        /// The setting, as a path below `/proc/sys`.
        key: String,
        /// The namespace whose setting it is.
        namespace: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An address was accepted but did not become usable in time.
    #[error(
        "address {address} on {interface} in network namespace {namespace} did not become usable within {waited_ms} ms; `ip address show dev {interface}` there shows its state"
    )]
    NotUsable {
        /// The address that was given to the interface.
        address: std::net::IpAddr,
        /// The interface.
        interface: String,
        /// The namespace of the interface.
        namespace: String,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
}

fn is(source: &io::Error, errno: Errno) -> bool {
    source.raw_os_error() == Some(errno.raw_os_error())
}

fn parenthesised(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

fn privilege_remedy(source: &io::Error, capability: &str) -> String {
    if is(source, Errno::PERM) || is(source, Errno::ACCESS) {
        format!("; run as root or grant {capability}")
    } else {
        String::new()
    }
}

fn open_remedy(source: &io::Error) -> String {
    if is(source, Errno::NOENT) {
        "; `ip netns list` shows the named ones".to_owned()
    } else {
        privilege_remedy(source, "CAP_SYS_ADMIN")
    }
}

fn kernel_remedy(source: &io::Error, operation: &str) -> String {
    if is(source, Errno::OPNOTSUPP) && operation.contains("veth") {
        "; `modprobe veth` loads the driver".to_owned()
    } else if is(source, Errno::NOBUFS) && operation.contains("neighbour") {
        "; the neighbour table is full: `sysctl -w net.ipv4.neigh.default.gc_thresh3=8192` (or net.ipv6)".to_owned()
    } else {
        privilege_remedy(source, "CAP_NET_ADMIN")
    }
}

fn sysctl_remedy(source: &io::Error) -> &'static str {
    if is(source, Errno::ROFS) {
        "; /proc/sys is mounted read-only: mount the host's /proc/sys/net at another place and name it in SLUICE_PROC_SYS, \
         as deploy/ does, or run the container privileged"
    } else if is(source, Errno::PERM) || is(source, Errno::ACCESS) {
        "; run as root or grant CAP_NET_ADMIN"
    } else if is(source, Errno::NOENT) {
        "; the interface or the kernel's support for that family is missing (IPv6: boot without ipv6.disable=1)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_operation_place_cause_and_remedy() {
        let error = HostError::Kernel {
            operation: "set eth0 up".to_owned(),
            namespace: "/run/netns/a".to_owned(),
            source: Errno::PERM.into(),
            detail: "no".to_owned(),
        };
        let text = error.to_string();
        for part in ["set eth0 up", "/run/netns/a", "not permitted", "(no)", "CAP_NET_ADMIN"] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    }

    #[test]
    fn a_cause_without_a_known_remedy_ends_with_the_cause() {
        let error = HostError::Sysctl {
            operation: "write",
            key: "net/ipv4/ip_forward".to_owned(),
            namespace: "current".to_owned(),
            source: Errno::INVAL.into(),
        };
        assert!(error.to_string().ends_with("(os error 22)"), "{error}");
    }
}
