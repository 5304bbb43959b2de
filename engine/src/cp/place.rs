//! Where paths are resolved: on the host, or below the root of a container.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, readlinkat};
use rustix::io::Errno;

use crate::container::Container;
use crate::error::{Attempt as _, Error, Result};
use crate::lock::{self, Lock};
use crate::microvm;
use crate::options::{Mount, MountSource};
use crate::volumes;
use crate::wasm;
use berth_images::overlay;

use super::entry::Owner;
use super::ids::ContainerRoot;

/// Symlinks followed at the end of a path before it counts as a loop, as in the kernel.
const MAX_LINKS: usize = 40;

/// What is going to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// A root that paths are resolved below.
#[derive(Debug)]
pub(super) struct Place {
    /// `None`: the host as the caller sees it.
    root: Option<OwnedFd>,
    /// How far the container's ids are shifted on the way through this root.
    shift: u32,
}

/// A place with the path in it, and what keeps the container as it is meanwhile.
#[derive(Debug)]
pub(super) struct Opened {
    pub place: Place,
    pub path: PathBuf,
    _held: Option<Held>,
    _ids: Option<ContainerRoot>,
}

/// The lock of a container that does not run.
#[derive(Debug)]
struct Held {
    container: Container,
    lock: Option<Lock>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take() {
            // What stays is found by the next sweep.
            let _ = lock.retire(self.container.roots(), self.container.id());
        }
    }
}

/// A path whose last symlinks have been followed, and what is there.
#[derive(Debug)]
pub(super) struct Target {
    pub path: PathBuf,
    pub found: Option<Found>,
}

/// Something that exists, by descriptor (`O_PATH`).
#[derive(Debug)]
pub(super) struct Found {
    pub fd: OwnedFd,
    pub stat: Stat,
}

impl Found {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind() == FileType::Directory
    }
}

impl Place {
    /// The host.
    pub(super) fn host() -> Self {
        Self { root: None, shift: 0 }
    }

    /// A directory as the root of all paths.
    pub(super) fn below(root: OwnedFd, shift: u32) -> Self {
        Self { root: Some(root), shift }
    }

    /// Whether this is the host as the caller sees it.
    pub(super) fn is_host(&self) -> bool {
        self.root.is_none()
    }

    /// How far the container's ids are shifted.
    pub(super) fn shift(&self) -> u32 {
        self.shift
    }

    /// Whoever holds the place: the container's root, or the caller.
    pub(super) fn root_owner(&self) -> Owner {
        if self.root.is_some() {
            Owner::Fixed { uid: self.shift, gid: self.shift }
        } else {
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            Owner::Fixed { uid: uid.as_raw(), gid: gid.as_raw() }
        }
    }

    /// Opens a path, following symlinks within the place.
    pub(super) fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let (root, resolve) = match &self.root {
            Some(root) => (root.as_fd(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS),
            None => (CWD, ResolveFlags::empty()),
        };
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        retry(|| openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve))
    }

    /// What is at a path, if anything.
    pub(super) fn look(&self, path: &Path, follow: bool) -> Result<Option<Found>> {
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        let attempt = || format!("look at {}", path.display());
        match self.open(path, flags) {
            Ok(fd) => {
                let stat = fstat(&fd).attempt(attempt)?;
                Ok(Some(Found { fd, stat }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).attempt(attempt),
        }
    }

    /// Follows the symlinks a path ends with, one by one, so that also one that points to nothing leads somewhere.
    pub(super) fn target(&self, path: &Path, follow: bool) -> Result<Target> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            // With `/` or `/.` at the end the kernel would follow: take them off.
            let trimmed: PathBuf = path.components().collect();
            let last = matches!(trimmed.components().next_back(), Some(Component::Normal(_)));
            let found = self.look(&trimmed, !last)?;
            match &found {
                Some(link) if follow && link.kind() == FileType::Symlink => {
                    let text = readlinkat(&link.fd, "", Vec::new()).attempt(|| format!("read {}", path.display()))?;
                    let text = PathBuf::from(std::ffi::OsString::from_vec(text.into_bytes()));
                    path = trimmed.parent().unwrap_or(Path::new("")).join(text);
                }
                _ => {
                    return Ok(Target { path: trimmed, found });
                }
            }
        }
        Err(Errno::LOOP).attempt(|| format!("follow {}", path.display()))
    }
}

/// `openat2` gives up when a rename happens elsewhere at the same time; it is then tried again.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    for _ in 0..64 {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
    Ok(call()?)
}

/// Opens what a path of a container lies in: the root of its running process with all mounts, or else its layers or
/// the volume.
pub(super) fn open(container: &Container, path: &Path, access: Access) -> Result<Opened> {
    let advice = "`berth exec` runs a command that reads or writes them, such as tar";
    microvm::refuse(container, "copy files of", advice)?;
    wasm::refuse_files(container, "copy files of")?;
    let path = absolute(path);
    if let Some(lock) = Lock::take(container.roots(), container.id())? {
        let held = Held { container: container.clone(), lock: Some(lock) };
        let (place, path) = open_stopped(container, &path, access)?;
        return Ok(Opened { place, path, _held: Some(held), _ids: None });
    }
    let pid = || -> Result<i32> {
        let pid = container.running_sandbox()?.pid();
        pid.ok_or_else(|| lock::busy(container.name(), "being started", "try again in a moment"))
    };
    let first = pid()?;
    let root = format!("/proc/{first}/root");
    let fd =
        openat2(CWD, &root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty());
    let fd = fd.attempt(|| format!("open the root of container {}", container.name()))?;
    if pid()? != first {
        return Err(lock::busy(container.name(), "being restarted", "try again in a moment"));
    }
    // The layers are mounted with the ids of the user namespace.
    let shift = container.record.options.userns.root();
    let ids = if shift != 0 && access == Access::Write { Some(ContainerRoot::take_on(shift)?) } else { None };
    Ok(Opened { place: Place::below(fd, shift), path, _held: None, _ids: ids })
}

fn open_stopped(container: &Container, path: &Path, access: Access) -> Result<(Place, PathBuf)> {
    let options = &container.record.options;
    let write_protected = |what: &str| {
        Err(Error::Invalid(format!("{what} of container {} is read-only; nothing was copied", container.name())))
    };
    if let Some((mount, rest)) = mount_of(&options.mounts, path) {
        if access == Access::Write && mount.read_only {
            return write_protected(&mount.target);
        }
        let (source, shift) = match &mount.source {
            MountSource::Bind { path, idmap, .. } => (path.clone(), if *idmap { 0 } else { options.userns.root() }),
            MountSource::Volume { name, .. } => {
                let volumes = volumes::Store::new(container.roots().data());
                (volumes.path(name.as_deref().unwrap_or_default()).join("_data"), 0)
            }
            MountSource::Disk { path, .. } => {
                return Err(Error::Invalid(format!("{} is a disk, whose files only a guest sees", path.display())));
            }
            MountSource::Tmpfs { .. } => {
                let target = &mount.target;
                return Err(Error::Invalid(format!(
                    "{target} of container {} is in memory and empty until it is started",
                    container.name()
                )));
            }
        };
        let attempt = || format!("open {}", source.display());
        let (root, rest) = if source.is_dir() {
            (source.clone(), rest)
        } else {
            // A file: its directory is the root, and itself the path.
            let name = source.file_name().map(PathBuf::from).unwrap_or_default();
            (source.parent().unwrap_or(Path::new("/")).to_owned(), name)
        };
        let root = File::open(root).attempt(attempt)?;
        return Ok((Place::below(root.into(), shift), Path::new("/").join(rest)));
    }
    if access == Access::Write && options.read_only {
        return write_protected("the root filesystem");
    }
    let dir = container.dir();
    let mut layers = container.record.lower_dirs.clone();
    layers.push(container.roots().base());
    let opened = match access {
        Access::Read => overlay::read_only(std::iter::once(&dir.join("upper")).chain(&layers)),
        Access::Write => overlay::writable(&layers, &dir.join("upper"), &dir.join("work")),
    };
    let root = opened.attempt(|| format!("put the layers of container {} together", container.name()))?;
    Ok((Place::below(root, 0), path.to_owned()))
}

/// The mount that a path lies in, with what of the path is left in it.
fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<(&'a Mount, PathBuf)> {
    let inside = mounts.iter().filter_map(|mount| {
        let target = absolute(Path::new(&mount.target));
        path.strip_prefix(&target).ok().map(|rest| (target.components().count(), mount, rest.to_owned()))
    });
    inside.max_by_key(|(depth, _, _)| *depth).map(|(_, mount, rest)| (mount, rest))
}

/// A container's path from its root, without `.` and `..`.
fn absolute(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_holds_a_path() {
        let mount = |target: &str| Mount {
            target: target.to_owned(),
            source: MountSource::Tmpfs { options: Vec::new() },
            read_only: false,
        };
        let mounts = [mount("/data"), mount("/data/deep/"), mount("/other")];
        let found = |path: &str| {
            mount_of(&mounts, &absolute(Path::new(path))).map(|(mount, rest)| (mount.target.as_str(), rest))
        };
        assert_eq!(found("/data/deep/x/y"), Some(("/data/deep/", PathBuf::from("x/y"))));
        assert_eq!(found("data/x"), Some(("/data", PathBuf::from("x"))));
        assert_eq!(found("/data"), Some(("/data", PathBuf::new())));
        assert_eq!(found("/database"), None);
        assert_eq!(found("/data/../etc"), None);
    }
}
