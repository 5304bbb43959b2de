//! `berth-vmm start` and `berth-vmm enter`: what `berth-oci` executes in a sandbox in place of the image's process, see
//! [`berth_runtime::executor`].

use std::ffi::OsStr;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use berth_vmm::guest::client::ClientError;
use berth_vmm::guest::frame::Exit;
use berth_vmm::guest::linux::{self, Error};
use berth_vmm::process::sandboxed;

use crate::run::{exit_code, read};

/// The first process.
pub fn start(source: &OsStr) -> Result<ExitCode> {
    end(linux::start(handover(source)?))
}

/// One more process.
pub fn enter(source: &OsStr) -> Result<ExitCode> {
    end(linux::enter(handover(source)?))
}

/// The first process of a guest without a kernel. Ends this process: threads of the guest may still be running.
pub fn start_process(source: &OsStr) -> Result<ExitCode> {
    end_process(sandboxed::start(handover(source)?))
}

/// One more process of a guest without a kernel.
pub fn enter_process(source: &OsStr) -> Result<ExitCode> {
    end_process(sandboxed::enter(handover(source)?))
}

/// Ends this process as the guest's first process ended.
pub fn end_process(result: Result<i32, sandboxed::Error>) -> Result<ExitCode> {
    match result {
        Ok(code) => std::process::exit(code),
        Err(error) => {
            eprintln!("berth-vmm: {error}");
            std::process::exit(error.exit_code());
        }
    }
}

fn handover<T: serde::de::DeserializeOwned>(source: &OsStr) -> Result<T> {
    let text = read(source).with_context(|| format!("reading what is handed over in {}", source.display()))?;
    serde_json::from_str(&text).context("parsing what is handed over")
}

fn end(result: Result<Exit, Error>) -> Result<ExitCode> {
    match result {
        Ok(exit) => exit_code(Ok(exit)),
        Err(Error::Client(error @ ClientError::Failed(_))) => exit_code(Err(error)),
        Err(error) => Err(error.into()),
    }
}
