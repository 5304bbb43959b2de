//! Commands that move containers through their lives.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use berth_engine::options::Limits;
use berth_engine::{Container, launch, lifecycle, monitor, names, remove};
use berth_runtime::monitor::RestartPolicy;
use clap::Args;

use super::{Context, attach, each};
use crate::failure;
use crate::flags::{self, LimitFlags};
use crate::output;

/// Start containers
#[derive(Debug, Args)]
pub struct Start {
    /// Stay with the container: relay its output and signals and end with its exit code
    #[arg(short, long)]
    attach: bool,
    /// Relay standard input too
    #[arg(short, long)]
    interactive: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Start {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        if !self.attach && !self.interactive {
            return each(context, &self.containers, |reference| {
                lifecycle::start(&Container::find(&context.roots, reference)?)
            });
        }
        let [reference] = self.containers.as_slice() else {
            anyhow::bail!("only one container can be started with --attach; start the others on their own");
        };
        let container = Container::find(&context.roots, reference)?;
        match lifecycle::begin_start(&container)? {
            Some(lock) => match launch::become_monitor(&context.roots, &container.record, &lock)? {},
            None => attach::attach(&container, true),
        }
    }
}

/// Stop containers: their stop signal, and a kill if they do not end in time
#[derive(Debug, Args)]
pub struct Stop {
    #[command(flatten)]
    ending: Ending,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// How a container is asked to end.
#[derive(Debug, Args)]
struct Ending {
    /// Seconds to wait before killing [default: the container's, else 10]
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS")]
    time: Option<u64>,
    /// Signal to send [default: the container's, else TERM]
    #[arg(short, long)]
    signal: Option<String>,
}

impl Ending {
    fn time(&self) -> Option<Duration> {
        self.time.map(Duration::from_secs)
    }
}

impl Stop {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        each(context, &self.containers, |reference| {
            let container = Container::find(&context.roots, reference)?;
            lifecycle::stop(&container, self.ending.signal.as_deref(), self.ending.time())
        })
    }
}

/// Stop containers that run, and start them
#[derive(Debug, Args)]
pub struct Restart {
    #[command(flatten)]
    ending: Ending,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Restart {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        each(context, &self.containers, |reference| {
            let container = Container::find(&context.roots, reference)?;
            lifecycle::restart(&container, self.ending.signal.as_deref(), self.ending.time())
        })
    }
}

/// Send containers a signal
#[derive(Debug, Args)]
pub struct Kill {
    /// Name or number
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Kill {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        each(context, &self.containers, |reference| {
            lifecycle::kill(&Container::find(&context.roots, reference)?, &self.signal)
        })
    }
}

/// Freeze all processes of containers
#[derive(Debug, Args)]
pub struct Pause {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Pause {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        each(context, &self.containers, |reference| lifecycle::pause(&Container::find(&context.roots, reference)?))
    }
}

/// Let paused containers go on
#[derive(Debug, Args)]
pub struct Unpause {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Unpause {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        each(context, &self.containers, |reference| lifecycle::unpause(&Container::find(&context.roots, reference)?))
    }
}

/// Wait until containers have ended and print their exit codes
#[derive(Debug, Args)]
pub struct Wait {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Wait {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let find = |reference: &String| Container::find(&context.roots, reference);
        // All at first: one that removes itself cannot be found when its turn has come.
        let containers: Vec<_> = self.containers.iter().map(find).collect();
        let mut outcome = ExitCode::SUCCESS;
        for container in containers {
            match container.and_then(|container| monitor::wait(&container)) {
                Ok(status) => output::print(&format!("{}\n", status.exit_code.unwrap_or_default()))?,
                Err(error) => outcome = failure::report(&error.into()),
            }
        }
        Ok(outcome)
    }
}

/// Remove containers
#[derive(Debug, Args)]
pub struct Rm {
    /// Kill those that run; pass over those that are not there
    #[arg(short, long)]
    force: bool,
    /// Remove their anonymous volumes too
    #[arg(short, long)]
    volumes: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Rm {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let is_missing = |reference: &String| {
            let found = names::resolve(&context.roots, reference);
            self.force && matches!(found, Err(berth_engine::Error::NotFound(_)))
        };
        let there: Vec<String> = self.containers.iter().filter(|reference| !is_missing(reference)).cloned().collect();
        each(context, &there, |reference| remove::remove(&context.roots, reference, self.force, self.volumes).map(drop))
    }
}

/// Give a container another name
#[derive(Debug, Args)]
pub struct Rename {
    /// Name or id
    container: String,
    /// The new name
    name: String,
}

impl Rename {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        lifecycle::rename(&Container::find(&context.roots, &self.container)?, &self.name)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Change the limits and the restart policy of containers
#[derive(Debug, Args)]
pub struct Update {
    /// Start again after the end: no, on-failure[:N], always or unless-stopped
    #[arg(long, value_name = "POLICY", value_parser = flags::restart)]
    restart: Option<RestartPolicy>,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    #[command(flatten)]
    limits: LimitFlags,
}

impl Update {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let limits = Limits::from(self.limits);
        if limits == Limits::default() && self.restart.is_none() {
            bail!("there is nothing to change; give a limit, for example --memory 512m, or --restart");
        }
        each(context, &self.containers, |reference| {
            lifecycle::update(&Container::find(&context.roots, reference)?, &limits, self.restart)
        })
    }
}
