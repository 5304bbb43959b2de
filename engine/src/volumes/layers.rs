//! An image's layers seen as one directory, read-only, through a mount that is nowhere in the file system and goes
//! when its descriptor is closed.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

/// Opens the layers, topmost first, as one directory.
pub(super) fn open_merged(layers: &[PathBuf]) -> io::Result<OwnedFd> {
    match layers {
        [] => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the image has no layers",
        )),
        // Overlayfs wants an upper directory or two lower ones.
        [only] => Ok(open(
            only,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?),
        layers => match overlay(layers) {
            // Before Linux 6.5 there is no 'lowerdir+'.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                overlay_by_descriptors(layers)
            }
            result => result,
        },
    }
}

fn overlay(layers: &[PathBuf]) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers {
        fsconfig_set_string(&context, "lowerdir+", layer)?;
    }
    finish(&context)
}

/// All layers in one value, which may have 255 bytes: by the numbers of their descriptors, about a dozen layers.
fn overlay_by_descriptors(layers: &[PathBuf]) -> io::Result<OwnedFd> {
    let open = layers
        .iter()
        .map(File::open)
        .collect::<io::Result<Vec<_>>>()?;
    let names: Vec<String> = open
        .iter()
        .map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd()))
        .collect();
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "lowerdir", names.join(":"))?;
    finish(&context)
}

fn finish(context: &OwnedFd) -> io::Result<OwnedFd> {
    fsconfig_set_flag(context, "ro")?;
    fsconfig_create(context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
