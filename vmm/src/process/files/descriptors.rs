//! A process's descriptors: small numbers for open files of the host.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use crate::process::Result;

/// Most descriptors of one process.
pub const MOST_DESCRIPTORS: u64 = 1 << 20;

/// An open file: one open file description of the host.
#[derive(Debug)]
pub struct OpenFile {
    /// The host's descriptor.
    pub fd: OwnedFd,
    /// The path below the root it was opened by; for what has none a name as `/proc/self/fd` shows it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// The address a socket was bound to, if that is a path.
    pub bound: Mutex<Option<Vec<u8>>>,
}

/// What an open file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What the host says it is.
    Plain,
    /// A directory of ours: a memory file of entries.
    Listing,
    /// A link of ours, opened as such: a memory file of where it leads.
    Link,
    /// Signals of the process that reads it; to the host an event counter.
    Signals,
}

impl Kind {
    /// The mode that programs see, where the host's is not that.
    pub fn mode(self) -> Option<u32> {
        match self {
            Self::Listing => Some(libc::S_IFDIR | 0o555),
            Self::Link => Some(libc::S_IFLNK | 0o777),
            Self::Plain | Self::Signals => None,
        }
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for OpenFile {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl OpenFile {
    /// An open file with its name.
    pub fn new(fd: OwnedFd, path: impl Into<Vec<u8>>) -> Arc<Self> {
        Arc::new(Self::of(fd, path.into(), Kind::Plain))
    }

    /// An open file of a kind.
    pub fn of(fd: OwnedFd, path: Vec<u8>, kind: Kind) -> Self {
        Self { fd, path, kind, bound: Mutex::default() }
    }
}

#[derive(Debug, Clone)]
struct Descriptor {
    file: Arc<OpenFile>,
    close_on_exec: bool,
}

/// The descriptors of a process.
#[derive(Debug, Clone)]
pub struct Descriptors {
    open: BTreeMap<i32, Descriptor>,
    /// All are below this, `RLIMIT_NOFILE`.
    pub limit: u64,
}

impl Descriptors {
    /// None, of at most `limit`.
    pub fn new(limit: u64) -> Self {
        Self { open: BTreeMap::new(), limit: limit.min(MOST_DESCRIPTORS) }
    }

    /// The open file behind a descriptor.
    pub fn get(&self, number: u64) -> Result<Arc<OpenFile>> {
        // As the kernel does: an `unsigned int`.
        self.open.get(&(number as i32)).map(|descriptor| descriptor.file.clone()).ok_or(Errno::EBADF)
    }

    /// The lowest free descriptor from `from` on for `file`.
    pub fn add(&mut self, file: Arc<OpenFile>, close_on_exec: bool, from: u64) -> Result {
        if from >= self.limit {
            return Err(Errno::EINVAL);
        }
        let free = (from as i32..self.limit as i32).find(|number| !self.open.contains_key(number));
        let number = free.ok_or(Errno::EMFILE)?;
        self.open.insert(number, Descriptor { file, close_on_exec });
        Ok(number as u64)
    }

    /// Makes `number` stand for `file`, whatever it stood for.
    pub fn set(&mut self, number: u64, file: Arc<OpenFile>, close_on_exec: bool) -> Result {
        if number >= self.limit {
            return Err(Errno::EBADF);
        }
        self.open.insert(number as i32, Descriptor { file, close_on_exec });
        Ok(number)
    }

    /// Closes a descriptor; the file is closed with the last reference to it.
    pub fn close(&mut self, number: u64) -> Result<Arc<OpenFile>> {
        self.open.remove(&(number as i32)).map(|descriptor| descriptor.file).ok_or(Errno::EBADF)
    }

    /// Closes or marks all descriptors from `first` to `last`.
    pub fn close_range(&mut self, first: u64, last: u64, mark_only: bool) {
        let last = last.min(MOST_DESCRIPTORS);
        self.open.retain(|&number, descriptor| {
            let within = (first..=last).contains(&(number as u64));
            descriptor.close_on_exec |= within && mark_only;
            !within || mark_only
        });
    }

    /// Whether a descriptor is closed by execve.
    pub fn close_on_exec(&self, number: u64) -> Result<bool> {
        self.open.get(&(number as i32)).map(|descriptor| descriptor.close_on_exec).ok_or(Errno::EBADF)
    }

    /// Sets whether a descriptor is closed by execve.
    pub fn set_close_on_exec(&mut self, number: u64, value: bool) -> Result<()> {
        self.open.get_mut(&(number as i32)).map(|descriptor| descriptor.close_on_exec = value).ok_or(Errno::EBADF)
    }

    /// What execve does.
    pub fn execute(&mut self) {
        self.open.retain(|_, descriptor| !descriptor.close_on_exec);
    }

    /// The descriptors in use.
    pub fn numbers(&self) -> Vec<i32> {
        self.open.keys().copied().collect()
    }
}
