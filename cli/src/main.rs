//! `berth`: launches OCI images as containers. This binary composes: arguments in, tables out; what is done is in
//! `berth-engine` and `berth-images`. Start reading at [`commands::run`].

mod commands;
mod diagnostics;
mod failure;
mod flags;
mod output;
mod progress;
mod pull;

use std::process::ExitCode;

use nix::sys::signal::{SigHandler, Signal, signal};

fn main() -> ExitCode {
    // A reader that has seen enough (`berth ps | head`) ends us quietly, as it ends any other tool.
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    commands::run().unwrap_or_else(|error| failure::report(&error))
}
