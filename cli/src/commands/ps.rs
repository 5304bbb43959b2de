//! `berth ps`

use std::process::ExitCode;

use anyhow::Result;
use berth_engine::id::short;
use berth_engine::ps;
use berth_runtime::error::misleads;
use clap::Args;
use jiff::Timestamp;

use super::Context;
use crate::failure;
use crate::output::{self, Format, Table};

/// List containers
#[derive(Debug, Args)]
pub struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Only those that match: name, id, status, label, ancestor or exited, as in status=exited
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// The newest only, running or not
    #[arg(short, long)]
    latest: bool,
    /// The newest N, running or not
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "latest")]
    last: Option<usize>,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten ids and commands
    #[arg(long)]
    no_trunc: bool,
}

impl Ps {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let last = if self.latest { Some(1) } else { self.last };
        let mut filter = ps::Filter::new(self.all || last.is_some());
        self.filter.iter().try_for_each(|text| filter.add(text))?;
        let (mut lines, errors) = ps::list(&context.roots, &filter)?;
        lines.truncate(last.unwrap_or(usize::MAX));
        for error in errors {
            failure::warn(&error.into());
        }
        let id = |line: &ps::Line| {
            if self.no_trunc { line.id.clone() } else { short(&line.id).to_owned() }
        };
        if self.quiet {
            output::lines(lines.iter().map(id))?;
        } else if context.format == Format::Json {
            output::json(&lines)?;
        } else {
            let now = Timestamp::now();
            let mut table = Table::new(&["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"]);
            for line in &lines {
                let command = printable(&line.command.join(" "));
                let command = if self.no_trunc { command } else { output::cut(&command, 22) };
                table.row(vec![
                    id(line),
                    line.image.clone(),
                    format!("\"{command}\""),
                    format!("{} ago", ps::age(line.created_at, now)),
                    line.status.clone(),
                    line.name.clone(),
                ]);
            }
            table.print()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Line feeds and other control characters as escapes: a command must not break the table or drive the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if misleads(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}
