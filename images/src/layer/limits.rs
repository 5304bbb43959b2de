//! What a layer may ask for at most.

use serde::{Deserialize, Serialize};

/// Longest path in a layer, bytes: the kernel's `PATH_MAX`.
pub(super) const MAX_PATH: usize = 4096;
/// Largest value of one extended attribute, bytes: the kernel's `XATTR_SIZE_MAX`.
pub(super) const MAX_XATTR: usize = 1 << 16;
/// Largest apparent size of a sparse file, bytes. Holes cost nothing, but tools that read them do.
pub(super) const MAX_SPARSE: u64 = 1 << 40;

/// Bounds on the unpacking of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most bytes the uncompressed archive may have.
    pub max_unpacked: u64,
    /// Most bytes of uncompressed archive for one byte of blob, once it is larger than `ratio_floor`.
    pub max_ratio: u64,
    /// Bytes up to which any ratio is accepted.
    pub ratio_floor: u64,
    /// Most entries in the archive.
    pub max_entries: u64,
    /// Bytes that must stay free on the file system.
    pub min_free: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_unpacked: 128 << 30,
            max_ratio: 1000,
            ratio_floor: 1 << 30,
            max_entries: 8_000_000,
            min_free: 16 << 20,
        }
    }
}
