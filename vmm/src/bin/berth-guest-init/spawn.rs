//! A process of the guest: from what the host says to `execve`, with the code that containers are started with.

use std::convert::Infallible;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use berth_runtime::error::{Attempt as _, Error, Result};
use berth_runtime::relay::set_nonblocking;
use berth_runtime::sandbox::{Pty, open_pty, process};
use berth_vmm::guest::frame::{Failure, MAX_DATA};
use berth_vmm::guest::start::Start;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{ForkResult, Pid, fork, pipe2};

/// Longest explanation of a failure, bytes.
const MAX_MESSAGE: usize = 4096;

/// Which of the host's streams an output goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A process and this end of its streams, none of which blocks.
pub struct Process {
    pub pid: Pid,
    /// Where its standard input is written to.
    pub stdin: Option<OwnedFd>,
    /// What waits to be written there.
    pub input: Vec<u8>,
    /// Nothing follows that.
    pub is_input_complete: bool,
    /// What it writes; with a terminal, one that is both.
    pub outputs: Vec<(Stream, OwnedFd)>,
    pub has_terminal: bool,
    /// Why it could not be executed; ends when it is.
    pub status: Option<OwnedFd>,
}

impl Process {
    /// Writes to its standard input what it takes.
    pub fn feed(&mut self) {
        let Some(stdin) = &self.stdin else {
            self.input.clear();
            return;
        };
        while !self.input.is_empty() {
            match nix::unistd::write(stdin, &self.input[..self.input.len().min(MAX_DATA)]) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // It does not read any more.
                Err(_) => {
                    self.stdin = None;
                    self.input.clear();
                    return;
                }
            }
        }
        // A terminal stays as it is.
        if self.is_input_complete && !self.has_terminal {
            self.stdin = None;
        }
    }
}

/// The streams of a process that is to be started.
enum Streams {
    Terminal(Pty, Option<(u16, u16)>),
    /// Standard input, output and error.
    Pipes([OwnedFd; 3]),
}

/// Starts a process. What fails inside it comes later, through [`Process::status`].
pub fn spawn(start: &Start) -> Result<Process, Failure> {
    try_spawn(start).map_err(|error| failure(&error))
}

fn failure(error: &Error) -> Failure {
    let mut message = error.to_string();
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    Failure { message, code: error.exit_code() as u8 }
}

fn try_spawn(start: &Start) -> Result<Process> {
    if start.process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::Invalid("there is no command to run".to_owned()));
    }
    let (status, report) = pipe()?;
    set_nonblocking(&status)?;
    let has_terminal = start.process.terminal().unwrap_or(false);
    let (streams, stdin, outputs) = if has_terminal {
        let pty = open_pty()?;
        let [input, output] = [(); 2].map(|()| pty.master.try_clone());
        let attempt = || "copy a descriptor";
        let size = start.process.console_size().map(|size| (size.height() as u16, size.width() as u16));
        (Streams::Terminal(pty, size), input.attempt(attempt)?, vec![(Stream::Stdout, output.attempt(attempt)?)])
    } else {
        let [(stdin, input), (output, stdout), (errors, stderr)] = [pipe()?, pipe()?, pipe()?];
        (Streams::Pipes([stdin, stdout, stderr]), input, vec![(Stream::Stdout, output), (Stream::Stderr, errors)])
    };
    set_nonblocking(&stdin)?;
    outputs.iter().try_for_each(|(_, output)| set_nonblocking(output))?;
    // SAFETY: this program has one thread.
    match unsafe { fork() }.attempt(|| "fork a process")? {
        ForkResult::Parent { child } => Ok(Process {
            pid: child,
            stdin: Some(stdin),
            input: Vec::new(),
            is_input_complete: false,
            outputs,
            has_terminal,
            status: Some(status),
        }),
        ForkResult::Child => {
            let Err(error) = become_process(start, streams);
            if let Ok(text) = serde_json::to_vec(&failure(&error)) {
                let _ = std::fs::File::from(report).write_all(&text);
            }
            // SAFETY: it ends this process without running what belongs to the one it was copied from.
            unsafe { libc::_exit(125) }
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).attempt(|| "make a pipe")
}

/// In the child.
fn become_process(start: &Start, streams: Streams) -> Result<Infallible> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).attempt(|| "unblock signals")?;
    // SAFETY: the default action is no code of this program. Rust ignores this signal, which a process would inherit.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }.attempt(|| "reset a signal")?;
    nix::unistd::setsid().attempt(|| "start a session")?;
    match streams {
        Streams::Terminal(pty, size) => pty.adopt(size, false)?,
        Streams::Pipes([stdin, stdout, stderr]) => {
            rustix::stdio::dup2_stdin(stdin).attempt(|| "connect standard input")?;
            rustix::stdio::dup2_stdout(stdout).attempt(|| "connect standard output")?;
            rustix::stdio::dup2_stderr(stderr).attempt(|| "connect standard error")?;
        }
    }
    let (user, groups) = (start.user.as_deref(), start.groups.as_deref());
    // As in a container, the image's process gets a working directory that its image lacks, and further ones do not.
    let is_first = start.machine.is_some();
    let prepared = process::prepare(&start.process, user, groups, is_first, None, None)?;
    process::confine(&start.process, &prepared)?;
    Err(process::execute(&prepared))
}
