//! The root filesystem as the process will see it: mounted, populated and made the root, inside the sandbox's own
//! mount namespace.

mod cgroup_mount;
mod device;
mod mapped_overlay;
mod mask;
mod mount;
mod options;
mod outside;

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{fchdir, pivot_root};
use oci_spec::runtime::{LinuxNamespaceType, Mount};
use rustix::fs::OFlags;

use crate::bundle::Bundle;
use crate::error::{Attempt as _, Error, Result};
pub(super) use device::bind_console;
pub(super) use mount::{Root, read_only_copy, set_attributes};
pub(super) use outside::Outside;

/// Mounts everything the bundle names that does not depend on the control group. Paths of the host are still there.
/// `outside`: what the maker has mounted; `overlay`: a root filesystem that it has put together.
pub(super) fn mount_all(bundle: &Bundle, outside: &Outside, overlay: Option<&OwnedFd>) -> Result<Root> {
    let propagation = propagation(bundle)?;
    // The root's parent must not be shared, or `pivot_root` refuses; and nothing mounted here may reach the host.
    let host = if propagation.contains(MsFlags::MS_SHARED) { MsFlags::MS_SLAVE } else { propagation };
    nix::mount::mount(None::<&str>, "/", None::<&str>, host | MsFlags::MS_REC, None::<&str>)
        .attempt(|| "cut the mount namespace off the host's")?;
    let root = match overlay.or(outside.root()) {
        Some(made) => attach_root(made)?,
        None => mount_root(bundle)?,
    };
    let mounts = bundle.spec.mounts().as_deref().unwrap_or_default();
    let above_root = usize::from(mounts.first().is_some_and(is_root));
    for (index, entry) in mounts.iter().enumerate().skip(above_root) {
        if !cgroup_mount::is_cgroup(entry) {
            mount::mount(&root, entry, outside.mount(index))?;
        }
    }
    Ok(root)
}

/// Mounts the root filesystem over the bundle's directory for it.
fn mount_root(bundle: &Bundle) -> Result<Root> {
    let first = bundle.spec.mounts().as_deref().and_then(<[Mount]>::first);
    if let Some(first) = first.filter(|first| is_root(first) && !is_overlay_root(first)) {
        let options = options::Options::parse(first.options().as_deref().unwrap_or_default());
        let kind = first.typ().as_deref().unwrap_or("none");
        return attach_root(&mount::filesystem(kind, first.source().as_deref(), &options)?);
    }
    let rootfs = bundle.rootfs();
    let point = mount::open_directory(&rootfs)?;
    match first {
        Some(first) if is_overlay_root(first) => mount::overlay(&point, first, mount::open_layer)?,
        _ => nix::mount::mount(Some(&rootfs), &rootfs, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .attempt(|| format!("bind the root filesystem {}", rootfs.display()))?,
    }
    let root = Root(mount::open_directory(&rootfs)?);
    nix::mount::mount(None::<&str>, &rootfs, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)
        .attempt(|| "make the root filesystem's mount private")?;
    Ok(root)
}

/// Attaches a root filesystem that the maker has mounted: over the host's root, as the bundle's directory may be out of reach
/// for a process in a user namespace.
fn attach_root(made: &OwnedFd) -> Result<Root> {
    let point = mount::open_directory(Path::new("/"))?;
    mount::attach(made, &point).attempt(|| "mount the root filesystem")?;
    mount::change_propagation(made, MsFlags::MS_PRIVATE).attempt(|| "make the root filesystem's mount private")?;
    Ok(Root(made.try_clone().attempt(|| "share the root filesystem")?))
}

/// Mounts the control groups, after the process has joined its own, and makes the device nodes.
pub(super) fn finish(bundle: &Bundle, root: &Root, outside: &Outside) -> Result<()> {
    let mounts = bundle.spec.mounts().as_deref().unwrap_or_default();
    for entry in mounts.iter().filter(|entry| cgroup_mount::is_cgroup(entry)) {
        cgroup_mount::mount(root, entry, bundle.namespace(LinuxNamespaceType::Cgroup).is_some())?;
    }
    let own_users = bundle.namespace(LinuxNamespaceType::User).is_some();
    if mounts.iter().any(device::is_own_dev) {
        let dev = root.open(Path::new("/dev"), OFlags::PATH | OFlags::DIRECTORY).attempt(|| "open /dev")?;
        let dev = Root(dev);
        if !own_users {
            device::make_default_nodes(&dev)?;
        }
        device::make_links(&dev)?;
    }
    if own_users {
        for (path, node) in outside.devices() {
            let point = root.mount_point(path, mount::Kind::File)?;
            mount::attach(node, &point).attempt(|| format!("bind the device {}", path.display()))?;
        }
        return Ok(());
    }
    let devices = bundle.spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    devices.iter().try_for_each(|device| device::make(root, device, device.path()))
}

/// Makes `root` the root directory and lets go of the host's (`pivot_root(2)`, the part on `pivot_root(".", ".")`).
pub(super) fn change_root(root: &Root) -> Result<()> {
    fchdir(&root.0).attempt(|| "enter the root filesystem")?;
    pivot_root(".", ".").attempt(|| "make the root filesystem the root (pivot_root)")?;
    umount2(".", MntFlags::MNT_DETACH).attempt(|| "let go of the host's root")?;
    nix::unistd::chdir("/").attempt(|| "enter the new root")
}

/// Masks, write-protects and shares what the bundle asks for, from inside the new root.
pub(super) fn seal(bundle: &Bundle) -> Result<()> {
    if let Some(linux) = bundle.spec.linux() {
        mask::read_only(linux.readonly_paths().as_deref().unwrap_or_default())?;
        mask::mask(linux.masked_paths().as_deref().unwrap_or_default())?;
    }
    if bundle.spec.root().as_ref().is_some_and(|root| root.readonly().unwrap_or(false)) {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty())
            .attempt(|| "open the root")?;
        set_attributes(&root, options::attr::RDONLY, 0, false).attempt(|| "make the root filesystem read-only")?;
    }
    let flags = propagation(bundle)?;
    if flags.intersects(MsFlags::MS_SHARED | MsFlags::MS_UNBINDABLE) {
        nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
            .attempt(|| "set the root filesystem's propagation")?;
    }
    Ok(())
}

/// A first mount with destination `/` is the root filesystem.
fn is_root(entry: &Mount) -> bool {
    entry.destination() == Path::new("/")
}

/// An overlay with destination `/` is the root filesystem itself: mounted here, it never shows on the host.
fn is_overlay_root(entry: &Mount) -> bool {
    is_root(entry) && entry.typ().as_deref() == Some("overlay")
}

fn propagation(bundle: &Bundle) -> Result<MsFlags> {
    let wanted = bundle.spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    match wanted {
        None | Some("") => Ok(MsFlags::MS_SLAVE | MsFlags::MS_REC),
        Some(name) => options::propagation(name)
            .ok_or_else(|| Error::Invalid(format!("`linux.rootfsPropagation` cannot be `{name}`"))),
    }
}
