//! How a process gets into a group without waiting for the kernel. The why is in the [parent module](super).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::hierarchies::Hierarchies;
use super::{Error, Result};

/// The way into a group for a process about to be made, opened by its parent, who has the right to. All descriptors are
/// close-on-exec.
///
/// ```text
/// let entry = cgroup.entry()?;
/// // clone_args.flags |= Entry::CLONE_INTO_CGROUP; clone_args.cgroup = entry.clone_into()
/// match clone3(…) {
///     0 => entry.enter()?, // first thing in the child
///     …
/// }
/// ```
#[derive(Debug)]
pub struct Entry {
    v2: Option<OwnedFd>,
    v1: Vec<File>,
}

impl Entry {
    /// The flag of `clone3(2)` that goes with `clone_args.cgroup` (Linux 5.7).
    pub const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

    pub(super) fn open(hierarchies: &Hierarchies, path: &Path) -> Result<Self> {
        let v2 = hierarchies.v2.as_ref().map(|mount| {
            let dir = mount.point.join(path);
            open(&dir, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|errno| Error::Read { path: dir, source: errno.into() })
        });
        let v1 = hierarchies.v1.iter().map(|mount| {
            let tasks = mount.point.join(path).join("tasks");
            OpenOptions::new().write(true).open(&tasks).map_err(|source| Error::Read { path: tasks, source })
        });
        Ok(Self { v2: v2.transpose()?, v1: v1.collect::<Result<_>>()? })
    }

    /// The v2 group, for `clone_args.cgroup` with `CLONE_INTO_CGROUP`; `None`: the host has v1 alone.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        self.v2.as_ref().map(std::os::fd::AsFd::as_fd)
    }

    /// Moves the calling thread into the v1 groups. To be called by a process with one thread that was made with
    /// [`Entry::clone_into`], before it forks. Allocates nothing and may be called after `fork`.
    pub fn enter(&self) -> io::Result<()> {
        for tasks in &self.v1 {
            nix::unistd::write(tasks, b"0")?;
        }
        Ok(())
    }

    /// The numbers of all descriptors, for a child that closes everything else.
    pub fn raw_fds(&self) -> impl Iterator<Item = i32> {
        self.v2.iter().map(AsRawFd::as_raw_fd).chain(self.v1.iter().map(AsRawFd::as_raw_fd))
    }
}
