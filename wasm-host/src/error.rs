//! The crate's error, and the exit codes that the habits of shells give it.

use std::io;
use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Berth itself failed.
const FAILED: u8 = 125;
/// What should be executed cannot be.
const NOT_EXECUTABLE: u8 = 126;
/// What should be executed is not there.
const NOT_FOUND: u8 = 127;

/// Why a module did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// wasmtime cannot work here.
    #[error("this host cannot run Wasm: {0:#}")]
    Engine(wasmtime::Error),
    /// A file could not be used.
    #[error("cannot {action}: {error}")]
    Io {
        /// What was attempted, on what, in the infinitive.
        action: String,
        /// Why it failed.
        error: io::Error,
    },
    /// What was handed over cannot be understood.
    #[error("what was handed over is not valid: {0}")]
    Handover(String),
    /// A wall could not be raised.
    #[error("cannot {wall}: {reason}")]
    Confine {
        /// Which one, in the infinitive.
        wall: &'static str,
        /// Why.
        reason: String,
    },
    /// The file is no Wasm.
    #[error("this is no Wasm module: {0}")]
    NotWasm(String),
    /// The module is larger than is accepted.
    #[error("the module is {actual} bytes long, more than the {limit} that are accepted")]
    TooLarge {
        /// Bytes it has.
        actual: u64,
        /// Bytes accepted.
        limit: u64,
    },
    /// wasmtime refuses the module.
    #[error("the module cannot be compiled: {0:#}")]
    Compile(wasmtime::Error),
    /// Compiled code is not what was stored.
    #[error(
        "the compiled code is damaged: its digest should be sha256:{expected} but is sha256:{actual}; `berth wasm compile` makes it \
         anew"
    )]
    Damaged {
        /// The digest it was stored with.
        expected: String,
        /// The digest it has.
        actual: String,
    },
    /// wasmtime refuses the compiled code.
    #[error("the compiled code does not suit this berth-wasm: {0:#}; make the container again")]
    Unsuitable(wasmtime::Error),
    /// The module needs what there is not.
    #[error("the module cannot run here: {0}")]
    World(String),
    /// The module is not there.
    #[error("there is no module {}", .0.display())]
    NotFound(PathBuf),
    /// The module asks for more than it may have before it begins.
    #[error("the module cannot be started: {0:#}")]
    Instantiate(wasmtime::Error),
}

impl Error {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotWasm(_) | Self::TooLarge { .. } | Self::Compile(_) | Self::World(_) => NOT_EXECUTABLE,
            Self::NotFound(_) => NOT_FOUND,
            _ => FAILED,
        }
    }

    /// Shorthand for `map_err` on files.
    pub(crate) fn io<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |error| Self::Io { action: action.into(), error: error.into() }
    }
}
