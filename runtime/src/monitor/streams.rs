//! The container's streams: from the process to the log, the caller's streams and the attached clients, and back.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use super::config::Config;
use super::keys;
use super::log::{Log, Stream};
use crate::attach::{Frames, Kind, MAX_FRAME, frame, parse_size, standard};
use crate::error::{Attempt as _, Result};
use crate::relay::{self, CHUNK, Input, RawTerminal};
use crate::sandbox::{self, Sandbox, Stdio};

/// A client that lets more than this pile up is dropped, so that it cannot stop the container.
const MAX_QUEUED: usize = 4 << 20;
/// More clients than this are turned away.
const MAX_CLIENTS: usize = 64;

/// An attached client.
struct Client {
    stream: UnixStream,
    frames: Frames,
    queue: VecDeque<u8>,
}

impl Client {
    fn send(&mut self, kind: Kind, payload: &[u8]) {
        self.queue.extend(frame(kind, payload));
        self.flush();
    }

    fn flush(&mut self) {
        while !self.queue.is_empty() {
            match self.stream.write(self.queue.as_slices().0) {
                Ok(count) => drop(self.queue.drain(..count)),
                Err(_) => return,
            }
        }
    }
}

pub(super) struct Streams {
    tty: bool,
    interactive: bool,
    foreground: bool,
    /// Whether it was said that output is lost.
    complained: bool,
    log: Log,
    socket: PathBuf,
    listener: UnixListener,
    clients: Vec<Client>,
    /// To the process: its standard input, or the pty's master.
    input: Input,
    /// From the process, with what they are; the pty's master counts as output.
    outputs: Vec<(OwnedFd, Stream)>,
    /// What the terminal has been given since its keys were last looked at.
    pressed: Vec<u8>,
    caller_input: bool,
    raw: Option<RawTerminal>,
}

impl Streams {
    pub(super) fn open(config: &Config, foreground: bool) -> Result<Self> {
        let socket = config.state_dir.join("attach.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = sandbox::bind_socket(&socket).attempt(|| format!("listen on {}", socket.display()))?;
        listener.set_nonblocking(true).attempt(|| "listen without waiting")?;
        Ok(Self {
            tty: config.tty,
            interactive: config.interactive,
            foreground,
            complained: false,
            log: Log::open(&config.bundle.join("container.log"))?,
            socket,
            listener,
            clients: Vec::new(),
            input: Input::default(),
            outputs: Vec::new(),
            pressed: Vec::new(),
            caller_input: foreground && config.interactive,
            raw: None,
        })
    }

    /// Pipes for the next process; with a terminal it opens its own.
    pub(super) fn stdio(&mut self) -> Result<Option<Stdio>> {
        self.outputs.clear();
        self.input.connect(None)?;
        if self.tty {
            return Ok(None);
        }
        let (stdio, ends) = relay::pipes(self.interactive)?;
        self.input.connect(ends.input)?;
        self.outputs = vec![(ends.output, Stream::Output), (ends.error, Stream::Error)];
        Ok(Some(stdio))
    }

    /// The pty's master of a process that has just been made.
    pub(super) fn take_console(&mut self, console: Option<OwnedFd>) -> Result<()> {
        let Some(console) = console else { return Ok(()) };
        self.input.connect(Some(console.try_clone().attempt(|| "copy a descriptor")?))?;
        self.outputs.push((console, Stream::Output));
        if self.foreground {
            self.take_size_of(standard(0));
            if self.interactive && self.raw.is_none() {
                self.raw = RawTerminal::enter();
            }
        }
        Ok(())
    }

    fn take_size_of(&self, terminal: BorrowedFd<'_>) {
        if let (Ok((rows, columns)), Some(master)) = (sandbox::size(terminal), self.input.to()) {
            let _ = sandbox::resize(master, rows, columns);
        }
    }

    /// Relays until the process has ended: its exit code.
    ///
    /// `first`: it is process 1 of its namespace and deaf to signals it does not handle.
    pub(super) fn relay(&mut self, signals: &SignalFd, sandbox: &Sandbox, pid: Pid, first: bool) -> Result<i32> {
        let mut ended_by: Option<Signal> = None;
        loop {
            let ready = self.wait(signals)?;
            for source in ready {
                match source {
                    Source::Signals => {
                        for signal in relay::pending(signals) {
                            if self.take_signal(signal, sandbox, pid, first) {
                                ended_by = ended_by.or(Some(signal));
                            }
                        }
                    }
                    Source::Caller => self.read_caller(),
                    Source::Input => self.send_input(&[]),
                    Source::Output(index) => drop(self.read_output(index)),
                    Source::Listener => self.accept(),
                    Source::Client(index) => {
                        for signal in self.read_client(index) {
                            if self.take_signal(signal, sandbox, pid, first) {
                                ended_by = ended_by.or(Some(signal));
                            }
                        }
                    }
                }
            }
            let pressed = std::mem::take(&mut self.pressed);
            if first
                && let Some(master) = self.input.to()
                && let Some(signal) = keys::unheard(master, &pressed, pid)
                && sandbox.kill(libc::SIGKILL, false).is_ok()
            {
                ended_by = ended_by.or(Some(signal));
            }
            self.outputs.retain(|(fd, _)| !is_closed(fd));
            self.clients.retain(|client| client.queue.len() <= MAX_QUEUED && !is_gone(&client.stream));
            if let Some(code) = relay::reap(pid)? {
                return Ok(ended_by.map_or(code, |signal| 128 + signal as i32));
            }
        }
    }

    fn wait(&self, signals: &SignalFd) -> Result<Vec<Source>> {
        let stdin = standard(0);
        let mut sources = vec![Source::Signals, Source::Listener];
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        if self.caller_input && self.input.has_room() {
            sources.push(Source::Caller);
            fds.push(PollFd::new(stdin, PollFlags::POLLIN));
        }
        if let Some(input) = self.input.wants() {
            sources.push(Source::Input);
            fds.push(PollFd::new(input.as_fd(), PollFlags::POLLOUT));
        }
        for (index, (fd, _)) in self.outputs.iter().enumerate() {
            sources.push(Source::Output(index));
            fds.push(PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        }
        for (index, client) in self.clients.iter().enumerate() {
            let mut flags = if self.input.has_room() { PollFlags::POLLIN } else { PollFlags::empty() };
            if !client.queue.is_empty() {
                flags |= PollFlags::POLLOUT;
            }
            sources.push(Source::Client(index));
            fds.push(PollFd::new(client.stream.as_fd(), flags));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).attempt(|| "wait for the container"),
        }
        let ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        Ok(sources.into_iter().zip(ready).filter_map(|(source, ready)| ready.then_some(source)).collect())
    }

    /// Passes a signal on. Whether it ended a process that would have been deaf to it.
    fn take_signal(&mut self, signal: Signal, sandbox: &Sandbox, pid: Pid, first: bool) -> bool {
        match signal {
            Signal::SIGCHLD | Signal::SIGPIPE => false,
            Signal::SIGWINCH if self.tty => {
                self.take_size_of(standard(0));
                false
            }
            _ => {
                let fatal = !matches!(signal, Signal::SIGCONT | Signal::SIGWINCH);
                if first && fatal && sandbox::is_deaf_to(pid.as_raw(), signal as i32) {
                    return sandbox.kill(libc::SIGKILL, false).is_ok();
                }
                let _ = sandbox.kill(signal as i32, false);
                false
            }
        }
    }

    fn read_caller(&mut self) {
        let mut bytes = vec![0; CHUNK];
        match nix::unistd::read(standard(0), &mut bytes) {
            Ok(count) if count > 0 => self.send_input(&bytes[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            _ => {
                self.caller_input = false;
                // A program that reads a terminal hears of the end as of a person's Ctrl-D.
                if self.tty { self.send_input(b"\x04") } else { self.input.end() }
            }
        }
    }

    /// The end of what is typed ends a pipe; a terminal stays.
    fn end_input(&mut self) {
        if !self.tty {
            self.input.end();
        }
    }

    fn send_input(&mut self, bytes: &[u8]) {
        let (tty, pressed) = (self.tty, &mut self.pressed);
        self.input.send(bytes, |taken| {
            if tty {
                pressed.extend(taken);
            }
        });
    }

    /// Reads what one output has brought: whether there may be more.
    fn read_output(&mut self, index: usize) -> bool {
        let mut bytes = vec![0; CHUNK];
        let Some((fd, stream)) = self.outputs.get(index) else { return false };
        let stream = *stream;
        let count = match nix::unistd::read(fd, &mut bytes) {
            Ok(count) if count > 0 => count,
            Err(Errno::EINTR) => return true,
            _ => return false,
        };
        let bytes = &bytes[..count];
        self.log.write(stream, bytes);
        let kind = if stream == Stream::Output { Kind::Output } else { Kind::Error };
        for client in &mut self.clients {
            client.send(kind, bytes);
        }
        if self.foreground {
            let target = standard(if stream == Stream::Output { 1 } else { 2 });
            match relay::write_all(target, bytes) {
                // As if it wrote there itself: its next write fails.
                Err(Errno::EPIPE) if !self.tty => {
                    self.outputs.remove(index);
                    return false;
                }
                Err(errno) if errno != Errno::EPIPE && !std::mem::replace(&mut self.complained, true) => {
                    eprintln!(
                        "berth-oci: cannot pass the command's output on: {errno}; it goes on without, see its log"
                    );
                }
                _ => {}
            }
        }
        true
    }

    /// After the process and all with it have ended: what is still in the pipes.
    pub(super) fn drain(&mut self) {
        for index in (0..self.outputs.len()).rev() {
            while self.read_output(index) {}
        }
        self.log.finish();
        self.raw = None;
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() >= MAX_CLIENTS || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let mut client = Client { stream, frames: Frames::default(), queue: VecDeque::new() };
            if self.tty {
                client.send(Kind::Terminal, &[]);
            }
            self.clients.push(client);
        }
    }

    /// Reads a client's frames; comes back with the signals it sends.
    fn read_client(&mut self, index: usize) -> Vec<Signal> {
        let mut signals = Vec::new();
        let mut bytes = vec![0; MAX_FRAME];
        let Some(client) = self.clients.get_mut(index) else { return signals };
        client.flush();
        let count = client.stream.read(&mut bytes).unwrap_or(0);
        client.frames.push(&bytes[..count]);
        let mut frames = Vec::new();
        loop {
            match client.frames.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => {
                    let _ = client.stream.shutdown(std::net::Shutdown::Both);
                    break;
                }
            }
        }
        for (kind, payload) in frames {
            match kind {
                Kind::Input if payload.is_empty() => self.end_input(),
                Kind::Input => {
                    if self.interactive {
                        self.send_input(&payload);
                    }
                }
                Kind::Resize => {
                    if let (Some((rows, columns)), Some(master), true) =
                        (parse_size(&payload), self.input.to(), self.tty)
                    {
                        let _ = sandbox::resize(master, rows, columns);
                    }
                }
                Kind::Signal => {
                    let number = payload.try_into().map(i32::from_be_bytes).ok();
                    signals.extend(number.and_then(|number| Signal::try_from(number).ok()));
                }
                Kind::Output | Kind::Error | Kind::Exit | Kind::Terminal => {}
            }
        }
        signals
    }

    /// Tells the clients that it is over.
    pub(super) fn send_exit(&mut self, code: i32) {
        for client in &mut self.clients {
            // What a client has not read yet is worth a moment, not more.
            let _ = client.stream.set_nonblocking(false);
            let _ = client.stream.set_write_timeout(Some(std::time::Duration::from_secs(1)));
            client.send(Kind::Exit, &code.to_be_bytes());
        }
        self.clients.clear();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// What is ready.
enum Source {
    Signals,
    Listener,
    Caller,
    Input,
    Output(usize),
    Client(usize),
}

/// Whether the other end has gone and everything it wrote is read.
fn is_closed(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    let events = fds[0].revents().unwrap_or(PollFlags::empty());
    !events.contains(PollFlags::POLLIN) && events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)
}

fn is_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::from_bits_retain(libc::POLLRDHUP))];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    !fds[0].revents().unwrap_or(PollFlags::empty()).is_empty()
}
