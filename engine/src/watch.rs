//! Waiting for a file to grow (`inotify(7)`) or for something else to happen.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::error::{Attempt as _, Result};

/// A watched file.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: OwnedFd,
}

impl Watch {
    /// Watches a file from now on for being written to, replaced or removed.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let attempt = || format!("watch {}", path.display());
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).attempt(attempt)?;
        let flags = WatchFlags::MODIFY | WatchFlags::MOVE_SELF | WatchFlags::DELETE_SELF | WatchFlags::ATTRIB;
        inotify::add_watch(&inotify, path, flags).attempt(attempt)?;
        Ok(Self { inotify })
    }

    /// Waits until the file has changed since the last call, `other` is readable, or the time is over. Whether `other`
    /// is readable.
    pub(crate) fn wait(&self, other: Option<BorrowedFd>, limit: Option<Duration>) -> Result<bool> {
        let timeout = limit.map_or(PollTimeout::NONE, |limit| {
            PollTimeout::try_from(limit.as_millis() + 1).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        fds.extend(other.map(|other| PollFd::new(other, PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => return Ok(false),
            other => other.attempt(|| "wait for a file to grow")?,
        };
        // What exactly happened does not matter: the reader looks.
        let mut events = [0; 4096];
        while rustix::io::read(&self.inotify, &mut events).is_ok_and(|length| length > 0) {}
        Ok(fds.get(1).is_some_and(|fd| fd.any().unwrap_or(false)))
    }
}
