//! `berth system prune`

use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;

use anyhow::Result;
use berth_engine::prune;
use berth_images::Store;
use clap::{Args, Subcommand};

use super::Context;
use crate::failure;
use crate::output::{self, Format};

/// Commands on everything berth keeps
#[derive(Debug, Args)]
pub struct System {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Prune(Prune),
    Info(super::info::Info),
    Events(super::events::Events),
}

impl System {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        match self.command {
            Command::Prune(command) => command.run(context),
            Command::Info(_) => super::info::Info::run(context),
            Command::Events(command) => command.run(context),
        }
    }
}

/// Remove what nobody uses: containers that do not run, images without a name, what crashes have left
#[derive(Debug, Args)]
struct Prune {
    /// Also images with a name that no container uses
    #[arg(short, long)]
    all: bool,
    /// Also anonymous volumes that no container has
    #[arg(long)]
    volumes: bool,
    /// Only containers that match: until=TIME or label=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl Prune {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let mut filter = prune::Filter::default();
        self.filter.iter().try_for_each(|text| filter.add(text))?;
        let images = if self.all { "all images that no container uses" } else { "images without a name" };
        let volumes = if self.volumes { ", unused anonymous volumes" } else { "" };
        let question =
            format!("This removes all containers that do not run, {images}{volumes}, and what crashes have left.");
        if !self.force && !confirm(&question)? {
            return Ok(ExitCode::SUCCESS);
        }
        let store = Store::open(context.roots.data())?;
        let (pruned, errors) = prune::system(&context.roots, &store, &filter, self.all, self.volumes)?;
        for error in errors {
            failure::warn(&error.into());
        }
        if context.format == Format::Json {
            output::json(&pruned)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut lines = Vec::new();
        for (what, names) in [("container", &pruned.containers), ("volume", &pruned.volumes), ("image", &pruned.images)]
        {
            lines.extend(names.iter().map(|name| format!("{what} {name}")));
        }
        lines.push(format!("{} of images given back", output::bytes(pruned.reclaimed)));
        output::lines(lines)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Asks whether to go on; anything but yes is no.
pub fn confirm(what: &str) -> Result<bool> {
    eprint!("{what} Go on? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
