//! `berth-vmm`: the first process of a sandbox that is a microVM.

mod exec;
mod executor;
mod host;
mod initramfs;
mod process;
mod run;
mod vmlinux;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, bail};

/// Berth itself failed.
const FAILED: u8 = 125;

const USAGE: &str = "usage: berth-vmm run CONFIG [PROCESS] | exec SOCKET PROCESS | start HANDOVER | enter HANDOVER | \
                     process-start HANDOVER | process-enter HANDOVER | process [--trace] ROOT COMMAND… | initramfs CACHE [OPTION…] | vmlinux KERNEL | host, where CONFIG, \
                     PROCESS and HANDOVER are a path or the number of a \
                     descriptor";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    run(&arguments).unwrap_or_else(|error| {
        eprintln!("berth-vmm: {error:#}");
        ExitCode::from(FAILED)
    })
}

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let (command, rest) = arguments.split_first().map_or((None, &[][..]), |(first, rest)| (first.to_str(), rest));
    match (command, rest) {
        (Some("run"), [config]) => run::run(config, None),
        (Some("run"), [config, process]) => run::run(config, Some(process)),
        (Some("start"), [handover]) => executor::start(handover),
        (Some("enter"), [handover]) => executor::enter(handover),
        (Some("process-start"), [handover]) => executor::start_process(handover),
        (Some("process-enter"), [handover]) => executor::enter_process(handover),
        (Some("process"), arguments) => process::run(arguments),
        (Some("exec"), [socket, process]) => exec::run(socket, process),
        (Some("host"), []) => host::run().map(|()| ExitCode::SUCCESS),
        (Some("vmlinux"), [kernel]) => vmlinux::run(kernel).map(|()| ExitCode::SUCCESS),
        (Some("initramfs"), options) => initramfs::run(options.iter().cloned()).map(|()| ExitCode::SUCCESS),
        _ => bail!(USAGE),
    }
}
