//! An image's root filesystem as a disk for a guest kernel: one erofs filesystem, uncompressed, read-only.
//!
//! The tree to be packed is the image's layers seen through overlayfs, so whiteouts and opaque directories are resolved by the
//! kernel that also resolves them for containers. The same layers always give the same bytes.
//!
//! [`build`] walks the tree (`scan`), gives everything its place on the disk (`layout`) and writes it (`write`); `format` is how
//! erofs puts it into bytes (the kernel's `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`).

mod format;
mod layout;
mod scan;
mod write;

use std::fs::File;
use std::os::fd::OwnedFd;

use super::{LayerError, Limits};

/// Packs `tree` into the empty file `disk`. Returns the size of the disk, bytes.
pub(super) fn build(tree: &OwnedFd, disk: File, limits: &Limits) -> Result<u64, LayerError> {
    let mut nodes = scan::scan(tree, limits)?;
    let size = layout::place(&mut nodes)?;
    write::check_space(&disk, &nodes, limits)?;
    write::write(tree, disk, &nodes, size)?;
    Ok(size)
}
