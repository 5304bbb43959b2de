//! What a module is made for, told from what it exports: its world in WASI's sense.

use wasmtime::component::Component;
use wasmtime::{Engine, ExternType, Module};

use crate::error::{Error, Result};

/// The export of a command in preview 1.
pub const START: &str = "_start";
/// The module of preview 1's functions.
const PREVIEW_1: &str = "wasi_snapshot_preview1";
/// The module of the functions before preview 1.
const PREVIEW_0: &str = "wasi_unstable";

/// What a component can be run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// `wasi:cli/command` of preview 2.
    Command,
    /// `wasi:cli/command` of preview 3.
    Command3,
    /// `wasi:http/proxy` of preview 2.
    Http,
}

/// Refuses a module that is no command of preview 1.
pub fn check_command(module: &Module) -> Result<()> {
    match module.get_export(START) {
        Some(ExternType::Func(function)) if function.params().len() == 0 && function.results().len() == 0 => {}
        Some(_) => {
            return Err(Error::World(format!("its export `{START}` is no function without parameters and results")));
        }
        None => {
            let exports: Vec<&str> = module.exports().map(|export| export.name()).take(8).collect();
            let has = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
            return Err(Error::World(format!(
                "it is no command: it lacks the function `{START}`, and exports {has}; build it as a program, not a library"
            )));
        }
    }
    let foreign: Vec<String> = module
        .imports()
        .filter(|import| import.module() != PREVIEW_1)
        .map(|import| format!("{}.{}", import.module(), import.name()))
        .take(8)
        .collect();
    match foreign.first() {
        None => Ok(()),
        Some(first) if first.starts_with(PREVIEW_0) => Err(Error::World(format!(
            "it imports {PREVIEW_0}, which came before preview 1; build it with a current wasi-libc or wasi-sdk"
        ))),
        Some(_) => Err(Error::World(format!(
            "it imports {}, which nothing here offers; a module gets {PREVIEW_1} alone",
            foreign.join(", ")
        ))),
    }
}

/// Whether a component speaks of HTTP, as one may that is no handler.
pub fn imports_http(component: &Component, engine: &Engine) -> bool {
    component.component_type().imports(engine).any(|(name, _)| name.starts_with("wasi:http/"))
}

/// What a component is made for.
pub fn of(component: &Component, engine: &Engine) -> Result<World> {
    let exports: Vec<String> = component.component_type().exports(engine).map(|(name, _)| name.to_owned()).collect();
    let has = |interface: &str| exports.iter().any(|export| export.starts_with(interface));
    if has("wasi:cli/run@0.2.") {
        Ok(World::Command)
    } else if has("wasi:cli/run@0.3.") {
        Ok(World::Command3)
    } else if has("wasi:http/incoming-handler@0.2.") {
        Ok(World::Http)
    } else {
        let exports = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
        Err(Error::World(format!(
            "the component exports {exports}, but neither wasi:cli/run (a command) nor wasi:http/incoming-handler 0.2 (an HTTP \
             handler)"
        )))
    }
}
