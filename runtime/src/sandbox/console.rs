//! The terminal of a sandboxed process: a pty made in the sandbox's own devpts, whose master goes to the maker and
//! from there to whoever drives it (`pts(4)`; runc's `--console-socket`).

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use oci_spec::runtime::{BoxBuilder, Process};
use rustix::fs::{Mode, OFlags};

use super::rootfs;
use crate::error::{Attempt as _, Result};

nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, Winsize);
nix::ioctl_read_bad!(tiocgwinsz, libc::TIOCGWINSZ, Winsize);
nix::ioctl_none_bad!(tiocsctty, libc::TIOCSCTTY);

/// A pty seen from inside.
#[derive(Debug)]
pub struct Pty {
    /// Drives the terminal; goes to the maker.
    pub master: OwnedFd,
    /// The terminal itself.
    pub slave: OwnedFd,
    path: PathBuf,
}

/// Opens a pty in `/dev/pts`: the sandbox's, from inside the new root.
pub fn open_pty() -> Result<Pty> {
    let attempt = || "open a terminal in the sandbox (is /dev/pts mounted?)";
    let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY | nix::fcntl::OFlag::O_CLOEXEC;
    let master = posix_openpt(flags).attempt(attempt)?;
    grantpt(&master).attempt(attempt)?;
    unlockpt(&master).attempt(attempt)?;
    let path = PathBuf::from(ptsname_r(&master).attempt(attempt)?);
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(&path, flags, Mode::empty()).attempt(attempt)?;
    let master = rustix::io::fcntl_dupfd_cloexec(&master, 3).attempt(attempt)?;
    Ok(Pty { master, slave, path })
}

impl Pty {
    /// Makes the slave the process's terminal and standard streams; `console`: also `/dev/console`.
    pub fn adopt(self, size: Option<(u16, u16)>, console: bool) -> Result<()> {
        if let Some((rows, columns)) = size {
            resize(&self.slave, rows, columns).attempt(|| "set the terminal's size")?;
        }
        if console {
            rootfs::bind_console(&self.path)?;
        }
        // SAFETY: the request takes no argument; the process has just become a session leader without terminal.
        unsafe { tiocsctty(self.slave.as_raw_fd()) }.attempt(|| "take the terminal")?;
        rustix::stdio::dup2_stdin(&self.slave).attempt(|| "connect standard input")?;
        rustix::stdio::dup2_stdout(&self.slave).attempt(|| "connect standard output")?;
        rustix::stdio::dup2_stderr(&self.slave).attempt(|| "connect standard error")
    }
}

/// Sets a terminal's size.
pub fn resize(terminal: impl AsFd, rows: u16, columns: u16) -> nix::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is the structure this request reads.
    unsafe { tiocswinsz(terminal.as_fd().as_raw_fd(), &raw const size) }.map(drop)
}

/// A terminal's size: rows and columns.
pub fn size(terminal: impl AsFd) -> nix::Result<(u16, u16)> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is the structure this request fills.
    unsafe { tiocgwinsz(terminal.as_fd().as_raw_fd(), &raw mut size) }?;
    Ok((size.ws_row, size.ws_col))
}

/// Gives the process's terminal, when it is made, the size of this one: set from outside it would come after the
/// process's first look. Where this is no terminal nothing changes.
pub fn copy_size(terminal: impl AsFd, process: &mut Process) {
    if let Ok((rows, columns)) = size(terminal) {
        let size = BoxBuilder::default().height(u64::from(rows)).width(u64::from(columns)).build();
        process.set_console_size(size.ok());
    }
}

/// Hands a pty's master to whoever listens on `--console-socket`.
pub fn send_master(socket: &Path, master: &OwnedFd) -> Result<()> {
    let attempt = || format!("send the terminal to {}", socket.display());
    let stream = UnixStream::connect(socket).attempt(attempt)?;
    let name = b"/dev/ptmx";
    let fds = [master.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(name)], &rights, MsgFlags::MSG_NOSIGNAL, None).attempt(attempt)?;
    Ok(())
}
