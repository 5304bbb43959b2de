//! OCI images: a content-addressed store shared by many processes, layers unpacked for overlayfs, and the
//! registry client.
//!
//! Start reading at [`Store`]: it is an OCI image layout on disk (`store/`), whose layers become read-only
//! directories (`layer/`), filled from archives (`archive/`) or a registry (`registry/`).
//!
//! Layers come from strangers. They are decompressed and unpacked in a process of their own that sees nothing but
//! the directory it fills; the program that links this crate lends itself to that by calling
//! [`unpack_worker_main`] for the hidden command line [`UNPACK_COMMAND`].

mod archive;
mod digest;
mod error;
mod layer;
mod media;
pub mod overlay;
mod platform;
mod reference;
mod registry;
mod store;
mod tar;
mod wasm;

pub use archive::{Change, Format, ImportOptions, LoadOptions, WasmOptions};
pub use digest::Digest;
pub use error::{Error, Result};
pub use layer::{DiskFormat, LayerError, Limits, UNPACK_COMMAND, Unpacker, unpack_worker_main};
pub use platform::Platform;
pub use reference::Reference;
pub use registry::{
    Connection, Credentials, Event, Progress, PullOptions, PushOptions, Quiet, login, logout, pull, push,
};
pub use store::{Code, Description, Guard, HistoryEntry, Image, Layer, Pruned, Removed, RootFs, Store, Summary, Use};
pub use wasm::Interfaces;
#[cfg(feature = "fuzzing")]
pub use wasm::fuzz_artifact;
