//! `berth-wasm`: the first process of a sandbox that is a Wasm sandbox, and the compiler of what it runs.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::FromRawFd as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use berth_runtime::executor::Handover;
use berth_wasm_host::{compile, engine, run};
use serde_json::json;

/// Berth itself failed.
const FAILED: u8 = 125;
/// Bounds what is read from a descriptor that should hold a handover.
const HANDOVER_MAX: u64 = 8 << 20;

const USAGE: &str = "usage: berth-wasm start HANDOVER | compile OUTPUT [--fuel] < MODULE | describe < MODULE | compatibility, where HANDOVER is the \
                     number of a descriptor";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    dispatch(&arguments).unwrap_or_else(|error| {
        eprintln!("berth-wasm: {error:#}");
        let code = error.downcast_ref::<berth_wasm_host::Error>().map_or(FAILED, berth_wasm_host::Error::exit_code);
        ExitCode::from(code)
    })
}

fn dispatch(arguments: &[OsString]) -> Result<ExitCode> {
    let (command, rest) = arguments.split_first().map_or((None, &[][..]), |(first, rest)| (first.to_str(), rest));
    match (command, rest) {
        (Some("start"), [handover]) => start(handover),
        (Some("enter"), [_]) => bail!("a Wasm sandbox holds one module and nothing else to execute"),
        (Some("compile"), [output]) => compile_to(output, false),
        (Some("compile"), [output, fuel]) if fuel == "--fuel" => compile_to(output, true),
        (Some("describe"), []) => describe(),
        (Some("compatibility"), []) => compatibility(),
        _ => bail!(USAGE),
    }
}

/// What `berth-oci` executes in a sandbox in place of the image's process, see [`berth_runtime::executor`].
fn start(source: &OsStr) -> Result<ExitCode> {
    let number = source.to_str().and_then(|text| text.parse().ok()).context(USAGE)?;
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
    let key = |fuel| engine::compiler(fuel).map(|engine| engine::compatibility(&engine));
    println!("{}", json!({ "plain": key(false)?, "fuel": key(true)? }));
    Ok(ExitCode::SUCCESS)
}
