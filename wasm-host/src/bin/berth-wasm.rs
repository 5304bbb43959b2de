//! `berth-wasm`: the first process of a sandbox that is a Wasm sandbox. It runs what `berth-wasm-compile` made.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, bail};
use berth_wasm_host::program;

const USAGE: &str = "usage: berth-wasm start HANDOVER, where HANDOVER is the number of a descriptor";

fn main() -> ExitCode {
    program::main("berth-wasm", dispatch)
}

fn dispatch(arguments: &[OsString]) -> Result<ExitCode> {
    match arguments {
        [command, handover] if command == "start" => program::start(handover),
        [command, _] if command == "enter" => bail!("a Wasm sandbox holds one module and nothing else to execute"),
        _ => bail!(USAGE),
    }
}
