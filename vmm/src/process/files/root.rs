//! The root: a descriptor below which every path is resolved.

use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::authority::Authority;
use super::credentials::Credentials;
use super::{Kind, OpenFile};
use crate::process::Result;
use crate::process::plain::words;
use crate::process::syscalls::host::{Arg, terminated};

/// How often a resolution is tried that a rename elsewhere disturbed.
const TRIES: usize = 64;

/// The directory that programs see as `/`.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    /// Who looks for files and changes them.
    pub authority: Authority,
}

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
    pub fn new(directory: OwnedFd, authority: Authority) -> Self {
        Self { directory, authority }
    }

    /// The root itself.
    pub fn top(&self) -> Result<Arc<OpenFile>> {
        let directory = self.directory.try_clone().map_err(|_| Errno::ENFILE)?;
        Ok(OpenFile::new(directory, "/"))
    }

    /// Opens `path`, relative to the open directory `base`, below the root.
    pub fn open(&self, who: &Credentials, base: &OpenFile, path: &[u8], flags: OFlag, mode: Mode) -> Result<OpenFile> {
        let fd = self.resolve(who, base, path, flags, mode)?;
        Ok(OpenFile::of(fd, normal(&join(&base.path, path)), Kind::Plain))
    }

    /// Opens a program to execute, by its absolute path.
    pub fn open_program(&self, who: &Credentials, path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let within = ResolveFlag::RESOLVE_IN_ROOT;
        let fd = self.open_at(who, self.directory.as_fd(), path, flags, Mode::empty(), within)?;
        self.check_program(who, fd.as_fd())?;
        Ok(fd)
    }

    /// Whether an open file is a regular one and may be executed.
    pub fn check_program(&self, who: &Credentials, fd: BorrowedFd) -> Result<()> {
        let status = fstat(fd)?;
        if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(Errno::EACCES);
        }
        let flags = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
        let arguments = [fd.into(), Arg::In(b"\0"), libc::X_OK.into(), flags.into()];
        self.authority.call(who, libc::SYS_faccessat2, arguments).map(|_| ())
    }

    /// The directory that holds the last part of `path`, and that part.
    pub fn parent(&self, who: &Credentials, base: &OpenFile, path: &[u8]) -> Result<(OwnedFd, Vec<u8>)> {
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
        Ok((self.resolve(who, base, directory, flags, Mode::empty())?, last))
    }

    fn resolve(&self, who: &Credentials, base: &OpenFile, path: &[u8], flags: OFlag, mode: Mode) -> Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC;
        if !path.starts_with(b"/") {
            // From the directory itself, so that it may have been renamed.
            match self.open_at(who, base.as_fd(), path, flags, mode, ResolveFlag::RESOLVE_BENEATH) {
                Err(Errno::EXDEV) => {}
                done => return done,
            }
        }
        let path = join(&base.path, path);
        self.open_at(who, self.directory.as_fd(), &path, flags, mode, ResolveFlag::RESOLVE_IN_ROOT)
    }

    fn open_at(
        &self,
        who: &Credentials,
        directory: BorrowedFd,
        path: &[u8],
        flags: OFlag,
        mode: Mode,
        resolve: ResolveFlag,
    ) -> Result<OwnedFd> {
        let creates = flags.intersects(OFlag::O_CREAT) || flags.contains(OFlag::O_TMPFILE);
        let mode = if creates { mode.bits() } else { 0 };
        // Links in /proc lead to the VMM's own files.
        let resolve = resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = words(&[flags.bits() as u64, u64::from(mode), resolve.bits()]);
        let path = terminated(path)?;
        for _ in 0..TRIES {
            let arguments = [directory.into(), Arg::In(&path), Arg::In(&how), (how.len() as u64).into()];
            match self.authority.call(who, libc::SYS_openat2, arguments) {
                Err(Errno::EAGAIN) => {}
                // SAFETY: the call has just given this descriptor to nobody else.
                done => return done.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) }),
            }
        }
        Err(Errno::EAGAIN)
    }
}
