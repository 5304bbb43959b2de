//! `--init`: process 1 of the sandbox passes signals on to the command, reaps orphans, and ends with the command's exit code
//! (what `tini` and `docker-init` do, without a program in the image).

use std::ops::Range;

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
            change_title();
            let code = serve(child);
            // SAFETY: `_exit` ends this process without running what belongs to the maker it was copied from.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Shows in `ps` what this is, in place of the maker's arguments: they name directories of the host.
fn change_title() {
    const TITLE: &[u8] = b"berth-init\0";
    let _ = nix::sys::prctl::set_name(c"berth-init");
    let Some(arguments) = std::fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(argument_bytes) else {
        return;
    };
    if arguments.len() <= TITLE.len() {
        return;
    }
    // SAFETY: the kernel has put the arguments there, in the stack; nothing in this process reads them any more.
    let bytes = unsafe { std::slice::from_raw_parts_mut(arguments.start as *mut u8, arguments.len()) };
    bytes.fill(0);
    bytes[..TITLE.len()].copy_from_slice(TITLE);
    // Without a zero at the end the kernel takes what ends at the first one as the title (fs/proc/base.c,
    // `get_mm_proctitle`).
    bytes[bytes.len() - 1] = 1;
}

/// Where the arguments of the process stand, by its `stat` (`proc_pid_stat(5)`, fields 48 and 49).
fn argument_bytes(stat: &str) -> Option<Range<usize>> {
    // The name, in parentheses, may have anything in it; field 3 follows.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(48 - 3);
    let (start, end) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (start != 0).then_some(start..end)
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
