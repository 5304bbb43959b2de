//! A process in the foreground of `run` and `exec`: its streams, signals and exit code are the caller's.

use std::fs::File;
use std::io::{stderr, stdin, stdout};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use berth_runtime::error::{Attempt as _, Result};
use berth_runtime::relay::{self, CHUNK, Ends, Input, RawTerminal};
use berth_runtime::sandbox;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{ForkResult, Pid, fork, read, setsid};

/// Stands in for the process until it ends: its exit code. `deaf`: it is process 1 of its namespace.
pub fn wait(signals: &SignalFd, pid: Pid, mut streams: Streams, deaf: bool) -> Result<i32> {
    let _raw = streams.terminal.then(RawTerminal::enter);
    streams.take_size();
    let mut ended_by = None;
    loop {
        streams.relay_once(signals)?;
        for signal in relay::pending(signals) {
            match signal {
                Signal::SIGCHLD | Signal::SIGPIPE => {}
                Signal::SIGWINCH if streams.terminal => streams.take_size(),
                _ => {
                    let gentle = matches!(signal, Signal::SIGCONT | Signal::SIGWINCH);
                    let dropped = deaf && !gentle && sandbox::is_deaf_to(pid.as_raw(), signal as i32);
                    let _ = kill(pid, if dropped { Signal::SIGKILL } else { signal });
                    ended_by = ended_by.or(dropped.then_some(signal));
                }
            }
        }
        if let Some(code) = relay::reap(pid)? {
            streams.drain();
            streams.check(code)?;
            streams.leave_behind()?;
            return Ok(ended_by.map_or(code, |signal| 128 + signal as i32));
        }
    }
}

/// What is relayed: a terminal, pipes, or nothing where the process has the caller's own streams.
#[derive(Default)]
pub struct Streams {
    terminal: bool,
    input: Input,
    /// Whether the caller's input may bring more.
    caller_input: bool,
    outputs: Vec<Output>,
    /// Why the caller did not get some of the output.
    lost: Option<Errno>,
}

/// What ends the input of a program that reads lines from a terminal, unless it has set another character (`termios(3)`, VEOF).
const END_OF_FILE: &[u8] = b"\x04";

/// Reads outputs to their end. Nothing else stays open.
fn discard(mut outputs: Vec<Output>) {
    let mut kept: Vec<u32> = outputs.iter().map(|output| output.from.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for (end, next) in kept.iter().map(|&fd| (fd, fd + 1)).chain([(u32::MAX, 0)]) {
        if end > first {
            // SAFETY: this process ends in here, and uses no descriptor but those kept.
            unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) };
        }
        first = next;
    }
    let mut bytes = [0; 4096];
    while !outputs.is_empty() {
        let mut fds: Vec<_> =
            outputs.iter().map(|output| PollFd::new(output.from.as_fd(), PollFlags::POLLIN)).collect();
        let _ = poll(&mut fds, PollTimeout::NONE);
        outputs.retain(|output| !matches!(read(&output.from, &mut bytes), Ok(0)));
    }
}

struct Output {
    from: OwnedFd,
    is_error: bool,
}

impl Streams {
    pub fn terminal(master: OwnedFd) -> Result<Self> {
        let mut input = Input::default();
        input.connect(Some(master.try_clone().attempt(|| "copy a descriptor")?))?;
        let outputs = vec![Output { from: master, is_error: false }];
        Ok(Self { terminal: true, input, caller_input: true, outputs, lost: None })
    }

    pub fn pipes(ends: Ends) -> Result<Self> {
        let mut input = Input::default();
        let caller_input = ends.input.is_some();
        input.connect(ends.input)?;
        let outputs = vec![Output { from: ends.output, is_error: false }, Output { from: ends.error, is_error: true }];
        Ok(Self { terminal: false, input, caller_input, outputs, lost: None })
    }

    fn take_size(&self) {
        if let (true, Some(master), Ok((rows, columns))) = (self.terminal, self.input.to(), sandbox::size(stdin())) {
            let _ = sandbox::resize(master, rows, columns);
        }
    }

    /// Waits for anything and relays what there is.
    fn relay_once(&mut self, signals: &SignalFd) -> Result<()> {
        let caller = stdin();
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.outputs.iter().map(|output| PollFd::new(output.from.as_fd(), PollFlags::POLLIN)));
        let outputs = 1..fds.len();
        let reads = self.caller_input && self.input.to().is_some() && self.input.has_room();
        if reads {
            fds.push(PollFd::new(caller.as_fd(), PollFlags::POLLIN));
        }
        if let Some(input) = self.input.wants() {
            fds.push(PollFd::new(input.as_fd(), PollFlags::POLLOUT));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).attempt(|| "wait for the process"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        for index in outputs.clone().rev().filter(|&index| ready[index]) {
            self.relay_output(index - outputs.start);
        }
        if reads && ready[outputs.end] {
            self.relay_input();
        }
        self.input.flush(|_| ());
        Ok(())
    }

    fn relay_input(&mut self) {
        let mut bytes = vec![0; CHUNK];
        match read(stdin(), &mut bytes) {
            Ok(count) if count > 0 => self.input.send(&bytes[..count], |_| ()),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            _ => {
                self.caller_input = false;
                if self.terminal { self.input.send(END_OF_FILE, |_| ()) } else { self.input.end() }
            }
        }
    }

    /// Relays one piece of an output: whether there may be more.
    fn relay_output(&mut self, index: usize) -> bool {
        let mut bytes = vec![0; CHUNK];
        let Some(output) = self.outputs.get(index) else { return false };
        match read(&output.from, &mut bytes) {
            Ok(count) if count > 0 => {
                let bytes = &bytes[..count];
                let written =
                    if output.is_error { relay::write_all(stderr(), bytes) } else { relay::write_all(stdout(), bytes) };
                match written {
                    // As if the process wrote there itself: its next write fails.
                    Err(Errno::EPIPE) if !self.terminal => {
                        self.outputs.remove(index);
                        return false;
                    }
                    Err(errno) if errno != Errno::EPIPE => self.lost = self.lost.or(Some(errno)),
                    _ => {}
                }
                true
            }
            Err(Errno::EINTR) => true,
            Err(Errno::EAGAIN) => false,
            // The other end is closed: nothing more will come.
            _ => {
                self.outputs.remove(index);
                false
            }
        }
    }

    /// Tells what was lost, unless the process itself has failed.
    fn check(&self, code: i32) -> Result<()> {
        match self.lost {
            Some(errno) if code == 0 => Err(errno).attempt(|| "pass the command's output on"),
            _ => Ok(()),
        }
    }

    /// What the process has left in the background may still write: a child of this process takes it from then on, and ends
    /// with the last of them.
    fn leave_behind(self) -> Result<()> {
        if self.terminal || self.outputs.is_empty() {
            return Ok(());
        }
        // SAFETY: this process has one thread.
        if let ForkResult::Parent { .. } = unsafe { fork() }.attempt(|| "fork")? {
            return Ok(());
        }
        // Whoever reads the caller's streams need not wait for this.
        let null = File::options().read(true).write(true).open("/dev/null");
        if let Ok(null) = null.map(OwnedFd::from) {
            let _ = rustix::stdio::dup2_stdin(&null)
                .and_then(|()| rustix::stdio::dup2_stdout(&null))
                .and_then(|()| rustix::stdio::dup2_stderr(&null));
            let _ = setsid();
            let _ = SigSet::empty().thread_set_mask();
            discard(self.outputs);
        }
        std::process::exit(0)
    }

    /// What is still on its way when the process has ended.
    fn drain(&mut self) {
        for index in (0..self.outputs.len()).rev() {
            while self.relay_output(index) {}
        }
    }
}
