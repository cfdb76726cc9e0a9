//! Results as tables, JSON or YAML, on standard output.
//!
//! Tables are plain text without frames, so that `awk` and eyes read them alike; JSON and YAML are the agent's own answers.

use super::failure::{Done, Failure};
use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
    /// A graph for Graphviz (`policy matrix` only).
    Dot,
    /// A picture (`policy matrix` only).
    Svg,
}

impl Format {
    /// Whether it is drawn.
    pub const fn is_picture(self) -> bool {
        matches!(self, Format::Dot | Format::Svg)
    }
}

/// Standard output and the format asked for.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    format: Format,
}

impl Output {
    /// In this format.
    pub fn new(format: Format) -> Output {
        Output { format }
    }

    /// Whether people read it.
    pub fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    /// The format asked for.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Prints text as it is.
    pub fn text(&self, text: &str) -> Done {
        self.write(text)
    }

    /// Prints a value, or the text that stands for it in a table.
    pub fn print(&self, value: &impl Serialize, table: impl FnOnce() -> String) -> Done {
        let text = match self.format {
            Format::Table | Format::Dot | Format::Svg => table(),
            Format::Json => serde_json::to_string_pretty(value).map_err(Failure::untrue)? + "\n",
            Format::Yaml => serde_yaml_ng::to_string(value).map_err(Failure::untrue)?,
        };
        self.write(&text)
    }

    /// Prints one line of a stream: a JSON object, a YAML document, or the text.
    pub fn line(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Done {
        let line = match self.format {
            Format::Table | Format::Dot | Format::Svg => text() + "\n",
            Format::Json => serde_json::to_string(value).map_err(Failure::untrue)? + "\n",
            Format::Yaml => format!("---\n{}", serde_yaml_ng::to_string(value).map_err(Failure::untrue)?),
        };
        self.write(&line)
    }

    fn write(&self, text: &str) -> Done {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }
}

/// A table of text: columns as wide as their content, folded to the terminal's width only where there is a terminal.
pub fn table<R>(head: &[&str], rows: impl IntoIterator<Item = R>) -> String
where
    R: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(head.iter().copied());
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.force_no_tty();
    }
    for row in rows {
        // An empty cell would make columns uncountable.
        table.add_row(row.into_iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `yes` or `no`.
pub fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_columns_of_plain_words_and_no_cell_is_empty() {
        let text = table(
            &["NAME", "MODE"],
            [vec!["uplink0".to_owned(), "copy".to_owned()], vec!["host".into(), String::new()]],
        );
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines, [["NAME", "MODE"], ["uplink0", "copy"], ["host", "-"]]);
        assert!(!text.contains('\u{1b}') && !text.contains(" \n"));
    }
}
