//! Connections that the host makes to ports of its own addresses and that belong elsewhere: an nftables table of our own.
//!
//! Packets to an own address never leave a host, so they are translated before they are routed (hook `output`). From the
//! loopback they could not leave either: their source becomes the address of the interface they go out of, and that interface
//! takes their replies back (`route_localnet`, for IPv4; IPv6 knows no such thing). The table is replaced whole, in one
//! transaction of the kernel; without redirects there is none, and then the host tracks no connections for us.
//! Source: nft(8), `Documentation/networking/ip-sysctl.rst`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use crate::{HostError, Netns, link, sysctl};

/// Name of the table, in the families `ip` and `ip6`.
pub const TABLE: &str = "sluicegate";

/// A port of the host's own addresses, and where connections to it go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Redirect {
    /// The host's address; none: any of its addresses.
    pub address: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
    /// Where to.
    pub to: SocketAddr,
}

/// Makes these the host's redirects; what leaves goes out of `interface`. May be repeated; none removes the table.
///
/// # Errors
/// When there is no `nft` program, or the kernel refuses.
pub fn set_redirects(ns: &Netns, interface: &str, redirects: &BTreeSet<Redirect>) -> Result<(), HostError> {
    link::check_name(interface)?;
    if redirects.iter().any(|r| r.to.is_ipv4() && r.address.is_none_or(|a| a.is_loopback())) {
        ns.run(|| sysctl::write(ns.label(), &format!("net/ipv4/conf/{interface}/route_localnet"), "1"))??;
    }
    nft(ns, &ruleset(interface, redirects))
}

/// Removes the table, where it is.
///
/// # Errors
/// As [`set_redirects`].
pub fn remove_redirects(ns: &Netns) -> Result<(), HostError> {
    nft(ns, &ruleset("lo", &BTreeSet::new()))
}

fn nft(ns: &Netns, text: &str) -> Result<(), HostError> {
    let failed = |source: std::io::Error, detail: String| HostError::Kernel {
        operation: "set the redirects of the host's own ports with nft".to_owned(),
        namespace: ns.label().to_owned(),
        source,
        detail,
    };
    let output = ns.run(|| -> std::io::Result<_> {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(text.as_bytes())?;
        }
        child.wait_with_output()
    })?;
    let output = output.map_err(|source| failed(source, String::new()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(std::io::Error::other("nft refuses"), said))
}

/// Two tables in one transaction: each is made so that it can be deleted, deleted, and made anew where it has anything.
fn ruleset(interface: &str, redirects: &BTreeSet<Redirect>) -> String {
    let mut text = String::new();
    for (family, kind, v4) in [("ip", "ipv4_addr", true), ("ip6", "ipv6_addr", false)] {
        let _ = writeln!(text, "table {family} {TABLE}\ndelete table {family} {TABLE}");
        let own: Vec<&Redirect> = redirects.iter().filter(|r| r.to.is_ipv4() == v4).collect();
        if own.is_empty() {
            continue;
        }
        let to = |r: &Redirect| format!("{} . {}", r.to.ip(), r.to.port());
        let exact =
            own.iter().filter_map(|r| Some(format!("{} . {} . {} : {}", r.address?, r.protocol, r.port, to(r))));
        let exact: Vec<String> = exact.collect();
        let any = own.iter().filter(|r| r.address.is_none());
        let any: Vec<String> = any.map(|r| format!("{} . {} : {}", r.protocol, r.port, to(r))).collect();
        let _ = writeln!(text, "table {family} {TABLE} {{");
        let mut map = |name: &str, key: &str, elements: &[String]| {
            let value = format!("{kind} . inet_service");
            let _ = writeln!(text, "  map {name} {{ type {key} : {value}");
            if !elements.is_empty() {
                let _ = writeln!(text, "    elements = {{ {} }}", elements.join(", "));
            }
            let _ = writeln!(text, "  }}");
        };
        map("one_address", &format!("{kind} . inet_proto . inet_service"), &exact);
        map("any_address", "inet_proto . inet_service", &any);
        let _ = writeln!(
            text,
            "  chain output {{\n    type nat hook output priority -100; policy accept;\n    \
             dnat {family} to {family} daddr . meta l4proto . th dport map @one_address\n    \
             fib daddr type local dnat {family} to meta l4proto . th dport map @any_address\n  }}"
        );
        if v4 {
            let _ = writeln!(
                text,
                "  chain postrouting {{\n    type nat hook postrouting priority 100; policy accept;\n    \
                 oifname \"{interface}\" ip saddr 127.0.0.0/8 masquerade\n  }}"
            );
        }
        let _ = writeln!(text, "}}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(address: Option<&str>, port: u16, to: &str) -> Redirect {
        Redirect { address: address.map(|a| a.parse().unwrap()), protocol: 6, port, to: to.parse().unwrap() }
    }

    #[test]
    fn each_family_has_its_own_table_and_both_maps() {
        let all = BTreeSet::from([
            redirect(Some("192.0.2.11"), 30_080, "10.96.0.10:80"),
            redirect(None, 8080, "10.244.1.5:80"),
            redirect(None, 8080, "[fd00::5]:80"),
        ]);
        let text = ruleset("sluice0", &all);
        assert!(text.contains("192.0.2.11 . 6 . 30080 : 10.96.0.10 . 80"), "{text}");
        assert!(text.contains("6 . 8080 : 10.244.1.5 . 80") && text.contains("6 . 8080 : fd00::5 . 80"), "{text}");
        assert_eq!(text.matches("hook output").count(), 2);
        assert_eq!(text.matches("masquerade").count(), 1, "only IPv4 has a loopback that may be left");
    }

    #[test]
    fn without_redirects_both_tables_go() {
        let text = ruleset("sluice0", &BTreeSet::new());
        assert_eq!(text.matches("delete table").count(), 2);
        assert!(!text.contains("chain"));
    }
}
