//! End-to-end tests: they drive the built binaries as a user does.
//!
//! A new test goes into the module of its subject; a new flag of `berth run` gets one that fails if the flag does
//! nothing.

mod copy;
mod exec;
mod harness;
mod lifecycle;
mod limits;
mod logs;
mod namespaces;
mod privileges;
mod process;
mod restart_policy;
mod security;
mod signals;
mod stdio;
mod storage;
mod terminals;
mod views;
