//! `berth volume`

use std::process::ExitCode;

use anyhow::Result;
use berth_engine::container::users_of_volume;
use berth_engine::ps;
use berth_engine::volumes::{self, Store, Volume as Record, check_name};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Context, each};
use crate::flags;
use crate::output::{self, Format, Table};

/// Manage volumes: directories that outlive containers
#[derive(Debug, Args)]
pub struct Volume {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a volume; one that is there already is left as it is
    Create {
        /// Its name [default: a random one]
        #[arg(value_parser = |name: &str| check_name(name).map(|()| name.to_owned()))]
        name: Option<String>,
        /// Attach a label
        #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = flags::pair)]
        label: Vec<String>,
    },
    /// List volumes
    #[command(visible_alias = "list")]
    Ls {
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show everything about volumes as JSON
    Inspect {
        /// Names
        #[arg(required = true, value_name = "VOLUME")]
        names: Vec<String>,
    },
    /// Remove volumes with what is in them
    #[command(visible_alias = "remove")]
    Rm {
        /// Names
        #[arg(required = true, value_name = "VOLUME")]
        names: Vec<String>,
        /// Do not mind a volume that is not there
        #[arg(short, long)]
        force: bool,
    },
    /// Remove the anonymous volumes that no container has
    Prune {
        /// Also named ones
        #[arg(short, long)]
        all: bool,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    },
}

impl Volume {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let store = Store::new(context.roots.data());
        match self.action {
            Action::Create { name, label } => {
                let volume = store.create(name.as_deref(), flags::labels::<&str>(&[], &label)?)?;
                match context.format {
                    Format::Json => output::json(&shown(&volume))?,
                    Format::Table => output::print(&format!("{}\n", volume.name))?,
                }
            }
            Action::Ls { quiet } => list(&store.list()?, quiet, context.format)?,
            Action::Inspect { names } => {
                let volumes = names.iter().map(|name| store.get(name)).collect::<Result<Vec<_>, _>>()?;
                output::json(&volumes.iter().map(shown).collect::<Vec<_>>())?;
            }
            Action::Rm { names, force } => {
                return each(context, &names, |name| remove(context, &store, name, force));
            }
            Action::Prune { all, force } => {
                let what = if all { "all volumes" } else { "the anonymous volumes" };
                if !force && !super::system::confirm(&format!("This removes {what} that no container has."))? {
                    return Ok(ExitCode::SUCCESS);
                }
                let gone = store.prune(all, |name| users_of_volume(&context.roots, name))?;
                list(&gone, true, context.format)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A volume with the names that docker's JSON has.
fn shown(volume: &Record) -> Value {
    json!({
        "Name": volume.name,
        "Driver": "local",
        "Scope": "local",
        "Mountpoint": volume.mountpoint,
        "CreatedAt": volume.created_at,
        "Labels": volume.labels,
        "Container": volume.container,
    })
}

fn list(volumes: &[Record], quiet: bool, format: Format) -> Result<()> {
    match format {
        Format::Json => output::json(&volumes.iter().map(shown).collect::<Vec<_>>())?,
        Format::Table if quiet => {
            output::print(&volumes.iter().map(|volume| volume.name.clone() + "\n").collect::<String>())?;
        }
        Format::Table => {
            let now = Timestamp::now();
            let mut table = Table::new(&["NAME", "CREATED", "CONTAINER", "MOUNTPOINT"]);
            for volume in volumes {
                table.row(vec![
                    volume.name.clone(),
                    format!("{} ago", ps::age(volume.created_at, now)),
                    volume.container.as_deref().unwrap_or_default().chars().take(12).collect(),
                    volume.mountpoint.display().to_string(),
                ]);
            }
            table.print()?;
        }
    }
    Ok(())
}

fn remove(context: &Context, store: &Store, name: &str, force: bool) -> berth_engine::Result<()> {
    match store.remove(name, |name| users_of_volume(&context.roots, name)) {
        Err(berth_engine::Error::Volume(error)) if force && matches!(*error, volumes::Error::NotFound { .. }) => Ok(()),
        other => other,
    }
}
