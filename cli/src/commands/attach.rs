//! `berth attach`

use std::process::ExitCode;

use anyhow::Result;
use berth_engine::Container;
use clap::Args;

use super::Context;

/// Join the streams of a running container
#[derive(Debug, Args)]
pub struct Attach {
    /// Do not relay standard input
    #[arg(long)]
    no_stdin: bool,
    /// Name or id
    container: String,
}

impl Attach {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        attach(&Container::find(&context.roots, &self.container)?, !self.no_stdin)
    }
}

/// Relays the container's streams until it ends, and ends with its exit code.
pub fn attach(container: &Container, stdin: bool) -> Result<ExitCode> {
    container.running_sandbox()?;
    let code = berth_runtime::attach::run(&container.live_dir().join("attach.sock"), stdin)
        .map_err(berth_engine::Error::from)?;
    Ok(code.map_or(ExitCode::SUCCESS, |code| ExitCode::from(code as u8)))
}
