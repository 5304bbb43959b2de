//! The monitor: the process that looks after one container, from its start to its removal. It makes the sandbox, relays
//! its streams, writes the log, serves `attach`, starts it again by policy and cleans up.
//!
//! Start reading at [`run`]; [`Config`] is what it is told and [`Status`] what it tells.

mod config;
mod journal;
mod keys;
mod log;
mod memory;
mod streams;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::setsid;
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::json;
use std::os::fd::AsFd as _;

use crate::bundle::{Bundle, read_json};
use crate::error::{Attempt as _, Error, Result};
use crate::relay;
use crate::sandbox::{self, Sandbox, write_json};
use crate::span;
pub use config::{Config, Phase, RestartPolicy, STOP_REQUESTED, Status};
use journal::Journal;
use streams::Streams;

/// The first pause before a restart; each further one is twice as long (docker's).
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest pause before a restart.
const LONGEST_DELAY: Duration = Duration::from_mins(1);
/// A process that ran this long starts with the first pause again.
const RAN_WELL: Duration = Duration::from_secs(10);
/// How long a detached monitor tries to write down how its container ended, when the disk is full.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often a pause looks for a request to stop.
const LOOK: Duration = Duration::from_millis(50);

/// How the monitor was started.
#[derive(Debug)]
pub struct Start<'a> {
    /// `monitor.json`.
    pub config: &'a Path,
    /// The caller's standard streams are the container's.
    pub foreground: bool,
    /// The container's lock, inherited; held to the end.
    pub lock_fd: Option<RawFd>,
    /// Where a detached monitor says how the start went.
    pub ready_fd: Option<RawFd>,
}

/// Looks after a container until it has ended for good: its exit code.
pub fn run(start: &Start<'_>) -> Result<i32> {
    let _lock = start.lock_fd.map(take_descriptor).transpose()?;
    let mut ready = start.ready_fd.map(take_descriptor).transpose()?.map(File::from);
    let result = read_json::<Config>(start.config).and_then(|config| {
        let mut monitor = Monitor::new(config, start)?;
        let result = monitor.run(&mut ready);
        if let Err(error) = &result {
            monitor.give_up(error);
        }
        monitor.clean_up();
        result
    });
    if let (Err(error), Some(ready)) = (&result, &mut ready) {
        let _ = writeln!(ready, "{}", json!({ "error": error.to_string(), "code": error.exit_code() }));
    }
    result
}

/// An inherited descriptor, which goes no further.
fn take_descriptor(fd: RawFd) -> Result<OwnedFd> {
    if fd < 3 {
        return Err(Error::Invalid(format!("descriptor {fd} is a standard stream")));
    }
    // SAFETY: the caller passed this descriptor on for this use; if it is not open, the next line says so.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC).attempt(|| "take over an inherited descriptor")?;
    Ok(fd)
}

struct Monitor {
    config: Config,
    /// Where the configuration came from: it may change between two starts.
    file: PathBuf,
    foreground: bool,
    signals: SignalFd,
    status: Status,
    journal: Journal,
}

impl Monitor {
    fn new(config: Config, start: &Start<'_>) -> Result<Self> {
        if !start.foreground {
            detach()?;
        }
        // What a process outside a pid namespace leaves behind comes to the monitor to be reaped.
        nix::sys::prctl::set_child_subreaper(true).attempt(|| "become the reaper of the container")?;
        let signals = relay::signals()?;
        let status = read_json(&config.bundle.join("status.json")).unwrap_or_default();
        let journal = Journal::new(&config);
        Ok(Self { config, file: start.config.to_owned(), foreground: start.foreground, signals, status, journal })
    }

    /// Start after start, until the restart policy has had enough.
    fn run(&mut self, ready: &mut Option<File>) -> Result<i32> {
        let mut bundle = Bundle::load(&self.config.bundle)?;
        let mut streams = Streams::open(&self.config, self.foreground)?;
        let mut delay = FIRST_DELAY;
        self.status.restart_count = 0;
        loop {
            let started = Instant::now();
            let code = self.run_once(&mut bundle, &mut streams, ready)?;
            if self.status.phase != Phase::Restarting {
                streams.send_exit(code);
                return Ok(code);
            }
            if started.elapsed() > RAN_WELL {
                delay = FIRST_DELAY;
            }
            if !self.pause(delay) {
                self.status.phase = Phase::Exited;
                self.save_status();
                streams.send_exit(code);
                return Ok(code);
            }
            delay = (delay * 2).min(LONGEST_DELAY);
            self.status.restart_count += 1;
            self.config = read_json(&self.file).unwrap_or_else(|_| self.config.clone());
        }
    }

    fn run_once(&mut self, bundle: &mut Bundle, streams: &mut Streams, ready: &mut Option<File>) -> Result<i32> {
        if let (true, Some(process)) = (self.foreground, bundle.spec.process_mut()) {
            sandbox::copy_size(io::stdin(), process);
        }
        let stdio = streams.stdio()?;
        let made = sandbox::create(
            bundle,
            sandbox::Options {
                root: self.config.sandboxes.clone(),
                id: self.config.id.clone(),
                stdio,
                die_with_maker: true,
                ..sandbox::Options::default()
            },
        )?;
        let pid = made.pid.as_raw();
        self.status.phase = Phase::Running;
        self.status.pid = Some(pid);
        self.status.monitor_pid = Some(std::process::id() as i32);
        self.status.started_at = Some(Timestamp::now());
        self.status.oom_killed = false;
        self.status.error = None;
        if self.status.restart_count == 0 {
            self.write_status()?;
        } else {
            self.save_status();
        }
        self.journal.write("start", &json!({}));
        if let Some(mut ready) = ready.take() {
            let _ = writeln!(ready, "{}", json!({ "pid": pid }));
        }
        let deaf = made.sandbox.state().own_pid_namespace;
        streams.take_console(made.console)?;
        if !self.foreground {
            memory::give_back();
        }
        let code = streams.relay(&self.signals, &made.sandbox, made.pid, deaf)?;
        span::mark(span::Phase::End);
        self.after_exit(&made.sandbox, made.oom.as_ref(), code)?;
        streams.drain();
        Ok(code)
    }

    fn after_exit(&mut self, sandbox: &Sandbox, oom: Option<&OwnedFd>, code: i32) -> Result<()> {
        // Nothing can be read from a counter that stands at zero.
        let by_executor = oom.is_some_and(|counter| rustix::io::read(counter, &mut [0; 8]).is_ok());
        self.status.oom_killed = by_executor || sandbox.oom_kills() > 0;
        sandbox.delete(true)?;
        // At once what it is: whoever read `exited` between two runs would take it for over.
        self.status.phase = if self.restarts(code) { Phase::Restarting } else { Phase::Exited };
        self.status.pid = None;
        self.status.finished_at = Some(Timestamp::now());
        self.status.exit_code = Some(code);
        if self.status.oom_killed {
            self.journal.write("oom", &json!({}));
        }
        self.journal.write("die", &json!({ "exitCode": code.to_string() }));
        // With `--rm` the status is about to go with everything else.
        if self.config.remove.is_empty() {
            self.save_status();
        }
        Ok(())
    }

    fn restarts(&self, code: i32) -> bool {
        if self.stop_requested() {
            return false;
        }
        match self.config.restart {
            RestartPolicy::No => false,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            RestartPolicy::OnFailure { max_retries } => {
                code != 0 && max_retries.is_none_or(|max| self.status.restart_count < max)
            }
        }
    }

    fn stop_requested(&self) -> bool {
        self.config.state_dir.join(STOP_REQUESTED).exists()
    }

    /// Lets a pause go by: whether it did, undisturbed.
    fn pause(&self, delay: Duration) -> bool {
        let end = Instant::now() + delay;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if self.stop_requested() {
                return false;
            }
            if left.is_zero() {
                return true;
            }
            let timeout = PollTimeout::try_from(left.min(LOOK)).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], timeout);
            let ends = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
            if relay::pending(&self.signals).iter().any(|signal| ends.contains(signal)) {
                return false;
            }
        }
    }

    fn write_status(&self) -> Result<()> {
        write_json(&self.config.bundle.join("status.json"), &self.status)
    }

    /// Writes the status where that is not what decides: a disk that is full for a while neither ends a container that goes
    /// on nor changes its exit code. The last one is written by [`clean_up`](Self::clean_up).
    fn save_status(&self) {
        if let Err(error) = self.write_status() {
            eprintln!("berth-oci: {error}");
        }
    }

    /// Leaves word of why the container could not be started.
    fn give_up(&mut self, error: &Error) {
        if let Ok(sandbox) = Sandbox::load(&self.config.sandboxes, &self.config.id) {
            let _ = sandbox.delete(true);
        }
        self.status.phase = if self.status.started_at.is_some() { Phase::Exited } else { Phase::Created };
        self.status.pid = None;
        self.status.exit_code = Some(error.exit_code());
        self.status.error = Some(error.to_string());
    }

    /// The last thing of all: nothing of the container is alive any more.
    fn clean_up(&mut self) {
        self.status.pid = None;
        self.status.monitor_pid = None;
        if self.config.remove.is_empty() {
            // Nobody waits for a detached monitor's own end as for the exit code, which would be lost.
            let patience = if self.foreground { Duration::ZERO } else { PATIENCE };
            let begin = Instant::now();
            while let Err(error) = self.write_status() {
                if begin.elapsed() >= patience {
                    eprintln!("berth-oci: {error}");
                    break;
                }
                std::thread::sleep(LOOK);
            }
        } else {
            for path in &self.config.remove {
                remove(path);
            }
            self.journal.write("destroy", &json!({}));
        }
        remove(&self.config.state_dir);
    }
}

fn remove(path: &Path) {
    let result = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            eprintln!("berth-oci: remove {}: {error}", path.display());
        }
        _ => {}
    }
}

/// A session and standard streams of its own, so that it outlives the shell that started it.
fn detach() -> Result<()> {
    // The starter may have made it a session leader already.
    let _ = setsid();
    let null = File::options().read(true).write(true).open("/dev/null").attempt(|| "open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).attempt(|| "detach standard input")?;
    rustix::stdio::dup2_stdout(&null).attempt(|| "detach standard output")?;
    rustix::stdio::dup2_stderr(&null).attempt(|| "detach standard error")?;
    nix::unistd::chdir("/").attempt(|| "leave the starter's directory")
}
