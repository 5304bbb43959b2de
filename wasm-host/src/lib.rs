//! The Wasm host: what a sandbox's first process becomes with `--isolation wasm`.
//!
//! `compile` makes machine code of a module or component, in a process of its own behind walls, `berth-wasm-compile`, and
//! [`run`] runs such code inside the sandbox, as `berth-wasm`, which has no compiler in it when it is built by itself (the feature
//! `compiler`). The two meet in one process only where there is no store to keep what was compiled, in an OCI client's sandbox. Both
//! configure wasmtime in one place, [`engine`]; the compiler's compatibility key says whether what one made suits the other.
//!
//! What a module gets is in [`grants`], what it may use up in [`limits`], and what ends it in [`stop`].

pub mod code;
#[cfg(feature = "compiler")]
pub mod compile;
mod confine;
pub mod engine;
mod error;
mod grants;
mod http;
mod limits;
pub mod program;
pub mod run;
mod serve;
mod settings;
mod stop;
mod world;

pub use error::{Error, Result};
pub use settings::{Directory, Serve, Settings};
