//! `berth inspect`

use std::process::ExitCode;

use anyhow::Result;
use berth_engine::{Container, inspect};
use clap::Args;

use super::Context;
use crate::failure;
use crate::output;

/// Print everything there is to know of containers, as JSON
#[derive(Debug, Args)]
pub struct Inspect {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Inspect {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let mut found = Vec::new();
        let mut outcome = ExitCode::SUCCESS;
        for reference in &self.containers {
            match Container::find(&context.roots, reference).and_then(|container| inspect::inspect(&container)) {
                Ok(description) => found.push(description),
                Err(error) => outcome = failure::report(&error.into()),
            }
        }
        output::json(&found)?;
        Ok(outcome)
    }
}
