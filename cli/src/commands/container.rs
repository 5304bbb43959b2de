//! `berth container …`: docker's long names for the commands on containers.

use anyhow::Result;
use berth_engine::prune;
use clap::{Args, Subcommand};

use std::process::ExitCode;

use super::{Command, Context, attach, cp, diff, exec, inspect, lifecycle, logs, ps, run, stats, top};
use crate::output::{self, Format};

/// Commands on containers under docker's long names, and prune
#[derive(Debug, Args)]
pub struct Container {
    #[command(subcommand)]
    command: Long,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Long {
    Attach(attach::Attach),
    Cp(cp::Cp),
    Create(run::Create),
    Diff(diff::Diff),
    Exec(exec::Exec),
    Inspect(inspect::Inspect),
    Kill(lifecycle::Kill),
    Logs(logs::Logs),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::Ps),
    Pause(lifecycle::Pause),
    Prune(Prune),
    Rename(lifecycle::Rename),
    Restart(lifecycle::Restart),
    Rm(lifecycle::Rm),
    Run(run::Run),
    Start(lifecycle::Start),
    Stats(stats::Stats),
    Stop(lifecycle::Stop),
    Top(top::Top),
    Unpause(lifecycle::Unpause),
    Update(lifecycle::Update),
    Wait(lifecycle::Wait),
}

impl From<Container> for Command {
    fn from(container: Container) -> Self {
        match container.command {
            Long::Attach(command) => Self::Attach(command),
            Long::Cp(command) => Self::Cp(command),
            Long::Create(command) => Self::Create(command),
            Long::Diff(command) => Self::Diff(command),
            Long::Exec(command) => Self::Exec(command),
            Long::Inspect(command) => Self::Inspect(command),
            Long::Kill(command) => Self::Kill(command),
            Long::Logs(command) => Self::Logs(command),
            Long::Ls(command) => Self::Ps(command),
            Long::Pause(command) => Self::Pause(command),
            Long::Prune(command) => Self::ContainerPrune(command),
            Long::Rename(command) => Self::Rename(command),
            Long::Restart(command) => Self::Restart(command),
            Long::Rm(command) => Self::Rm(command),
            Long::Run(command) => Self::Run(command),
            Long::Start(command) => Self::Start(command),
            Long::Stats(command) => Self::Stats(command),
            Long::Stop(command) => Self::Stop(command),
            Long::Top(command) => Self::Top(command),
            Long::Unpause(command) => Self::Unpause(command),
            Long::Update(command) => Self::Update(command),
            Long::Wait(command) => Self::Wait(command),
        }
    }
}

/// Remove the containers that do not run
#[derive(Debug, Args)]
pub struct Prune {
    /// Only those that match: until=TIME or label=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl Prune {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let mut filter = prune::Filter::default();
        self.filter.iter().try_for_each(|text| filter.add(text))?;
        if !self.force && !super::system::confirm("This removes all containers that do not run.")? {
            return Ok(ExitCode::SUCCESS);
        }
        let gone = prune::containers(&context.roots, &filter)?;
        match context.format {
            Format::Json => output::json(&gone)?,
            Format::Table => output::lines(gone)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
