//! Who reaches whom, for whole groups of pods that policy treats alike.
//!
//! All pods of the cluster are put on one node for this, so that one compilation serves them all; what a pod may do depends
//! on its labels and addresses, not on its node. Pods of a namespace with the same rules and the same identities behave the
//! same towards everybody and make a group. Ports asked about are those that policies, containers or Services name, and one
//! that nobody names, which stands for all others. A pair is asked in each family both have, and counts as denied where one
//! family is. Cost: groups² look-ups, and (sets × identities) × ports decisions.

use super::Proto;
use super::rehearsal::Rehearsal;
use crate::cli::failure::Failure;
use crate::domain_names::Known;
use sluice_ctrl::model::{Cluster, ClusterRule, Family, NamespacedName, PolicyRule, PortMatch, TargetPort};
use sluice_tables::{Address, DomainId, IdentityId, PolicySetId, Prefix, RuleId, Tables};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;

/// What is asked of each pair: a protocol, and a port or all that nobody names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// Protocol.
    pub proto: Proto,
    /// The port that is looked up.
    pub port: u16,
    /// It stands for all ports that nobody names.
    pub other: bool,
}

impl Probe {
    /// The port it is about; none for all ports that nobody names, and for ICMP.
    pub fn named_port(&self) -> Option<u16> {
        (!self.other && self.proto != Proto::Icmp).then_some(self.port)
    }

    /// As `tcp/80`, `tcp/other` or `icmp`.
    pub fn label(&self) -> String {
        match (self.proto, self.other) {
            (Proto::Icmp, _) => "icmp".to_owned(),
            (proto, true) => format!("{}/other", proto.name()),
            (proto, false) => format!("{}/{}", proto.name(), self.port),
        }
    }
}

/// What both ends' rules say to one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Whether it passes.
    pub allow: bool,
    /// An audited policy alone would have denied it.
    pub audit: bool,
    /// The rule that decided: the one that denies; else the destination's, else the source's.
    pub by: Option<Arc<str>>,
}

/// One end: what is looked up of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sign {
    egress: Option<PolicySetId>,
    ingress: Option<PolicySetId>,
    /// IPv4, IPv6.
    identities: [Option<IdentityId>; 2],
}

/// Decisions on all probes: allowed, audited, by which rule.
type Row = Vec<(bool, bool, RuleId)>;

/// What an answer about a domain name depends on: the source's egress set, its families, the name.
type OfDomain = (Option<PolicySetId>, [bool; 2], String);

/// Answers for a whole cluster.
pub struct Reach {
    tables: Rc<Tables>,
    probes: Vec<Probe>,
    signs: BTreeMap<NamespacedName, Sign>,
    domains: Known,
    family: Option<Family>,
    memo: RefCell<HashMap<[usize; 4], Rc<Vec<Judged>>>>,
    of_domains: RefCell<HashMap<OfDomain, Option<Rc<Vec<Judged>>>>>,
    /// What a set says of an identity, by the number of its row of decisions.
    rows: RefCell<HashMap<(PolicySetId, IdentityId), usize>>,
    numbers: RefCell<HashMap<Row, usize>>,
}

impl Reach {
    /// Compiles the cluster for these probes; `family` leaves the other one out.
    pub fn new(rehearsal: &Rehearsal, probes: Vec<Probe>, family: Option<Family>) -> Result<Reach, Failure> {
        let tables = rehearsal.everywhere()?;
        let mut signs = BTreeMap::new();
        for pod in tables.pods.iter() {
            let Some((namespace, name)) = pod.name.split_once('/') else { continue };
            let of = |v4: bool| {
                let wanted = family.is_none_or(|family| (family == Family::V4) == v4);
                let address = pod.addresses.iter().find(|address| wanted && address.is_v4() == v4)?;
                Some(tables.identities.of(*address))
            };
            let sign = Sign { egress: pod.egress, ingress: pod.ingress, identities: [of(true), of(false)] };
            signs.insert(NamespacedName::new(namespace, name), sign);
        }
        Ok(Reach {
            tables,
            probes,
            signs,
            domains: rehearsal.domains.clone(),
            family,
            memo: RefCell::default(),
            of_domains: RefCell::default(),
            rows: RefCell::default(),
            numbers: RefCell::default(),
        })
    }

    /// What is asked.
    pub fn probes(&self) -> &[Probe] {
        &self.probes
    }

    /// Every pod.
    pub fn pods(&self) -> &BTreeMap<NamespacedName, Sign> {
        &self.signs
    }

    /// An address outside that no rule names in particular; it stands for all of them.
    pub fn outside(&self, family: Option<Family>) -> Sign {
        let narrow: Vec<Prefix> = self.tables.identities.prefixes.entries().into_iter().map(|(p, _)| p).collect();
        let free = |address: IpAddr| {
            let address = Address::from(address);
            let inside =
                |prefix: &Prefix| prefix.contains(address) && prefix.len128() != if address.is_v4() { 96 } else { 0 };
            !narrow.iter().any(inside)
        };
        let v4 = (1..=223u8).rev().map(|first| IpAddr::V4(Ipv4Addr::new(first, 254, 251, 253))).find(|a| free(*a));
        let v6 = (0x2000..0x3fffu16)
            .rev()
            .map(|n| IpAddr::V6(Ipv6Addr::new(n, 0xfe, 0xfd, 0, 0, 0, 0, 1)))
            .find(|a| free(*a));
        let of = |wanted: Family, address: Option<IpAddr>| {
            let address = address.filter(|_| family.is_none_or(|family| family == wanted))?;
            Some(self.tables.identities.of(address.into()))
        };
        Sign { egress: None, ingress: None, identities: [of(Family::V4, v4), of(Family::V6, v6)] }
    }

    /// What every probe meets from one end to another; none where they have no family in common.
    pub fn judge(&self, from: &Sign, to: &Sign) -> Option<Rc<Vec<Judged>>> {
        let mut key = [usize::MAX; 4];
        for (at, (source, destination)) in from.identities.iter().zip(&to.identities).enumerate() {
            if let (Some(source), Some(destination)) = (source, destination) {
                key[2 * at] = self.map_of(from.egress, *destination);
                key[2 * at + 1] = self.map_of(to.ingress, *source);
            }
        }
        if key == [usize::MAX; 4] {
            return None;
        }
        if let Some(known) = self.memo.borrow().get(&key) {
            return Some(known.clone());
        }
        let all = Rc::new(self.probes.iter().map(|probe| self.ask(from, to, probe)).collect::<Vec<_>>());
        self.memo.borrow_mut().insert(key, all.clone());
        Some(all)
    }

    /// What every probe meets from one end to the addresses of a domain name; none where they have no family in common. What
    /// one of the addresses denies is denied: a client does not choose.
    pub fn judge_domain(&self, from: &Sign, name: &str) -> Option<Rc<Vec<Judged>>> {
        let families = from.identities.map(|identity| identity.is_some());
        let known = (from.egress, families, name.to_owned());
        if let Some(answer) = self.of_domains.borrow().get(&known) {
            return answer.clone();
        }
        let addresses: Vec<IpAddr> = self.domains.addresses(name)?;
        let both = |ip: &&IpAddr| {
            families[usize::from(ip.is_ipv6())] && self.family.is_none_or(|family| family == Family::of(ip))
        };
        let addresses: Vec<IpAddr> = addresses.iter().filter(both).copied().collect();
        let ask = |probe: &Probe| self.ask_domain(from, &addresses, probe);
        let answer = (!addresses.is_empty()).then(|| Rc::new(self.probes.iter().map(ask).collect::<Vec<_>>()));
        self.of_domains.borrow_mut().insert(known, answer.clone());
        answer
    }

    fn ask_domain(&self, from: &Sign, addresses: &[IpAddr], probe: &Probe) -> Judged {
        let policy = &self.tables.policy;
        let mut judged: Option<Judged> = None;
        for ip in addresses {
            let (identity, number) = (self.tables.identities.of((*ip).into()), probe.proto.number(Family::of(ip)));
            let knows = |names: &[DomainId]| self.domains.knows(&policy.domains, *ip, names);
            let (decision, _) = policy.decide_learned(from.egress, identity, number, probe.port, knows);
            let by = policy.name(decision.rule).cloned();
            if !decision.allow {
                return Judged { allow: false, audit: false, by };
            }
            let audit = decision.audit || judged.as_ref().is_some_and(|judged| judged.audit);
            judged = Some(Judged { allow: true, audit, by: judged.and_then(|judged| judged.by).or(by) });
        }
        judged.unwrap_or(Judged { allow: false, audit: false, by: None })
    }

    /// Which decisions a set has for an identity, as a number: equal ones are one.
    fn map_of(&self, set: Option<PolicySetId>, peer: IdentityId) -> usize {
        let Some(set) = set else { return 0 };
        if let Some(known) = self.rows.borrow().get(&(set, peer)) {
            return *known;
        }
        let decide = |probe: &Probe| {
            let decision = self.tables.policy.decide(Some(set), peer, probe.proto.number(Family::V4), probe.port);
            (decision.allow, decision.audit, decision.rule)
        };
        let row: Row = self.probes.iter().map(decide).collect();
        let mut numbers = self.numbers.borrow_mut();
        let next = numbers.len() + 1;
        let number = *numbers.entry(row).or_insert(next);
        self.rows.borrow_mut().insert((set, peer), number);
        number
    }

    fn ask(&self, from: &Sign, to: &Sign, probe: &Probe) -> Judged {
        let mut judged: Option<Judged> = None;
        for (family, (source, destination)) in
            [Family::V4, Family::V6].into_iter().zip(from.identities.iter().zip(&to.identities))
        {
            let (Some(source), Some(destination)) = (source, destination) else { continue };
            let number = probe.proto.number(family);
            let policy = &self.tables.policy;
            let egress = policy.decide(from.egress, *destination, number, probe.port);
            let ingress = policy.decide(to.ingress, *source, number, probe.port);
            let by = |rule| policy.name(rule).cloned();
            if !egress.allow || !ingress.allow {
                let rule = if egress.allow { ingress.rule } else { egress.rule };
                return Judged { allow: false, audit: false, by: by(rule) };
            }
            let audit = egress.audit || ingress.audit || judged.as_ref().is_some_and(|judged| judged.audit);
            let by = judged.and_then(|judged| judged.by).or(by(ingress.rule)).or(by(egress.rule));
            judged = Some(Judged { allow: true, audit, by });
        }
        judged.unwrap_or(Judged { allow: false, audit: false, by: None })
    }
}

/// Pods of one namespace that behave the same.
#[derive(Clone, Debug)]
pub struct Group {
    /// What it is called: the pod, or what its pods' names have in common.
    pub name: String,
    /// The namespace; empty for what is outside.
    pub namespace: String,
    /// Its pods.
    pub pods: Vec<NamespacedName>,
    /// What is looked up.
    pub sign: Sign,
    /// It is the addresses of the domain name it is called by.
    pub domain: bool,
}

impl Group {
    /// The addresses of a domain name.
    pub fn of_domain(name: &str, sign: Sign) -> Group {
        Group { name: name.to_owned(), namespace: String::new(), pods: Vec::new(), sign, domain: true }
    }
}

/// Groups of the pods that `wanted` takes, by namespace and name; `each` leaves every pod alone.
pub fn groups(reach: &Reach, wanted: impl Fn(&NamespacedName) -> bool, each: bool) -> Vec<Group> {
    let mut alike: BTreeMap<(String, Sign, usize), Vec<NamespacedName>> = BTreeMap::new();
    for (at, (name, sign)) in reach.pods().iter().enumerate().filter(|(_, (name, _))| wanted(name)) {
        let alone = if each { at } else { 0 };
        alike.entry((name.namespace.clone(), *sign, alone)).or_default().push(name.clone());
    }
    let mut groups: Vec<Group> = alike
        .into_iter()
        .map(|((namespace, sign, _), pods)| Group { name: title(&pods), namespace, pods, sign, domain: false })
        .collect();
    groups.sort_by(|a, b| a.pods.cmp(&b.pods));
    // Two groups may be alike in name: then each is called by its first pod.
    let mut times: HashMap<String, usize> = HashMap::new();
    groups.iter().for_each(|group| *times.entry(group.name.clone()).or_default() += 1);
    for group in groups.iter_mut().filter(|group| times[&group.name] > 1) {
        group.name = format!("{} +{}", group.pods[0], group.pods.len() - 1);
    }
    groups
}

/// `shop/web-*` for what several pods' names have in common, up to a dash.
fn title(pods: &[NamespacedName]) -> String {
    let (first, last) = (&pods[0], &pods[pods.len() - 1]);
    if pods.len() == 1 {
        return first.to_string();
    }
    // Sorted, so that what the first and the last share all share.
    let common = first.name.bytes().zip(last.name.bytes()).take_while(|(a, b)| a == b).count();
    match first.name[..common].rfind('-') {
        Some(dash) if dash > 0 => format!("{}/{}-*", first.namespace, &first.name[..dash]),
        _ => format!("{first} +{}", pods.len() - 1),
    }
}

/// What to ask about, from what the clusters name.
pub fn probes(clusters: &[&Cluster]) -> Vec<Probe> {
    let mut named: BTreeSet<u16> = BTreeSet::new();
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for cluster in clusters {
        let containers = cluster.pods.values().flat_map(|pod| &pod.ports).map(|port| port.port);
        named.extend(containers);
        for port in cluster.services.values().flat_map(|service| &service.ports) {
            if let TargetPort::Number(number) = port.target {
                named.insert(number);
            }
        }
        named.extend(cluster.endpoint_slices.values().flat_map(|slice| &slice.ports).map(|port| port.port));
        let policies = cluster.network_policies.values();
        let rules = policies.flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
        let ports = rules.filter_map(|rule: &PolicyRule| rule.ports.as_ref()).flatten();
        let wide =
            cluster.cluster_network_policies.values().flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
        let wide = wide.filter_map(|rule: &ClusterRule| rule.ports.as_ref()).flatten();
        for port in ports.chain(wide) {
            if let PortMatch::Range(_, range) = port {
                named.extend([range.first(), range.last()]);
                ranges.push((range.first(), range.last()));
            }
        }
    }
    // Inside a range, every stretch between two named ports is asked about by its first port.
    let inside = |port: u16| ranges.iter().any(|(first, last)| (*first..=*last).contains(&port));
    let stretches: Vec<u16> =
        named.iter().filter_map(|port| port.checked_add(1)).filter(|port| inside(*port)).collect();
    named.extend(stretches);
    // Any port outside all ranges is treated like every other such port.
    let free =
        |port: &u16| !named.contains(port) && !ranges.iter().any(|(first, last)| (*first..=*last).contains(port));
    let other = (1..=u16::MAX).rev().find(free);
    let mut probes = Vec::new();
    for proto in [Proto::Tcp, Proto::Udp, Proto::Sctp] {
        probes.extend(named.iter().map(|port| Probe { proto, port: *port, other: false }));
        probes.extend(other.map(|port| Probe { proto, port, other: true }));
    }
    probes.push(Probe { proto: Proto::Icmp, port: 0, other: false });
    probes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<NamespacedName> {
        list.iter().map(|name| NamespacedName::new("shop", *name)).collect()
    }

    #[test]
    fn a_group_is_called_by_what_its_pods_names_share() {
        assert_eq!(title(&names(&["web-0"])), "shop/web-0");
        assert_eq!(title(&names(&["web-7f9-a", "web-7f9-b"])), "shop/web-7f9-*");
        assert_eq!(title(&names(&["db", "web"])), "shop/db +1");
    }
}
