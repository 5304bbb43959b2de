//! The compiler's process: it reads a module from a stranger, and what it may do is write code into one open file.

use std::fs::OpenOptions;
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use wasmparser::{Parser, Payload};
use wasmtime::Engine;

use crate::code::{hex, is_component};
use crate::confine;
use crate::engine;
use crate::error::{Error, Result};

/// Longest module that is compiled, bytes.
pub const MAX_MODULE: u64 = 256 << 20;

/// The names of a component's interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Interfaces {
    /// What it offers.
    pub exports: Vec<String>,
    /// What it needs.
    pub imports: Vec<String>,
}

/// Compiles the module in `input` into the new file `output`, and returns the code's SHA-256 in hexadecimal digits. Confines
/// this process before it reads.
pub fn run(input: impl Read, output: &Path, fuel: bool) -> Result<String> {
    let failed = || format!("write {}", output.display());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(output);
    let mut file = file.map_err(Error::io(format!("create {}", output.display())))?;
    let engine = engine::compiler(fuel)?;
    confine::compiler()?;
    let wasm = read(input)?;
    let code = compile(&engine, &wasm)?;
    file.write_all(&code).map_err(Error::io(failed()))?;
    Ok(hex(&Sha256::digest(&code)))
}

/// Says what the component in `input` exports and imports; none: it is a core module. Confines this process as [`run`] does.
pub fn describe(input: impl Read) -> Result<Option<Interfaces>> {
    confine::compiler()?;
    interfaces(&read(input)?)
}

/// Reads a module, not more than is accepted.
pub fn read(input: impl Read) -> Result<Vec<u8>> {
    let mut wasm = Vec::new();
    input.take(MAX_MODULE + 1).read_to_end(&mut wasm).map_err(Error::io("read the module"))?;
    let actual = wasm.len() as u64;
    if actual > MAX_MODULE { Err(Error::TooLarge { actual, limit: MAX_MODULE }) } else { Ok(wasm) }
}

fn compile(engine: &Engine, wasm: &[u8]) -> Result<Vec<u8>> {
    let compiled = if is_component(wasm)? { engine.precompile_component(wasm) } else { engine.precompile_module(wasm) };
    compiled.map_err(Error::Compile)
}

/// What the outermost component exports and imports; none: it is a core module.
fn interfaces(wasm: &[u8]) -> Result<Option<Interfaces>> {
    if !is_component(wasm)? {
        return Ok(None);
    }
    let failed = |error: wasmparser::BinaryReaderError| Error::Compile(error.into());
    let mut found = Interfaces { exports: Vec::new(), imports: Vec::new() };
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(failed)? {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    found.exports.push(export.map_err(failed)?.name.name.to_owned());
                }
            }
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    found.imports.push(import.map_err(failed)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(Some(found))
}
