//! `berth tag`

use std::process::ExitCode;

use anyhow::Result;
use berth_images::Store;
use clap::Args;

use super::Context;

/// Give an image another name
#[derive(Debug, Args)]
pub struct Tag {
    /// The image, by name or id
    #[arg(value_name = "IMAGE")]
    source: String,
    /// Its new name
    #[arg(value_name = "NAME[:TAG]")]
    target: String,
}

impl Tag {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        Store::open(context.roots.data())?.tag(&self.source, &self.target)?;
        Ok(ExitCode::SUCCESS)
    }
}
