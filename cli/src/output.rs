//! What goes to standard output: tables for people, JSON for programs.

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde::Serialize;

/// Clears the screen and goes to its beginning (ECMA-48, ED and CUP).
pub const CLEAR: &str = "\x1b[2J\x1b[H";

/// `--format`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// So many of something.
pub fn counted(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// A table with columns as wide as their widest cell.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Prints the table.
    pub fn print(&self) -> io::Result<()> {
        print(&self.render())
    }

    /// The table as text.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            let line = cells.collect::<Vec<_>>().join("   ");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Prints a value as JSON over several lines.
pub fn json<T: Serialize + ?Sized>(value: &T) -> io::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Prints a value as JSON in one line, for output without an end.
pub fn json_line<T: Serialize + ?Sized>(value: &T) -> io::Result<()> {
    print(&(serde_json::to_string(value)? + "\n"))
}

/// Prints lines.
pub fn lines(lines: impl IntoIterator<Item = String>) -> io::Result<()> {
    let mut text = String::new();
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    print(&text)
}

/// Prints text at once.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| io::Error::new(error.kind(), format!("cannot write to standard output: {error}")))
}

/// Shows text in place of what was shown before; below it, where no terminal is.
pub fn redraw(text: &str) -> io::Result<()> {
    if io::stdout().is_terminal() { print(&format!("{CLEAR}{text}")) } else { print(&format!("{text}\n")) }
}

/// Bytes for people: `1.5GiB`.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut number = count as f64;
    let mut unit = 0;
    while number >= 1000.0 && unit + 1 < UNITS.len() {
        number /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count}B"),
        _ if number < 10.0 => format!("{number:.2}{}", UNITS[unit]),
        _ => format!("{number:.1}{}", UNITS[unit]),
    }
}

/// The last cell of a row: in a terminal no longer than `width`, whole where a program reads it.
pub fn note(text: &str, width: usize) -> String {
    if io::stdout().is_terminal() { cut(text, width) } else { text.to_owned() }
}

/// Text cut to `width` characters, with an ellipsis where something is missing.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", "STATUS"]);
        table.row(vec!["a".into(), "Up".into()]);
        table.row(vec!["längster".into(), String::new()]);
        assert_eq!(table.render(), "NAME       STATUS\na          Up\nlängster\n");
    }

    #[test]
    fn sizes_are_short() {
        for (count, text) in [(0, "0B"), (999, "999B"), (1024, "1.00KiB"), (15 << 20, "15.0MiB"), (3 << 30, "3.00GiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
    }
}
