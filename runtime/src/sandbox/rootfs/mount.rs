//! Mounting by descriptor: the target is opened inside the root filesystem first and the mount is moved onto that
//! descriptor, so no symbolic link of the image can move it elsewhere.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;
use oci_spec::runtime::Mount;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::options::{Options, attr};
use crate::error::{Attempt as _, Error, Result};

/// How many links one path may lead through, as in the kernel (`path_resolution(7)`).
const MAX_LINKS: u32 = 40;

/// The root filesystem as a descriptor.
#[derive(Debug)]
pub(in crate::sandbox) struct Root(pub OwnedFd);

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

impl Root {
    /// Opens a path as the process in the sandbox would see it; links stay inside the root.
    pub(super) fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // The kernel saw a rename under way and asks to try again (openat2(2)).
                Err(rustix::io::Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    /// Opens a mount point, making it, with the directories above it, where it is missing.
    pub(super) fn mount_point(&self, path: &Path, kind: Kind) -> Result<OwnedFd> {
        if let Ok(found) = self.open(path, OFlags::PATH) {
            return Ok(found);
        }
        let attempt = || format!("create the mount point {} in the root filesystem", path.display());
        // Mostly the directory above it is there, and nothing else has the name.
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(parent) = self.open(&Path::new("/").join(parent), OFlags::PATH | OFlags::DIRECTORY)
            && make_point(&parent, name, kind).is_ok()
        {
            return self.open(path, OFlags::PATH).attempt(attempt);
        }
        let path = &self.resolve(path).attempt(attempt)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::Invalid(format!("`{}` cannot be a mount point", path.display())));
        };
        let parent = self.make_directories(parent)?;
        match make_point(&parent, name, kind) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => self.open(path, OFlags::PATH).attempt(attempt),
            Err(errno) => Err(errno).attempt(attempt),
        }
    }

    /// The path with its links followed inside the root. What is missing is taken as it stands: where a dangling link leads, a
    /// mount point can be made.
    fn resolve(&self, path: &Path) -> rustix::io::Result<PathBuf> {
        let steps = |path: &Path| path.components().rev().map(|step| step.as_os_str().to_owned()).collect::<Vec<_>>();
        let mut left = steps(path);
        let mut so_far = PathBuf::from("/");
        let mut links = 0;
        while let Some(step) = left.pop() {
            match Path::new(&step).components().next() {
                Some(Component::Normal(_)) => {}
                Some(Component::ParentDir) => {
                    so_far.pop();
                    continue;
                }
                Some(Component::RootDir) => {
                    so_far = PathBuf::from("/");
                    continue;
                }
                _ => continue,
            }
            let target = match self.open(&so_far, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(directory) => rustix::fs::readlinkat(&directory, &step, Vec::new()),
                Err(errno) => Err(errno),
            };
            match target {
                Ok(_) if links == MAX_LINKS => return Err(rustix::io::Errno::LOOP),
                Ok(target) => {
                    links += 1;
                    left.extend(steps(Path::new(OsStr::from_bytes(target.as_bytes()))));
                }
                // No link, or not there.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => so_far.push(&step),
                Err(errno) => return Err(errno),
            }
        }
        Ok(so_far)
    }

    /// Opens a directory, making what is missing of it.
    pub(in crate::sandbox) fn make_directories(&self, path: &Path) -> Result<OwnedFd> {
        let attempt = || format!("create the directory {} in the root filesystem", path.display());
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        if let Ok(found) = self.open(path, flags) {
            return Ok(found);
        }
        let path = &self.resolve(path).attempt(attempt)?;
        let mut current = self.open(Path::new("/"), flags).attempt(attempt)?;
        let mut so_far = PathBuf::from("/");
        for component in path.components().skip(1) {
            so_far.push(component);
            current = match self.open(&so_far, flags) {
                Err(rustix::io::Errno::NOENT) => {
                    match rustix::fs::mkdirat(&current, component.as_os_str(), Mode::from(0o755)) {
                        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                        Err(errno) => return Err(errno).attempt(attempt),
                    }
                    self.open(&so_far, flags).attempt(attempt)?
                }
                other => other.attempt(attempt)?,
            };
        }
        Ok(current)
    }
}

/// Makes what a mount goes onto. It must not be there, not even as a link.
fn make_point(parent: &OwnedFd, name: &OsStr, kind: Kind) -> rustix::io::Result<()> {
    match kind {
        Kind::Directory => rustix::fs::mkdirat(parent, name, Mode::from(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::WRONLY;
            rustix::fs::openat(parent, name, flags, Mode::from(0o644)).map(drop)
        }
    }
}

/// Mounts one entry of `mounts` at its destination. `made`: what the maker has mounted for it already.
pub(super) fn mount(root: &Root, entry: &Mount, made: Option<&OwnedFd>) -> Result<()> {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default());
    let destination = entry.destination();
    let own;
    let mounted = match made {
        Some(made) => made,
        None if is_bind(entry, &options) => {
            own = bind(source(entry)?, &options)?;
            &own
        }
        None => {
            own = filesystem(entry.typ().as_deref().unwrap_or("none"), entry.source().as_deref(), &options)?;
            &own
        }
    };
    let point_kind = if is_directory(mounted)? { Kind::Directory } else { Kind::File };
    let point = root.mount_point(destination, point_kind)?;
    check_point(entry, mounted, &point)?;
    if options.copy_up {
        copy_up(root, destination, mounted)?;
    }
    attach(mounted, &point).attempt(|| format!("mount {} at {}", describe(entry), destination.display()))?;
    if let Some(flags) = options.propagation {
        let point = root.open(destination, OFlags::PATH).attempt(|| format!("open {}", destination.display()))?;
        change_propagation(&point, flags).attempt(|| format!("set the propagation of {}", destination.display()))?;
    }
    Ok(())
}

/// What may be mounted below `/proc`: files that describe the machine, which lxcfs and its kind replace.
const OVER_PROC: &[&str] = &[
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "net/dev",
    "slabinfo",
    "stat",
    "swaps",
    "sys/crypto/fips_enabled",
    "sys/kernel/ns_last_pid",
    "uptime",
];

/// Refuses a directory on a file and the other way round, and what would hide `/proc`: programs of the sandbox's own, and
/// those that join it, trust what they find there (CVE-2019-16884).
fn check_point(entry: &Mount, mounted: impl AsFd, point: impl AsFd) -> Result<()> {
    let destination = entry.destination();
    if is_directory(&mounted)? != is_directory(&point)? {
        return Err(Error::Invalid(format!(
            "cannot mount {} at {}: one is a directory and the other a file; name a file for a file, a directory for a \
             directory",
            describe(entry),
            destination.display()
        )));
    }
    let is_proc = |file: &dyn AsFd| {
        let found = rustix::fs::fstatfs(file.as_fd()).attempt(|| format!("look at {}", destination.display()))?;
        Ok::<_, Error>(found.f_type == libc::PROC_SUPER_MAGIC)
    };
    let below = destination.strip_prefix("/proc").ok();
    let is_allowed = below.is_some_and(|below| OVER_PROC.iter().any(|allowed| Path::new(allowed) == below));
    if !is_allowed && (below.is_some() || is_proc(&point)?) && !is_proc(&mounted)? {
        return Err(Error::Invalid(format!(
            "cannot mount {} at {}: nothing but a proc filesystem may hide /proc; mount it elsewhere",
            describe(entry),
            destination.display()
        )));
    }
    Ok(())
}

/// Whether it shows something of the host.
pub(super) fn is_bind(entry: &Mount, options: &Options) -> bool {
    options.bind || entry.typ().as_deref() == Some("bind")
}

pub(super) fn describe(entry: &Mount) -> String {
    let kind = entry.typ().as_deref().unwrap_or("bind");
    entry.source().as_ref().map_or_else(|| kind.to_owned(), |source| format!("{kind} {}", source.display()))
}

pub(super) fn source(entry: &Mount) -> Result<&Path> {
    entry
        .source()
        .as_deref()
        .ok_or_else(|| Error::Invalid(format!("the bind mount at {} names no source", entry.destination().display())))
}

/// A detached copy of a mount of the host.
pub(super) fn bind(source: &Path, options: &Options) -> Result<OwnedFd> {
    let recursive = if options.recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursive;
    let tree = open_tree(CWD, source, flags).attempt(|| format!("bind {}", source.display()))?;
    let attempt = || format!("set the mount options of {}", source.display());
    if options.set | options.clear != 0 {
        set_attributes(&tree, options.set, options.clear, false).attempt(attempt)?;
    }
    if options.set_recursive | options.clear_recursive != 0 {
        set_attributes(&tree, options.set_recursive, options.clear_recursive, true).attempt(attempt)?;
    }
    Ok(tree)
}

/// A new, detached filesystem.
pub(super) fn filesystem_of(kind: &str, source: &str, parameters: &[&str], attributes: u64) -> Result<OwnedFd> {
    let attempt = || format!("set up a {kind} filesystem");
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).attempt(attempt)?;
    fsconfig_set_string(&context, "source", source).attempt(attempt)?;
    for parameter in parameters {
        let set = match parameter.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, *parameter),
        };
        set.attempt(|| format!("set up a {kind} filesystem with the option `{parameter}`"))?;
    }
    fsconfig_create(&context).attempt(attempt)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).attempt(attempt)
}

pub(super) fn filesystem(kind: &str, source: Option<&Path>, options: &Options) -> Result<OwnedFd> {
    let source = source.map_or_else(|| kind.into(), Path::to_string_lossy);
    let parameters: Vec<&str> = options.filesystem.iter().map(String::as_str).collect();
    filesystem_of(kind, &source, &parameters, options.set | options.set_recursive)
}

/// Puts a detached mount onto an open mount point.
pub(super) fn attach(mounted: impl AsFd, point: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mounted, "", point, "", flags)
}

/// A detached, read-only copy of an open mount or file.
pub(in crate::sandbox) fn read_only_copy(of: impl AsFd) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let copy = open_tree(of, "", flags).attempt(|| "copy a mount")?;
    set_attributes(&copy, attr::RDONLY, 0, false).attempt(|| "make a mount read-only")?;
    Ok(copy)
}

/// Sets and clears attributes of an open mount.
pub(in crate::sandbox) fn set_attributes(mount: impl AsFd, set: u64, clear: u64, recursive: bool) -> nix::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    change(mount, &attributes, recursive)
}

/// Maps the ids of a detached mount to those of a user namespace.
pub(super) fn map_ids(mount: impl AsFd, users: impl AsFd, recursive: bool) -> nix::Result<()> {
    let userns_fd = users.as_fd().as_raw_fd() as u64;
    let attributes = libc::mount_attr { attr_set: attr::IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    change(mount, &attributes, recursive)
}

/// Sets the propagation (`MS_…`) of a detached mount and all below.
pub(super) fn set_propagation(mount: impl AsFd, propagation: libc::c_ulong) -> nix::Result<()> {
    change(mount, &libc::mount_attr { attr_set: 0, attr_clr: 0, propagation, userns_fd: 0 }, true)
}

/// `mount_setattr(2)` on an open mount.
fn change(mount: impl AsFd, attributes: &libc::mount_attr, recursive: bool) -> nix::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and the structure and its size belong together.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Changes the propagation of an open mount point.
pub(super) fn change_propagation(point: &OwnedFd, flags: MsFlags) -> nix::Result<()> {
    nix::mount::mount(None::<&str>, descriptor_path(point).as_str(), None::<&str>, flags, None::<&str>)
}

/// A path that means an open file, for system calls that take only paths.
pub(super) fn descriptor_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens a layer of the root filesystem.
pub(super) fn open_layer(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .attempt(|| format!("open the layer {} of the root filesystem", path.display()))
}

/// An overlay as the root filesystem, on `point`, of layers as `open_layer` opens them.
///
/// Layers go to the kernel as descriptors' paths: they stay short whatever the store's path is (the option string has one page
/// for all), and the host's paths are not shown in the container's `/proc/self/mountinfo`.
pub(super) fn overlay(
    point: &OwnedFd,
    entry: &Mount,
    mut open_layer: impl FnMut(&Path) -> Result<OwnedFd>,
) -> Result<()> {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default());
    let mut open = Vec::new();
    let mut lower = Vec::new();
    let mut data = Vec::new();
    for option in &options.filesystem {
        let mut layer = |path: &str| -> Result<String> {
            let fd = open_layer(Path::new(path))?;
            let shown = descriptor_path(&fd);
            open.push(fd);
            Ok(shown)
        };
        match option.split_once('=') {
            Some(("lowerdir+", path)) => lower.push(layer(path)?),
            Some(("lowerdir", paths)) => {
                for path in paths.split(':') {
                    lower.push(layer(path)?);
                }
            }
            Some((key @ ("upperdir" | "workdir"), path)) => data.push(format!("{key}={}", layer(path)?)),
            _ => data.push(option.clone()),
        }
    }
    data.push(format!("lowerdir={}", lower.join(":")));
    let flags =
        [(attr::RDONLY, MsFlags::MS_RDONLY), (attr::NOSUID, MsFlags::MS_NOSUID), (attr::NODEV, MsFlags::MS_NODEV)]
            .into_iter()
            .filter(|(attribute, _)| options.set & attribute != 0)
            .map(|(_, flag)| flag)
            .collect::<MsFlags>();
    let data = data.join(",");
    nix::mount::mount(Some("overlay"), descriptor_path(point).as_str(), Some("overlay"), flags, Some(data.as_str()))
        .attempt(|| format!("mount the image's {} layers as the root filesystem", lower.len()))
}

fn is_directory(fd: impl AsFd) -> Result<bool> {
    let stat = statat(fd, "", AtFlags::EMPTY_PATH).attempt(|| "examine a mount")?;
    Ok(FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// Copies what a tmpfs is going to cover into it (`tmpcopyup`).
fn copy_up(root: &Root, covered: &Path, tmpfs: &OwnedFd) -> Result<()> {
    let from =
        root.open(covered, OFlags::PATH | OFlags::DIRECTORY).attempt(|| format!("open {}", covered.display()))?;
    copy_directory(Path::new(&descriptor_path(&from)), Path::new(&descriptor_path(tmpfs)))
        .attempt(|| format!("copy {} into the tmpfs over it", covered.display()))
}

fn copy_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = entry.metadata()?;
        if metadata.is_symlink() {
            symlink(std::fs::read_link(&source)?, &target)?;
            lchown(&target, Some(metadata.uid()), Some(metadata.gid()))?;
            continue;
        }
        if metadata.is_dir() {
            std::fs::create_dir(&target)?;
            copy_directory(&source, &target)?;
        } else if metadata.is_file() {
            std::fs::copy(&source, &target)?;
        } else {
            continue;
        }
        chown(&target, Some(metadata.uid()), Some(metadata.gid()))?;
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(metadata.mode()))?;
    }
    Ok(())
}

/// Opens a directory of the host.
pub(super) fn open_directory(path: &Path) -> Result<OwnedFd> {
    File::open(path).map(OwnedFd::from).attempt(|| format!("open the directory {}", path.display()))
}
