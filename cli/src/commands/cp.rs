//! `berth cp`

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use berth_engine::{Container, cp};
use clap::Args;

use super::Context;

/// Copy between the host and a container, or a tar stream (-)
#[derive(Debug, Args)]
pub struct Cp {
    /// Keep owners [default: what is copied belongs to the container's root, or to the caller]
    #[arg(short, long)]
    archive: bool,
    /// Copy what a symlink points to where it is the source itself
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// PATH, CONTAINER:PATH, or - for a tar stream from standard input
    source: String,
    /// PATH, CONTAINER:PATH, or - for a tar stream to standard output
    destination: String,
}

/// One side of a copy.
enum Side<'a> {
    Host(&'a Path),
    Container(&'a str, &'a Path),
    Stream,
}

/// A path that begins with `/` or `.`, or that has no colon, is the host's.
fn side(text: &str) -> Side<'_> {
    if text == "-" {
        return Side::Stream;
    }
    match text.split_once(':') {
        Some((container, path)) if !text.starts_with(['/', '.']) => Side::Container(container, Path::new(path)),
        _ => Side::Host(Path::new(text)),
    }
}

impl Cp {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let how = cp::How { archive: self.archive, follow: self.follow_link };
        let find = |reference: &str| Container::find(&context.roots, reference);
        if let Some(text) =
            [&self.source, &self.destination].into_iter().find(|text| text.is_empty() || text.ends_with(':'))
        {
            bail!("'{text}' names no path; / is the whole container, . the working directory of the host");
        }
        match (side(&self.source), side(&self.destination)) {
            (Side::Host(source), Side::Container(container, path)) => {
                cp::copy_in(&find(container)?, source, path, how)?;
            }
            (Side::Container(container, path), Side::Host(to)) => {
                cp::copy_out(&find(container)?, path, to, how)?;
            }
            (Side::Stream, Side::Container(container, path)) => {
                cp::unpack_into(&find(container)?, &mut io::stdin().lock(), path)?;
            }
            (Side::Container(container, path), Side::Stream) => {
                cp::pack_from(&find(container)?, path, &mut io::stdout().lock(), how)?;
            }
            (Side::Container(..), Side::Container(..)) => {
                bail!(
                    "one side of a copy has to be the host; copy to the host first, or pipe: berth cp A:PATH - | berth cp - B:PATH"
                )
            }
            _ => bail!("one side of a copy has to be a container, as in berth cp FILE CONTAINER:PATH"),
        }
        Ok(ExitCode::SUCCESS)
    }
}
