//! What can go wrong with a volume or a bind mount.

use std::io;
use std::path::{Path, PathBuf};

/// Why a volume could not be made, found, filled or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a volume name.
    #[error(
        "'{name}' is no volume name: use 2 to 255 letters, digits, '_', '.' and '-', beginning with a letter or digit, \
         for example data; a directory of the host is given by its absolute path"
    )]
    Name {
        /// As it was given.
        name: String,
    },
    /// No such volume.
    #[error("there is no volume '{name}': see 'berth volume ls'")]
    NotFound {
        /// Its name.
        name: String,
    },
    /// Its `volume.json` says nothing sensible.
    #[error("the record of volume '{name}', '{}', is broken: {source}; save what you need of the volume and remove it with 'berth volume rm {name}'", path.display())]
    Broken {
        /// Its name.
        name: String,
        /// Its `volume.json`.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A container has it.
    #[error("volume '{name}' is in use by {}: remove that first", .users.join(", "))]
    InUse {
        /// Its name.
        name: String,
        /// Containers, or the command that is making one.
        users: Vec<String>,
    },
    /// The source of a `--mount type=bind` does not exist.
    #[error("--mount: '{}' does not exist: make it first, or use --volume, which makes a directory", path.display())]
    BindMissing {
        /// Path on the host.
        path: PathBuf,
    },
    /// The source of a `--mount type=ext4` is a directory, a socket, and so on.
    #[error(
        "--mount: '{}' is no disk: give a file with a filesystem in it (mke2fs -t ext4 FILE 1g makes one), or a block device",
        path.display()
    )]
    NoDisk {
        /// Path on the host.
        path: PathBuf,
    },
    /// The image has something else than a directory where the volume goes.
    #[error("the image has no directory at '{}' but something else: mount volume '{name}' elsewhere", path.display())]
    NotADirectory {
        /// The volume.
        name: String,
        /// Path in the image.
        path: PathBuf,
    },
    /// A mount target or image volume that cannot be used.
    #[error(transparent)]
    Target(#[from] crate::spec::Error),
    /// The system refused.
    #[error("cannot {action} '{}': {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: the system refused `action` on `path`.
    pub(super) fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source: source.into() }
    }
}
