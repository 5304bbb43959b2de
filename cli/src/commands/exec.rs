//! `berth exec`

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use berth_engine::{Container, exec};
use berth_orchestrator::process::Contact;
use berth_orchestrator::session;
use clap::Args;

use super::Context;

/// Run a command in a running container
#[derive(Debug, Args)]
pub struct Exec {
    #[command(flatten)]
    flags: Flags,
    /// Name or id
    container: String,
    /// What to run
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// How a command is run in a container.
#[derive(Debug, Args)]
pub struct Flags {
    /// Do not wait for it
    #[arg(short, long)]
    detach: bool,
    /// Relay standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable, or take it over from here if it has no value
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Name or id, with or without a group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
}

impl Flags {
    /// Runs a command, in place of this program.
    pub fn become_exec(self, container: &Container, command: Vec<OsString>) -> Result<ExitCode> {
        let request = exec::Request {
            detach: self.detach,
            interactive: self.interactive,
            tty: self.tty,
            env: self.env,
            workdir: self.workdir,
            user: self.user,
            command,
        };
        match exec::become_exec(container, &request)? {}
    }

    /// Runs a command in the sandbox of a task on another machine, which its agent is asked for.
    pub fn run_through(
        self,
        contact: &Contact,
        agent: &str,
        sandbox: &str,
        command: Vec<OsString>,
    ) -> Result<ExitCode> {
        if self.detach {
            bail!("--detach is for tasks on this machine: elsewhere a command ends with whoever looks at it");
        }
        let text = |argument: OsString| {
            let not_text = |argument: OsString| anyhow!("`{}` is no text, and cannot be sent", argument.display());
            argument.into_string().map_err(not_text)
        };
        let command = session::Command {
            agent: agent.to_owned(),
            sandbox: sandbox.to_owned(),
            program: command.into_iter().map(text).collect::<Result<_>>()?,
            env: self.env,
            user: self.user,
            workdir: self.workdir,
            interactive: self.interactive,
            tty: self.tty,
        };
        Ok(ExitCode::from(command.run(contact)? as u8))
    }
}

impl Exec {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let container = Container::find(&context.roots, &self.container)?;
        self.flags.become_exec(&container, self.command)
    }
}
