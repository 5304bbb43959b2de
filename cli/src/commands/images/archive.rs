//! `berth load`, `berth save`, `berth import` and `berth image build-wasm`

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use berth_engine::wasm;
use berth_images::{Change, Format as Archive, Image, ImportOptions, LoadOptions, Platform, Store};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::Context;
use crate::output::{self, Format};

/// Take in images from a `docker save` archive or an OCI layout (folder or archive)
#[derive(Debug, Args)]
pub struct Load {
    /// File or folder [default: standard input]
    #[arg(short, long, value_name = "PATH")]
    input: Option<PathBuf>,
    /// A name for an image that has none
    #[arg(long, value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// Choose this platform of an image that has several, for example linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

impl Load {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let store = Store::open(context.roots.data())?;
        let options = LoadOptions { name: self.name, platform: self.platform };
        let names = match self.input.as_deref().filter(|path| *path != Path::new("-")) {
            Some(path) => store.load(path, &options)?,
            None if io::stdin().is_terminal() => {
                bail!("there is nothing to load; name a file with -i")
            }
            None => store.load_stream(io::stdin().lock(), &options)?,
        };
        if context.format == Format::Json {
            output::json(&names)?;
        } else if self.quiet {
            output::lines(names)?;
        } else {
            output::lines(names.iter().map(|name| format!("Loaded image: {name}")))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `--as`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// `docker save` archive
    Docker,
    /// OCI layout in an archive
    Oci,
    /// OCI layout in a folder
    OciDir,
}

/// Write images to an archive or folder
#[derive(Debug, Args)]
pub struct Save {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// File or folder [default: standard output]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// What to write: a `docker save` archive, an OCI layout as archive or as folder
    #[arg(
        long = "as",
        value_enum,
        default_value = "docker",
        value_name = "docker|oci|oci-dir",
        hide_possible_values = true
    )]
    kind: Kind,
}

impl Save {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let store = Store::open(context.roots.data())?;
        let format = match (self.kind, &self.output) {
            (Kind::OciDir, Some(folder)) => {
                store.save_folder(&self.images, folder)?;
                return Ok(ExitCode::SUCCESS);
            }
            (Kind::OciDir, None) => bail!("a folder needs a name; give it with -o"),
            (Kind::Docker, _) => Archive::Docker,
            (Kind::Oci, _) => Archive::Oci,
        };
        match &self.output {
            Some(path) => save_to(&store, &self.images, path, format)?,
            None if io::stdout().is_terminal() => {
                bail!("an archive is not for the terminal; name a file with -o")
            }
            None => store.save(&self.images, io::stdout().lock(), format)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes beside the target and renames, so that a failure leaves what was there.
fn save_to(store: &Store, images: &[String], path: &Path, format: Archive) -> Result<()> {
    if path.exists() && !path.is_file() {
        // A device or pipe is written to as it is.
        let file = File::options().write(true).open(path);
        return Ok(store.save(images, file.with_context(|| format!("cannot open {}", path.display()))?, format)?);
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    let file = File::create(&temporary).with_context(|| format!("cannot create {}", temporary.display()))?;
    let saved = store.save(images, io::BufWriter::with_capacity(1 << 20, file), format);
    let renamed = match saved {
        Ok(()) => std::fs::rename(&temporary, path).with_context(|| format!("cannot create {}", path.display())),
        Err(error) => Err(error.into()),
    };
    if renamed.is_err() {
        // The error is about the archive, not about what is left of it.
        let _ = std::fs::remove_file(&temporary);
    }
    renamed
}

/// Make an image from a root file system in a tar archive
#[derive(Debug, Args)]
pub struct Import {
    /// The archive, plain or compressed with gzip or zstd; `-` is standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Its name
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// Change its configuration, as in a Dockerfile: `CMD ["sh"]`, `ENV A=b`, `WORKDIR /app`
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<Change>,
    /// A remark for its history
    #[arg(short, long)]
    message: Option<String>,
    /// What it runs on [default: this machine's platform]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

impl Import {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let store = Store::open(context.roots.data())?;
        let options = ImportOptions { changes: self.change, message: self.message, platform: self.platform };
        let name = self.name.as_deref();
        let image = if self.file == Path::new("-") {
            store.import(io::stdin().lock(), name, &options)?
        } else {
            let file = File::open(&self.file).with_context(|| format!("cannot open {}", self.file.display()))?;
            store.import(file, name, &options)?
        };
        print_made(context, &image)
    }
}

/// Make an image of a Wasm module or component, a Wasm OCI artifact, and compile it
#[derive(Debug, Args)]
pub struct BuildWasm {
    /// The module
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Its name
    #[arg(short, long, value_name = "NAME[:TAG]")]
    tag: String,
}

impl BuildWasm {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let store = Store::open(context.roots.data())?;
        print_made(context, &wasm::build(&context.roots, &store, &self.file, &self.tag)?)
    }
}

fn print_made(context: &Context, image: &Image) -> Result<ExitCode> {
    if context.format == Format::Json {
        output::json(&json!({ "Reference": image.reference, "Digest": image.manifest_digest, "Id": image.id }))?;
    } else {
        output::print(&format!("{}\n", image.id))?;
    }
    Ok(ExitCode::SUCCESS)
}
