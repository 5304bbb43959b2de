//! `berth wasm`: what there is to do with Wasm modules beside running them.

use std::process::ExitCode;

use anyhow::Result;
use berth_engine::wasm;
use berth_images::Store;
use clap::{Args, Subcommand};
use serde_json::json;

use super::Context;
use crate::output::{self, Format};

/// Compile Wasm modules
#[derive(Debug, Args)]
pub struct Wasm {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compile(Compile),
}

impl Wasm {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        match self.command {
            Command::Compile(command) => command.run(context),
        }
    }
}

/// Compile an image's module now, instead of when it is first run
#[derive(Debug, Args)]
struct Compile {
    /// The image, or the path of a module, such as ./hello.wasm
    #[arg(value_name = "IMAGE|FILE")]
    image: String,
}

impl Compile {
    fn run(&self, context: &Context) -> Result<ExitCode> {
        let store = Store::open(context.roots.data())?;
        let code = wasm::compile(&context.roots, &store, &self.image)?;
        if context.format == Format::Json {
            output::json(&json!({ "Code": code.path, "Digest": code.digest }))?;
        } else {
            output::print(&format!("{}\n", code.digest))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
