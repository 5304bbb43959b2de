//! `berth stats`

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use berth_engine::id::short;
use berth_engine::stats::{Sampler, Usage};
use berth_engine::{Container, Error};
use clap::Args;

use super::Context;
use crate::output::{self, Format, Table};

/// How long processor time is measured, and how often the live table is drawn.
const INTERVAL: Duration = Duration::from_secs(1);

/// Show what containers use of the host, live
#[derive(Debug, Args)]
pub struct Stats {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Print once and end
    #[arg(long)]
    no_stream: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Names or ids [default: all that run]
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Stats {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let mut sampler = Sampler::new(self.wanted(context)?)?;
        loop {
            let usages = sampler.next(INTERVAL);
            match context.format {
                Format::Json if self.no_stream => output::json(&usages)?,
                Format::Json => usages.iter().try_for_each(output::json_line)?,
                Format::Table => {
                    let clear = if !self.no_stream && io::stdout().is_terminal() { output::CLEAR } else { "" };
                    output::print(&format!("{clear}{}", self.table(&usages).render()))?;
                }
            }
            if self.no_stream {
                return Ok(ExitCode::SUCCESS);
            }
            sampler.watch(self.wanted(context)?);
        }
    }

    fn wanted(&self, context: &Context) -> Result<Vec<Container>, Error> {
        if !self.containers.is_empty() {
            return self.containers.iter().map(|reference| Container::find(&context.roots, reference)).collect();
        }
        let (mut containers, _) = Container::all(&context.roots)?;
        containers
            .retain(|container| self.all || container.status().is_ok_and(|status| container.state(&status).is_alive()));
        Ok(containers)
    }

    fn table(&self, usages: &[Usage]) -> Table {
        let mut table =
            Table::new(&["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "BLOCK I/O", "PIDS"]);
        for usage in usages {
            let id = if self.no_trunc { &usage.id } else { short(&usage.id) };
            table.row(vec![
                id.to_owned(),
                usage.name.clone(),
                format!("{:.2}%", usage.cpu_percent),
                format!("{} / {}", output::bytes(usage.memory), output::bytes(usage.memory_limit)),
                format!("{:.2}%", usage.memory_percent()),
                format!("{} / {}", output::bytes(usage.block_read), output::bytes(usage.block_write)),
                usage.pids.to_string(),
            ]);
        }
        table
    }
}
