//! From the mounts that a person asked for to paths on the host: volumes are made and filled, bind sources checked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use rustix::fs::{FlockOperation, flock};

use crate::options::{Filesystem, Mount, MountSource, Options};
use crate::spec::clean_target;

use super::{DATA, Error, Store, copy, is_current, open_dir, random_name, write_meta};

const FILLING: &str = "_data.tmp";

/// A mount whose source is known on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedMount {
    /// Where in the container, absolute.
    pub target: String,
    /// What is mounted there.
    pub source: ResolvedSource,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// What a [`ResolvedMount`] shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolvedSource {
    /// A directory or file of the host, or a volume's contents.
    Path {
        /// Absolute.
        path: PathBuf,
        /// `private`, `rprivate`, `shared`, `rshared`, `slave`, `rslave`
        propagation: Option<String>,
        /// Whether it holds the container's ids, in a user namespace too: volumes do, so that containers with different ids
        /// can share one.
        idmap: bool,
    },
    /// Memory.
    Tmpfs {
        /// Mount options.
        options: Vec<String>,
    },
    /// A disk.
    Disk {
        /// Absolute path of a file or block device.
        path: PathBuf,
        /// What is on it.
        filesystem: Filesystem,
    },
}

/// The mounts of one container.
#[derive(Debug)]
pub struct Resolved {
    /// In the order of the options.
    pub mounts: Vec<ResolvedMount>,
    /// The names of the volumes made for this container alone, which go with it.
    pub anonymous: Vec<String>,
    /// Keeps the volumes from being removed: hold it until the container's record is written.
    pub locks: Vec<File>,
}

impl Store {
    /// Resolves the mounts of a container that is being made.
    ///
    /// `options.mounts` afterwards holds the image's volumes too, and every volume has a name. A volume that no
    /// container has had yet is filled with what the image has at its place.
    pub fn resolve(
        &self,
        id: &str,
        options: &mut Options,
        image: &ImageConfiguration,
        lower_dirs: &[PathBuf],
    ) -> Result<Resolved, Error> {
        // A guest's volumes would be disks of its own; what an image declares stays on its root filesystem.
        if !options.has_own_kernel() {
            add_image_volumes(options, image)?;
        }
        let anonymous = name_volumes(&mut options.mounts)?;
        // By name: two commands that want the same volumes lock them in the same order.
        let mut volumes: BTreeMap<&str, (&str, bool)> = BTreeMap::new();
        for mount in &options.mounts {
            if let MountSource::Volume { name: Some(name), no_copy } = &mount.source {
                volumes.entry(name).or_insert((&mount.target, *no_copy));
            }
        }
        let mut locks = Vec::with_capacity(volumes.len());
        for (name, (target, no_copy)) in volumes {
            let owner = anonymous.iter().any(|own| own == name).then_some(id);
            let layers = if no_copy { &[] } else { lower_dirs };
            locks.push(self.acquire(name, owner, &clean_target(target)?, layers)?);
        }
        let mounts = options.mounts.iter().map(|mount| self.locate(mount)).collect::<Result<_, _>>()?;
        Ok(Resolved { mounts, anonymous, locks })
    }

    /// Makes the volume if need be, fills it if it is new, and returns it locked against removal.
    fn acquire(&self, name: &str, owner: Option<&str>, target: &Path, layers: &[PathBuf]) -> Result<File, Error> {
        let path = self.path(name);
        loop {
            let Some(dir) = open_dir(&path)? else {
                self.make(name, BTreeMap::new(), owner)?;
                continue;
            };
            let lock = |how| flock(&dir, how).map_err(Error::io("lock", &path));
            lock(FlockOperation::LockShared)?;
            if is_current(&dir, &path)? && self.get(name)?.used {
                return Ok(dir);
            }
            // Between the two locks another command may fill or remove it, so everything is looked at again.
            lock(FlockOperation::LockExclusive)?;
            if !is_current(&dir, &path)? {
                continue;
            }
            let mut volume = self.get(name)?;
            if !volume.used {
                fill(&path, name, target, layers)?;
                volume.used = true;
                volume.mountpoint = PathBuf::new();
                write_meta(&path, &volume)?;
            }
            lock(FlockOperation::LockShared)?;
            if is_current(&dir, &path)? {
                return Ok(dir);
            }
        }
    }

    fn locate(&self, mount: &Mount) -> Result<ResolvedMount, Error> {
        let source = match &mount.source {
            MountSource::Volume { name, .. } => ResolvedSource::Path {
                path: self.path(name.as_deref().unwrap_or_default()).join(DATA),
                propagation: None,
                idmap: true,
            },
            MountSource::Tmpfs { options } => ResolvedSource::Tmpfs { options: options.clone() },
            MountSource::Bind { path, create, propagation, idmap } => {
                match fs::metadata(path) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound && *create => {
                        fs::create_dir_all(path).map_err(Error::io("make", path))?;
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Err(Error::BindMissing { path: path.clone() });
                    }
                    Err(error) => return Err(Error::io("look up", path)(error)),
                }
                ResolvedSource::Path { path: path.clone(), propagation: propagation.clone(), idmap: *idmap }
            }
            MountSource::Disk { path, filesystem } => {
                let kind = fs::metadata(path).map_err(Error::io("look up", path))?.file_type();
                if !kind.is_file() && !kind.is_block_device() {
                    return Err(Error::NoDisk { path: path.clone() });
                }
                ResolvedSource::Disk { path: path.clone(), filesystem: *filesystem }
            }
        };
        Ok(ResolvedMount { target: mount.target.clone(), source, read_only: mount.read_only })
    }
}

/// Adds an anonymous volume for each `VOLUME` of the image that the person has mounted nothing on.
fn add_image_volumes(options: &mut Options, image: &ImageConfiguration) -> Result<(), Error> {
    let declared = image.config().as_ref().and_then(|config| config.volumes().clone()).unwrap_or_default();
    let mut targets = declared.iter().map(|target| clean_target(target)).collect::<Result<Vec<_>, _>>()?;
    targets.sort();
    targets.dedup();
    let mut taken = options.mounts.iter().map(|mount| clean_target(&mount.target)).collect::<Result<Vec<_>, _>>()?;
    taken.sort();
    options.mounts.extend(targets.into_iter().filter(|target| taken.binary_search(target).is_err()).map(|target| {
        Mount {
            target: target.to_string_lossy().into_owned(),
            source: MountSource::Volume { name: None, no_copy: false },
            read_only: false,
        }
    }));
    Ok(())
}

/// Gives each anonymous volume a name; returns those names.
fn name_volumes(mounts: &mut [Mount]) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for mount in mounts {
        if let MountSource::Volume { name: name @ None, .. } = &mut mount.source {
            let new = random_name()?;
            *name = Some(new.clone());
            names.push(new);
        }
    }
    Ok(names)
}

/// Fills a new volume with what the image has at `target`; the contents appear whole or not at all.
fn fill(volume: &Path, name: &str, target: &Path, layers: &[PathBuf]) -> Result<(), Error> {
    let data = volume.join(DATA);
    let filling = volume.join(FILLING);
    match fs::remove_dir_all(&filling) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("remove", &filling)(error));
        }
        _ => {}
    }
    // A person may have put files there before the first container came.
    let mut present = fs::read_dir(&data).map_err(Error::io("list", &data))?;
    if layers.is_empty() || present.next().is_some() {
        return Ok(());
    }
    if copy::from_image(layers, target, &filling, name)? {
        fs::rename(&filling, &data).map_err(Error::io("fill", &data))?;
    }
    Ok(())
}
