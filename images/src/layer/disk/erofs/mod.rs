//! erofs (the kernel's `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`).

mod format;
mod layout;
mod write;

pub use write::write;
