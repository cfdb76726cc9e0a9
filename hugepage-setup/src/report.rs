//! What is printed: plans, checks and outcomes, as tables, JSON and YAML.

use crate::Failure;
use crate::arguments::Format;
use comfy_table::{Table, presets::NOTHING};
use hugepage_setup::apply::Outcome;
use hugepage_setup::plan::Plan;
use hugepage_setup::step::{Missing, Step};
use hugepage_setup::wanted::{Configuration, NodeWanted, Wanted};
use serde::Serialize;
use sluice_machine::Machine;
use sluice_machine::devices::kind;
use sluice_machine::list::ranges;
use sluice_machine::machine::Pages;
use sluice_machine::pci::Function;
use std::io::Write;

/// What `--dry-run` prints.
#[derive(Serialize)]
pub struct Report {
    pub configuration: Configuration,
    pub found: Machine,
    pub wanted: Wanted,
    pub plan: Plan,
}

/// What `--check` prints.
#[derive(Serialize)]
pub struct Check {
    pub missing: Vec<Missing>,
}

/// Prints a value.
pub fn print(format: Format, value: &impl Serialize, table: impl FnOnce() -> String) -> Result<(), Failure> {
    let text = match format {
        Format::Table => table(),
        Format::Json => serde_json::to_string_pretty(value).map_err(|e| Failure(1, e.to_string()))? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(value).map_err(|e| Failure(1, e.to_string()))?,
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader that has gone (`| head`) is no failure.
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure(1, e.to_string())),
        _ => Ok(()),
    }
}

/// What is missing, two lines each.
pub fn lines(missing: &[Missing]) -> String {
    missing.iter().map(|m| format!("missing: {}\n    {}", m.what, m.command)).collect::<Vec<_>>().join("\n")
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A plan for people.
pub fn report_table(report: &Report) -> String {
    let mut text = nodes_table(report);
    if !report.found.devices.is_empty() {
        text += "\n";
        text += &devices_table(&report.found);
    }
    let steps = report.plan.steps.iter().map(|step| match step {
        Step::Advice { what, gains } => vec!["advice".to_owned(), what.clone(), gains.clone()],
        step => vec!["apply".to_owned(), step.command().unwrap_or_default(), step.gains().to_owned()],
    });
    text += "\n";
    text += &table(&["STEP", "COMMAND", "GAINS"], steps);
    for short in &report.plan.shortfalls {
        text += &format!("\nshort: {short}\n");
    }
    if !report.plan.lacks.is_empty() {
        text += &format!("\n{}\n", lines(&report.plan.lacks));
    }
    text
}

fn nodes_table(report: &Report) -> String {
    let nodes = report.found.nodes.iter().map(|node| {
        let wanted = report.wanted.nodes.iter().find(|w| w.node == node.id);
        let of = |pages: &Option<Pages>, f: fn(&Pages) -> String| pages.as_ref().map_or("none".to_owned(), f);
        vec![
            node.id.to_string(),
            ranges(&node.cpus),
            (node.available_kib >> 10).to_string(),
            of(&node.pages, |p| p.total.to_string()),
            of(&node.pages, |p| p.free.to_string()),
            of(&node.pages, |p| p.sluiced.to_string()),
            wanted.map_or(0, NodeWanted::pages).to_string(),
            of(&node.gigantic, |p| format!("{} ({} free)", p.total, p.free)),
            wanted.map_or(0, |w| w.gigantic).to_string(),
            wanted.map_or(String::new(), |w| ranges(&w.workers)),
        ]
    });
    let head =
        ["NODE", "CPUS", "AVAILABLE MB", "2MB PAGES", "FREE", "SLUICED", "WANTED", "1GB PAGES", "WANTED", "WORKERS"];
    table(&head, nodes)
}

fn devices_table(found: &Machine) -> String {
    let rows = found.devices.iter().map(|device| {
        let role = match &device.function {
            Function::Virtual { pf, index } => format!("VF {} of {pf}", index.map_or("?".into(), |n| n.to_string())),
            Function::Physical { total_vfs: 0, .. } => "no SR-IOV".to_owned(),
            Function::Physical { total_vfs, vfs } => format!("PF, {} of {total_vfs} VFs", vfs.len()),
        };
        let known = kind(device.vendor, device.device);
        let names: Vec<&str> = device.interfaces.iter().map(|i| i.name.as_str()).collect();
        vec![
            device.address.clone(),
            names.join(","),
            device.id(),
            role,
            device.node.map_or("-".to_owned(), |n| n.to_string()),
            device.driver.clone().unwrap_or_else(|| "none".to_owned()),
            device.iommu_group.map_or("-".to_owned(), |g| g.to_string()),
            known.map_or("left alone".to_owned(), |k| match k.method {
                sluice_machine::devices::Method::VfioPci => "vfio-pci".to_owned(),
                sluice_machine::devices::Method::Bifurcated => format!("stays on {}", k.kernel),
            }),
        ]
    });
    table(&["DEVICE", "INTERFACE", "ID", "FUNCTION", "NODE", "DRIVER", "IOMMU GROUP", "FOR USERSPACE"], rows)
}

/// What was done, for people.
pub fn outcome_table(outcome: &Outcome) -> String {
    let groups = [("done", &outcome.done), ("short", &outcome.short), ("note", &outcome.notes)];
    groups.iter().flat_map(|(kind, all)| all.iter().map(move |line| format!("{kind}: {line}\n"))).collect()
}
