//! Reaching a socket of the processes inside from the host.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::Sandbox;

impl Sandbox {
    /// Connects to the unix socket `path`, relative to the root of the first process.
    ///
    /// Whoever is inside chooses what lies there, but not where the connection leads: symlinks are not followed, and nothing
    /// outside that root is reached. What answers is as little trusted as the sandbox.
    ///
    /// # Errors
    /// `NotFound` where nothing lies there (yet), `ConnectionRefused` where nobody listens, `NotConnected` where the sandbox
    /// does not run.
    pub fn connect_inside(&self, path: &Path) -> io::Result<UnixStream> {
        let pid = self.pid().ok_or(io::ErrorKind::NotConnected)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = openat(CWD, format!("/proc/{pid}/root"), flags | OFlags::DIRECTORY, Mode::empty())?;
        // The number was that of the first process when the root was opened if it still is.
        if self.pid() != Some(pid) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let socket = openat2(&root, path, flags, Mode::empty(), resolve)?;
        UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()))
    }
}
