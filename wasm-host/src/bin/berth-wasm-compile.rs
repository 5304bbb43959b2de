//! `berth-wasm-compile`: the compiler of what `berth-wasm` runs, and the first process of a sandbox whose module nobody has compiled.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use berth_wasm_host::{compile, program};
use serde_json::json;

const USAGE: &str = "usage: berth-wasm-compile compile OUTPUT [--fuel] < MODULE | describe < MODULE | compatibility | start HANDOVER, where \
                     HANDOVER is the number of a descriptor";

fn main() -> ExitCode {
    program::main("berth-wasm-compile", dispatch)
}

fn dispatch(arguments: &[OsString]) -> Result<ExitCode> {
    let (command, rest) = arguments.split_first().map_or((None, &[][..]), |(first, rest)| (first.to_str(), rest));
    match (command, rest) {
        (Some("compile"), [output]) => compile_to(output, false),
        (Some("compile"), [output, fuel]) if fuel == "--fuel" => compile_to(output, true),
        (Some("describe"), []) => describe(),
        (Some("compatibility"), []) => compatibility(),
        (Some("start"), [handover]) => program::start(handover),
        (Some("enter"), [_]) => bail!("a Wasm sandbox holds one module and nothing else to execute"),
        _ => bail!(USAGE),
    }
}

fn compile_to(output: &OsStr, fuel: bool) -> Result<ExitCode> {
    println!("{}", compile::run(std::io::stdin(), Path::new(output), fuel)?);
    Ok(ExitCode::SUCCESS)
}

/// Prints a component's interfaces as JSON, `null` for a core module.
fn describe() -> Result<ExitCode> {
    println!("{}", serde_json::to_string(&compile::describe(std::io::stdin())?)?);
    Ok(ExitCode::SUCCESS)
}

/// Prints the compatibility keys of code, and of code that counts fuel, as JSON.
fn compatibility() -> Result<ExitCode> {
    println!("{}", json!({ "plain": compile::compatibility(false)?, "fuel": compile::compatibility(true)? }));
    Ok(ExitCode::SUCCESS)
}
