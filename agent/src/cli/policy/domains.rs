//! Addresses of domain names, as the operator says them: `--dns NAME=ADDRESS` and `--dns-file FILE`.
//!
//! A node learns them from the answers that pods get; a folder of manifests has no answers, and nothing is looked up here. A
//! pod is taken to have asked for every name that is said. What nobody says matches nothing, and is told.

use crate::cli::failure::Failure;
use crate::domain_names::{Known, name_of};
use clap::Args;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Where addresses of domain names come from.
#[derive(Args, Clone, Debug, Default)]
pub struct DomainArgs {
    /// Addresses that a pod would be told for a domain name (`*.example.org`: for some name below it); may be repeated.
    #[arg(long, value_name = "NAME=ADDRESS[,ADDRESS]", value_parser = one)]
    dns: Vec<(String, Vec<IpAddr>)>,
    /// A file of such addresses: a YAML or JSON mapping of names to lists, or the domains.json of a node; may be repeated.
    #[arg(long, value_name = "FILE")]
    dns_file: Vec<PathBuf>,
}

/// A file of names.
#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    /// What a node has written down (`domains.json` in its `state_dir`).
    Learned { version: u32, known: Vec<Learned> },
    /// Names and their addresses.
    Said(BTreeMap<String, Addresses>),
}

#[derive(Deserialize)]
struct Learned {
    name: String,
    address: IpAddr,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Addresses {
    One(IpAddr),
    Many(Vec<IpAddr>),
}

/// Reads `NAME=ADDRESS[,ADDRESS]`.
fn one(text: &str) -> Result<(String, Vec<IpAddr>), String> {
    let (name, list) = text.split_once('=').ok_or("expected NAME=ADDRESS, as www.example.org=198.51.100.7")?;
    let address = |text: &str| {
        text.trim().parse().map_err(|_| format!("{:?} is no IP address; names are not looked up here", text.trim()))
    };
    Ok((name_of(name)?, list.split(',').map(address).collect::<Result<_, String>>()?))
}

impl DomainArgs {
    /// As if each of these pairs of a name and an address had been given.
    #[cfg(test)]
    pub fn said(pairs: &[(&str, &str)]) -> DomainArgs {
        let dns = pairs.iter().map(|(name, address)| one(&format!("{name}={address}")).expect("a name and an address"));
        DomainArgs { dns: dns.collect(), dns_file: Vec::new() }
    }

    /// Everything that is said.
    pub fn read(&self) -> Result<Known, Failure> {
        let mut known = Known::default();
        for (name, addresses) in &self.dns {
            known.add(name, addresses.iter().copied()).map_err(Failure::usage)?;
        }
        for path in &self.dns_file {
            read(path, &mut known).map_err(|why| Failure::usage(format_args!("{}: {why}", path.display())))?;
        }
        Ok(known)
    }
}

/// Adds what a file says.
fn read(path: &Path, all: &mut Known) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read it: {error}"))?;
    let expected = "expected a mapping of domain names to lists of addresses, or the domains.json of a node";
    // YAML holds JSON.
    match serde_yaml_ng::from_str(&text).map_err(|_| expected)? {
        Document::Learned { version: 1, known } => {
            for Learned { name, address } in known {
                all.add(&name, [address])?;
            }
        }
        Document::Learned { version, .. } => return Err(format!("version {version} of domains.json is not known")),
        Document::Said(said) => {
            for (name, addresses) in said {
                let list = match addresses {
                    Addresses::One(address) => vec![address],
                    Addresses::Many(list) => list,
                };
                all.add(&name, list)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_no_name_or_no_address_is_refused_with_what_was_expected() {
        for (wrong, word) in [
            ("www.example.org", "expected NAME=ADDRESS"),
            ("www.example.org=", "no IP address"),
            ("a=b", "not looked up"),
            ("a..b=192.0.2.1", "no domain name"),
            ("=192.0.2.1", "no domain name"),
        ] {
            let error = one(wrong).unwrap_err();
            assert!(error.contains(word), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_file_maps_names_or_is_what_a_node_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            let path = folder.path().join("names");
            std::fs::write(&path, text).unwrap();
            let args = DomainArgs { dns: Vec::new(), dns_file: vec![path] };
            args.read().map_err(|failure| failure.message)
        };
        let mapped = read("a.example.org: [192.0.2.1, 2001:db8::1]\nb.example.org: 192.0.2.2\n").unwrap();
        assert_eq!(mapped.addresses("b.example.org"), Some(vec![ip("192.0.2.2")]));
        let node = r#"{"version":1,"known":[{"pod":"a/b","address":"192.0.2.1","name":"*.example.org","until":9,"held_until":0}]}"#;
        assert!(read(node).unwrap().belongs(ip("192.0.2.1"), "*.example.org"));
        assert!(read(&node.replace("\"version\":1", "\"version\":2")).unwrap_err().contains("version 2"));
        assert!(read("[1, 2]").unwrap_err().contains("expected a mapping"));
        assert!(read("a.example.org: [not-an-address]").unwrap_err().contains("expected a mapping"));
    }
}
