//! `sluice policy matrix`: who reaches whom, for people as a table or a picture, for programs as JSON, YAML or Graphviz.

use super::Proto;
use super::domains::DomainArgs;
use super::picture;
use super::reach::{Group, Judged, Probe, Reach, groups, probes};
use super::rehearsal::Rehearsal;
use crate::cli::failure::{Done, Failure};
use crate::cli::output::{Format, Output, table};
use clap::Args;
use serde::Serialize;
use sluice_ctrl::model::Family;
use std::path::PathBuf;

/// Prints who reaches whom.
#[derive(Args)]
#[command(
    after_help = "Pods of a namespace that behave the same share a row and a column (--each keeps them apart). `outside` is any address\n\
    that no rule names in particular; domain names that --dns gives addresses to have columns of their own.\n\
    Both ends count: egress of the source and ingress of the destination.\n\n\
    Examples:\n  sluice policy matrix --manifests cluster/\n  sluice policy matrix --manifests cluster/ --port 5432 --to-namespace shop\n  \
    sluice policy matrix --manifests cluster/ -o svg > reach.svg\n  sluice policy matrix --manifests cluster/ -o dot | dot -Tpdf > reach.pdf\n  \
    sluice policy matrix --manifests cluster/ --dns registry.example.org=198.51.100.7"
)]
pub struct MatrixArgs {
    /// Folder of Kubernetes manifests.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Only this destination port; default: every port that policies, containers or Services name.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only this protocol; with --port, tcp is the default.
    #[arg(long, value_enum, ignore_case = true)]
    proto: Option<Proto>,
    /// Only pods of this namespace, as sources and destinations; may be repeated.
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// Only sources of this namespace; may be repeated.
    #[arg(long, value_name = "NAMESPACE")]
    from_namespace: Vec<String>,
    /// Only destinations of this namespace; may be repeated.
    #[arg(long, value_name = "NAMESPACE")]
    to_namespace: Vec<String>,
    /// Only this address family; default: both, and one that is denied denies.
    #[arg(long, value_name = "4|6", value_parser = super::check::family)]
    family: Option<Family>,
    /// Every pod by itself.
    #[arg(long)]
    each: bool,
    #[command(flatten)]
    domains: DomainArgs,
}

/// Whether a pair may talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reached {
    /// On everything that was asked.
    Allow,
    /// On a part of it.
    Some,
    /// On nothing.
    Deny,
}

/// One end.
#[derive(Clone, Debug, Serialize)]
pub struct EndOf {
    /// What it is called: a pod, several, `outside`, or a domain name.
    pub name: String,
    /// The namespace; none for what is outside.
    pub namespace: Option<String>,
    /// Its pods.
    pub pods: Vec<String>,
}

/// One pair.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The source's name.
    pub from: String,
    /// The destination's name.
    pub to: String,
    /// Whether they may talk.
    pub verdict: Reached,
    /// What passes, as `tcp/80`; `tcp/other` stands for all ports that nobody names.
    pub ports: Vec<String>,
    /// Ports that pass because a policy that would deny them is only audited.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audited: Vec<String>,
    /// The rules that decided; `isolation` where a policy selects and none allows.
    pub decided_by: Vec<String>,
}

/// Who reaches whom.
#[derive(Clone, Debug, Serialize)]
pub struct Matrix {
    /// What was asked, as `tcp/80`, or `every named port`.
    pub asked: String,
    /// Sources, by namespace and name.
    pub sources: Vec<EndOf>,
    /// Destinations.
    pub destinations: Vec<EndOf>,
    /// Pairs that have an address family in common; a single pod and itself are none.
    pub cells: Vec<Cell>,
    /// Places in `cells`, source by source.
    #[serde(skip)]
    places: Vec<Option<usize>>,
}

impl Matrix {
    /// The pair of a source and a destination, by their places.
    pub fn cell(&self, from: usize, to: usize) -> Option<&Cell> {
        let place = self.places.get(from * self.destinations.len() + to).copied().flatten()?;
        self.cells.get(place)
    }
}

/// Prints it.
pub fn run(args: &MatrixArgs, output: &Output) -> Done {
    let rehearsal = Rehearsal::read(&args.manifests, &args.domains)?;
    rehearsal.notes.iter().for_each(|note| eprintln!("sluice: {note}"));
    let matrix = build(args, &rehearsal)?;
    match output.format() {
        Format::Svg => output.text(&picture::svg(&matrix, &args.manifests.display().to_string())),
        Format::Dot => output.text(&picture::dot(&matrix)),
        _ => output.print(&matrix, || text(&matrix)),
    }
}

fn build(args: &MatrixArgs, rehearsal: &Rehearsal) -> Result<Matrix, Failure> {
    let known = |namespace: &&String| !rehearsal.cluster.namespaces.contains_key(*namespace);
    let mut all = args.namespace.iter().chain(&args.from_namespace).chain(&args.to_namespace);
    if let Some(unknown) = all.find(known) {
        return Err(Failure::usage(format_args!("there is no namespace {unknown} in the manifests")));
    }
    let (asked, probes) = asked(args, rehearsal);
    let reach = Reach::new(rehearsal, probes, args.family)?;
    let side = |of: &[String]| {
        let wanted = |list: &[String], name: &str| list.is_empty() || list.iter().any(|n| n == name);
        let mut groups =
            groups(&reach, |name| wanted(&args.namespace, &name.namespace) && wanted(of, &name.namespace), args.each);
        if args.namespace.is_empty() && of.is_empty() {
            let (name, namespace) = ("outside".to_owned(), String::new());
            groups.push(Group { name, namespace, pods: Vec::new(), sign: reach.outside(args.family), domain: false });
        }
        groups
    };
    let (sources, mut destinations) = (side(&args.from_namespace), side(&args.to_namespace));
    if args.namespace.is_empty() && args.to_namespace.is_empty() {
        let names = rehearsal.domains.all().keys();
        destinations.extend(names.map(|name| Group::of_domain(name, reach.outside(args.family))));
    }
    let (mut cells, mut places) = (Vec::new(), Vec::new());
    for from in &sources {
        for to in &destinations {
            // An address outside and a domain name are both outside.
            let itself = from.pods == to.pods && from.pods.len() < 2;
            let judged = match to.domain {
                _ if itself => None,
                true => reach.judge_domain(&from.sign, &to.name),
                false => reach.judge(&from.sign, &to.sign),
            };
            places.push(judged.as_ref().map(|_| cells.len()));
            cells.extend(judged.map(|judged| cell(from, to, reach.probes(), &judged)));
        }
    }
    let end = |group: Group| EndOf {
        namespace: (!group.namespace.is_empty()).then_some(group.namespace),
        pods: group.pods.iter().map(ToString::to_string).collect(),
        name: group.name,
    };
    let ends = |groups: Vec<Group>| groups.into_iter().map(end).collect();
    Ok(Matrix { asked, sources: ends(sources), destinations: ends(destinations), cells, places })
}

/// The probes, and what they are called together.
fn asked(args: &MatrixArgs, rehearsal: &Rehearsal) -> (String, Vec<Probe>) {
    if args.proto == Some(Proto::Icmp) {
        return ("icmp".to_owned(), vec![Probe { proto: Proto::Icmp, port: 0, other: false }]);
    }
    if let Some(port) = args.port {
        let probe = Probe { proto: args.proto.unwrap_or_default(), port, other: false };
        return (probe.label(), vec![probe]);
    }
    let mut all = probes(&[&rehearsal.cluster]);
    let Some(proto) = args.proto else { return ("every port that is named somewhere, and ICMP".to_owned(), all) };
    all.retain(|probe| probe.proto == proto);
    (format!("every {} port that is named somewhere", proto.name()), all)
}

fn cell(from: &Group, to: &Group, probes: &[Probe], judged: &[Judged]) -> Cell {
    let labels = |wanted: &dyn Fn(&Judged) -> bool| -> Vec<String> {
        probes.iter().zip(judged).filter(|(_, judged)| wanted(judged)).map(|(probe, _)| probe.label()).collect()
    };
    let ports = labels(&|judged| judged.allow);
    let verdict = match ports.len() {
        0 => Reached::Deny,
        n if n == probes.len() => Reached::Allow,
        _ => Reached::Some,
    };
    let mut decided_by: Vec<String> =
        judged.iter().filter_map(|judged| judged.by.as_ref()).map(ToString::to_string).collect();
    decided_by.sort_unstable();
    decided_by.dedup();
    let audited = labels(&|judged| judged.audit);
    Cell { from: from.name.clone(), to: to.name.clone(), verdict, ports, audited, decided_by }
}

/// What passes in few words: `all`, `-`, `80,443/udp`, `all but 22`.
pub fn words(cell: &Cell) -> String {
    match cell.verdict {
        Reached::Allow => "all".to_owned(),
        Reached::Deny => "-".to_owned(),
        Reached::Some => {
            let short = |label: &String| match label.split_once('/') {
                Some(("tcp", port)) => port.to_owned(),
                Some((proto, port)) => format!("{port}/{proto}"),
                None => label.clone(),
            };
            let list: Vec<String> = cell.ports.iter().map(short).collect();
            if list.len() > 4 { format!("{},… ({})", list[..3].join(","), list.len()) } else { list.join(",") }
        }
    }
}

/// Columns that a table of text may have; more are listed pair by pair.
const WIDEST: usize = 12;

fn text(matrix: &Matrix) -> String {
    let mut text = format!("who reaches whom: {}\n\n", matrix.asked);
    let count =
        |end: &EndOf| if end.pods.len() > 1 { format!("{} ({})", end.name, end.pods.len()) } else { end.name.clone() };
    if matrix.destinations.len() <= WIDEST {
        let numbers: Vec<String> = (1..=matrix.destinations.len()).map(|n| format!("[{n}]")).collect();
        let head: Vec<&str> = ["FROM \\ TO"].into_iter().chain(numbers.iter().map(String::as_str)).collect();
        let rows = matrix.sources.iter().enumerate().map(|(from, end)| {
            let cells =
                (0..matrix.destinations.len()).map(move |to| matrix.cell(from, to).map_or("itself".to_owned(), words));
            [count(end)].into_iter().chain(cells).collect::<Vec<_>>()
        });
        text.push_str(&table(&head, rows));
        text.push('\n');
        for (end, number) in matrix.destinations.iter().zip(&numbers) {
            text.push_str(&format!("{number} {}\n", count(end)));
        }
        text.push_str(
            "\nall: everything that was asked; -: nothing; else the ports that pass, TCP unless said otherwise\n",
        );
        return text;
    }
    let rows = matrix.cells.iter().filter(|cell| cell.verdict != Reached::Deny);
    let rows = rows.map(|cell| [cell.from.clone(), cell.to.clone(), words(cell), cell.decided_by.join(" ")]);
    text.push_str(&table(&["FROM", "TO", "PORTS", "DECIDED BY"], rows));
    text.push_str(&format!(
        "\n{} sources, {} destinations; pairs that are not listed may not talk\n",
        matrix.sources.len(),
        matrix.destinations.len()
    ));
    text
}
