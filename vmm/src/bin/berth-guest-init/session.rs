//! One connection and its process.
//!
//! ```text
//!   connected ──Start──▶ running ──the process ends, its output is read──▶ ending ──all is sent──▶ over
//!        └─────────────────────── it cannot be started ──────────────────────┘                      ▲
//!   the host goes away: the process is killed ──────────────────────────────────────────────────────┘
//! ```

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_runtime::sandbox::resize;
use berth_vmm::guest::frame::{Exit, Failure, Frame, MAX_DATA};
use berth_vmm::guest::link::{Link, LinkError};
use berth_vmm::guest::start::Start;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::server::SetUp;
use crate::spawn::{Process, Stream, spawn};

/// Most bytes a pipe can hold (`/proc/sys/fs/pipe-max-size`).
const MAX_PIPE: usize = 1 << 20;

/// See the drawing above.
pub struct Session {
    link: Link<File>,
    process: Option<Process>,
    /// How the process ended.
    exit: Option<Exit>,
    /// What was read of why it could not be executed.
    failure: Vec<u8>,
    /// Bytes read since it ended.
    read_since_exit: usize,
    stage: Stage,
}

/// How far it is.
enum Stage {
    /// Connected or running.
    Serving,
    /// Everything before the last word is on its way; the last word too, if there is none.
    Ending(Option<Frame>),
    Over,
}

impl Session {
    /// Over a stream that is set to non-blocking.
    pub fn new(stream: File) -> Self {
        Self {
            link: Link::new(stream),
            process: None,
            exit: None,
            failure: Vec::new(),
            read_since_exit: 0,
            stage: Stage::Serving,
        }
    }

    /// The process, while it is not reaped.
    pub fn pid(&self) -> Option<Pid> {
        self.process.as_ref().filter(|_| self.exit.is_none()).map(|process| process.pid)
    }

    /// The process has ended and is reaped.
    pub fn exited(&mut self, exit: Exit) {
        self.exit = Some(exit);
    }

    /// Whether only the last word is missing, or nobody is there to hear it.
    pub fn is_ending(&self) -> bool {
        !matches!(self.stage, Stage::Serving)
    }

    /// Whether it can be forgotten.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// What there is to wait for.
    pub fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        if self.is_over() {
            return Vec::new();
        }
        let mut all = Vec::new();
        let mut link = PollFlags::empty();
        link.set(PollFlags::POLLIN, self.takes_more() && !self.is_ending());
        link.set(PollFlags::POLLOUT, self.link.is_waiting());
        all.push((self.link.stream().as_fd(), link));
        if let Some(process) = &self.process {
            if let Some(stdin) = process.stdin.as_ref().filter(|_| !process.input.is_empty()) {
                all.push((stdin.as_fd(), PollFlags::POLLOUT));
            }
            all.extend(process.status.iter().map(|status| (status.as_fd(), PollFlags::POLLIN)));
            if !self.link.is_full() {
                all.extend(process.outputs.iter().map(|(_, output)| (output.as_fd(), PollFlags::POLLIN)));
            }
        }
        all
    }

    /// Goes on as far as possible without waiting.
    pub fn advance(&mut self, set_up: Option<SetUp<'_>>) {
        if self.is_ending() {
            return;
        }
        match self.try_advance(set_up) {
            Ok(true) => {}
            Ok(false) => self.hang_up(),
            Err(error) => {
                eprintln!("berth-guest-init: a connection is closed: {error}");
                self.hang_up();
            }
        }
    }

    /// Sends the last word, as far as the host takes it.
    pub fn end(&mut self) {
        let Stage::Ending(last) = &mut self.stage else { return };
        let sent = if let Some(frame) = last.take() { self.link.send(&frame) } else { self.link.flush() };
        if sent.is_err() || !self.link.is_waiting() {
            self.stage = Stage::Over;
        }
    }

    /// Nobody is there any more.
    fn hang_up(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        self.stage = Stage::Over;
    }

    /// `false`: the host has gone away.
    fn try_advance(&mut self, set_up: Option<SetUp<'_>>) -> Result<bool, LinkError> {
        self.link.flush()?;
        if self.takes_more() {
            self.link.receive()?;
        } else if is_ready(self.link.stream(), PollFlags::empty()) {
            return Ok(false);
        }
        while let Some(frame) = self.link.take()? {
            self.obey(frame, set_up);
        }
        if !self.link.is_open() {
            return Ok(false);
        }
        self.relay()?;
        Ok(true)
    }

    /// What the process takes and gives.
    fn relay(&mut self) -> Result<(), LinkError> {
        let Some(process) = &mut self.process else { return Ok(()) };
        process.feed();
        if let Some(text) = process.status.as_ref().and_then(read) {
            if text.is_empty() {
                process.status = None;
                if self.failure.is_empty() {
                    self.link.send(&Frame::Started)?;
                }
            }
            self.failure.extend(text);
        }
        // From the back, so that removing one does not move the others.
        for index in (0..process.outputs.len()).rev() {
            if self.link.is_full() {
                return Ok(());
            }
            let (stream, output) = &process.outputs[index];
            let Some(data) = read(output) else { continue };
            self.read_since_exit += if self.exit.is_some() { data.len() } else { 0 };
            if data.is_empty() {
                process.outputs.remove(index);
            } else if *stream == Stream::Stdout {
                self.link.send(&Frame::Stdout(data))?;
            } else {
                self.link.send(&Frame::Stderr(data))?;
            }
        }
        // What the process wrote is in the pipes by now; what others write to them has no end.
        let is_empty = |(_, output): &(Stream, OwnedFd)| !is_ready(output, PollFlags::POLLIN);
        let is_drained = process.outputs.iter().all(is_empty) || self.read_since_exit > MAX_PIPE;
        if let Some(exit) = self.exit.filter(|_| is_drained && process.status.is_none()) {
            self.stage = Stage::Ending(Some(match serde_json::from_slice::<Failure>(&self.failure) {
                Ok(failure) => Frame::Failed(failure),
                Err(_) => Frame::Exited(exit),
            }));
        }
        Ok(())
    }

    /// Whether there is room for more input.
    fn takes_more(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process.input.len() < MAX_DATA)
    }

    /// Does what the host says.
    fn obey(&mut self, frame: Frame, set_up: Option<SetUp<'_>>) {
        match (frame, &mut self.process) {
            (Frame::Start(start), None) if matches!(self.stage, Stage::Serving) => self.start(&start, set_up),
            (Frame::Stdin(data), Some(process)) => process.input.extend(data),
            (Frame::StdinClosed, Some(process)) => process.is_input_complete = true,
            (Frame::Resize { rows, columns }, Some(process)) => {
                if let Some((_, terminal)) = process.outputs.first().filter(|_| process.has_terminal) {
                    let _ = resize(terminal, rows, columns);
                }
            }
            (Frame::Signal(number), Some(process)) if self.exit.is_none() => {
                if let Ok(signal) = Signal::try_from(number) {
                    let _ = kill(process.pid, signal);
                }
            }
            _ => {}
        }
    }

    fn start(&mut self, start: &Start, set_up: Option<SetUp<'_>>) {
        let prepared = match (set_up, &start.machine) {
            (Some(set_up), machine) => set_up(&machine.clone().unwrap_or_default()),
            (None, _) => Ok(()),
        };
        match prepared.map_err(|message| Failure { message, code: 125 }).and_then(|()| spawn(start)) {
            Ok(process) => self.process = Some(process),
            Err(failure) => self.stage = Stage::Ending(Some(Frame::Failed(failure))),
        }
    }
}

/// Reads what is there from a descriptor that does not block; nothing at its end. `None`: it has to be waited for.
fn read(fd: &OwnedFd) -> Option<Vec<u8>> {
    let mut piece = vec![0; MAX_DATA];
    match nix::unistd::read(fd, &mut piece) {
        Ok(count) => {
            piece.truncate(count);
            Some(piece)
        }
        Err(Errno::EAGAIN | Errno::EINTR) => None,
        // EIO: nobody has the terminal open any more.
        Err(_) => Some(Vec::new()),
    }
}

/// Whether one of these has happened to a descriptor, or its other end is gone.
fn is_ready(fd: impl AsFd, flags: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), flags)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}
