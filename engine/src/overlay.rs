//! Layers seen as one directory, through an overlay mount that is attached nowhere and goes with its descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

/// The layers, topmost first, to be read.
pub(crate) fn read_only<'a>(layers: impl IntoIterator<Item = &'a PathBuf>) -> io::Result<OwnedFd> {
    let layers: Vec<&PathBuf> = layers.into_iter().collect();
    match layers.as_slice() {
        [] => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "there are no layers",
        )),
        // Overlayfs wants an upper directory or two lower ones.
        [only] => Ok(open(
            *only,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?),
        layers => mount(layers, None),
    }
}

/// The layers, topmost first, with a directory that takes what is written.
pub(crate) fn writable(layers: &[PathBuf], upper: &Path, work: &Path) -> io::Result<OwnedFd> {
    mount(&layers.iter().collect::<Vec<_>>(), Some((upper, work)))
}

fn mount(layers: &[&PathBuf], upper: Option<(&Path, &Path)>) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Older kernels look the layers up only when the mount is created: until then these must stay open.
    let _open = match layers
        .iter()
        .try_for_each(|layer| fsconfig_set_string(&context, "lowerdir+", *layer))
    {
        // Before Linux 6.5 there is no `lowerdir+`.
        Err(Errno::INVAL) => set_all_layers(&context, layers)?,
        other => other.map(|()| Vec::new())?,
    };
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if let Some((upper, work)) = upper {
        fsconfig_set_string(&context, "upperdir", upper)?;
        fsconfig_set_string(&context, "workdir", work)?;
    } else {
        fsconfig_set_flag(&context, "ro")?;
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// All layers in one value, which may have 255 bytes: by the numbers of their descriptors, about a dozen layers.
fn set_all_layers(context: &OwnedFd, layers: &[&PathBuf]) -> io::Result<Vec<File>> {
    let open = layers
        .iter()
        .map(File::open)
        .collect::<io::Result<Vec<_>>>()?;
    let names: Vec<String> = open
        .iter()
        .map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd()))
        .collect();
    fsconfig_set_string(context, "lowerdir", names.join(":"))?;
    Ok(open)
}
