//! `berth man`

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _};

/// Write the manual pages, one for each command
#[derive(Debug, Args)]
pub struct Man {
    /// Where to; `man` looks in /usr/local/share/man/man1. It is made if it is not there
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Man {
    pub fn run(self) -> Result<ExitCode> {
        let directory = self.directory;
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        clap_mangen::generate_to(super::Berth::command(), &directory)
            .with_context(|| format!("cannot write the manual pages to {}", directory.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
