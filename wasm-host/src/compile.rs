//! The compiler's process: it reads a module from a stranger, and what it may do is write code into one open file.

use std::fs::{File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Process;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use wasmparser::{Parser, Payload};
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use crate::code::{Code, hex};
use crate::confine;
use crate::engine;
use crate::error::{Error, Result};

/// Longest module that is compiled, bytes.
pub const MAX_MODULE: u64 = 256 << 20;
/// Bytes of a compatibility key, before it is written in hexadecimal digits.
const KEY_LENGTH: usize = 8;

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

/// What must be equal for code to suit an engine, with `fuel` or without: wasmtime's version and settings, and what this
/// processor has.
pub fn compatibility(fuel: bool) -> Result<String> {
    let mut hasher = KeyHasher(Sha256::new());
    engine::compiler(fuel)?.precompile_compatibility_hash().hash(&mut hasher);
    Ok(hex(&hasher.0.finalize()[..KEY_LENGTH]))
}

/// Compiles and loads the module that a sandbox's process names, for those who have no store for code.
pub(crate) fn at_once(process: &Process, fuel: bool) -> Result<(Engine, Code)> {
    let name = process.args().as_deref().unwrap_or_default().first().map_or(Path::new(""), Path::new);
    let path: PathBuf = process.cwd().join(name);
    let wasm = match File::open(&path) {
        Ok(file) => read(file)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Error::NotFound(path)),
        Err(error) => return Err(Error::io(format!("open the module {}", path.display()))(error)),
    };
    let engine = engine::compiler(fuel)?;
    let code = if is_component(&wasm)? {
        Component::from_binary(&engine, &wasm).map(Code::Component)
    } else {
        Module::from_binary(&engine, &wasm).map(Code::Module)
    };
    Ok((engine, code.map_err(Error::Compile)?))
}

/// Reads a module, not more than is accepted.
fn read(input: impl Read) -> Result<Vec<u8>> {
    let mut wasm = Vec::new();
    input.take(MAX_MODULE + 1).read_to_end(&mut wasm).map_err(Error::io("read the module"))?;
    let actual = wasm.len() as u64;
    if actual > MAX_MODULE { Err(Error::TooLarge { actual, limit: MAX_MODULE }) } else { Ok(wasm) }
}

/// Whether these are the first bytes of a component, and not of a core module.
fn is_component(wasm: &[u8]) -> Result<bool> {
    // The component model's binary format: a version of 16 bits, then one that tells the two kinds apart.
    match wasm {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(false),
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => Ok(true),
        [0, b'a', b's', b'm', ..] => Err(Error::NotWasm("its version is unknown".to_owned())),
        [] => Err(Error::NotWasm("it is empty".to_owned())),
        _ => Err(Error::NotWasm("it does not begin with the bytes of one".to_owned())),
    }
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

/// A hasher whose result is the same in every build of this program, unlike the standard library's.
struct KeyHasher(Sha256);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        u64::from_le_bytes(std::array::from_fn(|place| digest[place]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_tells_settings_apart_and_nothing_else() {
        let key = |fuel| compatibility(fuel).unwrap();
        assert_eq!(key(false), key(false));
        assert_ne!(key(false), key(true));
        assert_eq!(key(true).len(), 2 * KEY_LENGTH);
    }
}
