//! `berth image inspect` and `berth history`

use std::process::ExitCode;

use anyhow::Result;
use berth_images::Store;
use clap::Args;
use jiff::Timestamp;

use super::Context;
use super::list::age;
use crate::failure;
use crate::output::{self, Format, Table};

/// Print everything there is to know of images, as JSON
#[derive(Debug, Args)]
pub struct Inspect {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Inspect {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let store = Store::open(context.roots.data())?;
        let mut found = Vec::new();
        let mut outcome = ExitCode::SUCCESS;
        for reference in &self.images {
            match store.describe(reference) {
                Ok(description) => found.push(description),
                Err(error) => outcome = failure::report(&error.into()),
            }
        }
        output::json(&found)?;
        Ok(outcome)
    }
}

/// Show how an image was made
#[derive(Debug, Args)]
pub struct History {
    /// The image, by name or id
    image: String,
    /// Do not shorten commands
    #[arg(long)]
    no_trunc: bool,
    /// Print the digests of the layers only
    #[arg(short, long)]
    quiet: bool,
}

impl History {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        /// Characters of a command shown.
        const WIDTH: usize = 45;
        let history = Store::open(context.roots.data())?.history(&self.image)?;
        if self.quiet {
            let layers = history.iter().filter_map(|step| step.diff_id);
            output::lines(layers.map(|layer| layer.to_string()))?;
        } else if context.format == Format::Json {
            output::json(&history)?;
        } else {
            let now = Timestamp::now();
            let mut table = Table::new(&["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"]);
            for step in history {
                let command = step.created_by.unwrap_or_default().replace(['\t', '\n'], " ");
                table.row(vec![
                    step.diff_id.map_or_else(|| "<none>".to_owned(), |id| id.hex()[..12].to_owned()),
                    age(step.created.as_deref(), now),
                    if self.no_trunc { command } else { output::cut(&command, WIDTH) },
                    output::bytes(step.size),
                    step.comment.unwrap_or_default(),
                ]);
            }
            table.print()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
