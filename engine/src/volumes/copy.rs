//! Copies a directory out of an image into a new volume, with ownership, modes, extended attributes, times, links,
//! holes and devices. Everything goes by descriptor: no link in the image leads out of it.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::Error;
use berth_images::overlay;

/// Bounds the depth of directories: each open level costs two descriptors.
const MAX_DEPTH: usize = 256;
/// The kernel's bound for the list of names and for one value, bytes; see xattr(7).
const MAX_XATTR: usize = 64 << 10;
/// What overlayfs keeps for itself, visible where a layer is read without it.
const OVERLAY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Copies the directory `target` of the image into the new directory `into`, for volume `name`. `false`: the image has
/// nothing there and nothing was made.
pub(super) fn from_image(layers: &[PathBuf], target: &Path, into: &Path, name: &str) -> Result<bool, Error> {
    let image = overlay::read_only(layers).map_err(Error::io("open the layers of the image for", target))?;
    let inside = target.strip_prefix("/").unwrap_or(target);
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = match rustix::fs::openat2(&image, inside, flags, Mode::empty(), resolve) {
        Ok(source) => source,
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::NOTDIR) => {
            return Err(Error::NotADirectory { name: name.to_owned(), path: target.to_owned() });
        }
        Err(error) => return Err(Error::io("open in the image", target)(error)),
    };
    rustix::fs::mkdir(into, Mode::RWXU).map_err(Error::io("make", into))?;
    let root = rustix::fs::open(into, flags, Mode::empty()).map_err(Error::io("open", into))?;
    let mut copy = Copy::new(root.as_fd());
    copy.contents(source.as_fd(), root.as_fd(), Path::new(""), 0)
        .and_then(|()| {
            let failed = |error: io::Error| (PathBuf::new(), error);
            let stat = rustix::fs::fstat(&source).map_err(|error| failed(error.into()))?;
            copy.attributes(source.as_fd(), root.as_fd(), c".", &stat).map_err(failed)
        })
        .map_err(|(path, source)| Error::Io { action: "copy from the image", path: target.join(path), source })?;
    Ok(true)
}

/// The path of what could not be copied, below the target, and why.
type Failure = (PathBuf, io::Error);

struct Copy<'a> {
    root: BorrowedFd<'a>,
    /// Device and inode in the image to the path of the first copy: hard links stay hard links.
    links: HashMap<(u64, u64), PathBuf>,
    /// Names and value of extended attributes.
    names: Vec<u8>,
    value: Vec<u8>,
}

impl<'a> Copy<'a> {
    fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, links: HashMap::new(), names: vec![0; MAX_XATTR], value: vec![0; MAX_XATTR] }
    }

    /// Copies what is in directory `from`.
    fn contents(&mut self, from: BorrowedFd, to: BorrowedFd, path: &Path, depth: usize) -> Result<(), Failure> {
        let failed = |error: io::Error| (path.to_owned(), error);
        if depth > MAX_DEPTH {
            return Err(failed(io::Error::other(format!("directories are nested more than {MAX_DEPTH} deep"))));
        }
        for entry in Dir::read_from(from).map_err(|error| failed(error.into()))? {
            let entry = entry.map_err(|error| failed(error.into()))?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                let path = path.join(OsStr::from_bytes(name.to_bytes()));
                self.entry(from, to, name, &path, depth)?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: BorrowedFd,
        to: BorrowedFd,
        name: &CStr,
        path: &Path,
        depth: usize,
    ) -> Result<(), Failure> {
        let failed = |error: io::Error| (path.to_owned(), error);
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| failed(error.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::Directory => {
                let (source, copy) = open_directories(from, to, name).map_err(failed)?;
                self.contents(source.as_fd(), copy.as_fd(), path, depth + 1)?;
            }
            // A whiteout: nothing is there.
            FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(()),
            _ if self.link(to, name, path, &stat).map_err(failed)? => return Ok(()),
            FileType::RegularFile => regular(from, to, name, &stat).map_err(failed)?,
            FileType::Symlink => symlink(from, to, name).map_err(failed)?,
            _ => rustix::fs::mknodat(to, name, kind, Mode::empty(), stat.st_rdev)
                .map_err(|error| failed(error.into()))?,
        }
        self.attributes(from, to, name, &stat).map_err(failed)
    }

    /// Makes a hard link where another name of the same file has been copied already.
    fn link(&mut self, to: BorrowedFd, name: &CStr, path: &Path, stat: &Stat) -> io::Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.links.get(&key) {
            rustix::fs::linkat(self.root, first, to, name, AtFlags::empty())?;
            return Ok(true);
        }
        self.links.insert(key, path.to_owned());
        Ok(false)
    }

    /// Owner, extended attributes, mode and times, in this order: a new owner clears setuid bits and file
    /// capabilities.
    fn attributes(&mut self, from: BorrowedFd, to: BorrowedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        self.xattrs(&by_descriptor(from, name), &by_descriptor(to, name))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
        }
        let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as i64 };
        let times = Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        };
        Ok(rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn xattrs(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let listed = rustix::fs::llistxattr(from, self.names.as_mut_slice())?;
        for key in self.names[..listed].split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
            if OVERLAY_XATTRS.iter().any(|own| key.starts_with(own)) {
                continue;
            }
            let length = rustix::fs::lgetxattr(from, key, self.value.as_mut_slice())?;
            rustix::fs::lsetxattr(to, key, &self.value[..length], XattrFlags::empty())?;
        }
        Ok(())
    }
}

fn open_directories(from: BorrowedFd, to: BorrowedFd, name: &CStr) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
    rustix::fs::mkdirat(to, name, Mode::RWXU)?;
    let copy = rustix::fs::openat(to, name, flags, Mode::empty())?;
    Ok((source, copy))
}

/// Copies the written parts of a file; holes stay holes.
fn regular(from: BorrowedFd, to: BorrowedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = File::from(rustix::fs::openat(from, name, flags | OFlags::RDONLY, Mode::empty())?);
    let flags = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut copy = File::from(rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
    let size = stat.st_size.unsigned_abs();
    copy.set_len(size)?;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&source, SeekFrom::Hole(start))?;
        rustix::fs::seek(&source, SeekFrom::Start(start))?;
        rustix::fs::seek(&copy, SeekFrom::Start(start))?;
        io::copy(&mut (&source).take(end - start), &mut copy)?;
        at = end;
    }
    Ok(())
}

fn symlink(from: BorrowedFd, to: BorrowedFd, name: &CStr) -> io::Result<()> {
    let target = rustix::fs::readlinkat(from, name, Vec::new())?;
    Ok(rustix::fs::symlinkat(&*target, to, name)?)
}

/// A path for calls that take no descriptor; its last part is not followed by calls that follow no links.
fn by_descriptor(dir: BorrowedFd, name: &CStr) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(OsStr::from_bytes(name.to_bytes()))
}
