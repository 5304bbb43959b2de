//! The image store: an OCI image layout on disk that many processes share.
//!
//! ```text
//! oci-layout  index.json  blobs/sha256/<hex>   the layout; other tools can read it
//! layers/<chain id hex>/fs                     one unpacked layer
//! disks/<chain id hex>.<format>                the layers up to that one as a disk for a guest kernel (erofs or ext4)
//! wasm/<chain id hex>/                         the compiled code of the Wasm modules in the layers up to that one
//! ingest/                                      work under way, each entry locked by its process
//! partial/                                     unfinished downloads, kept for a day to be resumed
//! index.lock                                   held while index.json is replaced
//! content.lock                                 shared: content is being used; exclusive: content is being deleted
//! ```
//!
//! Nothing is ever half visible: blobs, layers and the index appear by rename, after they were checked.

mod blobs;
mod code;
mod collect;
mod describe;
mod disks;
mod image;
mod index;
mod ingest;
mod layers;
mod list;
mod lock;
mod names;
mod schedule;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::layer::{Limits, Unpacker};

pub use code::Code;
pub use collect::{Pruned, Removed, Use};
pub use describe::{Description, RootFs};
pub use image::{Image, Layer};
pub(crate) use image::{digest_of, layers, parse};
pub(crate) use index::{IndexEntry, descriptor, index_json};
pub(crate) use ingest::{Lease, PartialBlob, RESUMABLE, Work, sweep_partial};
pub use list::{HistoryEntry, Summary};
pub use lock::Guard;

/// Largest manifest or configuration, bytes: the distribution specification's limit for manifests.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

/// The image store of one data root.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    unpacker: Unpacker,
    limits: Limits,
}

impl Store {
    /// Opens the store in `data_root/images`, making it where there is none.
    pub fn open(data_root: &Path) -> Result<Self> {
        let store = Self { root: data_root.join("images"), unpacker: Unpacker::default(), limits: Limits::default() };
        if !store.root.join("oci-layout").exists() {
            store.create()?;
        }
        Ok(store)
    }

    /// Removes what killed processes left half made.
    pub fn sweep(&self) -> Result<()> {
        ingest::sweep(self)
    }

    /// Unpacks layers elsewhere than in a process of `/proc/self/exe`.
    #[must_use]
    pub fn with_unpacker(mut self, unpacker: Unpacker) -> Self {
        self.unpacker = unpacker;
        self
    }

    /// Bounds layers otherwise.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// While the guard lives, no content is deleted. Do not remove or prune in the same process meanwhile.
    pub fn read_guard(&self) -> Result<Guard> {
        Guard::shared(&self.root.join("content.lock"))
    }

    fn create(&self) -> Result<()> {
        for directory in ["blobs/sha256", "layers", "ingest"] {
            let path = self.root.join(directory);
            std::fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        }
        // Layers hold set-user-id programs of old images: not for other users.
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&self.root, owner_only).map_err(Error::io("restrict", &self.root))?;
        let layout = Work::file(self)?;
        layout.write(br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        layout.rename(&self.root.join("oci-layout"))
    }

    pub(crate) fn ingest_dir(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(crate) fn partial_dir(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn disks_dir(&self) -> PathBuf {
        self.root.join("disks")
    }

    pub(crate) fn codes_dir(&self) -> PathBuf {
        self.root.join("wasm")
    }

    pub(crate) fn unpacker(&self) -> &Unpacker {
        &self.unpacker
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }
}
