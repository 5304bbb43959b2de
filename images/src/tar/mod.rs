//! A streaming tar reader: POSIX ustar and pax, GNU and v7 headers, every size bounded.
//!
//! It hands out entries as they are in the archive and judges nothing; what an entry may do is decided by whoever
//! applies it. Format: POSIX.1-2017 `pax`, and the GNU tar manual's "Basic Tar Format" and "Storing Sparse Files".

mod header;
mod pax;
mod reader;
mod sparse;

pub use reader::Reader;
pub use sparse::Extent;

/// Longest PAX extended header, bytes: room for a full set of extended attributes.
const MAX_PAX: u64 = 1 << 20;
/// Longest GNU long name, bytes: twice the kernel's `PATH_MAX`, so that a path too long is reported as such.
const MAX_LONG_NAME: u64 = 8192;
/// Most extents of one sparse file: bounds the memory its map takes to 16 MiB.
const MAX_EXTENTS: usize = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// A type flag that is none of these.
    Unknown(u8),
}

/// One entry. Names are bytes, as on disk.
#[derive(Debug, Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since the epoch.
    pub mtime: i64,
    /// Nanoseconds after `mtime`.
    pub mtime_nanos: u32,
    /// Bytes of data in the archive.
    pub size: u64,
    /// Where the data belongs in a sparse file of `real_size` bytes.
    pub extents: Option<Vec<Extent>>,
    /// Apparent size of the file, bytes.
    pub real_size: u64,
    pub device: (u32, u32),
    /// Extended attributes: name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why an archive cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Damaged(String),
    #[error("the archive is truncated")]
    Truncated,
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl Error {
    fn damaged(reason: impl Into<String>) -> Self {
        Self::Damaged(reason.into())
    }
}

type Result<T> = std::result::Result<T, Error>;
