//! Addresses of domain names that somebody says instead of a resolver: for verdicts where no answers pass.
//!
//! Names are lower case, without a dot at their end; `*.example.org` stands for some name below `example.org`. A pod is taken
//! to have asked for every name that is said.

use sluice_ctrl::model::{Cluster, ClusterPeer};
use sluice_tables::domains::to_wire;
use sluice_tables::{DomainId, Domains};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Addresses by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    by_name: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// A domain name or wildcard as rules write it.
pub fn name_of(text: &str) -> Result<String, String> {
    let name = text.trim().trim_end_matches('.').to_ascii_lowercase();
    match to_wire(name.strip_prefix("*.").unwrap_or(&name)) {
        Some(_) => Ok(name),
        None => Err(format!("{text:?} is no domain name")),
    }
}

impl Known {
    /// Adds addresses of a name as somebody writes it; the error says what is wrong with the name.
    pub fn add(&mut self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), String> {
        self.by_name.entry(name_of(name)?).or_default().extend(addresses);
        Ok(())
    }

    /// The addresses of a name as somebody writes it.
    pub fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.by_name.get(&name_of(name).ok()?).map(|all| all.iter().copied().collect())
    }

    /// Every name with its addresses.
    pub fn all(&self) -> &BTreeMap<String, BTreeSet<IpAddr>> {
        &self.by_name
    }

    /// Whether an address belongs to one of the names that a rule of these tables asks for.
    pub fn knows(&self, domains: &Domains, address: IpAddr, names: &[DomainId]) -> bool {
        let holders = self.by_name.iter().filter(|(_, addresses)| addresses.contains(&address));
        holders.into_iter().any(|(name, _)| {
            let mut found = name.starts_with("*.") && names.contains(&DomainId::of(name));
            if let Some(wire) = to_wire(name.strip_prefix("*.").unwrap_or(name)).filter(|_| !name.starts_with("*.")) {
                domains.matching(&wire, |id| found |= names.contains(&id));
            }
            found
        })
    }

    /// Whether an address belongs to a name as a rule writes it.
    pub fn belongs(&self, address: IpAddr, rule: &str) -> bool {
        self.by_name.iter().any(|(name, addresses)| addresses.contains(&address) && falls_under(name, rule))
    }

    /// Whether any name that is said is one that a rule speaks of.
    pub fn speaks_of(&self, rule: &str) -> bool {
        self.by_name.keys().any(|name| falls_under(name, rule))
    }

    /// What to say of names that rules and operator do not both speak of.
    pub fn notes(&self, cluster: &Cluster) -> Vec<String> {
        let mut asked: BTreeSet<&str> = BTreeSet::new();
        for rule in cluster.cluster_network_policies.values().flat_map(|policy| &policy.egress) {
            for peer in rule.peers.iter().flatten() {
                if let ClusterPeer::Domains(names) = peer {
                    asked.extend(names.iter().map(String::as_str));
                }
            }
        }
        let mut notes = Vec::new();
        let unknown: Vec<&str> = asked.iter().copied().filter(|rule| !self.speaks_of(rule)).collect();
        if !unknown.is_empty() {
            notes.push(format!(
                "no address is known of {}: rules with domainNames match nothing there; --dns NAME=ADDRESS says one",
                unknown.join(", ")
            ));
        }
        let unasked = self.by_name.keys().filter(|name| !asked.iter().any(|rule| falls_under(name, rule)));
        notes.extend(unasked.map(|name| format!("no rule has {name} among its domainNames")));
        notes
    }
}

/// Whether a name that is said is one that a rule speaks of.
fn falls_under(name: &str, rule: &str) -> bool {
    let below = |parent: &str| name.strip_suffix(parent).is_some_and(|front| front.len() > 1 && front.ends_with('.'));
    name == rule || rule.strip_prefix("*.").is_some_and(|parent| !name.starts_with("*.") && below(parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn known(said: &[(&str, &str)]) -> Known {
        let mut known = Known::default();
        said.iter().for_each(|(name, address)| known.add(name, [ip(address)]).unwrap());
        known
    }

    #[test]
    fn a_name_has_the_addresses_that_are_said_whatever_its_case_and_last_dot() {
        let known = known(&[
            ("Www.Example.ORG.", "198.51.100.7"),
            ("www.example.org", "2001:db8::7"),
            ("www.example.org", "198.51.100.8"),
        ]);
        let all = known.addresses("www.example.org").unwrap();
        assert_eq!(all, [ip("198.51.100.7"), ip("198.51.100.8"), ip("2001:db8::7")]);
        assert_eq!(known.addresses("example.org"), None);
        assert!(Known::default().add("a..b", []).unwrap_err().contains("no domain name"));
    }

    #[test]
    fn rules_and_tables_agree_on_which_names_an_address_has() {
        let known = known(&[("a.b.c", "192.0.2.1"), ("*.x.y", "192.0.2.2"), ("b.c", "192.0.2.3")]);
        let rules = ["a.b.c", "b.c", "*.b.c", "*.c", "*.x.y", "*.y", "c", "*.a.b.c", "xb.c"];
        let domains = Domains::new(rules);
        for address in ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(ip) {
            for rule in rules {
                let by_table = known.knows(&domains, address, &[DomainId::of(rule)]);
                assert_eq!(by_table, known.belongs(address, rule), "{address} {rule}");
            }
        }
        assert!(known.belongs(ip("192.0.2.1"), "*.b.c") && !known.belongs(ip("192.0.2.3"), "*.b.c"));
    }
}
