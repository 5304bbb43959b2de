//! What the end-to-end tests stand on: an isolated [`home::Home`] for each test, commands with deadlines, terminals,
//! hand-made images, registries that work and registries that misbehave.
//!
//! Start reading at [`home`]. A helper that cannot do its part panics, saying what it tried: it is a test that fails.
#![allow(clippy::missing_panics_doc)]

pub mod binaries;
pub mod cgroup;
pub mod command;
pub mod fault_server;
pub mod fixtures;
pub mod home;
pub mod kill_points;
pub mod layout;
pub mod leaks;
pub mod png;
pub mod podman;
pub mod registry;
pub mod tar_file;
pub mod terminal;
pub mod wait;
pub mod wasm;
