//! What the programs of this crate have in common: how they are called, how they fail, and running what is handed over.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::FromRawFd as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use berth_runtime::executor::Handover;

use crate::error::Error;
use crate::run;

/// Berth itself failed.
const FAILED: u8 = 125;
/// Bounds what is read from a descriptor that should hold a handover.
const HANDOVER_MAX: u64 = 8 << 20;

/// Lets `dispatch` do what this process's arguments ask for; errors are the program's last words.
pub fn main(program: &str, dispatch: impl FnOnce(&[OsString]) -> Result<ExitCode>) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    dispatch(&arguments).unwrap_or_else(|error| {
        eprintln!("{program}: {error:#}");
        ExitCode::from(error.downcast_ref().map_or(FAILED, Error::exit_code))
    })
}

/// What `berth-oci` executes in a sandbox in place of the image's process, see [`berth_runtime::executor`]. `handover` is the
/// number of a descriptor.
pub fn start(handover: &OsStr) -> Result<ExitCode> {
    let Some(number) = handover.to_str().and_then(|text| text.parse().ok()) else {
        bail!("`{}` is no number of a descriptor", handover.display());
    };
    // SAFETY: the caller names a descriptor it hands over; if it is not open, reading says so.
    let file = unsafe { File::from_raw_fd(number) };
    let mut text = Vec::new();
    file.take(HANDOVER_MAX).read_to_end(&mut text).context("reading what is handed over")?;
    let handover: Handover = serde_json::from_slice(&text).context("parsing what is handed over")?;
    let ended = run::start(handover)?;
    if let Some(message) = ended.message {
        eprintln!("berth-wasm: {message}");
    }
    // Threads may still be waiting for input.
    std::process::exit(ended.code)
}
