//! Starting `berth-oci`: as a container's monitor, in the foreground or detached, and for `exec`.
//!
//! The binary is run through a read-only clone of its mount, made for this one start, so that nothing in a container
//! can reach it for writing through `/proc/PID/exe` (CVE-2019-5736).

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use berth_runtime::span::{self, Phase};
use berth_runtime::{monitor, relay};
use rustix::fs::{Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};
use serde::Deserialize;

use crate::document;
use crate::error::{Attempt as _, Error, Result};
use crate::id::short;
use crate::lock::Lock;
use crate::options::Isolation;
use crate::paths::Roots;
use crate::record::Record;
use crate::remove;
use crate::spec;

/// The runtime's binary.
const BINARY: &str = "berth-oci";
/// Names a `berth-oci` that lies elsewhere than next to `berth`.
const BINARY_VARIABLE: &str = "BERTH_OCI";
/// Longest line of a detached monitor about its start.
const MAX_ANSWER: u64 = 64 << 10;

/// Becomes the container's monitor: it relays this process's standard streams and ends with the command's exit code.
pub fn become_monitor(roots: &Roots, record: &Record, lock: &Lock) -> Result<Infallible> {
    prepare(roots, record)?;
    let runtime = Runtime::open()?;
    inherit(lock)?;
    span::pass_on().attempt(|| "hand the spans on")?;
    span::mark(Phase::Sandbox);
    let error = runtime.monitor(roots, &record.id, lock).arg("--foreground").exec();
    Err(error).attempt(|| format!("execute {}", runtime.path.display()))
}

/// Starts the container's monitor in a session of its own and waits until it has started the container; returns the
/// process's id.
pub fn start_detached(roots: &Roots, record: &Record, lock: &Lock) -> Result<i32> {
    prepare(roots, record)?;
    let runtime = Runtime::open()?;
    let (ready, writer) = io::pipe().attempt(|| "make a pipe")?;
    // What the caller has open, a lock or a pipe, is not held for as long as the container lives.
    relay::close_on_exec_from(3)?;
    inherit(lock)?;
    fcntl_setfd(&writer, FdFlags::empty()).attempt(|| "hand a pipe on")?;
    let mut command = runtime.monitor(roots, &record.id, lock);
    command.arg("--ready-fd").arg(writer.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().attempt(|| format!("execute {}", runtime.path.display()))?;
    drop(writer);
    let mut line = Vec::new();
    let read = BufReader::new(ready.take(MAX_ANSWER)).read_until(b'\n', &mut line);
    read.attempt(|| "listen to the monitor")?;
    if line.is_empty() {
        let status = child.wait().attempt(|| "wait for the monitor")?;
        let message =
            format!("the monitor ended without a word ({status}); `berth logs {}` may say more", short(&record.id));
        return Err(Error::Start { message, code: 125 });
    }
    match serde_json::from_slice(&line) {
        Ok(Answer::Started { pid }) => Ok(pid),
        Ok(Answer::Failed { error, code }) => Err(Error::Start { message: error, code: code.unwrap_or(125) }),
        Err(error) => Err(Error::Start { message: format!("the monitor's answer is broken: {error}"), code: 125 }),
    }
}

/// What the monitor of a container reads.
pub(crate) fn monitor_file(roots: &Roots, id: &str) -> PathBuf {
    roots.live_container(id).join("monitor.json")
}

/// Writes what belongs to this one start into the container's volatile directory.
fn prepare(roots: &Roots, record: &Record) -> Result<()> {
    let options = &record.options;
    let dir = roots.live_container(&record.id);
    // A module has no such files.
    if options.isolation != Isolation::Wasm {
        spec::etc::write(&dir, options, &record.id)?;
    }
    let config = monitor::Config {
        id: record.id.clone(),
        name: record.name.clone(),
        image: record.image.clone(),
        bundle: roots.container(&record.id),
        sandboxes: roots.sandboxes(),
        state_dir: dir,
        events: roots.events(),
        tty: options.tty,
        interactive: options.interactive,
        restart: options.restart,
        remove: if options.remove { remove::at_exit(roots, record) } else { Vec::new() },
    };
    document::write(&monitor_file(roots, &record.id), &config)
}

/// Becomes `berth-oci --root … exec ARGUMENTS`.
pub fn become_exec(roots: &Roots, arguments: &[OsString]) -> Result<Infallible> {
    let runtime = Runtime::open()?;
    let mut command = runtime.command();
    command.arg("--root").arg(roots.sandboxes()).arg("exec").args(arguments);
    Err(command.exec()).attempt(|| format!("execute {}", runtime.path.display()))
}

/// What a detached monitor says about its start, one JSON line.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Started { pid: i32 },
    Failed { error: String, code: Option<i32> },
}

/// The runtime's binary, opened once.
struct Runtime {
    path: PathBuf,
    file: OwnedFd,
}

impl Runtime {
    fn open() -> Result<Self> {
        let path = find(BINARY, BINARY_VARIABLE)?;
        // Where the clone cannot be made (an old kernel, no CAP_SYS_ADMIN here), berth-oci still protects itself.
        let file = match berth_runtime::sandbox::read_only_file(&path) {
            Ok(clone) => clone,
            Err(_) => rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .attempt(|| format!("open {}", path.display()))?,
        };
        Ok(Self { path, file })
    }

    /// A command that executes the opened file. The descriptor is closed by the execution itself.
    fn command(&self) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        command.arg0(BINARY);
        command
    }

    fn monitor(&self, roots: &Roots, id: &str, lock: &Lock) -> Command {
        let mut command = self.command();
        command.arg("monitor").arg("--config").arg(monitor_file(roots, id));
        command.arg("--lock-fd").arg(lock.as_fd().as_raw_fd().to_string());
        command
    }
}

/// The lock goes on to the process that is executed next.
fn inherit(lock: &Lock) -> Result<()> {
    fcntl_setfd(lock, FdFlags::empty()).attempt(|| "hand the container's lock on")
}

/// One of berth's programs: next to this one, else what `variable` names, else in `PATH`.
pub(crate) fn find(binary: &str, variable: &str) -> Result<PathBuf> {
    if let Ok(own) = env::current_exe() {
        let beside = own.with_file_name(binary);
        if beside.is_file() {
            return Ok(beside);
        }
    }
    if let Some(given) = env::var_os(variable) {
        return Ok(given.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(binary)).find(|file| file.is_file());
    found.ok_or_else(|| {
        Error::Invalid(format!("cannot find {binary}; put it next to berth, into PATH, or name it in {variable}"))
    })
}
