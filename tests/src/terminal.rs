//! A command on a terminal of its own, as a person has it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use nix::pty::{Winsize, openpty};

use crate::command::Cmd;
use crate::wait;

/// A terminal whose only program is a command.
pub struct Terminal {
    master: File,
    child: Child,
    screen: Arc<Mutex<Vec<u8>>>,
}

/// A window of `columns` by `rows` characters.
fn window(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    /// Starts a command as the session leader of a new terminal with this window size.
    pub fn start(command: Cmd, columns: u16, rows: u16) -> Self {
        let pty = openpty(&window(columns, rows), None).expect("a new terminal");
        let mut command: Command = command.inner;
        let end = || pty.slave.try_clone().expect("a copy of a descriptor");
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: setsid(2) and ioctl(2) are async-signal-safe; both only concern the child.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the command can be started");
        drop(command);
        drop(pty.slave);
        let master = File::from(pty.master);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let mut source = master.try_clone().expect("a copy of a descriptor");
        let sink = Arc::clone(&screen);
        // Ends with EIO when the last process has closed the terminal.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                sink.lock().expect("no holder panics").extend_from_slice(&buffer[..count]);
            }
        });
        Self { master, child, screen }
    }

    /// Types `text`.
    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("the terminal is open");
    }

    /// Everything shown so far.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("no holder panics")).into_owned()
    }

    /// Waits until `text` has been shown.
    pub fn expect(&self, text: &str) {
        let shown = wait::within(wait::DEADLINE, || self.screen().contains(text));
        assert!(shown, "the terminal does not show {text:?} but {:?}", self.screen());
    }

    /// Gives the window another size; the foreground processes get SIGWINCH.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = window(columns, rows);
        // SAFETY: TIOCSWINSZ reads one `winsize`, which outlives the call.
        let result = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert!(result == 0, "TIOCSWINSZ: {}", std::io::Error::last_os_error());
    }

    /// Whether the terminal echoes and edits lines: false while a program has it in raw mode.
    pub fn is_cooked(&self) -> bool {
        let attributes = nix::sys::termios::tcgetattr(&self.master).expect("it is a terminal");
        attributes.local_flags.contains(nix::sys::termios::LocalFlags::ICANON)
    }

    /// The command's process id.
    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits for the command's end: its exit code, 128+n for signal n.
    pub fn wait(&mut self) -> i32 {
        let mut status = None;
        wait::within(wait::DEADLINE, || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        let Some(status) = status else { panic!("the command does not end; the terminal shows {:?}", self.screen()) };
        status.code().or_else(|| status.signal().map(|n| 128 + n)).expect("it has ended")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A pipe whose reading end is closed: writing to it is what `| head` does to a command.
pub fn closed_pipe() -> OwnedFd {
    let (_reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
    writer
}
