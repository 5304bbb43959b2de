//! The root filesystem of a sandbox with a user namespace: an overlay of layers whose ids are mapped, so that what belongs to
//! the image's user 0 belongs to the container's, and what container root writes is stored as user 0's. The layers on disk
//! are the same for all containers, whatever ids these have.
//!
//! The kernel maps the ids of a mount only while that is attached nowhere, and before Linux 6.15 overlayfs takes only layers
//! that are attached in the caller's mount namespace. So this is the work of a thread with a mount namespace of its own, and
//! nothing of it shows on the host.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::Mount;
use rustix::fs::{Mode, OFlags, openat};
use rustix::thread::{capabilities, set_capabilities};

use super::mount::{self, attach};
use super::options::Options;
use super::outside::cannot_map;
use crate::error::{Attempt as _, Error, Result};
use crate::sandbox::id_map::IdMaps;

/// To whose ids the layers' are mapped: a user namespace and its maps.
type Users<'a> = (BorrowedFd<'a>, &'a IdMaps);

/// The overlay, attached nowhere. `rootfs`: a directory to mount it on in between; without `users` the layers belong to the
/// right ids already.
pub(super) fn mount(rootfs: &Path, entry: &Mount, users: Option<Users<'_>>) -> Result<OwnedFd> {
    let made = std::thread::scope(|scope| scope.spawn(|| mount_here(rootfs, entry, users)).join());
    made.unwrap_or_else(|_| Err(Error::Invalid("the thread that mounts the root filesystem has panicked".into())))
}

/// In a mount namespace of the calling thread's own.
fn mount_here(rootfs: &Path, entry: &Mount, users: Option<Users<'_>>) -> Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNS).attempt(|| "make a mount namespace for the root filesystem")?;
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)
        .attempt(|| "cut the mount namespace off the host's")?;
    if let Some((_, maps)) = users {
        become_root_of(maps)?;
    }
    let point = mount::open_directory(rootfs)?;
    let mut parents = HashMap::new();
    mount::overlay(&point, entry, |layer| match users {
        Some((users, _)) => mapped_layer(layer, users, &mut parents),
        None => mount::open_layer(layer),
    })?;
    mount::bind(rootfs, &Options::default())
}

/// Towards filesystems the thread becomes the container's root, and keeps its rights: as whoever mounts it, overlayfs makes
/// its own files (work directory, whiteouts) in the upper layer, where the host's root has no id.
fn become_root_of(maps: &IdMaps) -> Result<()> {
    let (uid, gid) = (maps.uid(0)?, maps.gid(0)?);
    let rights = capabilities(None).attempt(|| "read the own capabilities")?;
    nix::unistd::setfsgid(gid);
    nix::unistd::setfsuid(uid);
    set_capabilities(None, rights).attempt(|| "keep the own capabilities")
}

/// A layer with its ids mapped. Overlayfs wants the upper and the work directory on one mount, so it is the directories that
/// layers are in that are mapped, each once.
fn mapped_layer(layer: &Path, users: BorrowedFd<'_>, parents: &mut HashMap<PathBuf, OwnedFd>) -> Result<OwnedFd> {
    let attempt = || format!("open the layer {} of the root filesystem", layer.display());
    let layer = layer.canonicalize().attempt(attempt)?;
    let (Some(parent), Some(name)) = (layer.parent(), layer.file_name().map(OsString::from)) else {
        return Err(Error::Invalid(String::from("`/` cannot be a layer of the root filesystem")));
    };
    if !parents.contains_key(parent) {
        parents.insert(parent.to_owned(), mapped_directory(parent, users)?);
    }
    let mapped = &parents[parent];
    openat(mapped.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).attempt(attempt)
}

/// A directory with its ids mapped. It is mounted over the root, where no path leads to it and it hides nothing.
fn mapped_directory(directory: &Path, users: BorrowedFd<'_>) -> Result<OwnedFd> {
    let tree = mount::bind(directory, &Options::default())?;
    mount::map_ids(&tree, users, false).attempt(|| cannot_map(directory.display()))?;
    attach(&tree, &mount::open_directory(Path::new("/"))?).attempt(|| format!("mount {}", directory.display()))?;
    Ok(tree)
}
