//! The commands on images, one file for each or for a small group of kin, and `berth image …`, docker's long names for
//! them.

mod archive;
mod inspect;
mod list;
mod login;
mod remove;
mod tag;
mod transfer;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Context;

pub use archive::{BuildWasm, Import, Load, Save};
pub use inspect::{History, Inspect};
pub use list::Images;
pub use login::{Login, Logout};
pub use remove::{Prune, Rmi};
pub use tag::Tag;
pub use transfer::{Pull, Push};

/// Commands on images under docker's long names, inspect and prune
#[derive(Debug, Args)]
pub struct Image {
    #[command(subcommand)]
    command: Long,
}

#[derive(Debug, Subcommand)]
enum Long {
    BuildWasm(BuildWasm),
    History(History),
    Import(Import),
    Inspect(Inspect),
    Load(Load),
    #[command(visible_alias = "list")]
    Ls(Images),
    Prune(Prune),
    Pull(Pull),
    Push(Push),
    #[command(visible_alias = "remove")]
    Rm(Rmi),
    Save(Save),
    Tag(Tag),
}

impl Image {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        match self.command {
            Long::BuildWasm(command) => command.run(context),
            Long::History(command) => command.run(context),
            Long::Import(command) => command.run(context),
            Long::Inspect(command) => command.run(context),
            Long::Load(command) => command.run(context),
            Long::Ls(command) => command.run(context),
            Long::Prune(command) => command.run(context),
            Long::Pull(command) => command.run(context),
            Long::Push(command) => command.run(context),
            Long::Rm(command) => command.run(context),
            Long::Save(command) => command.run(context),
            Long::Tag(command) => command.run(context),
        }
    }
}
