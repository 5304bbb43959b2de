//! Compiled code: made by the compiler, run by [`crate::run`].

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
