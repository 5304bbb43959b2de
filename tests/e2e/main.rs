//! End-to-end tests: they drive the built binaries as a user does.
//!
//! A new test goes into the module of its subject; a new flag of `berth run` gets one that fails if the flag does
//! nothing.

mod archives;
mod bench;
mod cluster;
mod copy;
mod crashes;
mod damaged_records;
mod debian;
mod exec;
mod harness;
mod hostile_images;
mod image_store;
mod jobs;
mod lifecycle;
mod limits;
mod logs;
mod microvm;
mod microvm_tools;
mod namespaces;
mod nested;
mod podman;
mod privileges;
mod process;
mod process_guest;
mod process_guest_exec;
mod process_guest_limits;
mod process_guest_programs;
mod process_guest_tools;
mod process_guest_walls;
mod registries;
mod registry_faults;
mod restart_policy;
mod runtime;
mod security;
mod signals;
mod stdio;
mod storage;
mod terminals;
mod unpack;
mod user_namespaces;
mod views;
mod wasm;
mod wasm_hostile;
mod wasm_serve;
