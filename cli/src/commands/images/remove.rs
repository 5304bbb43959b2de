//! `berth rmi` and `berth image prune`

use std::process::ExitCode;

use anyhow::Result;
use berth_engine::container::image_uses;
use berth_images::{Removed, Store};
use clap::Args;

use super::Context;
use crate::commands::system::confirm;
use crate::failure;
use crate::output::{self, Format};

/// Remove images: names, and the content that nothing else needs
#[derive(Debug, Args)]
pub struct Rmi {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Also where a container uses the image (what it uses stays), and by an id with several names
    #[arg(short, long)]
    force: bool,
}

impl Rmi {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let store = Store::open(context.roots.data())?;
        let mut outcome = ExitCode::SUCCESS;
        let mut all = Vec::new();
        for reference in &self.images {
            match store.remove(reference, self.force, || Ok(image_uses(&context.roots)?)) {
                Ok(removed) if context.format == Format::Json => all.push(removed),
                Ok(removed) => show(&removed)?,
                Err(error) => outcome = failure::report(&error.into()),
            }
        }
        if context.format == Format::Json {
            output::json(&all)?;
        }
        Ok(outcome)
    }
}

/// Remove images without a name, and what pulls have left
#[derive(Debug, Args)]
pub struct Prune {
    /// Also images with a name that no container uses
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl Prune {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let what = if self.all {
            "This removes all images that no container uses."
        } else {
            "This removes all images without a name."
        };
        if !self.force && !confirm(what)? {
            return Ok(ExitCode::SUCCESS);
        }
        let store = Store::open(context.roots.data())?;
        let removed = store.prune(self.all, || Ok(image_uses(&context.roots)?))?;
        if context.format == Format::Json {
            output::json(&removed)?;
        } else {
            show(&removed)?;
            output::print(&format!("{} given back\n", output::bytes(removed.reclaimed)))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(removed: &Removed) -> Result<()> {
    let untagged = removed.untagged.iter().map(|name| format!("Untagged: {name}"));
    let deleted = removed.deleted.iter().map(|digest| format!("Deleted: {digest}"));
    Ok(output::lines(untagged.chain(deleted))?)
}
