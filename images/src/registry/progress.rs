//! What a pull or push tells while it runs.

use crate::digest::Digest;

/// One step of a pull or push. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A blob will be moved; `done` of it were here from an earlier try.
    Started {
        /// Which blob.
        digest: Digest,
        /// Its size.
        size: u64,
        /// Bytes that need not be moved again.
        done: u64,
    },
    /// So much more of a blob was moved.
    Moved {
        /// Which blob.
        digest: Digest,
        /// Since the last event.
        bytes: u64,
    },
    /// What was moved of a blob is void; it starts from its beginning.
    Restarted {
        /// Which blob.
        digest: Digest,
    },
    /// A blob is where it belongs.
    Finished {
        /// Which blob.
        digest: Digest,
    },
    /// A blob is where it belongs already.
    Exists {
        /// Which blob.
        digest: Digest,
    },
    /// A try failed; there will be another one.
    Retrying {
        /// Why.
        reason: String,
    },
}

/// Takes the events of a pull or push, from several threads.
pub trait Progress: Send + Sync {
    /// Something happened.
    fn report(&self, event: Event);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn report(&self, _: Event) {}
}
