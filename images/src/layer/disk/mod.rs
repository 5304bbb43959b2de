//! An image's root filesystem as a disk for a guest kernel: one filesystem, uncompressed, read-only.
//!
//! The tree to be packed is the image's layers seen through overlayfs, so whiteouts and opaque directories are resolved by the
//! kernel that also resolves them for containers. The same layers always give the same bytes.
//!
//! [`build`] walks the tree (`scan`) and writes it in one of two formats (`erofs`, `ext4`). Each gives everything its place on the disk
//! (`layout`) and then writes from front to back (`write`, on top of `writer`); its `format` says how that is put into bytes.

mod erofs;
mod ext4;
mod scan;
mod writer;

use std::fs::File;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::{LayerError, Limits};

/// Bytes of a block, in both formats.
const BLOCK: u64 = 4096;

/// The filesystem on a guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Made for reading only, and smaller.
    Erofs,
    /// For kernels without erofs.
    Ext4,
}

impl DiskFormat {
    /// What the kernel calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        }
    }
}

/// Packs `tree` into the empty file `disk`. Returns the size of the disk, bytes.
pub(super) fn build(tree: &OwnedFd, disk: File, format: DiskFormat, limits: &Limits) -> Result<u64, LayerError> {
    let nodes = scan::scan(tree, limits)?;
    match format {
        DiskFormat::Erofs => erofs::write(tree, disk, &nodes, limits),
        DiskFormat::Ext4 => ext4::write(tree, disk, &nodes, limits),
    }
}
