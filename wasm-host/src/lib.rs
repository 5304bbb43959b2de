//! The Wasm host: what a sandbox's first process becomes with `--isolation wasm`.
//!
//! [`compile`] makes machine code of a module or component, in a process of its own behind walls, and [`run`] runs such
//! code inside the sandbox. The two never meet in one process where there is a store to keep what was compiled: a warm start
//! finds no compiler at work. Both configure wasmtime in one place, [`engine`]; its compatibility key says
//! whether what one made suits the other.
//!
//! What a module gets is in [`grants`], what it may use up in [`limits`], and what ends it in [`stop`].

pub mod code;
pub mod compile;
mod confine;
pub mod engine;
mod error;
mod grants;
mod http;
mod limits;
pub mod run;
mod serve;
mod settings;
mod stop;
mod world;

pub use error::{Error, Result};
pub use settings::{Directory, Serve, Settings};
