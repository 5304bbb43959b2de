//! Containers as people know them: a record with a name, an image and a bundle, over the image store
//! (`berth-images`) and the sandbox (`berth-runtime`).
//!
//! Start reading at [`options`] (what a person can ask for) and [`record`] (what is kept of it), then [`create`] and
//! [`launch`] (how a container comes to life), [`lifecycle`] (what can be done to it) and [`sweep`] (how a crash is
//! cleaned up after).

mod base;
pub mod container;
pub mod cp;
pub mod create;
pub mod diff;
mod document;
pub mod error;
pub mod events;
pub mod exec;
mod guests;
pub mod id;
mod ids;
pub mod info;
pub mod inspect;
pub mod launch;
pub mod lifecycle;
pub mod lock;
pub mod logs;
mod microvm;
pub mod monitor;
pub mod names;
pub mod options;
pub mod paths;
pub mod prune;
pub mod ps;
pub mod record;
pub mod remove;
pub mod signal;
pub mod size;
pub mod spec;
pub mod stats;
mod status;
pub mod sweep;
pub mod time;
pub mod top;
pub mod vm;
pub mod volumes;
pub mod wasm;
mod watch;

pub use container::Container;
pub use error::{Error, Result};
pub use paths::Roots;
