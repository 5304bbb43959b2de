//! A process in the foreground of `run` and `exec`: its terminal, signals and exit code are the caller's.

use std::os::fd::{AsFd as _, OwnedFd};

use berth_runtime::error::{Attempt as _, Result};
use berth_runtime::relay::{self, RawTerminal};
use berth_runtime::sandbox;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{Pid, read};

/// Stands in for the process until it ends: its exit code. `deaf`: it is process 1 of its namespace.
pub fn wait(signals: &SignalFd, pid: Pid, console: Option<OwnedFd>, deaf: bool) -> Result<i32> {
    let _raw = console.as_ref().and_then(|_| RawTerminal::enter());
    let mut console = Console { master: console, input: true };
    console.take_size();
    let mut ended_by = None;
    loop {
        console.relay_once(signals)?;
        for signal in relay::pending(signals) {
            match signal {
                Signal::SIGCHLD | Signal::SIGPIPE => {}
                Signal::SIGWINCH if console.master.is_some() => console.take_size(),
                _ => {
                    let gentle = matches!(signal, Signal::SIGCONT | Signal::SIGWINCH);
                    let dropped = deaf && !gentle && sandbox::is_deaf_to(pid.as_raw(), signal as i32);
                    let _ = kill(pid, if dropped { Signal::SIGKILL } else { signal });
                    ended_by = ended_by.or(dropped.then_some(signal));
                }
            }
        }
        if let Some(code) = relay::reap(pid)? {
            console.drain();
            return Ok(ended_by.map_or(code, |signal| 128 + signal as i32));
        }
    }
}

struct Console {
    master: Option<OwnedFd>,
    input: bool,
}

impl Console {
    fn take_size(&self) {
        if let (Some(master), Ok((rows, columns))) = (&self.master, sandbox::size(std::io::stdin())) {
            let _ = sandbox::resize(master, rows, columns);
        }
    }

    /// Waits for anything and relays what there is.
    fn relay_once(&mut self, signals: &SignalFd) -> Result<()> {
        let stdin = std::io::stdin();
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Some(master) = &self.master {
            fds.push(PollFd::new(master.as_fd(), PollFlags::POLLIN));
            if self.input {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).attempt(|| "wait for the process"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        if ready.get(1) == Some(&true) {
            self.output();
        }
        if ready.get(2) == Some(&true) {
            let mut bytes = [0; 4096];
            match (read(stdin.as_fd(), &mut bytes), &self.master) {
                (Ok(count), Some(master)) if count > 0 => drop(relay::write_all(master, &bytes[..count])),
                _ => self.input = false,
            }
        }
        Ok(())
    }

    /// Relays one piece of output: whether there was one.
    fn output(&mut self) -> bool {
        let mut bytes = [0; 16 << 10];
        let Some(master) = &self.master else { return false };
        match read(master, &mut bytes) {
            Ok(count) if count > 0 => {
                let _ = relay::write_all(std::io::stdout(), &bytes[..count]);
                true
            }
            Err(Errno::EINTR) => true,
            // The slave is closed: nothing more will come.
            _ => {
                self.master = None;
                false
            }
        }
    }

    fn drain(&mut self) {
        while let Some(master) = &self.master {
            let mut fds = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
            let some = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0);
            if !some || !self.output() {
                return;
            }
        }
    }
}
