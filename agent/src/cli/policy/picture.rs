//! A matrix as a picture (SVG) and as a graph (Graphviz).
//!
//! Colours are of Okabe and Ito's palette and differ in lightness too, and each verdict has a mark of its own, so that the
//! picture reads in grey and by people who do not tell red from green.

use super::matrix::{Cell, EndOf, Matrix, Reached, words};
use std::fmt::Write;

/// Side of a cell, in pixels.
const CELL: usize = 30;
/// Between two namespaces.
const GAP: usize = 10;
/// Width of a letter of a label, generously.
const LETTER: f64 = 6.7;
const MARGIN: usize = 24;
/// Width of the band that names a namespace.
const BAND: usize = 20;

const ALLOW: &str = "#0072B2";
const SOME: &str = "#F0E442";
const DENY: &str = "#F4F1EE";
const MARK_DENY: &str = "#B4471B";
const AUDIT: &str = "#D55E00";

/// Places along one side: where each end begins, and each namespace with its first and last pixel.
struct Side {
    at: Vec<usize>,
    bands: Vec<(String, usize, usize)>,
    end: usize,
}

fn side(ends: &[EndOf], start: usize) -> Side {
    let (mut at, mut bands, mut place) = (Vec::new(), Vec::new(), start);
    for band in ends.chunk_by(|a, b| a.namespace == b.namespace) {
        let name = band[0].namespace.clone().unwrap_or_default();
        let from = place;
        at.extend((0..band.len()).map(|n| from + n * CELL));
        // A band is as long as its name, however few its members.
        let length = (band.len() * CELL).max(wide(&name) * 11 / 10 + 8);
        place += length + GAP;
        bands.push((name, from, from + length));
    }
    Side { at, bands, end: place.saturating_sub(GAP) }
}

/// The label without the namespace, which the band names.
fn label(end: &EndOf) -> String {
    let name = end.name.split_once('/').map_or(end.name.as_str(), |(_, name)| name);
    if end.pods.len() > 1 && !name.contains(" +") { format!("{name} ×{}", end.pods.len()) } else { name.to_owned() }
}

fn wide(text: &str) -> usize {
    (text.chars().count() as f64 * LETTER).ceil() as usize
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The picture; `source` is named under the title.
pub fn svg(matrix: &Matrix, source: &str) -> String {
    let longest = |ends: &[EndOf]| ends.iter().map(|end| wide(&label(end))).max().unwrap_or(0);
    // Column labels stand upright, so that long ones do not reach over their neighbours.
    let (left, top) = (MARGIN + BAND + 16 + longest(&matrix.sources), 96 + BAND + 14 + longest(&matrix.destinations));
    let (rows, columns) = (side(&matrix.sources, top), side(&matrix.destinations, left));
    let legend = rows.end + 28;
    let title = format!("Who reaches whom: {}", matrix.asked);
    let width = (columns.end + MARGIN).max(wide(&title) * 3 / 2 + 2 * MARGIN).max(720);
    let height = legend + 64;
    let mut out = String::new();
    let mut put = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{line}");
    };
    put(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"DejaVu Sans, Verdana, sans-serif\" font-size=\"11\" role=\"img\">"
    ));
    put(format_args!("<title>{}</title>", escaped(&title)));
    put(format_args!("<rect width=\"{width}\" height=\"{height}\" fill=\"#FFFFFF\"/>"));
    put(format_args!(
        "<text x=\"{MARGIN}\" y=\"38\" font-size=\"18\" font-weight=\"bold\" fill=\"#111111\">{}</text>",
        escaped(&title)
    ));
    put(format_args!(
        "<text x=\"{MARGIN}\" y=\"58\" fill=\"#555555\">{}: rows are sources, columns are destinations; egress of the one and \
         ingress of the other both count</text>",
        escaped(source)
    ));
    for (name, from, to) in &columns.bands {
        put(format_args!(
            "<rect x=\"{from}\" y=\"76\" width=\"{}\" height=\"{BAND}\" fill=\"#E4E7EB\" rx=\"3\"/>",
            to - from
        ));
        put(format_args!(
            "<text x=\"{}\" y=\"90\" text-anchor=\"middle\" font-weight=\"bold\" fill=\"#333333\">{}<title>{}</title></text>",
            (from + to) / 2,
            escaped(name),
            escaped(name)
        ));
    }
    for (name, from, to) in &rows.bands {
        let (x, y) = (MARGIN + BAND / 2 + 4, (from + to) / 2);
        put(format_args!(
            "<rect x=\"{MARGIN}\" y=\"{from}\" width=\"{BAND}\" height=\"{}\" fill=\"#E4E7EB\" rx=\"3\"/>",
            to - from
        ));
        put(format_args!(
            "<text transform=\"translate({x} {y}) rotate(-90)\" text-anchor=\"middle\" font-weight=\"bold\" fill=\"#333333\">{}<title>{}</title></text>",
            escaped(name),
            escaped(name)
        ));
    }
    for (end, x) in matrix.destinations.iter().zip(&columns.at) {
        put(format_args!(
            "<text transform=\"translate({} {}) rotate(-90)\" fill=\"#111111\">{}</text>",
            x + CELL / 2 + 4,
            top - 8,
            escaped(&label(end))
        ));
    }
    for (end, y) in matrix.sources.iter().zip(&rows.at) {
        put(format_args!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#111111\">{}</text>",
            left - 8,
            y + CELL / 2 + 4,
            escaped(&label(end))
        ));
    }
    for (from, y) in rows.at.iter().enumerate() {
        for (to, x) in columns.at.iter().enumerate() {
            put(format_args!("{}", square(matrix.cell(from, to), *x, *y)));
        }
    }
    let example = |verdict, ports: &[&str], audited: &[&str]| Cell {
        from: String::new(),
        to: String::new(),
        verdict,
        ports: ports.iter().map(ToString::to_string).collect(),
        audited: audited.iter().map(ToString::to_string).collect(),
        decided_by: Vec::new(),
    };
    let legends = [
        (Some(example(Reached::Allow, &[], &[])), "everything passes"),
        (Some(example(Reached::Some, &["tcp/80"], &[])), "these ports pass, TCP unless said"),
        (Some(example(Reached::Deny, &[], &[])), "nothing passes"),
        (Some(example(Reached::Allow, &[], &["tcp/80"])), "passes, but an audited policy would deny"),
        (None, "itself"),
    ];
    let mut x = MARGIN;
    for (cell, meaning) in legends {
        put(format_args!("{}", square(cell.as_ref(), x, legend)));
        put(format_args!(
            "<text x=\"{}\" y=\"{}\" fill=\"#333333\">{meaning}</text>",
            x + CELL + 7,
            legend + CELL / 2 + 4
        ));
        x += CELL + 28 + wide(meaning) * 9 / 10;
    }
    out.push_str("</svg>\n");
    // A legend that is wider than the matrix would be cut off.
    let wanted = x.max(width);
    out.replacen(
        &format!("width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} "),
        &format!("width=\"{wanted}\" height=\"{height}\" viewBox=\"0 0 {wanted} "),
        1,
    )
    .replacen(&format!("<rect width=\"{width}\""), &format!("<rect width=\"{wanted}\""), 1)
}

/// One cell with its mark and what hovering over it tells.
fn square(cell: Option<&Cell>, x: usize, y: usize) -> String {
    let inner = CELL - 2;
    let (cx, cy) = (x + CELL / 2, y + CELL / 2);
    let Some(cell) = cell else {
        return format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{inner}\" height=\"{inner}\" fill=\"none\" stroke=\"#D0D4D9\"/>\
             <line x1=\"{x}\" y1=\"{}\" x2=\"{}\" y2=\"{y}\" stroke=\"#D0D4D9\"/>",
            y + inner,
            x + inner
        );
    };
    let (fill, mark) = match cell.verdict {
        Reached::Allow => (
            ALLOW,
            format!("<path d=\"M{} {cy} l5 5 l9 -10\" fill=\"none\" stroke=\"#FFFFFF\" stroke-width=\"2.5\"/>", cx - 8),
        ),
        Reached::Deny => (
            DENY,
            format!(
                "<path d=\"M{a} {b} l8 8 m0 -8 l-8 8\" stroke=\"{MARK_DENY}\" stroke-width=\"1.4\" opacity=\"0.75\"/>",
                a = cx - 5,
                b = cy - 5
            ),
        ),
        Reached::Some => (SOME, ports(cell, x, y)),
    };
    let stroke = if cell.verdict == Reached::Deny { "#E0DAD5" } else { "none" };
    let audit = if cell.audited.is_empty() {
        String::new()
    } else {
        format!("<path d=\"M{} {y} h12 v12 z\" fill=\"{AUDIT}\" stroke=\"#FFFFFF\"/>", x + inner - 12)
    };
    let by = if cell.decided_by.is_empty() { "no policy".to_owned() } else { cell.decided_by.join(", ") };
    let tells = format!(
        "{} → {}: {} ({by})",
        cell.from,
        cell.to,
        if cell.ports.is_empty() { "nothing".to_owned() } else { words(cell) }
    );
    format!(
        "<g><rect x=\"{x}\" y=\"{y}\" width=\"{inner}\" height=\"{inner}\" fill=\"{fill}\" stroke=\"{stroke}\"/>{mark}{audit}<title>{}</title></g>",
        escaped(&tells)
    )
}

/// One or two ports as they are, else how many.
fn ports(cell: &Cell, x: usize, y: usize) -> String {
    let short = |label: &str| match label.split_once('/') {
        Some(("tcp", port)) => port.to_owned(),
        Some((proto, port)) => format!("{}{port}", &proto[..1]),
        None => label.to_owned(),
    };
    let lines: Vec<String> = match &cell.ports[..] {
        [one] => vec![short(one)],
        [one, two] => vec![short(one), short(two)],
        many => vec![many.len().to_string(), "ports".to_owned()],
    };
    let first = y + CELL / 2 + 3 - if lines.len() == 2 { 5 } else { 0 };
    let line = |(at, text): (usize, &String)| {
        let size = if text.chars().count() > 4 { 7 } else { 9 };
        format!(
            "<text x=\"{}\" y=\"{}\" font-size=\"{size}\" text-anchor=\"middle\" fill=\"#111111\">{}</text>",
            x + CELL / 2 - 1,
            first + at * 10,
            escaped(text)
        )
    };
    lines.iter().enumerate().map(line).collect()
}

/// The same as a graph: an edge for each pair that may talk, namespaces as clusters.
pub fn dot(matrix: &Matrix) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut out = format!(
        "digraph reach {{\n  label={};\n  labelloc=t;\n  rankdir=LR;\n  node [shape=box, fontname=\"DejaVu Sans\"];\n",
        quoted(&format!("Who reaches whom: {}", matrix.asked))
    );
    let mut ends: Vec<&EndOf> = matrix.sources.iter().chain(&matrix.destinations).collect();
    ends.sort_by_key(|end| (&end.namespace, &end.name));
    ends.dedup_by_key(|end| &end.name);
    let mut open: Option<&str> = None;
    for end in &ends {
        let namespace = end.namespace.as_deref();
        if open != namespace {
            if open.is_some() {
                out.push_str("  }\n");
            }
            if let Some(name) = namespace {
                let _ =
                    writeln!(out, "  subgraph {} {{\n    label={};", quoted(&format!("cluster_{name}")), quoted(name));
            }
            open = namespace;
        }
        let _ = writeln!(out, "    {} [label={}];", quoted(&end.name), quoted(&label(end)));
    }
    if open.is_some() {
        out.push_str("  }\n");
    }
    for cell in matrix.cells.iter().filter(|cell| cell.verdict != Reached::Deny) {
        let (style, text) = match cell.verdict {
            Reached::Allow => (format!("color=\"{ALLOW}\""), String::new()),
            _ => ("color=\"#8A7F00\", style=dashed".to_owned(), words(cell)),
        };
        let _ = writeln!(out, "  {} -> {} [{style}, label={}];", quoted(&cell.from), quoted(&cell.to), quoted(&text));
    }
    out.push_str("}\n");
    out
}
