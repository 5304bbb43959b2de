//! `berth-oci`: runc's command line over the sandbox, and the monitor of one container. Static, single-threaded.

mod commands;
mod foreground;
mod protect;
mod spec;
mod stats;

use std::process::ExitCode;

use berth_runtime::span;
use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = commands::Cli::parse();
    let log = arguments.log.clone();
    let json = arguments.log_format.as_deref() == Some("json");
    let result = protect::own_binary().and_then(|()| {
        span::inherit();
        commands::run(arguments)
    });
    match result {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            commands::report(log.as_deref(), json, &error);
            ExitCode::from(error.exit_code() as u8)
        }
    }
}
