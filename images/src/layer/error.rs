//! Why a layer could not be unpacked. It crosses from the worker process to the store, so it is plain data.

use std::io;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::explain;

/// Why a layer could not be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LayerError {
    /// A system call failed.
    #[error("cannot {action} '{path}': {reason}")]
    Io {
        /// What was attempted, in the infinitive.
        action: String,
        /// The path in the image.
        path: String,
        /// Why it failed.
        reason: String,
    },
    /// There is no room.
    #[error("no space is left on the disk; make room, for example with `berth image prune --all`")]
    DiskFull,
    /// An entry is refused.
    #[error("its entry '{path}' {reason}")]
    Entry {
        /// The entry's name.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The bytes are no tar archive, or are not compressed as they claim.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// The blob ends too early.
    #[error("the archive is truncated")]
    Truncated,
    /// It grows beyond the limits: a decompression bomb.
    #[error("it unpacks to more than {0}; berth takes it for a decompression bomb")]
    TooLarge(String),
    /// The blob or its content is not what its digest says.
    #[error("its {what} should be {expected} but is {actual}")]
    DigestMismatch {
        /// `digest`, or `diff id`, which is the digest of the uncompressed content.
        what: String,
        /// From the manifest or the configuration.
        expected: Digest,
        /// Of what was read.
        actual: Digest,
    },
    /// A layer below could not be unpacked.
    #[error("a layer below it could not be unpacked")]
    Below,
    /// The worker process failed.
    #[error("the unpacking process failed: {0}")]
    Worker(String),
}

impl LayerError {
    /// Shorthand for `map_err` on system calls.
    pub(super) fn io<E: Into<io::Error>>(action: &'static str, path: &[u8]) -> impl FnOnce(E) -> Self {
        move |error| {
            let error = error.into();
            if error.raw_os_error() == Some(libc::ENOSPC) {
                return Self::DiskFull;
            }
            Self::Io { action: action.to_owned(), path: show(path), reason: explain(&error) }
        }
    }

    /// An entry is refused.
    pub(super) fn entry(path: &[u8], reason: impl Into<String>) -> Self {
        Self::Entry { path: show(path), reason: reason.into() }
    }
}

/// A name from an archive for an error message: printable and of bounded length.
fn show(path: &[u8]) -> String {
    const LONGEST: usize = 200;
    let mut text: String = path[..path.len().min(LONGEST)].escape_ascii().to_string();
    if path.len() > LONGEST {
        text.push('…');
    }
    text
}
