//! `berth-vmm run`: makes the machine and lives as long as it does.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use berth_vmm::guest::client::{self, ClientError};
use berth_vmm::guest::frame::Exit;
use berth_vmm::guest::linux;
use berth_vmm::guest::start::Start;
use berth_vmm::machine::control::Stop;
use berth_vmm::machine::{Machine, MachineConfig, descriptor};

/// Bounds what is read from a descriptor that should hold a configuration.
const CONFIG_MAX: u64 = 8 << 20;

/// Runs the machine described in the file, or behind the descriptor, `source`. With a `process` described likewise, this process
/// is that one to whoever looks from outside: its streams, its signals and its exit code.
pub fn run(source: &OsStr, process: Option<&OsStr>) -> Result<ExitCode> {
    let text = read(source).with_context(|| format!("reading the configuration {}", source.display()))?;
    let config: MachineConfig = serde_json::from_str(&text).context("parsing the configuration")?;
    let process = process.map(read_process).transpose()?;
    let report = config.report.map(|fd| descriptor::take(fd, "the report")).transpose()?;
    // Before there are threads, which take over the signal mask.
    let signals = client::signals()?;
    let machine = Machine::new(&config)?;
    let (ended, result) = match process {
        Some(process) => linux::serve(machine, process, signals).map(|(ended, result)| (ended, Some(result)))?,
        None => (machine.start()?.wait()?, None),
    };
    if let Some(report) = report {
        let mut line = serde_json::to_vec(&ended).context("putting the report into JSON")?;
        line.push(b'\n');
        File::from(report).write_all(&line).context("writing the report")?;
    }
    match result {
        Some(Err(ClientError::Lost)) | None if matches!(ended.stop, Stop::PowerOff | Stop::Asked) => {
            Ok(ExitCode::SUCCESS)
        }
        Some(Err(ClientError::Lost)) | None => bail!("the machine ended: {}", linux::why(ended.stop)),
        Some(result) => exit_code(result),
    }
}

/// The process described in the file, or behind the descriptor, `source`.
pub fn read_process(source: &OsStr) -> Result<Start> {
    let text = read(source).with_context(|| format!("reading the process {}", source.display()))?;
    serde_json::from_str(&text).context("parsing the process")
}

/// What this process ends with.
pub fn exit_code(result: Result<Exit, ClientError>) -> Result<ExitCode> {
    match result {
        Ok(exit) => Ok(ExitCode::from(exit.code() as u8)),
        Err(ClientError::Failed(failure)) => {
            eprintln!("berth-vmm: {}", failure.message);
            Ok(ExitCode::from(failure.code))
        }
        Err(error) => Err(error.into()),
    }
}

/// The text in the file, or behind the descriptor, `source`.
pub fn read(source: &OsStr) -> std::io::Result<String> {
    let Some(descriptor) = source.to_str().and_then(|text| text.parse::<RawFd>().ok()) else {
        return fs::read_to_string(source);
    };
    // SAFETY: the caller names a descriptor it hands over; if it is not open, reading says so.
    let file = unsafe { File::from_raw_fd(descriptor) };
    let mut text = String::new();
    file.take(CONFIG_MAX).read_to_string(&mut text)?;
    Ok(text)
}
