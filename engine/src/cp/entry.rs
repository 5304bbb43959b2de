//! What travels when something is copied: one file, directory or link at a time.

use std::io::Read;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// What is known of a file besides what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
}

/// Capabilities of a program, the one extended attribute that is copied, as docker has it (`capabilities(7)`).
pub(super) const CAPABILITY: &str = "security.capability";

/// What kind of file it is, with what it holds.
pub(super) enum Kind<'a> {
    Directory,
    File {
        /// Bytes.
        size: u64,
        content: &'a mut dyn Read,
        /// The extended attribute [`CAPABILITY`].
        capability: Option<Vec<u8>>,
    },
    /// A symlink to this.
    Symlink(PathBuf),
    /// Another name of a file that came before, by that file's path.
    HardLink(PathBuf),
    /// A fifo, or a device with its number.
    Special {
        format: rustix::fs::FileType,
        device: u64,
    },
}

/// Where entries go.
pub(super) trait Sink {
    /// Takes an entry; `path` has normal components only and is empty for the directory everything goes into.
    fn put(&mut self, path: &Path, meta: Meta, kind: Kind) -> Result<()>;

    /// Completes what needs to know that nothing follows.
    fn finish(&mut self) -> Result<()>;
}

/// Who is to own what is copied.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner {
    /// The same ids, `shift` further on for a user namespace.
    Kept { shift: u32 },
    /// This user and group.
    Fixed { uid: u32, gid: u32 },
}

impl Owner {
    pub(super) fn of(self, meta: &Meta) -> (u32, u32) {
        match self {
            Self::Kept { shift } => (meta.uid.wrapping_add(shift), meta.gid.wrapping_add(shift)),
            Self::Fixed { uid, gid } => (uid, gid),
        }
    }
}

/// A path from a stream, made relative; one that climbs is refused.
pub(super) fn relative(path: &Path) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::Invalid(format!("the stream holds `{}`, a path that climbs", path.display())));
            }
        }
    }
    Ok(clean)
}
