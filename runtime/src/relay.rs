//! What every process that stands between a person and a sandbox needs: signals as a descriptor, the terminal in raw
//! mode, exit codes as a shell has them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::{Attempt as _, Result};
use crate::sandbox::Stdio;

/// Signals that are passed on to the sandboxed process.
const FORWARDED: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
    Signal::SIGWINCH,
    Signal::SIGPIPE,
];

/// Blocks the signals that matter and makes a descriptor that delivers them, child exits among them. Children that are
/// executed reset their masks themselves.
pub fn signals() -> Result<SignalFd> {
    let mut set: SigSet = FORWARDED.into_iter().collect();
    set.add(Signal::SIGCHLD);
    set.thread_block().attempt(|| "block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).attempt(|| "listen to signals")
}

/// The signals that have come in.
pub fn pending(signals: &SignalFd) -> Vec<Signal> {
    std::iter::from_fn(|| signals.read_signal().ok().flatten())
        .filter_map(|info| Signal::try_from(info.ssi_signo as i32).ok())
        .collect()
}

/// The exit code a shell would give: 128+n for signal n. `None`: it has not ended.
fn exit_code(status: WaitStatus) -> Option<i32> {
    match status {
        WaitStatus::Exited(_, code) => Some(code),
        WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
        _ => None,
    }
}

/// Reaps all children that have ended: the exit code of `wanted`, if it is among them.
pub fn reap(wanted: Pid) -> Result<Option<i32>> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(status) if status.pid() == Some(wanted) => code = exit_code(status).or(code),
            Ok(status) if status.pid().is_some() => {}
            Ok(_) | Err(Errno::ECHILD) => return Ok(code),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).attempt(|| "wait for the sandboxed process"),
        }
    }
}

/// The terminal on standard input in raw mode; as it was again when this is dropped.
#[derive(Debug)]
pub struct RawTerminal(Termios);

impl RawTerminal {
    /// Nothing where standard input is no terminal.
    pub fn enter() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Marks all descriptors from `first` on to be closed by the next execution of a program.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: no descriptor is closed now.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop).attempt(|| "mark descriptors close-on-exec")
}

/// Makes reads and writes of a descriptor of our own return at once.
pub fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).attempt(|| "examine a descriptor")?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(fd, FcntlArg::F_SETFL(flags)).attempt(|| "make a descriptor non-blocking")?;
    Ok(())
}

/// How much of a stream is relayed at once.
pub const CHUNK: usize = 32 << 10;

/// The caller's ends of a process's pipes. Reads and writes return at once.
#[derive(Debug)]
pub struct Ends {
    /// To its standard input, if it gets any.
    pub input: Option<OwnedFd>,
    /// From its standard output.
    pub output: OwnedFd,
    /// From its standard error.
    pub error: OwnedFd,
}

/// Pipes for the standard streams of a process: its ends and the caller's.
pub fn pipes(with_input: bool) -> Result<(Stdio, Ends)> {
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).attempt(|| "make a pipe");
    let (reader, input) = with_input.then(pipe).transpose()?.unzip();
    let ((output, out_writer), (error, error_writer)) = (pipe()?, pipe()?);
    input.iter().chain([&output, &error]).try_for_each(set_nonblocking)?;
    Ok(([reader, Some(out_writer), Some(error_writer)], Ends { input, output, error }))
}

/// The way into a process: what it has been sent waits here until the process takes it.
#[derive(Debug, Default)]
pub struct Input {
    /// Its standard input, or its pty's master; none: nobody reads any more.
    to: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    ended: bool,
}

impl Input {
    /// Leads to another descriptor from now on, or nowhere.
    pub fn connect(&mut self, to: Option<OwnedFd>) -> Result<()> {
        to.iter().try_for_each(set_nonblocking)?;
        self.to = to;
        Ok(())
    }

    /// Where it leads.
    pub fn to(&self) -> Option<&OwnedFd> {
        self.to.as_ref()
    }

    /// The descriptor to write to when there is something to write.
    pub fn wants(&self) -> Option<&OwnedFd> {
        self.to.as_ref().filter(|_| !self.waiting.is_empty())
    }

    /// Whether it should be sent more as yet.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < CHUNK
    }

    /// Sends bytes. `taken` hears of those that the process has now.
    pub fn send(&mut self, bytes: &[u8], taken: impl FnMut(&[u8])) {
        self.waiting.extend(bytes);
        self.flush(taken);
    }

    /// Once everything is taken nothing more comes.
    pub fn end(&mut self) {
        self.ended = true;
        self.flush(|_| ());
    }

    /// Writes what the process takes without waiting for it. `taken` hears of it.
    pub fn flush(&mut self, mut taken: impl FnMut(&[u8])) {
        while let Some(to) = &self.to {
            if self.waiting.is_empty() {
                if self.ended {
                    self.to = None;
                }
                return;
            }
            let bytes = self.waiting.as_slices().0;
            match nix::unistd::write(to, bytes) {
                Ok(count) => {
                    taken(&bytes[..count]);
                    self.waiting.drain(..count);
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                // Nobody reads it any more.
                Err(_) => self.to = None,
            }
        }
        self.waiting.clear();
    }
}

/// Writes everything to a descriptor that may be non-blocking (a caller's terminal often is).
pub fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> nix::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    while !bytes.is_empty() {
        match nix::unistd::write(&fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
