//! Layers: one from a blob to a directory, all of an image to a guest's disk.
//!
//! [`unpack`] joins decompression (`decode`, one thread) and file system work (`extract`, another). The store runs it in a
//! process of its own (`worker`) behind walls (`confine`), because what it reads comes from strangers. The same process makes
//! the disk (`disk`).

mod confine;
mod decode;
mod disk;
mod error;
mod extract;
mod limits;
mod lowers;
mod metadata;
mod remove;
mod tree;
mod worker;

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread;

use rustix::fs::{Mode, OFlags, openat2};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::tar;
use decode::Stop;
use lowers::Lowers;

pub(crate) use confine::detach;
pub use disk::DiskFormat;
pub use error::LayerError;
pub use limits::Limits;
pub(crate) use lowers::{CONTENT, INSIDE, read_opaque};
pub(crate) use remove::remove_all;
pub use worker::{UNPACK_COMMAND, Unpacker, unpack_worker_main};
pub(crate) use worker::{run, run_pack};

/// What is to be unpacked, and where.
pub(crate) struct Job<'a> {
    pub blob: File,
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the uncompressed content, where known.
    pub diff_id: Option<Digest>,
    /// The layer's directory, with an empty directory [`CONTENT`] in it.
    pub directory: OwnedFd,
    /// Directories of the layers below, topmost first.
    pub lowers: Vec<BorrowedFd<'a>>,
    /// Gives one byte when the layers below are complete, end of file if one failed; `None`: they are.
    pub gate: Option<File>,
    pub limits: Limits,
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unpacked {
    pub diff_id: Digest,
    /// Bytes of file content.
    pub size: u64,
}

/// Unpacks one layer on two threads.
fn unpack(job: Job<'_>) -> Result<Unpacked, LayerError> {
    let Job { blob, digest, diff_id, directory, lowers, gate, limits } = job;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let content = openat2(&directory, CONTENT, flags, Mode::empty(), INSIDE)
        .map_err(LayerError::io("open", b"the layer's directory"))?;
    let (producer, consumer) = decode::pipe();
    let (decoded, extracted) = thread::scope(|scope| {
        let limits = &limits;
        let directory = &directory;
        let extractor = scope.spawn(move || {
            own_umask()?;
            extract::extract(consumer, directory, content, Lowers::new(lowers, gate), limits)
        });
        let decoded = decode::decode(blob, limits, &producer);
        drop(producer);
        (decoded, extractor.join().unwrap_or_else(|_| Err(LayerError::Worker("it panicked".to_owned()))))
    });
    let (decoded, size) = match (decoded, extracted) {
        // A decoding error shows as a truncated archive on the other side.
        (Err(Stop::Failed(error)), _) | (Err(Stop::ConsumerGone), Err(error)) => return Err(error),
        (Err(Stop::ConsumerGone), Ok(_)) => return Err(LayerError::Truncated),
        (Ok(decoded), extracted) => {
            check("digest", digest, decoded.blob)?;
            let size = extracted?;
            if let Some(diff_id) = diff_id {
                check("diff id", diff_id, decoded.diff_id)?;
            }
            (decoded, size)
        }
    };
    Ok(Unpacked { diff_id: decoded.diff_id, size })
}

fn check(what: &str, expected: Digest, actual: Digest) -> Result<(), LayerError> {
    if expected == actual {
        Ok(())
    } else {
        Err(LayerError::DigestMismatch { what: what.to_owned(), expected, actual })
    }
}

/// Gives this thread a file mode mask of its own, zero: modes are then right from a file's creation on.
fn own_umask() -> Result<(), LayerError> {
    // SAFETY: only the thread's umask, root and working directory are unshared, no descriptors.
    unsafe { unshare_unsafe(UnshareFlags::FS) }.map_err(LayerError::io("unshare", b"the file mode mask"))?;
    rustix::process::umask(Mode::empty());
    Ok(())
}

impl From<tar::Error> for LayerError {
    fn from(error: tar::Error) -> Self {
        match error {
            tar::Error::Damaged(reason) => Self::Damaged(reason),
            tar::Error::Truncated => Self::Truncated,
            tar::Error::Io(error) => Self::io("read", b"the archive")(error),
        }
    }
}
