//! `sluice policy diff`: every pair of pods whose verdict an edit changes.
//!
//! Pairs are of pods that both sides have. Pods that behave alike before and after are compared once, so that the cost is
//! that of their groups ([`super::reach`]) and of the changes that are written down.

use super::Proto;
use super::domains::DomainArgs;
use super::reach::{Judged, Probe, Reach, Sign, probes};
use super::rehearsal::Rehearsal;
use super::verdict::Verdict;
use crate::cli::failure::{Done, Failure};
use crate::cli::output::{Output, table};
use clap::Args;
use serde::Serialize;
use sluice_ctrl::model::NamespacedName;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Shows every pair of pods whose verdict an edit changes.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  sluice policy diff before/ after/\n  sluice policy diff before/ after/ --exit-code   # code 1 where something changes"
)]
pub struct DiffArgs {
    /// Folder of manifests before.
    #[arg(value_name = "OLD_DIR")]
    old: PathBuf,
    /// Folder of manifests after.
    #[arg(value_name = "NEW_DIR")]
    new: PathBuf,
    /// End with code 1 where a verdict changes.
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    domains: DomainArgs,
}

/// A verdict that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The source pod.
    pub from: String,
    /// The destination: a pod, or a domain name that addresses were given to.
    pub to: String,
    /// Protocol.
    pub proto: Proto,
    /// The port; none for all ports that nobody names, and for ICMP.
    pub port: Option<u16>,
    /// The verdict before.
    pub old: Verdict,
    /// The verdict after.
    pub new: Verdict,
    /// What decided before.
    pub old_decided_by: Option<String>,
    /// What decides after.
    pub new_decided_by: Option<String>,
}

/// What an edit changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Verdicts that change, by source, destination and port.
    pub changes: Vec<Change>,
    /// Pods that only the new side has.
    pub pods_added: Vec<String>,
    /// Pods that only the old side has.
    pub pods_removed: Vec<String>,
}

/// Prints the difference.
pub fn run(args: &DiffArgs, output: &Output) -> Done {
    let progress = Progress::new();
    progress.say(format_args!("reading {}", args.old.display()));
    let old = Rehearsal::read(&args.old, &args.domains)?;
    progress.say(format_args!("reading {}", args.new.display()));
    let new = Rehearsal::read(&args.new, &args.domains)?;
    progress.clear();
    for (folder, side) in [(&args.old, &old), (&args.new, &new)] {
        side.notes.iter().for_each(|note| eprintln!("sluice: {}: {note}", folder.display()));
    }
    let difference = compare(&old, &new, &progress)?;
    progress.clear();
    output.print(&difference, || text(&difference))?;
    match difference.changes.len() {
        0 => Ok(()),
        count if args.exit_code => Err(Failure::untrue(format_args!("{count} verdicts change"))),
        _ => Ok(()),
    }
}

/// One line on a terminal that says how far it is; nothing elsewhere.
struct Progress {
    shown: bool,
}

impl Progress {
    fn new() -> Progress {
        Progress { shown: std::io::stderr().is_terminal() }
    }

    fn say(&self, what: fmt::Arguments<'_>) {
        if self.shown {
            eprint!("\r\x1b[K{what} …");
        }
    }

    fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// Pods that behave alike on both sides.
struct Alike<'a> {
    before: Sign,
    after: Sign,
    pods: Vec<&'a NamespacedName>,
}

/// A pair, the probe that changes, and what all probes met before and after.
type Found<'a> = (&'a NamespacedName, To<'a>, usize, Rc<Vec<Judged>>, Rc<Vec<Judged>>);

/// The destination of a pair.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum To<'a> {
    Pod(&'a NamespacedName),
    Domain(&'a str),
}

impl fmt::Display for To<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            To::Pod(name) => name.fmt(f),
            To::Domain(name) => name.fmt(f),
        }
    }
}

/// What of a pair's probes changes: positions of probes.
type Changed = Rc<Vec<usize>>;

/// Compares two clusters.
fn compare(old: &Rehearsal, new: &Rehearsal, progress: &Progress) -> Result<Difference, Failure> {
    let probes = probes(&[&old.cluster, &new.cluster]);
    progress.say(format_args!("compiling the policies before"));
    let before = Reach::new(old, probes.clone(), None)?;
    progress.say(format_args!("compiling the policies after"));
    let after = Reach::new(new, probes.clone(), None)?;
    let only = |of: &Reach, not: &Reach| {
        of.pods().keys().filter(|name| !not.pods().contains_key(*name)).map(ToString::to_string).collect()
    };
    let mut difference =
        Difference { changes: Vec::new(), pods_added: only(&after, &before), pods_removed: only(&before, &after) };

    let mut groups: BTreeMap<(Sign, Sign), Alike<'_>> = BTreeMap::new();
    for (name, sign) in before.pods() {
        let Some(then) = after.pods().get(name) else { continue };
        let alike = || Alike { before: *sign, after: *then, pods: Vec::new() };
        groups.entry((*sign, *then)).or_insert_with(alike).pods.push(name);
    }
    let groups: Vec<Alike<'_>> = groups.into_values().collect();
    let mut changed = Differences::default();
    let mut told = Instant::now();
    let mut found: Vec<Found<'_>> = Vec::new();
    for (done, from) in groups.iter().enumerate() {
        if told.elapsed() > Duration::from_millis(100) {
            progress.say(format_args!("comparing: {} % of {} groups of pods", done * 100 / groups.len(), groups.len()));
            told = Instant::now();
        }
        for to in &groups {
            let (was, is) = (before.judge(&from.before, &to.before), after.judge(&from.after, &to.after));
            let (Some(was), Some(is)) = (was, is) else { continue };
            let places = changed.between(&was, &is);
            if places.is_empty() {
                continue;
            }
            for source in &from.pods {
                for destination in to.pods.iter().filter(|destination| *destination != source) {
                    let to = To::Pod(destination);
                    found.extend(places.iter().map(|at| (*source, to, *at, was.clone(), is.clone())));
                }
            }
        }
        for name in old.domains.all().keys() {
            let (was, is) = (before.judge_domain(&from.before, name), after.judge_domain(&from.after, name));
            let (Some(was), Some(is)) = (was, is) else { continue };
            for at in changed.between(&was, &is).iter() {
                found.extend(from.pods.iter().map(|pod| (*pod, To::Domain(name), *at, was.clone(), is.clone())));
            }
        }
    }
    found.sort_by_key(|(from, to, at, ..)| (*from, *to, *at));
    let change = |(from, to, at, was, is): Found<'_>| {
        let (probe, was, is): (&Probe, &Judged, &Judged) = (&probes[at], &was[at], &is[at]);
        Change {
            from: from.to_string(),
            to: to.to_string(),
            proto: probe.proto,
            port: probe.named_port(),
            old: Verdict::of(was.allow),
            new: Verdict::of(is.allow),
            old_decided_by: was.by.as_ref().map(ToString::to_string),
            new_decided_by: is.by.as_ref().map(ToString::to_string),
        }
    };
    difference.changes = found.into_iter().map(change).collect();
    Ok(difference)
}

/// Answers compared once for each pair of them.
#[derive(Default)]
struct Differences {
    known: HashMap<(*const Judged, *const Judged), Changed>,
}

impl Differences {
    fn between(&mut self, was: &Rc<Vec<Judged>>, is: &Rc<Vec<Judged>>) -> Changed {
        let compare = || {
            let each = was.iter().zip(is.iter()).enumerate();
            Rc::new(each.filter(|(_, (was, is))| was.allow != is.allow).map(|(at, _)| at).collect())
        };
        // The answers live as long as the clusters they are about, so that an address is one answer.
        self.known.entry((was.as_ptr(), is.as_ptr())).or_insert_with(compare).clone()
    }
}

/// A table in which ports that change alike share a line.
fn text(difference: &Difference) -> String {
    let mut lines: Vec<(&Change, Vec<String>)> = Vec::new();
    for change in &difference.changes {
        let port = match (change.proto, change.port) {
            (Proto::Icmp, _) => "icmp".to_owned(),
            (proto, Some(port)) => format!("{}/{port}", proto.name()),
            (proto, None) => format!("{}/other", proto.name()),
        };
        let alike = |known: &Change| {
            let key = |c: &Change| (c.old, c.new, c.old_decided_by.clone(), c.new_decided_by.clone());
            known.from == change.from && known.to == change.to && key(known) == key(change)
        };
        match lines.iter_mut().rev().take(8).find(|(known, _)| alike(known)) {
            Some((_, ports)) => ports.push(port),
            None => lines.push((change, vec![port])),
        }
    }
    let mut text = String::new();
    if lines.is_empty() {
        text.push_str("no verdict changes\n");
    } else {
        let by = |name: &Option<String>| name.clone().unwrap_or_else(|| "no policy".to_owned());
        let rows = lines.iter().map(|(change, ports)| {
            let verdict = format!("{} -> {}", change.old.name(), change.new.name());
            let decided = format!("{} -> {}", by(&change.old_decided_by), by(&change.new_decided_by));
            [change.from.clone(), change.to.clone(), ports.join(" "), verdict, decided]
        });
        text.push_str(&table(&["FROM", "TO", "PORTS", "VERDICT", "DECIDED BY"], rows));
    }
    for (word, pods) in [("added", &difference.pods_added), ("removed", &difference.pods_removed)] {
        if !pods.is_empty() {
            text.push_str(&format!("pods {word}, not compared: {}\n", pods.join(", ")));
        }
    }
    text
}
