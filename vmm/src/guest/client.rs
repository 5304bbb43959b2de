//! The host's end of a process in the guest: its standard streams are this process's, signals that come here go there,
//! and it ends as the other one does. What `berth-vmm run` and `berth-vmm exec` do once they have a connection.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use berth_runtime::relay::{RawTerminal, set_nonblocking};
use berth_runtime::sandbox::size;
use berth_runtime::span::{self, Phase};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use oci_spec::runtime::BoxBuilder;

use super::frame::{Exit, Failure, Frame, MAX_DATA, MAX_START};
use super::link::{Link, LinkError};
use super::start::Start;

/// Bytes written to a pipe that is ready without a danger of waiting (`pipe(7)`, `PIPE_BUF`).
const ATOMIC: usize = 4096;

/// Signals that are not passed on: what faults of this process itself raise, and what its own system calls do.
const OWN_SIGNALS: [Signal; 11] = [
    Signal::SIGKILL,
    Signal::SIGSTOP,
    Signal::SIGCHLD,
    Signal::SIGPIPE,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGSYS,
];

/// Why a process in the guest could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It could not be started.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// The process is described by more than a guest takes.
    #[error("the command's arguments, environment and files take {0} bytes; a microVM takes at most {MAX_START}")]
    TooLong(usize),
    /// The guest is gone.
    #[error("the connection to the guest ended before its process did")]
    Lost,
    /// The machine's socket cannot be reached.
    #[error("cannot connect to the guest at {path}: {error}; is the microVM still running?")]
    Connect {
        /// The socket.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// What comes from the guest makes no sense, or the connection broke.
    #[error("cannot talk to the guest: {0}")]
    Link(#[from] LinkError),
    /// Standard streams or signals.
    #[error("cannot {attempt}: {error}")]
    Stdio {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

impl ClientError {
    /// What the command ends with.
    pub fn exit_code(&self) -> i32 {
        if let Self::Failed(failure) = self { i32::from(failure.code) } else { 125 }
    }

    fn stdio<E: Into<io::Error>>(attempt: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Stdio { attempt, error: error.into() }
    }
}

/// Blocks the signals that are passed on and makes a descriptor that delivers them. To be called before there are other threads,
/// which inherit the mask.
pub fn signals() -> Result<SignalFd, ClientError> {
    let set: SigSet = Signal::iterator().filter(|signal| !OWN_SIGNALS.contains(signal)).collect();
    set.thread_block().map_err(ClientError::stdio("block signals"))?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(ClientError::stdio("listen to signals"))
}

/// Connects to a port of the guest through the vsock device's socket: `CONNECT port`, answered by `OK` and a number.
pub fn connect(socket: &Path, port: u32) -> Result<OwnedFd, ClientError> {
    let attempt = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
        let mut answer = Vec::new();
        // Byte by byte: what follows the line belongs to the connection.
        while !answer.ends_with(b"\n") && answer.len() < 32 {
            let mut byte = [0];
            if stream.read(&mut byte)? == 0 {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            answer.extend(byte);
        }
        if answer.starts_with(b"OK ") { Ok(stream.into()) } else { Err(io::ErrorKind::InvalidData.into()) }
    };
    attempt().map_err(|error| ClientError::Connect { path: socket.display().to_string(), error })
}

/// Runs `start` at the other end of `stream` and relays until it has ended. With a terminal, this process's standard input must be
/// one; it is in raw mode meanwhile.
pub fn run(stream: OwnedFd, mut start: Start, signals: &SignalFd) -> Result<Exit, ClientError> {
    set_nonblocking(&stream).map_err(|error| LinkError::Io(io::Error::other(error)))?;
    let length = serde_json::to_vec(&start).map_or(usize::MAX, |text| text.len());
    // Before the terminal changes: it has room for its size.
    if length > MAX_START - 1024 {
        return Err(ClientError::TooLong(length));
    }
    let mut raw = None;
    let has_terminal = start.process.terminal().unwrap_or(false);
    if has_terminal {
        if let Ok((rows, columns)) = size(io::stdin()) {
            let size = BoxBuilder::default().height(rows).width(columns).build();
            start.process.set_console_size(size.ok());
        }
        raw = RawTerminal::enter();
    }
    let mut relay = Relay { link: Link::new(stream.into()), input: true, out: Vec::new(), err: Vec::new(), end: None };
    relay.link.send(&Frame::Start(Box::new(start)))?;
    let result = relay.run(signals, has_terminal);
    drop(raw);
    result
}

struct Relay {
    link: Link<File>,
    /// Whether standard input is still read.
    input: bool,
    /// For standard output.
    out: Vec<u8>,
    /// For standard error.
    err: Vec<u8>,
    end: Option<Result<Exit, Failure>>,
}

impl Relay {
    fn run(mut self, signals: &SignalFd, has_terminal: bool) -> Result<Exit, ClientError> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        loop {
            if let Some(end) = self.end.take_if(|_| self.out.is_empty() && self.err.is_empty()) {
                return end.map_err(ClientError::Failed);
            }
            let takes_more = self.end.is_none() && self.out.len() + self.err.len() < MAX_DATA;
            let wanted = |condition: bool, flag| if condition { flag } else { PollFlags::empty() };
            // A descriptor with nothing asked of it would still report that its other end is gone, again and again.
            let all = [
                (signals.as_fd(), PollFlags::POLLIN),
                (stdin.as_fd(), wanted(self.input && !self.link.is_full(), PollFlags::POLLIN)),
                (stdout.as_fd(), wanted(!self.out.is_empty(), PollFlags::POLLOUT)),
                (stderr.as_fd(), wanted(!self.err.is_empty(), PollFlags::POLLOUT)),
                (
                    self.link.stream().as_fd(),
                    wanted(takes_more, PollFlags::POLLIN) | wanted(self.link.is_waiting(), PollFlags::POLLOUT),
                ),
            ];
            let [_, reads, writes, complains, link] = wait(all).map_err(ClientError::stdio("wait for input"))?;
            self.pass_on(signals, has_terminal)?;
            if reads {
                self.read(&stdin)?;
            }
            if writes && write(&stdout, &mut self.out)? == Errno::EPIPE as i32 {
                // What the guest's process would have got had it written to this pipe itself.
                self.link.send(&Frame::Signal(Signal::SIGPIPE as i32))?;
            }
            if complains {
                write(&stderr, &mut self.err)?;
            }
            if link {
                self.exchange()?;
            }
        }
    }

    fn pass_on(&mut self, signals: &SignalFd, has_terminal: bool) -> Result<(), ClientError> {
        while let Ok(Some(info)) = signals.read_signal() {
            let signal = info.ssi_signo as i32;
            let frame = match size(io::stdin()) {
                Ok((rows, columns)) if has_terminal && signal == Signal::SIGWINCH as i32 => {
                    Frame::Resize { rows, columns }
                }
                _ => Frame::Signal(signal),
            };
            self.link.send(&frame)?;
        }
        Ok(())
    }

    fn read(&mut self, stdin: impl AsFd) -> Result<(), ClientError> {
        let mut piece = vec![0; MAX_DATA];
        match nix::unistd::read(stdin, &mut piece) {
            // A terminal whose other end is gone.
            Ok(0) | Err(Errno::EIO) => {
                self.input = false;
                self.link.send(&Frame::StdinClosed)?;
            }
            Ok(count) => {
                piece.truncate(count);
                self.link.send(&Frame::Stdin(piece))?;
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(ClientError::stdio("read standard input")(errno)),
        }
        Ok(())
    }

    fn exchange(&mut self) -> Result<(), ClientError> {
        self.link.flush()?;
        self.link.receive()?;
        while let Some(frame) = self.link.take()? {
            match frame {
                Frame::Stdout(data) => self.out.extend(data),
                Frame::Stderr(data) => self.err.extend(data),
                Frame::Connected => span::mark(Phase::Load),
                Frame::Started => span::run(),
                Frame::Exited(exit) => self.end = Some(Ok(exit)),
                Frame::Failed(failure) => self.end = Some(Err(failure)),
                _ => {}
            }
        }
        if self.end.is_none() && !self.link.is_open() {
            return Err(ClientError::Lost);
        }
        Ok(())
    }
}

/// Waits until one of the descriptors of which something is asked is ready: which are.
fn wait<const N: usize>(all: [(BorrowedFd<'_>, PollFlags); N]) -> nix::Result<[bool; N]> {
    let asked = || all.iter().enumerate().filter(|(_, (_, flags))| !flags.is_empty());
    let mut fds: Vec<PollFd<'_>> = asked().map(|(_, (fd, flags))| PollFd::new(*fd, *flags)).collect();
    let mut ready = [false; N];
    match poll(&mut fds, PollTimeout::NONE) {
        Err(Errno::EINTR) => return Ok(ready),
        other => other?,
    };
    for ((index, _), fd) in asked().zip(&fds) {
        ready[index] = fd.any().unwrap_or(false);
    }
    Ok(ready)
}

/// Writes the front of `bytes`; all of them go where nobody reads any more, and that errno comes back.
fn write(fd: impl AsFd, bytes: &mut Vec<u8>) -> Result<i32, ClientError> {
    match nix::unistd::write(fd, &bytes[..bytes.len().min(ATOMIC)]) {
        Ok(count) => drop(bytes.drain(..count)),
        Err(Errno::EAGAIN | Errno::EINTR) => {}
        Err(errno @ (Errno::EPIPE | Errno::EIO)) => {
            bytes.clear();
            return Ok(errno as i32);
        }
        Err(errno) => return Err(ClientError::stdio("write the guest's output")(errno)),
    }
    Ok(0)
}
