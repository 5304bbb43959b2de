//! One run of one command, looked at from outside: when it was asked for, when it first wrote something, when it had ended.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use berth_runtime::relay::set_nonblocking;
use berth_runtime::span::{self, Phase, Recorder, VARIABLE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::error::{Error, Result};
use crate::interrupt;

/// How long a run may take. A guest that is emulated in software takes minutes.
const LONGEST: Duration = Duration::from_mins(10);
/// How often it is asked, while a command runs, whether this program is to end. What the command does is seen at once.
const LOOK: Duration = Duration::from_millis(100);
/// How long a command may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most bytes that are kept of what a command writes.
const MOST_OUTPUT: usize = 64 << 10;

/// What was seen of a run, in nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug)]
pub struct Timed {
    /// Just before its process was made.
    pub request: u64,
    /// When the first byte of its standard output was read.
    pub first_output: Option<u64>,
    /// When its process had ended.
    pub exit: u64,
    /// When its phases began, in order; nothing where it has none.
    pub moments: Vec<(Phase, u64)>,
    /// What it wrote to standard output.
    pub output: Vec<u8>,
}

/// How a command was called, for a person.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end, or ends it when this program is asked to end; an error where it fails. `with_spans`: it is one of
/// berth's, which tells its phases.
pub fn run(command: Command, with_spans: bool) -> Result<Timed> {
    watch(command, with_spans, interrupt::check)
}

/// Runs a command to its end, unless `check` has something against it.
fn watch(mut command: Command, with_spans: bool, check: impl Fn() -> Result<()>) -> Result<Timed> {
    let recorder = with_spans.then(Recorder::new).transpose().map_err(Error::system("make a file for spans"))?;
    if let Some(recorder) = &recorder {
        let (fd, value) = recorder.to_inherit().map_err(Error::system("examine the file for spans"))?;
        command.env(VARIABLE, value);
        inherit(&mut command, fd.as_raw_fd());
    }
    // Ctrl-C is for whoever measures, who passes it on.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let request = span::now();
    let child = command.spawn();
    let mut watched = child.and_then(Watched::new).map_err(|error| failed(&command, &error.to_string()))?;
    let begin = Instant::now();
    while !watched.has_ended {
        watched.wait(LOOK).map_err(Error::system("watch a command"))?;
        if let (Err(error), false) = (check(), watched.has_ended) {
            watched.end();
            return Err(error);
        }
        if begin.elapsed() >= LONGEST && !watched.has_ended {
            watched.end();
            return Err(failed(&command, &format!("it did not end within {} s", LONGEST.as_secs())));
        }
    }
    let exit = span::now();
    let status = watched.finish().map_err(Error::system("wait for a command"))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&watched.error);
        let reason = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let reason = reason.trim().trim_start_matches("berth: ");
        let reason = if reason.is_empty() { status.to_string() } else { reason.to_owned() };
        return Err(failed(&command, &reason));
    }
    let moments = recorder.map_or(Ok(Vec::new()), Recorder::moments).map_err(Error::system("read spans"))?;
    Ok(Timed { request, first_output: watched.first_output, exit, moments, output: watched.output })
}

/// Runs a command that prepares or removes something, which is done also while this program ends; what it prints.
pub fn prepare(command: Command) -> Result<String> {
    watch(command, false, || Ok(())).map(|timed| String::from_utf8_lossy(&timed.output).trim().to_owned())
}

fn failed(command: &Command, reason: &str) -> Error {
    Error::Failed { command: line(command), reason: reason.to_owned() }
}

/// Lets the command's process have a descriptor, and no other child of this process.
fn inherit(command: &mut Command, number: i32) {
    // SAFETY: the closure makes one system call on a descriptor that the caller keeps open until the command was started.
    unsafe {
        command
            .pre_exec(move || fcntl_setfd(BorrowedFd::borrow_raw(number), FdFlags::empty()).map_err(io::Error::from));
    }
}

/// A process that runs, and what it writes.
struct Watched {
    child: Child,
    pidfd: OwnedFd,
    streams: [Option<File>; 2],
    first_output: Option<u64>,
    output: Vec<u8>,
    error: Vec<u8>,
    has_ended: bool,
}

impl Watched {
    fn new(mut child: Child) -> io::Result<Self> {
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let streams = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
        for stream in streams.iter().flatten() {
            set_nonblocking(stream).map_err(io::Error::other)?;
        }
        let streams = streams.map(|stream| stream.map(File::from));
        Ok(Self { child, pidfd, streams, first_output: None, output: Vec::new(), error: Vec::new(), has_ended: false })
    }

    fn wait(&mut self, limit: Duration) -> io::Result<()> {
        let mut fds = vec![PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.streams.iter().flatten().map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)));
        let timeout = PollTimeout::try_from(limit.as_millis()).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => return Ok(()),
            other => other?,
        };
        self.has_ended = fds[0].any().unwrap_or(false);
        self.read();
        Ok(())
    }

    /// Takes what is there.
    fn read(&mut self) {
        for (index, stream) in self.streams.iter_mut().enumerate() {
            let mut piece = [0; 4096];
            while let Some(file) = stream {
                match file.read(&mut piece) {
                    Ok(0) => *stream = None,
                    Ok(count) => {
                        let kept = if index == 0 { &mut self.output } else { &mut self.error };
                        if index == 0 {
                            self.first_output.get_or_insert_with(span::now);
                        }
                        kept.extend(&piece[..count.min(MOST_OUTPUT - kept.len())]);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
    }

    fn finish(&mut self) -> io::Result<ExitStatus> {
        self.read();
        self.child.wait()
    }

    /// Asks it to end, as a person would, and kills it if it does not.
    fn end(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let begin = Instant::now();
        let _ = kill(pid, Signal::SIGTERM);
        while !self.has_ended && begin.elapsed() < PATIENCE {
            if self.wait(LOOK).is_err() {
                break;
            }
        }
        let _ = kill(pid, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn moments_of_a_command_are_in_order() {
        let timed = run(shell("echo one; echo two"), false).unwrap();
        let first = timed.first_output.unwrap();
        assert!(timed.request < first && first <= timed.exit);
        assert_eq!(timed.output, b"one\ntwo\n");
        assert_eq!(run(shell(":"), false).unwrap().first_output, None);
    }

    #[test]
    fn a_command_is_ended_when_this_program_is_to_end() {
        for script in ["exec sleep 1000", "trap '' TERM; while :; do sleep 0.1; done"] {
            let error = watch(shell(script), false, || Err(Error::Interrupted)).unwrap_err();
            assert!(matches!(error, Error::Interrupted), "{error}");
        }
    }

    #[test]
    fn what_a_command_says_of_its_failure_is_told() {
        let error = run(shell("echo nonsense; echo the reason >&2; exit 3"), false).unwrap_err().to_string();
        assert!(error.contains("the reason") && error.contains("/bin/sh"), "{error}");
        let silent = run(shell("exit 3"), false).unwrap_err().to_string();
        assert!(silent.contains('3'), "{silent}");
        assert!(run(Command::new("/does/not/exist"), false).is_err());
    }
}
