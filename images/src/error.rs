//! The crate's error: what was attempted, on what, why it failed, and what to do next.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::layer::LayerError;
use crate::platform::Platform;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a file failed.
    #[error("cannot {action} {}: {}", path.display(), explain(error))]
    Io {
        /// What was attempted, in the infinitive.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The text is not an image reference.
    #[error("'{text}' is not an image reference: {reason}")]
    InvalidReference {
        /// As given.
        text: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// No image of that name or id is in the store.
    #[error("image '{reference}' is not here; fetch it with `berth pull {reference}`, or see `berth images`")]
    NotFound {
        /// As given.
        reference: String,
    },
    /// A digest prefix fits several images.
    #[error("'{prefix}' could be any of {}: give more digits", matches.join(", "))]
    Ambiguous {
        /// As given.
        prefix: String,
        /// Digests it fits.
        matches: Vec<String>,
    },
    /// Content is not what its digest says.
    #[error("{what} is damaged: its digest should be {expected} but is {actual}")]
    DigestMismatch {
        /// What was being read.
        what: String,
        /// The digest it was known by.
        expected: Digest,
        /// The digest of what was read.
        actual: Digest,
    },
    /// Content has another length than its descriptor says.
    #[error("{what} should be {expected} bytes long but {actual} came")]
    SizeMismatch {
        /// What was being read.
        what: String,
        /// Bytes, from the descriptor.
        expected: u64,
        /// Bytes read; when too many, reading stopped there.
        actual: u64,
    },
    /// A media type this crate does not know.
    #[error("{what} has the media type '{media_type}', which berth does not know")]
    MediaType {
        /// Which part of the image.
        what: String,
        /// As found.
        media_type: String,
    },
    /// An index offers nothing for the platform.
    #[error("{what} offers no image for {wanted}; it offers {}", offered.join(", "))]
    WrongPlatform {
        /// Which image.
        what: String,
        /// The platform asked for.
        wanted: Platform,
        /// The platforms the index names.
        offered: Vec<String>,
    },
    /// A document is not what it should be.
    #[error("{what} is not valid: {reason}")]
    Invalid {
        /// Which document.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A blob that an image needs is missing from the store.
    #[error("image '{image}' is incomplete: its {part} {digest} is missing; pull or load it again")]
    MissingBlob {
        /// Which image.
        image: String,
        /// Which part of it.
        part: &'static str,
        /// The missing content.
        digest: Digest,
    },
    /// A layer could not be unpacked.
    #[error("cannot unpack layer {digest}: {error}")]
    Layer {
        /// The layer's blob.
        digest: Digest,
        /// Why.
        error: Box<LayerError>,
    },
    /// The image could not be made a disk for a guest kernel.
    #[error("cannot make a disk of image '{image}': {error}")]
    Disk {
        /// Which image.
        image: String,
        /// Why.
        error: Box<LayerError>,
    },
    /// A container needs the image.
    #[error("image '{reference}' is used by container {user}: remove that first, or use --force")]
    InUse {
        /// As given.
        reference: String,
        /// A container that uses it.
        user: String,
    },
    /// Several names point at the image that was to be removed by its id.
    #[error("image {id} has several names ({}): remove them by name, or use --force", names.join(", "))]
    SeveralNames {
        /// As given.
        id: String,
        /// The names.
        names: Vec<String>,
    },
    /// A registry could not be reached, or the connection broke.
    #[error("cannot talk to registry {registry}: {reason}")]
    Connection {
        /// Which registry.
        registry: String,
        /// Why.
        reason: String,
    },
    /// A registry answered with an error.
    #[error("registry {registry} did not {action}: {reason} (HTTP {status})")]
    Registry {
        /// Which registry.
        registry: String,
        /// What it was asked to do.
        action: &'static str,
        /// The HTTP status.
        status: u16,
        /// In its words.
        reason: String,
    },
    /// A registry has no such image.
    #[error("registry {registry} has no {reference}; check the spelling, or `berth login {registry}` if it is private")]
    NotOnRegistry {
        /// Which image or blob.
        reference: String,
        /// Which registry.
        registry: String,
    },
    /// A registry wants credentials, or others.
    #[error(
        "registry {registry} refuses access{} (HTTP {status}); `berth login {registry}` gives it {} credentials",
        if *known { " with the stored credentials" } else { "" },
        if *known { "other" } else { "your" }
    )]
    Unauthorized {
        /// Which registry.
        registry: String,
        /// Whether it was shown credentials.
        known: bool,
        /// The HTTP status.
        status: u16,
    },
    /// A registry does not accept the credentials of a login.
    #[error("registry {registry} does not accept this user name and password")]
    LoginRefused {
        /// Which registry.
        registry: String,
    },
    /// A credential helper failed.
    #[error("docker-credential-{helper} failed: {reason}")]
    Helper {
        /// Its name without `docker-credential-`.
        helper: String,
        /// In its words.
        reason: String,
    },
    /// Containers could not be asked what they use.
    #[error("cannot tell which images containers use: {0}")]
    Users(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Shorthand for `map_err` on system calls.
    pub(crate) fn io<E: Into<io::Error>>(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(E) -> Self {
        move |error| Self::Io { action, path: path.as_ref().to_owned(), error: error.into() }
    }

    /// What a failed request says, down to the cause.
    pub(crate) fn connection(registry: &str, error: &reqwest::Error) -> Self {
        let reason = if error.is_timeout() {
            "it did not answer in time".to_owned()
        } else {
            let mut cause: &dyn std::error::Error = error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            cause.to_string()
        };
        Self::Connection { registry: registry.to_owned(), reason }
    }

    /// Shorthand for a document that does not parse.
    pub(crate) fn invalid(what: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Invalid { what: what.into(), reason: reason.to_string() }
    }
}

/// The system's words, with what to do about a full disk.
pub(crate) fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => {
            "no space is left on the disk; make room, for example with `berth image prune --all`".to_owned()
        }
        Some(libc::EDQUOT) => "the disk quota is used up".to_owned(),
        _ => error.to_string(),
    }
}
