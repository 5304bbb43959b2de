//! The root filesystem as the process will see it: mounted, populated and made the root, inside the sandbox's own
//! mount namespace.

mod cgroup_mount;
mod device;
mod mask;
mod mount;
mod options;

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{fchdir, pivot_root};
use oci_spec::runtime::{LinuxNamespaceType, Mount};
use rustix::fs::OFlags;

use crate::bundle::Bundle;
use crate::error::{Attempt as _, Error, Result};
pub(super) use device::bind_console;
pub(super) use mount::{Root, read_only_copy, set_attributes};

/// Mounts everything the bundle names that does not depend on the control group. Paths of the host are still there.
pub(super) fn mount_all(bundle: &Bundle) -> Result<Root> {
    let propagation = propagation(bundle)?;
    // The root's parent must not be shared, or `pivot_root` refuses; and nothing mounted here may reach the host.
    let host = if propagation.contains(MsFlags::MS_SHARED) { MsFlags::MS_SLAVE } else { propagation };
    nix::mount::mount(None::<&str>, "/", None::<&str>, host | MsFlags::MS_REC, None::<&str>)
        .attempt(|| "cut the mount namespace off the host's")?;
    let mounts = bundle.spec.mounts().as_deref().unwrap_or_default();
    let rootfs = bundle.rootfs();
    let point = mount::open_directory(&rootfs)?;
    let rest = match mounts.split_first() {
        Some((first, rest)) if is_overlay_root(first) => {
            mount::overlay(&point, first)?;
            rest
        }
        _ => {
            nix::mount::mount(Some(&rootfs), &rootfs, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
                .attempt(|| format!("bind the root filesystem {}", rootfs.display()))?;
            mounts
        }
    };
    let root = Root(mount::open_directory(&rootfs)?);
    nix::mount::mount(None::<&str>, &rootfs, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)
        .attempt(|| "make the root filesystem's mount private")?;
    for entry in rest.iter().filter(|entry| !cgroup_mount::is_cgroup(entry)) {
        mount::mount(&root, entry)?;
    }
    Ok(root)
}

/// Mounts the control groups, after the process has joined its own, and makes the device nodes.
pub(super) fn finish(bundle: &Bundle, root: &Root) -> Result<()> {
    let mounts = bundle.spec.mounts().as_deref().unwrap_or_default();
    for entry in mounts.iter().filter(|entry| cgroup_mount::is_cgroup(entry)) {
        cgroup_mount::mount(root, entry, bundle.namespace(LinuxNamespaceType::Cgroup).is_some())?;
    }
    let dev = mounts.iter().find(|entry| entry.destination() == Path::new("/dev"));
    let dev_is_ours = dev.is_some_and(|entry| entry.typ().as_deref() == Some("tmpfs"));
    let own_users = bundle.namespace(LinuxNamespaceType::User).is_some();
    if dev_is_ours {
        device::make_defaults(root, own_users)?;
    }
    let devices = bundle.spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    devices.iter().try_for_each(|device| device::make(root, device, own_users))
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

/// An overlay with destination `/` is the root filesystem itself: mounted here, it never shows on the host.
fn is_overlay_root(entry: &Mount) -> bool {
    entry.destination() == Path::new("/") && entry.typ().as_deref() == Some("overlay")
}

fn propagation(bundle: &Bundle) -> Result<MsFlags> {
    let wanted = bundle.spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    match wanted {
        None | Some("") => Ok(MsFlags::MS_SLAVE | MsFlags::MS_REC),
        Some(name) => options::propagation(name)
            .ok_or_else(|| Error::Invalid(format!("`linux.rootfsPropagation` cannot be `{name}`"))),
    }
}
