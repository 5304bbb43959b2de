//! `berth-vmm exec`: one more process in the guest, as if it were this one.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use berth_vmm::guest::PORT;
use berth_vmm::guest::client;

use crate::run::{exit_code, read_process};

/// Runs the process described by `source`, as for `run`, over the machine's vsock `socket`.
pub fn run(socket: &OsStr, source: &OsStr) -> Result<ExitCode> {
    let process = read_process(source)?;
    let signals = client::signals()?;
    let stream = client::connect(Path::new(socket), PORT)?;
    exit_code(client::run(stream, process, &signals))
}
