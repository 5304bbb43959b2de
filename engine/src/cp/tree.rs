//! Directory trees: read into entries, and written from them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, Stat, Timespec, Timestamps,
    UTIME_OMIT, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fgetxattr, fsetxattr, fstat, fstatfs, futimens,
    linkat, mkdirat, mknodat, openat, openat2, readlinkat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::{Attempt as _, Error, Result};

use super::entry::{CAPABILITY, Kind, Meta, Owner, Sink};
use super::place::{Found, Place, Target};

/// Directories within directories: each takes a descriptor, and a container can nest them without end.
const MAX_DEPTH: usize = 400;
/// The kernel's structure has 24 bytes at most (`vfs_ns_cap_data`).
const MAX_CAPABILITY: usize = 64;

/// Reads what is at `from` and below into the sink, as `name`.
pub(super) fn read(place: &Place, from: &Target, name: &Path, sink: &mut dyn Sink) -> Result<()> {
    let Some(found) = &from.found else {
        return Ok(());
    };
    let mut reader = Reader { sink, links: HashMap::new(), shift: place.shift() };
    reader.entry(found, name, &from.path, 0)
}

struct Reader<'a> {
    sink: &'a mut dyn Sink,
    /// Files with several names, by device and inode, with the name they went by first.
    links: HashMap<(u64, u64), PathBuf>,
    shift: u32,
}

impl Reader<'_> {
    fn entry(&mut self, found: &Found, name: &Path, shown: &Path, depth: usize) -> Result<()> {
        let stat = &found.stat;
        let meta = self.meta(stat);
        let kind = found.kind();
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return self.sink.put(name, meta, Kind::HardLink(first.clone()));
            }
            self.links.insert((stat.st_dev, stat.st_ino), name.to_owned());
        }
        match kind {
            FileType::Directory => {
                self.sink.put(name, meta, Kind::Directory)?;
                if depth > 0 && shows_the_kernel(&found.fd).attempt(|| format!("look at {}", shown.display()))? {
                    return Ok(());
                }
                self.directory(&found.fd, name, shown, depth)
            }
            FileType::RegularFile => {
                let mut content = reopen(found.fd.as_fd(), OFlags::RDONLY)
                    .map(File::from)
                    .attempt(|| format!("open {}", shown.display()))?;
                let capability = capability(&content);
                self.sink.put(name, meta, Kind::File { size: stat.st_size as u64, content: &mut content, capability })
            }
            FileType::Symlink => {
                let text = readlinkat(&found.fd, "", Vec::new()).attempt(|| format!("read {}", shown.display()))?;
                let text = OsString::from_vec(text.into_bytes());
                self.sink.put(name, meta, Kind::Symlink(text.into()))
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                self.sink.put(name, meta, Kind::Special { format: kind, device: stat.st_rdev })
            }
            // A socket is nothing without the process that listens on it.
            _ => Ok(()),
        }
    }

    fn directory(&mut self, fd: &OwnedFd, name: &Path, shown: &Path, depth: usize) -> Result<()> {
        if depth >= MAX_DEPTH {
            let shown = shown.display();
            return Err(Error::Invalid(format!("{shown} lies {MAX_DEPTH} directories deep; copy it from nearer by")));
        }
        let attempt = || format!("list {}", shown.display());
        let open = openat(fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let children = Dir::new(open.attempt(attempt)?).attempt(attempt)?;
        let children =
            children.map(|child| child.map(|child| OsString::from_vec(child.file_name().to_bytes().to_vec())));
        let mut children = children.collect::<rustix::io::Result<Vec<_>>>().attempt(attempt)?;
        children.retain(|child| child != "." && child != "..");
        children.sort();
        for child in children {
            let shown = shown.join(&child);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let child_fd = match openat(fd, &child, flags, Mode::empty()) {
                // Removed since it was listed.
                Err(Errno::NOENT) => continue,
                other => other.attempt(|| format!("open {}", shown.display()))?,
            };
            let stat = fstat(&child_fd).attempt(|| format!("look at {}", shown.display()))?;
            self.entry(&Found { fd: child_fd, stat }, &name.join(&child), &shown, depth + 1)?;
        }
        Ok(())
    }

    fn meta(&self, stat: &Stat) -> Meta {
        // An id below the shift is none of the container's.
        let inside = |id: u32| id.checked_sub(self.shift).unwrap_or(id);
        Meta {
            mode: stat.st_mode & 0o7777,
            uid: inside(stat.st_uid),
            gid: inside(stat.st_gid),
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        }
    }
}

/// Whether a directory is the kernel's view of itself, `/proc` or `/sys`, whose files are none that could be copied.
fn shows_the_kernel(directory: &OwnedFd) -> rustix::io::Result<bool> {
    let kind = fstatfs(directory)?.f_type;
    Ok(kind == PROC_SUPER_MAGIC || kind == libc::SYSFS_MAGIC)
}

fn capability(file: &File) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(MAX_CAPABILITY);
    fgetxattr(file, CAPABILITY, rustix::buffer::spare_capacity(&mut value)).ok()?;
    Some(value)
}

/// Opens what an `O_PATH` descriptor stands for; the caller has seen what kind of file it is.
fn reopen(fd: BorrowedFd, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(proc_path(fd), flags | OFlags::CLOEXEC, Mode::empty())
}

/// The path by which the kernel leads to what a descriptor stands for, wherever its name has gone.
fn proc_path(fd: BorrowedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Writes entries below a directory.
pub(super) struct Writer<'a> {
    place: &'a Place,
    base: PathBuf,
    owner: Owner,
    /// The directory that the last entry went into.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Directories made here: their times are set when nothing is put into them any more.
    made: Vec<(PathBuf, Meta)>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(place: &'a Place, base: &Path, owner: Owner) -> Self {
        Self { place, base: base.to_owned(), owner, parent: None, made: Vec::new() }
    }

    /// Opens a directory of what is being written. Below a container's root its symlinks lead where they lead in the
    /// container; on the host no symlink is followed, since it may just have been copied.
    fn open_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if self.place.is_host() {
            let base = self.place.open(&self.base, flags)?;
            if path.as_os_str().is_empty() {
                return Ok(base);
            }
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            return Ok(openat2(base, path, flags, Mode::empty(), resolve)?);
        }
        self.place.open(&self.base.join(path), flags)
    }

    /// The directory an entry goes into; one that a stream does not name is made.
    fn parent(&mut self, path: &Path) -> io::Result<BorrowedFd<'_>> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.parent.as_ref().is_none_or(|(open, _)| open != parent) {
            let fd = match self.open_dir(parent) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.make_missing(parent)?;
                    self.open_dir(parent)?
                }
                other => other?,
            };
            self.parent = Some((parent.to_owned(), fd));
        }
        match &self.parent {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn make_missing(&self, path: &Path) -> io::Result<()> {
        let mut done = PathBuf::new();
        for component in path.components() {
            let parent = self.open_dir(&done)?;
            match mkdirat(&parent, component.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            done.push(component);
        }
        Ok(())
    }

    fn put_entry(&mut self, path: &Path, meta: Meta, kind: Kind) -> Result<()> {
        let shown = self.base.join(path);
        let attempt = || format!("write {}", shown.display());
        let (uid, gid) = self.owner.of(&meta);
        let owner = (Uid::from_raw(uid), Gid::from_raw(gid));
        let name = path.file_name().unwrap_or_default();
        // A link's target is opened before the parent is borrowed.
        let link = match &kind {
            Kind::HardLink(first) => {
                let dir = self.open_dir(first.parent().unwrap_or(Path::new(""))).attempt(attempt)?;
                Some((dir, first.file_name().unwrap_or_default().to_owned()))
            }
            _ => None,
        };
        let parent = self.parent(path).attempt(attempt)?;
        match kind {
            Kind::Directory => match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
                Err(Errno::EXIST) => return self.expect_dir(path),
                other => other.attempt(attempt)?,
            },
            Kind::File { size, content, capability } => {
                let mut file = create(parent, name).map_err(|error| refuse(error, &shown))?;
                // A file that grows meanwhile is copied as long as it was.
                io::copy(&mut io::Read::take(content, size), &mut file).attempt(attempt)?;
                return finish_file(&file, &meta, owner, capability).attempt(attempt);
            }
            Kind::Symlink(text) => {
                clear(parent, name).map_err(|error| refuse(error, &shown))?;
                symlinkat(text.as_path(), parent, name).attempt(attempt)?;
            }
            Kind::HardLink(_) => {
                clear(parent, name).map_err(|error| refuse(error, &shown))?;
                if let Some((dir, first)) = link {
                    linkat(dir, first, parent, name, AtFlags::empty()).attempt(attempt)?;
                }
                // Owner, mode and times are the first name's.
                return Ok(());
            }
            Kind::Special { format, device } => {
                clear(parent, name).map_err(|error| refuse(error, &shown))?;
                mknodat(parent, name, format, Mode::from_raw_mode(0o600), device).attempt(attempt)?;
            }
        }
        // By descriptor from here on: a process in the container may put something else in the place of the name.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(parent, name, flags, Mode::empty()).attempt(attempt)?;
        let kind = FileType::from_raw_mode(fstat(&made).attempt(attempt)?.st_mode);
        chownat(&made, "", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH).attempt(attempt)?;
        if kind != FileType::Symlink {
            chmodat(CWD, proc_path(made.as_fd()), Mode::from_raw_mode(meta.mode), AtFlags::empty()).attempt(attempt)?;
        }
        if kind == FileType::Directory {
            self.made.push((path.to_owned(), meta));
            return Ok(());
        }
        utimensat(&made, "", &times(&meta), AtFlags::EMPTY_PATH).attempt(attempt)
    }

    /// Insists that what stands in a directory's place is one; its own owner, mode and times stay.
    fn expect_dir(&self, path: &Path) -> Result<()> {
        let shown = self.base.join(path);
        self.open_dir(path).map(drop).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOTDIR | libc::ELOOP) => Error::Invalid(format!(
                "{} is no directory; a directory cannot take its place, remove it first",
                shown.display()
            )),
            _ => Error::Os { attempt: format!("write {}", shown.display()), source: error },
        })
    }
}

impl Sink for Writer<'_> {
    fn put(&mut self, path: &Path, meta: Meta, kind: Kind) -> Result<()> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        self.put_entry(path, meta, kind)
    }

    fn finish(&mut self) -> Result<()> {
        while let Some((path, meta)) = self.made.pop() {
            let attempt = || format!("set the times of {}", self.base.join(&path).display());
            let dir = self.open_dir(&path).attempt(attempt)?;
            utimensat(&dir, "", &times(&meta), AtFlags::EMPTY_PATH).attempt(attempt)?;
        }
        Ok(())
    }
}

/// Creates a file, or empties one that cannot be replaced because something is mounted on it. Never opens anything but
/// a regular file: a device or fifo that a container planted would be the host's to write to or to wait for.
fn create(parent: BorrowedFd, name: &OsStr) -> rustix::io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if clear(parent, name)? {
        let flags = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        return openat(parent, name, flags, Mode::from_raw_mode(0o600)).map(File::from);
    }
    let mounted = openat(parent, name, flags | OFlags::PATH, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&mounted)?.st_mode) != FileType::RegularFile {
        return Err(Errno::BUSY);
    }
    reopen(mounted.as_fd(), OFlags::WRONLY | OFlags::TRUNC).map(File::from)
}

/// Sets what is left to set once the content is there. The owner comes first: changing it takes setuid away.
fn finish_file(file: &File, meta: &Meta, owner: (Uid, Gid), capability: Option<Vec<u8>>) -> rustix::io::Result<()> {
    fchown(file, Some(owner.0), Some(owner.1))?;
    fchmod(file, Mode::from_raw_mode(meta.mode))?;
    if let Some(capability) = capability {
        fsetxattr(file, CAPABILITY, &capability, XattrFlags::empty())?;
    }
    futimens(file, &times(meta))
}

/// Takes away what stands in the place of something that is no directory: whether the place is free. A file that
/// something is mounted on cannot go.
fn clear(parent: BorrowedFd, name: &OsStr) -> rustix::io::Result<bool> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(error) => Err(error),
    }
}

fn refuse(error: Errno, shown: &Path) -> Error {
    if error == Errno::ISDIR {
        let shown = shown.display();
        return Error::Invalid(format!("{shown} is a directory; a file cannot take its place, remove it first"));
    }
    Error::Os { attempt: format!("write {}", shown.display()), source: error.into() }
}

fn times(meta: &Meta) -> Timestamps {
    let (seconds, nanoseconds) = meta.mtime;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    }
}
