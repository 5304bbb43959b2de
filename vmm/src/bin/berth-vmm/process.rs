//! `berth-vmm process`: a guest without a kernel that nobody's sandbox surrounds, to look at one closely.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use berth_vmm::host;
use berth_vmm::process::sandboxed::own_niceness;
use berth_vmm::process::{Command, Config, Most, run as run_guest};

use crate::executor::end_process;

/// Most bytes of guest memory; what is not touched costs nothing.
const MEMORY: u64 = 8 << 30;

/// Runs a command in the directory ROOT: `[--trace] ROOT COMMAND [ARGUMENT…]`.
pub fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let (trace, arguments) = match arguments {
        [flag, rest @ ..] if flag == "--trace" => (true, rest),
        all => (false, all),
    };
    let [root, command @ ..] = arguments else { bail!(crate::USAGE) };
    if command.is_empty() {
        bail!(crate::USAGE);
    }
    let environment = std::env::vars_os().map(|(name, value)| [name.as_bytes(), value.as_bytes()].join(&b'='));
    let config = Config {
        kvm: host::open()?,
        root: File::open(root).with_context(|| format!("opening the root {}", root.display()))?.into(),
        command: Command {
            arguments: command.iter().cloned().map(OsString::into_vec).collect(),
            environment: environment.collect(),
            directory: b"/".to_vec(),
            nice: own_niceness(),
        },
        most: Most { memory: MEMORY, threads: None },
        host_name: b"berth".to_vec(),
        control: None,
        oom: None,
        trace,
    };
    end_process(run_guest(config).map_err(Into::into))
}
