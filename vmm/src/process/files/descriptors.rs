//! A process's descriptors: small numbers for open files of the host.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use crate::process::Result;

/// Most descriptors of one process.
pub const MOST_DESCRIPTORS: u64 = 1024;

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
#[derive(Debug, Clone, Default)]
pub struct Descriptors(BTreeMap<i32, Descriptor>);

impl Descriptors {
    /// The open file behind a descriptor.
    pub fn get(&self, number: u64) -> Result<Arc<OpenFile>> {
        // As the kernel does: an `unsigned int`.
        self.0.get(&(number as i32)).map(|descriptor| descriptor.file.clone()).ok_or(Errno::EBADF)
    }

    /// The lowest free descriptor from `from` on for `file`.
    pub fn add(&mut self, file: Arc<OpenFile>, close_on_exec: bool, from: u64) -> Result {
        if from >= MOST_DESCRIPTORS {
            return Err(Errno::EINVAL);
        }
        let free = (from as i32..MOST_DESCRIPTORS as i32).find(|number| !self.0.contains_key(number));
        let number = free.ok_or(Errno::EMFILE)?;
        self.0.insert(number, Descriptor { file, close_on_exec });
        Ok(number as u64)
    }

    /// Makes `number` stand for `file`, whatever it stood for.
    pub fn set(&mut self, number: u64, file: Arc<OpenFile>, close_on_exec: bool) -> Result {
        if number >= MOST_DESCRIPTORS {
            return Err(Errno::EBADF);
        }
        self.0.insert(number as i32, Descriptor { file, close_on_exec });
        Ok(number)
    }

    /// Closes a descriptor; the file is closed with the last reference to it.
    pub fn close(&mut self, number: u64) -> Result<Arc<OpenFile>> {
        self.0.remove(&(number as i32)).map(|descriptor| descriptor.file).ok_or(Errno::EBADF)
    }

    /// Closes or marks all descriptors from `first` to `last`.
    pub fn close_range(&mut self, first: u64, last: u64, mark_only: bool) {
        let last = last.min(MOST_DESCRIPTORS);
        self.0.retain(|&number, descriptor| {
            let within = (first..=last).contains(&(number as u64));
            descriptor.close_on_exec |= within && mark_only;
            !within || mark_only
        });
    }

    /// Whether a descriptor is closed by execve.
    pub fn close_on_exec(&self, number: u64) -> Result<bool> {
        self.0.get(&(number as i32)).map(|descriptor| descriptor.close_on_exec).ok_or(Errno::EBADF)
    }

    /// Sets whether a descriptor is closed by execve.
    pub fn set_close_on_exec(&mut self, number: u64, value: bool) -> Result<()> {
        self.0.get_mut(&(number as i32)).map(|descriptor| descriptor.close_on_exec = value).ok_or(Errno::EBADF)
    }

    /// What execve does.
    pub fn execute(&mut self) {
        self.0.retain(|_, descriptor| !descriptor.close_on_exec);
    }

    /// The descriptors in use.
    pub fn numbers(&self) -> Vec<i32> {
        self.0.keys().copied().collect()
    }
}
