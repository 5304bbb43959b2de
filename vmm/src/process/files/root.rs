//! The root: a descriptor below which every path is resolved.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::{Kind, OpenFile};
use crate::process::Result;

/// How often a resolution is tried that a rename elsewhere disturbed.
const TRIES: usize = 64;

/// The directory that programs see as `/`.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// Joins a path to the absolute path of the directory it is relative to.
pub fn join(directory: &[u8], path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") {
        return path.to_vec();
    }
    let mut joined = directory.to_vec();
    if !joined.ends_with(b"/") {
        joined.push(b'/');
    }
    joined.extend_from_slice(path);
    joined
}

/// Takes `.` and `..` out of an absolute path, by its text alone.
pub fn normal(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let mut text = vec![b'/'];
    text.extend_from_slice(&parts.join(&b'/'));
    text
}

impl Root {
    /// The root at an open directory.
    pub fn new(directory: OwnedFd) -> Self {
        Self(directory)
    }

    /// Opens `path`, relative to the open directory `base`, below the root.
    pub fn open(&self, base: &OpenFile, path: &[u8], flags: OFlag, mode: Mode) -> Result<OpenFile> {
        let fd = self.resolve(base, path, flags, mode)?;
        Ok(OpenFile::of(fd, normal(&join(&base.path, path)), Kind::Plain))
    }

    /// Opens a program to execute: a regular file that may be executed, by its absolute path.
    pub fn open_program(&self, path: &[u8]) -> Result<OwnedFd> {
        let fd = open(
            self.0.as_fd(),
            path,
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
            ResolveFlag::RESOLVE_IN_ROOT,
        )?;
        check_program(&fd)?;
        Ok(fd)
    }

    /// The directory that holds the last part of `path`, and that part.
    pub fn parent(&self, base: &OpenFile, path: &[u8]) -> Result<(OwnedFd, Vec<u8>)> {
        let end = path.iter().rposition(|&byte| byte != b'/').map_or(0, |at| at + 1);
        let start = path[..end].iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
        let (directory, last) = (&path[..start], &path[start..end]);
        let last = match last {
            b"" if path.is_empty() => return Err(Errno::ENOENT),
            b"" => b".".to_vec(),
            b".." => return Err(Errno::EBUSY),
            // A trailing slash asks for a directory; the host's call is to see it.
            last => [last, &path[end..]].concat(),
        };
        let directory: &[u8] = if directory.is_empty() { b"." } else { directory };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok((self.resolve(base, directory, flags, Mode::empty())?, last))
    }

    fn resolve(&self, base: &OpenFile, path: &[u8], flags: OFlag, mode: Mode) -> Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC;
        if !path.starts_with(b"/") {
            // From the directory itself, so that it may have been renamed.
            match open(base.as_fd(), path, flags, mode, ResolveFlag::RESOLVE_BENEATH) {
                Err(Errno::EXDEV) => {}
                done => return done,
            }
        }
        open(self.0.as_fd(), &join(&base.path, path), flags, mode, ResolveFlag::RESOLVE_IN_ROOT)
    }
}

/// Whether an open file may be executed.
pub fn check_program(fd: &OwnedFd) -> Result<()> {
    let status = fstat(fd)?;
    let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFREG || status.st_mode & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    Ok(())
}

fn open(directory: BorrowedFd, path: &[u8], flags: OFlag, mode: Mode, resolve: ResolveFlag) -> Result<OwnedFd> {
    let creates = flags.intersects(OFlag::O_CREAT) || flags.contains(OFlag::O_TMPFILE);
    let mode = if creates { mode } else { Mode::empty() };
    // Links in /proc lead to the VMM's own files.
    let how = OpenHow::new().flags(flags).mode(mode).resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    for _ in 0..TRIES {
        match openat2(directory, path, how) {
            Err(Errno::EAGAIN) => {}
            done => return done,
        }
    }
    Err(Errno::EAGAIN)
}
