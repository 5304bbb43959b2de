//! Where things are kept: the two roots and the paths below them (see `ARCHITECTURE.md`).

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Attempt as _, Result};

/// Directories for root alone.
pub const PRIVATE: u32 = 0o700;

/// The data root, which lasts, and the state root, which a reboot empties.
#[derive(Debug, Clone)]
pub struct Roots {
    data: PathBuf,
    state: PathBuf,
}

impl Roots {
    /// Both roots, made absolute: they are handed to processes with other working directories. Nothing is created.
    pub fn new(data: &Path, state: &Path) -> Result<Self> {
        let absolute = |path: &Path| std::path::absolute(path).attempt(|| format!("use {} as a root", path.display()));
        Ok(Self { data: absolute(data)?, state: absolute(state)? })
    }

    /// The data root.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The state root.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The directory of all containers.
    pub fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }

    /// The directory of one container, which is its OCI bundle too.
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// The lowest layer of every container, see [`crate::base`].
    pub(crate) fn base(&self) -> PathBuf {
        self.data.join("base")
    }

    /// What Linux guests boot with.
    pub fn guests(&self) -> PathBuf {
        self.data.join("guests")
    }

    /// The directory of names, each a symlink to an id.
    pub fn names(&self) -> PathBuf {
        self.data.join("names")
    }

    /// The directory of volumes.
    pub fn volumes(&self) -> PathBuf {
        self.data.join("volumes")
    }

    /// `berth-oci`'s root of sandbox states.
    pub fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    /// The directory of containers of which anything may be alive.
    pub fn live(&self) -> PathBuf {
        self.state.join("containers")
    }

    /// The volatile directory of one container.
    pub fn live_container(&self, id: &str) -> PathBuf {
        self.live().join(id)
    }

    /// What compiled Wasm code must be made for to be of use here.
    pub(crate) fn wasm_keys(&self) -> PathBuf {
        self.state.join("wasm.json")
    }

    /// The event journal.
    pub fn events(&self) -> PathBuf {
        self.state.join("events.jsonl")
    }
}

/// Makes a directory with this mode, and those above it where they are missing.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path).attempt(|| format!("create {}", path.display()))
}
