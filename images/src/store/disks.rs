//! Guests' disks: `disks/<chain id hex>.<format>`, an image's root filesystem as one filesystem, made once for all guests
//! of all images with the same layers.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use super::{Image, Store, Work};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::{DiskFormat, LayerError, detach, run_pack};
use crate::overlay;

/// The disk, in the directory of the work on it.
const DISK: &str = "disk";

impl Store {
    /// The image's root filesystem as a disk that a Linux guest mounts read-only. It is made where it is missing, and removed with
    /// the image.
    pub fn disk(&self, image: &Image, format: DiskFormat) -> Result<PathBuf> {
        let failed = |error| Error::Disk { image: image.reference.clone(), error: Box::new(error) };
        let top = image.layers.last().ok_or_else(|| failed(LayerError::Damaged("it has no layers".to_owned())))?;
        let path = self.disk_path(top.chain_id, format);
        if path.exists() {
            return Ok(path);
        }
        let layers = self.lower_dirs(image)?;
        std::fs::create_dir_all(self.disks_dir()).map_err(Error::io("create", self.disks_dir()))?;
        let work = Work::named_directory(self, &format!("disk-{}.{}", top.chain_id.hex(), format.name()))?;
        // Another process may have been at it until now.
        if path.exists() {
            return Ok(path);
        }
        let unfinished = work.path().join(DISK);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&unfinished);
        let file = file.map_err(Error::io("create", &unfinished))?;
        let tree = overlay::read_only(&layers).map_err(Error::io("join the layers of", &image.reference))?;
        // One layer is no overlay, and so not yet a mount of its own.
        let tree = if layers.len() == 1 { detach(tree, true).map_err(Error::io("open", &layers[0]))? } else { tree };
        let written = file.try_clone().map_err(Error::io("open", &unfinished))?;
        run_pack(self.unpacker(), tree, written, format, self.limits(), work.fd()).map_err(failed)?;
        file.sync_all().map_err(Error::io("write", &unfinished))?;
        std::fs::rename(&unfinished, &path).map_err(Error::io("create", &path))?;
        Ok(path)
    }

    /// Where the disk of the layers up to this one is, or will be.
    fn disk_path(&self, chain_id: Digest, format: DiskFormat) -> PathBuf {
        self.disks_dir().join(format!("{}.{}", chain_id.hex(), format.name()))
    }
}
