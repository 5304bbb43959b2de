//! Device nodes below `/dev` (OCI runtime-spec, "Default Devices" and "Devices").

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{AtFlags, OFlags, openat, symlinkat};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mount::{Kind, Root, attach};
use crate::error::{Attempt as _, Error, Result};

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

/// Makes the default nodes and links. In a user namespace nodes cannot be made, so the host's are bound.
pub(super) fn make_defaults(root: &Root, own_users: bool) -> Result<()> {
    let dev = root.open(Path::new("/dev"), OFlags::PATH | OFlags::DIRECTORY).attempt(|| "open /dev")?;
    for (name, major, minor) in DEFAULTS {
        if own_users {
            bind_node(root, &Path::new("/dev").join(name))?;
        } else {
            node(&dev, name, SFlag::S_IFCHR, 0o666, (major, minor))?;
        }
    }
    for (target, name) in LINKS {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno).attempt(|| format!("link /dev/{name}")),
        }
    }
    Ok(())
}

/// Makes one node of `linux.devices`.
pub(super) fn make(root: &Root, device: &LinuxDevice, own_users: bool) -> Result<()> {
    let path = device.path();
    if own_users {
        return bind_node(root, path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::Invalid(format!("`{}` cannot be a device", path.display())));
    };
    let parent = root.make_directories(parent)?;
    let name = name.to_string_lossy();
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => return Err(Error::Invalid(format!("`{}` has no device type", path.display()))),
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
    .attempt(|| format!("set the owner of {}", path.display()))
}

fn node(directory: &OwnedFd, name: &str, kind: SFlag, mode: u32, (major, minor): (u64, u64)) -> Result<()> {
    let mode = Mode::from_bits_truncate(mode);
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

fn bind_node(root: &Root, path: &Path) -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let host = open_tree(rustix::fs::CWD, path, flags).attempt(|| format!("bind the device {}", path.display()))?;
    let point = root.mount_point(path, Kind::File)?;
    attach(&host, &point).attempt(|| format!("bind the device {}", path.display()))
}

/// Binds the pty's slave over `/dev/console`, from inside the new root.
pub(in crate::sandbox) fn bind_console(slave: &Path) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NOCTTY;
    let attempt = || format!("bind {} to /dev/console", slave.display());
    let point = openat(rustix::fs::CWD, "/dev/console", flags, rustix::fs::Mode::from(0o600)).attempt(attempt)?;
    let tree = open_tree(rustix::fs::CWD, slave, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .attempt(attempt)?;
    attach(&tree, &point).attempt(attempt)
}
