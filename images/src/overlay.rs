//! Layers seen as one directory, through an overlay mount that is attached nowhere and goes with its descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

/// The layers, topmost first, to be read.
pub fn read_only<'a>(layers: impl IntoIterator<Item = &'a PathBuf>) -> io::Result<OwnedFd> {
    let layers: Vec<&PathBuf> = layers.into_iter().collect();
    match layers.as_slice() {
        [] => Err(io::Error::new(io::ErrorKind::InvalidInput, "there are no layers")),
        // Overlayfs wants an upper directory or two lower ones.
        [only] => Ok(open(*only, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?),
        layers => mount(layers, None),
    }
}

/// The layers, topmost first, with a directory that takes what is written.
pub fn writable(layers: &[PathBuf], upper: &Path, work: &Path) -> io::Result<OwnedFd> {
    mount(&layers.iter().collect::<Vec<_>>(), Some((upper, work)))
}

fn mount(layers: &[&PathBuf], upper: Option<(&Path, &Path)>) -> io::Result<OwnedFd> {
    match mount_with(set_each_layer, layers, upper) {
        // Before Linux 6.5 there is no `lowerdir+`, which those kernels notice only when the mount is created.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            mount_with(set_all_layers, layers, upper)
        }
        result => result,
    }
}

/// Tells the mount to be its layers; returns what must stay open until it is created.
type SetLayers = fn(&OwnedFd, &[&PathBuf]) -> io::Result<Vec<File>>;

fn mount_with(set_layers: SetLayers, layers: &[&PathBuf], upper: Option<(&Path, &Path)>) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let _open = set_layers(&context, layers)?;
    let mut attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if let Some((upper, work)) = upper {
        fsconfig_set_string(&context, "upperdir", upper)?;
        fsconfig_set_string(&context, "workdir", work)?;
    } else {
        fsconfig_set_flag(&context, "ro")?;
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn set_each_layer(context: &OwnedFd, layers: &[&PathBuf]) -> io::Result<Vec<File>> {
    layers.iter().try_for_each(|layer| fsconfig_set_string(context, "lowerdir+", *layer))?;
    Ok(Vec::new())
}

/// All layers in one value, which may have 255 bytes: by the numbers of their descriptors, about a dozen layers.
fn set_all_layers(context: &OwnedFd, layers: &[&PathBuf]) -> io::Result<Vec<File>> {
    let open = layers.iter().map(File::open).collect::<io::Result<Vec<_>>>()?;
    let names: Vec<String> = open.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect();
    fsconfig_set_string(context, "lowerdir", names.join(":"))?;
    Ok(open)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;

    use super::*;

    #[test]
    fn layers_can_be_named_by_descriptor_as_old_kernels_need() {
        let dir = tempfile::tempdir().unwrap();
        let layers = ["top", "base"].map(|name| dir.path().join(name));
        for layer in &layers {
            fs::create_dir(layer).unwrap();
            fs::write(layer.join("both"), layer.file_name().unwrap().as_encoded_bytes()).unwrap();
        }
        fs::write(layers[1].join("below"), "below").unwrap();

        let view = mount_with(set_all_layers, &layers.iter().collect::<Vec<_>>(), None).unwrap();

        for (name, expected) in [("both", "top"), ("below", "below")] {
            let file = rustix::fs::openat(&view, name, OFlags::RDONLY, Mode::empty()).unwrap();
            let mut text = String::new();
            File::from(file).read_to_string(&mut text).unwrap();
            assert_eq!(text, expected);
        }
    }
}
