//! All connections at once: one thread that waits for whatever comes first.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::error::{Attempt as _, Result};
use berth_runtime::relay::set_nonblocking;
use berth_vmm::guest::frame::Exit;
use berth_vmm::guest::start::Machine;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::machine;
use crate::session::Session;

/// Sets up what the host says the machine is to be; the error is for a person to read.
pub type SetUp<'a> = &'a dyn Fn(&Machine) -> Result<(), String>;

/// The connections and what they share.
pub struct Server {
    listener: Option<OwnedFd>,
    /// Says that a child has ended.
    children: SignalFd,
    sessions: Vec<Session>,
}

/// Serves the one connection on standard input.
pub fn serve_standard_input() -> Result<()> {
    let stream = rustix::io::dup(rustix::stdio::stdin()).attempt(|| "take the connection on standard input")?;
    let mut server = Server::new(None)?;
    server.admit(stream)?;
    while !server.sessions.is_empty() {
        server.advance(None)?;
    }
    Ok(())
}

impl Server {
    /// Serves what connects to `listener`, a socket that listens.
    pub fn new(listener: Option<OwnedFd>) -> Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        set.thread_block().attempt(|| "block a signal")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let children = SignalFd::with_flags(&set, flags).attempt(|| "listen to a signal")?;
        listener.as_ref().map_or(Ok(()), set_nonblocking)?;
        Ok(Self { listener, children, sessions: Vec::new() })
    }

    /// Serves until the process of the first connection has ended, and all others with it.
    pub fn serve_machine(&mut self, first: Option<File>, set_up: SetUp<'_>) -> Result<()> {
        if let Some(first) = first {
            self.admit(first.into())?;
        }
        while self.sessions.is_empty() {
            self.advance(Some(set_up))?;
        }
        // Sessions keep their order, so the first stays in front.
        while !self.sessions[0].is_ending() {
            self.advance(Some(set_up))?;
        }
        machine::take_down();
        self.sessions.truncate(1);
        while self.sessions.first().is_some_and(|first| !first.is_over()) {
            self.sessions[0].end();
            self.wait()?;
        }
        Ok(())
    }

    fn admit(&mut self, stream: OwnedFd) -> Result<()> {
        set_nonblocking(&stream)?;
        self.sessions.push(Session::new(stream.into()));
        Ok(())
    }

    /// Waits for something to happen and takes every session as far as it gets. With `set_up` the first session is the machine's.
    fn advance(&mut self, set_up: Option<SetUp<'_>>) -> Result<()> {
        self.wait()?;
        self.accept()?;
        self.reap()?;
        for (index, session) in self.sessions.iter_mut().enumerate() {
            let is_first = index == 0 && set_up.is_some();
            session.advance(if is_first { set_up } else { None });
            if session.is_ending() && !is_first {
                session.end();
            }
        }
        let keeps_first = set_up.is_some();
        let mut index = 0;
        self.sessions.retain(|session| {
            index += 1;
            (keeps_first && index == 1) || !session.is_over()
        });
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        let mut fds = vec![PollFd::new(self.children.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.listener.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)));
        for session in &self.sessions {
            fds.extend(session.interests().into_iter().map(|(fd, flags)| PollFd::new(fd, flags)));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => Ok(()),
            other => other.map(drop).attempt(|| "wait for something to happen"),
        }
    }

    fn accept(&mut self) -> Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        match rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC) {
            Ok(stream) => self.admit(stream),
            // One that gave up again, or too many at once.
            Err(_) => Ok(()),
        }
    }

    /// Takes note of all children that have ended; the ones no session started were left by others.
    fn reap(&mut self) -> Result<()> {
        while self.children.read_signal().attempt(|| "read a signal")?.is_some() {}
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code as u8)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal as u8)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno).attempt(|| "wait for children"),
            };
            if let Some(session) = self.sessions.iter_mut().find(|session| session.pid() == Some(pid)) {
                session.exited(exit);
            }
        }
    }
}
