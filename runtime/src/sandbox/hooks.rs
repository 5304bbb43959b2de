//! Hooks: programs of the host that run at fixed points of a sandbox's life, with its state on standard input
//! (OCI runtime-spec, "POSIX-platform Hooks").

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::Hook;
use std::os::fd::AsFd as _;

use crate::error::{Attempt as _, Error, Result};

/// Runs the hooks in order; the first that fails ends it.
pub(super) fn run(kind: &str, hooks: &[Hook], state: &[u8]) -> Result<()> {
    hooks.iter().try_for_each(|hook| run_one(kind, hook, state))
}

fn run_one(kind: &str, hook: &Hook, state: &[u8]) -> Result<()> {
    let path = hook.path().display();
    let attempt = || format!("run the {kind} hook {path}");
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_ref().and_then(|arguments| arguments.split_first()) {
        command.arg0(name).args(arguments);
    }
    command.env_clear().stdin(Stdio::piped());
    command.envs(hook.env().iter().flatten().filter_map(|entry| entry.split_once('=')));
    let mut child = command.spawn().attempt(attempt)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its input.
        let _ = stdin.write_all(state);
    }
    if let Some(seconds) = hook.timeout() {
        let limit = Duration::from_secs(seconds.max(0) as u64);
        if !wait_until(child.id(), limit)? {
            child.kill().attempt(attempt)?;
            child.wait().attempt(attempt)?;
            return Err(Error::Invalid(format!("the {kind} hook {path} did not end within {} s", limit.as_secs())));
        }
    }
    let status = child.wait().attempt(attempt)?;
    if status.success() { Ok(()) } else { Err(Error::Invalid(format!("the {kind} hook {path} failed: {status}"))) }
}

/// Waits until a process has ended or the time is over: whether it has ended.
fn wait_until(pid: u32, limit: Duration) -> Result<bool> {
    let pidfd = super::open_pidfd(pid as i32).attempt(|| "watch a hook")?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis().min(60_000)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno).attempt(|| "wait for a hook"),
        }
    }
}
