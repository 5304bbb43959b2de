//! ext4, as far as a disk needs it that nobody writes: no journal, no checksums, no indexed directories, no copies of the
//! superblock (the kernel's `Documentation/filesystems/ext4/`).

mod extents;
mod format;
mod layout;
mod write;
mod xattrs;

pub use write::write;
