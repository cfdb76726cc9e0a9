//! Verdicts of the whole cluster, from the tables that its nodes would run on.
//!
//! A connection passes the egress rules of its source on the source's node, after Service translation there, and the
//! ingress rules of its destination on the destination's node. A Service is allowed where every backend is: a client does
//! not choose. The rules listed are [`super::considered`]'s, the verdict is the tables' alone.

use super::Proto;
use super::considered::{Considered, Question};
use super::names::{self, End, Named};
use super::rehearsal::Rehearsal;
use crate::cli::failure::Failure;
use crate::domain_names::Known;
use serde::Serialize;
use sluice_ctrl::model::{Family, Pod, Service, ServiceKind};
use sluice_tables::services::{Frontend, FrontendKey};
use sluice_tables::{Address, Direction, DomainId, Tables};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Allowed or denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every connection is let through.
    Allow,
    /// Connections are dropped or refused.
    Deny,
}

impl Verdict {
    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        }
    }

    /// From a decision.
    pub const fn of(allow: bool) -> Verdict {
        if allow { Verdict::Allow } else { Verdict::Deny }
    }
}

/// What one end's rules say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Its verdict.
    pub verdict: Verdict,
    /// The rule that decided, as a node's verdicts name it; none where no policy selects the pod.
    pub decided_by: Option<String>,
    /// The rule that is named would deny, but its policy is only audited.
    pub audit: bool,
    /// Why no rules are asked, where none are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The rules that were weighed, in order.
    pub considered: Vec<Considered>,
}

impl Side {
    /// No policy is asked.
    fn unasked(why: impl Into<String>) -> Side {
        Side { verdict: Verdict::Allow, decided_by: None, audit: false, why: Some(why.into()), considered: Vec::new() }
    }
}

/// Both sides of a connection to one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Address and port after Service translation.
    pub address: SocketAddr,
    /// Who has the address.
    pub name: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The rule that decided.
    pub decided_by: Option<String>,
    /// The source's rules.
    pub egress: Side,
    /// The destination's rules.
    pub ingress: Side,
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The source as it was named.
    pub from: String,
    /// The destination as it was named.
    pub to: String,
    /// Protocol.
    pub proto: Proto,
    /// Destination port; none for ICMP.
    pub port: Option<u16>,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The rule that decided: the one that denies; else the destination's, else the source's.
    pub decided_by: Option<String>,
    /// Why a Service denies without a policy, as `NoBackend`.
    pub reason: Option<String>,
    /// The source's rules, towards the backend that decides.
    pub egress: Side,
    /// The destination's rules, of the backend that decides.
    pub ingress: Side,
    /// Every backend, where the destination is a Service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
}

/// A connection to judge.
#[derive(Clone, Debug)]
pub struct Connection<'a> {
    /// The source as it is to be named.
    pub from: &'a str,
    /// The destination as it is to be named.
    pub to: &'a str,
    /// Protocol.
    pub proto: Proto,
    /// Destination port; none for ICMP.
    pub port: Option<u16>,
    /// The family; none takes the first that both have.
    pub family: Option<Family>,
}

impl Connection<'_> {
    /// Judges it. A failure names what is not known or does not fit.
    pub fn judge(&self, rehearsal: &Rehearsal) -> Result<Answer, Failure> {
        if self.port.is_none() && self.proto != Proto::Icmp {
            return Err(Failure::usage(format_args!("{} needs a port", self.proto.name())));
        }
        let from = names::find(rehearsal, self.from)?;
        let to = names::find(rehearsal, self.to)?;
        if let End::Service(service) = &from.end {
            return Err(Failure::usage(format_args!("Service {} opens no connections; name a pod", service.name)));
        }
        if let End::Domain(name, _) = &from.end {
            return Err(Failure::usage(format_args!("{name} is a domain name; name the source by its address")));
        }
        let family = self.family(&from, &to)?;
        let Some(source) = from.address_of(family) else { return Err(self.familyless(family)) };
        let judge = Judge { rehearsal, from: &from.end, source, proto: self.proto, family };
        let port = if self.proto == Proto::Icmp { 0 } else { self.port.unwrap_or(0) };
        let (backends, reason, translated) = match judge.targets(&to, port)? {
            Targets::Itself(address) => (vec![judge.backend(&to.end, address, (address, port), false)?], None, false),
            Targets::Backends(list) => {
                let named = matches!(to.end, End::Domain(..));
                let each = list.into_iter().map(|at| {
                    let end = names::find(rehearsal, &at.ip().to_string())?.end;
                    judge.backend(&end, to.asked(family, at.ip()), (at.ip(), at.port()), !named)
                });
                (each.collect::<Result<Vec<_>, _>>()?, None, true)
            }
            Targets::Nobody(reason) => (Vec::new(), Some(reason), true),
        };
        let deciding = backends.iter().find(|b| b.verdict == Verdict::Deny).or(backends.first());
        let nobody = || Side::unasked("the Service sends nobody there");
        Ok(Answer {
            from: self.from.to_owned(),
            to: self.to.to_owned(),
            proto: self.proto,
            port: self.port.filter(|_| self.proto != Proto::Icmp),
            family: family.to_string(),
            verdict: deciding.map_or(Verdict::Deny, |b| b.verdict),
            decided_by: deciding.and_then(|b| b.decided_by.clone()),
            reason: reason.map(str::to_owned),
            egress: deciding.map_or_else(nobody, |b| b.egress.clone()),
            ingress: deciding.map_or_else(nobody, |b| b.ingress.clone()),
            backends: if translated { backends } else { Vec::new() },
        })
    }

    fn family(&self, from: &Named, to: &Named) -> Result<Family, Failure> {
        if let Some(family) = self.family {
            return if from.has(family) && to.has(family) { Ok(family) } else { Err(self.familyless(family)) };
        }
        let mut families = from.addresses().into_iter().map(|address| Family::of(&address));
        families.find(|family| to.has(*family)).ok_or_else(|| {
            Failure::usage(format_args!("{} and {} have no address family in common", self.from, self.to))
        })
    }

    fn familyless(&self, family: Family) -> Failure {
        Failure::usage(format_args!("{} and {} do not both have an {family} address", self.from, self.to))
    }
}

/// Where a connection goes.
enum Targets {
    /// To the address that was named.
    Itself(IpAddr),
    /// To one of these.
    Backends(Vec<SocketAddr>),
    /// Nowhere, for this reason.
    Nobody(&'static str),
}

/// One source, ready to be judged towards anybody.
struct Judge<'a> {
    rehearsal: &'a Rehearsal,
    from: &'a End,
    source: IpAddr,
    proto: Proto,
    family: Family,
}

impl Judge<'_> {
    fn targets(&self, to: &Named, port: u16) -> Result<Targets, Failure> {
        if let End::Domain(_, addresses) = &to.end {
            let ours = addresses.iter().filter(|ip| Family::of(ip) == self.family);
            return Ok(Targets::Backends(ours.map(|ip| SocketAddr::new(*ip, port)).collect()));
        }
        if let End::Service(service) = &to.end {
            if service.kind == ServiceKind::ExternalName {
                return Err(Failure::usage(format_args!("Service {} is an ExternalName: a DNS alias", service.name)));
            }
            if service.headless {
                return Ok(self.headless(service, port));
            }
        }
        let Some(address) = to.address_of(self.family) else { return Ok(Targets::Nobody("NoRoute")) };
        let node = match &to.end {
            // An echo to a Service's address is answered by the source's own node.
            End::Service(_) if self.proto == Proto::Icmp => return Ok(Targets::Itself(address)),
            End::Service(_) => None,
            End::Node(node) if self.proto != Proto::Icmp => Some(node),
            _ => return Ok(Targets::Itself(address)),
        };
        // Services are translated where the connection enters: on the source's node, else on the one it was sent to.
        let entry = match self.from {
            End::Pod(pod) => pod.node.clone(),
            End::Node(node) => Some(node.name.clone()),
            _ => node.map(|node| node.name.clone()).or_else(|| self.rehearsal.cluster.nodes.keys().next().cloned()),
        };
        let Some(entry) = entry else { return Ok(Targets::Nobody("NoRoute")) };
        let tables = self.rehearsal.tables(&entry)?;
        let protocol = self.proto.number(self.family);
        let key = |address: IpAddr| FrontendKey { address: address.into(), protocol, port };
        let any: IpAddr = match self.family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let frontend = tables.services.frontend(&key(if node.is_some() { any } else { address }));
        Ok(match frontend {
            Some(frontend) => self.choice(frontend),
            None if node.is_some() => Targets::Itself(address),
            None => Targets::Nobody("NoBackend"),
        })
    }

    /// The backends a frontend may choose for this source.
    fn choice(&self, frontend: &Frontend) -> Targets {
        let outside = matches!(self.from, End::Outside(_));
        let closed = |ranges: &sluice_tables::Lpm<()>| ranges.lookup(self.source.into()).is_none();
        if outside && frontend.source_ranges.as_deref().is_some_and(closed) {
            return Targets::Nobody("SourceRangeDeny");
        }
        let (set, local_empty) = if outside {
            (&frontend.external, frontend.external_local_empty)
        } else {
            (&frontend.internal, frontend.internal_local_empty)
        };
        if set.backends.is_empty() {
            return Targets::Nobody(if local_empty { "NoLocalBackend" } else { "NoBackend" });
        }
        Targets::Backends(set.backends.iter().map(|b| SocketAddr::new(b.address.into(), b.port)).collect())
    }

    /// A headless Service is its endpoints: DNS gives their addresses, the port stays as asked for.
    fn headless(&self, service: &Service, port: u16) -> Targets {
        let slices = self.rehearsal.cluster.slices_of(&service.name).filter(|slice| slice.family == Some(self.family));
        let ready = slices.flat_map(|slice| slice.endpoints.iter());
        let ready = ready.filter(|endpoint| endpoint.ready || service.publish_not_ready);
        let mut all: Vec<SocketAddr> =
            ready.filter_map(|endpoint| Some(SocketAddr::new(*endpoint.addresses.first()?, port))).collect();
        all.sort_unstable();
        all.dedup();
        if all.is_empty() { Targets::Nobody("NoBackend") } else { Targets::Backends(all) }
    }

    /// One place that a connection to `asked` goes to.
    fn backend(
        &self,
        end: &End,
        asked: IpAddr,
        (address, port): (IpAddr, u16),
        translated: bool,
    ) -> Result<Backend, Failure> {
        let (egress, ingress) = self.sides(end, asked, (address, port), translated)?;
        let deny = [&egress, &ingress].into_iter().find(|side| side.verdict == Verdict::Deny);
        let decided_by = match deny {
            Some(side) => side.decided_by.clone(),
            None => ingress.decided_by.clone().or(egress.decided_by.clone()),
        };
        let name = match end {
            End::Pod(pod) => pod.name.to_string(),
            End::Service(service) => service.name.to_string(),
            End::Node(node) => format!("node/{}", node.name),
            End::Domain(name, _) => name.clone(),
            End::Outside(address) => address.to_string(),
        };
        let verdict = Verdict::of(deny.is_none());
        Ok(Backend { address: SocketAddr::new(address, port), name, verdict, decided_by, egress, ingress })
    }

    fn sides(
        &self,
        to: &End,
        asked: IpAddr,
        (address, port): (IpAddr, u16),
        translated: bool,
    ) -> Result<(Side, Side), Failure> {
        let itself = matches!((self.from, to), (End::Pod(a), End::Pod(b)) if a.name == b.name);
        if itself && !translated {
            let alone = || Side::unasked("a pod's packets to itself do not leave it");
            return Ok((alone(), alone()));
        }
        let peer_of = |end: &End| match end {
            End::Pod(pod) => Some(pod.clone()),
            _ => None,
        };
        let egress = match self.from {
            End::Pod(pod) => self.side(pod, Direction::Egress, (address, asked), peer_of(to).as_deref(), port)?,
            _ => Side::unasked("the source is no pod"),
        };
        let ingress = match to {
            End::Pod(_) if itself => Side::unasked("a pod that reaches itself through a Service comes from its node"),
            End::Pod(pod) => {
                let source = (self.source, self.source);
                self.side(pod, Direction::Ingress, source, peer_of(self.from).as_deref(), port)?
            }
            _ => Side::unasked("the destination is no pod"),
        };
        Ok((egress, ingress))
    }

    /// The rules of one pod in one direction; `peer` is the other end, after and before Service translation.
    fn side(
        &self,
        pod: &Pod,
        direction: Direction,
        (peer, asked): (IpAddr, IpAddr),
        who: Option<&Pod>,
        port: u16,
    ) -> Result<Side, Failure> {
        let Some(node) = &pod.node else { return Ok(Side::unasked("the pod is on no node")) };
        let tables = self.rehearsal.tables(node)?;
        if direction == Direction::Ingress && tables.node.owns(peer.into()) {
            return Ok(Side::unasked("a node always reaches its own pods"));
        }
        let domains = &self.rehearsal.domains;
        let packet = (self.proto.number(self.family), port);
        let decided = decide(&tables, domains, pod, direction, (peer, asked), packet);
        let cluster = &self.rehearsal.cluster;
        let question = Question { cluster, pod, peer, peer_pod: who, asked, domains, proto: self.proto, port };
        let considered = question.walk(direction).rules;
        let why = considered.is_empty().then(|| format!("no policy selects {}", pod.name));
        let Decided { allow, by: decided_by, audit } = decided;
        Ok(Side { verdict: Verdict::of(allow), decided_by, audit, why, considered })
    }
}

/// What tables decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Whether the packet may pass.
    pub allow: bool,
    /// The rule, if one is named.
    pub by: Option<String>,
    /// It would deny, but its policy is only audited.
    pub audit: bool,
}

/// What the tables of a pod's node decide, and by which rule, about a protocol number and a port. `peer` is the other end,
/// after and before Service translation.
pub fn decide(
    tables: &Tables,
    domains: &Known,
    pod: &Pod,
    direction: Direction,
    (peer, asked): (IpAddr, IpAddr),
    (protocol, port): (u8, u16),
) -> Decided {
    let name = pod.name.to_string();
    let by_address = pod.addresses.iter().find_map(|address| tables.pods.by_address((*address).into()));
    let local =
        by_address.filter(|local| *local.name == *name).or_else(|| tables.pods.iter().find(|p| *p.name == *name));
    // A pod without a port here is not let through by accident.
    let Some(local) = local else { return Decided { allow: false, by: None, audit: false } };
    let set = if direction == Direction::Ingress { local.ingress } else { local.egress };
    let policy = &tables.policy;
    let knows = |names: &[DomainId]| {
        direction == Direction::Egress && [peer, asked].iter().any(|ip| domains.knows(&policy.domains, *ip, names))
    };
    let (decision, _) = policy.decide_learned(set, tables.identities.of(Address::from(peer)), protocol, port, knows);
    let by = tables.policy.name(decision.rule).map(ToString::to_string);
    Decided { allow: decision.allow, by, audit: decision.audit }
}
