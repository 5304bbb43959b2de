//! `berth diff`

use std::process::ExitCode;

use anyhow::Result;
use berth_engine::{Container, diff};
use clap::Args;

use super::Context;
use crate::output::{self, Format};

/// List what a container has added (A), changed (C) and deleted (D) in its image
#[derive(Debug, Args)]
pub struct Diff {
    /// Name or id
    container: String,
}

impl Diff {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let changes = diff::diff(&Container::find(&context.roots, &self.container)?)?;
        match context.format {
            Format::Json => output::json(&changes)?,
            Format::Table => {
                let lines = changes.iter().map(|change| format!("{} {}", change.kind.letter(), change.path.display()));
                output::lines(lines)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
