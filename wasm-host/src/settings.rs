//! What `executor.json` says to this host.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The settings of one module. By default it is found in the image's files and gets those: what a bundle of another engine than
/// berth's means.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// SHA-256 in hexadecimal digits of the compiled code that is handed over as the file `code`; none, and no
    /// such file: `berth-wasm-compile` compiles what `process.args` names.
    pub code: Option<String>,
    /// Directories it gets, all of the sandbox's files where this is not said.
    pub directories: Option<Vec<Directory>>,
    /// Bytes its linear memories and tables may have together.
    pub memory: Option<u64>,
    /// Milliseconds it may run, or each request may take.
    pub timeout_ms: Option<u64>,
    /// Units of work it may do, about one an instruction.
    pub fuel: Option<u64>,
    /// Whether it may use the sandbox's network.
    pub network: bool,
    /// How it serves requests; none: it is a command.
    pub serve: Option<Serve>,
}

/// How a component serves requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serve {
    /// Requests served at once at most.
    pub concurrency: u32,
    /// Bytes that the memories and tables of one instance may have together.
    pub memory: Option<u64>,
    /// Requests that one instance answers, one after the other, before it ends.
    pub requests: u32,
}

/// A directory that the module gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// Where it is, in the sandbox and to the module.
    pub path: PathBuf,
    /// Whether it may only be read.
    #[serde(default)]
    pub read_only: bool,
}
