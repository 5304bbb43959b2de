//! What the host's root has to prepare for a sandbox: the mounts that a process in a user namespace has no right to make.
//!
//! Such a process can neither open what lies below directories of others, nor make device nodes, nor map the ids of a
//! mount. So the maker opens the sources of bind mounts, fills `/dev`, and puts the layers of the root filesystem together;
//! the process inherits the descriptors of these mounts, which are attached nowhere, and attaches them. Mapping the ids
//! needs the namespace and so comes when the process has been born ([`Outside::finish`]); being told of it is the `Go` of the
//! [channel](crate::sandbox::channel).
//!
//! A sandbox without user namespace and id-mapped mounts prepares nothing here.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount};

use super::cgroup_mount::is_cgroup;
use super::mount::{self, Root};
use super::options::Options;
use super::{device, is_overlay_root, mapped_overlay};
use crate::bundle::Bundle;
use crate::error::{Attempt as _, Error, Result};
use crate::sandbox::id_map::{self, IdMaps};

/// The mounts made outside.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct Outside {
    /// A root filesystem that is a plain directory.
    root: Option<OwnedFd>,
    /// One for each entry of `mounts`, where it was made here; shorter where there are no more.
    mounts: Vec<Option<OwnedFd>>,
    /// `/dev`, an index of [`Outside::mounts`].
    dev: Option<usize>,
    /// Device nodes elsewhere.
    devices: Vec<(PathBuf, OwnedFd)>,
}

/// Which ids a mount shows.
enum Ids<'a> {
    /// Those of the container's user namespace.
    Container,
    /// Others: user and group ids.
    Own(&'a [LinuxIdMapping], &'a [LinuxIdMapping]),
}

impl Outside {
    /// Opens what the bundle names on the host, before the sandbox's first process is made.
    pub(in crate::sandbox) fn open(bundle: &Bundle) -> Result<Self> {
        let own_users = bundle.namespace(LinuxNamespaceType::User).is_some();
        let entries = bundle.spec.mounts().as_deref().unwrap_or_default();
        if !own_users && !entries.iter().any(is_mapped) {
            return Ok(Self::default());
        }
        let mut outside = Self::default();
        let rootfs = bundle.rootfs();
        if own_users && !entries.first().is_some_and(is_overlay_root) {
            let whole = Options { recursive: true, ..Options::default() };
            outside.root = Some(slave(mount::bind(&rootfs, &whole)?)?);
        }
        for (index, entry) in entries.iter().enumerate() {
            let options = Options::parse(entry.options().as_deref().unwrap_or_default());
            let made = if mount::is_bind(entry, &options) && (own_users || is_mapped(entry)) {
                let tree = slave(mount::bind(mount::source(entry)?, &options)?)?;
                if let Some(Ids::Own(uids, gids)) = ids(entry, own_users)? {
                    mount::map_ids(&tree, &id_map::namespace_of(uids, gids)?, options.maps_all_ids)
                        .attempt(|| cannot_map(mount::describe(entry)))?;
                }
                Some(tree)
            } else if own_users && device::is_own_dev(entry) {
                outside.dev = Some(index);
                Some(mount::filesystem("tmpfs", entry.source().as_deref(), &options)?)
            } else if is_mapped(entry) && !(own_users && index == 0 && is_overlay_root(entry)) {
                let what = mount::describe(entry);
                return Err(Error::Invalid(format!("the ids of {what} cannot be mapped: only bind mounts' can")));
            } else {
                None
            };
            outside.mounts.push(made);
        }
        if own_users {
            outside.make_devices(bundle)?;
        }
        Ok(outside)
    }

    fn make_devices(&mut self, bundle: &Bundle) -> Result<()> {
        let devices = bundle.spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
        let dev = match self.dev() {
            Some(dev) => Some(Root(dev.try_clone().attempt(|| "share the mount of /dev")?)),
            None => None,
        };
        if let Some(dev) = &dev {
            device::make_default_nodes(dev)?;
        }
        for wanted in devices {
            match (&dev, wanted.path().strip_prefix("/dev")) {
                (Some(dev), Ok(below)) => device::make(dev, wanted, &Path::new("/").join(below))?,
                _ => self.devices.push((wanted.path().clone(), host_node(wanted.path())?)),
            }
        }
        Ok(())
    }

    fn dev(&self) -> Option<&OwnedFd> {
        self.mounts.get(self.dev?)?.as_ref()
    }

    /// Maps the ids of what was opened to those of the first process's user namespace. Comes back with the root filesystem
    /// where that is an overlay.
    pub(in crate::sandbox) fn finish(&self, bundle: &Bundle, pid: Pid, maps: &IdMaps) -> Result<Option<OwnedFd>> {
        let users = id_map::open(pid)?;
        let entries = bundle.spec.mounts().as_deref().unwrap_or_default();
        for (entry, made) in entries.iter().zip(&self.mounts) {
            if let (Some(tree), Some(Ids::Container)) = (made, ids(entry, true)?) {
                let options = Options::parse(entry.options().as_deref().unwrap_or_default());
                mount::map_ids(tree, &users, options.maps_all_ids).attempt(|| cannot_map(mount::describe(entry)))?;
            }
        }
        if let Some(dev) = self.dev() {
            device::give_to(dev, maps)?;
        }
        let Some(overlay) = entries.first().filter(|first| is_overlay_root(first)) else { return Ok(None) };
        let rootfs = bundle.rootfs();
        match ids(overlay, true)? {
            None => mapped_overlay::mount(&rootfs, overlay, None),
            Some(Ids::Container) => mapped_overlay::mount(&rootfs, overlay, Some((users.as_fd(), maps))),
            Some(Ids::Own(uids, gids)) => {
                let users = id_map::namespace_of(uids, gids)?;
                mapped_overlay::mount(&rootfs, overlay, Some((users.as_fd(), &IdMaps::new(uids, gids))))
            }
        }
        .map(Some)
    }

    /// The root filesystem, where it is a plain directory.
    pub(super) fn root(&self) -> Option<&OwnedFd> {
        self.root.as_ref()
    }

    /// The mount for the entry of `mounts` with this index, where it was made here.
    pub(super) fn mount(&self, index: usize) -> Option<&OwnedFd> {
        self.mounts.get(index)?.as_ref()
    }

    /// Device nodes that are not in a `/dev` made here.
    pub(super) fn devices(&self) -> &[(PathBuf, OwnedFd)] {
        &self.devices
    }
}

/// The host's node of a device that is not in a `/dev` of the sandbox's own.
fn host_node(path: &Path) -> Result<OwnedFd> {
    mount::bind(path, &Options::default()).map_err(|error| {
        Error::Invalid(format!(
            "{error}; in a user namespace a device outside /dev must have the path it has on the host: put it below /dev"
        ))
    })
}

/// Whether a mount shall show other ids than the filesystem has (OCI runtime-spec, "Linux mount options", `idmap`).
fn is_mapped(entry: &Mount) -> bool {
    let options = entry.options().as_deref().unwrap_or_default();
    !is_cgroup(entry)
        && (entry.uid_mappings().is_some()
            || entry.gid_mappings().is_some()
            || options.iter().any(|option| option == "idmap" || option == "ridmap"))
}

/// The ids a mount shall show, if not the filesystem's.
fn ids(entry: &Mount, own_users: bool) -> Result<Option<Ids<'_>>> {
    if !is_mapped(entry) {
        return Ok(None);
    }
    let refuse = |why: &str| {
        let what = entry.destination().display();
        Err(Error::Invalid(format!("the ids of the mount at {what} cannot be mapped: {why}")))
    };
    match (entry.uid_mappings().as_deref(), entry.gid_mappings().as_deref()) {
        (Some(uids), Some(gids)) => Ok(Some(Ids::Own(uids, gids))),
        (None, None) if own_users => Ok(Some(Ids::Container)),
        (None, None) => refuse("it has no mappings, and there is no user namespace whose it could use"),
        _ => refuse("`uidMappings` and `gidMappings` go together"),
    }
}

pub(super) fn cannot_map(what: impl std::fmt::Display) -> String {
    format!("map the ids of {what} (its filesystem and the kernel must know id-mapped mounts, Linux 5.19)")
}

/// What is mounted below it later must not reach the host.
fn slave(tree: OwnedFd) -> Result<OwnedFd> {
    mount::set_propagation(&tree, libc::MS_SLAVE).attempt(|| "cut a mount off the host's")?;
    Ok(tree)
}
