//! `berth run` and `berth create`

use std::process::ExitCode;

use anyhow::Result;
use berth_engine::create::{self, Created};
use berth_engine::options::Options;
use berth_engine::{launch, remove};
use berth_images::Store;
use clap::Args;

use super::Context;
use crate::flags::{ContainerFlags, RunFlags};
use crate::{output, pull};

/// Run a command in a new container
#[derive(Debug, Args)]
#[command(override_usage = "berth run [OPTIONS] IMAGE [COMMAND]...")]
pub struct Run {
    #[command(flatten)]
    flags: RunFlags,
}

impl Run {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let detach = self.flags.detach;
        start(context, self.flags.into_options()?, detach)
    }
}

/// Makes a container and starts it; comes back where it runs in the background.
pub fn start(context: &Context, options: Options, detach: bool) -> Result<ExitCode> {
    let Created { record, lock, .. } = make(context, options)?;
    if !detach {
        match launch::become_monitor(&context.roots, &record, &lock)? {}
    }
    if let Err(error) = launch::start_detached(&context.roots, &record, &lock) {
        drop(lock);
        if record.options.remove {
            // Its monitor may have removed it already.
            let _ = remove::remove(&context.roots, &record.id, true, true);
        }
        return Err(error.into());
    }
    output::print(&format!("{}\n", record.id))?;
    Ok(ExitCode::SUCCESS)
}

/// Make a container without starting it
#[derive(Debug, Args)]
#[command(override_usage = "berth create [OPTIONS] IMAGE [COMMAND]...")]
pub struct Create {
    #[command(flatten)]
    flags: ContainerFlags,
}

impl Create {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let Created { record, lock, .. } = make(context, self.flags.into_options()?)?;
        lock.retire(&context.roots, &record.id)?;
        output::print(&format!("{}\n", record.id))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn make(context: &Context, options: Options) -> Result<Created> {
    let store = Store::open(context.roots.data())?;
    let platform = options.platform.clone();
    let mut fetch = |reference: &str| pull::fetch(&store, reference, platform.as_deref());
    let created = create::create(&context.roots, &store, options, &mut fetch)?;
    if let Some(notice) = &created.notice {
        eprintln!("berth: {notice}");
    }
    Ok(created)
}
