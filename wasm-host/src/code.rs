//! Compiled code: made by [`crate::compile`], run by [`crate::run`].

use std::fs::File;
use std::io::Read as _;

use sha2::{Digest as _, Sha256};
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

use crate::error::{Error, Result};

/// Code that can be instantiated.
#[derive(Clone)]
pub enum Code {
    /// A core module, which has WASI's preview 1 if anything.
    Module(Module),
    /// A component.
    Component(Component),
}

/// Whether these are the first bytes of a component, and not of a core module.
pub fn is_component(wasm: &[u8]) -> Result<bool> {
    // The component model's binary format: a version of 16 bits, then one that tells the two kinds apart.
    match wasm {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(false),
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => Ok(true),
        [0, b'a', b's', b'm', ..] => Err(Error::NotWasm("its version is unknown".to_owned())),
        [] => Err(Error::NotWasm("it is empty".to_owned())),
        _ => Err(Error::NotWasm("it does not begin with the bytes of one".to_owned())),
    }
}

/// Compiles and loads. Costs a compiler: see [`load`].
pub fn compile(engine: &Engine, wasm: &[u8]) -> Result<Code> {
    let failed = |error: wasmtime::Error| Error::Compile(error);
    Ok(if is_component(wasm)? {
        Code::Component(Component::from_binary(engine, wasm).map_err(failed)?)
    } else {
        Code::Module(Module::from_binary(engine, wasm).map_err(failed)?)
    })
}

/// Loads what was compiled before, if it still is what was stored: nothing else may become code.
pub fn load(engine: &Engine, mut file: File, sha256: &str) -> Result<Code> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(Error::io("read the compiled code"))?;
    let actual = hex(&Sha256::digest(&bytes));
    if actual != sha256 {
        return Err(Error::Damaged { expected: sha256.to_owned(), actual });
    }
    let unsuitable = |error: wasmtime::Error| Error::Unsuitable(error);
    match Engine::detect_precompiled(&bytes) {
        Some(Precompiled::Module) => {
            // SAFETY: these are the bytes that our compiler wrote: whoever knows the digest had them from it.
            unsafe { Module::deserialize(engine, &bytes) }.map(Code::Module).map_err(unsuitable)
        }
        Some(Precompiled::Component) => {
            // SAFETY: as above.
            unsafe { Component::deserialize(engine, &bytes) }.map(Code::Component).map_err(unsuitable)
        }
        None => Err(Error::Unsuitable(wasmtime::format_err!("it is no code of wasmtime's"))),
    }
}

/// In hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
