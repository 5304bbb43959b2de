//! `berth wasm`: what there is to do with Wasm modules beside running them once.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Result;
use berth_engine::{options, size, wasm};
use berth_images::Store;
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Context, run};
use crate::flags::RunFlags;
use crate::output::{self, Format};

/// Serve HTTP requests with Wasm components, and compile modules
#[derive(Debug, Args)]
pub struct Wasm {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compile(Compile),
    Serve(Box<Serve>),
}

impl Wasm {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        match self.command {
            Command::Compile(command) => command.run(context),
            Command::Serve(command) => command.run(context),
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

/// Answer HTTP requests with a component; --timeout is what each may take [default: 30s]
#[derive(Debug, Args)]
#[command(override_usage = "berth wasm serve [OPTIONS] IMAGE")]
struct Serve {
    /// The address to listen on, for example 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Serving")]
    listen: SocketAddr,
    /// The address to listen on for /metrics
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Serving")]
    metrics: Option<SocketAddr>,
    /// Requests answered at once; others wait
    #[arg(long, value_name = "COUNT", default_value = "128", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Serving")]
    concurrency: u32,
    /// Memory of one instance in bytes, or with k, m, g
    #[arg(long, value_name = "SIZE", value_parser = size::some_bytes, help_heading = "Serving")]
    request_memory: Option<u64>,
    /// Requests that one instance answers, one after the other; more than 1 for a component whose requests may see what
    /// earlier ones left in its memory
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Serving")]
    requests_per_instance: u32,
    #[command(flatten)]
    flags: RunFlags,
}

impl Serve {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let detach = self.flags.detach;
        let mut options = self.flags.into_options()?;
        options.serve = Some(options::Serve {
            listen: self.listen,
            metrics: self.metrics,
            concurrency: self.concurrency,
            memory: self.request_memory,
            requests: self.requests_per_instance,
        });
        run::start(context, options, detach)
    }
}
