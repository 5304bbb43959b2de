//! What can go wrong in a measurement.

use std::io;
use std::path::PathBuf;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A person has asked for the end.
    #[error("interrupted: what was measured so far is thrown away")]
    Interrupted,
    /// What is asked for makes no sense, or lacks something.
    #[error("{0}")]
    Invalid(String),
    /// A program that was to be measured, or that prepares a measurement, failed.
    #[error("`{command}` failed: {reason}")]
    Failed {
        /// The command line.
        command: String,
        /// What it said.
        reason: String,
    },
    /// A file.
    #[error("cannot {attempt} {}: {source}", path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The system.
    #[error("cannot {attempt}: {source}")]
    System {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The image store.
    #[error(transparent)]
    Images(#[from] berth_images::Error),
    /// Containers.
    #[error(transparent)]
    Engine(#[from] berth_engine::Error),
}

impl Error {
    pub(crate) fn file(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { attempt, path, source }
    }

    pub(crate) fn system<E: Into<io::Error>>(attempt: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { attempt, source: source.into() }
    }
}

/// With [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
