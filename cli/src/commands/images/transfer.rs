//! `berth pull` and `berth push`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use berth_engine::wasm;
use berth_images::{Connection, Platform, Progress, PullOptions, PushOptions, Quiet, Reference, Store, pull, push};
use clap::Args;
use serde_json::json;

use super::Context;
use crate::failure;
use crate::output::{self, Format};
use crate::progress::Bars;

/// How a registry is reached.
#[derive(Debug, Args)]
pub struct RegistryFlags {
    /// Trust the certificate authorities in this file (PEM), too
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Accept any certificate, and plain HTTP
    #[arg(long)]
    insecure: bool,
}

impl RegistryFlags {
    pub fn connection(&self) -> Connection {
        Connection { tls_ca: self.tls_ca.clone(), insecure: self.insecure, ..Connection::default() }
    }
}

/// Fetch an image from a registry
#[derive(Debug, Args)]
pub struct Pull {
    /// [HOST/]NAME[:TAG][@DIGEST]
    image: String,
    /// Choose this platform of the image, for example linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Print the name only, and no progress
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    registry: RegistryFlags,
}

impl Pull {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let store = Store::open(context.roots.data())?;
        let options = PullOptions { platform: self.platform, connection: self.registry.connection() };
        let image = pull(&store, &self.image, &options, &*progress(self.quiet))?;
        // The image is here whether its module can be compiled or not; its first run tries again.
        if let Err(error) = wasm::compile_ahead(&context.roots, &store, &image) {
            failure::warn(&anyhow::Error::new(error).context("its module is not compiled yet"));
        }
        if context.format == Format::Json {
            output::json(&json!({ "Reference": image.reference, "Digest": image.manifest_digest, "Id": image.id }))?;
        } else if self.quiet {
            output::print(&format!("{}\n", image.reference))?;
        } else {
            output::print(&format!("{}\n{}\n", image.manifest_digest, image.reference))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Send an image to the registry that its name says
#[derive(Debug, Args)]
pub struct Push {
    /// [HOST/]NAME[:TAG]
    image: String,
    /// Print the name only, and no progress
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    registry: RegistryFlags,
}

impl Push {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let store = Store::open(context.roots.data())?;
        let options = PushOptions { connection: self.registry.connection() };
        let digest = push(&store, &self.image, &options, &progress(self.quiet))?;
        let name = self.image.parse::<Reference>()?.familiar();
        if context.format == Format::Json {
            output::json(&json!({ "Reference": name, "Digest": digest }))?;
        } else if self.quiet {
            output::print(&format!("{name}\n"))?;
        } else {
            output::print(&format!("{digest}\n{name}\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn progress(quiet: bool) -> Arc<dyn Progress> {
    if quiet { Arc::new(Quiet) } else { Arc::new(Bars::default()) }
}
