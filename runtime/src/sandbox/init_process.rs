//! `--init`: process 1 of the sandbox passes signals on to the command, reaps orphans, and ends with the command's exit code
//! (what `tini` and `docker-init` do, without a program in the image).

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setpgid};

use super::channel::Channel;
use crate::error::{Attempt as _, Result};

/// Forks: comes back in the command's process; the caller stays behind as init and ends with it.
pub(super) fn fork_command(channel: &Channel) -> Result<()> {
    // Blocked before the fork, so that none is lost between fork and wait.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).attempt(|| "block signals")?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.attempt(|| "fork the command from init")? {
        ForkResult::Child => {
            // A group of its own in the foreground, as a shell would give it.
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).attempt(|| "make a process group")?;
            let _ = nix::unistd::tcsetpgrp(std::io::stdin(), nix::unistd::getpid());
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).attempt(|| "unblock signals")
        }
        ForkResult::Parent { child } => {
            // Only the command reports whether it could be executed.
            channel.close_here();
            let code = serve(child);
            // SAFETY: `_exit` ends this process without running what belongs to the maker it was copied from.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Passes signals on and reaps until the command has ended: its exit code.
fn serve(command: Pid) -> i32 {
    let signals = SigSet::all();
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(command) {
                    return code;
                }
            }
            Ok(signal) => {
                let _ = kill(command, signal);
            }
            Err(_) => {}
        }
    }
}

fn reap(command: Pid) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == command => return Some(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => return Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            _ => {}
        }
    }
}
