//! `berth top`

use std::process::ExitCode;

use anyhow::Result;
use berth_engine::{Container, top};
use clap::Args;

use super::Context;
use crate::output::{self, Format, Table};

/// List the processes of a container, as the host sees them
#[derive(Debug, Args)]
pub struct Top {
    /// Name or id
    container: String,
}

impl Top {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let processes = top::processes(&Container::find(&context.roots, &self.container)?)?;
        if context.format == Format::Json {
            output::json(&processes)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new(&["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
        for it in processes {
            let numbers = [it.uid.to_string(), it.pid.to_string(), it.ppid.to_string(), it.c.to_string()];
            table.row(numbers.into_iter().chain([it.stime, it.tty, it.time, it.cmd]).collect());
        }
        table.print()?;
        Ok(ExitCode::SUCCESS)
    }
}
