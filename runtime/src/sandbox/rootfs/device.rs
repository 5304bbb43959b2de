//! Device nodes below `/dev` (OCI runtime-spec, "Default Devices" and "Devices").

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::sys::stat::{SFlag, makedev};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat, symlinkat};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mount::{Root, attach};
use crate::error::{Attempt as _, Error, Result};
use crate::sandbox::id_map::IdMaps;

/// Name, major and minor number of the nodes every container has.
const DEFAULTS: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links below `/dev`.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Whether an entry of `mounts` is a `/dev` for the default nodes.
pub(super) fn is_own_dev(entry: &Mount) -> bool {
    entry.destination() == Path::new("/dev") && entry.typ().as_deref() == Some("tmpfs")
}

/// Makes the default nodes at the root of a `/dev`.
pub(super) fn make_default_nodes(dev: &Root) -> Result<()> {
    DEFAULTS.iter().try_for_each(|&(name, major, minor)| node(&dev.0, name, SFlag::S_IFCHR, 0o666, (major, minor)))
}

/// Makes the default links in the open `/dev`.
pub(super) fn make_links(dev: &Root) -> Result<()> {
    for (target, name) in LINKS {
        match symlinkat(target, &dev.0, name) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno).attempt(|| format!("link /dev/{name}")),
        }
    }
    Ok(())
}

/// Makes one node of `linux.devices`, at `path` of `root`.
pub(super) fn make(root: &Root, device: &LinuxDevice, path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::Invalid(format!("`{}` cannot be a device", device.path().display())));
    };
    let parent = root.make_directories(parent)?;
    let name = name.to_string_lossy();
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => {
            return Err(Error::Invalid(format!("`{}` has no device type", device.path().display())));
        }
    };
    let number = (device.major() as u64, device.minor() as u64);
    node(&parent, &name, kind, device.file_mode().unwrap_or(0o666), number)?;
    let owner = |id: Option<u32>| id.unwrap_or(0);
    rustix::fs::chownat(
        &parent,
        &*name,
        Some(rustix::fs::Uid::from_raw(owner(device.uid()))),
        Some(rustix::fs::Gid::from_raw(owner(device.gid()))),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .attempt(|| format!("set the owner of {}", device.path().display()))
}

fn node(directory: &OwnedFd, name: &str, kind: SFlag, mode: u32, (major, minor): (u64, u64)) -> Result<()> {
    let mode = nix::sys::stat::Mode::from_bits_truncate(mode);
    let attempt = || format!("make the device node {name}");
    match nix::sys::stat::mknodat(directory.as_fd(), name, kind, mode, makedev(major, minor)) {
        // A node that the bundle names as well as the defaults.
        Err(nix::errno::Errno::EEXIST) => return Ok(()),
        other => other.attempt(attempt)?,
    }
    // The umask has taken bits away from `mknod`.
    nix::sys::stat::fchmodat(directory.as_fd(), name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
        .attempt(attempt)
}

/// Gives a `/dev` with everything in it to the users of a namespace: as yet it has the ids of the host. What these cannot
/// name belongs to their root.
pub(super) fn give_to(dev: &OwnedFd, maps: &IdMaps) -> Result<()> {
    let give = |directory: &OwnedFd, name: &std::ffi::CStr| -> Result<FileType> {
        let attempt = || format!("set the owner of /dev/{}", name.to_string_lossy());
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).attempt(attempt)?;
        let uid = maps.uid(stat.st_uid).or_else(|_| maps.uid(0))?;
        let gid = maps.gid(stat.st_gid).or_else(|_| maps.gid(0))?;
        let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
        nix::unistd::fchownat(directory, name, Some(uid), Some(gid), flags).attempt(attempt)?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    };
    let open = |directory: &OwnedFd, name: &std::ffi::CStr| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(directory, name, flags, Mode::empty()).attempt(|| "open /dev")
    };
    let mut left = vec![open(dev, c".")?];
    give(dev, c".")?;
    while let Some(directory) = left.pop() {
        for entry in Dir::read_from(&directory).attempt(|| "list /dev")? {
            let entry = entry.attempt(|| "list /dev")?;
            let name = entry.file_name();
            if name != c"." && name != c".." && give(&directory, name)?.is_dir() {
                left.push(open(&directory, name)?);
            }
        }
    }
    Ok(())
}

/// Binds the pty's slave over `/dev/console`, from inside the new root.
pub(in crate::sandbox) fn bind_console(slave: &Path) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NOCTTY;
    let attempt = || format!("bind {} to /dev/console", slave.display());
    let point = openat(rustix::fs::CWD, "/dev/console", flags, Mode::from(0o600)).attempt(attempt)?;
    let tree = open_tree(rustix::fs::CWD, slave, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .attempt(attempt)?;
    attach(&tree, &point).attempt(attempt)
}
